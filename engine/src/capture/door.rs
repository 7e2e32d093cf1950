//! The doors: how a target is entered, and how it is let go. Behind them the recorder works the same way; what differs is who is
//! asked: on the attach door the tracer and the kernel (ptrace, pidfd_getfd, kcmp), on the agent's the program's own threads.
use super::files::{Look, Outside};
use super::threads::Heard;
use super::{Fault, Step, Survey};
use crate::{After, CaptureOptions, Captured, Door, DoorChoice, Error, Kind, Reason, Result};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use sys::agent::{Absent, Copies, Quiesced, Shut, Visit, Visited};
use sys::channel::{Channel, Listener};
use sys::inject::Layout;
use sys::kcmp::{EpollSlot, Resource};
use sys::mem::RemoteMem;
use sys::pidfd::PidFd;
use sys::procfs;
use sys::program::Program;
use sys::tracer::{self, Entered, EntryPlan, Frozen, Snapshot, Tracer};

/// linux/kcmp.h
const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;
/// Longest wait for the end of a process that was killed, milliseconds.
const END: i32 = 10_000;

/// Longest look at a thread that blocks the agent's signal, before anybody is called: where only the agent may be taken (on a machine with much else to
/// do, a thread may be long in an instant of libc's), and where there is another way.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_millis(100)];

/// The doors of a target: which is taken, and which after it.
pub(super) struct Doors {
    pid: i32,
    choice: DoorChoice,
    /// The one that is taken next.
    door: Door,
    /// It is not dumpable, but has an agent.
    hidden: bool,
    /// Started in any case, unless only the agent may be taken. That it cannot be started is said when it is wanted.
    tracer: Option<sys::Result<Tracer>>,
    /// What stands against the only one that may be taken.
    reasons: Vec<Reason>,
    /// Why the agent that is there is not called, or did not answer.
    shut: Option<Absent>,
    /// How long threads stood still for that.
    pause: Duration,
}

impl Doors {
    /// Starts a tracer, if one may be wanted, and looks whether there is an agent. `first`: it is the program that was named, of which the caller may
    /// know that it has an agent.
    pub fn new(o: &CaptureOptions<'_>, pid: i32, first: bool) -> Doors {
        let (choice, after) = (o.door, o.after);
        let tracer = (choice != DoorChoice::Only(Door::Agent)).then(Tracer::start);
        procfs::first::has_ended(pid);
        // where it is wanted: an answer may take a second
        let asked = choice != DoorChoice::Only(Door::Attach);
        let mut there = if asked { sys::agent::check(pid) } else { Err(Absent::None) };
        let unseen = asked && o.agent && first && there == Err(Absent::None);
        if unseen {
            there = sys::agent::may_open(pid);
        }
        let hidden = unseen && there.is_ok();
        let (shut, pause) = (None, Duration::ZERO);
        let mut doors = Doors { pid, choice, door: Door::Attach, hidden, tracer, reasons: Vec::new(), shut, pause };
        match (choice, there) {
            (DoorChoice::Only(Door::Attach), _) => {}
            (DoorChoice::Only(Door::Agent), there) => {
                doors.door = Door::Agent;
                doors.reasons.extend(there.err().map(|why| shut_reason(pid, &why)));
                doors.reasons.extend((after == After::Stop).then(|| cannot_stop(pid)));
            }
            (DoorChoice::Auto, _) if after == After::Stop => {}
            (DoorChoice::Auto, Ok(_)) => doors.door = Door::Agent,
            (DoorChoice::Auto, Err(Absent::None)) => {}
            (DoorChoice::Auto, Err(why)) => doors.shut = Some(why),
        }
        doors
    }

    /// Of one whose agent is in use by another with the same memory.
    pub fn by_attach(o: &CaptureOptions<'_>, pid: i32) -> Doors {
        let choice = o.door;
        let shut = Some(Absent::Shares).filter(|_| choice == DoorChoice::Auto);
        let refused = choice == DoorChoice::Only(Door::Agent);
        let reasons = refused.then(|| shut_reason(pid, &Absent::Shares)).into_iter().collect();
        let (door, hidden, pause) = (Door::Attach, false, Duration::ZERO);
        Doors { pid, choice, door, hidden, tracer: Some(Tracer::start()), reasons, shut, pause }
    }

