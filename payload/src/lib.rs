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
