//! The store, as this library uses it: the one place to change if its signatures do.
use crate::errors::image_error;
use crate::Result;
use image::{CheckpointHandle, SessionName, Store};
use std::path::Path;

pub(crate) fn open(root: &Path) -> Result<Store> {
    Store::open(root).map_err(|e| image_error("open the store", e))
}

/// Numbers of the session's checkpoints, ascending; none if there is no such session in the store.
pub(crate) fn numbers(store: &Store, name: &SessionName) -> Result<Vec<u64>> {
    match store.numbers(name) {
        Ok(numbers) => Ok(numbers),
        Err(e) if e.is_absent() => Ok(Vec::new()),
        Err(e) => Err(image_error(format!("list checkpoints of {name}"), e)),
    }
}

pub(crate) fn checkpoint(
    store: &Store,
    name: &SessionName,
    n: Option<u64>,
    attempted: &str,
) -> Result<CheckpointHandle> {
    store.open_checkpoint(name, n).map_err(|e| image_error(attempted, e))
}

pub(crate) fn number(handle: &CheckpointHandle) -> u64 {
    handle.n()
}

/// Removes all but the latest `keep` checkpoints of the session.
pub(crate) fn prune(store: &Store, name: &SessionName, keep: usize) -> Result<()> {
    store.prune(name, keep).map(|_| ()).map_err(|e| image_error(format!("remove older checkpoints of {name}"), e))
}

/// Reads all of a checkpoint; an error says what is wrong with it.
pub(crate) fn verify(store: &Store, name: &SessionName, n: u64) -> Result<()> {
    store.verify(name, Some(n)).map(|_| ()).map_err(|e| image_error(format!("verify {name}@{n}"), e))
}
