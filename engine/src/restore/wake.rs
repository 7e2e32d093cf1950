//! Phase wake: every thread is given its registers, extended state and signal mask, the leader unmaps the blob, and all
//! are let go. Until then a failure kills the process; from then on it is the program.
use super::puppet::Puppet;
use super::{cannot, seccomp, vdso, Image, Step};
use crate::{Pids, Restored};
use ::image::v1::process::Thread;
use sys::sigframe::Regs;
use sys::tracer::{LastCalls, Rseq, ThreadState};

/// Wakes it.
pub fn wake(mut p: Puppet, image: &Image<'_>, mut notes: Vec<String>) -> Step<Restored> {
    let filters = seccomp::prepare(&p, image)?;
    let (syscall, unmap) = (vdso::syscall_instruction(&p)?, (p.layout.base, p.layout.len));
    let last = LastCalls { syscall, close: p.sock, filters, unmap };
    let Some(mut tracer) = p.tracer.take() else { return Err(cannot("tracer", "there is none", "report this")) };
    if let Err(e) = tracer.wake(p.tids.clone(), last).and_then(|()| tracer.let_go(image.process.stopped)) {
        p.tracer = Some(tracer);
        return Err(e.into());
    }
    p.woken = true;
    if image.process.stopped {
        notes.push(format!("it was stopped at the checkpoint and is again: kill -CONT {} lets it go on", p.pid));
    }
    if p.pids == Pids::Private {
        notes.push(format!("PID {} in its namespace is PID {} here", image.process.pid, p.pid));
    }
    let agent = image.memory.vmas.iter().any(|v| v.start == wire::agent::AGENT_PAGE);
    Ok(Restored { child: p.child, pid: p.pid, status: p.status.take(), pids: p.pids, agent, notes })
}

/// What the tracer gives to each thread.
pub fn states(image: &Image<'_>) -> Vec<ThreadState> {
    let state = |t: &Thread| ThreadState {
        tid: t.tid,
        regs: registers(t),
        sigmask: t.sigmask,
        call_mask: 0,
        xstate: t.xstate.to_vec(),
        rseq: Rseq::default(),
        signal: false,
    };
    image.threads.iter().map(state).collect()
}

fn registers(t: &Thread) -> Regs {
    let w = |i: usize| t.regs.get(i).copied().unwrap_or(0);
    Regs {
        r15: w(0),
        r14: w(1),
        r13: w(2),
        r12: w(3),
        rbp: w(4),
        rbx: w(5),
        r11: w(6),
        r10: w(7),
        r9: w(8),
        r8: w(9),
        rax: w(10),
        rcx: w(11),
        rdx: w(12),
        rsi: w(13),
        rdi: w(14),
        // nothing that the kernel would restart: the registers are already set to issue the call again
        orig_rax: u64::MAX,
        rip: w(16),
        cs: w(17),
        eflags: w(18),
        rsp: w(19),
        ss: w(20),
        fs_base: w(21),
        gs_base: w(22),
        ds: w(23),
        es: w(24),
        fs: w(25),
        gs: w(26),
    }
}