    /// The way to take.
    pub fn next(&mut self) -> Step<Way> {
        if self.door == Door::Agent {
            let patience = PATIENCE[usize::from(self.is_another())];
            return Ok(Way::Agent { pid: self.pid, patience, hidden: self.hidden, inside: None });
        }
        // that of an earlier try is gone
        Ok(Way::Attach { tracer: self.tracer.take().unwrap_or_else(Tracer::start)?, plan: None, frozen: None })
    }

    /// What is known to stand against it.
    pub fn reasons(&mut self) -> Vec<Reason> {
        std::mem::take(&mut self.reasons)
    }

    /// Whether ptrace may be tried after the agent.
    pub fn is_another(&self) -> bool {
        self.door == Door::Agent && self.choice == DoorChoice::Auto
    }

    /// The agent was called, and could not be talked to: the other door.
    pub fn shut_behind(&mut self, s: Shut) {
        self.door = Door::Attach;
        self.pause = self.pause.max(s.pause);
        self.shut = Some(s.why);
    }

    /// The target runs again: no other door is needed.
    pub fn settle(&mut self) {
        self.tracer = None;
    }

    /// Adds to a result what became of the agent.
    pub fn tell(self, made: Result<Captured>, first: bool) -> Result<Captured> {
        let Some(why) = self.shut else { return made };
        let whose = if first { String::new() } else { format!("PID {}: ", self.pid) };
        match made {
            Ok(mut c) => {
                c.pause = c.pause.max(self.pause);
                let note = format!("made by attach (ptrace), not by its agent: {why}");
                // of several that share something once
                if why == Absent::Shares && c.notes.iter().any(|n| n.ends_with(&note)) {
                    return Ok(c);
                }
                c.notes.push(whose + &note);
                Ok(c)
            }
            Err(mut e) => {
                if matches!(e.kind, Kind::Refused | Kind::PutBack) {
                    let shares = why == Absent::Shares;
                    let why = format!("its agent, which would need no ptrace, cannot be called either: {why}");
                    if shares && e.reasons.iter().any(|r| r.why == why) {
                        return Err(e);
                    }
                    let remedy = "remove either obstacle; the program runs on as before";
                    e.reasons.push(Reason::new(format!("PID {}", self.pid), why, remedy));
                }
                Err(e)
            }
        }
    }
}

/// A way into a target, and what has become of it.
pub(super) enum Way {
    /// By ptrace.
    Attach { tracer: Tracer, plan: Option<EntryPlan>, frozen: Option<Frozen> },
    /// By its agent.
    Agent { pid: i32, patience: Duration, hidden: bool, inside: Option<Quiesced> },
}

/// What is inside a target.
pub(super) struct Inside {
    /// The conversation.
    pub channel: Channel,
    /// Who is where.
    pub entered: Entered,
    /// Of the agent: the number of its connection.
    pub sock: Option<i32>,
    /// Of the agent: what threads said as they came in.
    pub visited: Visited,
    /// It is not dumpable, but for now.
    pub opened: bool,
}

impl Way {
    /// Which door it is.
    pub fn door(&self) -> Door {
        match self {
            Way::Attach { .. } => Door::Attach,
            Way::Agent { .. } => Door::Agent,
        }
    }

