//! The program's seccomp filters, kept for its recorder: the kernel tells them to nobody without CAP_SYS_ADMIN, and a restore has to set them again.
//!
//! No call is made here but the program's own, for an earlier filter might not let it through. What is kept is copied when the kernel has
//! taken the filter, and so has read the very memory. Where two threads set filters at once, their order is not known, and that is said; so is
//! one that has not yet ended by the two counts.
use crate::{dispatch, page, start};
use core::sync::atomic::Ordering::SeqCst;
use parasite::arch::{copy, syscall6};
use wire::agent::{AGENT_FILTERS, AGENT_FILTERS_LEN, AGENT_FILTERS_LOST};

/// prctl(2).
pub const SYS_PRCTL: u64 = 157;
const SYS_SECCOMP: u64 = 317;
const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_FILTER: u64 = 2;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 8;
/// Bytes before each program: instructions and flags.
const HEAD: u64 = 8;

/// prctl(2) or seccomp(2), with its number and arguments; the raw result.
///
/// # Safety
/// As theirs.
pub unsafe extern "C" fn call(nr: u64, a: u64, b: u64, c: u64, d: u64, e: u64) -> i64 {
    let (sets, filter, flags) = match nr {
        SYS_SECCOMP => (a <= SECCOMP_SET_MODE_FILTER, a == SECCOMP_SET_MODE_FILTER, b),
        _ => (a as u32 as u64 == PR_SET_SECCOMP, b == SECCOMP_MODE_FILTER, 0),
    };
    if nr == SYS_PRCTL && dispatch::is_asked(a, b) {
        dispatch::begin();
    }
    // SAFETY: the caller's call; the program is read if the kernel has taken it from there.
    unsafe {
        if !sets || !page::ready() {
            return syscall6(nr, [a, b, c, d, e, 0]);
        }
        // in strict mode every call of ours would be the thread's end: so nobody is to call it from here on. That is its own affair: the others' handlers go on as ever
        if let Some(new) = if filter { None } else { start::block_all_for_good() } {
            let r = syscall6(nr, [a, b, c, d, e, 0]);
            if r != 0 && new != 0 && !page::must_not_call() {
                start::unblock(new);
            }
            return r;
        }
        if page::filters_begun().fetch_add(1, SeqCst) != page::filters_ended().load(SeqCst) {
            page::flags().fetch_or(AGENT_FILTERS_LOST, SeqCst);
        }
        let r = syscall6(nr, [a, b, c, d, e, 0]);
        // a positive result is a listener, or the thread that could not be brought along
        if filter && (r == 0 || r > 0 && flags & SECCOMP_FILTER_FLAG_NEW_LISTENER != 0) {
            keep(c, flags as u32);
        }
        page::filters_ended().fetch_add(1, SeqCst);
        r
    }
}

/// Keeps a `struct sock_fprog`: number of instructions (u16), and at 8 where they are.
///
/// # Safety
/// The kernel has just read it.
unsafe fn keep(program: u64, flags: u32) {
    // SAFETY: the caller's; the room is the agent's own, and nobody else gets the same part of it.
    unsafe {
        let n = (program as *const u16).read_unaligned() as u64;
        let code = ((program + 8) as *const u64).read_unaligned();
        let bytes = n * 8;
        let used = page::filters_used().load(SeqCst) as u64;
        if used + HEAD + bytes > AGENT_FILTERS_LEN {
            page::flags().fetch_or(AGENT_FILTERS_LOST, SeqCst);
            return;
        }
        let at = AGENT_FILTERS + used;
        (at as *mut [u32; 2]).write([n as u32, flags]);
        copy(at + HEAD, code, bytes);
        page::filters_used().store((used + HEAD + bytes) as u32, SeqCst);
    }
}
