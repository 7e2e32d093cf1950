//! Page packs: files of pages, and nothing but pages.
//!
//! A pack is a header block of one page, then frames of at most 256 pages each, then the index
//! of the frames, then a footer. With [`Compression::None`] the frames are the pages themselves,
//! so page `p` lies at byte `4096 * (1 + p)` and the file can be mapped. `FORMAT.md` has the tables.

mod frame;
mod reader;
mod sink;
mod writer;

pub use frame::{Decoder, Method};
pub use reader::{Frame, PackReader};
pub use writer::{PackInfo, PackSync, PackWriter};

/// Length of the header block in bytes. The first frame starts here.
pub const PACK_HEADER_LEN: usize = 4096;
/// Offset in the header block of the pack's ID (16 bytes), after the common header.
pub const OFFSET_ID: usize = 64;
/// Offset of the pack's flags (u32).
pub const OFFSET_PACK_FLAGS: usize = 80;
/// Offset of the CRC-32C (u32) of the block's bytes before it.
pub const OFFSET_BLOCK_CRC: usize = 4092;
/// Flag: every frame is raw, so pages lie page-aligned and the file can be mapped.
pub const FLAG_MAPPABLE: u32 = 1;

/// Most pages in a frame (1 MiB).
pub const FRAME_PAGES: usize = 256;
/// Most bytes in a frame before compression.
pub const FRAME_LEN: usize = FRAME_PAGES * crate::PAGE_SIZE;

/// Length of an index entry in bytes.
pub const ENTRY_LEN: usize = 24;
/// Offset in an index entry of the frame's offset in the file (u64).
pub const ENTRY_OFFSET: usize = 0;
/// Offset of the frame's length as stored, in bytes (u32).
pub const ENTRY_STORED: usize = 8;
/// Offset of the frame's number of pages (u32).
pub const ENTRY_PAGES: usize = 12;
/// Offset of the CRC-32C (u32) of the frame's stored bytes.
pub const ENTRY_CRC: usize = 16;
/// Offset of the frame's [`Method`] (u32).
pub const ENTRY_METHOD: usize = 20;

/// Length of the footer in bytes.
pub const FOOTER_LEN: usize = 80;
/// The footer's first 8 bytes.
pub const FOOTER_MAGIC: [u8; 8] = *b"DRMPKEND";
/// Offset in the footer of the index's offset in the file (u64).
pub const FOOTER_INDEX: usize = 8;
/// Offset of the number of frames (u64).
pub const FOOTER_FRAMES: usize = 16;
/// Offset of the number of pages (u64).
pub const FOOTER_PAGES: usize = 24;
/// Offset of the index's CRC-32C (u32).
pub const FOOTER_INDEX_CRC: usize = 32;
/// Offset of the BLAKE3 hash (32 bytes) of every byte of the file before it.
pub const FOOTER_HASH: usize = 40;
/// Offset of the CRC-32C (u32) of the footer's bytes before it.
pub const FOOTER_CRC: usize = 76;

/// How the frames of a new pack are compressed. A frame that does not shrink is stored raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the pack can be mapped.
    None,
    /// LZ4: fastest.
    Lz4,
    /// Zstandard at this level (negative levels are its fast ones).
    Zstd(i32),
    /// LZ4 for the first [`SOON`] frames, Zstandard at this level from there on.
    SoonThenSmall(i32),
}

/// Frames of a pack for which time counts more than size: a pack that ends before is complete sooner, and restored sooner.
pub const SOON: u64 = 128;
/// Bytes in each of those before compression (together 32 MiB): the first is being compressed sooner and the last for less long, and what
/// they pass through is used again while the CPU's caches have it.
const SOON_LEN: usize = 256 << 10;

impl Default for Compression {
    /// LZ4, then Zstandard at level 1. Of a Python server's 10 MB, LZ4 takes 20 ms of one core and leaves 3.5 MB, Zstandard
    /// 43 ms and 2.4 MB, and LZ4 is unpacked 3.5 times as fast. On 212 MB of a CPython heap (2 cores) Zstandard writes as fast
    /// as LZ4, since the disk counts by then, and half as many bytes (ratio 7.0 against 3.7).
    fn default() -> Compression {
        Compression::SoonThenSmall(1)
    }
}

impl Compression {
    /// How the `n`th frame is to be compressed.
    fn of_frame(self, n: u64) -> Compression {
        match self {
            Compression::SoonThenSmall(_) if n < SOON => Compression::Lz4,
            Compression::SoonThenSmall(level) => Compression::Zstd(level),
            all => all,
        }
    }

    /// Bytes of the `n`th frame before compression, unless it is the last.
    fn len_of_frame(self, n: u64) -> usize {
        match self {
            Compression::SoonThenSmall(_) if n < SOON => SOON_LEN,
            _ => FRAME_LEN,
        }
    }
}

/// True if `id` is the ID of a pack: 32 lower-case hex digits, and so safe in a path.
pub fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The hex text of an ID's bytes.
pub(crate) fn id_text(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