    /// Whose it is; None: by ptrace.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Way::Attach { .. } => None,
            Way::Agent { pid, .. } => Some(*pid),
        }
    }

    /// Whether it is one that opens itself.
    pub fn opens(&self) -> bool {
        matches!(self, Way::Agent { hidden: true, .. })
    }

    /// A process that may not be looked at (it is not dumpable) opens itself, to one who calls its agent: before anything is seen of it. Its agent shuts it
    /// again, whoever dies.
    pub fn open(&mut self, l: &Listener) -> Step<()> {
        if let Way::Agent { pid, patience, hidden: true, inside, .. } = self {
            let uid = procfs::status::read(*pid)?.uid.effective;
            *inside = Some(sys::agent::open(*pid, uid, l, *patience)?);
        }
        Ok(())
    }

    /// Finds the way in; refuses where there is none.
    pub fn prepare(&mut self, s: &Survey, l: &Listener) -> Result<()> {
        if let Way::Attach { plan, .. } = self {
            *plan = Some(super::way_in(s, l.addr())?);
        }
        Ok(())
    }

    /// Begins to let it go, to run on; [`Way::release`] has to follow, and says if that failed.
    pub fn let_go(&mut self) {
        match self {
            Way::Attach { tracer, .. } => {
                let _ = tracer.begin_to_release();
            }
            Way::Agent { inside: Some(q), .. } => q.let_go(),
            Way::Agent { inside: None, .. } => {}
        }
    }

    /// Stops all threads, sees that they are still what they were, and goes in. With `apart` it only stops them where that is one thing and to go in is
    /// another: then None, and [`Way::enter`] has to follow.
    pub fn freeze(&mut self, s: &mut Survey, l: &Listener, apart: bool) -> Step<Option<Inside>> {
        match self {
            Way::Attach { tracer, plan, frozen } => {
                let stopped = stop(tracer, s)?;
                if apart {
                    // nobody is to go in before it is known where all its threads stand
                    tracer.wait_read()?;
                    *frozen = Some(stopped);
                    return Ok(None);
                }
                go_in(tracer, plan.take(), &stopped, s, l).map(Some)
            }
            Way::Agent { .. } => self.call(s, l).map(Some),
        }
    }

    /// Goes in where all threads have been stopped, and those of all with whom it shares. `nth`: how many with the same memory have been entered.
    pub fn enter(&mut self, s: &mut Survey, l: &Listener, nth: u64) -> Step<Inside> {
        if nth >= wire::HOMES {
            let why = format!("more than {} processes have the same memory (CLONE_VM)", wire::HOMES);
            let r = Reason::new(s.describe(), why, "checkpoint it when some of them have ended");
            return Err(Error { kind: Kind::Refused, attempted: s.attempted.clone(), reasons: vec![r] }.into());
        }
        match self {
            Way::Attach { tracer, plan, frozen: Some(stopped) } => {
                go_in(tracer, plan.take().map(|p| p.after(nth)), stopped, s, l)
            }
            _ => Err(nothing_frozen().into()),
        }
    }

    /// By the agent, which is inside as soon as its threads stand still.
    fn call(&mut self, s: &mut Survey, l: &Listener) -> Step<Inside> {
        match self {
            Way::Attach { .. } => Err(nothing_frozen().into()),
            Way::Agent { inside, patience, .. } => {
                let keyed = super::keys::no_place_for_signals(s).map(Absent::Keyed);
                if let Some(why) = keyed.or_else(|| s.unknown_to_agent()) {
                    let pause = inside.as_mut().map_or(Duration::ZERO, Quiesced::release);
                    return Err(Shut { why, pause }.into());
                }
                // what a filter may forbid is called when that has been looked at
                let calls = Some(super::told::visit_program()).filter(|_| !s.is_filtered());
                let mut heard = Heard::default();
                let mut heed = |tid| heard.ask(&s.threads, tid);
                let mut visit = Visit { calls: calls.as_ref(), heed: &mut heed };
                match inside {
                    Some(q) => q.call_others(l, *patience, &mut visit)?,
                    None => {
                        let uid = s.status.uid.effective;
                        *inside = Some(sys::agent::freeze(s.pid, uid, l, *patience, &mut visit)?)
                    }
                }
                let Some(q) = inside else { return Err(nothing_frozen().into()) };
                let why = match call_in(q, s, heard) {
                    Err(Fault::Shut(s)) => s.why,
                    Err(Fault::Sys(sys::Error::Filtered { calls, .. })) => Absent::Filtered(calls),
                    done => return done,
                };
                Err(Shut { why, pause: q.release() }.into())
            }
        }
    }

    /// It could not be frozen: if its agent is inside, it is let go, and has left when this returns.
    pub fn part(&mut self) {
        if let Way::Agent { inside: Some(q), .. } = self {
            q.part();
        }
    }

    /// Takes everything of ours out of a descriptor table or memory that others have, too, before any of them runs again; [`Way::release`] has to follow.
    pub fn leave(&mut self) -> Step<()> {
        match self {
            Way::Attach { tracer, .. } => Ok(tracer.leave()?),
            // its connection is closed as it lets go
            Way::Agent { .. } => Ok(()),
        }
    }

    /// Lets the target go; the pause, and the signals that came in it and die with a killed one.
    pub fn release(&mut self, after: tracer::After) -> Step<(Duration, u64)> {
        let (pid, q) = match self {
            Way::Attach { tracer, .. } => return Ok(tracer.release(after)?),
            Way::Agent { pid, inside, .. } => (*pid, inside),
        };
        let Some(q) = q else { return Ok((Duration::ZERO, 0)) };
        if after != tracer::After::Kill {
            return Ok((q.release(), 0));
        }
        let late = q.tids().into_iter().fold(0, |all, tid| all | pending(pid, tid));
        let process = PidFd::open(pid)?;
        process.kill(libc::SIGKILL)?;
        process.wait_end(END);
        Ok((q.release(), late))
    }

    /// The threads' states; memory as it was in the freeze is that of `from`.
    pub fn collect(&mut self, from: i32) -> Step<Snapshot> {
        match self {
            Way::Attach { tracer, .. } => Ok(tracer.collect()?),
            Way::Agent { inside: Some(q), .. } => Ok(q.collect(&RemoteMem::open(from)?)?),
            Way::Agent { .. } => Err(nothing_frozen().into()),
        }
    }
}

