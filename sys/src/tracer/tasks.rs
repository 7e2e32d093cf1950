//! The stopped threads of one process: seizing, stopping, and letting go so that nothing of it shows. What news they have until they stand: stops.rs.
use super::leader::is_zombie;
use super::proto::Snapshot;
use super::raw;
use super::scratch::Borrowed;
use crate::sigframe::{self, Regs};
use crate::{procfs, restart, Error, Result};
use std::collections::BTreeMap;

/// Rounds of looking for newcomers before a process that makes threads all the time is given up.
const MAX_ROUNDS: usize = 200;

/// A thread under ptrace and what it must find again.
#[derive(Debug)]
pub struct Task {
    /// Whether it is stopped now.
    pub stopped: bool,
    /// Its latest stop was at a system call's entry or exit.
    pub at_syscall: bool,
    /// It is being led through a system call of ours.
    pub calling: bool,
    /// Registers at the first stop.
    pub regs: Regs,
    /// Signal mask at the first stop.
    pub sigmask: u64,
    /// Signals that the interrupted call's own mask blocks (ppoll and kin): they do not end it.
    pub call_mask: u64,
    /// The call that it goes on with, where the registers have only restart_syscall(2) for it.
    pub call: Option<i64>,
    /// Extended state at the first stop.
    pub xstate: Vec<u8>,
    /// rseq registration.
    pub rseq: raw::Rseq,
    /// An unblocked signal of its own was pending at the first stop.
    pub signal: bool,
    /// Signals pending for it at the first stop: raw siginfo.
    pub pending: Vec<Vec<u8>>,
    /// Its registers were changed: it must be cured before it is let go.
    pub entered: bool,
    /// It was sent into the blob to run there.
    pub sent: bool,
    /// Of a thread in the blob: registers with which it leaves through its frame, and stands on its own stack until then. Its signal mask
    /// is changed only there, for the tracer may die right after: a handler then runs where it would have without us, while on the
    /// blob's stacks there is no room for one.
    pub out: Option<Regs>,
    /// Code has run in it that may have changed its extended state.
    pub spoilt: bool,
    /// Stop signals that came while the blob ran, to be sent again.
    pub held: Vec<i32>,
    /// It was in a group stop when it was frozen.
    pub group_stop: bool,
    /// It is in strict seccomp mode: it makes calls of ours one by one, and stands still as it was otherwise.
    pub strict: bool,
    /// It is no thread of the program's, but made to serve where all of those are strict. It ends when it is let go.
    pub helper: bool,
}

const SIGCONT_BIT: u64 = 1 << (libc::SIGCONT - 1);

/// All threads of a process, seized. Dropping it cures and releases them.
#[derive(Debug)]
pub struct Tasks {
    /// PID, which is the leader's TID.
    pub pid: i32,
    /// By TID.
    pub all: BTreeMap<i32, Task>,
    /// Signals pending for the process at the freeze: raw siginfo.
    pub shared_pending: Vec<Vec<u8>>,
    /// Signals that have a handler, if any was pending at the freeze.
    pub caught: u64,
    /// Those of them whose handler is known to end calls (no SA_RESTART): asked inside.
    pub breaks: u64,
    /// Where a frame of ours lies in its memory, and what was there.
    pub borrowed: Option<Borrowed>,
    /// Whether stops are wanted now; while the blob runs they are not, and a stop (a SIGCONT's) is passed over.
    pub hold: bool,
    /// A thread ended in the blob: whoever waits there for it would wait for ever.
    pub lost: bool,
    /// It is being restored: not cured but killed if it is not woken.
    pub adopted: bool,
    /// A thread is being made for us: the next that is not known is that one.
    pub making: bool,
    sigfd: nix::sys::signalfd::SignalFd,
}

