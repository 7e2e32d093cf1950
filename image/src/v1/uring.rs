//! Rings of io_uring(7) with no request in flight.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A ring. Mappings of it have [`super::memory::BACKING_URING`], and its inode in `share`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uring {
    /// Identity within the image.
    pub ino: u64,
    /// Entries of the submission queue.
    pub sq_entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// IORING_SETUP_ bits that could be told.
    pub flags: u32,
    /// Where things lie in its memory: `struct io_sqring_offsets` up to `array`, then `struct io_cqring_offsets` up to `flags`. The program knows.
    pub offsets: Vec<u32>,
    /// Head and tail of the submission queue, and tail of the completion queue: as many requests as it has had, modulo 2^32.
    pub done: u32,
    /// Head of the completion queue: what lies before `done` has yet to be read.
    pub cq_head: u32,
    /// Flags of the completion queue (IORING_CQ_EVENTFD_DISABLED).
    pub cq_flags: u32,
    /// Requests whose index made no sense.
    pub dropped: u32,
    /// Completions that were lost.
    pub overflow: u32,
    /// The indices of the submission queue; empty: it has none (IORING_SETUP_NO_SQARRAY).
    pub array: ByteBuf,
    /// All entries of the submission queue, also those that were not submitted yet.
    pub sqes: ByteBuf,
    /// All entries of the completion queue.
    pub cqes: ByteBuf,
    /// Registered buffers: address and bytes; zeros: an empty place.
    pub buffers: Vec<(u64, u64)>,
    /// The thread that it belongs to (IORING_SETUP_SINGLE_ISSUER): its TID as the program knows it; 0: it belongs to none.
    pub owner: i32,
    /// Registered files: a descriptor for each place; -1: an empty one.
    pub files: Vec<i32>,
    /// The CPU of the kernel's thread that submits, with IORING_SETUP_SQ_AFF.
    pub cpu: u32,
}
