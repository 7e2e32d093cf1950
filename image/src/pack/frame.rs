//! One frame: how it is made smaller, and made whole again.

use std::path::Path;

use super::Compression;
use crate::error::{damaged, Result};
use crate::PAGE_SIZE;

/// How a frame is stored. The number is the one in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Method {
    /// The pages as they are.
    Raw = 0,
    /// An LZ4 block without a size prefix.
    Lz4 = 1,
    /// A Zstandard frame.
    Zstd = 2,
}

impl Method {
    /// The method of this number, or `None` if there is none.
    pub fn from_number(number: u32) -> Option<Method> {
        [Method::Raw, Method::Lz4, Method::Zstd].into_iter().find(|m| *m as u32 == number)
    }
}

/// A frame ready to be written.
pub(super) struct StoredFrame {
    pub method: Method,
    /// What is stored, at the beginning of a buffer that may be longer.
    pub buffer: Vec<u8>,
    pub len: usize,
    pub pages: u32,
    pub crc: u32,
}

impl StoredFrame {
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// Of a frame that probably cannot be compressed, one page in so many is tried.
const SAMPLE_STEP: usize = 16;
/// Shorter frames are tried as a whole.
const SAMPLE_FROM: usize = super::SOON_LEN;
/// The whole is tried if that saves one byte in so many.
const SAMPLE_GAIN: usize = 64;

/// Turns pages into stored frames; one per thread, since it keeps the compressor's tables.
#[derive(Default)]
pub(super) struct Encoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// The frame before could not be made smaller: of the next, a sample is tried first.
    in_vain: bool,
    sample: Vec<u8>,
}

impl Encoder {
    /// Encodes `pages` (1 to 256 of them) so. `spare` is a buffer to use again; the one that was
    /// not needed comes back beside the frame.
    pub fn encode(&mut self, how: Compression, pages: Vec<u8>, mut spare: Vec<u8>) -> (StoredFrame, Vec<u8>) {
        let count = (pages.len() / PAGE_SIZE) as u32;
        let try_it = self.worth_trying(how, &pages, &mut spare);
        let found = if try_it { self.compress(how, &pages, &mut spare) } else { None };
        // Less than a page saved is not worth decompressing for.
        let found = found.filter(|(_, len)| len + PAGE_SIZE <= pages.len());
        self.in_vain = found.is_none();
        let (method, len, buffer, spare) = match found {
            Some((method, len)) => (method, len, spare, pages),
            None => (Method::Raw, pages.len(), pages, spare),
        };
        let crc = crc32c::crc32c(&buffer[..len]);
        (StoredFrame { method, buffer, len, pages: count, crc }, spare)
    }

    /// Whether a frame may become smaller: yes, unless the one before did not and neither does every 16th page of this one.
    fn worth_trying(&mut self, how: Compression, pages: &[u8], spare: &mut Vec<u8>) -> bool {
        if !self.in_vain || pages.len() < SAMPLE_FROM {
            return true;
        }
        let mut sample = std::mem::take(&mut self.sample);
        sample.clear();
        pages.chunks_exact(PAGE_SIZE).step_by(SAMPLE_STEP).for_each(|page| sample.extend_from_slice(page));
        let found = self.compress(how, &sample, spare);
        let smaller = found.is_some_and(|(_, len)| len + sample.len() / SAMPLE_GAIN <= sample.len());
        self.sample = sample;
        smaller
    }

    /// Compresses to the beginning of `out`, which is made longer as needed: how, and to how many bytes.
    fn compress(&mut self, how: Compression, pages: &[u8], out: &mut Vec<u8>) -> Option<(Method, usize)> {
        match how {
            Compression::None => None,
            Compression::Lz4 => {
                lengthen(out, lz4_flex::block::get_maximum_output_size(pages.len()));
                Some((Method::Lz4, lz4_flex::block::compress_into(pages, out).ok()?))
            }
            Compression::Zstd(level) | Compression::SoonThenSmall(level) => {
                lengthen(out, zstd::zstd_safe::compress_bound(pages.len()));
                let zstd = match &mut self.zstd {
                    Some(z) => z,
                    // Out of memory is the only way this fails; frames are then stored raw.
                    none => none.insert(zstd::bulk::Compressor::new(level).ok()?),
                };
                Some((Method::Zstd, zstd.compress_to_buffer(pages, &mut out[..]).ok()?))
            }
        }
    }
}

/// At least so many bytes. What is there stays: to clear it for each frame would cost more than its checksum.
fn lengthen(out: &mut Vec<u8>, len: usize) {
    if out.len() < len {
        out.resize(len, 0);
    }
}

/// Makes frames whole again; one per thread, since it keeps the decompressor's tables and a buffer.
#[derive(Default)]
pub struct Decoder {
    pub(super) stored: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// Decodes what is in `stored` into `out`, which has exactly the frame's length.
    pub(super) fn decode(&mut self, method: Method, out: &mut [u8], path: &Path) -> Result<()> {
        if method != Method::Zstd {
            return decode(method, &self.stored, out, path);
        }
        let bad = |e: std::io::Error| damaged(path, format!("a frame cannot be decompressed: {e}"));
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(bad)?),
        };
        whole(zstd.decompress_to_buffer(&self.stored, out).map_err(|e| e.to_string()), out.len(), path)
    }
}

/// Decodes `stored` into `out`, which has exactly the frame's length.
pub(super) fn decode(method: Method, stored: &[u8], out: &mut [u8], path: &Path) -> Result<()> {
    let decoded = match method {
        Method::Raw if stored.len() == out.len() => {
            out.copy_from_slice(stored);
            Ok(stored.len())
        }
        Method::Raw => Ok(stored.len()),
        Method::Lz4 => lz4_flex::block::decompress_into(stored, out).map_err(|e| e.to_string()),
        Method::Zstd => zstd::bulk::decompress_to_buffer(stored, out).map_err(|e| e.to_string()),
    };
    whole(decoded, out.len(), path)
}

fn whole(decoded: std::result::Result<usize, String>, full: usize, path: &Path) -> Result<()> {
    match decoded {
        Ok(len) if len == full => Ok(()),
        Ok(len) => Err(damaged(path, format!("a frame has {len} bytes instead of {full}"))),
        Err(error) => Err(damaged(path, format!("a frame cannot be decompressed: {error}"))),
    }
}
