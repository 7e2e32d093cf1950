//! Calling all threads in, and letting them go.
//!
//! Those that block the signal at the moment (libc does so for instants, in pthread_create and kin) are looked at until they do not: one that always does
//! would never come, and nobody should stand still for it. Then one thread is called, and connects; then those that blocked the signal; then all
//! others, until no newcomer appears. Whatever fails, the connection is closed, and everyone inside is released; who comes later finds the session over, and goes on.
use super::look::{self, Absent, Doing, Present};
use super::state;
use super::visit::{Answers, Heed, Visit};
use crate::channel::{Channel, Listener, Watch};
use crate::mem::RemoteMem;
use crate::procfs::status::Status;
use crate::tracer::{Snapshot, ThreadState};
use crate::{fault, procfs, seccomp, Error, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use wire::agent::{
    code_open, code_park, code_serve, AgentInfo, Arrived, AGENT_SIGNAL, ARRIVAL, ARRIVED_OPENED, ARRIVED_RSEQ_UNKNOWN,
    NO_VM_READV, OP_ARRIVED,
};

/// Longest wait for threads that have been called while nobody but the serving one stands still.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait in the freeze, and for the first thread, while nobody stands still.
const LIMIT: Duration = Duration::from_secs(5);
/// How often is looked whether those that are waited for still exist, milliseconds.
const LOOK: u16 = 20;
/// How often is looked again at a thread that cannot be called yet, milliseconds.
const GLANCE: u8 = 1;
const MAX_ROUNDS: usize = 200;
/// Room for threads that are younger than the first look.
const NEWCOMERS: usize = 64;

/// All threads of a process, inside its agent. Dropped, they go on.
#[derive(Debug)]
pub struct Quiesced {
    sock: UnixStream,
    pub(super) pid: i32,
    server: i32,
    pub(super) arrived: BTreeMap<i32, Arrived>,
    pub(super) answers: Option<Answers>,
    /// Room for so many threads.
    slots: i32,
    /// What it was told of its filters.
    filters: u32,
    since: Instant,
}

struct Call<'a> {
    pid: i32,
    nonce: u64,
    filters: u32,
    seen: &'a BTreeMap<i32, Doing>,
}

impl Call<'_> {
    /// Sends a thread in; false if it has ended.
    fn send(&self, tid: i32, code: i32, number: i32) -> Result<bool> {
        fault::point("agent").map_err(|e| Error::call("rt_tgsigqueueinfo", tid, e))?;
        let Doing { call, pc, print, .. } = self.seen.get(&tid).copied().unwrap_or(Doing::UNKNOWN);
        let me = std::process::id() as i32;
        // SAFETY: takes no argument.
        let uid = unsafe { libc::getuid() };
        let info = AgentInfo {
            signo: AGENT_SIGNAL,
            number,
            code,
            filters: self.filters,
            pid: me,
            uid,
            nonce: self.nonce,
            call,
            pc: pc as u32,
            print,
        };
        // the kernel takes 128 bytes, of which it wants those behind the first 48 to be zero
        #[repr(C)]
        struct Info(AgentInfo, [u8; 80]);
        let info = Info(info, [0; 80]);
        let at = &raw const info;
        // SAFETY: `info` is as large as a siginfo and lives over the call.
        let r = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, self.pid, tid, AGENT_SIGNAL, at) };
        if r == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) && procfs::pid_exists(self.pid) => Ok(false),
            e => Err(Error::call("rt_tgsigqueueinfo", tid, e)),
        }
    }
}

/// Why it did not come to that.
type Way<T> = std::result::Result<T, Absent>;

/// The agent was called to no end: everyone goes on.
#[derive(Clone, Debug)]
pub struct Shut {
    /// Why.
    pub why: Absent,
    /// How long a thread stood still for that, at most.
    pub pause: Duration,
}

fn other(e: impl std::fmt::Display) -> Absent {
    Absent::Other(e.to_string())
}

fn in_32_bit(tid: i32) -> Absent {
    other(format!("thread {tid} runs 32-bit code at the moment"))
}

impl From<Absent> for Shut {
    fn from(why: Absent) -> Shut {
        Shut { why, pause: Duration::ZERO }
    }
}

/// Whom to call first.
#[derive(Debug)]
struct First {
    /// Those who have not been called yet.
    order: std::vec::IntoIter<i32>,
    slots: i32,
    since: Instant,
}

