//! Reading a pack: its frame table is checked when it is opened, each frame when it is read.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::*;
use crate::error::{damaged, truncated, Doing, Result};
use crate::header::{self, u32_at, u64_at, Header};
use crate::PAGE_SIZE;

/// A frame as the index lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Place of its first page in the pack.
    pub first: u64,
    /// How many pages it holds, 1 to 256.
    pub pages: u32,
    /// Where its stored bytes start in the file.
    pub offset: u64,
    /// How many bytes are stored.
    pub stored: u32,
    /// How they are stored.
    pub method: Method,
    crc: u32,
}

/// Most frames that are kept decoded.
const CACHED: usize = 16;

/// An open page pack. All methods take `&self` and read by offset, so several threads may share it.
#[derive(Debug)]
pub struct PackReader {
    file: File,
    path: PathBuf,
    id: String,
    mappable: bool,
    pages: u64,
    blake3: [u8; 32],
    file_len: u64,
    frames: Vec<Frame>,
    /// The frames decoded last, the latest first, for readers that want a few pages of each at a time.
    last: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

impl PackReader {
    /// Opens the pack at `path` and checks header, footer and index, but not yet the pages.
    ///
    /// Errors: those of [`Header::decode`]; `Truncated` if the footer is not where the file
    /// ends; `Damaged` if a checksum does not match or the index contradicts itself.
    pub fn open(path: &Path) -> Result<PackReader> {
        let file = File::open(path).doing("open the page pack", path)?;
        let file_len = file.metadata().doing("read the page pack", path)?.len();
        let (id, flags) = read_header(&file, file_len, path)?;
        let mappable = flags & FLAG_MAPPABLE != 0;
        let footer = read_footer(&file, file_len, path)?;
        let frames = read_index(&file, file_len, &footer, path)?;
        let pages = frames.last().map_or(0, |f| f.first + u64::from(f.pages));
        if pages != u64_at(&footer, FOOTER_PAGES) {
            return Err(damaged(path, "its index has another number of pages than its footer"));
        }
        if mappable && frames.iter().any(|f| f.method != Method::Raw) {
            return Err(damaged(path, "it says it can be mapped, but a frame is compressed"));
        }
        let blake3 = std::array::from_fn(|i| footer[FOOTER_HASH + i]);
        let (path, last) = (path.to_path_buf(), Mutex::default());
        Ok(PackReader { file, path, id, mappable, pages, blake3, file_len, frames, last })
    }

    /// The pack's ID: 32 lower-case hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many pages it holds.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The BLAKE3 hash its footer has. [`PackReader::verify`] compares it with the contents.
    pub fn blake3(&self) -> [u8; 32] {
        self.blake3
    }

    /// Length of its file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file, for mapping; see [`PackReader::mapped_offset`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where page `place` lies in the file, a multiple of the page size; the pages after it
    /// follow. `None` if the pack is compressed or has no such page. What is mapped is not
    /// checked: call [`PackReader::verify`] first if that matters.
    pub fn mapped_offset(&self, place: u64) -> Option<u64> {
        let there = self.mappable && place < self.pages;
        there.then(|| PACK_HEADER_LEN as u64 + place * PAGE_SIZE as u64)
    }

    /// The frames in order of their pages.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Index of the frame that holds page `place`, or `None` if the pack has no such page.
    pub fn frame_of(&self, place: u64) -> Option<usize> {
        let there = place < self.pages;
        there.then(|| self.frames.partition_point(|frame| frame.first <= place) - 1)
    }

    /// Reads, checks and decodes frame `i`.
    ///
    /// Errors: `Io`, or `Damaged` if its checksum does not match.
    ///
    /// # Panics
    /// If `i` is not the index of a frame.
    pub fn decode_frame(&self, i: usize) -> Result<Vec<u8>> {
        let mut pages = vec![0; self.frames[i].pages as usize * PAGE_SIZE];
        self.decode_frame_into(i, &mut pages)?;
        Ok(pages)
    }

    /// Like [`PackReader::decode_frame`], into a buffer of exactly the frame's length.
    ///
    /// # Panics
    /// If `i` is not the index of a frame or `out` is not of its length.
    pub fn decode_frame_into(&self, i: usize, out: &mut [u8]) -> Result<()> {
        self.decode_frame_with(&mut Decoder::default(), i, out)
    }