fn nothing_frozen() -> sys::Error {
    sys::Error::Unfit { what: "nothing is frozen".into() }
}

/// Stops all threads; what is asked of the leader before anything is run in it.
fn stop(tracer: &mut Tracer, s: &mut Survey) -> Step<Frozen> {
    let frozen = tracer.freeze(s.pid, s.is_under_seccomp(), s.threads.keys().copied().collect())?;
    s.still(&frozen.tids)?;
    s.seccomp_frozen(frozen.filters.clone())?;
    Ok(frozen)
}

/// Brings the blob in. The other threads are asked while calls are made in the leader, but before anything is run in them.
fn go_in(tracer: &mut Tracer, plan: Option<EntryPlan>, frozen: &Frozen, s: &mut Survey, l: &Listener) -> Step<Inside> {
    let plan = plan.ok_or(sys::Error::Unfit { what: "no way in was looked for".into() })?;
    tracer.begin_to_enter(plan)?;
    let pid = s.pid;
    s.still_all(&frozen.tids, Heard::default(), &|tid, what| sys::kcmp::shares(pid, tid, what))?;
    let entered = tracer.enter()?;
    let watch = tracer.watch()?.and_process(pid)?;
    let (sock, _) = l.accept(s.pid, s.status.uid.effective, Some(&watch))?;
    let channel = Channel::watched(sock, s.pid, watch)?.judged(s.judge.clone());
    Ok(Inside { channel, entered, sock: None, visited: Visited::new(), opened: false })
}

/// The threads have come in: they are asked what is asked of frozen ones.
fn call_in(q: &Quiesced, s: &mut Survey, heard: Heard) -> Step<Inside> {
    let told = q.visited()?;
    let tids = q.tids();
    s.still(&tids)?;
    s.seccomp_frozen(None)?;
    let mut channel = q.channel()?.judged(s.judge.clone());
    let apart = if tids.len() > 1 { apart(&mut channel, s, &tids)? } else { BTreeMap::new() };
    s.still_all(&tids, heard, &|tid, what| match apart.get(&(tid, what as i32)) {
        Some(e) if *e < 0 => Err(io::Error::from_raw_os_error(-*e as i32)),
        r => Ok(r.is_none_or(|r| *r == 0)),
    })?;
    let (server, visited) = q.inside();
    let (base, len, sock) = q.region();
    let layout = Layout::of_agent(base, len, visited.len() as u64);
    let (entered, opened) = (Entered { layout, visited, server }, q.is_opened());
    Ok(Inside { channel, entered, sock: Some(sock), visited: told, opened })
}

/// Asks inside whether each thread shares descriptors and directory with the leader (kcmp).
fn apart(channel: &mut Channel, s: &Survey, tids: &[i32]) -> Step<BTreeMap<(i32, i32), i64>> {
    let mut all = BTreeMap::new();
    let leader = s.inner_living();
    for some in tids.chunks(2048) {
        let mut p = Program::new();
        let mut asked = Vec::new();
        for tid in some.iter().filter(|t| **t != s.pid) {
            let inner = if s.private { procfs::status::read_task(s.pid, *tid)?.ns_pid.last().copied() } else { None };
            for what in [Resource::Files, Resource::Fs] {
                let a = [leader.into(), inner.unwrap_or(*tid).into(), (what as i32).into(), 0.into(), 0.into()];
                asked.push(((*tid, what as i32), p.may(libc::SYS_kcmp, &a)));
            }
        }
        let r = channel.run(&p)?;
        all.extend(asked.into_iter().map(|(key, c)| (key, r.raw(c))));
    }
    Ok(all)
}

