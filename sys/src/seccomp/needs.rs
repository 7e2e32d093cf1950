//! The calls that our own code inside a target makes whatever it is asked to do, for [`super::Judge`]. A call that is added to
//! parasite/ or agent/ is added here: a test reads their sources.
use super::Args;
use libc::*;

/// A call with these arguments, the rest being unknown.
fn with(nr: i64, known: &[(usize, u64)]) -> (i64, Args) {
    let mut args = [None; 6];
    known.iter().for_each(|(i, v)| args[*i] = Some(*v));
    (nr, args)
}

/// A call with any arguments.
fn any(nr: i64) -> (i64, Args) {
    (nr, [None; 6])
}

const FUTEX_WAIT_PRIVATE: u64 = 128;
const FUTEX_WAKE_PRIVATE: u64 = 129;
const STREAM: u64 = (SOCK_STREAM | SOCK_CLOEXEC) as u64;
const PR_SET_VMA: u64 = 0x5356_4d41;
const CHILD: u64 = CLONE_FILES as u64;
const MIDDLE: u64 = (CLONE_VM | CLONE_VFORK | CLONE_FILES) as u64;
const READ_WRITE: u64 = (PROT_READ | PROT_WRITE) as u64;

/// Without these nobody comes out again: waiting, leaving, and what the kernel goes on with after a stop (poll, nanosleep and kin).
pub fn essential() -> Vec<(i64, Args)> {
    vec![
        with(SYS_futex, &[(1, FUTEX_WAIT_PRIVATE)]),
        with(SYS_futex, &[(1, FUTEX_WAKE_PRIVATE)]),
        any(SYS_rt_sigreturn),
        any(SYS_restart_syscall),
    ]
}

/// The conversation with the recorder.
pub fn conversation() -> Vec<(i64, Args)> {
    vec![
        with(SYS_socket, &[(0, 1), (1, STREAM), (2, 0)]),
        any(SYS_connect),
        any(SYS_recvfrom),
        with(SYS_sendto, &[(4, 0), (5, 0)]),
        any(SYS_close),
    ]
}

/// The way in and out by ptrace.
pub fn attach() -> Vec<(i64, Args)> {
    vec![
        with(SYS_mmap, &[(0, wire::HOME), (2, (PROT_READ | PROT_EXEC) as u64), (3, 0x4022), (5, 0)]),
        with(SYS_mprotect, &[(2, READ_WRITE)]),
        with(SYS_prctl, &[(0, PR_SET_VMA), (1, 0)]),
        any(SYS_munmap),
        with(SYS_rt_sigaction, &[(1, 0), (3, 8)]),
    ]
}

/// The agent's handler.
pub fn agent() -> Vec<(i64, Args)> {
    vec![
        with(SYS_mmap, &[(0, wire::HOME), (2, READ_WRITE), (5, 0)]),
        with(SYS_prctl, &[(0, PR_SET_VMA), (1, 0)]),
        any(SYS_munmap),
        with(SYS_getsockopt, &[(1, SOL_SOCKET as u64), (2, SO_PEERCRED as u64)]),
        any(SYS_geteuid),
        any(SYS_getpid),
        with(SYS_clock_gettime, &[(0, CLOCK_MONOTONIC as u64)]),
        with(SYS_arch_prctl, &[(0, 0x1003)]),
        with(SYS_arch_prctl, &[(0, 0x1004)]),
        any(SYS_rseq),
        any(SYS_rt_sigpending),
        with(SYS_rt_sigaction, &[(1, 0), (3, 8)]),
        any(SYS_sigaltstack),
        with(SYS_rt_sigprocmask, &[(0, SIG_SETMASK as u64), (2, 0), (3, 8)]),
    ]
}

/// What the handler does without where it is not let through.
pub fn agent_may() -> Vec<(i64, Args)> {
    vec![any(SYS_process_vm_readv)]
}

/// The snapshot child: what makes it, and what it does. Where it is not let through, there is none.
pub fn fork(subreaper: bool) -> Vec<(i64, Args)> {
    let mut all = vec![
        with(SYS_clone, &[(0, MIDDLE), (1, 0), (2, 0), (3, 0), (4, 0)]),
        with(SYS_clone, &[(0, CHILD), (1, 0), (2, 0), (3, 0), (4, 0)]),
        with(SYS_exit, &[(0, 0)]),
        with(SYS_exit_group, &[(0, 0)]),
        any(SYS_wait4),
        with(SYS_close_range, &[(0, 0), (1, u32::MAX as u64), (2, 2)]),
        any(SYS_setsid),
    ];
    if subreaper {
        all.extend([0, 1].map(|on| with(SYS_prctl, &[(0, PR_SET_CHILD_SUBREAPER as u64), (1, on)])));
    }
    all.extend(conversation());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Their own ends, where the program is to be killed by a signal (tgkill); who is there is asked with any request (getpid, above).
    const NOT_IN_A_CHECKPOINT: [i64; 2] = [SYS_tgkill, SYS_gettid];

    /// Numbers of calls in a source: constants SYS_..., and numbers where a call is made.
    fn numbers(source: &str) -> BTreeSet<i64> {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let number = |s: &str| {
            let digits: String = s.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<i64>().ok()
        };
        let mut all = BTreeSet::new();
        for line in code.lines().map(str::trim) {
            if let Some((_, n)) = line.strip_prefix("const SYS_").and_then(|l| l.split_once(" = ")) {
                all.extend(number(n));
            }
            for call in ["sys3(", "syscall6(", "\"mov eax, ", "\"mov rax, "] {
                all.extend(line.split(call).skip(1).filter_map(number));
            }
        }
        all
    }

    #[test]
    fn every_call_of_the_agents_and_the_blobs_is_listed() {
        let sources = [
            include_str!("../../../agent/src/handler.rs"),
            include_str!("../../../agent/src/context.rs"),
            include_str!("../../../agent/src/deadline.rs"),
            include_str!("../../../agent/src/arch/x86_64.rs"),
            include_str!("../../../parasite/src/serve.rs"),
            include_str!("../../../parasite/src/snapshot.rs"),
            include_str!("../../../parasite/src/arch/x86_64.rs"),
        ];
        let all = [essential(), conversation(), attach(), agent(), agent_may(), fork(true)].concat();
        let listed: BTreeSet<i64> = all.iter().map(|c| c.0).chain(NOT_IN_A_CHECKPOINT).collect();
        let made: BTreeSet<i64> = sources.iter().flat_map(|s| numbers(s)).collect();
        assert!(made.len() > 20, "the sources are not read as they should be: {made:?}");
        let missing: Vec<String> = made.difference(&listed).map(|n| crate::syscalls::name(*n)).collect();
        assert!(missing.is_empty(), "not listed: {missing:?}");
    }
}
