//! The threads: started all at once, then each sets in itself what only it can set.
use super::fresh::Ids;
use super::process::Soft;
use super::puppet::Puppet;
use super::waiting::Waiting;
use super::{cannot, creds, Fault, Image, Step};
use crate::Pids;
use ::image::v1::process::Thread;
use ::image::v1::rights::Rights;
use sys::program::{Arg::Imm, Program};

const PR_SET_NAME: u64 = 15;
const PR_SET_TIMERSLACK: u64 = 29;
const PR_SET_PDEATHSIG: u64 = 1;
/// linux/prctl.h, asm/prctl.h
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_CLEAR: u64 = 0;
const PR_MCE_KILL_SET: u64 = 1;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_SPEC_PRCTL: u32 = 1;
const PR_SPEC_ENABLE: u32 = 2;
const L1D_FLUSH: usize = 2;
const ARCH_SET_CPUID: u64 = 0x1012;
const SPECULATION: [&str; 3] = ["PR_SPEC_STORE_BYPASS", "PR_SPEC_INDIRECT_BRANCH", "PR_SPEC_L1D_FLUSH"];
const SS_DISABLE: u32 = 2;
const SS_ONSTACK: u32 = 1;
const SCHED_DEADLINE: u32 = 6;
/// Bits of a mask of nodes, and one more, as the kernel counts (set_mempolicy(2), BUGS).
pub(super) const NODE_BITS: u64 = 65;

/// Starts all threads but the leader, parked, with their TIDs or new ones. `init`: of their namespace. It chooses the numbers of threads in a user namespace of their own,
/// where they may not be chosen.
pub fn start(p: &mut Puppet, image: &Image<'_>, init: Option<&mut Waiting>) -> Step<()> {
    let others = &image.threads[1..];
    match init.filter(|_| image.users.is_some()) {
        Some(init) => {
            for (slot, t) in others.iter().enumerate() {
                init.number(t.tid)?;
                start_some(p, &[(slot, 0)], std::slice::from_ref(t))?;
            }
        }
        None => {
            let fresh = p.pids == Pids::Fresh;
            let number = |t: &Thread| if fresh { 0 } else { t.tid };
            let ask: Vec<(usize, i32)> = others.iter().map(number).enumerate().collect();
            start_some(p, &ask, others)?;
        }
    }
    p.tids = numbers_here(p, image)?;
    Ok(())
}

/// Starts these, each in a slot, with a TID that is chosen or (0) the next one.
fn start_some(p: &mut Puppet, ask: &[(usize, i32)], threads: &[Thread]) -> Step<()> {
    let mut q = Vec::with_capacity(ask.len() * 8);
    for (slot, tid) in ask {
        q.extend_from_slice(&(*slot as u32).to_le_bytes());
        q.extend_from_slice(&tid.to_le_bytes());
    }
    if ask.is_empty() {
        return Ok(());
    }
    let a = p.channel.ask(wire::OP_START, &q)?;
    let results = a.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()));
    for (r, t) in results.zip(threads) {
        if r < 0 {
            let e = std::io::Error::from_raw_os_error(-r as i32);
            let remedy = "use --pids private if the TID is in use; raise the limit of processes (ulimit -u; pids.max of its control group) if that is reached";
            return Err(cannot(format!("thread {}", t.tid), format!("it cannot be started: {e}"), remedy));
        }
        match p.pids {
            Pids::Fresh => p.ids.set(t.tid, r as i32),
            _ if r == i64::from(t.tid) => {}
            _ => {
                let why = format!("it was started as {r}");
                return Err(cannot(
                    format!("thread {}", t.tid),
                    why,
                    "report this, with what `ctl inspect` says of it",
                ));
            }
        }
    }
    Ok(())
}

/// TIDs as seen from here. The kernel lists threads in the order in which they were started.
fn numbers_here(p: &Puppet, image: &Image<'_>) -> Step<Vec<i32>> {
    if p.pids != Pids::Private {
        return Ok(image.threads.iter().map(|t| p.ids.of(t.tid)).collect());
    }
    let path = format!("/proc/{}/task", p.pid);
    let list = std::fs::read_dir(&path).map_err(|e| Fault::Io(format!("listing {path}"), e))?;
    let tids: Vec<i32> = list.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    let odd =
        || Fault::Io(format!("listing {path}"), std::io::Error::other("its threads are not those that were started"));
    if tids.len() != image.threads.len() || tids.first() != Some(&p.pid) {
        return Err(odd());
    }
    // the first and the last tell whether the order holds
    for i in [0, tids.len() - 1] {
        let s = sys::procfs::status::read_task(p.pid, tids[i])?;
        if s.ns_pid.last() != Some(&image.threads[i].tid) {
            return Err(odd());
        }
    }
    Ok(tids)
}

