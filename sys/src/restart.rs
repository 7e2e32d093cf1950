//! Interrupted system calls: what a thread stopped by us must find again (signal(7), KERNEL facts in ARCHITECTURE.md).
//!
//! At a stop the kernel has put one of its restart codes, or EINTR, into rax, and rip is just behind the `syscall`
//! instruction. The one table for thaw, emergency exit and restore is here.
use crate::sigframe::Regs;
use wire::interrupted::{number_in, BEFORE};

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const IO_PGETEVENTS: i64 = 333;
/// Calls that the kernel goes on with by restart_syscall(2), the time left being known to it alone.
const BY_BLOCK: [i64; 4] = [libc::SYS_futex, libc::SYS_clock_nanosleep, libc::SYS_poll, libc::SYS_nanosleep];
/// Bytes of code that tell a call's number: those that are looked at, and `syscall`.
pub const CALL_CODE: usize = BEFORE + 2;
/// Length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// Calls that answer EINTR to a mere stop instead of restarting, with the argument that holds a relative time-out (its
/// whole time starts again) or None. A call on a socket has its time-out, if any, in the socket (SO_RCVTIMEO, SO_SNDTIMEO).
pub const EINTR_CALLS: &[(i64, Option<usize>)] = &[
    (libc::SYS_epoll_wait, Some(3)),
    (libc::SYS_epoll_pwait, Some(3)),
    (libc::SYS_epoll_pwait2, Some(3)),
    (libc::SYS_semop, None),
    (libc::SYS_semtimedop, Some(3)),
    (libc::SYS_rt_sigtimedwait, Some(2)),
    (libc::SYS_io_getevents, Some(4)),
    (IO_PGETEVENTS, Some(4)),
    // a time-out, if any, is in a structure (IORING_ENTER_EXT_ARG)
    (libc::SYS_io_uring_enter, None),
    (libc::SYS_read, None),
    (libc::SYS_readv, None),
    (libc::SYS_write, None),
    (libc::SYS_writev, None),
    (libc::SYS_connect, None),
    (libc::SYS_accept, None),
    (libc::SYS_accept4, None),
    (libc::SYS_recvfrom, None),
    (libc::SYS_recvmsg, None),
    (libc::SYS_recvmmsg, None),
    (libc::SYS_sendto, None),
    (libc::SYS_sendmsg, None),
    (libc::SYS_sendmmsg, None),
    (libc::SYS_sendfile, None),
    (libc::SYS_splice, None),
    (libc::SYS_preadv2, None),
    (libc::SYS_pwritev2, None),
];

/// Whether the registers are those of a call that our stop ended with EINTR.
pub fn is_our_eintr(r: &Regs) -> bool {
    r.rax as i64 == EINTR && EINTR_CALLS.iter().any(|(nr, _)| *nr == r.orig_rax as i64)
}

fn again(r: &Regs) -> Regs {
    Regs { rax: r.orig_rax, rip: r.rip.wrapping_sub(SYSCALL_LEN), orig_rax: u64::MAX, ..*r }
}

/// Whether a thread was stopped as it went on with a call that had been interrupted before, by a checkpoint, a SIGCONT or a debugger: then the
/// registers have restart_syscall(2) in place of that call's number.
pub fn goes_on(r: &Regs) -> bool {
    r.orig_rax as i64 == libc::SYS_restart_syscall && r.rax as i64 == ERESTART_RESTARTBLOCK
}

