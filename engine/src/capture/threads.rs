//! Threads in the image's words: what was known before the freeze, what each said of itself, and what the tracer read.
use super::observe::{Seen, Told};
use image::v1::process::Thread;
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use sys::procfs;
use sys::tracer::{Snapshot, ThreadState};

/// What can be asked of a thread from outside, while it runs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Name.
    pub comm: Vec<u8>,
    /// Policy, priority, nice.
    pub sched: (u32, u32, i32),
    /// CPU mask.
    pub affinity: Vec<u8>,
    /// TID in the innermost PID namespace.
    pub inner_tid: i32,
}

/// Asks all threads of a process; `private`: it is in a PID namespace of its own.
pub(super) fn facts(pid: i32, private: bool) -> BTreeMap<i32, Facts> {
    let tids = procfs::tasks(pid).unwrap_or_default();
    tids.into_iter().map(|t| (t, fact(pid, t, private))).collect()
}

/// Asks one thread.
pub(super) fn fact(pid: i32, tid: i32, private: bool) -> Facts {
    let Ok(s) = procfs::stat::read_task(pid, tid) else { return Facts { inner_tid: tid, ..Facts::default() } };
    let inner = || procfs::status::read_task(pid, tid).ok().and_then(|s| s.ns_pid.last().copied());
    Facts {
        comm: s.comm.clone(),
        sched: (s.policy, s.rt_priority, s.nice as i32),
        affinity: sys::sched::affinity(tid),
        inner_tid: if private { inner().unwrap_or(tid) } else { tid },
    }
}

/// All threads, in the order of their TIDs.
pub(super) fn all(seen: &Seen, snapshot: &Snapshot, facts: &BTreeMap<i32, Facts>) -> Vec<Thread> {
    let told: BTreeMap<i32, &Told> = seen.told.iter().map(|t| (t.tid, t)).collect();
    let one = |t: &ThreadState| {
        let told = told.get(&t.tid)?;
        let pending = snapshot.thread_pending.iter().find(|p| p.0 == t.tid).map(|p| p.1.clone()).unwrap_or_default();
        let f = facts.get(&t.tid).cloned().unwrap_or_default();
        Some(Thread { pending, ..thread(t, &f, told) })
    };
    snapshot.threads.iter().filter_map(one).collect()
}

fn thread(t: &ThreadState, f: &Facts, told: &Told) -> Thread {
    let word = |at: usize| told.buf.get(at..at + 8).map_or(0, |b| b.try_into().map_or(0, u64::from_le_bytes));
    Thread {
        tid: f.inner_tid,
        regs: sys::restart::for_new(&t.regs, t.signal).words().to_vec(),
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
        ioprio: told.ioprio.max(0) as u32,
        mempolicy: told.mempolicy(),
        pending: Vec::new(),
        restarted_call: sys::restart::whole_time_again(&t.regs).unwrap_or(-1),
    }
}
