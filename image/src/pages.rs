//! Which page lies where: the page index of a manifest, and the sink that makes it.
//!
//! The types that are serialised here are frozen: they are bytes of manifests. A manifest lists
//! every page directly by (pack, place), also when the pack belongs to an earlier checkpoint of
//! the session, so no chain is ever replayed.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;
use crate::pack::{PackInfo, PackSync, PackWriter};
use crate::page_hash::{PageHash, PageHasher};
use crate::PAGE_SIZE;

/// A page pack as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// The pack's ID: 32 lower-case hex digits.
    pub id: String,
    /// How many pages it holds.
    pub pages: u64,
    /// The pack's own BLAKE3 hash, as in its footer.
    #[serde(with = "serde_bytes")]
    pub blake3: [u8; 32],
}

impl From<&PackInfo> for PackRef {
    fn from(info: &PackInfo) -> PackRef {
        PackRef { id: info.id.clone(), pages: info.pages, blake3: info.blake3 }
    }
}

/// Where the bytes of a page are. In a manifest: `[0]`, or `[1, pack, place]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSource {
    /// Nowhere: the page is all zeros. Tag 0.
    Zero,
    /// In a pack. Tag 1.
    Pack {
        /// Index in the manifest's pack table.
        pack: u32,
        /// Index of the (first) page in that pack.
        place: u64,
    },
}

/// Consecutive pages of an address space whose bytes lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Virtual address of the first page; a multiple of the page size.
    pub addr: u64,
    /// Number of pages, at least 1.
    pub pages: u64,
    /// Where the first page is; the others follow it.
    pub source: PageSource,
}

const TAG_ZERO: u8 = 0;
const TAG_PACK: u8 = 1;

impl Serialize for PageSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            PageSource::Zero => {
                let mut tuple = serializer.serialize_tuple(1)?;
                tuple.serialize_element(&TAG_ZERO)?;
                tuple.end()
            }
            PageSource::Pack { pack, place } => {
                let mut tuple = serializer.serialize_tuple(3)?;
                tuple.serialize_element(&TAG_PACK)?;
                tuple.serialize_element(pack)?;
                tuple.serialize_element(place)?;
                tuple.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for PageSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(SourceVisitor)
    }
}

/// Reads a [`PageSource`] by its integer tag.
struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = PageSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a page source: [0] or [1, pack, place]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<PageSource, A::Error> {
        let short = || de::Error::custom("a page source is too short");
        let source = match seq.next_element::<u8>()?.ok_or_else(short)? {
            TAG_ZERO => PageSource::Zero,
            TAG_PACK => PageSource::Pack {
                pack: seq.next_element()?.ok_or_else(short)?,
                place: seq.next_element()?.ok_or_else(short)?,
            },
            tag => return Err(de::Error::custom(format!("unknown page source {tag}"))),
        };
        match seq.next_element::<de::IgnoredAny>()? {
            None => Ok(source),
            Some(_) => Err(de::Error::custom("a page source is too long")),
        }
    }
}

/// What a sink did, in pages. `total = zero + duplicate + stored`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageStats {
    /// Pages taken.
    pub total: u64,
    /// Pages that were all zeros: recorded, not stored.
    pub zero: u64,
    /// Pages equal to one stored before: recorded, not stored again.
    pub duplicate: u64,
    /// Pages handed to the pack.
    pub stored: u64,
}

/// At most this many distinct pages are remembered to find duplicates: 7 GiB of memory, for which
/// the table takes about 120 MiB. Pages beyond it are compared with those, and stored.
const MAX_REMEMBERED: usize = 7 << 18;

/// Takes pages from the recorder: drops zeros, finds duplicates, stores the rest in a pack.
#[derive(Debug)]
pub struct PageSink {
    writer: PackWriter,
    pack: u32,
    runs: Vec<PageRun>,
    seen: HashMap<PageHash, u64, BuildHasherDefault<AsIs>>,
    hasher: PageHasher,
    stats: PageStats,
}