/// Which call that is; its arguments are still in the registers. `code`: the bytes before the thread's rip, of which the instruction before
/// `syscall` mostly gives the number; where it does not, what the arguments can be decides, if only one call takes them. `word` reads memory.
pub fn gone_on_with(r: &Regs, code: &[u8; CALL_CODE], word: impl Fn(u64) -> Option<u64>) -> Option<i64> {
    if let Some((before, [0x0f, 0x05])) = code.split_first_chunk::<BEFORE>() {
        let told = number_in(before).filter(|nr| BY_BLOCK.contains(nr));
        if told.is_some() {
            return told;
        }
    }
    let timespec =
        |at: u64| word(at).is_some_and(|s| s >> 63 == 0) && word(at + 8).is_some_and(|ns| ns < 1_000_000_000);
    let is_time = |ms: u64| ms != 0 && (ms < 1 << 32 || ms == u64::MAX);
    let waits = matches!(r.rsi & 0x7f, 0 | 9) && r.rsi < 0x200; // FUTEX_WAIT, FUTEX_WAIT_BITSET and their flags
    let can_be = [
        waits && word(r.rdi).is_some() && timespec(r.r10),
        r.rdi < 16 && r.rsi == 0 && timespec(r.rdx),
        // milliseconds, not an address
        r.rsi < 1 << 20 && is_time(r.rdx) && (r.rsi == 0 || word(r.rdi).is_some()),
        timespec(r.rdi) && (r.rsi == 0 || word(r.rsi).is_some()),
    ];
    let mut all = BY_BLOCK.iter().zip(can_be).filter(|(_, can)| *can).map(|(nr, _)| *nr);
    all.next().filter(|_| all.next().is_none())
}

/// The registers with that call's number.
pub fn with_call(r: &Regs, call: Option<i64>) -> Regs {
    call.map_or(*r, |nr| Regs { orig_rax: nr as u64, ..*r })
}

/// Where a call that waits under a signal mask of its own has that mask: an address, and whether the mask's address is what is there.
pub fn mask_of_call(r: &Regs) -> Option<(u64, bool)> {
    let interrupted = r.rax as i64 == ERESTARTNOHAND || is_our_eintr(r);
    let (at, indirect) = match r.orig_rax as i64 {
        libc::SYS_rt_sigsuspend => (r.rdi, false),
        libc::SYS_ppoll => (r.r10, false),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => (r.r8, false),
        libc::SYS_pselect6 | IO_PGETEVENTS => (r.r9, true),
        _ => return None,
    };
    (interrupted && at != 0).then_some((at, indirect))
}

/// Registers of a thread whose interrupted call is issued again, whatever the kernel would do.
pub fn anew(r: &Regs) -> Regs {
    again(r)
}

/// Registers with which a thawed thread goes on: unchanged where the kernel restarts the call itself (which is
/// exact), issued again where it would fail with EINTR because of us. `signal`: an unblocked signal of its own is pending, so
/// that EINTR is the program's.
pub fn for_thaw(r: &Regs, signal: bool) -> Regs {
    if !signal && is_our_eintr(r) {
        return again(r);
    }
    *r
}

/// What a pending, unblocked signal of the program's own makes of the call that it interrupts (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// There is none with a handler.
    None,
    /// Its handler has SA_RESTART.
    Restarts,
    /// Its handler has not.
    Breaks,
}

/// Registers with which a thread goes on that does not come from the kernel's own stop: after rt_sigreturn or in a new
/// process. An interrupted call is issued again, unless a signal's handler ends it; one whose time left only the old
/// process's restart block knew starts its whole time again.
pub fn for_new(r: &Regs, signal: Pending) -> Regs {
    let onward = Regs { orig_rax: u64::MAX, ..*r };
    let eintr = Regs { rax: EINTR as u64, ..onward };
    if (r.orig_rax as i64) < 0 {
        return *r;
    }
    match (r.rax as i64, signal) {
        (ERESTARTSYS, Pending::Breaks) => eintr,
        (ERESTARTNOHAND | ERESTART_RESTARTBLOCK, Pending::Breaks | Pending::Restarts) => eintr,
        (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK, _) => again(r),
        (_, Pending::None) if is_our_eintr(r) => again(r),
        _ => onward,
    }
}

