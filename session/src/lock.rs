//! The lock of a session: held while a checkpoint, a restore or a start of it is under way.
//!
//! A record lock (fcntl), not flock: flock belongs to the open file and passes to every forked child, so the tracer
//! or a restored program would keep it when its holder is long dead. A record lock belongs to one process, ends with
//! it whatever kills it, and the kernel tells whose it is. Within one process a table keeps two threads apart.
use crate::errors::storage;
use crate::{Result, StateDir};
use engine::{Error, Kind};
use image::SessionName;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// (process, device, inode) of the locks that are held; a forked child has the table but not the locks.
static HELD: Mutex<Vec<(u32, u64, u64)>> = Mutex::new(Vec::new());

/// A held lock; dropping it lets it go.
#[derive(Debug)]
pub struct Lock {
    // Dropped last: closing any descriptor of the file ends the process's lock on it.
    file: File,
    key: (u32, u64, u64),
    path: PathBuf,
}

impl Lock {
    /// Takes the session's lock, or says who holds it ([`Kind::Busy`]).
    pub fn take(state: &StateDir, name: &SessionName, attempted: &str) -> Result<Lock> {
        Self::take_as(state, name, attempted, Wait::Not)
    }

    /// The same, but waits for a start or restore to be over: its program may run, and be seen to run, an instant earlier.
    pub fn take_when_started(state: &StateDir, name: &SessionName, attempted: &str) -> Result<Lock> {
        Self::take_as(state, name, attempted, Wait::Start)
    }

    /// The same, but waits for whatever is under way, however long that takes.
    pub(crate) fn take_when_free(state: &StateDir, name: &SessionName, attempted: &str) -> Result<Lock> {
        Self::take_as(state, name, attempted, Wait::All)
    }

    /// Says in the lock file that a start or restore is what it is held for.
    pub fn starting(&mut self) {
        let _ = writeln!(self.file, "{STARTING}");
    }

    fn take_as(state: &StateDir, name: &SessionName, attempted: &str, wait: Wait) -> Result<Lock> {
        state.make_session(name)?;
        let path = state.session(name).join("lock");
        loop {
            if let Some(lock) = Self::try_once(&path, name, attempted, wait)? {
                return Ok(lock);
            }
            // Its last holder removed the folder between our open and our lock.
            state.make_session(name)?;
        }
    }

    fn try_once(path: &Path, name: &SessionName, attempted: &str, wait: Wait) -> Result<Option<Lock>> {
        let fail = |e: &std::io::Error| storage(attempted, path, e);
        // Looked at before it is opened: closing our own second descriptor would end our lock.
        let known = fs::metadata(path).ok().map(|m| (std::process::id(), m.dev(), m.ino()));
        let mut held = HELD.lock().unwrap_or_else(|e| e.into_inner());
        if known.is_some_and(|k| held.contains(&k)) {
            return Err(busy(name, attempted, std::process::id() as i32));
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let mut file = match opened {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| fail(&e))?,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EACCES | Errno::EAGAIN) if wait.is_for(&mut file) => {
                // ends with the holder at the latest; then everything is looked at anew
                let _ = fcntl(&file, FcntlArg::F_SETLKW(&whole(libc::F_WRLCK)));
                return Ok(None);
            }
            Err(Errno::EACCES | Errno::EAGAIN) => {
                let mut other = whole(libc::F_WRLCK);
                // Gone in between: the PID in the file is then the last word.
                let asked = fcntl(&file, FcntlArg::F_GETLK(&mut other)).is_ok();
                let by_kernel =
                    (asked && other.l_type != libc::F_UNLCK as i16 && other.l_pid > 0).then_some(other.l_pid);
                return Err(busy(name, attempted, by_kernel.unwrap_or_else(|| pid_inside(&mut file))));
            }
            Err(e) => return Err(fail(&e.into())),
        }
        let meta = file.metadata().map_err(|e| fail(&e))?;
        let current = fs::metadata(path).ok();
        if current.is_none_or(|c| (c.dev(), c.ino()) != (meta.dev(), meta.ino())) {
            return Ok(None);
        }
        // For people, and for a holder in another PID namespace. A full disk must not forbid locking.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        let key = (std::process::id(), meta.dev(), meta.ino());
        held.push(key);
        Ok(Some(Lock { file, key, path: path.to_path_buf() }))
    }

    /// Path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.key.0 != std::process::id() {
            // The copy of a forked child: nothing is held here.
            return;
        }
        let mut held = HELD.lock().unwrap_or_else(|e| e.into_inner());
        // A failure here is a closed file, and closing (next) unlocks anyway.
        let _ = fcntl(&self.file, FcntlArg::F_SETLK(&whole(libc::F_UNLCK)));
        held.retain(|k| *k != self.key);
    }
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    Not,
    /// A start or restore.
    Start,
    All,
}

impl Wait {
    fn is_for(self, lock: &mut File) -> bool {
        self == Wait::All || self == Wait::Start && says_starting(lock)
    }
}

fn whole(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Second line of the lock file during a start or restore.
const STARTING: &str = "starting";

fn inside(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    text
}

fn pid_inside(file: &mut File) -> i32 {
    inside(file).lines().next().and_then(|l| l.parse().ok()).unwrap_or(0)
}

fn says_starting(file: &mut File) -> bool {
    inside(file).lines().nth(1) == Some(STARTING)
}

fn busy(name: &SessionName, attempted: &str, pid: i32) -> Error {
    Error::new(
        Kind::Busy,
        attempted,
        format!("session {name}"),
        format!("another checkpoint, restore or start of it runs (PID {pid})"),
        "try again when it is done",
    )
}
