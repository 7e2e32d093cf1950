//! Files without a name (memfds, deleted files) that are mapped and that no descriptor leads to: their content is what of them is mapped, by whichever
//! of the processes that are captured together.
use super::memory::{is_unnamed, Unnamed};
use super::observe::{lock, Begun};
use super::{Observer, Step};
use crate::{objects, Error, Kind, Reason};
use image::v1::files::{Content, Files, OpenFile};
use image::v1::objects::{Kind as Number, Memfd, Unnamed as Deleted};
use nix::sys::statfs::fstatfs;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::pagemap::Region;
use sys::procfs::smaps::{Smap, VmFlag};

const PAGE: u64 = image::PAGE_SIZE as u64;

/// A mapping of such a file: index of the process, and where.
type Place<'m> = (usize, &'m Vma);

/// A stretch of a file, and where it is mapped.
struct Piece {
    offset: u64,
    of: usize,
    addr: u64,
    len: u64,
}

/// What is known of such a file beside its content.
struct Known {
    content: Content,
    seals: u32,
    mode: u32,
    /// Size of its pages in KiB, if those are huge ones; else 0.
    page_kb: u32,
}

/// Stores those whose content no descriptor has given yet, each as an open file without a descriptor.
pub(super) fn keep(all: &mut [Observer<'_>], begun: &[Begun], out: &mut Files) -> Step<()> {
    let mut by_file: BTreeMap<(u64, Vec<u8>), Vec<Place<'_>>> = BTreeMap::new();
    for (i, (obs, b)) in all.iter().zip(begun).enumerate() {
        let known = obs.common.unnamed();
        for v in b.maps.iter().filter(|v| is_unnamed(v) && !obs.is_special(v)) {
            if !known.iter().any(|u| u.ino == v.inode && u.path == v.path) {
                by_file.entry((v.inode, v.path.clone())).or_default().push((i, v));
            }
        }
    }
    for ((ino, path), places) in by_file {
        let Some(&(i, v)) = places.first() else { continue };
        let known = match all[i].by_the_kernel(v)? {
            Some(known) => known,
            None => by_memory(all, &places)?,
        };
        let obs = &mut all[i];
        let mut contents = lock(&obs.common.contents);
        let content = contents.len() as u32;
        contents.push(known.content);
        drop(contents);
        let (kind, data) = match v.kind() {
            VmaKind::Memfd(_) | VmaKind::AnonHugepage => {
                let name = v.path.strip_prefix(b"/memfd:").or(v.path.strip_prefix(b"/")).unwrap_or_default();
                let (seals, mode, page_kb) = (known.seals, known.mode, known.page_kb);
                let m = Memfd { name: name.to_vec().into(), content, seals, mode, page_kb };
                (if page_kb > 0 { Number::HugeMemfd } else { Number::Memfd }, objects::encode(&m))
            }
            _ => {
                let what = "its file was deleted; what other processes do with it is not kept";
                obs.reported.push(format!("{}: {what}", super::mappings::describe(v)));
                let dev = libc::makedev(v.dev.major, v.dev.minor);
                let d = Deleted { path: path.clone().into(), content, mode: known.mode, ino, dev };
                (Number::Deleted, objects::encode(&d))
            }
        };
        out.open.push(OpenFile {
            kind: kind as u32,
            flags: libc::O_RDWR as u32,
            label: path.clone().into(),
            data: data.into(),
            ..OpenFile::default()
        });
        lock(&obs.common.unnamed).push(Unnamed { ino, path, content });
    }
    Ok(())
}

/// What is mapped of it. Nobody has a descriptor, so seals (but for what they have made of the mappings) and mode are nobody's any more.
fn by_memory(all: &mut [Observer<'_>], places: &[Place<'_>]) -> Step<Known> {
    let mut pieces = Vec::new();
    let page_kb = all[places[0].0].huge_pages(places[0].1)?;
    for (of, v) in places {
        if super::memory::is_guarded(all[*of].survey.pid, v)? {
            let why = "guards (MADV_GUARD_INSTALL) hide what this file without a name holds there, and no descriptor leads to it";
            let remedy = "remove them (MADV_GUARD_REMOVE) before the checkpoint, or make it as root";
            return Err(all[*of].refused(Reason::new(super::mappings::describe(v), why, remedy)).into());
        }
        if page_kb > 0 && !all[*of].is_reserved(v) {
            let why = "no descriptor leads to this file of huge pages without a name, and to look at those that are not reserved (MAP_NORESERVE) could take them from others";
            let remedy = "keep a descriptor of it open, map it without MAP_NORESERVE, or make the checkpoint as root";
            return Err(all[*of].refused(Reason::new(super::mappings::describe(v), why, remedy)).into());
        }
        // which huge pages there are nothing tells: those that are not are reserved, and are there when they have been read
        let pages = match page_kb {
            0 => all[*of].shared_pages(v)?,
            _ => vec![Region { start: v.start, end: v.end, categories: Default::default() }],
        };
        for r in pages {
            pieces.push(Piece { offset: v.offset + (r.start - v.start), of: *of, addr: r.start, len: r.len() });
        }
    }
    pieces.sort_by_key(|p| p.offset);
    let common = all[places[0].0].common.clone();
    let (mut done, mut page) = (0, vec![0; PAGE as usize]);
    for p in &pieces {
        for at in (0..p.len).step_by(PAGE as usize).filter(|at| p.offset + at >= done) {
            // behind the end of the file nothing can be read
            if all[p.of].mem.read(p.addr + at, &mut page).is_ok() {
                common.sink(|sink| Ok(sink.push(p.offset + at, &page)?))?;
            }
        }
        done = done.max(p.offset + p.len);
    }
    let size = size(all, places);
    let pages = common.sink(|sink| Ok(sink.take_runs()))?;
    Ok(Known { content: Content { size, pages }, seals: 0, mode: libc::S_IFREG | 0o700, page_kb })
}

/// How far it goes, to a page: behind its end a mapping cannot be read.
fn size(all: &[Observer<'_>], places: &[Place<'_>]) -> u64 {
    let Some((of, v)) = places.iter().max_by_key(|(_, v)| v.offset + v.len()) else { return 0 };
    let there = |page: u64| all[*of].mem.read(v.start + page * PAGE, &mut [0]).is_ok();
    let (mut low, mut high) = (0, v.len() / PAGE);
    if high > 0 && there(high - 1) {
        low = high;
    }
    // pages below `low` are there, those from `high` on are not
    while low < high {
        let middle = low.midpoint(high);
        if there(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    v.offset + low * PAGE
}

impl Observer<'_> {
    /// It is refused for another reason, or of a device: not to be read.
    fn is_special(&self, v: &Vma) -> bool {
        let has = |f: VmFlag| self.survey_of(v).is_some_and(|m| m.flags.has(f));
        let huge = has(VmFlag::HUGETLB) && !super::hugetlb::is_shared(v);
        v.path == b"/secretmem" || huge || has(VmFlag::IO) || has(VmFlag::PFNMAP)
    }

    /// What the survey says of a mapping, or of what it is a part of.
    fn survey_of(&self, v: &Vma) -> Option<&Smap> {
        self.smaps.get(self.smaps.partition_point(|m| m.vma.end <= v.start)).filter(|m| m.vma.start < v.end)
    }

    /// Size of the pages of a mapping in KiB, if those are huge ones; else 0. One that is younger than the survey is looked at now.
    pub(super) fn huge_pages(&mut self, v: &Vma) -> Step<u32> {
        if self.survey_of(v).is_none_or(|m| m.vma.inode != v.inode) {
            self.smaps = sys::procfs::smaps::read(self.survey.pid)?.into();
        }
        let huge = self.survey_of(v).filter(|m| m.flags.has(VmFlag::HUGETLB));
        Ok(huge.map_or(0, |m| m.kernel_page_kb as u32))
    }

    /// All its huge pages are there, or reserved.
    fn is_reserved(&self, v: &Vma) -> bool {
        self.survey_of(v).is_some_and(|m| !m.flags.has(VmFlag::NORESERVE))
    }

    /// The whole file, through the link of its mapping; None: that needs CAP_CHECKPOINT_RESTORE.
    fn by_the_kernel(&self, v: &Vma) -> Step<Option<Known>> {
        let link = sys::procfs::path(self.survey.pid, &format!("map_files/{:x}-{:x}", v.start, v.end));
        let Ok(file) = File::open(link) else { return Ok(None) };
        let meta = file.metadata()?;
        if meta.nlink() > 0 && v.kind() == VmaKind::File {
            let why = "its file was deleted under this name but lives on under another, which is not kept yet";
            let reason = Reason::new(super::mappings::describe(v), why, "unmap it, or map it by the name that it has");
            let (kind, attempted) = (Kind::Refused, self.survey.attempted.clone());
            return Err(Error { kind, attempted, reasons: vec![reason] }.into());
        }
        let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0) as u32;
        // no run of memory is in the sink: each process takes its own at once
        let read = |sink: &mut image::PageSink| Ok((objects::content::read(&file, sink)?, sink.take_runs()));
        let (size, pages) = self.common.sink(read)?;
        let page_kb = fstatfs(&file).map_or(0, |s| objects::huge_kb(&s));
        Ok(Some(Known { content: Content { size, pages }, seals, mode: meta.mode(), page_kb }))
    }
}