/// Attributes of every thread; the credentials of all but the leader, whose come last.
pub fn attributes(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    let own = Own::new();
    let mut prog = Program::new();
    let mut soft = Soft::new();
    before_creds(&mut prog, &mut soft, image.process.pid, &image.threads[0], &own, &p.ids);
    let r = p.run(&prog)?;
    soft.note(&r, notes);
    let (creds, process) = (creds::Creds::new(p, image, notes), Rights::of(&image.process));
    let mut prog = Program::new();
    for (slot, t) in image.threads[1..].iter().enumerate() {
        let first = prog.len();
        before_creds(&mut prog, &mut soft, image.process.pid, t, &own, &p.ids);
        creds.calls(image.rights.get(&t.tid).unwrap_or(&process), &mut prog, &mut soft);
        after_creds(&mut prog, t);
        prog.for_thread(slot as u32, first);
        if prog.size() > 512 << 10 {
            flush(p, &mut prog, &mut soft, notes)?;
        }
    }
    flush(p, &mut prog, &mut soft, notes)
}

fn flush(p: &mut Puppet, prog: &mut Program, soft: &mut Soft, notes: &mut Vec<String>) -> Step<()> {
    if !prog.is_empty() {
        let r = p.run_threads(prog)?;
        soft.note(&r, notes);
    }
    *prog = Program::new();
    Ok(())
}

/// What threads have from us by the fork, so that it need not be set again.
struct Own {
    nice: i32,
    policy: u32,
    affinity: Vec<u8>,
}

impl Own {
    fn new() -> Own {
        let s = sys::procfs::stat::read(std::process::id() as i32);
        let (nice, policy) = s.map_or((0, 0), |s| (s.nice as i32, s.policy));
        Own { nice, policy, affinity: sys::sched::affinity(0) }
    }
}

/// What a thread sets before it gives up rights.
fn before_creds(p: &mut Program, soft: &mut Soft, pid: i32, t: &Thread, own: &Own, ids: &Ids) {
    p.call(libc::SYS_set_tid_address, &[Imm(t.clear_child_tid)]);
    if t.robust.1 != 0 {
        p.call(libc::SYS_set_robust_list, &[Imm(t.robust.0), Imm(t.robust.1)]);
    }
    // also where it has none: the leader has ours by the fork
    let (sp, flags, size) =
        if t.altstack.1 & SS_DISABLE != 0 || t.altstack.2 == 0 { (0, SS_DISABLE, 0) } else { t.altstack };
    let mut stack = sp.to_le_bytes().to_vec();
    stack.extend_from_slice(&((flags & !SS_ONSTACK) as u64).to_le_bytes());
    stack.extend_from_slice(&size.to_le_bytes());
    let stack = p.bytes(&stack);
    p.call(libc::SYS_sigaltstack, &[stack, Imm(0)]);
    p.named(format!("the alternate stack of thread {}", t.tid));
    if t.rseq.0 != 0 {
        let (addr, size, sig, flags) = t.rseq;
        p.call(libc::SYS_rseq, &[Imm(addr), Imm(size as u64), Imm(flags as u64), Imm(sig as u64)]);
        p.named(format!("restartable sequences of thread {}", t.tid));
    }
    let name = p.cstr(&t.comm);
    p.call(libc::SYS_prctl, &[Imm(PR_SET_NAME), name]);
    if !t.affinity.is_empty() && t.affinity != own.affinity {
        let mask = p.bytes(&t.affinity);
        soft.add(
            p.may(libc::SYS_sched_setaffinity, &[Imm(0), Imm(t.affinity.len() as u64), mask]),
            "its CPU affinity is not as it was",
        );
    }
    scheduling(p, soft, t, own);
    p.may(libc::SYS_prctl, &[Imm(PR_SET_TIMERSLACK), Imm(t.timerslack)]);
    if t.ioprio != 0 {
        soft.add(
            p.may(libc::SYS_ioprio_set, &[Imm(1), Imm(0), Imm(t.ioprio as u64)]),
            "its I/O priority is not as it was",
        );
    }
    guards(p, soft, t);
    // also where it has none: it has ours by the fork
    let (mode, nodes) = t.mempolicy;
    let mask = if nodes == 0 { Imm(0) } else { p.bytes(&nodes.to_le_bytes()) };
    let bits = if nodes == 0 { 0 } else { NODE_BITS };
    let c = p.may(libc::SYS_set_mempolicy, &[Imm(mode as u64), mask, Imm(bits)]);
    if mode != 0 {
        soft.add(c, format!("the NUMA policy of thread {} is not as it was", t.tid));
    }
    for info in &t.pending {
        let sig = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
        let a = p.bytes(&ids.siginfo(info));
        let (pid, tid) = (ids.of(pid), ids.of(t.tid));
        let c = p.may(libc::SYS_rt_tgsigqueueinfo, &[pid.into(), tid.into(), sig.into(), a]);
        soft.add(c, format!("signal {sig} pending for thread {} is lost", t.tid));
    }
}

