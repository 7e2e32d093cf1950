//! The engine's verbs, as this library calls them: the one place to change if their signatures do.
use engine::{CaptureOptions, Captured, RestoreOptions, Restored, Result};
use image::{CheckpointHandle, SessionName, Store};

pub(crate) fn checkpoint(store: &Store, name: &SessionName, pid: i32, o: &CaptureOptions) -> Result<Captured> {
    engine::checkpoint(store, name, pid, o)
}

pub(crate) fn check(image: &CheckpointHandle, o: &RestoreOptions) -> Result<Vec<String>> {
    engine::check(image, o)
}

pub(crate) fn restore(image: &CheckpointHandle, o: &RestoreOptions) -> Result<Restored> {
    engine::restore(image, o)
}

pub(crate) fn wants_terminal(image: &CheckpointHandle) -> Result<bool> {
    engine::wants_terminal(image)
}

pub(crate) fn label(image: &CheckpointHandle, name: &str) -> Result<Option<String>> {
    engine::label(image, name)
}
