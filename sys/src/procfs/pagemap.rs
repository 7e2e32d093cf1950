//! `/proc/PID/pagemap`: which pages of a process exist, and where (proc_pid_pagemap(5),
//! Documentation/admin-guide/mm/pagemap.rst), by the PAGEMAP_SCAN ioctl (6.7+) or entry by entry.
//!
//! PAGEMAP_SCAN walks a GiB of 4 KiB pages in 13-19 ms and skips what is not there; entries cost a read of
//! 2 MiB for each GiB of addresses, there or not.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{path_of, Pid, ReadError, Result};

/// Bytes of a page on x86_64.
pub const PAGE_SIZE: u64 = 4096;

/// `_IOWR('f', 16, struct pm_scan_arg)` (include/uapi/linux/fs.h).
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
/// The end of user addresses with four levels of page tables (TASK_SIZE_MAX).
const USER_END: u64 = (1 << 47) - PAGE_SIZE;
/// Entries in one read: 512 KiB of the file, 256 MiB of addresses.
const CHUNK_ENTRIES: usize = 64 << 10;
/// Regions in one ioctl: 96 KiB.
const CHUNK_REGIONS: usize = 4096;

/// Properties of pages, `PAGE_IS_*` of include/uapi/linux/fs.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Categories(pub u64);

impl Categories {
    /// None.
    pub const NONE: Categories = Categories(0);
    /// In an area where userfaultfd can write-protect asynchronously.
    pub const WP_ALLOWED: Categories = Categories(1);
    /// Written since it was write-protected.
    pub const WRITTEN: Categories = Categories(1 << 1);
    /// Of a file or shared memory; not set once a private mapping has copied the page.
    pub const FILE: Categories = Categories(1 << 2);
    /// In memory.
    pub const PRESENT: Categories = Categories(1 << 3);
    /// In swap, or a migration entry; also a guard region before PAGE_IS_GUARD.
    pub const SWAPPED: Categories = Categories(1 << 4);
    /// The zero page.
    pub const PFNZERO: Categories = Categories(1 << 5);
    /// Mapped by a huge entry.
    pub const HUGE: Categories = Categories(1 << 6);
    /// Soft-dirty (where the kernel has it).
    pub const SOFT_DIRTY: Categories = Categories(1 << 7);
    /// MADV_GUARD_INSTALL (6.15+).
    pub const GUARD: Categories = Categories(1 << 8);

    /// Both.
    pub const fn or(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }

    /// True if all of `other` are in it.
    pub const fn has(self, other: Categories) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if any of `other` is in it.
    pub const fn has_any(self, other: Categories) -> bool {
        self.0 & other.0 != 0
    }

    const fn without(self, other: Categories) -> Categories {
        Categories(self.0 & !other.0)
    }
}

/// Which pages to find: all of `all`, at least one of `any` (if it is not empty), none of `none`.
/// `none` must have nothing in common with `all` and `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// Must all hold.
    pub all: Categories,
    /// One must hold.
    pub any: Categories,
    /// None may hold.
    pub none: Categories,
    /// What to tell about the pages found; a region is cut where it changes.
    pub tell: Categories,
}

impl Query {
    /// Pages with content of their own: in memory or swap, not a file's, not zero, no guard.
    pub const PRIVATE: Query = Query {
        all: Categories::NONE,
        any: Categories::PRESENT.or(Categories::SWAPPED),
        none: Categories::FILE.or(Categories::PFNZERO).or(Categories::GUARD),
        tell: Categories::NONE,
    };

    /// Every page in memory or swap, a file's too, that is no guard.
    pub const POPULATED: Query = Query {
        all: Categories::NONE,
        any: Categories::PRESENT.or(Categories::SWAPPED),
        none: Categories::GUARD,
        tell: Categories::NONE,
    };

    /// Guard regions.
    pub const GUARDS: Query =
        Query { all: Categories::GUARD, any: Categories::NONE, none: Categories::NONE, tell: Categories::NONE };

    /// Pages written since their write protection by userfaultfd (WP_ASYNC).
    pub const WRITTEN: Query =
        Query { all: Categories::WRITTEN, any: Categories::NONE, none: Categories::GUARD, tell: Categories::NONE };

    fn matches(&self, page: Categories) -> bool {
        page.has(self.all) && (self.any == Categories::NONE || page.has_any(self.any)) && !page.has_any(self.none)
    }

    fn mentions(&self, what: Categories) -> bool {
        self.all.or(self.any).or(self.none).or(self.tell).has_any(what)
    }

    fn without(&self, what: Categories) -> Query {
        Query {
            all: self.all.without(what),
            any: self.any.without(what),
            none: self.none.without(what),
            tell: self.tell.without(what),
        }
    }
}

/// Adjacent pages that match a query and have the same `categories` of those asked to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// Those of `Query::tell` that hold.
    pub categories: Categories,
}

