//! Removing checkpoints, and the packs that no manifest names any more.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::error::{Doing, ImageError, Result};
use crate::name::SessionName;
use crate::section::ManifestReader;

use super::{
    files, incoming, Store, CHECKPOINTS_DIR, MANIFEST_FILE, PACKS_DIR, PACK_SUFFIX, REMOVED_PREFIX, SESSIONS_DIR,
};

impl Store {
    /// Removes checkpoint `n` of `name`, and the packs that only it names. It need not be whole.
    ///
    /// Errors: `NoSuchSession`, `NoSuchCheckpoint`, `Io`.
    pub fn remove(&self, name: &SessionName, n: u64) -> Result<()> {
        let _lock = self.lock()?;
        self.resolve(name, Some(n))?;
        self.remove_locked(name, &[n])?;
        self.gc_locked(name)?;
        Ok(())
    }

    /// Removes all but the `keep` latest checkpoints of `name`, and the packs that none of the
    /// others names. Gives the numbers removed.
    ///
    /// Errors: `NoSuchSession`, `Io`.
    pub fn prune(&self, name: &SessionName, keep: usize) -> Result<Vec<u64>> {
        let _lock = self.lock()?;
        let mut numbers = self.numbers(name)?;
        numbers.truncate(numbers.len().saturating_sub(keep));
        self.remove_locked(name, &numbers)?;
        self.gc_locked(name)?;
        Ok(numbers)
    }

    /// Removes the packs of `name` that no manifest names. Gives the number of bytes freed.
    ///
    /// Does nothing while a checkpoint of the session is being written, since that may be
    /// about to name one of them, or if a manifest cannot be read, since it may name any.
    /// Errors: `NoSuchSession`, `Io`.
    pub fn gc(&self, name: &SessionName) -> Result<u64> {
        let _lock = self.lock()?;
        self.gc_locked(name)
    }

    /// Removes session `name`: its checkpoints, packs, and all other files in its folder.
    ///
    /// Errors: `NoSuchSession`; `Busy` if a checkpoint of it is being written; `Io`.
    pub fn remove_session(&self, name: &SessionName) -> Result<()> {
        let _lock = self.lock()?;
        self.numbers(name)?;
        let session = self.session_dir(name);
        if incoming::clean(&session)? {
            return Err(ImageError::Busy { name: name.to_string() });
        }
        let sessions = self.root.join(SESSIONS_DIR);
        let gone = sessions.join(files::random_name(REMOVED_PREFIX)?);
        fs::rename(&session, &gone).doing("remove", &session)?;
        files::sync_dir(&sessions)?;
        self.sweep_sessions()
    }

    /// Removes what is left of removed sessions. The lock is held.
    pub(super) fn sweep_sessions(&self) -> Result<()> {
        let sessions = self.root.join(SESSIONS_DIR);
        let names = files::list_dir(&sessions)?;
        let removed = names.iter().filter(|name| name.starts_with(REMOVED_PREFIX));
        removed.map(|name| sessions.join(name)).try_for_each(|dir| files::remove_tree(&dir))
    }

    /// Makes checkpoints `numbers` cease to exist, each by one rename. It needs no space, so it
    /// works on a full disk. What is left of them goes with the next [`sweep`].
    fn remove_locked(&self, name: &SessionName, numbers: &[u64]) -> Result<()> {
        let checkpoints = self.session_dir(name).join(CHECKPOINTS_DIR);
        for n in numbers {
            let from = self.checkpoint_dir(name, *n);
            let to = checkpoints.join(format!("{REMOVED_PREFIX}{n}"));
            fs::rename(&from, &to).doing("remove", &from)?;
        }
        // The packs may go only when it is certain that the manifests have gone.
        match numbers {
            [] => Ok(()),
            _ => files::sync_dir(&checkpoints),
        }
    }

    fn gc_locked(&self, name: &SessionName) -> Result<u64> {
        let numbers = self.numbers(name)?;
        let session = self.session_dir(name);
        if incoming::clean(&session)? {
            return Ok(0);
        }
        let mut named = HashSet::new();
        for n in numbers {
            match ManifestReader::open(&self.manifest_path(name, n)).and_then(|m| m.packs()) {
                Ok(packs) => named.extend(packs.into_iter().map(|pack| pack.id)),
                Err(_) => return Ok(0),
            }
        }
        let packs = session.join(PACKS_DIR);
        let mut freed = 0;
        for file in files::list_dir(&packs)? {
            let Some(id) = file.strip_suffix(PACK_SUFFIX) else {
                continue;
            };
            if !named.contains(id) {
                let path = packs.join(&file);
                freed += fs::metadata(&path).map_or(0, |meta| meta.len());
                files::remove_file_if_there(&path)?;
            }
        }
        Ok(freed)
    }
}

/// The numbers of removed checkpoints whose folders are still there, ascending.
pub(super) fn removed_numbers(checkpoints: &Path) -> Result<Vec<u64>> {
    let names = files::list_dir(checkpoints)?;
    let numbers = names.iter().filter_map(|name| files::number(name.strip_prefix(REMOVED_PREFIX)?));
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes what is left of removed checkpoints. Of the latest checkpoint that ever was, the empty
/// folder stays, so that its number is not given again. The store's lock is held.
pub(super) fn sweep(checkpoints: &Path) -> Result<()> {
    let names = files::list_dir(checkpoints)?;
    let latest = names.iter().filter_map(|name| files::number(name)).max();
    let removed = removed_numbers(checkpoints)?;
    for n in &removed {
        let folder = checkpoints.join(format!("{REMOVED_PREFIX}{n}"));
        if Some(n) == removed.last() && Some(*n) > latest {
            files::remove_file_if_there(&folder.join(MANIFEST_FILE))?;
        } else {
            files::remove_tree(&folder)?;
        }
    }
    Ok(())
}
