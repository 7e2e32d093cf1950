//! A thread's state for a new process, from what it said as it came in. Its extended state lies in the signal frame in its own memory.
use crate::mem::RemoteMem;
use crate::sigframe::Regs;
use crate::tracer::{Rseq, ThreadState};
use crate::Result;
use wire::agent::{Arrived, UCONTEXT};
use wire::interrupted::{onward, Onward};

const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
/// Words of `struct ucontext`: the first general register; the extended state's address; the signal mask.
const GREGS: usize = 5;
/// Of those, the segments: cs, gs, fs, ss.
const CSGSFS: usize = 18;
const FPSTATE: usize = 28;
const MASK: usize = 37;
/// Within the extended state (struct _fpx_sw_bytes): its magic, features and bytes; the same place holds XCR0 in ptrace's form.
const SW_BYTES: usize = 464;
const MAGIC: u32 = 0x4650_5853;
/// Bytes of the form without xsave.
const FXSAVE: usize = 512;
/// No machine has more.
const XSTATE_MAX: usize = 64 << 10;

/// An [`Arrived`] from its bytes.
pub(super) fn decode(b: &[u8]) -> Option<Arrived> {
    let b: &[u8; size_of::<Arrived>()] = b.try_into().ok()?;
    let u32_at = |at: usize| b[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let u64_at = |at: usize| b[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let mut context = [0; UCONTEXT / 8];
    for (i, w) in context.iter_mut().enumerate() {
        *w = u64_at(80 + i * 8);
    }
    Some(Arrived {
        tid: u32_at(0) as i32,
        slot: u32_at(4) as i32,
        sock: u32_at(8) as i32,
        flags: u32_at(12),
        fs_base: u64_at(16),
        gs_base: u64_at(24),
        segments: u64_at(32),
        rseq: u64_at(40),
        rseq_len: u32_at(48),
        rseq_sig: u32_at(52),
        call: u64_at(56) as i64,
        base: u64_at(64),
        len: u64_at(72),
        context,
    })
}

/// Registers as ptrace would have shown them at a stop: with the call's number, and what the kernel said of it in rax.
fn regs(a: &Arrived) -> Regs {
    let g = |i: usize| a.context[GREGS + i];
    let segment = |i: u32| a.segments >> (16 * i) & 0xffff;
    let mut r = Regs {
        r8: g(0),
        r9: g(1),
        r10: g(2),
        r11: g(3),
        r12: g(4),
        r13: g(5),
        r14: g(6),
        r15: g(7),
        rdi: g(8),
        rsi: g(9),
        rbp: g(10),
        rbx: g(11),
        rdx: g(12),
        rax: g(13),
        rcx: g(14),
        rsp: g(15),
        rip: g(16),
        eflags: g(17),
        cs: g(CSGSFS) & 0xffff,
        ss: g(CSGSFS) >> 48,
        orig_rax: u64::MAX,
        fs_base: a.fs_base,
        gs_base: a.gs_base,
        ds: segment(0),
        es: segment(1),
        fs: segment(2),
        gs: segment(3),
    };
    if a.call >= 0 {
        let args = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        let code = match onward(a.call, &args) {
            Onward::Return => return r,
            Onward::Again => ERESTARTNOHAND,
            Onward::Resume => ERESTART_RESTARTBLOCK,
            Onward::AgainWhole => r.rax as i64,
        };
        r.orig_rax = a.call as u64;
        r.rax = code as u64;
    }
    r
}

/// Whether it came in from 64-bit code: in no other could a new process, or ptrace, go on with it.
pub(super) fn is_64_bit(a: &Arrived) -> bool {
    const USER_CS: u64 = 0x33; // __USER_CS of arch/x86/include/asm/segment.h
    a.context[GREGS + CSGSFS] & 0xffff == USER_CS
}

/// The whole state. `mem`: memory in which the signal frames are as in the freeze.
pub(super) fn of(a: &Arrived, tid: i32, mem: &RemoteMem) -> Result<ThreadState> {
    Ok(ThreadState {
        tid,
        regs: regs(a),
        sigmask: a.context[MASK],
        call_mask: 0,
        xstate: xstate(a.context[FPSTATE], mem)?,
        rseq: Rseq { addr: a.rseq, size: a.rseq_len, signature: a.rseq_sig, flags: 0 },
        signal: false,
    })
}

/// Extended state in ptrace's form.
fn xstate(at: u64, mem: &RemoteMem) -> Result<Vec<u8>> {
    let mut x = vec![0; FXSAVE];
    mem.read(at, &mut x)?;
    let u32_at = |x: &[u8], i: usize| x[i..i + 4].try_into().map_or(0, u32::from_le_bytes);
    let features: [u8; 8] = x[SW_BYTES + 8..SW_BYTES + 16].try_into().unwrap_or_default();
    let size = u32_at(&x, SW_BYTES + 16) as usize;
    if u32_at(&x, SW_BYTES) == MAGIC && (FXSAVE + 64..=XSTATE_MAX).contains(&size) {
        x.resize(size, 0);
        mem.read(at, &mut x)?;
        x[SW_BYTES..FXSAVE].fill(0);
        x[SW_BYTES..SW_BYTES + 8].copy_from_slice(&features);
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(a: &Arrived) -> Vec<u8> {
        let mut b = Vec::new();
        for w in [a.tid as u32, a.slot as u32, a.sock as u32, a.flags] {
            b.extend_from_slice(&w.to_le_bytes());
        }
        for w in [a.fs_base, a.gs_base, a.segments, a.rseq] {
            b.extend_from_slice(&w.to_le_bytes());
        }
        for w in [a.rseq_len, a.rseq_sig] {
            b.extend_from_slice(&w.to_le_bytes());
        }
        for w in [a.call as u64, a.base, a.len].iter().chain(&a.context) {
            b.extend_from_slice(&w.to_le_bytes());
        }
        b
    }

    fn arrived(call: i64) -> Arrived {
        let mut context = [0; UCONTEXT / 8];
        context.iter_mut().enumerate().for_each(|(i, w)| *w = 100 + i as u64);
        context[GREGS + 13] = -4i64 as u64;
        let (fs_base, gs_base, segments) = (1, 2, 3 << 32);
        let (rseq, rseq_len, rseq_sig, base, len) = (5, 32, 6, 7, 8);
        Arrived {
            tid: 9,
            slot: 0,
            sock: -1,
            flags: 0,
            fs_base,
            gs_base,
            segments,
            rseq,
            rseq_len,
            rseq_sig,
            call,
            base,
            len,
            context,
        }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let a = arrived(35);
        assert_eq!(decode(&words(&a)), Some(a));
        assert_eq!(decode(&words(&a)[1..]), None);
    }

    #[test]
    fn an_interrupted_call_is_what_ptrace_would_have_shown() {
        let sleeping = regs(&arrived(35));
        assert_eq!((sleeping.orig_rax, sleeping.rax as i64, sleeping.fs), (35, ERESTART_RESTARTBLOCK, 3));
        let waiting = regs(&arrived(232));
        assert_eq!((waiting.orig_rax, waiting.rax as i64), (232, -4));
        let running = regs(&arrived(-1));
        assert_eq!((running.orig_rax, running.rax as i64), (u64::MAX, -4));
    }
}