impl Region {
    const EMPTY: Region = Region { start: 0, end: 0, categories: Categories::NONE };

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One 64-bit word of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// Bit 63: in memory.
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 != 0
    }
    /// Bit 62: in swap (or guard region, or migration entry).
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 != 0
    }
    /// Bit 61: a file's page or shared anonymous memory.
    pub fn file_or_shared(self) -> bool {
        self.0 >> 61 & 1 != 0
    }
    /// Bit 58: guard region (6.15+).
    pub fn guard(self) -> bool {
        self.0 >> 58 & 1 != 0
    }
    /// Bit 57: write-protected by userfaultfd.
    pub fn uffd_wp(self) -> bool {
        self.0 >> 57 & 1 != 0
    }
    /// Bit 56: mapped by this process only.
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 != 0
    }
    /// Bit 55: soft-dirty. Never set where the kernel does not track: probe by effect.
    pub fn soft_dirty(self) -> bool {
        self.0 >> 55 & 1 != 0
    }
    /// Bits 0-54 of a present page; 0 to a reader without CAP_SYS_ADMIN.
    pub fn pfn(self) -> u64 {
        if self.present() {
            self.0 & ((1 << 55) - 1)
        } else {
            0
        }
    }

    /// As far as an entry tells: never PFNZERO, HUGE or WP_ALLOWED; WRITTEN as "not write-protected".
    pub fn categories(self) -> Categories {
        let mut found = Categories::NONE;
        let mut add = |on: bool, what| {
            if on {
                found = found.or(what);
            }
        };
        add(self.present(), Categories::PRESENT);
        add(self.swapped(), Categories::SWAPPED);
        add(self.file_or_shared(), Categories::FILE);
        add(self.guard(), Categories::GUARD);
        add(self.soft_dirty(), Categories::SOFT_DIRTY);
        add((self.present() || self.swapped()) && !self.uffd_wp(), Categories::WRITTEN);
        found
    }
}

/// An open `/proc/PID/pagemap`. It stays that of the address space the process had at the opening.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    path: PathBuf,
}

impl Pagemap {
    /// Opens it; needs ptrace read access.
    pub fn open(pid: Pid) -> Result<Pagemap> {
        let path = path_of(pid, "pagemap");
        let file = File::open(&path).map_err(|e| ReadError::io("open", &path, e))?;
        Ok(Pagemap { file, path })
    }