    /// The same by a decoder that is kept, for who decodes many.
    ///
    /// # Panics
    /// As [`PackReader::decode_frame_into`].
    pub fn decode_frame_with(&self, decoder: &mut Decoder, i: usize, out: &mut [u8]) -> Result<()> {
        let frame = &self.frames[i];
        assert_eq!(out.len(), frame.pages as usize * PAGE_SIZE, "a buffer of the frame's length");
        if frame.method == Method::Raw {
            self.read_stored(frame, out)?;
            return self.check_crc(i, out);
        }
        decoder.stored.resize(frame.stored as usize, 0);
        self.read_stored(frame, &mut decoder.stored)?;
        self.check_crc(i, &decoder.stored)?;
        decoder.decode(frame.method, out, &self.path)
    }

    /// Reads the pages from `place` on into `out`.
    ///
    /// Errors: `Io`; `Damaged` if a frame is, or if the pack has not that many pages.
    ///
    /// # Panics
    /// If the length of `out` is not a multiple of the page size.
    pub fn read_pages(&self, place: u64, out: &mut [u8]) -> Result<()> {
        assert!(out.len().is_multiple_of(PAGE_SIZE), "{} bytes are not whole pages", out.len());
        let (mut place, mut out) = (place, out);
        while !out.is_empty() {
            let Some(i) = self.frame_of(place) else {
                let what = format!("page {place} was asked for, it has {}", self.pages);
                return Err(damaged(&self.path, what));
            };
            let skip = (place - self.frames[i].first) as usize * PAGE_SIZE;
            let here = (self.frames[i].pages as usize * PAGE_SIZE - skip).min(out.len());
            let (now, later) = out.split_at_mut(here);
            if here == self.frames[i].pages as usize * PAGE_SIZE {
                self.decode_frame_into(i, now)?;
            } else {
                now.copy_from_slice(&self.cached_frame(i)?[skip..skip + here]);
            }
            place += (here / PAGE_SIZE) as u64;
            out = later;
        }
        Ok(())
    }

    /// Reads the whole file: every frame's checksum, that each decodes, and the pack's hash.
    pub fn verify(&self) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        self.hash_range(&mut hasher, 0, PACK_HEADER_LEN as u64)?;
        let mut out = vec![0; FRAME_LEN];
        for (i, frame) in self.frames.iter().enumerate() {
            let mut stored = vec![0; frame.stored as usize];
            self.read_stored(frame, &mut stored)?;
            self.check_crc(i, &stored)?;
            hasher.update(&stored);
            let out = &mut out[..frame.pages as usize * PAGE_SIZE];
            frame::decode(frame.method, &stored, out, &self.path)?;
        }
        let index = self.frames.last().map_or(PACK_HEADER_LEN as u64, |f| f.offset + u64::from(f.stored));
        let end = self.file_len - (FOOTER_LEN - FOOTER_HASH) as u64;
        self.hash_range(&mut hasher, index, end)?;
        if *hasher.finalize().as_bytes() != self.blake3 {
            return Err(damaged(&self.path, "its contents do not match the hash in its footer"));
        }
        Ok(())
    }

    fn hash_range(&self, hasher: &mut blake3::Hasher, from: u64, to: u64) -> Result<()> {
        let mut bytes = vec![0; (to - from) as usize];
        self.file.read_exact_at(&mut bytes, from).doing("read the page pack", &self.path)?;
        hasher.update(&bytes);
        Ok(())
    }

    fn read_stored(&self, frame: &Frame, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(out, frame.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(truncated(&self.path, "it became shorter while it was read"))
            }
            other => other.doing("read the page pack", &self.path),
        }
    }

    fn check_crc(&self, i: usize, stored: &[u8]) -> Result<()> {
        if crc32c::crc32c(stored) == self.frames[i].crc {
            return Ok(());
        }
        let Frame { first, pages, .. } = self.frames[i];
        let last = first + u64::from(pages) - 1;
        Err(damaged(&self.path, format!("pages {first} to {last} do not match their checksum")))
    }

    /// Frame `i`, decoded now or one of the last times: for who wants few of its pages and others after that. Up to 16 are kept, 16 MiB.
    ///
    /// Errors: those of [`PackReader::decode_frame`].
    ///
    /// # Panics
    /// If `i` is not the index of a frame.
    pub fn cached_frame(&self, i: usize) -> Result<Arc<Vec<u8>>> {
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = last.iter().position(|(cached, _)| *cached == i).and_then(|at| last.remove(at));
        let frame = match known {
            Some(frame) => frame,
            // The lock is kept: two threads that want the same frame decode it once.
            None => (i, Arc::new(self.decode_frame(i)?)),
        };
        let pages = frame.1.clone();
        last.push_front(frame);
        last.truncate(CACHED);
        Ok(pages)
    }
}

