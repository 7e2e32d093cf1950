//! Capture: the recorder, as a list of phases. It knows nothing of how it got in.

mod door;
mod dropped;
mod files;
mod find;
mod locked;
mod memory;
mod observe;
mod owner;
mod pending;
mod record;
mod seccomp;
mod shared;
mod swapped;
mod sysv;
mod threads;
mod told;
mod unnamed;
mod unseen;

pub use files::{FileView, SocketView};
pub use find::{inherited, survey, Survey};
pub(crate) use memory::build_id;
pub use observe::Observer;

use crate::{After, CaptureOptions, Captured, Door, Error, Externals, Kind, Progress, Result};
use door::{Doors, Way};
use image::store::{NewCheckpoint, Store};
use image::{PageSink, SessionName};
use std::time::{Duration, Instant};
use sys::channel::Listener;
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

/// Looks for everything that would make a checkpoint of a process fail, and changes nothing. Gives what would be
/// reported as not kept.
pub fn preflight(pid: i32, external: &Externals) -> Result<Vec<String>> {
    let door = if sys::agent::present(pid).is_ok() { Door::Agent } else { Door::Attach };
    let look = |door| survey(pid, format!("checkpoint PID {pid}"), external, door, Vec::new());
    let s = match look(door)? {
        s if door == Door::Agent && s.shut_to_agent().is_some() => look(Door::Attach)?,
        s => s,
    };
    s.refuse_unsure_too()?;
    if s.door == Door::Attach {
        way_in(&s, &[0; 8])?;
    }
    Ok(s.reported)
}

/// Makes a checkpoint of a process. The calling process must be single-threaded.
///
/// Whatever fails, the target runs on as before and the store holds what it held.
pub fn checkpoint(store: &Store, name: &SessionName, pid: i32, o: &CaptureOptions<'_>) -> Result<Captured> {
    let began = Instant::now();
    // the first thing of all, while this process is small: a tracer would copy, in the freeze, each page that it inherits and writes to
    let mut doors = Doors::new(o, pid);
    let mut run =
        Run { phase: Phase::Find, attempted: format!("checkpoint {name} (PID {pid})"), pid, called: false, o };
    let r = loop {
        let r = doors.next().and_then(|way| run.all(way, &mut doors, store, name, began));
        match r {
            Err(Fault::Shut(shut)) if doors.is_another() => doors.shut_behind(shut),
            r => break r,
        }
    };
    doors.tell(r.map_err(|e| run.explain(e)))
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

struct Run<'a> {
    phase: Phase,
    attempted: String,
    pid: i32,
    /// It was called in before it was looked at.
    called: bool,
    o: &'a CaptureOptions<'a>,
}

