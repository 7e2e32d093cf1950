//! Mappings in the image's words, and the pages that must be stored.
use super::dropped::{self, without};
use super::observe::lock;
use super::snapshot::Child;
use super::swapped::{self, Stored};
use super::{Fault, Observer, Step};
use crate::{Error, Kind, Reason};
use image::v1::memory::*;
use image::PageSink;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use sys::mem::RemoteMem;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::pagemap::{Categories, Pagemap, Query, Region};
use sys::procfs::smaps::{VmFlag, VmFlags};
use sys::program::{Arg::Imm, Program};

/// Bytes read in one go: few enough to be in the CPU's cache still when they are hashed and handed on.
const CHUNK: u64 = 256 << 10;
const PAGE: u64 = image::PAGE_SIZE as u64;
/// Kernel 6.13, uapi/asm-generic/mman-common.h.
const MADV_GUARD_REMOVE: u64 = 103;

/// The mapped files met so far.
#[derive(Default)]
pub(super) struct Mapped {
    pub files: Vec<MappedFile>,
    by_path: HashMap<Vec<u8>, Option<u32>>,
    /// Those without a name whose content is stored.
    unnamed: Vec<Unnamed>,
    /// Of System V shared memory.
    pub segments: Vec<Segment>,
}

/// A file without a name whose content is stored.
#[derive(Clone, Debug)]
pub(super) struct Unnamed {
    pub ino: u64,
    pub path: Vec<u8>,
    /// Index in the image's `Files::contents`.
    pub content: u32,
}

/// Memory shared with a file without a name: a memfd, a deleted file, or what the kernel makes for shared huge pages.
pub(super) fn is_unnamed(v: &Vma) -> bool {
    if !(v.perms.shared && v.deleted) {
        return false;
    }
    // a living file may have a name that ends like that
    let lives = |path: &[u8]| std::fs::metadata(std::ffi::OsStr::from_bytes(path)).is_ok_and(|m| m.ino() == v.inode);
    let kind = v.kind();
    matches!(kind, VmaKind::Memfd(_) | VmaKind::AnonHugepage) || kind == VmaKind::File && !lives(&v.full_path())
}

impl Mapped {
    /// None met yet; these have no name, and these segments are known from the freeze.
    pub fn with(unnamed: Vec<Unnamed>, segments: Vec<Segment>) -> Mapped {
        Mapped { unnamed, segments, ..Mapped::default() }
    }

    /// Index of the segment behind a mapping.
    fn segment(&self, v: &Vma) -> Option<u32> {
        self.segments.iter().position(|s| s.id as u64 == v.inode).map(|i| i as u32)
    }

    /// Where the content of the file without a name behind a mapping is.
    pub fn content(&self, v: &Vma) -> Option<u32> {
        let of = |u: &&Unnamed| u.ino == v.inode && u.path == v.path;
        self.unnamed.iter().find(of).map(|u| u.content).filter(|_| is_unnamed(v))
    }

    /// Index of the file behind a mapping; None if its name leads elsewhere now, or to the agent: that need not be there at a restore.
    fn index(&mut self, v: &Vma) -> Option<u32> {
        if let Some(i) = self.by_path.get(&v.path) {
            return *i;
        }
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&v.path));
        let meta = std::fs::metadata(path)
            .ok()
            .filter(|_| !sys::agent::is_file(&v.path))
            .filter(|m| !v.deleted && m.ino() == v.inode && m.is_file());
        let i = meta.map(|m| {
            self.files.push(MappedFile {
                path: v.path.clone().into(),
                size: m.size(),
                mtime_ns: m.mtime() * 1_000_000_000 + m.mtime_nsec(),
                build_id: build_id(path).unwrap_or_default(),
                writable: false,
            });
            self.files.len() as u32 - 1
        });
        self.by_path.insert(v.path.clone(), i);
        i
    }
}

/// The name of a mapped file leads to another file now, or to none.
pub(super) fn is_gone(v: &Vma) -> bool {
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&v.path));
    v.deleted || !std::fs::metadata(path).is_ok_and(|m| m.ino() == v.inode && m.is_file())
}