impl PageSink {
    /// A sink that stores into `writer`, which will be entry `pack` of the manifest's pack table.
    pub fn new(writer: PackWriter, pack: u32) -> PageSink {
        PageSink {
            writer,
            pack,
            runs: Vec::new(),
            seen: HashMap::default(),
            hasher: PageHasher::new(),
            stats: PageStats::default(),
        }
    }

    /// Takes the pages that lie at virtual address `addr`.
    ///
    /// Errors: those of [`PackWriter::append`]; the sink is of no use after one.
    ///
    /// # Panics
    /// If `addr` or the length of `pages` is not a multiple of the page size.
    pub fn push(&mut self, addr: u64, pages: &[u8]) -> Result<()> {
        assert!(
            addr.is_multiple_of(PAGE_SIZE as u64) && pages.len().is_multiple_of(PAGE_SIZE),
            "{} bytes at {addr:#x} are not whole pages",
            pages.len()
        );
        for (i, page) in pages.chunks_exact(PAGE_SIZE).enumerate() {
            let source = self.place(page)?;
            self.add(PageRun { addr: addr + (i * PAGE_SIZE) as u64, pages: 1, source });
        }
        Ok(())
    }

    /// Records pages that need not be read: known to be zero, or unchanged since an earlier
    /// checkpoint and so in a pack the manifest names. They are not counted in the statistics.
    pub fn push_known(&mut self, run: PageRun) {
        if run.pages > 0 {
            self.add(run);
        }
    }

    /// Takes the runs recorded so far, in the order they were pushed. Call it between the
    /// address spaces of a tree: they share the pack, and duplicates are found across them.
    pub fn take_runs(&mut self) -> Vec<PageRun> {
        std::mem::take(&mut self.runs)
    }

    /// Completes the pack: the runs not yet taken, the pack, and what was done.
    pub fn finish(self) -> Result<(Vec<PageRun>, PackInfo, PageStats)> {
        let info = self.writer.finish()?;
        Ok((self.runs, info, self.stats))
    }

    /// The same for who has something to do while the pack goes to the disk.
    pub fn close(self) -> Result<(Vec<PageRun>, PackInfo, PackSync)> {
        let (info, sync) = self.writer.close()?;
        Ok((self.runs, info, sync))
    }

    /// Finds or makes the place of `page`.
    fn place(&mut self, page: &[u8]) -> Result<PageSource> {
        static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        self.stats.total += 1;
        if page == ZEROS {
            self.stats.zero += 1;
            return Ok(PageSource::Zero);
        }
        let full = self.seen.len() >= MAX_REMEMBERED;
        let place = match self.seen.entry(self.hasher.hash(page)) {
            Entry::Occupied(known) => {
                self.stats.duplicate += 1;
                *known.get()
            }
            Entry::Vacant(new) => {
                self.stats.stored += 1;
                let place = self.writer.append(page)?;
                if !full {
                    new.insert(place);
                }
                place
            }
        };
        Ok(PageSource::Pack { pack: self.pack, place })
    }

    /// Appends `run`, or makes the last one longer if it goes on there.
    fn add(&mut self, run: PageRun) {
        if let Some(last) = self.runs.last_mut() {
            let adjacent = last.addr + last.pages * PAGE_SIZE as u64 == run.addr;
            let goes_on = match (last.source, run.source) {
                (PageSource::Zero, PageSource::Zero) => true,
                (PageSource::Pack { pack: a, place: x }, PageSource::Pack { pack: b, place: y }) => {
                    a == b && x + last.pages == y
                }
                _ => false,
            };
            if adjacent && goes_on {
                last.pages += run.pages;
                return;
            }
        }
        self.runs.push(run);
    }
}

/// A [`PageHash`] is a hash already: some of its bits serve as they are.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write_u128(&mut self, half: u128) {
        // The low bits of NH are its worst: the table gets those from the middle.
        self.0 ^= (half >> 32) as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Arrays of integers are hashed as their bytes.
        for half in bytes.chunks_exact(16) {
            self.write_u128(u128::from_ne_bytes(std::array::from_fn(|i| half[i])));
        }
    }

    fn write_usize(&mut self, _: usize) {
        // The length of the array, always the same.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
