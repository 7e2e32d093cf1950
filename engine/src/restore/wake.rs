//! Phase wake: every thread is given its registers, extended state and signal mask, the leader unmaps the blob, and all
//! are let go. Until then a failure kills the process; from then on it is the program.
use super::puppet::Puppet;
use super::{cannot, vdso, Image, Step};
use crate::{Pids, Restored};
use ::image::v1::process::Thread;
use sys::program::{Arg::Imm, Program};
use sys::sigframe::{self, Regs};
use sys::tracer::{LastCalls, Rseq, ThreadState};

const FUTEX_WAKE_PRIVATE: u64 = 129;
/// XCR0 bit of AMX tiles.
const TILE_DATA: u64 = 1 << 18;

/// Wakes it.
pub fn wake(mut p: Puppet, image: &Image<'_>, mut notes: Vec<String>) -> Step<Restored> {
    let last =
        LastCalls { syscall: vdso::syscall_instruction(&p)?, close: p.sock, unmap: (p.layout.base, p.layout.len) };
    let by_frame = leaves_by_frames(image);
    let states = if by_frame { &image.threads[..1] } else { &image.threads[..] };
    let states = states.iter().zip(&p.tids).map(|(t, tid)| state(t, *tid)).collect();
    let left = if by_frame { p.tids[1..].to_vec() } else { Vec::new() };
    if by_frame {
        send_others(&mut p, image)?;
    }
    let Some(mut tracer) = p.tracer.take() else { return Err(cannot("tracer", "there is none", "report this")) };
    if let Err(e) = tracer.wake(states, left, last).and_then(|()| tracer.let_go(false)) {
        p.tracer = Some(tracer);
        return Err(e.into());
    }
    p.woken = true;
    if p.pids == Pids::Private {
        notes.push(format!("PID {} in its namespace is PID {} here", image.process.pid, p.pid));
    }
    Ok(Restored { child: p.child, pid: p.pid, status: p.status.take(), pids: p.pids, notes })
}

/// Whether the threads but the leader can leave the blob by `rt_sigreturn`, which is many times faster than ptrace. A frame
/// holds no segment selectors and no AMX tiles, and that they are gone cannot be seen in a process that is not dumpable.
pub fn leaves_by_frames(image: &Image<'_>) -> bool {
    let plain = |t: &Thread| t.regs[23..27] == [0; 4] && image.meta.xfeatures & TILE_DATA == 0;
    image.process.dumpable == 1 && image.threads.iter().all(plain)
}

/// Bytes of the largest frame.
pub fn frame_size(image: &Image<'_>) -> u64 {
    if !leaves_by_frames(image) {
        return 0;
    }
    image.threads.iter().map(|t| sigframe::size(xstate(t).len())).max().unwrap_or(0) as u64
}

/// Sends all threads but the leader through their frames.
fn send_others(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let others = &image.threads[1..];
    if others.is_empty() {
        return Ok(());
    }
    let l = p.layout;
    let (mut frames, mut slots) = (Vec::new(), Vec::new());
    for (i, t) in others.iter().enumerate() {
        let at = l.frame(i as u64 + 1);
        let mut f = sigframe::build(at, l.sigreturn(), &registers(t), t.sigmask, &xstate(t));
        f.resize(l.frame_size as usize, 0);
        frames.extend_from_slice(&f);
        slots.extend_from_slice(&l.slot_bytes(i as u64, wire::SLOT_LEAVE, 0, 0, 0, true));
    }
    p.mem.write(l.frame(1), &frames)?;
    p.mem.write(l.slot(0), &slots)?;
    let mut prog = Program::new();
    for i in 0..others.len() as u64 {
        // the state is the slot's first field
        prog.may(libc::SYS_futex, &[Imm(l.slot(i)), Imm(FUTEX_WAKE_PRIVATE), Imm(1)]);
    }
    p.run(&prog).map(drop)
}

/// Extended state for a frame: not longer than what this kernel takes from one.
fn xstate(t: &Thread) -> Vec<u8> {
    let mut x = t.xstate.to_vec();
    if let Some(most) = sys::nest::frame_xstate() {
        x.truncate(most);
    }
    x
}

/// A thread's state, as the tracer sets it.
fn state(t: &Thread, tid: i32) -> ThreadState {
    let (regs, xstate) = (registers(t), t.xstate.to_vec());
    ThreadState { tid, regs, sigmask: t.sigmask, xstate, rseq: Rseq::default(), signal: false }
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