/// What the processor and the kernel may not do to it, or for it.
fn guards(p: &mut Program, soft: &mut Soft, t: &Thread) {
    let zero = Imm(0);
    let prctl = |p: &mut Program, a: [u64; 3]| p.may(libc::SYS_prctl, &[Imm(a[0]), Imm(a[1]), Imm(a[2]), zero, zero]);
    let mce = t.mce_kill.map_or([PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0], |k| [PR_MCE_KILL, PR_MCE_KILL_SET, k as u64]);
    soft.add(prctl(p, mce), "what a broken page of memory does to it (PR_MCE_KILL) is not as it was");
    if t.io_flusher {
        soft.add(prctl(p, [PR_SET_IO_FLUSHER, 1, 0]), "it is no I/O flusher any more (PR_SET_IO_FLUSHER)");
    }
    for (kind, state) in t.speculation.iter().enumerate().filter(|(k, s)| is_chosen(*k, **s)) {
        let c = prctl(p, [PR_SET_SPECULATION_CTRL, kind as u64, (state & !PR_SPEC_PRCTL) as u64]);
        soft.add(c, format!("its control of speculation ({}) is not as it was", SPECULATION[kind]));
    }
    if t.no_cpuid {
        let c = p.may(libc::SYS_arch_prctl, &[Imm(ARCH_SET_CPUID), zero]);
        soft.add(c, "it may use the CPUID instruction, which was a fault (ARCH_SET_CPUID)");
    }
    if t.no_tsc {
        let c = prctl(p, [libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64, 0]);
        soft.add(c, "it may read the time stamp counter, which was a fault (PR_SET_TSC)");
    }
}

/// A thread has chosen it for itself, other than what is there without a choice: that speculation is off, or flushing on.
fn is_chosen(kind: usize, state: u32) -> bool {
    let chosen = if kind == L1D_FLUSH { PR_SPEC_ENABLE } else { !(PR_SPEC_PRCTL | PR_SPEC_ENABLE) };
    state & PR_SPEC_PRCTL != 0 && state & chosen != 0
}

fn scheduling(p: &mut Program, soft: &mut Soft, t: &Thread, own: &Own) {
    let (policy, priority, nice) = t.sched;
    if policy != own.policy && policy != SCHED_DEADLINE {
        let prio = p.bytes(&priority.to_le_bytes());
        let c = p.may(libc::SYS_sched_setscheduler, &[Imm(0), Imm(policy as u64), prio]);
        soft.add(c, format!("its scheduling policy is not {policy} with priority {priority} as it was"));
    }
    if nice != own.nice {
        soft.add(
            p.may(libc::SYS_setpriority, &[Imm(0), Imm(0), nice.into()]),
            format!("its nice value is not {nice} as it was"),
        );
    }
}

/// What a change of credentials would reset.
pub fn after_creds(p: &mut Program, t: &Thread) {
    if t.pdeathsig != 0 {
        p.may(libc::SYS_prctl, &[Imm(PR_SET_PDEATHSIG), t.pdeathsig.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_choice_of_its_own_is_made_again() {
        // not affected; the whole machine's; left as it is; disabled, for good, until execve; flushing is chosen by ENABLE
        let cases = [([0, 0, 0], 0), ([2, 4, 8], 0), ([3, 3, 8], 0), ([5, 9, 0], 2), ([17, 0, 5], 1), ([0, 0, 3], 1)];
        for (speculation, calls) in cases {
            let (mut p, mut soft) = (Program::new(), Soft::new());
            guards(&mut p, &mut soft, &Thread { speculation, ..Thread::default() });
            assert_eq!(p.len(), 1 + calls, "{speculation:?}");
        }
    }
}
