//! The snapshot child: a copy-on-write copy of the frozen memory that holds no descriptor, is in a session of its
//! own and is never seen by `wait` or as SIGCHLD.
use crate::arch::{syscall6, vfork_middle};
use crate::serve::{answer, connect, converse, sys3};
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use wire::*;

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_VFORK: u64 = 0x4000;
/// wait4 option: only children whose exit signal is not SIGCHLD.
const WCLONE: u64 = 0x8000_0000;
const SYS_PRCTL: u64 = 157;
const PR_SET_CHILD_SUBREAPER: u64 = 36;

/// Makes the child and answers with its PID.
///
/// The descriptor table is shared at the clone (CLONE_FILES) and left by close_range(CLOSE_RANGE_UNSHARE), so that
/// there is no moment in which the child holds a peer's pipe open. The process between the two leaves it, and the session: the program may run on, execute another
/// program, end or kill its group before the child runs at all.
///
/// # Safety
/// `p` is the host's [`Params`], the request buffer holds `h.len` bytes.
pub unsafe fn fork(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: the request is read only if it is complete; `Params` lies in the mapping; the clones are those of vfork and fork.
    unsafe {
        let subreaper = h.len as usize >= size_of::<ForkRequest>() && *((*p).request as *const u32) != 0;
        // said before and taken back after: if the tracer takes this thread out in between, it knows what to finish
        let forking = &*(&raw const (*p).forking as *const AtomicU32);
        forking.store(if subreaper { FORKING | SUBREAPER_ASIDE } else { FORKING }, SeqCst);
        if subreaper {
            sys3(SYS_PRCTL, PR_SET_CHILD_SUBREAPER, 0, 0);
        }
        let mut pid: i64 = -22;
        let middle = vfork_middle(
            CLONE_VM | CLONE_VFORK | CLONE_FILES,
            CLONE_FILES,
            child as *const () as u64,
            p as u64,
            &raw mut pid,
        );
        if middle < 0 {
            pid = middle;
        } else {
            syscall6(61, [middle as u64, 0, WCLONE, 0, 0, 0]);
        }
        if subreaper {
            // not before the middle has ended: we run again when it has left our memory, and only then is its child given away
            sys3(SYS_PRCTL, PR_SET_CHILD_SUBREAPER, 1, 0);
        }
        forking.store(0, SeqCst);
        let reply = ForkReply { pid };
        answer(p, h, OP_FORK, &raw const reply as u64, size_of::<ForkReply>() as u32)
    }
}

/// Body of the child: lead a session of its own, connect to the recorder and serve it until it closes the connection. What it
/// runs for it happens to this process only: the program never sees it.
unsafe extern "C" fn child(p: *mut Params) -> ! {
    // SAFETY: the memory is this process's own copy.
    unsafe {
        sys3(112, 0, 0, 0);
        if connect(p) >= 0 {
            converse(p);
        }
        loop {
            sys3(231, 0, 0, 0);
        }
    }
}
