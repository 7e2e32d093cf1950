//! How a checkpoint comes to exist: built aside, then published by one rename.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{damaged, Doing, Result};
use crate::name::SessionName;
use crate::pack::PackReader;
use crate::pages::PackRef;
use crate::section::ManifestReader;

use super::checkpoint::open_pack;
use super::{files, remove, Store, CHECKPOINTS_DIR, INCOMING_PREFIX, MANIFEST_FILE, PACKS_DIR, PACK_SUFFIX};

/// A checkpoint being written. Dropped before [`NewCheckpoint::publish`] has succeeded, it
/// leaves the store as it was.
#[derive(Debug)]
pub struct NewCheckpoint {
    store: Store,
    name: SessionName,
    dir: PathBuf,
    /// Locked as long as the writer lives: this is how others know that it does.
    _alive: File,
    next_pack: AtomicU32,
    made_session: bool,
    published: bool,
}

impl Store {
    /// Starts a checkpoint of session `name`, making the session's folder if it is missing.
    /// What dead writers left in the session is removed.
    pub fn begin(&self, name: &SessionName) -> Result<NewCheckpoint> {
        let _lock = self.lock()?;
        self.sweep_sessions()?;
        let session = self.session_dir(name);
        let made_session = files::create_private_dir(&session)?;
        let begun = clean(&session).and_then(|_| self.begin_locked(name, made_session));
        if begun.is_err() && made_session {
            drop(fs::remove_dir(&session));
        }
        begun
    }

    fn begin_locked(&self, name: &SessionName, made_session: bool) -> Result<NewCheckpoint> {
        let dir = self.session_dir(name).join(files::random_name(INCOMING_PREFIX)?);
        files::create_private_dir(&dir)?;
        let ready = File::open(&dir).and_then(|file| file.lock().map(|()| file));
        let ready = ready.doing("lock the folder", &dir);
        let alive = ready.and_then(|alive| {
            files::create_private_dir(&dir.join(PACKS_DIR))?;
            Ok(alive)
        });
        let alive = alive.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        Ok(NewCheckpoint {
            store: self.clone(),
            name: name.clone(),
            dir,
            _alive: alive,
            next_pack: AtomicU32::new(0),
            made_session,
            published: false,
        })
    }
}

/// Removes what dead writers and removers left in `session`; true if a writer is at work.
/// The store's lock is held.
pub(super) fn clean(session: &Path) -> Result<bool> {
    let mut at_work = false;
    remove::sweep(&session.join(CHECKPOINTS_DIR))?;
    for entry in files::list_dir(session)? {
        let path = session.join(&entry);
        if entry.starts_with(INCOMING_PREFIX) {
            let folder = File::open(&path).doing("open the folder", &path)?;
            match folder.try_lock() {
                Ok(()) => files::remove_tree(&path)?,
                Err(_) => at_work = true,
            }
        }
    }
    Ok(at_work)
}

impl NewCheckpoint {
    /// The session.
    pub fn name(&self) -> &SessionName {
        &self.name
    }

    /// A path for a new pack of this checkpoint, another one at each call. The pack gets its
    /// lasting name when the checkpoint is published, if the manifest names it.
    pub fn pack_path(&self) -> PathBuf {
        let n = self.next_pack.fetch_add(1, Ordering::Relaxed);
        self.dir.join(PACKS_DIR).join(format!("{n}{PACK_SUFFIX}"))
    }

    /// Writes the manifest and waits until it is on the disk. Once per checkpoint.
    pub fn write_manifest(&mut self, bytes: &[u8]) -> Result<()> {
        files::write_new(&self.dir.join(MANIFEST_FILE), bytes)
    }

    /// Makes the checkpoint exist, and gives its number.
    ///
    /// Before that, the manifest is read back and every pack it names must be there, new or
    /// from an earlier checkpoint of the session. Errors: those of
    /// [`Store::open_checkpoint`], and `Io`; the store then holds what it held.
    pub fn publish(mut self) -> Result<u64> {
        let manifest = self.dir.join(MANIFEST_FILE);
        let named = ManifestReader::open(&manifest)?.packs()?;
        let new = self.new_packs()?;
        let packs = self.dir.join(PACKS_DIR);
        // From here on under the lock: a pack that is there stays there.
        let lock = self.store.lock()?;
        let session = self.store.session_dir(&self.name);
        let shared = session.join(PACKS_DIR);
        let mut moves = Vec::new();
        for pack in &named {
            let file = format!("{}{PACK_SUFFIX}", pack.id);
            let target = shared.join(&file);
            match new.iter().find(|(id, _)| *id == pack.id) {
                Some((_, path)) => {
                    let fits = packs.join(&file);
                    fs::rename(path, &fits).doing("move the page pack", path)?;
                    open_pack(&manifest, &packs, pack)?;
                    if !is_there(&manifest, &shared, pack)? {
                        moves.push((fits, target));
                    }
                }
                _ => drop(open_pack(&manifest, &shared, pack)?),
            }
        }
        let mut made = Made::default();
        let done = self.move_in(&session, &moves, &mut made);
        match done {
            Ok(n) => {
                self.published = true;
                drop(lock);
                Ok(n)
            }
            Err(error) => {
                made.undo();
                drop(lock);
                Err(error)
            }
        }
    }

