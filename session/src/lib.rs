//! Sessions: named programs with their checkpoints. What launcher and ctl share.
//!
//! What belongs here: the state directory, the registry of what is live, the lock of a session, the supervisor and
//! its control socket, logs and ptys. What may not enter: how a process is captured or rebuilt (`engine`), bytes on
//! disk (`image`), unsafe calls (`sys::spawn`), command lines (`launcher`, `ctl`).
//!
//! A state directory holds, beside what `image::store` keeps there:
//!
//! ```text
//! sessions/NAME/live.json   what runs under that name (registry)
//!               last.json   how it ended
//!               lock        held while a checkpoint, a restore or a start of it is under way (lock)
//!               control     the supervisor's socket (control)
//!               log         output of a detached session
//! ```
//!
//! A session that was started or restored by us is three processes: the front (the launcher or ctl that the user
//! sees), the supervisor (subreaper and parent of the program; see [`mod@supervisor`]) and the program. For each checkpoint that
//! a trigger makes the supervisor forks a fourth, its recorder.
#![forbid(unsafe_code)]

mod agent;
pub mod api;
mod checkpoint;
pub mod control;
mod engine_calls;
mod errors;
mod frame;
mod front;
mod hooks;
mod kill;
mod launch;
pub mod lock;
pub mod name;
mod procfs;
mod recorder;
pub mod registry;
mod restore;
mod resume;
pub mod state;
mod store_calls;
mod strays;
pub mod supervisor;
mod terminal;
mod trigger;

pub use api::*;
pub use checkpoint::checkpoint;
pub use errors::{image_error, usage_in_one_line};
pub use kill::kill_session;
pub use launch::launch;
pub use procfs::ProcId;
pub use registry::{list, status, Live};
pub use restore::{check, open_checkpoint, restore};
pub use resume::{resume, Resume};
pub use state::StateDir;
pub use trigger::{TriggerSignal, Triggers, GRACE};

/// Result of this library: the engine's error type, with its exit codes.
pub type Result<T> = engine::Result<T>;