impl Run<'_> {
    fn enter(&mut self, p: Phase) -> Step<()> {
        self.phase = p;
        if let Some(f) = self.o.progress {
            f(Progress { phase: p.name(), done: 0, total: 0 });
        }
        sys::fault::point(p.name()).map_err(|e| {
            Fault::Sys(sys::Error::Call { doing: format!("phase {}", p.name()), pid: self.pid, source: e })
        })
    }

    fn all(
        &mut self,
        mut way: Way,
        doors: &mut Doors,
        store: &Store,
        name: &SessionName,
        began: Instant,
    ) -> Step<Captured> {
        self.enter(Phase::Find)?;
        let shut = doors.reasons();
        let listener = Listener::new()?;
        self.called |= way.opens();
        way.open(&listener)?;
        let mut survey = survey(self.pid, self.attempted.clone(), &self.o.external, way.door(), shut)?;
        if let Some(why) = survey.shut_to_agent() {
            return Err(why.into());
        }
        survey.refuse()?;
        way.prepare(&survey, &listener)?;
        let incoming = store.begin(name)?;

        self.enter(Phase::Freeze)?;
        let inside = way.freeze(&mut survey, &listener)?;

        self.enter(Phase::Observe)?;
        let sink = sink(&incoming)?;
        let mut obs = Observer::new(&survey, inside, sink)?;
        let seen = match obs.everything(&listener) {
            Err(Fault::Shut(s)) => return shut_behind(obs, way, s.why),
            Err(Fault::Sys(sys::Error::Filtered { calls, .. })) if way.door() == Door::Agent => {
                return shut_behind(obs, way, sys::agent::Absent::Filtered(calls))
            }
            seen => seen?,
        };

        if self.o.after != After::Run {
            obs.unseen_by_a_child_of_its_own(&listener, seen.process.subreaper)?;
            return self.while_frozen(obs, seen, way, incoming, began);
        }
        self.enter(Phase::Fork)?;
        let Some(child) = obs.fork(&listener, seen.process.subreaper)? else {
            // no child is to be had: copy within the freeze, and say so
            obs.unseen_unknown();
            return self.while_frozen(obs, seen, way, incoming, began);
        };
        self.enter(Phase::Thaw)?;
        let (pause, _) = way.release(tracer::After::Run)?;
        let snapshot = way.collect(child.pid)?;
        drop(way);
        doors.settle();

        self.enter(Phase::Record)?;
        let mut child = child;
        obs.unseen(&mut child)?;
        let mut record = record::Recorder::new(obs, seen, snapshot, pause);
        record.memory(child.pid, self.o.progress)?;
        drop(child);
        self.enter(Phase::Publish)?;
        record.publish(incoming, self.o, began)
    }

    /// The rest of a checkpoint whose target stays frozen until it is complete.
    fn while_frozen(
        &mut self,
        obs: Observer<'_>,
        seen: observe::Seen,
        mut way: Way,
        incoming: NewCheckpoint,
        began: Instant,
    ) -> Step<Captured> {
        self.enter(Phase::Record)?;
        let frozen = Instant::now();
        let snapshot = way.collect(self.pid)?;
        let before = seen.pending.as_ref().map_or(0, |p| p.bits());
        let mut record = record::Recorder::new(obs, seen, snapshot, std::time::Duration::ZERO);
        record.memory(self.pid, self.o.progress)?;
        record.note_frozen(frozen.elapsed());
        self.enter(Phase::Publish)?;
        // until the tracer has let go: when the conversation ends, the blob lets everyone run
        let talk = record.talk.take();
        let mut done = match record.publish(incoming, self.o, began) {
            Ok(done) => done,
            Err(e) => {
                drop(way);
                return Err(e);
            }
        };
        let after = match self.o.after {
            After::Run => tracer::After::Run,
            After::Kill => tracer::After::Kill,
            After::Stop => tracer::After::Stop,
        };
        self.enter(Phase::Thaw)?;
        let (pause, late) = way.release(after)?;
        done.pause = pause;
        let late = late & !before;
        let late: Vec<String> = (1..=64).filter(|n| late >> (n - 1) & 1 != 0).map(signal_name).collect();
        if !late.is_empty() {
            let what = "came while it was recorded: not in the checkpoint, and lost with the process";
            done.reported.push(format!("signals {} {what}", late.join(", ")));
        }
        drop(talk);
        Ok(done)
    }

    /// Whatever went wrong with a target that has ended, went wrong because of that.
    fn explain(&self, f: Fault) -> Error {
        let phase = self.phase.name();
        let called = self.called || self.phase != Phase::Find;
        let f = match f {
            Fault::Shut(s) => Fault::Ours(door::refusal(self.pid, &self.attempted, &s.why)),
            f => f,
        };
        let ours = matches!(f, Fault::Image(_)) || self.phase == Phase::Thaw && self.o.after == After::Kill;
        if called && !ours && sys::procfs::is_ending(self.pid) {
            return died(&self.attempted, phase);
        }
        explain(f, &self.attempted, phase, self.phase != Phase::Find)
    }
}

/// The agent cannot do what is wanted: everyone is let go.
fn shut_behind<T>(obs: Observer<'_>, mut way: Way, why: sys::agent::Absent) -> Step<T> {
    drop(obs);
    let (pause, _) = way.release(tracer::After::Run)?;
    Err(Fault::Shut(sys::agent::Shut { why, pause }))
}

/// An error of another room in the engine's words.
pub(crate) fn explain(f: Fault, attempted: &str, phase: &str, begun: bool) -> Error {
    let late = if begun { Kind::PutBack } else { Kind::Refused };
    match f {
        Fault::Ours(e) => e,
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
