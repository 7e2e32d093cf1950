//! What `/proc` says about a process, as typed values.
//!
//! Every parser takes bytes (names and paths are whatever the target made them, not UTF-8), never
//! panics, and ignores lines and fields it does not know: a newer kernel adds, it does not take away.
//! What may not enter: anything that stops, signals or writes to a target. `read(pid)` takes a PID or
//! a TID as the calling process's `/proc` counts them.

#![deny(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

mod bytes;

pub mod auxv;
pub mod cgroup;
pub mod fd;
pub mod fdinfo;
pub mod first;
pub mod limits;
pub mod maps;
pub mod mountinfo;
pub mod net;
pub mod ns;
pub mod numa;
pub mod pagemap;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod timens;
pub mod timers;
pub mod vma_at;

mod process;
pub use process::{
    boot_id, children, cmdline, comm, cwd, exe, is_ending, is_io_worker, pid_exists, pids, root, split_cmdline,
    start_time, task_syscall, tasks, waits, Link,
};

/// A file of testdata.
#[cfg(test)]
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("testdata/", $name)).as_slice()
    };
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_fdinfo;
#[cfg(test)]
mod tests_fuzz;
#[cfg(test)]
mod tests_live;

/// A PID or TID as the reader's `/proc` numbers it (`pid_t`).
pub type Pid = libc::pid_t;

/// A text that is not what the kernel writes in this file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("/proc {file}, line {line}: {what}")]
pub struct ParseError {
    /// The file's name below `/proc/PID`, such as `maps` or `net/tcp`.
    pub file: &'static str,
    /// Line number from 1; 0 when the text as a whole is at fault.
    pub line: usize,
    /// What was expected and an excerpt of what was there.
    pub what: String,
}

impl ParseError {
    pub(crate) fn new(file: &'static str, line: usize, what: &str, text: &[u8]) -> Self {
        let cut = &text[..text.len().min(80)];
        let what = format!("{what}: \"{}\"", cut.escape_ascii());
        ParseError { file, line, what }
    }

    pub(crate) fn missing(file: &'static str, field: &str) -> Self {
        ParseError { file, line: 0, what: format!("no field {field}") }
    }
}

/// Reading a file of `/proc` failed, or it did not hold what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// The operation: `read`, `open`, `readlink`, `list`, `scan`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The content is not as documented in proc(5).
    #[error("cannot understand {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: ParseError,
    },
}

/// The result of reading from `/proc`.
pub type Result<T> = std::result::Result<T, ReadError>;

impl ReadError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        ReadError::Io { op, path: path.to_owned(), source }
    }

    /// The errno, where the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ReadError::Io { source, .. } => source.raw_os_error(),
            ReadError::Parse { .. } => None,
        }
    }

    /// True if the process, thread or descriptor is no longer there (ENOENT, ESRCH).
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ESRCH))
    }

    /// True if the caller may not look (EACCES, EPERM): another user's or a non-dumpable process.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(libc::EACCES | libc::EPERM))
    }
}

/// The state letter of `stat` and `status` (fs/proc/array.c `task_state_array`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// `R`
    Running,
    /// `S`
    Sleeping,
    /// `D`, uninterruptible
    DiskSleep,
    /// `T`, job control stop
    Stopped,
    /// `t`, ptrace stop
    Tracing,
    /// `Z`
    Zombie,
    /// `X`
    Dead,
    /// `P`
    Parked,
    /// `I`
    Idle,
    /// A letter of a kernel other than ours.
    Other(u8),
}

impl State {
    /// From the letter of proc(5).
    pub fn from_letter(letter: u8) -> State {
        match letter {
            b'R' => State::Running,
            b'S' => State::Sleeping,
            b'D' => State::DiskSleep,
            b'T' => State::Stopped,
            b't' => State::Tracing,
            b'Z' => State::Zombie,
            b'X' | b'x' => State::Dead,
            b'P' => State::Parked,
            b'I' => State::Idle,
            other => State::Other(other),
        }
    }

    /// Zombie or dead: it has no memory, files or children any more.
    pub fn is_ended(self) -> bool {
        matches!(self, State::Zombie | State::Dead)
    }
}

/// A device number (`dev_t`) as its two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dev {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Dev {
    /// From the `st_dev` or `st_rdev` of stat(2).
    pub fn from_stat(dev: u64) -> Dev {
        Dev { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// From the kernel's inner form, `major << 20 | minor`, which fdinfo (`sdev:`) and sock_diag show.
    pub fn from_kernel(dev: u32) -> Dev {
        Dev { major: dev >> 20, minor: dev & 0xf_ffff }
    }
}

/// `/proc/PID/NAME`; of a process whose first thread has ended, what that has no more is another thread's ([`first`]).
pub fn path(pid: Pid, name: &str) -> PathBuf {
    path_of(pid, name)
}

/// The same.
pub(crate) fn path_of(pid: Pid, name: &str) -> PathBuf {
    // of these it has its own until all have ended; timers are shown of a process's number only
    let own = matches!(name, "stat" | "comm" | "timers") || name.starts_with("task");
    let pid = if own { pid } else { first::by(pid) };
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Most files fit, so that two reads are enough; of so much the allocator maps pages of its own, which are not touched before they are needed.
const ROOM: usize = 256 << 10;

thread_local! {
    /// Where this thread reads files: thousands are read while a tree stands still.
    static PLACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Does something with the whole of a file that has no size.
pub(crate) fn read_whole<T>(path: &Path, with: impl FnOnce(&[u8]) -> T) -> Result<T> {
    // taken out meanwhile: whoever reads another file in between has another place
    let mut place = PLACE.take();
    if place.is_empty() {
        place = vec![0; ROOM];
    }
    let read = File::open(path).and_then(|file| fill(&file, &mut place));
    let done = read.map(|len| with(&place[..len]));
    PLACE.set(place);
    done.map_err(|e| ReadError::io("read", path, e))
}

/// Reads all that there is, and says how much that was.
fn fill(mut file: &File, place: &mut Vec<u8>) -> io::Result<usize> {
    let mut len = 0;
    loop {
        if len == place.len() {
            place.resize(2 * len, 0);
        }
        match file.read(&mut place[len..]) {
            Ok(0) => return Ok(len),
            Ok(more) => len += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// `/proc/PID/NAME` as it is.
pub fn bytes(pid: Pid, name: &str) -> Result<Vec<u8>> {
    read_path(&path_of(pid, name))
}

/// The whole of a file that has no size.
pub(crate) fn read_path(path: &Path) -> Result<Vec<u8>> {
    read_whole(path, <[u8]>::to_vec)
}

/// Reads a file and parses it.
pub(crate) fn read_with<T>(path: &Path, parse: impl FnOnce(&[u8]) -> std::result::Result<T, ParseError>) -> Result<T> {
    read_whole(path, parse)?.map_err(|source| ReadError::Parse { path: path.to_owned(), source })
}
