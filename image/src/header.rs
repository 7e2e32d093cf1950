//! The fixed-byte header every file of ours starts with: readable by every build, for ever.
//!
//! It is encoded by hand and outside any encoder, so that a build that cannot read the rest can
//! still say by name what the file is and who wrote it. Its layout never changes; a change that
//! old builds cannot read raises the major number.

use std::path::Path;

use crate::error::{damaged, truncated, ImageError, Result};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// Offset of the magic (8 bytes).
pub const OFFSET_MAGIC: usize = 0;
/// Offset of the major format number (u16, little-endian like every number here).
pub const OFFSET_MAJOR: usize = 8;
/// Offset of the minor format number (u16).
pub const OFFSET_MINOR: usize = 10;
/// Offset of the architecture (u16, the ELF `e_machine` number).
pub const OFFSET_ARCH: usize = 12;
/// Offset of the writer's name (32 bytes, padded with NUL).
pub const OFFSET_WRITER: usize = 16;
/// Length of the writer's name in bytes.
pub const WRITER_LEN: usize = 32;
/// Offset of the CRC-32C (u32) of all header bytes before it.
pub const OFFSET_CRC: usize = 60;

/// Architecture number of x86-64 (ELF `EM_X86_64`).
pub const ARCH_X86_64: u16 = 62;

/// A kind of file, told apart by its magic; each kind has a format number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKind {
    /// The first 8 bytes. Not text, and ending in a newline, so that a file mangled as text shows.
    pub magic: [u8; 8],
    /// What the file is called in messages.
    pub what: &'static str,
    /// The major format number this build writes, and the highest it reads.
    pub major: u16,
    /// The minor format number this build writes. Readers ignore it.
    pub minor: u16,
}

/// A checkpoint's manifest.
pub const MANIFEST: FileKind = FileKind { magic: *b"\x89DRMMAN\n", what: "manifest", major: 1, minor: 0 };
/// A page pack.
pub const PACK: FileKind = FileKind { magic: *b"\x89DRMPAK\n", what: "page pack", major: 1, minor: 0 };
/// A checkpoint exported as a single file.
pub const EXPORT: FileKind = FileKind { magic: *b"\x89DRMEXP\n", what: "export", major: 1, minor: 0 };

/// The header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which kind of file.
    pub kind: FileKind,
    /// Major format number: readers of a lower one refuse the file.
    pub major: u16,
    /// Minor format number: says what was added that older readers may ignore.
    pub minor: u16,
    /// The architecture whose registers and memory the image holds (ELF `e_machine`).
    pub arch: u16,
    /// The program and version that wrote the file, at most 32 bytes.
    pub writer: String,
}

impl Header {
    /// The header this build writes for a file of `kind` on x86-64.
    pub fn new(kind: FileKind) -> Header {
        Header {
            kind,
            major: kind.major,
            minor: kind.minor,
            arch: ARCH_X86_64,
            writer: concat!("dormouse ", env!("CARGO_PKG_VERSION")).to_string(),
        }
    }

