//! Threads in the image's words: what was known before the freeze, what each said of itself, and what the tracer read.
use super::observe::Seen;
use super::told::Told;
use super::Step;
use crate::Reason;
use image::v1::process::Thread;
use image::v1::rights::Rights;
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use sys::kcmp::Resource;
use sys::procfs;
use sys::procfs::first::by;
use sys::procfs::status::{Status, TaskStatus};
use sys::restart::Pending;
use sys::rlimit::Raised;
use sys::tracer::{Snapshot, ThreadState};

/// Words of a thread's registers in the image.
const REGISTERS: usize = 27;

/// What can be asked of a thread from outside, while it runs.
#[derive(Debug, Default)]
pub struct Facts {
    /// Name.
    pub comm: Vec<u8>,
    /// Policy, priority, nice.
    pub sched: (u32, u32, i32),
    /// CPU mask.
    pub affinity: Vec<u8>,
    /// PR_GET_IO_FLUSHER.
    pub io_flusher: bool,
    /// PR_MCE_KILL_GET; None: the default.
    pub mce_kill: Option<u32>,
    /// TID in the innermost PID namespace.
    pub inner_tid: i32,
    /// Its credentials, but for the secure bits.
    pub rights: Rights,
    /// How many seccomp filters it has; None: that is not told (kernels before 5.9).
    pub filters: Option<u32>,
    /// It is in strict seccomp mode.
    pub strict: bool,
    /// It was the one by which the process was looked at.
    leads: bool,
    /// What the kernel said of it, to see whether that is still so.
    said: Vec<u8>,
    /// Where it was asked, if that could be kept open.
    status: Option<TaskStatus>,
}

/// Descriptors that a recorder may need beside those of the threads.
const OTHER_DESCRIPTORS: u64 = 256;

/// The process whose threads are asked.
pub(super) struct Whole<'a> {
    /// Its status now.
    pub leader: &'a Status,
    /// It is in a PID namespace of its own.
    pub private: bool,
    /// Whether a thread shares something with the leader.
    pub shares: &'a Shares<'a>,
}

/// Answers whether a thread shares something with its leader.
pub(super) type Shares<'a> = dyn Fn(i32, Resource) -> std::io::Result<bool> + 'a;

/// Asks all threads of a process that runs: those that end meanwhile are left out, and the freeze asks again. What keeps the descriptors
/// for that possible is given too.
/// `blind`: what only kcmp tells is left to the freeze.
pub(super) fn facts(
    leader: &Status,
    private: bool,
    blind: bool,
) -> (BTreeMap<i32, Facts>, Vec<Reason>, Option<Raised>) {
    let tids = procfs::tasks(leader.pid).unwrap_or_default();
    let raised = Raised::for_descriptors(tids.len() as u64 + 2 * OTHER_DESCRIPTORS).ok();
    let limit = raised.as_ref().map_or(0, Raised::limit);
    let mut known = BTreeMap::new();
    let shares = |tid: i32, what| if blind { Ok(true) } else { sys::kcmp::shares(leader.pid, tid, what) };
    // it may take a while: what does not answer because it has ended is none of the freeze's threads
    let reasons = tids.into_iter().filter_map(|tid| {
        let status = TaskStatus::open(leader.pid, tid).ok()?;
        let said = said(&status, tid).ok()?;
        let refusal = fact(&Whole { leader, private, shares: &shares }, tid, said, &mut known).ok()?;
        if status.number() + OTHER_DESCRIPTORS < limit {
            known.entry(tid).and_modify(|f| f.status = Some(status));
        }
        refusal
    });
    let reasons = reasons.collect();
    (known, reasons, raised)
}

/// What the kernel said of threads as each came to a stand, to be used where nothing can have changed it since.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<i32, (Vec<u8>, [Vec<u8>; 2])>);

impl Heard {
    /// Asks a thread that stands still.
    pub fn ask(&mut self, known: &BTreeMap<i32, Facts>, tid: i32) {
        let changeable = Heard::changeable(tid);
        // one that cannot be asked here is asked again
        if let Some(said) = known.get(&tid).and_then(|f| said(f.status.as_ref()?, tid).ok()) {
            self.0.insert(tid, (said, changeable));
        }
    }

    /// What it said, unless another thread may have changed that since.
    fn take(&mut self, tid: i32) -> Option<Vec<u8>> {
        self.0.remove(&tid).filter(|(_, then)| *then == Heard::changeable(tid)).map(|(said, _)| said)
    }

    /// What others can change of a thread, but for seccomp, of which the other has the more itself.
    fn changeable(tid: i32) -> [Vec<u8>; 2] {
        [sys::sched::affinity(tid), sys::sched::attributes(tid)]
    }
}