impl Tasks {
    /// None yet. SIGCHLD must be blocked in this process.
    pub fn new(pid: i32) -> Result<Tasks> {
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(nix::sys::signal::SIGCHLD);
        use nix::sys::signalfd::{SfdFlags, SignalFd};
        let sigfd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| Error::Call { doing: "signalfd".into(), pid, source: e.into() })?;
        Ok(Tasks {
            pid,
            all: BTreeMap::new(),
            borrowed: None,
            caught: 0,
            breaks: 0,
            shared_pending: Vec::new(),
            hold: true,
            lost: false,
            adopted: false,
            making: false,
            sigfd,
        })
    }

    /// Readable when a traced thread has news.
    pub fn sigfd(&self) -> &nix::sys::signalfd::SignalFd {
        &self.sigfd
    }

    /// Seizes and stops every thread, until no newcomer appears. `known`: threads that are not io_uring's, in order; those are left alone.
    pub fn freeze(&mut self, known: &[i32]) -> Result<()> {
        for _ in 0..MAX_ROUNDS {
            let tids = procfs::tasks(self.pid)
                .map_err(|_| Error::Died { doing: "listing its threads".into(), pid: self.pid })?;
            let mut fresh = Vec::new();
            for tid in tids {
                if self.all.contains_key(&tid)
                    || known.binary_search(&tid).is_err() && procfs::is_io_worker(self.pid, tid)
                {
                    continue;
                }
                match raw::seize(tid) {
                    Ok(()) => {
                        self.all.insert(tid, Task::seized());
                        fresh.push(tid);
                    }
                    Err(Error::Died { .. }) if tid != self.pid => {}
                    // a zombie cannot be seized, nor need it be
                    Err(_) if is_zombie(self.pid, tid) => {
                        if tid == self.pid && procfs::stat::read(tid).map_or(true, |s| s.num_threads <= 1) {
                            return Err(Error::Died { doing: "its freeze".into(), pid: tid });
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
            if fresh.is_empty() {
                return Ok(());
            }
            for tid in &fresh {
                self.gone_is_fine(*tid, raw::interrupt(*tid))?;
            }
            for tid in fresh.iter().rev() {
                self.wait_stop(*tid)?;
            }
        }
        Err(Error::Unfit { what: format!("process {} makes threads faster than they can be stopped", self.pid) })
    }

    /// Seizes these threads, which are all, of a process that is being restored, so that it ends with this tracer. It makes none of its own.
    pub fn seize_or_die(&mut self, tids: &[i32]) -> Result<()> {
        for tid in tids {
            raw::seize_or_die(*tid)?;
            self.all.insert(*tid, Task::seized());
        }
        Ok(())
    }

    /// Stops all threads that are seized.
    pub fn stop_all(&mut self) -> Result<()> {
        let tids: Vec<i32> = self.all.keys().copied().collect();
        for tid in &tids {
            raw::interrupt(*tid)?;
        }
        // the leader, which has the lowest number, last: waiting for it takes the kernel a walk over all of them
        for tid in tids.iter().rev() {
            self.wait_stop(*tid)?;
        }
        Ok(())
    }

    /// Reads what a cure needs of every stopped thread.
    pub fn read_state(&mut self) -> Result<()> {
        let pid = self.all.keys().find(|t| **t == self.pid).or(self.all.keys().next()).copied().unwrap_or(self.pid);
        let mem = crate::mem::RemoteMem::open(self.pid)?;
        for (tid, t) in self.all.iter_mut().filter(|(_, t)| t.stopped) {
            t.regs = raw::regs(*tid)?;
            t.sigmask = raw::sigmask(*tid)?;
            fit(*tid, &t.regs)?;
            t.call_mask = call_mask(&mem, &t.regs);
            t.call = gone_on_with(&mem, *tid, &t.regs)?;
            t.xstate = raw::xstate(*tid)?;
            t.rseq = raw::rseq(*tid)?;
            t.pending = raw::pending(*tid, false)?;
            if *tid == pid {
                self.shared_pending = raw::pending(pid, true)?;
            }
            // a section holds no system call (rseq(2)): who is in one is in no section
            if (t.regs.orig_rax as i64) < 0 {
                if let Some(abort) = rseq_abort(&mem, &t.rseq, t.regs.rip) {
                    t.regs.rip = abort;
                }
            }
            if restart::is_our_eintr(&t.regs) {
                t.signal = unblocked_signals(self.pid, *tid, t.sigmask | t.call_mask)? != 0;
            }
        }
        if !self.shared_pending.is_empty() || self.all.values().any(|t| !t.pending.is_empty()) {
            let status = procfs::status::read(self.pid).map_err(|e| Error::Unfit { what: e.to_string() })?;
            self.caught = status.sig_caught;
        }
        Ok(())
    }

    fn gone_is_fine(&mut self, tid: i32, r: Result<()>) -> Result<()> {
        match r {
            Err(Error::Died { .. }) if tid != self.pid || self.only_first_has_ended() => {
                self.all.remove(&tid);
                Ok(())
            }
            r => r,
        }
    }

    /// Gives a stopped thread back what it had. Extended state (where it is not still there) and mask first: until the last SETREGS the
    /// thread would leave through its frame, after it everything is already in place.
    pub fn cure(&mut self, tid: i32) -> Result<()> {
        let Some(t) = self.all.get(&tid) else { return Ok(()) };
        // what cannot be asked is taken as it was at the freeze: nothing but its end may keep a thread from its cure
        let regs = onward(self.pid, tid, t).unwrap_or_else(|_| restart::for_thaw(&t.regs, t.signal));
        let Some(t) = self.all.get_mut(&tid) else { return Ok(()) };
        if t.entered {
            if t.spoilt {
                raw::set_xstate(tid, &t.xstate)?;
            }
            if let Some(door) = &t.out {
                raw::set_regs(tid, door)?;
            }
            raw::set_sigmask(tid, t.sigmask)?;
            raw::set_regs(tid, &regs)?;
            t.entered = false;
            t.sent = false;
            t.out = None;
            t.spoilt = false;
        } else if regs != t.regs {
            raw::set_regs(tid, &regs)?;
        }
        Ok(())
    }

    /// A stopped thread that left code of ours by itself: what it has now is what it must find again.
    pub fn left_by_itself(&mut self, tid: i32) -> Result<()> {
        let pid = self.pid;
        let Some(t) = self.all.get_mut(&tid) else { return Ok(()) };
        t.regs = raw::regs(tid)?;
        t.sigmask = raw::sigmask(tid)?;
        t.xstate = raw::xstate(tid)?;
        let mem = crate::mem::RemoteMem::open(pid)?;
        t.call_mask = call_mask(&mem, &t.regs);
        t.call = gone_on_with(&mem, tid, &t.regs).unwrap_or_default();
        let mask = t.sigmask | t.call_mask;
        t.signal = restart::is_our_eintr(&t.regs) && unblocked_signals(pid, tid, mask)? != 0;
        t.entered = false;
        t.sent = false;
        t.out = None;
        t.spoilt = false;
        Ok(())
    }

    /// Lets go of every thread, cured; stop signals that came meanwhile are sent again. Gives what was read of them.
    ///
    /// Not for an adopted process, which is not whole before it is woken: see [`Tasks::abandon`].
    pub fn release(&mut self) -> Result<Snapshot> {
        let tids: Vec<i32> = self.all.keys().copied().collect();
        let entered: Vec<i32> = tids.iter().copied().filter(|t| self.all.get(t).is_some_and(|t| t.entered)).collect();
        let mut result = self.bring_to_stop(&entered);
        self.send_held();
        for tid in &tids {
            result = result.and(ok_if_dead(self.cure(*tid)));
        }
        for tid in &tids {
            result = result.and(ok_if_dead(raw::detach(*tid, 0)));
        }
        let seen = super::server::snapshot(self);
        self.all.clear();
        result.map(|()| seen)
    }

    /// Sends stop signals that came while the blob ran again; they take effect when the thread is let go. A SIGCONT that came after
    /// one has taken it back (signal(7)): all signals were blocked, so it is pending, for the process or for a thread.
    fn send_held(&mut self) {
        let held: Vec<(i32, i32)> =
            self.all.iter_mut().flat_map(|(tid, t)| t.held.drain(..).map(|s| (*tid, s)).collect::<Vec<_>>()).collect();
        if held.is_empty() || self.late_signals() & SIGCONT_BIT != 0 {
            return;
        }
        for (tid, sig) in held {
            // SAFETY: tgkill takes three integers.
            unsafe { libc::syscall(libc::SYS_tgkill, self.pid, tid, sig) };
        }
    }

    /// Signals that are pending now, for the process or for any thread, and were not at the freeze: bit n-1 for signal n. Those
    /// that stopped it are among them.
    pub fn late_signals(&self) -> u64 {
        let threads = self.all.iter().map(|(tid, t)| {
            let now = procfs::status::read_task(self.pid, *tid).map_or(0, |s| s.sig_pending | s.sig_shared_pending);
            now | t.held.iter().fold(0, |all, n| all | bit(*n))
        });
        let before = self.all.values().flat_map(|t| &t.pending).chain(&self.shared_pending);
        threads.fold(0, |all, t| all | t) & !before.fold(0, |all, i| all | bit(number(i)))
    }

    /// Kills a process that was to be restored and is not whole.
    pub fn abandon(&mut self) {
        self.all.clear();
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// A frame with which a thread leaves code of ours without the tracer's help.
    pub fn emergency_frame(&self, tid: i32, at: u64, restorer: u64) -> Vec<u8> {
        let Some(t) = self.all.get(&tid) else { return Vec::new() };
        let signal = match self.handled_by(t, t.sigmask | t.call_mask) {
            Some(n) if self.breaks & bit(n) != 0 => restart::Pending::Breaks,
            Some(_) => restart::Pending::Restarts,
            None if t.signal => restart::Pending::Restarts,
            None => restart::Pending::None,
        };
        let regs = restart::for_new(&restart::with_call(&t.regs, t.call), signal);
        sigframe::build(at, restorer, &regs, t.sigmask, &t.xstate)
    }

    /// The signal whose handler the thread will run first under this mask, of those that were pending at the freeze.
    fn handled_by(&self, t: &Task, mask: u64) -> Option<i32> {
        self.handled().find(|n| mask & bit(*n) == 0 && self.pending_for(t).any(|p| p == *n))
    }

    /// Signals that were pending at the freeze and have a handler, ascending.
    pub fn handled(&self) -> impl Iterator<Item = i32> + '_ {
        (1..=64)
            .filter(|n| self.caught & bit(*n) != 0 && self.all.values().any(|t| self.pending_for(t).any(|p| p == *n)))
    }

    /// Signals pending at the freeze for a thread or its process.
    fn pending_for<'a>(&'a self, t: &'a Task) -> impl Iterator<Item = i32> + 'a {
        t.pending.iter().chain(&self.shared_pending).map(|i| number(i))
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1).clamp(0, 63)
}

/// A pending signal's number (siginfo's first word).
fn number(info: &[u8]) -> i32 {
    info.get(..4).and_then(|b| b.try_into().ok()).map_or(1, i32::from_ne_bytes)
}

/// Registers with which a stopped thread goes on from here. Which signals are pending counts now: one that came in the freeze, when all were
/// blocked, ends a call as it would have without us. What the call's own mask blocks (ppoll and kin) does not end it: the handler
/// runs, since that mask is the kernel's alone to set, and the call is issued again.
fn onward(pid: i32, tid: i32, t: &Task) -> Result<Regs> {
    if !restart::is_our_eintr(&t.regs) && t.call_mask == 0 {
        return Ok(t.regs);
    }
    let pending = if raw::pending(tid, false)?.is_empty() && raw::pending(tid, true)?.is_empty() {
        0
    } else {
        unblocked_signals(pid, tid, t.sigmask)?
    };
    let ending = pending & !t.call_mask;
    Ok(match pending != 0 && ending == 0 {
        true => restart::anew(&t.regs),
        false => restart::for_thaw(&t.regs, ending != 0),
    })
}

/// The call that a thread goes on with by restart_syscall(2), if it does: in a new process, or after an emergency exit, it is issued again.
fn gone_on_with(mem: &crate::mem::RemoteMem, tid: i32, regs: &Regs) -> Result<Option<i64>> {
    if !restart::goes_on(regs) {
        return Ok(None);
    }
    let mut code = [0; restart::CALL_CODE];
    // what cannot be read tells nothing
    let _ = mem.read(regs.rip.wrapping_sub(code.len() as u64), &mut code);
    let call = restart::gone_on_with(regs, &code, |at| word(mem, at));
    let what = || {
        format!("thread {tid} goes on with a call that was interrupted before, and which one cannot be told: try again when it has returned")
    };
    call.map(Some).ok_or_else(|| Error::Unfit { what: what() })
}

/// The mask under which an interrupted call waits, if it brings one: signals as bits, 0 if there is none.
fn call_mask(mem: &crate::mem::RemoteMem, regs: &Regs) -> u64 {
    let Some((at, indirect)) = restart::mask_of_call(regs) else { return 0 };
    let at = if indirect { word(mem, at) } else { Some(at) };
    at.filter(|at| *at != 0).and_then(|at| word(mem, at)).unwrap_or(0)
}

fn word(mem: &crate::mem::RemoteMem, at: u64) -> Option<u64> {
    let mut b = [0; 8];
    mem.read(at, &mut b).ok().map(|()| u64::from_le_bytes(b))
}

impl Drop for Tasks {
    fn drop(&mut self) {
        if self.all.is_empty() {
            return;
        }
        if self.adopted {
            self.abandon();
        } else {
            let _ = self.release();
        }
    }
}

impl Task {
    /// Just seized.
    pub(super) fn seized() -> Task {
        Task {
            stopped: false,
            at_syscall: false,
            calling: false,
            regs: Regs::default(),
            sigmask: 0,
            call_mask: 0,
            call: None,
            xstate: Vec::new(),
            rseq: raw::Rseq::default(),
            signal: false,
            pending: Vec::new(),
            entered: false,
            sent: false,
            out: None,
            spoilt: false,
            held: Vec::new(),
            group_stop: false,
            strict: false,
            helper: false,
        }
    }
}

/// Where a thread goes on that was stopped inside a restartable sequence: at its abort handler (rseq(2)). The kernel would see
/// to that as the thread leaves its stop, but what leaves first is the blob, which the kernel takes for having left the sequence.
fn rseq_abort(mem: &crate::mem::RemoteMem, r: &raw::Rseq, rip: u64) -> Option<u64> {
    if r.addr == 0 {
        return None;
    }
    let word = |at: u64| word(mem, at);
    // struct rseq: rseq_cs at 8; struct rseq_cs: start_ip at 8, post_commit_offset at 16, abort_ip at 24
    let section = word(r.addr + 8).filter(|s| *s != 0)?;
    let (start, len, abort) = (word(section + 8)?, word(section + 16)?, word(section + 24)?);
    (rip.wrapping_sub(start) < len).then_some(abort)
}

fn ok_if_dead(r: Result<()>) -> Result<()> {
    match r {
        Err(Error::Died { .. }) => Ok(()),
        r => r,
    }
}

/// Refuses a thread in which a foreign system call would not be one.
fn fit(tid: i32, regs: &Regs) -> Result<()> {
    const USER_CS: u64 = 0x33; // __USER_CS of arch/x86/include/asm/segment.h: 64-bit code
    let what = if regs.cs != USER_CS {
        "runs 32-bit code at the moment"
    } else if raw::dispatches_system_calls(tid)? {
        "has its system calls dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH), which a foreign one would trip over"
    } else {
        return Ok(());
    };
    Err(Error::Unfit { what: format!("thread {tid} {what}") })
}

/// Signals that are pending, have a handler, and are not blocked by the mask.
fn unblocked_signals(pid: i32, tid: i32, mask: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let b = std::fs::read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
    let s = procfs::status::parse(&b).map_err(|e| Error::Unfit { what: e.to_string() })?;
    Ok((s.sig_pending | s.sig_shared_pending) & !mask & s.sig_caught)
}
