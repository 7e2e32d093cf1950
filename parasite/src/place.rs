//! What only a restore needs: threads and processes with chosen IDs, and the init of a private PID namespace.
use crate::arch::{clone3_thread, fill, syscall6};
use crate::serve::{answer, slot, sys3};
use core::mem::size_of;
use wire::*;

const EINVAL: i64 = -22;
const ECHILD: i64 = -10;
/// CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000;

/// `struct clone_args` of 88 bytes (linux/sched.h), as words.
const CLONE_ARGS: usize = 11;

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
            return false;
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
    // SAFETY: the child has its own copy of the memory and goes on in the serve loop with the other socket.
    unsafe {
        if (h.len as usize) < size_of::<SpawnRequest>() {
            return false;
        }
        let q = core::ptr::read_unaligned((*p).request as *const SpawnRequest);
        let mut args = [0u64; CLONE_ARGS];
        let a = args.as_mut_ptr();
        fill(a as u64, 0, (CLONE_ARGS * 8) as u64);
        let pid = q.pid;
        a.add(4).write_volatile(q.exit_signal as u64);
        if pid != 0 {
            a.add(8).write_volatile(&raw const pid as u64);
            a.add(9).write_volatile(1);
        }
        let r = sys3(435, a as u64, (CLONE_ARGS * 8) as u64, 0);
        if r == 0 {
            sys3(3, (*p).sock as u64, 0, 0);
            (*p).sock = q.sock;
            return true;
        }
        answer(p, h, OP_SPAWN, &raw const r as u64, 8)
    }
}

/// Reaps until `child` has ended and no other child is left, then ends. Reports the child's wait status.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes.
pub unsafe fn reap(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: wait4 and write touch this stack only.
    unsafe {
        if (h.len as usize) < size_of::<Reap>() {
            return false;
        }
        let q = core::ptr::read_unaligned((*p).request as *const Reap);
        sys3(3, (*p).sock as u64, 0, 0);
        loop {
            let mut status = 0i32;
            // __WALL | WUNTRACED | WCONTINUED
            let r = syscall6(61, [u64::MAX, &raw mut status as u64, 0x4000_000a, 0, 0, 0]);
            if r == q.child as i64 {
                let mut off = 0u64;
                while off < 4 {
                    let w = sys3(1, q.status_fd as u64, &raw const status as u64 + off, 4 - off);
                    if w <= 0 {
                        break;
                    }
                    off += w as u64;
                }
                // the last one: neither stopped (low byte 0x7f) nor continued (0xffff)
                if status & 0xff != 0x7f && status != 0xffff {
                    sys3(3, q.status_fd as u64, 0, 0);
                }
            }
            if r == ECHILD {
                sys3(231, 0, 0, 0);
            }
        }
    }
}
