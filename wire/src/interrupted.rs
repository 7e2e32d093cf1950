//! System calls that a signal's handler ends with EINTR though it has SA_RESTART (signal(7)): which they are, and how a thread that was called
//! into the agent goes on with its own. (Those that are restarted have their number in rax and rip at the `syscall`
//! instruction already.) The kernel does not tell a handler which call was interrupted: it is found out from the code before
//! the instruction, or from what the recorder saw before it sent the signal.

/// -EINTR.
pub const EINTR: u64 = -4i64 as u64;
/// `restart_syscall`.
pub const RESTART_SYSCALL: i64 = 219;
/// Bytes of code before the `syscall` instruction that [`number_in`] looks at.
pub const BEFORE: usize = 9;

/// How a call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// As the kernel left it.
    Return,
    /// Issued again; the kernel said ERESTARTNOHAND: whatever time was left is in the arguments.
    Again,
    /// Issued again, with its whole time-out if it has one.
    AgainWhole,
    /// Taken up by `restart_syscall`, which knows what time is left.
    Resume,
}

/// How a call with this number and these arguments goes on.
pub fn onward(nr: i64, args: &[u64; 6]) -> Onward {
    match nr {
        // poll, nanosleep, futex, restart_syscall
        7 | 35 | 202 | RESTART_SYSCALL => Onward::Resume,
        // clock_nanosleep: until a time it is issued again, for a time it is resumed
        230 if args[1] & 1 == 0 => Onward::Resume,
        230 => Onward::Again,
        // select, pselect6, ppoll, pause, rt_sigsuspend, msgsnd, msgrcv
        23 | 270 | 271 | 34 | 130 | 69 | 70 => Onward::Again,
        // epoll_wait, epoll_pwait, epoll_pwait2, semop, semtimedop, rt_sigtimedwait, io_getevents, io_pgetevents
        232 | 281 | 441 | 65 | 220 | 128 | 208 | 333 => Onward::AgainWhole,
        // read, readv, write, writev, accept, accept4, recvfrom, recvmsg, recvmmsg, sendto, sendmsg, sendmmsg, sendfile, splice,
        // preadv2, pwritev2: on a socket with a time-out of its own
        0 | 19 | 1 | 20 | 43 | 288 | 45 | 47 | 299 | 44 | 46 | 307 | 40 | 275 | 327 | 328 => Onward::AgainWhole,
        _ => Onward::Return,
    }
}

/// Where a call that waits under a signal mask of its own has that mask: an address, and whether the mask's address is what is there.
pub fn mask_of(nr: i64, args: &[u64; 6]) -> Option<(u64, bool)> {
    let (at, indirect) = match nr {
        130 => (args[0], false),       // rt_sigsuspend
        271 => (args[3], false),       // ppoll
        281 | 441 => (args[4], false), // epoll_pwait, epoll_pwait2
        270 | 333 => (args[5], true),  // pselect6, io_pgetevents
        _ => return None,
    };
    if at == 0 {
        return None;
    }
    Some((at, indirect))
}

/// What tells one call from another of the same instruction.
pub fn fingerprint(sp: u64, args: &[u64; 6]) -> u64 {
    let mix = |h: u64, v: u64| (h ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let [a, b, c, d, e, f] = *args;
    mix(mix(mix(mix(mix(mix(mix(1, sp), a), b), c), d), e), f)
}

/// The number that the code just before a `syscall` instruction loads: `mov eax, NUMBER`, at once or before one instruction that glibc puts
/// between (the private bit of a futex).
pub fn number_in(code: &[u8; BEFORE]) -> Option<i64> {
    let at = match code {
        [_, _, _, _, 0xb8, ..] => 5,
        [0xb8, _, _, _, _, 0x40, 0x80, 0xf6, 0x80 | 0x81] => 1,
        _ => return None,
    };
    let nr = u32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]]);
    if nr < 512 {
        Some(nr as i64)
    } else {
        None
    }
}