/// GNU build ID of an ELF file, hex, if its notes lie in the first page (as linkers put them).
pub(crate) fn build_id(path: &std::path::Path) -> Option<String> {
    let mut b = [0u8; 4096];
    let f = std::fs::File::open(path).ok()?;
    let n = f.read_at(&mut b, 0).ok()?;
    let b = &b[..n];
    if !b.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // a note: name size 4, description size, type 3 (NT_GNU_BUILD_ID), "GNU\0"
    let at = b
        .windows(12)
        .position(|w| w[0] == 4 && w[1..4] == [0, 0, 0] && w[4..8] != [0; 4] && w[8..12] == [3, 0, 0, 0])?;
    if b.get(at + 12..at + 16)? != b"GNU\0" {
        return None;
    }
    let len = u32::from_le_bytes(b[at + 4..at + 8].try_into().ok()?) as usize;
    Some(b.get(at + 16..at + 16 + len)?.iter().map(|x| format!("{x:02x}")).collect())
}

/// A mapping in the image's words; None for what the kernel makes by itself or what is ours.
pub(super) fn translate(v: &Vma, flags: &VmFlags, mapped: &mut Mapped) -> Option<image::v1::memory::Vma> {
    let mut out = image::v1::memory::Vma {
        start: v.start,
        end: v.end,
        prot: v.perms.prot() as u32,
        backing: BACKING_ANON,
        file: 0,
        offset: v.offset,
        share: 0,
        flags: flags.iter().map(|f| String::from_utf8_lossy(&f.0).into_owned()).collect(),
        mempolicy: (0, 0),
        page_kb: 0,
        name: Default::default(),
    };
    match v.kind() {
        VmaKind::Vsyscall => return None,
        VmaKind::AnonNamed(n) if n == sys::inject::MAPPING_NAME.as_bytes() => return None,
        VmaKind::Vdso => out.backing = BACKING_VDSO,
        VmaKind::Vvar | VmaKind::VvarVclock => out.backing = BACKING_VVAR,
        VmaKind::AioRing => out.backing = BACKING_AIO,
        VmaKind::AnonHugepage if !v.perms.shared => out.backing = BACKING_HUGETLB,
        VmaKind::AnonInode(b"io_uring") => {
            out.backing = BACKING_URING;
            out.share = v.inode;
        }
        VmaKind::SysvShm { .. } => {
            out.backing = BACKING_SYSV;
            out.file = mapped.segment(v)?;
        }
        VmaKind::SharedAnon => {
            out.backing = BACKING_SHARED_ANON;
            out.share = v.inode;
        }
        VmaKind::AnonShmemNamed(n) => {
            out.backing = BACKING_SHARED_ANON;
            out.share = v.inode;
            out.name = n.to_vec().into();
        }
        VmaKind::AnonNamed(n) => out.name = n.to_vec().into(),
        VmaKind::Anonymous | VmaKind::Heap | VmaKind::Stack | VmaKind::Special(_) => {}
        _ if mapped.content(v).is_some() => {
            out.backing = BACKING_UNNAMED;
            out.file = mapped.content(v).unwrap_or_default();
        }
        _ => match mapped.index(v) {
            Some(i) => {
                out.file = i;
                out.backing = if v.perms.shared { BACKING_FILE_SHARED } else { BACKING_FILE_PRIVATE };
                if v.perms.shared && flags.has(VmFlag::MAY_WRITE) {
                    mapped.files[i as usize].writable = true;
                }
            }
            None => {
                out.backing = BACKING_FILE_GONE;
                if sys::agent::is_file(&v.path) {
                    out.name = sys::agent::NAME.to_vec().into();
                }
            }
        },
    }
    if matches!(v.kind(), VmaKind::Vdso | VmaKind::Vvar | VmaKind::VvarVclock) {
        out.name = v.path.clone().into();
    }
    Some(out)
}

/// Pages with content of their own, and guards, told apart by GUARD.
const PRIVATE_AND_GUARDS: Query = Query {
    all: Categories::NONE,
    any: Categories::PRESENT.or(Categories::SWAPPED),
    none: Categories::FILE.or(Categories::PFNZERO),
    tell: Categories::GUARD,
};

