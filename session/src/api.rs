//! What launcher and ctl say to this library and what they get back.
use engine::{After, DoorChoice, External, Externals, Pids, Progress};
use image::SessionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::registry::Live;
use crate::trigger::Triggers;

/// A session, or one checkpoint of it: `web` or `web@3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The session.
    pub name: SessionName,
    /// The checkpoint; None is the latest.
    pub n: Option<u64>,
}

/// How a session came to be, and whether someone is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Launched or restored in the foreground of a command.
    Foreground,
    /// Launched or restored with `--detach`.
    Detached,
    /// Not launched by us: known by `ctl checkpoint --pid`. It has no supervisor.
    Attached,
}

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its program, or something that descends from it, runs.
    Live,
    /// Its program is stopped: `--stop`, SIGSTOP or job control.
    Stopped,
    /// Nothing of it runs; it has checkpoints.
    Dead,
    /// Nothing of it runs and it has no checkpoint: only its log and its last status are left.
    Ended,
}

/// One line of `ctl list`.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Its registration, if it is live.
    pub live: Option<Live>,
    /// Numbers of its checkpoints, ascending.
    pub checkpoints: Vec<u64>,
    /// What `live` was, or the last end of it: "exited with 0", "killed by SIGTERM", "checkpointed as 3 and killed".
    pub last: Option<String>,
    /// Its log file, if it has one.
    pub log: Option<PathBuf>,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct LaunchRequest {
    /// Name; None: one is made from the command.
    pub name: Option<SessionName>,
    /// The command and its arguments, at least one.
    pub argv: Vec<OsString>,
    /// In the background, output to the session's log.
    pub detach: bool,
    /// What makes checkpoints of it by itself.
    pub triggers: Triggers,
    /// The way in for its checkpoints: but for `Only(Door::Attach)` the agent is preloaded; by [`DoorChoice::Auto`] only if that can be done.
    pub door: DoorChoice,
}

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// Which checkpoint.
    pub spec: Spec,
    /// Under another name.
    pub as_name: Option<SessionName>,
    /// In the background; returns when the program runs.
    pub detach: bool,
    /// Which PIDs.
    pub pids: Pids,
    /// For external descriptors other than 0, 1, 2.
    pub external: BTreeMap<i32, External>,
    /// Give up all external descriptors that `external` does not name.
    pub external_close: bool,
    /// Path prefixes to exchange: (old, new).
    pub map_path: Vec<(PathBuf, PathBuf)>,
    /// What makes checkpoints of it by itself, before what did when it was checkpointed.
    pub triggers: Triggers,
    /// Only `triggers`; what was in force when it was checkpointed is not.
    pub no_triggers: bool,
}

impl RestoreRequest {
    /// Restores `spec` in the foreground, everything else by default.
    pub fn new(spec: Spec) -> RestoreRequest {
        RestoreRequest {
            spec,
            as_name: None,
            detach: false,
            pids: Pids::Auto,
            external: BTreeMap::new(),
            external_close: false,
            map_path: Vec::new(),
            triggers: Triggers::default(),
            no_triggers: false,
        }
    }
}

/// What to checkpoint.
#[derive(Clone, Debug)]
pub enum Target {
    /// A live session.
    Session(SessionName),
    /// Any process; it becomes the attached session `name`.
    Pid {
        /// The process.
        pid: i32,
        /// The session's name.
        name: SessionName,
    },
}

/// How to checkpoint.
#[derive(Default)]
pub struct CheckpointRequest<'a> {
    /// What becomes of the target.
    pub after: After,
    /// The way in.
    pub door: DoorChoice,
    /// What a restore does with external ends.
    pub external: Externals,
    /// What would be reported as not kept is refused ([`engine::CaptureOptions::strict`]); always so if the session was started with it.
    pub strict: bool,
    /// Threads in strict seccomp mode are entered all the same ([`engine::CaptureOptions::risk_strict`]).
    pub risk_strict: bool,
    /// Told how far it is.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

/// A checkpoint that was made.
#[derive(Clone, Debug)]
pub struct Checkpointed {
    /// The session.
    pub name: SessionName,
    /// The program's PID.
    pub pid: i32,
    /// What the engine says of it.
    pub captured: engine::Captured,
    /// What else is to be said, a line each.
    pub notes: Vec<String>,
}

/// A session that was started or restored, told when its program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// The name was made by us.
    pub name_made: bool,
    /// The checkpoint it comes from.
    pub from: Option<u64>,
    /// The program's PID, as seen here.
    pub pid: i32,
    /// PID of the supervisor.
    pub supervisor: i32,
    /// The PIDs a restored program got: "keep", "private", "fresh".
    pub pids: Option<String>,
    /// What changed, a line each.
    pub notes: Vec<String>,
    /// Where the output goes, of a detached session.
    pub log: Option<PathBuf>,
    /// Restored, it has another terminal than before, or one with other content: it should draw anew.
    pub redraw: bool,
}

/// What happens while a session is started and runs in the foreground.
#[derive(Clone, Debug)]
pub enum Event {
    /// How far a restore is.
    Progress(Progress),
    /// The program runs.
    Started(Started),
    /// The command ended and this many processes that descend from it run on, with the supervisor.
    Background {
        /// The session.
        name: String,
        /// How many.
        processes: usize,
        /// PID of the supervisor.
        supervisor: i32,
    },
    /// A trigger made a checkpoint; the program runs on, or `Left` follows.
    Checkpointed {
        /// The session.
        name: String,
        /// The checkpoint.
        n: u64,
        /// How long the program stood still.
        pause: Duration,
        /// How long all of it took.
        took: Duration,
        /// What is to be said, a line each: what is not kept, if that is not as it was in the one before.
        notes: Vec<String>,
    },
    /// A trigger could not make a checkpoint; the program runs on.
    NotCheckpointed {
        /// Why.
        error: engine::Error,
    },
    /// It was checkpointed and killed (`ctl checkpoint --kill`, `--signal-exit`, `--on-term checkpoint`).
    Left {
        /// The session.
        name: String,
        /// The checkpoint.
        n: u64,
    },
}

/// How launching or restoring ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Detached: it runs.
    Running(Started),
    /// In the foreground: the command ended; exit with `code` (its own, 128+n for a signal, 85 checkpointed and left).
    Ended {
        /// Exit code for the caller.
        code: u8,
    },
}

/// Why nothing was started: exit with `code` (125, 126 or 127), say `error`.
#[derive(Clone, Debug)]
pub struct LaunchError {
    /// Exit code for launcher.
    pub code: u8,
    /// Why.
    pub error: engine::Error,
}

/// How a session was ended by [`crate::kill_session`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Killed {
    /// Processes that were there.
    pub processes: usize,
    /// Of these, those that SIGTERM did not end in time and SIGKILL did.
    pub forced: usize,
    /// Time it took.
    #[serde(skip)]
    pub took: Duration,
}

/// Exit code of launcher's own failures.
pub const EXIT_FAILED: u8 = 125;
/// Exit code of a command that cannot be executed.
pub const EXIT_CANNOT_EXECUTE: u8 = 126;
/// Exit code of a command that is not found.
pub const EXIT_NOT_FOUND: u8 = 127;
/// Exit code of a session that was checkpointed and left.
pub const EXIT_LEFT: u8 = 85;