/// Checks the header block: the pack's ID and flags.
fn read_header(file: &File, file_len: u64, path: &Path) -> Result<(String, u32)> {
    let mut block = vec![0; file_len.min(PACK_HEADER_LEN as u64) as usize];
    file.read_exact_at(&mut block, 0).doing("read the page pack", path)?;
    Header::decode(&block, header::PACK, path)?;
    if block.len() < PACK_HEADER_LEN {
        return Err(truncated(path, "its header block is not whole"));
    }
    if u32_at(&block, OFFSET_BLOCK_CRC) != crc32c::crc32c(&block[..OFFSET_BLOCK_CRC]) {
        return Err(damaged(path, "its header block does not match its checksum"));
    }
    let id = id_text(&block[OFFSET_ID..OFFSET_PACK_FLAGS]);
    Ok((id, u32_at(&block, OFFSET_PACK_FLAGS)))
}

/// Checks the footer by itself.
fn read_footer(file: &File, file_len: u64, path: &Path) -> Result<[u8; FOOTER_LEN]> {
    let mut footer = [0; FOOTER_LEN];
    if file_len < (PACK_HEADER_LEN + FOOTER_LEN) as u64 {
        return Err(truncated(path, "it has no footer"));
    }
    let at = file_len - FOOTER_LEN as u64;
    file.read_exact_at(&mut footer, at).doing("read the page pack", path)?;
    if !footer.starts_with(&FOOTER_MAGIC) {
        return Err(truncated(path, "it does not end in a footer"));
    }
    if u32_at(&footer, FOOTER_CRC) != crc32c::crc32c(&footer[..FOOTER_CRC]) {
        return Err(damaged(path, "its footer does not match its checksum"));
    }
    Ok(footer)
}

/// Checks the index: contiguous frames that fill the file between header block and index.
fn read_index(file: &File, file_len: u64, footer: &[u8; FOOTER_LEN], path: &Path) -> Result<Vec<Frame>> {
    let at = u64_at(footer, FOOTER_INDEX);
    let len = u64_at(footer, FOOTER_FRAMES).checked_mul(ENTRY_LEN as u64);
    let end = len.and_then(|len| at.checked_add(len));
    let (Some(len), true) = (len, end == Some(file_len - FOOTER_LEN as u64)) else {
        return Err(damaged(path, "its index does not lie before its footer"));
    };
    let mut index = vec![0; len as usize];
    file.read_exact_at(&mut index, at).doing("read the page pack", path)?;
    if u32_at(footer, FOOTER_INDEX_CRC) != crc32c::crc32c(&index) {
        return Err(damaged(path, "its index does not match its checksum"));
    }
    let (mut first, mut offset) = (0, PACK_HEADER_LEN as u64);
    let mut frames = Vec::with_capacity(index.len() / ENTRY_LEN);
    for (i, entry) in index.chunks_exact(ENTRY_LEN).enumerate() {
        let bad = |what: &str| damaged(path, format!("frame {i} of its index: {what}"));
        let number = u32_at(entry, ENTRY_METHOD);
        let method =
            Method::from_number(number).ok_or_else(|| bad(&format!("compression method {number} is not known")))?;
        let (pages, stored) = (u32_at(entry, ENTRY_PAGES), u32_at(entry, ENTRY_STORED));
        let full = pages as usize * PAGE_SIZE;
        let fits = match method {
            Method::Raw => stored as usize == full,
            _ => stored as usize <= full,
        };
        if pages == 0 || pages as usize > FRAME_PAGES || !fits {
            return Err(bad(&format!("{pages} pages in {stored} bytes")));
        }
        if u64_at(entry, ENTRY_OFFSET) != offset {
            return Err(bad("it does not start where the one before ends"));
        }
        let crc = u32_at(entry, ENTRY_CRC);
        frames.push(Frame { first, pages, offset, stored, method, crc });
        first += u64::from(pages);
        offset += u64::from(stored);
    }
    if offset != at {
        return Err(damaged(path, "its frames do not end where its index starts"));
    }
    Ok(frames)
}