/// Guards, told as such.
const GUARDS: Query =
    Query { all: Categories::GUARD, any: Categories::NONE, none: Categories::NONE, tell: Categories::GUARD };

/// Regions of a mapping whose pages must be stored; those that have GUARD are guards instead.
pub(super) fn stored_regions(v: &image::v1::memory::Vma, map: &Pagemap) -> Step<Vec<Region>> {
    let range = v.start..v.end;
    Ok(match v.backing {
        BACKING_ANON | BACKING_FILE_PRIVATE | BACKING_HUGETLB => map.regions(range, &PRIVATE_AND_GUARDS)?,
        BACKING_VDSO => vec![whole(v)],
        // all of it, but behind guards there is nothing
        BACKING_FILE_GONE => {
            let guards = map.regions(range, &GUARDS)?;
            let mut all = without(vec![whole(v)], &guards.iter().map(|g| g.start..g.end).collect::<Vec<_>>());
            all.extend(guards);
            all
        }
        // the content is the file's
        BACKING_FILE_SHARED | BACKING_UNNAMED => map.regions(range, &GUARDS)?,
        _ => Vec::new(),
    })
}

fn whole(v: &image::v1::memory::Vma) -> Region {
    Region { start: v.start, end: v.end, categories: Default::default() }
}

/// Whether guards lie in a mapping.
pub(super) fn is_guarded(pid: i32, v: &Vma) -> Step<bool> {
    Ok(!Pagemap::open(pid)?.regions(v.start..v.end, &GUARDS)?.is_empty())
}

/// Reads a region's pages into the sink. Pages of a lost file that lie behind its end cannot be read and are left out.
/// `buf` is used again and again: fresh memory costs its page faults.
pub(super) fn copy(
    mem: &RemoteMem,
    r: &Region,
    holes: bool,
    sink: &mut PageSink,
    buf: &mut Vec<u8>,
    told: &mut dyn FnMut(u64),
) -> Step<()> {
    let mut at = r.start;
    buf.resize(buf.len().max(CHUNK.min(r.end - r.start) as usize), 0);
    while at < r.end {
        let n = CHUNK.min(r.end - at) as usize;
        // of a lost file nothing tells afterwards whether it was the same process
        let read = if holes { mem.read(at, &mut buf[..n]) } else { mem.read_by_number(at, &mut buf[..n]) };
        match read {
            Ok(()) => sink.push(at, &buf[..n])?,
            Err(e) if !holes => return Err(e.into()),
            Err(_) => {
                for p in (0..n).step_by(PAGE as usize) {
                    let page = &mut buf[p..p + PAGE as usize];
                    if mem.read(at + p as u64, page).is_ok() {
                        sink.push(at + p as u64, page)?;
                    }
                }
            }
        }
        told(n as u64);
        at += n as u64;
    }
    match holes {
        true => Ok(()),
        false => Ok(mem.is_there(r.start)?),
    }
}

/// Whether a snapshot child lacks this mapping's content.
pub(super) fn is_unforkable(v: &Vma, flags: &VmFlags) -> bool {
    let shared_anon = matches!(v.kind(), VmaKind::SharedAnon | VmaKind::AnonShmemNamed(_) | VmaKind::SysvShm { .. });
    shared_anon || super::hugetlb::is(v) || flags.has(VmFlag::DONTFORK) || flags.has(VmFlag::WIPEONFORK)
}

/// Why the context of asynchronous I/O that a ring belongs to cannot be kept: head and tail of the ring differ (fs/aio.c,
/// `struct aio_ring`).
pub(super) fn unread_completions(mem: &RemoteMem, v: &Vma) -> Option<Reason> {
    let mut b = [0; 16];
    mem.read(v.start, &mut b).ok()?;
    let word = |i: usize| b[i..i + 4].try_into().map_or(0, u32::from_le_bytes);
    let (why, remedy) = (
        "completed asynchronous I/O waits in it to be read, which is not kept",
        "let the program read it (io_getevents)",
    );
    (word(8) != word(12)).then(|| Reason::new(super::mappings::describe(v), why, remedy))
}

