//! The store of checkpoints: `STATE/sessions/NAME/checkpoints/N/manifest` and
//! `STATE/sessions/NAME/packs/ID.pack`.
//!
//! A checkpoint exists whole or not at all: it is built in a folder `.incoming-*` of its session
//! and comes to exist by one rename. Every change of the store is made under one lock,
//! `STATE/store.lock`, which is held for a few renames and never while pages are written.
//! Whoever holds no lock any more is dead, and what it left is removed.
//!
//! Other files in a session's folder belong to the session crate; nothing here touches them,
//! except [`Store::remove_session`], which removes the folder.

mod checkpoint;
mod files;
mod incoming;
mod remove;
mod transfer;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use checkpoint::CheckpointHandle;
pub use incoming::NewCheckpoint;
pub use transfer::{EXPORT_MANIFEST, EXPORT_NAME, EXPORT_PACK};

pub(crate) use files::random_bytes;

use crate::error::{Doing, ImageError, Result};
use crate::name::SessionName;
use crate::section::Identity;

/// Folder of the sessions in the state directory.
pub const SESSIONS_DIR: &str = "sessions";
/// Folder of the checkpoints in a session's folder.
pub const CHECKPOINTS_DIR: &str = "checkpoints";
/// Folder of the page packs in a session's folder.
pub const PACKS_DIR: &str = "packs";
/// File of a checkpoint's manifest in the checkpoint's folder.
pub const MANIFEST_FILE: &str = "manifest";
/// The store's lock in the state directory.
pub const LOCK_FILE: &str = "store.lock";
/// How the folder of a checkpoint that is being written starts.
pub const INCOMING_PREFIX: &str = ".incoming-";
/// How the name of a removed folder starts. That of a checkpoint goes on with its number.
pub const REMOVED_PREFIX: &str = ".removed-";
/// How the file of a page pack ends.
pub const PACK_SUFFIX: &str = ".pack";

/// A state directory, open. Cheap to clone; any number of them may be open on the same folder,
/// in any number of processes.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A checkpoint as [`Store::list`] shows it.
#[derive(Debug)]
pub struct CheckpointInfo {
    /// Its number, from 1 on; never used again in its session.
    pub n: u64,
    /// When its manifest was written.
    pub created: SystemTime,
    /// Bytes of its manifest and of all packs it names; a pack that several checkpoints name
    /// counts for each. 0 if the manifest cannot be read.
    pub bytes: u64,
    /// The manifest's identity, or why it cannot be restored. Pages are not read for this;
    /// [`Store::verify`] does.
    pub identity: Result<Identity>,
}