/// Calls all threads of a process in. `uid`: its user, as which it connects. `patience`: how long a thread that blocks the signal is looked at before anybody
/// is called. `visit`: what is asked of each as it comes in.
pub fn freeze(
    pid: i32,
    uid: u32,
    l: &Listener,
    patience: Duration,
    visit: &mut Visit<'_>,
) -> std::result::Result<Quiesced, Shut> {
    fault::target(pid);
    let Present { filters, status, mem } = look::present(pid)?;
    let (seen, blocking) = look_at_all(pid, &mem, Some(&status), None, patience)?;
    // rather one that did not block it a moment ago, and one that stays
    let mut order: Vec<i32> = seen.keys().copied().collect();
    let first = procfs::first::by(pid);
    order.sort_by_key(|t| (blocking.contains(t), *t != first));
    let call = Call { pid, nonce: l.key(), filters, seen: &seen };
    let mut q = First::new(order, seen.len()).come(&call, Some(&mem), code_serve(), uid, l)?;
    match q.call_all(&call, &blocking, visit) {
        Ok(()) => Ok(q),
        Err(why) => Err(Shut { why, pause: q.release() }),
    }
}

/// Calls one thread of a process in that may not be looked at before ([`look::may_open`]); while that serves, it may. [`Quiesced::call_others`] has to follow.
/// `uid`: its user, as which it connects. `patience`: how long it is looked at if all its threads block the signal.
pub fn open(pid: i32, uid: u32, l: &Listener, patience: Duration) -> std::result::Result<Quiesced, Shut> {
    fault::target(pid);
    let until = Instant::now() + patience;
    // the one that is most likely to stand where there is room for a signal
    let first = loop {
        let tids = procfs::tasks(pid).map_err(other)?;
        let tids = tids.into_iter().filter(|t| !procfs::is_io_worker(pid, *t));
        let (long, first): (Vec<i32>, Vec<i32>) = tids.partition(|t| look::blocks(pid, *t).unwrap_or(true));
        if !first.is_empty() {
            break first.into_iter().chain(long);
        }
        if Instant::now() > until {
            return Err(Absent::Blocks(pid).into());
        }
        glance();
    };
    let nothing = BTreeMap::new();
    let call = Call { pid, nonce: l.key(), filters: 0, seen: &nothing };
    let first: Vec<i32> = first.collect();
    let threads = first.len();
    let mut q = First::new(first, threads).come(&call, None, code_open(), uid, l)?;
    if RemoteMem::open(pid).is_err() {
        let why = other("it cannot be looked into, and not because it is not dumpable");
        return Err(Shut { why, pause: q.release() });
    }
    Ok(q)
}

/// A thread has ended, or is gone.
fn ended(pid: i32, tid: i32) -> bool {
    procfs::stat::read_task(pid, tid).map_or_else(|e| e.is_gone(), |s| s.state.is_ended())
}

impl First {
    fn new(order: Vec<i32>, threads: usize) -> First {
        First { order: order.into_iter(), slots: (threads * 2 + NEWCOMERS) as i32, since: Instant::now() }
    }

    /// Calls the next one that has not ended (with all signals blocked, as libc ends a thread).
    fn call_next(&mut self, call: &Call<'_>, code: i32) -> Way<i32> {
        for tid in self.order.by_ref() {
            if !ended(call.pid, tid) && call.send(tid, code, self.slots).map_err(other)? {
                return Ok(tid);
            }
        }
        Err(Absent::Blocks(call.pid))
    }

    /// Calls one and waits for it; if it ends before it comes, the next one. `mem`: the memory of the program that was looked at, where that may be done.
    fn come(
        mut self,
        call: &Call<'_>,
        mem: Option<&RemoteMem>,
        code: i32,
        uid: u32,
        l: &Listener,
    ) -> std::result::Result<Quiesced, Shut> {
        let (pid, since, slots) = (call.pid, self.since, self.slots);
        let mut server = self.call_next(call, code)?;
        let began = Instant::now();
        loop {
            let sock = loop {
                let came = l.accept_within(pid, uid, None, Duration::from_millis(LOOK.into())).map_err(other)?;
                match came {
                    Some((sock, _)) => break Some(sock),
                    None if ended(pid, server) => break None,
                    // it has executed another program, to which the call is nothing
                    None if mem.is_some_and(|mem| !look::has_page(mem)) => return Err(Absent::None.into()),
                    None if look::is_dispatched(pid) => return Err(Absent::Dispatched.into()),
                    None if is_setting(pid, call.filters) => return Err(setting().into()),
                    None if look::never_comes(pid, server).is_some() => break None,
                    None if began.elapsed() > LIMIT => return Err(late(pid, server).into()),
                    None => {}
                }
            };
            let Some(sock) = sock else {
                server = self.call_next(call, code)?;
                continue;
            };
            let (arrived, filters) = (BTreeMap::new(), call.filters);
            let mut q = Quiesced { sock, pid, server, arrived, answers: None, slots, filters, since };
            return match q.take(&mut BTreeSet::from([server]), LIMIT, &mut |_| ()) {
                Ok(()) => Ok(q),
                Err(why) => Err(Shut { why, pause: q.release() }),
            };
        }
    }
}