impl Observer<'_> {
    /// Refuses contexts of asynchronous I/O with completions in them. What is still in flight nobody can see.
    pub(super) fn asynchronous(&mut self, maps: &[Vma]) -> Step<()> {
        let rings: Vec<&Vma> = maps.iter().filter(|v| v.kind() == VmaKind::AioRing).collect();
        let reasons: Vec<Reason> = rings.iter().filter_map(|v| unread_completions(&self.mem, v)).collect();
        if !reasons.is_empty() {
            return Err(Error { kind: Kind::Refused, attempted: self.survey.attempted.clone(), reasons }.into());
        }
        for v in rings {
            let what = "asynchronous I/O in flight, if there is any (the kernel does not tell), is lost at a restore";
            self.reported.push(format!("{}: {what}", super::mappings::describe(v)));
        }
        Ok(())
    }
}

impl Observer<'_> {
    /// Stores, in the freeze, the pages that a snapshot child would not have.
    pub(super) fn unforkable(&mut self, maps: &[Vma]) -> Step<()> {
        let pagemap = Pagemap::open(self.survey.pid)?;
        let segments = self.segments_of(maps)?;
        let (mut mapped, none) = (Mapped::with(self.common.unnamed(), segments), VmFlags::default());
        let mut shared = std::collections::HashSet::new();
        let (mut buf, mut stored) = (Vec::new(), Vec::new());
        let dropped = self.dropped();
        for v in maps {
            let known = self.smaps.get(self.smaps.partition_point(|m| m.vma.end <= v.start));
            let flags = known.filter(|m| m.vma.start < v.end).map_or(&none, |m| &m.flags);
            if !is_unforkable(v, flags) {
                continue;
            }
            let Some(t) = translate(v, flags, &mut mapped) else { continue };
            let shared_memory = matches!(t.backing, BACKING_SHARED_ANON | BACKING_SYSV);
            let guarded = if shared_memory { pagemap.regions(v.start..v.end, &GUARDS)? } else { Vec::new() };
            self.guards.extend(guarded.iter().map(|g| (g.start, g.end)));
            let segment = mapped.segments.get(t.file as usize).filter(|_| t.backing == BACKING_SYSV);
            let ends = segment.is_some_and(|s| s.ends);
            if t.backing == BACKING_HUGETLB {
                self.huge.push((v.start, v.end));
            }
            // several mappings of the same shared memory: its pages once, of each part
            let part = (v.inode, t.offset, t.end - t.start);
            let known = match t.backing {
                BACKING_SHARED_ANON => !shared.insert(part),
                _ => ends && !lock(&self.common.segments).insert(part),
            };
            if known {
                continue;
            }
            let regions = match t.backing {
                _ if ends => match segment.filter(|s| s.page_kb > 0).cloned() {
                    Some(s) => self.huge_pages_there(v, &s)?,
                    None => self.shared_pages(v)?,
                },
                BACKING_SHARED_ANON => self.shared_pages(v)?,
                _ => without(stored_regions(&t, &pagemap)?, &dropped::of(&dropped, v)),
            };
            let (guards, pages): (Vec<_>, Vec<_>) =
                regions.into_iter().partition(|r| r.categories.has(Categories::GUARD));
            self.guards.extend(guards.iter().map(|g| (g.start, g.end)));
            // what lies behind guards cannot be read here
            let within = |(start, end)| guarded.iter().map(move |g| (g.start.max(start), g.end.min(end)));
            self.hidden.extend(pages.iter().flat_map(|r| within((r.start, r.end))).filter(|(start, end)| start < end));
            stored.extend(dropped::without(pages, &guarded.iter().map(|g| g.start..g.end).collect::<Vec<_>>()));
        }
        // at once: others of the tree have the same sink, and their runs are not this one's
        let runs = self.common.sink(|sink| {
            for r in &stored {
                copy(&self.mem, r, false, sink, &mut buf, &mut |_| {})?;
            }
            Ok(sink.take_runs())
        })?;
        self.early.extend(runs);
        self.segments = mapped.segments;
        Ok(())
    }
}

