//! What callers say to the engine and what they get back.
use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

/// What becomes of the target after its checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// It runs on.
    #[default]
    Run,
    /// It is killed, still frozen, once the checkpoint is complete.
    Kill,
    /// It stays stopped (SIGSTOP), once the checkpoint is complete.
    Stop,
}

/// A way into a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// ptrace.
    Attach,
    /// The agent that was preloaded when it was launched.
    Agent,
}

impl Door {
    /// Its name, in images and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Door::Attach => "attach",
            Door::Agent => "agent",
        }
    }
}

/// Which way into a target is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoorChoice {
    /// The agent where it can be called, else ptrace: decided before the freeze, and again should the call come to nothing.
    #[default]
    Auto,
    /// This one, or none.
    Only(Door),
}

/// How far an operation is; for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Name of the phase that runs.
    pub phase: &'static str,
    /// Bytes done of `total`; 0 where the phase has none.
    pub done: u64,
    /// Bytes in all; 0 where unknown.
    pub total: u64,
}

/// What becomes of external ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Externals {
    /// Of these descriptors.
    pub named: BTreeMap<i32, External>,
    /// All others but 0, 1, 2 are given up, too.
    pub close: bool,
}

/// How to make a checkpoint.
#[derive(Default)]
pub struct CaptureOptions<'a> {
    /// What becomes of the target.
    pub after: After,
    /// The way in.
    pub door: DoorChoice,
    /// Its session's record says that it was started with an agent: so it may be called if it cannot be looked at (not dumpable).
    pub agent: bool,
    /// Processes that belong to it without being below it, asked before the freeze and in it.
    pub others: Option<&'a dyn Fn() -> sys::procfs::Result<Vec<i32>>>,
    /// What a restore does with external ends, unless it is told otherwise; those of which nothing is said are refused.
    pub external: Externals,
    /// What the session crate wants to find again at restore (opaque to the engine): command line, options.
    pub labels: BTreeMap<String, String>,
    /// What would be reported as not kept is refused, but for what was given up on purpose: by `external`, by the program (dormouse_drop).
    pub strict: bool,
    /// Threads in strict seccomp mode are entered, which takes CAP_SYS_ADMIN. Each of a dozen calls in such a thread brings it, for some microseconds,
    /// into the danger of being killed if our tracer is killed.
    pub risk_strict: bool,
    /// Told how far it is.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

/// A checkpoint that was made.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Its number in the session.
    pub n: u64,
    /// The way in that was taken.
    pub door: Door,
    /// Time from the first thread's stop to the last one's release, by our clock; the longest, if the agent was called first and did not answer.
    pub pause: Duration,
    /// Time of the whole operation.
    pub took: Duration,
    /// Bytes on disk.
    pub bytes: u64,
    /// Threads captured.
    pub threads: usize,
    /// Processes captured.
    pub processes: usize,
    /// What is not kept, each with what is lost.
    pub reported: Vec<String>,
    /// What else is to be said, a line each: why it was not made by the agent that is there.
    pub notes: Vec<String>,
}

/// Which PIDs a restored program gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pids {
    /// `Keep` where permitted and free, else `Private`.
    #[default]
    Auto,
    /// The same PIDs here.
    Keep,
    /// The same PIDs in a new PID namespace.
    Private,
    /// New PIDs.
    Fresh,
}

/// What to do with an external descriptor at restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum External {
    /// Give it up: it has ended, or is closed if it is of a kind that cannot end.
    Close,
    /// Open this instead.
    Path(PathBuf),
}

/// How to restore.
pub struct RestoreOptions<'a> {
    /// Name for messages: "web@3".
    pub what: String,
    /// Which PIDs.
    pub pids: Pids,
    /// What the external ends at 0, 1, 2 (and their dups) are connected to.
    pub stdio: [RawFd; 3],
    /// The program gets a session of its own (with the terminal at `stdio`, if that is one, as its controlling terminal) instead of
    /// joining the caller's session and process group.
    pub own_session: bool,
    /// For external descriptors other than 0, 1, 2.
    pub external: BTreeMap<i32, External>,
    /// Give up all external descriptors that `external` does not name.
    pub external_close: bool,
    /// The log of the session that the checkpoint is of: what is open on it for writing is an external end of ours, which is connected
    /// to 1 and 2 of `stdio`. None: it is a file like any other.
    pub log: Option<PathBuf>,
    /// Path prefixes to exchange: (old, new).
    pub map_path: Vec<(PathBuf, PathBuf)>,
    /// The session that it becomes, name and folder: told to a program that uses libdormouse.
    pub session: Option<(String, PathBuf)>,
    /// Signals that are meant for the caller, also if they come to the program: what its agent is told, and the init of its namespace.
    pub triggers: Vec<i32>,
    /// Told how far it is.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// The signal that the program has passed on, if that is what was read from [`Restored::status`], and not a wait status.
pub fn passed_on(word: i32) -> Option<i32> {
    (word & wire::REAP_SIGNAL != 0).then_some(word & 0xff)
}

/// A program that runs again. The caller is the parent of `child`.
#[derive(Debug)]
pub struct Restored {
    /// Child of the caller to wait for: the program, or the init of its private PID namespace.
    pub child: i32,
    /// The program's PID as seen from the caller.
    pub pid: i32,
    /// Where the program's wait status (i32, as wait4 gives it) can be read each time that it has changed, and signals that the program passes on
    /// ([`crate::passed_on`]); None: `child` is the program itself.
    pub status: Option<OwnedFd>,
    /// The PIDs it got.
    pub pids: Pids,
    /// It has an agent.
    pub agent: bool,
    /// What changed, a line each: "runs in a private PID namespace, as PID 1234 there and 5678 here", ...
    pub notes: Vec<String>,
}
