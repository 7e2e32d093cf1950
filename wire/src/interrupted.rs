//! System calls that a signal's handler ends with EINTR though it has SA_RESTART (signal(7)): which they are, and how a thread that was called
//! into the agent goes on with its own. (Those that are restarted have their number in rax and rip at the `syscall`
//! instruction already.) The kernel does not tell a handler which call was interrupted: it is found out from the code before
//! the instruction, or from what the recorder saw before it sent the signal.

/// -EINTR.
pub const EINTR: u64 = -4i64 as u64;
/// `restart_syscall`.
pub const RESTART_SYSCALL: i64 = 219;
/// Bytes of code before the `syscall` instruction that [`number_in`] looks at.
pub const BEFORE: usize = 24;

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
        // and io_uring_enter, which says so only if it has submitted nothing (io_uring/io_uring.c)
        232 | 281 | 441 | 65 | 220 | 128 | 208 | 333 | 426 => Onward::AgainWhole,
        // connect, read, readv, write, writev, accept, accept4, recvfrom, recvmsg, recvmmsg, sendto, sendmsg, sendmmsg, sendfile, splice,
        // preadv2, pwritev2: on a socket with a time-out of its own
        42 | 0 | 19 | 1 | 20 | 43 | 288 | 45 | 47 | 299 | 44 | 46 | 307 | 40 | 275 | 327 | 328 => Onward::AgainWhole,
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
        // io_uring_enter: with IORING_ENTER_EXT_ARG the first word of a structure
        426 => (args[4], args[3] & 8 != 0),
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

/// The number that the code just before a `syscall` instruction loads: `mov eax, NUMBER`, with nothing behind it but what C libraries put
/// there: arguments taken from the stack or another register, the private bit of a futex.
pub fn number_in(code: &[u8; BEFORE]) -> Option<i64> {
    let byte = |at: usize| code.get(at).copied().unwrap_or(0);
    let mut at = BEFORE - 5;
    while at > 0 {
        // b8 behind 8b or 8d belongs to that instruction: `mov` or `lea` with a displacement
        let begins = byte(at) == 0xb8 && !matches!(byte(at - 1), 0x8b | 0x8d);
        if begins && byte(at + 2) < 2 && byte(at + 3) == 0 && byte(at + 4) == 0 && keeps_eax(code, at + 5) {
            return Some(i64::from(byte(at + 1)) | i64::from(byte(at + 2)) << 8);
        }
        at -= 1;
    }
    None
}

/// Whether the code from `at` on is whole instructions of the few kinds that are known, none of which changes eax.
fn keeps_eax(code: &[u8; BEFORE], mut at: usize) -> bool {
    let byte = |at: usize| code.get(at).copied().unwrap_or(0);
    while at < BEFORE {
        let rex = if byte(at) & 0xf0 == 0x40 { byte(at) } else { 0 };
        let op = at + usize::from(rex != 0);
        let modrm = byte(op + 1);
        let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7 | rex << 1 & 8, modrm & 7 | rex << 3 & 8);
        let len = match byte(op) {
            // mov reg, [rsp] and mov reg, [rsp + N]
            0x8b if mode < 2 && rm == 4 && byte(op + 2) == 0x24 && reg != 0 => 3 + usize::from(mode),
            // mov reg, reg; xor reg, reg
            0x89 | 0x31 if mode == 3 && rm != 0 => 2,
            // xor sil, N
            0x80 if rex == 0x40 && modrm == 0xf6 => 3,
            _ => return false,
        };
        at = op + len;
    }
    at == BEFORE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tail: &[u8]) -> Option<i64> {
        let mut code = [0x90; BEFORE];
        code[BEFORE - tail.len()..].copy_from_slice(tail);
        number_in(&code)
    }

    #[test]
    fn what_c_libraries_put_before_the_instruction_is_understood() {
        assert_eq!(told(&[0xb8, 0xe8, 0, 0, 0]), Some(232));
        // glibc's epoll_pwait and epoll_pwait2 in a program with threads: mov edi, [rsp + 4]
        assert_eq!(told(&[0xb8, 0x19, 1, 0, 0, 0x8b, 0x7c, 0x24, 4]), Some(281));
        assert_eq!(told(&[0xb8, 0xb9, 1, 0, 0, 0x8b, 0x7c, 0x24, 8]), Some(441));
        // recvfrom: mov rdx, [rsp + 16]; mov rsi, [rsp + 8]
        assert_eq!(told(&[0xb8, 45, 0, 0, 0, 0x48, 0x8b, 0x54, 0x24, 16, 0x48, 0x8b, 0x74, 0x24, 8]), Some(45));
        assert_eq!(told(&[0xb8, 202, 0, 0, 0, 0x40, 0x80, 0xf6, 0x80]), Some(202));
        assert_eq!(told(&[0xb8, 0x64, 0, 0, 0, 0x48, 0x8b, 0x34, 0x24]), Some(100));
    }

    #[test]
    fn what_may_be_something_else_is_not() {
        // mov edi, [rax + 5] and lea rdi, [rax + 5] with a long displacement
        assert_eq!(told(&[0x8b, 0xb8, 5, 0, 0, 0]), None);
        assert_eq!(told(&[0x48, 0x8d, 0xb8, 5, 0, 0, 0]), None);
        // eax changed after it: mov eax, [rsp + 8]; mov eax, edx; xor eax, eax
        assert_eq!(told(&[0xb8, 5, 0, 0, 0, 0x8b, 0x44, 0x24, 8]), None);
        assert_eq!(told(&[0xb8, 5, 0, 0, 0, 0x89, 0xd0]), None);
        assert_eq!(told(&[0xb8, 5, 0, 0, 0, 0x31, 0xc0]), None);
        // no call has that number; half an instruction
        assert_eq!(told(&[0xb8, 5, 2, 0, 0]), None);
        assert_eq!(told(&[0xb8, 5, 0, 0, 0, 0x8b, 0x7c]), None);
        assert_eq!(told(&[]), None);
    }
}