fn pending(pid: i32, tid: i32) -> u64 {
    const AGENT: u64 = 1 << (wire::agent::AGENT_SIGNAL - 1);
    procfs::status::read_task(pid, tid).map_or(0, |s| (s.sig_pending | s.sig_shared_pending) & !AGENT)
}

/// Why the agent's door is shut, as an error.
pub(super) fn refusal(pid: i32, attempted: &str, why: &Absent) -> Error {
    Error { kind: Kind::Refused, attempted: attempted.into(), reasons: vec![shut_reason(pid, why)] }
}

/// Why the agent's door is shut, as a reason.
fn shut_reason(pid: i32, why: &Absent) -> Reason {
    let remedy = match why {
        Absent::Dispatched => "leave out --door agent: ptrace reaches it, as long as no thread has that",
        _ => "leave out --door agent: it runs on, and ptrace reaches it",
    };
    Reason::new(format!("PID {pid}"), why.to_string(), remedy)
}

fn cannot_stop(pid: i32) -> Reason {
    let why = "only ptrace can leave it stopped without running another instruction";
    Reason::new(format!("PID {pid}"), why, "leave out --door agent, or --stop")
}

/// How a process that runs is looked at before the freeze. On the agent's door what is not permitted is left to the freeze.
pub(super) fn look_before(pid: i32, door: Door) -> Step<Box<dyn Look>> {
    let denied = |e: io::Error| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS));
    let me = std::process::id() as i32;
    if door == Door::Agent && sys::kcmp::shares(me, me, Resource::Files).is_err_and(denied) {
        return Ok(Box::new(Blind));
    }
    Ok(Box::new(Outside::new(pid)?))
}

/// Sees nothing of open files but what /proc says.
struct Blind;

impl Look for Blind {
    fn is_blind(&self) -> bool {
        true
    }

    fn copy(&mut self, _: i32) -> sys::Result<OwnedFd> {
        Err(sys::Error::Unfit { what: "descriptors cannot be looked at from outside".into() })
    }

    fn same_file(&mut self, _: i32, _: i32) -> io::Result<bool> {
        Ok(false)
    }

    fn same_epoll_target(&mut self, _: i32, _: EpollSlot) -> io::Result<bool> {
        Ok(true)
    }
}

/// Asks the program itself, through copies of its descriptors.
pub(super) struct FromInside<'a> {
    pub channel: &'a mut Channel,
    pub copies: &'a Copies,
    /// Its PID as it knows it.
    pub pid: i32,
}

impl Look for FromInside<'_> {
    fn copy(&mut self, fd: i32) -> sys::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::EBADF);
        let copy = self.copies.get(fd).ok_or_else(gone).and_then(|f| f.try_clone_to_owned());
        copy.map_err(|e| sys::Error::call(format!("copy of descriptor {fd}"), self.channel.pid(), e))
    }

    fn same_file(&mut self, a: i32, b: i32) -> io::Result<bool> {
        if self.copies.get(a).is_some() && self.copies.get(b).is_some() {
            return self.copies.same_file(a, b);
        }
        // what cannot be passed over
        let (mut p, pid) = (Program::new(), self.pid.into());
        let c = p.may(libc::SYS_kcmp, &[pid, pid, KCMP_FILE.into(), a.into(), b.into()]);
        let r = self.channel.run(&p).map_err(io::Error::other)?;
        r.get(c).map(|order| order == 0)
    }

    fn same_epoll_target(&mut self, fd: i32, slot: EpollSlot) -> io::Result<bool> {
        let mut p = Program::new();
        // struct kcmp_epoll_slot
        let slot = p.bytes(&[slot.efd.to_le_bytes(), slot.tfd.to_le_bytes(), slot.offset.to_le_bytes()].concat());
        let pid = self.pid.into();
        let c = p.may(libc::SYS_kcmp, &[pid, pid, KCMP_EPOLL_TFD.into(), fd.into(), slot]);
        let r = self.channel.run(&p).map_err(io::Error::other)?;
        r.get(c).map(|order| order == 0)
    }
}