/// Asks all stopped threads again, but for those that were heard as they stopped. Those of which the kernel says what it said before are what they were; `known` is
/// brought up to date. Gives the refusals. One that does not answer has been killed, and that ends the process.
pub(super) fn again(
    w: &Whole<'_>,
    tids: &[i32],
    mut heard: Heard,
    known: &mut BTreeMap<i32, Facts>,
) -> Step<Vec<Reason>> {
    let mut reasons = Vec::new();
    // what it has otherwise than the leader is anew to be seen if the leader has changed
    let ask = |known: &BTreeMap<i32, Facts>, tid| match known.get(&tid).and_then(|f| f.status.as_ref()) {
        Some(status) => said(status, tid),
        None => said(&TaskStatus::open(w.leader.pid, tid)?, tid),
    };
    // the same one as before, and unchanged
    let first = by(w.leader.pid);
    let leader = ask(known, first)?;
    let led = known.get(&first).is_some_and(|f| f.leads && f.said == leader);
    let mut all = Vec::with_capacity(tids.len());
    for tid in tids {
        all.push(match heard.take(*tid) {
            Some(said) => said,
            None if *tid == first => leader.clone(),
            None => ask(known, *tid)?,
        });
    }
    // one that has changed may have changed the others (a filter of seccomp's for all threads)
    let changed = tids.iter().zip(&all).any(|(tid, now)| known.get(tid).is_none_or(|f| f.said != *now));
    for (tid, heard) in tids.iter().zip(all) {
        let now = if changed { ask(known, *tid)? } else { heard };
        reasons.extend(match known.get(tid).filter(|f| led && f.said == now) {
            Some(f) => apart(w, *tid)?.map(|(why, remedy)| reason(*tid, &f.comm, why, remedy)),
            None => fact(w, *tid, now, known)?,
        });
    }
    Ok(reasons)
}

/// What the kernel says of a thread, in a form that can be compared.
fn said(status: &TaskStatus, tid: i32) -> procfs::Result<Vec<u8>> {
    let mut said = status.own_lines()?;
    said.extend(sys::sched::attributes(tid));
    Ok(said)
}

fn reason(tid: i32, comm: &[u8], why: String, remedy: &str) -> Reason {
    Reason::new(format!("thread {tid} ({})", comm.escape_ascii()), why, remedy)
}

/// Asks one thread, and gives the refusal if there is one.
fn fact(w: &Whole<'_>, tid: i32, said: Vec<u8>, known: &mut BTreeMap<i32, Facts>) -> Step<Option<Reason>> {
    let s = procfs::stat::read_task(w.leader.pid, tid)?;
    if s.is_io_worker() {
        return Ok(None);
    }
    let status = procfs::status::read_task(w.leader.pid, tid)?;
    let inner_tid = status.ns_pid.last().copied().filter(|_| w.private).unwrap_or(tid);
    let odd = match tid == w.leader.pid || s.state == procfs::State::Zombie {
        true => None,
        false => apart(w, tid)?,
    };
    let strict = super::seccomp::is_strict(&status);
    let refusal = odd.map(|(why, remedy)| reason(tid, &s.comm, why, remedy));
    let sched = (s.policy, s.rt_priority, s.nice as i32);
    let (io_flusher, mce_kill) = (s.is_io_flusher(), s.mce_kill());
    let affinity = sys::sched::affinity(tid);
    let rights = super::rights::of(&status, inner_tid);
    let leads = tid == by(w.leader.pid);
    let filters = super::seccomp::count(&status);
    let comm = s.comm;
    let status = None;
    let facts =
        Facts { comm, sched, affinity, io_flusher, mce_kill, inner_tid, rights, filters, strict, leads, said, status };
    known.insert(tid, facts);
    Ok(refusal)
}

/// Whether a thread has descriptors or a directory of its own: why it is refused, and what to do.
fn apart(w: &Whole<'_>, tid: i32) -> Step<Option<(String, &'static str)>> {
    for what in [Resource::Files, Resource::Fs] {
        match (w.shares)(tid, what) {
            Ok(true) => {}
            // one that is being killed has none at all
            Ok(false) if is_exiting(w.leader.pid, tid)? || is_exiting(w.leader.pid, by(w.leader.pid))? => {
                return Err(sys::Error::Died { doing: "kcmp".into(), pid: tid }.into())
            }
            Ok(false) => {
                let why =
                    "it has descriptors, or a working directory and umask, of its own (unshare), which is not kept yet";
                return Ok(Some((why.into(), "checkpoint when it has ended")));
            }
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(sys::Error::call("kcmp", tid, e).into()),
            Err(e) => {
                let why = format!("whether it has descriptors or a directory of its own cannot be told (kcmp: {e})");
                return Ok(Some((why, "`ctl doctor` tells what this machine permits")));
            }
        }
    }
    Ok(None)
}

fn is_exiting(pid: i32, tid: i32) -> Step<bool> {
    Ok(procfs::stat::read_task(pid, tid)?.is_exiting())
}