    /// The IDs and paths of the packs written for this checkpoint.
    fn new_packs(&self) -> Result<Vec<(String, PathBuf)>> {
        let dir = self.dir.join(PACKS_DIR);
        let paths = files::list_dir(&dir)?.into_iter().map(|file| dir.join(file));
        paths.map(|path| Ok((PackReader::open(&path)?.id().to_string(), path))).collect()
    }

    /// The steps that change the store, in the order that makes the last one the only one that
    /// counts. `made` learns what to undo if a step fails.
    fn move_in(&self, session: &Path, moves: &[(PathBuf, PathBuf)], made: &mut Made) -> Result<u64> {
        let checkpoints = session.join(CHECKPOINTS_DIR);
        let packs = session.join(PACKS_DIR);
        for dir in [&packs, &checkpoints] {
            if files::create_private_dir(dir)? {
                made.dirs.push(dir.clone());
            }
        }
        let first = self.store.numbers(&self.name)?.is_empty();
        let n = self.store.next_number(&self.name)?;
        let folder = checkpoints.join(n.to_string());
        for (from, to) in moves {
            let repaired = to.exists();
            fs::rename(from, to).doing("move the page pack", from)?;
            if !repaired {
                made.packs.push(to.clone());
            }
        }
        // Before the folders are synced: a journal is then written once for both.
        files::remove_tree(&self.dir.join(PACKS_DIR))?;
        if !moves.is_empty() {
            files::sync_dir(&packs)?;
        }
        files::sync_dir(&self.dir)?;
        if first {
            // The folders on the way may be new, whoever made them.
            files::sync_dir(session)?;
            files::sync_dir(&self.store.root.join(super::SESSIONS_DIR))?;
            files::sync_dir(&self.store.root)?;
        }
        fs::rename(&self.dir, &folder).doing("publish the checkpoint as", &folder)?;
        made.checkpoint = Some((folder, self.dir.clone()));
        files::sync_dir(&checkpoints)?;
        Ok(n)
    }
}

/// True if the pack that a checkpoint brings is in `shared` already, as happens when an export
/// is imported where it came from. One that is there but damaged is not: it is to be replaced.
fn is_there(manifest: &Path, shared: &Path, pack: &PackRef) -> Result<bool> {
    let path = shared.join(format!("{}{PACK_SUFFIX}", pack.id));
    if !path.exists() {
        return Ok(false);
    }
    match PackReader::open(&path).and_then(|there| there.verify()) {
        Err(error) if error.is_image() => Ok(false),
        Err(error) => Err(error),
        // Whole: then it must be the same, for others name it.
        Ok(()) => open_pack(manifest, shared, pack).map(|_| true),
    }
}

/// What publishing has made so far.
#[derive(Default)]
struct Made {
    dirs: Vec<PathBuf>,
    packs: Vec<PathBuf>,
    checkpoint: Option<(PathBuf, PathBuf)>,
}

impl Made {
    /// Takes it all away again. What cannot be removed is removed by a later clean-up: no
    /// manifest names it.
    fn undo(self) {
        if let Some((folder, back)) = self.checkpoint {
            if fs::rename(folder, back).is_err() {
                // It exists, then, and whole: its packs must stay.
                return;
            }
        }
        self.packs.iter().for_each(|pack| drop(fs::remove_file(pack)));
        self.dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}

impl Drop for NewCheckpoint {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // Without the lock (the disk may be full or gone) all the same: the folder is ours.
        let lock = self.store.lock();
        drop(fs::remove_dir_all(&self.dir));
        if self.made_session {
            // Fails, rightly, if somebody else has put something there meanwhile.
            drop(fs::remove_dir(self.store.session_dir(&self.name)));
        }
        drop(lock);
    }
}

/// Refuses a pack that an import brought and that is not what its manifest says.
pub(super) fn check_pack(reader: &PackReader, id: &str) -> Result<()> {
    if reader.id() != id {
        return Err(damaged(reader.path(), format!("it is pack {}, not {id}", reader.id())));
    }
    reader.verify()
}
