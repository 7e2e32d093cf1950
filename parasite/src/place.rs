//! What only a restore needs: threads and processes with chosen IDs, and the init of a private PID namespace.
use crate::arch::{clone3_process, clone3_thread, fill, syscall6, vfork_call};
use crate::serve::{answer, answer_error, slot, sys3};
use core::mem::size_of;
use wire::*;

const EINVAL: i64 = -22;
const SIGCHLD: u64 = 17;
/// CLONE_VM|VFORK|NEWUSER
const ASIDE_FLAGS: u64 = 0x100 | 0x4000 | 0x1000_0000;
/// wait4 option: only children whose exit signal is not SIGCHLD.
const WCLONE: u64 = 0x8000_0000;
/// CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000;

/// `struct clone_args` of 88 bytes (linux/sched.h), as words.
const CLONE_ARGS: usize = 11;
const CLONE_FILES: u64 = 0x400;
const CLONE_VM: u64 = 0x100;

/// Starts threads that park in their slots.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes.
pub unsafe fn start(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: counts are checked; each slot has a stack of its own, set by the host.
    unsafe {
        let n = h.len as u64 / size_of::<StartThread>() as u64;
        let results = ((*p).request + h.len as u64 + 7) & !7;
        if results + n * 8 > (*p).request + (*p).request_len {
            return answer_error(p, h, EINVAL);
        }
        let mut i = 0;
        while i < n {
            let t =
                core::ptr::read_unaligned(((*p).request + i * size_of::<StartThread>() as u64) as *const StartThread);
            let r = if t.slot as u64 >= (*p).nslots {
                EINVAL
            } else {
                let s = slot(p, t.slot as u64);
                let mut args = [0u64; CLONE_ARGS];
                // the optimiser must see that the kernel reads these
                let a = args.as_mut_ptr();
                fill(a as u64, 0, (CLONE_ARGS * 8) as u64);
                let tid = t.tid;
                a.write_volatile(THREAD_FLAGS);
                // stack and stack_size: any split that ends at the top
                a.add(5).write_volatile((*s).stack - 1024);
                a.add(6).write_volatile(1024);
                if tid != 0 {
                    a.add(8).write_volatile(&raw const tid as u64);
                    a.add(9).write_volatile(1);
                }
                let r = clone3_thread(a, (CLONE_ARGS * 8) as u64, s as u64);
                (*s).tid = r as i32;
                r
            };
            core::ptr::write((results + i * 8) as *mut i64, r);
            i += 1;
        }
        answer(p, h, OP_START, results, (n * 8) as u32)
    }
}

/// Makes a child process that serves on another socket.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes.
pub unsafe fn spawn(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: the child has its own copy of the memory and goes on in the serve loop with the other socket; or it has this memory and serves on a stack and with
    // params of its own, which the host has prepared.
    unsafe {
        if (h.len as usize) < size_of::<SpawnRequest>() {
            return answer_error(p, h, EINVAL);
        }
        let q = core::ptr::read_unaligned((*p).request as *const SpawnRequest);
        let mut args = [0u64; CLONE_ARGS];
        let a = args.as_mut_ptr();
        fill(a as u64, 0, (CLONE_ARGS * 8) as u64);
        let pid = q.pid;
        a.write_volatile(q.shares as u64);
        a.add(4).write_volatile(q.exit_signal as u64);
        if pid != 0 {
            a.add(8).write_volatile(&raw const pid as u64);
            a.add(9).write_volatile(1);
        }
        if q.shares as u64 & CLONE_VM != 0 {
            // any split that ends at the top
            a.add(5).write_volatile(q.stack - 1024);
            a.add(6).write_volatile(1024);
            let r = clone3_process(a, (CLONE_ARGS * 8) as u64, q.entry, q.params);
            return answer(p, h, OP_SPAWN, &raw const r as u64, 8);
        }
        let r = sys3(435, a as u64, (CLONE_ARGS * 8) as u64, 0);
        if r == 0 {
            // in a table that both have it is the caller's
            if q.shares as u64 & CLONE_FILES == 0 {
                sys3(3, (*p).sock as u64, 0, 0);
            }
            (*p).sock = q.sock;
            return true;
        }
        answer(p, h, OP_SPAWN, &raw const r as u64, 8)
    }
}

/// Makes one call in a child that shares this memory, with every capability in a user namespace of its own.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes; the call does to this memory what the host means it to.
pub unsafe fn aside(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: the child is as vfork's; it makes that call and ends.
    unsafe {
        if (h.len as usize) < size_of::<AsideCall>() {
            return answer_error(p, h, EINVAL);
        }
        let q = core::ptr::read_unaligned((*p).request as *const AsideCall);
        let mut r = vfork_call(ASIDE_FLAGS, &raw const q as u64);
        if r > 0 {
            let mut status = 0i32;
            let child = r;
            r = syscall6(61, [child as u64, &raw mut status as u64, WCLONE, 0, 0, 0]);
            if r == child {
                // its exit status is the negated result
                r = if status & 0x7f == 0 { -i64::from(status >> 8 & 0xff) } else { EINVAL };
            }
        }
        answer(p, h, OP_ASIDE, &raw const r as u64, 8)
    }
}

/// Reaps until `child` has ended and no other child is left, then ends. Reports the child's wait status, and signals from it.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes. All signals are blocked.
pub unsafe fn reap(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: wait4, rt_sigtimedwait and write touch this stack only.
    unsafe {
        if (h.len as usize) < size_of::<Reap>() {
            return answer_error(p, h, EINVAL);
        }
        let q = core::ptr::read_unaligned((*p).request as *const Reap);
        sys3(3, (*p).sock as u64, 0, 0);
        let signals = q.signals | 1 << (SIGCHLD - 1);
        loop {
            let mut status = 0i32;
            // __WALL | WUNTRACED | WCONTINUED | WNOHANG
            let r = syscall6(61, [u64::MAX, &raw mut status as u64, 0x4000_000b, 0, 0, 0]);
            if r == q.child as i64 {
                tell(q.status_fd, status);
                // the last one: neither stopped (low byte 0x7f) nor continued (0xffff)
                if status & 0xff != 0x7f && status != 0xffff {
                    sys3(3, q.status_fd as u64, 0, 0);
                }
            }
            if r < 0 {
                sys3(231, 0, 0, 0);
            }
            if r == 0 {
                let mut info = [0u64; 16];
                // the optimiser must see that the kernel writes these
                let i = info.as_mut_ptr();
                fill(i as u64, 0, 128);
                let sig = syscall6(128, [&raw const signals as u64, i as u64, 0, 8, 0, 0]);
                // si_pid
                let from = (i.add(2).read_volatile() & 0xffff_ffff) as i32;
                if sig > 0 && sig != SIGCHLD as i64 && from == q.child {
                    tell(q.status_fd, REAP_SIGNAL | sig as i32);
                }
            }
        }
    }
}

/// Writes four bytes.
///
/// # Safety
/// None: the kernel checks the descriptor.
unsafe fn tell(fd: i32, word: i32) {
    let mut off = 0u64;
    while off < 4 {
        // SAFETY: the word is on this stack.
        let w = unsafe { sys3(1, fd as u64, &raw const word as u64 + off, 4 - off) };
        if w <= 0 {
            break;
        }
        off += w as u64;
    }
}
