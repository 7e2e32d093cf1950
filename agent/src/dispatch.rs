//! Syscall User Dispatch (prctl(2), PR_SET_SYSCALL_USER_DISPATCH). In a thread that has it, a call that is not made by the code that it names becomes a
//! SIGSYS, and one from a handler of ours (the way out of it included) would be its end. So before the first thread of a program gets it, the recorder is
//! told that the agent is not to be called any more, and no signal leads here any more: also not one that is on its way. The C library's own prctl
//! and syscall are called from then on, for a program may have named the C library as what may call.
//!
//! A thread that makes that call by an instruction of its own is not seen.
use crate::libc::real;
use crate::{page, triggers};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use wire::agent::{AGENT_DISPATCHED, AGENT_SIGNAL};

/// prctl(2); arch/ has the number, too.
const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const PR_SYS_DISPATCH_OFF: u64 = 0;

/// The C library's syscall(2) once a thread may have it; before that 0.
pub static SYSCALL: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread may have it: then all that calls the kernel in the place of the C library leaves that to the C library.
pub fn begun() -> bool {
    SYSCALL.load(SeqCst) != 0
}

/// Whether a prctl with these first arguments gives it to a thread.
pub fn is_asked(option: u64, how: u64) -> bool {
    option as u32 as u64 == PR_SET_SYSCALL_USER_DISPATCH && how != PR_SYS_DISPATCH_OFF
}

/// This thread is about to ask for it.
pub fn begin() {
    if !page::ready() {
        return;
    }
    page::flags().fetch_or(AGENT_DISPATCHED, SeqCst);
    // a filter might not let it through; then a signal that is sent in this very instant may come too late
    if !page::filtered() {
        triggers::ignore(AGENT_SIGNAL);
        triggers::ignore_all();
    }
    // last: another thread that asks for it meanwhile does all of this itself
    SYSCALL.store(real::syscall.known(), SeqCst);
}
