//! Errors of the host crate: what was attempted, on which process, and the kernel's answer.
use std::io;

/// What can go wrong while working on a process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call about a process failed.
    #[error("{doing} of {pid}: {source}")]
    Call {
        /// The call: "PTRACE_SEIZE", "pidfd_getfd", ...
        doing: String,
        /// The process or thread.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process or the thread ended meanwhile.
    #[error("process {pid} ended during {doing}")]
    Died {
        /// What was being done.
        doing: String,
        /// The process.
        pid: i32,
    },
    /// A thread did not stop in time.
    #[error("thread {tid} did not stop within {seconds} s (state {state})")]
    Stuck {
        /// The thread.
        tid: i32,
        /// How long was waited.
        seconds: u64,
        /// Its state from /proc, see proc(5).
        state: String,
    },
    /// Something about the target rules this door out.
    #[error("{what}")]
    Unfit {
        /// What, in words.
        what: String,
    },
    /// The other end (tracer or blob) went away or spoke nonsense.
    #[error("{peer}: {what}")]
    Peer {
        /// "tracer" or "parasite".
        peer: &'static str,
        /// What happened.
        what: String,
    },
    /// A system call inside the target failed.
    #[error("{call} inside {pid}: {source}")]
    Inside {
        /// The call.
        call: String,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The target's seccomp filters do not let through what would be called inside it. Nothing was called.
    #[error("the seccomp filters of {pid} do not let through {calls}")]
    Filtered {
        /// The process.
        pid: i32,
        /// Names of the calls.
        calls: String,
        /// The filters would be suspended, but the calls could kill.
        suspended: bool,
    },
    /// A file of /proc or another file could not be read.
    #[error("{path}: {source}")]
    File {
        /// Path.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// A failed call about a process; ESRCH is the process's death.
    pub fn call(doing: impl Into<String>, pid: i32, source: io::Error) -> Error {
        let doing = doing.into();
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Error::Died { doing, pid };
        }
        Error::Call { doing, pid, source }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Call { source, .. } | Error::Inside { source, .. } | Error::File { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