    /// Calls `each` with (address of the first page, entries) for every chunk of the range. It ends
    /// early at the end of user addresses.
    pub fn for_each_chunk(&self, range: Range<u64>, mut each: impl FnMut(u64, &[Entry])) -> Result<()> {
        let mut page = range.start / PAGE_SIZE;
        let end = range.end.div_ceil(PAGE_SIZE);
        let count = end.saturating_sub(page).min(CHUNK_ENTRIES as u64) as usize;
        let mut raw = vec![0u8; count * 8];
        let mut entries = Vec::with_capacity(count);
        while page < end {
            let want = (end - page).min(CHUNK_ENTRIES as u64) as usize * 8;
            let got = loop {
                match self.file.read_at(&mut raw[..want], page * 8) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other.map_err(|e| ReadError::io("read", &self.path, e))?,
                }
            };
            if got < 8 {
                break;
            }
            let word = |bytes: &[u8]| Some(Entry(u64::from_ne_bytes(bytes.try_into().ok()?)));
            entries.clear();
            entries.extend(raw[..got].chunks_exact(8).filter_map(word));
            each(page * PAGE_SIZE, &entries);
            page += entries.len() as u64;
        }
        Ok(())
    }

    /// The entries of a range: 8 bytes of memory for each page.
    pub fn entries(&self, range: Range<u64>) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        self.for_each_chunk(range, |_, chunk| all.extend_from_slice(chunk))?;
        Ok(all)
    }

    /// The pages of a range that match, as regions in ascending order.
    ///
    /// By PAGEMAP_SCAN; where the kernel has none, by entries, which do not know PFNZERO or HUGE.
    pub fn regions(&self, range: Range<u64>, query: &Query) -> Result<Vec<Region>> {
        match self.scan(range.clone(), query) {
            Err(e) if e.errno() == Some(libc::ENOTTY) => self.regions_by_entries(range, query),
            other => other,
        }
    }

    /// By PAGEMAP_SCAN only: ENOTTY before 6.7.
    ///
    /// A kernel without PAGE_IS_GUARD is asked again without it; guard regions then show as swapped.
    pub fn scan(&self, range: Range<u64>, query: &Query) -> Result<Vec<Region>> {
        match self.scan_as_asked(range.clone(), query) {
            Err(e) if e.errno() == Some(libc::EINVAL) && query.mentions(Categories::GUARD) => {
                if query.all.has(Categories::GUARD) {
                    return Ok(Vec::new()); // no guard regions there
                }
                self.scan_as_asked(range, &query.without(Categories::GUARD))
            }
            // It answers so to a range that reaches beyond user addresses, as the vsyscall page does.
            Err(e) if e.errno() == Some(libc::EFAULT) && range.end > USER_END => {
                self.scan(range.start.min(USER_END)..USER_END, query)
            }
            other => other,
        }
    }

    fn scan_as_asked(&self, range: Range<u64>, query: &Query) -> Result<Vec<Region>> {
        let mut found: Vec<Region> = Vec::new();
        let range = whole_pages(range);
        let pages = range.end.saturating_sub(range.start) / PAGE_SIZE;
        let capacity = usize::try_from(pages).unwrap_or(usize::MAX).clamp(1, CHUNK_REGIONS);
        let mut vec = vec![Region::EMPTY; capacity];
        let mut start = range.start;
        while start < range.end {
            let (count, walk_end) =
                self.scan_once(start..range.end, query, &mut vec).map_err(|e| ReadError::io("scan", &self.path, e))?;
            for region in &vec[..count] {
                push(&mut found, *region);
            }
            if count < vec.len() {
                break; // it stops before the end of the range only for want of room
            }
            // walk_end may lie before the last region: the kernel (seen on 6.18) sets it when it
            // empties its inner buffer of 512 regions, and leaves it so if it then reaches the end.
            let next = vec.last().map_or(walk_end, |last| walk_end.max(last.end));
            if next <= start {
                break; // cannot be, but would never end
            }
            start = next;
        }
        Ok(found)
    }

    /// One ioctl: how many regions it wrote, and the address at which it stopped.
    fn scan_once(&self, range: Range<u64>, query: &Query, vec: &mut [Region]) -> io::Result<(usize, u64)> {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: vec.as_mut_ptr() as u64,
            vec_len: vec.len() as u64,
            max_pages: 0,
            category_inverted: query.none.0,
            category_mask: query.all.or(query.none).0,
            category_anyof_mask: query.any.0,
            return_mask: query.tell.0,
        };
        loop {
            // SAFETY: the request number encodes the size of ScanArg, which mirrors struct pm_scan_arg
            // and lives through the call. The kernel writes at most vec_len struct page_region to
            // vec, a live and exclusively borrowed slice of exactly that length and layout (repr(C),
            // three u64), for which every bit pattern is valid. flags is 0: the target's page tables
            // are read, never write-protected.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if count >= 0 {
                let count = usize::try_from(count).unwrap_or(0).min(vec.len());
                return Ok((count, arg.walk_end));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    pub(super) fn regions_by_entries(&self, range: Range<u64>, query: &Query) -> Result<Vec<Region>> {
        let mut found = Vec::new();
        let range = whole_pages(range);
        self.for_each_chunk(range, |base, entries| match_entries(base, entries, query, &mut found))?;
        Ok(found)
    }
}

/// The pages that a range touches, but none that no process can have (2^56: five levels of tables).
fn whole_pages(range: Range<u64>) -> Range<u64> {
    const END: u64 = 1 << 56;
    range.start.min(END) & !(PAGE_SIZE - 1)..range.end.min(END).next_multiple_of(PAGE_SIZE)
}

/// Adds the matching pages of a chunk to `found`.
pub(super) fn match_entries(base: u64, entries: &[Entry], query: &Query, found: &mut Vec<Region>) {
    for (index, entry) in entries.iter().enumerate() {
        let page = entry.categories();
        if query.matches(page) {
            let start = base + index as u64 * PAGE_SIZE;
            let categories = Categories(page.0 & query.tell.0);
            push(found, Region { start, end: start + PAGE_SIZE, categories });
        }
    }
}

/// Adds a region, as a part of the one before where it continues it.
fn push(found: &mut Vec<Region>, region: Region) {
    match found.last_mut() {
        Some(last) if last.end == region.start && last.categories == region.categories => {
            last.end = region.end;
        }
        _ if !region.is_empty() => found.push(region),
        _ => {}
    }
}

/// `struct pm_scan_arg` of include/uapi/linux/fs.h.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 0x60 && size_of::<Region>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_ioctl_is_asked_entry_by_entry() {
        // A regular file answers ENOTTY too, and holds what we say.
        let words = [0u64, 1 << 63, 1 << 63, 1 << 63 | 1 << 61, 1 << 62];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), bytes).unwrap();
        let file = File::open(path.path()).unwrap();
        let map = Pagemap { file, path: path.path().to_owned() };
        let error = map.scan(0..5 * PAGE_SIZE, &Query::PRIVATE).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
        assert!(error.to_string().starts_with("cannot scan "));
        let found = map.regions(0..9 * PAGE_SIZE, &Query::PRIVATE).unwrap();
        let ranges: Vec<_> = found.iter().map(|r| (r.start, r.end)).collect();
        assert_eq!(ranges, [(0x1000, 0x3000), (0x4000, 0x5000)]);
    }
}
