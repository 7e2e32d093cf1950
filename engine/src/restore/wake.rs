//! Phase wake: every thread is given its registers, extended state and signal mask, the leader unmaps the blob, and all
//! are let go. Until the last process is woken a failure kills all; from then on it is the program.
use super::puppet::Puppet;
use super::{cannot, seccomp, vdso, Image, Step, Tree};
use crate::{spread, Pids, Restored};
use ::image::v1::process::Thread;
use sys::sigframe::Regs;
use sys::tracer::{LastCalls, Rseq, ThreadState, Tracer};

/// Wakes all. If one cannot be, none is left.
pub fn wake(all: &mut [Puppet], tree: &Tree<'_>, mut notes: Vec<String>) -> Step<Restored> {
    let mut last = Vec::with_capacity(all.len());
    for (p, image) in all.iter().zip(&tree.all) {
        let filters = seccomp::prepare(p, image)?;
        let (syscall, unmap) = (vdso::syscall_instruction(p)?, (p.layout.base, p.layout.len));
        let end = image.ended.map(|status| status >> 8 & 0xff);
        last.push(LastCalls { syscall, close: p.sock, filters, unmap, end });
    }
    // all of them stand at their first instruction before any goes on: what can fail, fails here
    let woken = spread::over(all.iter_mut().zip(last), |_, (p, last)| -> Step<()> {
        let tids = p.tids.clone();
        Ok(tracer(p)?.wake(tids, last)?)
    });
    woken.into_iter().flatten().collect::<Step<()>>()?;
    let gone = spread::over(all.iter_mut().zip(&tree.all), |_, (p, image)| -> Step<()> {
        tracer(p)?.let_go(image.process.stopped)?;
        (p.woken, p.tracer) = (true, None);
        Ok(())
    });
    if let Err(e) = gone.into_iter().flatten().collect::<Step<()>>() {
        // those that run already are ours to kill again
        all.iter_mut().for_each(|p| p.woken = false);
        return Err(e);
    }
    let (p, image) = match (all.first_mut(), tree.all.first()) {
        (Some(p), Some(image)) => (p, image),
        _ => return Err(cannot("process tree", "there is no process", "report this")),
    };
    if image.process.stopped {
        notes.push(format!("it was stopped at the checkpoint and is again: kill -CONT {} lets it go on", p.pid));
    }
    if p.pids == Pids::Private {
        notes.push(format!("PID {} in its namespace is PID {} here", image.process.pid, p.pid));
    }
    if p.pids == Pids::Fresh {
        notes.push(format!("PID {} is PID {} now", image.process.pid, p.pid));
    }
    let agent = image.memory.vmas.iter().any(|v| v.start == wire::agent::AGENT_PAGE);
    Ok(Restored { child: p.child, pid: p.pid, status: p.status.take(), pids: p.pids, agent, notes })
}

fn tracer(p: &mut Puppet) -> Step<&mut Tracer> {
    p.tracer.as_mut().ok_or_else(|| cannot("tracer", "there is none", "report this"))
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