/// Whether the program has begun to set a filter that it was not told of ([`AgentInfo::filters`]): then nobody comes any more.
fn is_setting(pid: i32, told: u32) -> bool {
    seccomp::begun(pid).is_some_and(|begun| begun != told & !NO_VM_READV)
}

fn setting() -> Absent {
    Absent::Seccomp("it is setting a filter at this moment".into())
}

/// Why a thread that was called has not come.
fn late(pid: i32, tid: i32) -> Absent {
    match look::blocks(pid, tid) {
        Ok(true) => Absent::Blocks(tid),
        _ => Absent::Late(tid),
    }
}

/// What each thread but the serving one is doing (`status`: of the first one, as it was just seen), and those that were seen blocking the signal, all of which do not any more.
fn look_at_all(
    pid: i32,
    mem: &RemoteMem,
    mut status: Option<&Status>,
    server: Option<i32>,
    patience: Duration,
) -> Way<(BTreeMap<i32, Doing>, BTreeSet<i32>)> {
    let until = Instant::now() + patience;
    loop {
        let all = look_once(pid, mem, status.take(), server, until)?;
        match look::room(pid, mem, &all.0, all.0.len() + usize::from(server.is_some())) {
            // it may be just beginning, or ending: then it is not counted
            Err(Absent::Stack(_)) if Instant::now() < until => glance(),
            room => return room.map(|()| all),
        }
    }
}

/// The same, whether they have room or not.
fn look_once(
    pid: i32,
    mem: &RemoteMem,
    status: Option<&Status>,
    server: Option<i32>,
    until: Instant,
) -> Way<(BTreeMap<i32, Doing>, BTreeSet<i32>)> {
    let mut tids = procfs::tasks(pid).map_err(other)?;
    // one that has ended is still there if it is the first, and blocks whatever it blocked
    // the status is that of a thread that lives, whichever
    let by_first = status.filter(|_| procfs::first::by(pid) == pid);
    let first_ended = || by_first.map_or_else(|| ended(pid, pid), |s| s.state.is_ended());
    tids.retain(|tid| Some(*tid) != server && !(*tid == pid && first_ended()));
    let (mut blocking, mut seen) = (BTreeSet::new(), BTreeMap::new());
    for tid in &tids {
        let read;
        let s = match status.filter(|_| *tid == pid) {
            Some(s) => s,
            None => match procfs::status::read_task(pid, *tid) {
                Err(e) if e.is_gone() => continue,
                s => {
                    read = s.map_err(other)?;
                    &read
                }
            },
        };
        match look::blocks_then(s) {
            true if procfs::is_io_worker(pid, *tid) => continue,
            true => drop(blocking.insert(*tid)),
            // one that went into strict mode beside the agent, or where that may make no call, blocks nothing, and is not to be called
            false => look::strict_then(s, *tid).map_or(Ok(()), Err)?,
        }
        let doing = look::doing(pid, *tid);
        if look::calls_in_32_bit(mem, &doing) {
            return Err(in_32_bit(*tid));
        }
        seen.insert(*tid, doing);
    }
    for tid in &blocking {
        while look::blocks(pid, *tid).unwrap_or(false) {
            // it has executed another program, which has no agent and keeps it blocked
            if !look::has_page(mem) {
                return Err(Absent::None);
            }
            if let Some(why) = look::never_comes(pid, *tid) {
                return Err(why);
            }
            if Instant::now() > until {
                return Err(Absent::Blocks(*tid));
            }
            glance();
        }
        let doing = look::doing(pid, *tid);
        if look::calls_in_32_bit(mem, &doing) {
            return Err(in_32_bit(*tid));
        }
        seen.insert(*tid, doing);
    }
    Ok((seen, blocking))
}

/// Until the next look.
pub(super) fn glance() {
    let _ = poll(&mut [], PollTimeout::from(GLANCE));
}

