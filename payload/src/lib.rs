//! The bytes that go into a target: the blob, with its head decoded. Built by build.rs from `wire` and `parasite`.
#![forbid(unsafe_code)]

/// The flat, position-independent blob: goes to any page-aligned address, readable and executable.
pub const BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/blob.bin"));

/// The preloaded agent, a shared object.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent/agent.so"));

/// Tells one build of the agent from another: FNV-1a of its bytes.
pub fn agent_id() -> u64 {
    AGENT.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
}

/// Whether a parked thread's extended state (x87, SSE, AVX, ...) is its own again whenever it is stopped in the blob: build.rs looks
/// for an instruction that would change it. It always is with the compilers tried; with another, only the checkpoint is slower.
pub const PARKED_KEEP_XSTATE: bool = include!(concat!(env!("OUT_DIR"), "/keeps.rs"));

/// Where the blob's entry points are, as offsets from its start.
pub fn head() -> wire::BlobHead {
    let u = |at: usize| u32::from_le_bytes([BLOB[at], BLOB[at + 1], BLOB[at + 2], BLOB[at + 3]]);
    let mut magic = [0; 8];
    magic.copy_from_slice(&BLOB[..8]);
    wire::BlobHead {
        magic,
        serve: u(8),
        thread: u(12),
        syscall_ret: u(16),
        sigreturn: u(20),
        version: u(24),
        leave: u(28),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_threads_touch_no_vector_register() {
        let why =
            "`thread` or `run` in parasite/src/serve.rs has become vector code: see blob.s where cargo builds payload";
        assert_eq!(include_str!(concat!(env!("OUT_DIR"), "/keeps.rs")), "true", "{why}");
    }

    /// Number of `n` bytes at `at` of the agent.
    fn number(at: usize, n: usize) -> usize {
        AGENT[at..at + n].iter().rev().fold(0, |v, b| v << 8 | *b as usize)
    }

    /// Its sections: type, offset, bytes, linked section (elf(5)).
    fn sections() -> Vec<[usize; 4]> {
        let (at, size, n) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
        let one = |s: usize| [number(s + 4, 4), number(s + 0x18, 8), number(s + 0x20, 8), number(s + 0x28, 4)];
        (0..n).map(|i| one(at + i * size)).collect()
    }

    #[test]
    fn the_agent_needs_no_library_and_exports_what_it_interposes() {
        const SHT_DYNAMIC: usize = 6;
        const SHT_DYNSYM: usize = 11;
        const DT_NEEDED: usize = 1;
        let all = sections();
        let dynamic = all.iter().find(|s| s[0] == SHT_DYNAMIC).expect("it is a shared object");
        let needed = (0..dynamic[2] / 16).filter(|i| number(dynamic[1] + i * 16, 8) == DT_NEEDED).count();
        assert_eq!(needed, 0, "NEEDED entries");
        let symbols = all.iter().find(|s| s[0] == SHT_DYNSYM).expect("it has dynamic symbols");
        let names = all[symbols[3]][1];
        let mut exported: Vec<String> = (1..symbols[2] / 24)
            .map(|i| symbols[1] + i * 24)
            .filter(|s| number(s + 6, 2) != 0)
            .map(|s| AGENT[names + number(s, 4)..].iter().take_while(|b| **b != 0).map(|b| *b as char).collect())
            .collect();
        exported.sort();
        let interposed = [
            "__ppoll_chk",
            "epoll_pwait",
            "epoll_pwait2",
            "epoll_wait",
            "execl",
            "execle",
            "execlp",
            "execv",
            "execve",
            "execveat",
            "execvp",
            "execvpe",
            "fexecve",
            "ppoll",
            "prctl",
            "pselect",
            "pthread_create",
            "pthread_sigmask",
            "semtimedop",
            "sigaction",
            "sigaltstack",
            "signal",
            "signalfd",
            "sigprocmask",
            "sigsuspend",
            "sigtimedwait",
            "sigwait",
            "sigwaitinfo",
            "syscall",
        ];
        assert_eq!(exported, interposed);
        assert!(AGENT.len() < 64 << 10, "the agent is {} bytes", AGENT.len());
    }

    #[test]
    fn the_head_is_ours_and_its_entries_lie_inside() {
        let h = head();
        assert_eq!(h.magic, wire::BLOB_MAGIC);
        assert_eq!(h.version, wire::WIRE_VERSION as u32);
        for e in [h.serve, h.thread, h.syscall_ret, h.sigreturn, h.leave] {
            assert!(e >= 32 && (e as usize) < BLOB.len(), "entry {e} of {}", BLOB.len());
        }
        assert_eq!(&BLOB[h.syscall_ret as usize..][..3], &[0x0f, 0x05, 0xc3]);
        assert!(BLOB.len() < 16 << 10, "the blob is {} bytes", BLOB.len());
    }
}
