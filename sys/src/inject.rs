//! The mapping that carries the blob: where everything in it lies, and its first content.
use wire::{Params, Slot, HOMES, HOMES_APART, VISIT, WIRE_VERSION};
pub use wire::{BUFFER, HOME, REQUEST};

/// Name of the mapping, shown in maps as `[anon:dormouse]`.
pub const MAPPING_NAME: &str = "dormouse";
/// Bytes of stack of the serving thread.
const MAIN_STACK: u64 = 16 << 10;
/// Bytes of stack of a parked thread.
const THREAD_STACK: u64 = 1 << 10;
const PAGE: u64 = 4096;

/// Where mappings of ours go in a target: in one whose memory others have, too, there may be several.
pub fn homes() -> impl Iterator<Item = u64> {
    (0..HOMES).map(|nth| HOME + nth * HOMES_APART)
}

/// Whether an address lies where mappings of ours may be.
pub fn is_home(addr: u64) -> bool {
    (HOME..HOME + HOMES * HOMES_APART).contains(&addr)
}

/// Where the parts of the mapping lie.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// Start; page-aligned.
    pub base: u64,
    /// Bytes in all.
    pub len: u64,
    /// Bytes of code at the start (pages); the rest is data.
    pub code: u64,
    /// Number of slots.
    pub slots: u64,
    /// Bytes kept for each frame; slot i's is frame i + 1, the serving thread's is frame 0.
    pub frame_size: u64,
}

fn up(n: u64) -> u64 {
    n.div_ceil(PAGE) * PAGE
}

impl Layout {
    /// For `slots` threads beside the serving one and frames of `frame_size` bytes; base still 0.
    pub fn new(slots: u64, frame_size: u64) -> Layout {
        let mut l = Layout {
            base: 0,
            len: 0,
            code: up(payload::BLOB.len() as u64),
            slots,
            frame_size: frame_size.div_ceil(64) * 64,
        };
        l.len = l.buffer() + BUFFER;
        l
    }

    /// Of a region that an agent has mapped: no code and no frames in it.
    pub fn of_agent(base: u64, len: u64, slots: u64) -> Layout {
        Layout { base, len, code: 0, slots, frame_size: 0 }
    }

    /// The same at another address.
    pub fn at(self, base: u64) -> Layout {
        Layout { base, ..self }
    }

    /// Address of [`Params`].
    pub fn params(&self) -> u64 {
        self.base + self.code
    }

    /// Address of slot `i`.
    pub fn slot(&self, i: u64) -> u64 {
        self.params() + PAGE + i * size_of::<Slot>() as u64
    }

    /// Top of the serving thread's stack.
    pub fn stack(&self) -> u64 {
        self.base + up(self.slot(self.slots) - self.base) + MAIN_STACK
    }

    /// Top of slot `i`'s stack.
    pub fn thread_stack(&self, i: u64) -> u64 {
        self.stack() + (i + 1) * THREAD_STACK
    }

    /// Address of frame `i`.
    pub fn frame(&self, i: u64) -> u64 {
        self.base + up(self.thread_stack(self.slots) - self.base) + i * self.frame_size
    }

    /// Address of the request buffer.
    pub fn request(&self) -> u64 {
        self.base + up(self.frame(self.slots + 1) - self.base)
    }

    /// Bytes for a frame's payload and the results, and for the visits of many threads.
    fn request_len(&self) -> u64 {
        REQUEST + up(self.slots * VISIT)
    }

    /// Address of the programs' data.
    pub fn buffer(&self) -> u64 {
        self.request() + self.request_len()
    }

    /// Whether an address lies in it.
    pub fn contains(&self, a: u64) -> bool {
        (self.base..self.base + self.len).contains(&a)
    }

    /// Entry of the serving thread.
    pub fn serve_entry(&self) -> u64 {
        self.base + payload::head().serve as u64
    }

    /// Entry of a parked thread.
    pub fn thread_entry(&self) -> u64 {
        self.base + payload::head().thread as u64
    }

    /// `rt_sigreturn` inside the blob.
    pub fn sigreturn(&self) -> u64 {
        self.base + payload::head().sigreturn as u64
    }

    /// Leaves through the frame whose address is in rdi, without a stack.
    pub fn leave(&self) -> u64 {
        self.base + payload::head().leave as u64
    }

    /// The parameters' bytes. `addr`: where to connect; or `sock`, already connected. `frame`: whether the serving
    /// thread leaves through frame 0.
    pub fn params_bytes(&self, addr: &[u8], sock: i32, frame: bool, pending: u32) -> Vec<u8> {
        let mut p = Params::ZERO;
        p.version = WIRE_VERSION as u32;
        p.addr_len = addr.len() as u32;
        p.addr[..addr.len()].copy_from_slice(addr);
        p.sock = sock;
        p.frame = if frame { self.frame(0) } else { 0 };
        p.request = self.request();
        p.request_len = self.request_len();
        p.buf = self.buffer();
        p.buf_len = BUFFER;
        p.slots = self.slot(0);
        p.nslots = self.slots;
        p.pending = pending;
        let mut b = Vec::with_capacity(size_of::<Params>());
        b.extend_from_slice(&p.version.to_le_bytes());
        b.extend_from_slice(&p.addr_len.to_le_bytes());
        b.extend_from_slice(&p.addr);
        b.extend_from_slice(&p.sock.to_le_bytes());
        b.extend_from_slice(&p.left.to_le_bytes());
        for v in [p.frame, p.request, p.request_len, p.buf, p.buf_len, p.slots, p.nslots] {
            b.extend_from_slice(&v.to_le_bytes());
        }
        b.extend_from_slice(&p.pending.to_le_bytes());
        b.extend_from_slice(&p.release.to_le_bytes());
        b.extend_from_slice(&p.forking.to_le_bytes());
        b.extend_from_slice(&p.taken.to_le_bytes());
        b.extend_from_slice(&p.visit.to_le_bytes());
        b.extend_from_slice(&p.visit_calls.to_le_bytes());
        b.extend_from_slice(&p.visit_buf.to_le_bytes());
        b.extend_from_slice(&p.turn.to_le_bytes());
        b.extend_from_slice(&p.reserved.to_le_bytes());
        debug_assert_eq!(b.len(), size_of::<Params>());
        b
    }

    /// What lies in it at first, of one that serves on socket `sock`: addresses and bytes. The code is the only part that is not written to.
    pub fn content(&self, sock: i32) -> [(u64, Vec<u8>); 3] {
        let slots = (0..self.slots).flat_map(|i| self.slot_bytes(i, wire::SLOT_IDLE, 0, 0, 0, false)).collect();
        let params = self.params_bytes(&[], sock, false, 0);
        [(self.base, payload::BLOB.to_vec()), (self.params(), params), (self.slot(0), slots)]
    }

    /// A slot's bytes: `calls` and `results` as addresses, its state, and whether it leaves through a frame.
    pub fn slot_bytes(
        &self,
        i: u64,
        state: u32,
        ncalls: u32,
        calls: u64,
        results: u64,
        frame: bool,
    ) -> [u8; size_of::<Slot>()] {
        let mut b = [0; size_of::<Slot>()];
        b[0..4].copy_from_slice(&state.to_le_bytes());
        b[4..8].copy_from_slice(&ncalls.to_le_bytes());
        let frame = if frame { self.frame(i + 1) } else { 0 };
        for (k, v) in [calls, results, frame, self.params(), self.thread_stack(i)].iter().enumerate() {
            b[8 + k * 8..16 + k * 8].copy_from_slice(&v.to_le_bytes());
        }
        b
    }
}
