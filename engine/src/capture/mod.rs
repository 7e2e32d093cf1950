//! Capture: the recorder, as a list of phases. It knows nothing of how it got in.

mod cgroup;
mod door;
mod dropped;
mod ended;
mod files;
mod find;
mod gather;
mod handles;
mod hugetlb;
mod inherited;
mod keys;
mod locked;
mod mappings;
mod memory;
mod observe;
mod opened;
mod owner;
mod pending;
mod preflight;
mod ptys;
mod record;
mod rights;
mod run;
mod seccomp;
mod shared;
mod shares;
mod snapshot;
mod strict;
mod swapped;
mod sysv;
pub(crate) mod sysvipc;
mod threads;
mod told;
mod tree;
mod unnamed;
mod unseen;
mod users;

pub use files::{FileView, SocketView};
pub use find::{inherited, Survey};
pub(crate) use memory::build_id;
pub use observe::Observer;
pub use ptys::PtyView;
pub(crate) use rights::of as rights_of;

use crate::{CaptureOptions, Captured, Error, Externals, Kind, Result};
use image::store::{NewCheckpoint, Store};
use image::{PageSink, SessionName};
use run::Run;
use std::time::{Duration, Instant};
use sys::tracer;

/// The phases, with the names that errors, logs and fault tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The process, its threads, the way in; refuse what cannot be captured.
    Find,
    /// All threads stop.
    Freeze,
    /// What the snapshot child does not preserve.
    Observe,
    /// The snapshot child.
    Fork,
    /// The target runs again.
    Thaw,
    /// Maps and memory from the snapshot child.
    Record,
    /// The checkpoint exists whole, or not at all.
    Publish,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 7] =
        [Phase::Find, Phase::Freeze, Phase::Observe, Phase::Fork, Phase::Thaw, Phase::Record, Phase::Publish];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Find => "find",
            Phase::Freeze => "freeze",
            Phase::Observe => "observe",
            Phase::Fork => "fork",
            Phase::Thaw => "thaw",
            Phase::Record => "record",
            Phase::Publish => "publish",
        }
    }
}

/// Looks for everything that would make a checkpoint of a process and those below it fail, and changes nothing. Gives what would be
/// reported as not kept; `strict`: refuses it. What only the freeze shows is not foreseen.
///
/// `risk_strict`: as [`CaptureOptions::risk_strict`].
pub fn preflight(pid: i32, external: &Externals, strict: bool, risk_strict: bool) -> Result<Vec<String>> {
    preflight::preflight(pid, external, strict, risk_strict)
}

/// Makes a checkpoint of a process and all below it. The calling process must be single-threaded.
///
/// Whatever fails, the targets run on as before and the store holds what it held.
pub fn checkpoint(store: &Store, name: &SessionName, pid: i32, o: &CaptureOptions<'_>) -> Result<Captured> {
    let began = Instant::now();
    Run::new(o, name, pid).make(store, name, began)
}

/// An error of any room on its way to becoming the engine's.
pub(crate) enum Fault {
    /// Already ours.
    Ours(Error),
    /// Of the host crate.
    Sys(sys::Error),
    /// Of the image.
    Image(image::ImageError),
    /// Of a file of /proc.
    Proc(sys::procfs::ReadError),
    /// The agent's door is shut.
    Shut(sys::agent::Shut),
    /// It is another program than the one that was looked at.
    Another(Error),
}

impl From<sys::agent::Absent> for Fault {
    fn from(why: sys::agent::Absent) -> Fault {
        Fault::Shut(sys::agent::Shut { why, pause: Duration::ZERO })
    }
}
impl From<sys::agent::Shut> for Fault {
    fn from(s: sys::agent::Shut) -> Fault {
        Fault::Shut(s)
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        Fault::Ours(e)
    }
}
impl From<sys::Error> for Fault {
    fn from(e: sys::Error) -> Fault {
        Fault::Sys(e)
    }
}
impl From<image::ImageError> for Fault {
    fn from(e: image::ImageError) -> Fault {
        Fault::Image(e)
    }
}
impl From<sys::procfs::ReadError> for Fault {
    fn from(e: sys::procfs::ReadError) -> Fault {
        Fault::Proc(e)
    }
}

type Step<T> = std::result::Result<T, Fault>;

/// An error of another room in the engine's words.
pub(crate) fn explain(f: Fault, attempted: &str, phase: &str, begun: bool) -> Error {
    let late = if begun { Kind::PutBack } else { Kind::Refused };
    match f {
        Fault::Ours(e) | Fault::Another(e) => e,
        Fault::Shut(s) => Error::new(
            Kind::Refused,
            attempted,
            format!("phase {phase}"),
            s.why.to_string(),
            "the target runs on as before; try again when it has left that state",
        ),
        Fault::Image(e) => {
            let kind = if e.is_storage() {
                Kind::Storage
            } else if e.is_absent() {
                Kind::NoSuch
            } else if e.is_image() {
                Kind::Damaged
            } else {
                late
            };
            Error::new(kind, attempted, "storage", e.to_string(), e.advice())
        }
        Fault::Proc(e) if e.is_gone() => died(attempted, phase),
        Fault::Proc(e) => Error::new(
            late,
            attempted,
            format!("phase {phase}"),
            e.to_string(),
            "look at that file of /proc; run as the target's user",
        ),
        Fault::Sys(sys::Error::Died { .. }) => died(attempted, phase),
        Fault::Sys(sys::Error::Filtered { pid, calls, suspended }) => {
            let reasons = vec![seccomp::refused(pid, &calls, suspended)];
            Error { kind: Kind::Refused, attempted: attempted.into(), reasons }
        }
        Fault::Sys(e @ (sys::Error::Unfit { .. } | sys::Error::Stuck { .. })) => Error::new(
            Kind::Refused,
            attempted,
            format!("phase {phase}"),
            e.to_string(),
            "the target runs on as before; try again when it has left that state",
        ),
        Fault::Sys(e) => Error::new(
            late,
            attempted,
            format!("phase {phase}"),
            e.to_string(),
            "the target runs on as before; `ctl doctor` tells what this machine permits",
        ),
    }
}

fn signal_name(n: i32) -> String {
    nix::sys::signal::Signal::try_from(n).map_or_else(|_| n.to_string(), |s| s.to_string())
}

fn died(attempted: &str, phase: &str) -> Error {
    Error::new(
        Kind::TargetDied,
        attempted,
        format!("phase {phase}"),
        "the target ended meanwhile",
        "`ctl list` shows its earlier checkpoints, which stand",
    )
}

fn way_in(s: &Survey, addr: &[u8]) -> Result<tracer::EntryPlan> {
    if sys::agent::is_leaving(s.pid) {
        let why = sys::agent::Absent::Leaving.to_string();
        let remedy = "nothing was touched; it runs on";
        return Err(Error::new(Kind::Refused, s.attempted.clone(), format!("PID {}", s.pid), why, remedy));
    }
    let visit = told::visit_program();
    tracer::prepare(s.pid, addr, tracer::Visit::All, visit.encode_calls()).map_err(|e| match e {
        sys::Error::Unfit { what } => {
            let remedy = "nothing was touched; run a build of it that uses an ordinary C library and stack";
            Error::new(Kind::Refused, s.attempted.clone(), format!("PID {}", s.pid), what, remedy)
        }
        e => explain(Fault::Sys(e), &s.attempted, "find", false),
    })
}

fn sink(incoming: &NewCheckpoint) -> Step<PageSink> {
    Ok(PageSink::new(image::PackWriter::create(&incoming.pack_path(), image::Compression::default())?, 0))
}