    /// The bytes. A writer longer than 32 bytes is cut.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[OFFSET_MAGIC..OFFSET_MAJOR].copy_from_slice(&self.kind.magic);
        bytes[OFFSET_MAJOR..OFFSET_MINOR].copy_from_slice(&self.major.to_le_bytes());
        bytes[OFFSET_MINOR..OFFSET_ARCH].copy_from_slice(&self.minor.to_le_bytes());
        bytes[OFFSET_ARCH..OFFSET_ARCH + 2].copy_from_slice(&self.arch.to_le_bytes());
        let writer = &self.writer.as_bytes()[..self.writer.len().min(WRITER_LEN)];
        bytes[OFFSET_WRITER..OFFSET_WRITER + writer.len()].copy_from_slice(writer);
        let crc = crc32c::crc32c(&bytes[..OFFSET_CRC]);
        bytes[OFFSET_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of a file of `kind` from the start of `bytes`; `path` is for messages.
    ///
    /// Errors: `Empty`, `Truncated`, `NotOurs` (another magic), `Damaged` (checksum), and
    /// `NewerFormat` if the major number is higher than `kind.major`.
    pub fn decode(bytes: &[u8], kind: FileKind, path: &Path) -> Result<Header> {
        if bytes.is_empty() {
            return Err(ImageError::Empty { path: path.into() });
        }
        let magic = &bytes[..bytes.len().min(OFFSET_MAJOR)];
        if magic != &kind.magic[..magic.len()] {
            return Err(ImageError::NotOurs { path: path.into(), why: foreign(magic, kind) });
        }
        if bytes.len() < HEADER_LEN {
            let what = format!("{} bytes of a header of {HEADER_LEN}", bytes.len());
            return Err(truncated(path, what));
        }
        let stored = u32_at(bytes, OFFSET_CRC);
        if stored != crc32c::crc32c(&bytes[..OFFSET_CRC]) {
            return Err(damaged(path, "the header's checksum does not match"));
        }
        let writer = &bytes[OFFSET_WRITER..OFFSET_WRITER + WRITER_LEN];
        let end = writer.iter().position(|b| *b == 0).unwrap_or(WRITER_LEN);
        let header = Header {
            kind,
            major: u16_at(bytes, OFFSET_MAJOR),
            minor: u16_at(bytes, OFFSET_MINOR),
            arch: u16_at(bytes, OFFSET_ARCH),
            // Another build wrote it: control characters must not reach a terminal.
            writer: String::from_utf8_lossy(&writer[..end]).replace(|c: char| c.is_control(), "?"),
        };
        if header.major > kind.major {
            return Err(ImageError::NewerFormat {
                path: path.into(),
                what: kind.what,
                found: (header.major, header.minor),
                readable: kind.major,
                writer: header.writer,
            });
        }
        if header.major == 0 {
            return Err(damaged(path, "format 0 was never written"));
        }
        Ok(header)
    }
}

/// Says what a file with a foreign magic is, as far as it can be told.
fn foreign(magic: &[u8], kind: FileKind) -> String {
    let other = [MANIFEST, PACK, EXPORT].into_iter().find(|k| k.magic == magic);
    match other {
        Some(other) => format!("it is a Dormouse {}, not a {}", other.what, kind.what),
        None => format!("it is not a Dormouse {}", kind.what),
    }
}

/// The u16 at `at`. The caller has checked the length.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The u32 at `at`. The caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The u64 at `at`. The caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Header> {
        Header::decode(bytes, MANIFEST, Path::new("m"))
    }

    #[test]
    fn a_header_is_read_as_written() {
        let header = Header::new(MANIFEST);
        assert_eq!(decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let header = Header { major: 9, minor: 4, writer: "dormouse 7.1".into(), ..Header::new(MANIFEST) };
        let error = decode(&header.encode()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read m: it has manifest format 9.4 (written by dormouse 7.1); this build \
             reads formats up to 1.x"
        );
        assert!(error.advice().contains("dormouse 7.1"));
        // A newer minor number is read.
        assert!(decode(&Header { minor: 9, ..Header::new(MANIFEST) }.encode()).is_ok());
    }

    #[test]
    fn foreign_and_other_files_are_told_apart() {
        assert!(matches!(decode(b""), Err(ImageError::Empty { .. })));
        assert!(matches!(decode(b"\x7fELF\x02\x01"), Err(ImageError::NotOurs { .. })));
        let error = decode(&Header::new(PACK).encode()).unwrap_err();
        assert!(error.to_string().contains("a Dormouse page pack, not a manifest"), "{error}");
    }

    #[test]
    fn every_bit_and_every_length_counts() {
        let good = Header::new(MANIFEST).encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
        for len in 1..HEADER_LEN {
            assert!(matches!(decode(&good[..len]), Err(ImageError::Truncated { .. })));
        }
    }
}