impl Quiesced {
    /// Calls in all but the one that serves already. `visit` as for [`freeze`].
    pub fn call_others(
        &mut self,
        l: &Listener,
        patience: Duration,
        visit: &mut Visit<'_>,
    ) -> std::result::Result<(), Shut> {
        let looked = RemoteMem::open(self.pid).map_err(other);
        let looked = looked.and_then(|mem| look_at_all(self.pid, &mem, None, Some(self.server), patience));
        let came = looked.and_then(|(seen, blocking)| {
            let call = Call { pid: self.pid, nonce: l.key(), filters: self.filters, seen: &seen };
            self.call_all(&call, &blocking, visit)
        });
        came.map_err(|why| Shut { why, pause: self.release() })
    }

    /// The process is not dumpable, but for now.
    pub fn is_opened(&self) -> bool {
        self.arrived.values().any(|a| a.flags & ARRIVED_OPENED != 0)
    }

    fn call_all(&mut self, call: &Call<'_>, blocking: &BTreeSet<i32>, visit: &mut Visit<'_>) -> Way<()> {
        let mut channel = self.channel().map_err(other)?;
        // where there is only the serving one nobody is asked; should another come yet, it is asked later
        let calls = visit.calls.filter(|_| call.seen.keys().any(|t| *t != self.server));
        self.answers = match calls.map(|calls| Answers::prepare(&mut channel, calls)) {
            Some(answers) => answers.map_err(other)?,
            None => None,
        };
        let heed = &mut *visit.heed;
        let long: Vec<i32> = blocking.iter().copied().filter(|t| !self.arrived.contains_key(t)).collect();
        self.call_some(call, long.into_iter(), PATIENCE, heed)?;
        for _ in 0..MAX_ROUNDS {
            let tids = procfs::tasks(self.pid).map_err(other)?;
            let is_thread = |t: &i32| call.seen.contains_key(t) || !procfs::is_io_worker(self.pid, *t);
            let there = |t: &i32| self.arrived.contains_key(t) || *t == self.pid && ended(*t, *t);
            let fresh: Vec<i32> = tids.into_iter().filter(|t| !there(t) && is_thread(t)).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            if !self.call_some(call, fresh.into_iter(), LIMIT, heed)? {
                return Ok(());
            }
        }
        Err(other(format!("process {} makes threads faster than they can be called", self.pid)))
    }

    /// Calls these in and waits for them; false if all have ended.
    fn call_some(
        &mut self,
        call: &Call<'_>,
        tids: impl Iterator<Item = i32>,
        limit: Duration,
        heed: &mut Heed<'_>,
    ) -> Way<bool> {
        let mut wanted = BTreeSet::new();
        for tid in tids {
            if call.send(tid, code_park(), tid).map_err(other)? {
                wanted.insert(tid);
            }
        }
        let all = wanted.clone();
        self.take(&mut wanted, limit, heed)?;
        Ok(all.iter().any(|t| self.arrived.contains_key(t)))
    }

    /// Takes what threads say as they come in, until all of `wanted` are in or have ended.
    fn take(&mut self, wanted: &mut BTreeSet<i32>, limit: Duration, heed: &mut Heed<'_>) -> Way<()> {
        let end = Instant::now() + limit;
        while let Some(first) = wanted.first().copied() {
            if !self.readable()? {
                wanted.retain(|t| procfs::stat::read_task(self.pid, *t).is_ok_and(|s| !s.state.is_ended()));
                // then nobody else will come
                if is_setting(self.pid, self.filters) {
                    return Err(setting());
                }
                if look::is_dispatched(self.pid) {
                    return Err(Absent::Dispatched);
                }
                if let Some(why) = look::never_comes(self.pid, first).filter(|_| wanted.contains(&first)) {
                    return Err(why);
                }
                if wanted.contains(&first) && Instant::now() > end {
                    return Err(late(self.pid, first));
                }
                continue;
            }
            fault::point("agent").map_err(other)?;
            let mut b = [0; ARRIVAL];
            self.read_whole(&mut b)?;
            let op = u16::from_le_bytes([b[6], b[7]]);
            let said =
                state::decode(&b[16..]).filter(|_| b[..4] == wire::FRAME_MAGIC.to_le_bytes() && op == OP_ARRIVED);
            let said = said
                .filter(|a| a.slot < self.slots)
                .ok_or_else(|| other("what its agent says is not a frame of ours"))?;
            let tid = if said.slot < 0 { self.server } else { said.tid };
            if said.flags & ARRIVED_RSEQ_UNKNOWN != 0 {
                return Err(other(format!("thread {tid} has a restartable sequence that only ptrace can look at")));
            }
            if !state::is_64_bit(&said) {
                return Err(in_32_bit(tid));
            }
            heed(tid);
            wanted.remove(&tid);
            self.arrived.insert(tid, said);
        }
        Ok(())
    }