/// All threads, in the order of their TIDs, and the signals that stay pending for the process.
pub(super) fn all(seen: &Seen, snapshot: &Snapshot, facts: &BTreeMap<i32, Facts>) -> (Vec<Thread>, Vec<ByteBuf>) {
    let told: BTreeMap<i32, &Told> = seen.told.iter().map(|t| (t.tid, t)).collect();
    let mut shared = snapshot.shared_pending.clone();
    let unknown = Facts::default();
    // one that called a thread in for a recorder that is gone
    let ours = |i: &ByteBuf| {
        i.get(8..12).and_then(|b| b.try_into().ok()).is_some_and(|b| wire::agent::is_recorders(i32::from_le_bytes(b)))
    };
    let own = |all: Vec<ByteBuf>| all.into_iter().filter(|i| !ours(i)).collect::<Vec<_>>();
    let one = |t: &ThreadState| {
        let told = told.get(&t.tid)?;
        let mut pending =
            snapshot.thread_pending.iter().find(|p| p.0 == t.tid).map(|p| own(p.1.clone())).unwrap_or_default();
        // What no thread blocks, the kernel gives to the first that it finds, the leader first: that one's call it ends
        // (kernel/signal.c, complete_signal). So it is that one's from here on.
        // The mask of a call (ppoll and kin) blocks it too, though here the handler may run before the call is issued again.
        let mask = t.sigmask | t.call_mask;
        let (own, others) = std::mem::take(&mut shared).into_iter().partition(|i| !blocks(mask, i));
        shared = others;
        pending.extend::<Vec<ByteBuf>>(own);
        let f = facts.get(&t.tid).unwrap_or(&unknown);
        let signal = interrupting(&pending, mask, &seen.process.sigactions);
        Some(Thread { pending, ..thread(t, signal, f, told) })
    };
    let threads = snapshot.threads.iter().filter_map(one).collect();
    (threads, shared)
}

/// The record of a first thread that has ended: its number and its name, and nothing to go on with.
pub(super) fn ended(pid: i32, f: Option<&Facts>) -> Thread {
    let comm = f.map(|f| f.comm.clone()).unwrap_or_default().into();
    Thread { tid: pid, regs: vec![0; REGISTERS], comm, restarted_call: -1, ..Thread::default() }
}

/// Number of a pending signal (siginfo's first word).
fn number(info: &[u8]) -> u32 {
    info.get(..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn blocks(mask: u64, info: &ByteBuf) -> bool {
    mask >> number(info).wrapping_sub(1).min(63) & 1 != 0
}

/// What the pending signals of a thread make of its call. The lowest that has a handler is taken first and decides.
/// `actions`: 32 bytes for each signal, handler and flags first (`struct kernel_sigaction`).
fn interrupting(pending: &[ByteBuf], mask: u64, actions: &[u8]) -> Pending {
    let word = |at: usize| actions.get(at..at + 8).map_or(0, |b| b.try_into().map_or(0, u64::from_le_bytes));
    let handled = |n: &u32| word((*n as usize).wrapping_sub(1).min(63) * 32) > 1; // neither SIG_DFL nor SIG_IGN
    let first = pending.iter().filter(|i| !blocks(mask, i)).map(|i| number(i)).filter(handled).min();
    match first.map(|n| word((n as usize - 1) * 32 + 8) & libc::SA_RESTART as u64 != 0) {
        None => Pending::None,
        Some(true) => Pending::Restarts,
        Some(false) => Pending::Breaks,
    }
}

fn thread(t: &ThreadState, signal: Pending, f: &Facts, told: &Told) -> Thread {
    let word = |at: usize| told.buf.get(at..at + 8).map_or(0, |b| b.try_into().map_or(0, u64::from_le_bytes));
    // an EINTR that is ours, but with a signal pending that has no handler or is another's: as on a thaw
    let signal = if t.signal && signal == Pending::None { Pending::Restarts } else { signal };
    let regs = sys::restart::for_new(&t.regs, signal);
    let again = regs.rip != t.regs.rip;
    Thread {
        tid: f.inner_tid,
        regs: regs.words().to_vec(),
        xstate: t.xstate.clone().into(),
        sigmask: t.sigmask,
        altstack: (word(0), word(8) as u32, word(16)),
        clear_child_tid: word(24),
        robust: (word(32), word(40)),
        rseq: (t.rseq.addr, t.rseq.size, t.rseq.signature, t.rseq.flags),
        comm: ByteBuf::from(f.comm.clone()),
        affinity: ByteBuf::from(f.affinity.clone()),
        sched: f.sched,
        timerslack: told.slack.max(0) as u64,
        pdeathsig: word(48) as u32 as i32,
        no_tsc: told.no_tsc(),
        no_cpuid: told.cpuid == 0,
        speculation: told.speculation.map(|s| s.max(0) as u32),
        io_flusher: f.io_flusher,
        mce_kill: f.mce_kill,
        ioprio: told.ioprio.max(0) as u32,
        mempolicy: told.mempolicy(),
        pending: Vec::new(),
        restarted_call: sys::restart::whole_time_again(&t.regs).filter(|_| again).unwrap_or(-1),
    }
}