impl Store {
    /// Opens the state directory, making its folders (mode 0700) where they are missing.
    ///
    /// Errors: `WrongOwner` if it belongs to another user than the effective one; `Io`.
    pub fn open(state_dir: &Path) -> Result<Store> {
        files::create_private_dirs(state_dir)?;
        let euid = files::effective_uid()?;
        let sessions = state_dir.join(SESSIONS_DIR);
        files::check_owner(state_dir, euid)?;
        files::create_private_dirs(&sessions)?;
        files::check_owner(&sessions, euid)?;
        // Images hold secrets: a folder that was opened to others is closed again.
        files::make_private(&sessions)?;
        Ok(Store { root: state_dir.to_path_buf() })
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of session `name`, whether it exists or not.
    pub fn session_dir(&self, name: &SessionName) -> PathBuf {
        self.root.join(SESSIONS_DIR).join(name.as_str())
    }

    /// The names of all sessions that have a folder, sorted; some may have no checkpoint.
    pub fn list_sessions(&self) -> Result<Vec<SessionName>> {
        let dir = self.root.join(SESSIONS_DIR);
        let mut names: Vec<SessionName> = files::list_dir(&dir)?
            .into_iter()
            .filter_map(|name| SessionName::new(&name).ok())
            .filter(|name| dir.join(name.as_str()).is_dir())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The numbers of the checkpoints of `name`, ascending. Error: `NoSuchSession`.
    pub fn numbers(&self, name: &SessionName) -> Result<Vec<u64>> {
        let session = self.session_dir(name);
        if !session.is_dir() {
            return Err(ImageError::NoSuchSession { name: name.to_string() });
        }
        let entries = files::list_dir(&session.join(CHECKPOINTS_DIR))?;
        let mut numbers: Vec<u64> = entries.iter().filter_map(|e| files::number(e)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The checkpoints of `name`, ascending. A damaged one is listed with what is wrong with it.
    ///
    /// Errors: `NoSuchSession`, `Io`.
    pub fn list(&self, name: &SessionName) -> Result<Vec<CheckpointInfo>> {
        let _lock = self.lock_shared()?;
        self.numbers(name)?.into_iter().map(|n| self.info(name, n)).collect()
    }

    fn info(&self, name: &SessionName, n: u64) -> Result<CheckpointInfo> {
        let path = self.manifest_path(name, n);
        let written = fs::metadata(&path).and_then(|meta| meta.modified());
        let created = written.unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(match self.open_locked(name, n) {
            Ok(checkpoint) => {
                CheckpointInfo { n, created, bytes: checkpoint.bytes(), identity: Ok(checkpoint.manifest().identity()) }
            }
            Err(error) => CheckpointInfo { n, created, bytes: 0, identity: Err(error) },
        })
    }

    /// Opens checkpoint `n` of `name`, or its latest. The latest is the one of the highest
    /// number, also if it is damaged: an older state is not restored unasked.
    ///
    /// Errors: `NoSuchSession`, `NoSuchCheckpoint`, `MissingPack`, and those of
    /// [`crate::ManifestReader::open`] and [`crate::PackReader::open`].
    pub fn open_checkpoint(&self, name: &SessionName, n: Option<u64>) -> Result<CheckpointHandle> {
        let _lock = self.lock_shared()?;
        let n = self.resolve(name, n)?;
        self.open_locked(name, n)
    }

    /// The number meant by `n` (`None`: the latest), which exists.
    fn resolve(&self, name: &SessionName, n: Option<u64>) -> Result<u64> {
        let have = self.numbers(name)?;
        let found = match n {
            Some(n) => have.contains(&n).then_some(n),
            None => have.last().copied(),
        };
        found.ok_or_else(|| ImageError::NoSuchCheckpoint { name: name.to_string(), n, have })
    }

    fn open_locked(&self, name: &SessionName, n: u64) -> Result<CheckpointHandle> {
        let packs = self.session_dir(name).join(PACKS_DIR);
        CheckpointHandle::open(n, &self.manifest_path(name, n), &packs)
    }

    fn checkpoint_dir(&self, name: &SessionName, n: u64) -> PathBuf {
        self.session_dir(name).join(CHECKPOINTS_DIR).join(n.to_string())
    }

    fn manifest_path(&self, name: &SessionName, n: u64) -> PathBuf {
        self.checkpoint_dir(name, n).join(MANIFEST_FILE)
    }

    /// Reads everything of checkpoint `n` of `name` (`None`: the latest): the manifest, and
    /// each page of each pack it names. Gives the manifest's identity.
    ///
    /// Errors: those of [`Store::open_checkpoint`], and `Damaged`.
    pub fn verify(&self, name: &SessionName, n: Option<u64>) -> Result<Identity> {
        let checkpoint = self.open_checkpoint(name, n)?;
        checkpoint.packs().iter().try_for_each(|pack| pack.verify())?;
        Ok(checkpoint.manifest().identity())
    }

    /// Takes the lock for a change of the store. It ends with the file, and with the process.
    fn lock(&self) -> Result<File> {
        let path = self.root.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing("open the lock", &path)?;
        file.lock().doing("take the lock", &path)?;
        Ok(file)
    }

    /// Takes the lock for reading; `None` where nothing can be written, so nothing changes.
    fn lock_shared(&self) -> Result<Option<File>> {
        let path = self.root.join(LOCK_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Nothing has been written here yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("open the lock", &path),
        };
        file.lock_shared().doing("take the lock", &path)?;
        Ok(Some(file))
    }

    /// The number the next checkpoint of `name` gets: above all there are and ever were.
    fn next_number(&self, name: &SessionName) -> Result<u64> {
        let removed = remove::removed_numbers(&self.session_dir(name).join(CHECKPOINTS_DIR))?;
        let used = self.numbers(name)?.last().copied().max(removed.last().copied());
        Ok(used.unwrap_or(0).saturating_add(1))
    }
}