    /// Reads so many bytes, of which the first have come. A conversation over the same socket has made it one that does not wait.
    fn read_whole(&mut self, b: &mut [u8]) -> Way<()> {
        let mut done = 0;
        while done < b.len() {
            match self.sock.read(&mut b[done..]) {
                Ok(0) => return Err(other(io::Error::from(io::ErrorKind::UnexpectedEof))),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => drop(self.readable()?),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(other(e)),
            }
        }
        Ok(())
    }

    fn readable(&self) -> Way<bool> {
        let mut p = [PollFd::new(self.sock.as_fd(), PollFlags::POLLIN)];
        match poll(&mut p, PollTimeout::from(LOOK)) {
            Ok(n) => Ok(n > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(e) => Err(other(e)),
        }
    }

    /// The conversation with it.
    pub fn channel(&self) -> Result<Channel> {
        let sock = self.sock.try_clone().map_err(|e| Error::call("dup of its agent's socket", self.pid, e))?;
        // others may have its descriptors: then its end does not end the conversation
        Channel::watched(sock, self.pid, Watch::process(self.pid)?)
    }

    /// All threads.
    pub fn tids(&self) -> Vec<i32> {
        self.arrived.keys().copied().collect()
    }

    /// The serving thread, and the others by slot.
    pub fn inside(&self) -> (i32, Vec<i32>) {
        let mut others: Vec<(i32, i32)> =
            self.arrived.iter().filter(|(_, a)| a.slot >= 0).map(|(t, a)| (a.slot, *t)).collect();
        others.sort_unstable();
        (self.server, others.into_iter().map(|(_, t)| t).collect())
    }

    /// The region that it has mapped, start and bytes; and its connection's number.
    pub fn region(&self) -> (u64, u64, i32) {
        self.arrived.get(&self.server).map_or((0, 0, -1), |a| (a.base, a.len, a.sock))
    }

    /// Lets everyone go, without waiting for that: [`Quiesced::release`] has to follow.
    pub fn let_go(&mut self) {
        let _ = self.sock.shutdown(std::net::Shutdown::Write);
    }

    /// Lets everyone go, of whom one may have been stopped by a signal meanwhile: all others have gone after an instant.
    pub fn part(&mut self) {
        const INSTANT: Duration = Duration::from_millis(100);
        self.leave(INSTANT, Some(INSTANT));
    }

    /// Lets everyone go; the pause, until all have gone.
    pub fn release(&mut self) -> Duration {
        self.leave(LIMIT, Some(LIMIT))
    }

    /// `limit`: the longest wait for the region to go. `patience`: the longest for the connection to be closed.
    fn leave(&mut self, limit: Duration, patience: Option<Duration>) -> Duration {
        self.let_go();
        // it closes its end before it releases anybody, so that the program never runs with that descriptor
        let mut rest = [0; 64];
        // where others have its descriptors, its own end does not close it
        let watch = Watch::process(self.pid).ok();
        let comes = |sock: &UnixStream| watch.as_ref().is_some_and(|w| w.until_readable(sock.as_fd(), patience));
        while comes(&self.sock) && matches!(self.sock.read(&mut rest), Ok(n) if n > 0) {}
        // when the last has left it unmaps its region, and nothing tells of that: it is looked at. A process that is stopped keeps it. One that is
        // not dumpable may not be looked at, when that is done.
        let (until, mem) = (Instant::now() + limit, RemoteMem::open(self.pid));
        let there = || mem.as_ref().is_ok_and(|m| m.read(wire::HOME, &mut [0]).is_ok());
        while there() && Instant::now() < until {
            let _ = poll(&mut [], PollTimeout::from(1u8));
        }
        self.since.elapsed()
    }

    /// The threads' states. `mem`: memory in which all is as in the freeze.
    pub fn collect(&self, mem: &RemoteMem) -> Result<Snapshot> {
        let threads =
            self.arrived.iter().map(|(tid, a)| state::of(a, *tid, mem)).collect::<Result<Vec<ThreadState>>>()?;
        Ok(Snapshot { threads, stopped: false, shared_pending: Vec::new(), thread_pending: Vec::new() })
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        // not only closed: a channel may hold it too
        let _ = self.sock.shutdown(std::net::Shutdown::Both);
    }
}