impl Observer<'_> {
    /// Stores, in the freeze, what shared memory holds behind guards (MADV_GUARD_INSTALL): a child takes its own away, and has that memory, too.
    pub(super) fn hidden(&mut self, child: Option<&mut Child>) -> Step<()> {
        let (child, ranges) = (self.without_huge_pages(child)?, std::mem::take(&mut self.hidden));
        if ranges.is_empty() {
            return Ok(());
        }
        let mut p = Program::new();
        let mut taken = Vec::new();
        for (start, end) in &ranges {
            taken.push(p.may(libc::SYS_madvise, &[Imm(*start), Imm(end - start), Imm(MADV_GUARD_REMOVE)]));
        }
        let why = match child {
            None => "no child can be made that could look behind them".to_owned(),
            Some(child) => match child.channel.run_all(&p) {
                Err(sys::Error::Filtered { calls, .. }) => format!("its seccomp filters do not let through {calls}"),
                Ok(r) if taken.iter().any(|c| r.raw(*c) < 0) => {
                    "a child has not that memory (MADV_DONTFORK)".to_owned()
                }
                r => {
                    r?;
                    let (mem, mut buf) = (RemoteMem::open(child.pid)?, Vec::new());
                    for (start, end) in ranges {
                        let r = Region { start, end, categories: Default::default() };
                        self.common.sink(|sink| copy(&mem, &r, false, sink, &mut buf, &mut |_| {}))?;
                    }
                    let runs = self.common.sink(|sink| Ok(sink.take_runs()))?;
                    self.early.extend(runs);
                    return Ok(());
                }
            },
        };
        let object = format!("shared memory {:x}-{:x}", ranges[0].0, ranges[0].1);
        let why = format!("guards (MADV_GUARD_INSTALL) hide what it holds there, and {why}");
        let remedy = "remove them (MADV_GUARD_REMOVE) before the checkpoint";
        Err(self.refused(Reason::new(object, why, remedy)).into())
    }

    /// Pages of shared memory to be stored. What another process that shares it swaps in between the two looks is not seen.
    pub(super) fn shared_pages(&mut self, v: &Vma) -> Step<Vec<Region>> {
        let resident = self.resident(v.start, v.end)?;
        if !swapped::any() {
            return Ok(resident);
        }
        let out = swapped::pages(v, &sys::procfs::smaps::read(self.survey.pid)?);
        let here = resident.iter().map(|r| r.len() / PAGE).sum();
        match swapped::decide((v.end - v.start) / PAGE, here, out) {
            Stored::Resident => Ok(resident),
            Stored::All => Ok(vec![Region { start: v.start, end: v.end, categories: Default::default() }]),
            Stored::Unknown => {
                let (kind, attempted) = (Kind::Refused, self.survey.attempted.clone());
                Err(Error { kind, attempted, reasons: vec![swapped::refusal(v, out)] }.into())
            }
        }
    }

    /// Pages of shared memory that are there, whether or not this process has them mapped at the moment: mincore(2), asked inside.
    fn resident(&mut self, start: u64, end: u64) -> Step<Vec<Region>> {
        const PAGES: u64 = 256 << 10;
        let mut regions: Vec<Region> = Vec::new();
        for at in (start..end).step_by((PAGES * PAGE) as usize) {
            let len = (end - at).min(PAGES * PAGE);
            let mut p = Program::new();
            let o = p.out((len / PAGE) as usize);
            p.call(libc::SYS_mincore, &[at.into(), len.into(), o.arg()]);
            let r = self.channel.run_all(&p)?;
            for (i, _) in r.bytes(o).iter().enumerate().filter(|(_, b)| **b & 1 != 0) {
                let a = at + i as u64 * PAGE;
                match regions.last_mut().filter(|l| l.end == a) {
                    Some(l) => l.end += PAGE,
                    None => regions.push(Region { start: a, end: a + PAGE, categories: Default::default() }),
                }
            }
        }
        Ok(regions)
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::Sys(sys::Error::File { path: "file".into(), source: e })
    }
}
