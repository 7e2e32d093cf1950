//! Process trees: what an image of several processes has beside the sections of its first one.
use super::files::{Fd, Lock};
use super::memory::Memory;
use super::process::{Process, Thread};
use super::seccomp::Filter;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The processes but the first, which has the sections of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tree {
    /// Processes, each after its parent.
    pub members: Vec<Member>,
    /// Processes that have ended, and whose parents have yet to wait for them.
    pub zombies: Vec<Zombie>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// PID of its parent in the innermost PID namespace; 0: outside the image.
    pub parent: i32,
    /// How it was reached: "attach" or "agent".
    pub door: String,
    /// The process.
    pub process: Process,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its address space.
    pub memory: Memory,
    /// Its descriptors. Open files are those of the first process's section: the same index is the same open file.
    pub fds: Vec<Fd>,
    /// Record locks (`LOCK_POSIX`) that it holds on open files whose record is of an earlier process.
    pub locks: Vec<(u32, Lock)>,
    /// Its seccomp filters, the oldest first.
    pub filters: Vec<Filter>,
}

/// A process that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Zombie {
    /// PID in the innermost PID namespace.
    pub pid: i32,
    /// Its parent's, likewise.
    pub parent: i32,
    /// Process group, likewise.
    pub pgid: i32,
    /// Session, likewise.
    pub sid: i32,
    /// Wait status, as wait4(2) gives it.
    pub status: i32,
    /// What its parent has been sent for it: a signal, or 0: nothing. None: SIGCHLD.
    pub exit_signal: Option<i32>,
    /// Name.
    pub comm: ByteBuf,
}