/// The call whose whole time-out starts again in a new process, if that is what [`for_new`] makes of it.
pub fn whole_time_again(r: &Regs) -> Option<i64> {
    let nr = r.orig_rax as i64;
    let relative = |nr: i64| EINTR_CALLS.iter().any(|(n, t)| *n == nr && t.is_some());
    (nr >= 0 && (r.rax as i64 == ERESTART_RESTARTBLOCK || is_our_eintr(r) && relative(nr))).then_some(nr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nr: i64, rax: i64) -> Regs {
        Regs { orig_rax: nr as u64, rax: rax as u64, rip: 0x1002, ..Regs::default() }
    }

    #[test]
    fn a_thaw_leaves_what_the_kernel_restarts() {
        for code in [-512, -513, -514, -516] {
            assert_eq!(for_thaw(&at(libc::SYS_futex, code), false), at(libc::SYS_futex, code));
        }
    }

    #[test]
    fn our_eintr_is_repaired_and_the_programs_own_is_not() {
        let r = at(libc::SYS_epoll_wait, -4);
        let n = for_thaw(&r, false);
        assert_eq!((n.rip, n.rax, n.orig_rax), (0x1000, libc::SYS_epoll_wait as u64, u64::MAX));
        assert_eq!(for_thaw(&r, true), r);
        let pause = at(libc::SYS_pause, -4);
        assert_eq!(for_thaw(&pause, false), pause);
    }

    #[test]
    fn a_new_process_issues_every_interrupted_call_again() {
        for code in [-512, -513, -514, -516] {
            assert_eq!(for_new(&at(libc::SYS_nanosleep, code), Pending::None).rip, 0x1000, "{code}");
        }
        let running = Regs { orig_rax: u64::MAX, rax: -512i64 as u64, rip: 0x1002, ..Regs::default() };
        assert_eq!(for_new(&running, Pending::None), running);
    }

    #[test]
    fn what_is_gone_on_with_is_told_by_code_or_arguments() {
        let code = |last: &[u8]| {
            let mut all = [0; CALL_CODE];
            all[CALL_CODE - last.len()..].copy_from_slice(last);
            all
        };
        let (at, moved) = (at(libc::SYS_restart_syscall, -516), |nr: u8| code(&[0xb8, nr, 0, 0, 0, 0x0f, 0x05]));
        assert!(goes_on(&at) && !goes_on(&Regs { rax: 0, ..at }));
        assert_eq!(gone_on_with(&at, &moved(230), |_| None), Some(230));
        // pthread_cond_timedwait: the private bit is put in between
        let futex = code(&[0xb8, 202, 0, 0, 0, 0x40, 0x80, 0xf6, 0x80, 0x0f, 0x05]);
        assert_eq!(gone_on_with(&at, &futex, |_| None), Some(libc::SYS_futex));
        // memory: one second and a half, nothing else
        const T: u64 = 0x7f00_0000_5000;
        let word = |a: u64| [(T, 1), (T + 8, 500_000_000)].iter().find(|w| w.0 == a).map(|w| w.1);
        let told = |rdi, rsi, rdx, r10| gone_on_with(&Regs { rdi, rsi, rdx, r10, ..at }, &moved(219), word);
        assert_eq!(told(T, 0, 0, 0), Some(libc::SYS_nanosleep));
        assert_eq!(told(1, 0, T, T), Some(libc::SYS_clock_nanosleep));
        assert_eq!(told(T + 8, 0x80, 7, T), None); // a futex's, or a poll's
        assert_eq!(told(T + 8, 0x189, 0, T), Some(libc::SYS_futex));
        assert_eq!(told(T + 8, 1, 900, 0), Some(libc::SYS_poll));
        assert_eq!(told(T + 8, 1, u64::from(u32::MAX), 0), Some(libc::SYS_poll));
        assert_eq!(told(0, 0, 0, 0), None);
        assert_eq!(with_call(&at, Some(7)).orig_rax, 7);
    }

    #[test]
    fn a_pending_signals_handler_ends_what_the_kernel_would_end() {
        let eintr = |code, signal| for_new(&at(libc::SYS_pause, code), signal).rax as i64 == EINTR;
        let ends = |signal| [-512, -513, -514, -516].map(|code| eintr(code, signal));
        assert_eq!(ends(Pending::None), [false; 4]);
        assert_eq!(ends(Pending::Restarts), [false, false, true, true]);
        assert_eq!(ends(Pending::Breaks), [true, false, true, true]);
    }
}
