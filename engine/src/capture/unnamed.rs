//! Files without a name (memfds, deleted files) that are mapped and that no descriptor leads to: their content is what of them is mapped.
use super::memory::{is_unnamed, Unnamed};
use super::{Observer, Step};
use crate::{objects, Error, Kind, Reason};
use image::v1::files::{Content, Files, OpenFile};
use image::v1::objects::{Kind as Number, Memfd, Unnamed as Deleted};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::smaps::VmFlag;

const PAGE: u64 = image::PAGE_SIZE as u64;

/// A stretch of a file, and where it is mapped.
struct Piece {
    offset: u64,
    addr: u64,
    len: u64,
}

/// What is known of such a file beside its content.
struct Known {
    content: Content,
    seals: u32,
    mode: u32,
}

impl Observer<'_> {
    /// Stores those whose content no descriptor has given yet, each as an open file without a descriptor.
    pub(super) fn mapped_unnamed(&mut self, maps: &[Vma], out: &mut Files) -> Step<()> {
        let mut by_file: BTreeMap<(u64, Vec<u8>), Vec<&Vma>> = BTreeMap::new();
        for v in maps.iter().filter(|v| is_unnamed(v) && !self.is_special(v)) {
            if !self.unnamed.iter().any(|u| u.ino == v.inode && u.path == v.path) {
                by_file.entry((v.inode, v.path.clone())).or_default().push(v);
            }
        }
        for ((ino, path), vmas) in by_file {
            let known = match self.by_the_kernel(vmas[0])? {
                Some(known) => known,
                None => self.by_memory(&vmas)?,
            };
            let content = out.contents.len() as u32;
            out.contents.push(known.content);
            let (kind, data) = match vmas[0].kind() {
                VmaKind::Memfd(name) => {
                    let m = Memfd { name: name.to_vec().into(), content, seals: known.seals, mode: known.mode };
                    (Number::Memfd, objects::encode(&m))
                }
                _ => {
                    let what = "its file was deleted; what other processes do with it is not kept";
                    self.reported.push(format!("{}: {what}", super::find::describe(vmas[0])));
                    let dev = libc::makedev(vmas[0].dev.major, vmas[0].dev.minor);
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
            self.unnamed.push(Unnamed { ino, path, content });
        }
        Ok(())
    }

    /// It is refused for another reason, or of a device: not to be read.
    fn is_special(&self, v: &Vma) -> bool {
        let known =
            self.smaps.get(self.smaps.partition_point(|m| m.vma.end <= v.start)).filter(|m| m.vma.start < v.end);
        let special = [VmFlag::HUGETLB, VmFlag::IO, VmFlag::PFNMAP];
        v.path == b"/secretmem" || known.is_some_and(|m| special.into_iter().any(|f| m.flags.has(f)))
    }

    /// The whole file, through the link of its mapping; None: that needs CAP_CHECKPOINT_RESTORE.
    fn by_the_kernel(&mut self, v: &Vma) -> Step<Option<Known>> {
        let link = format!("/proc/{}/map_files/{:x}-{:x}", self.survey.pid, v.start, v.end);
        let Ok(file) = File::open(link) else { return Ok(None) };
        let meta = file.metadata()?;
        if meta.nlink() > 0 && v.kind() == VmaKind::File {
            let why = "its file was deleted under this name but lives on under another, which is not kept yet";
            let reason = Reason::new(super::find::describe(v), why, "unmap it, or map it by the name that it has");
            let (kind, attempted) = (Kind::Refused, self.survey.attempted.clone());
            return Err(Error { kind, attempted, reasons: vec![reason] }.into());
        }
        let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0) as u32;
        let before = self.sink.take_runs();
        self.early.extend(before);
        let size = objects::content::read(&file, &mut self.sink)?;
        Ok(Some(Known { content: Content { size, pages: self.sink.take_runs() }, seals, mode: meta.mode() }))
    }

    /// What is mapped of it. Nobody has a descriptor, so seals (but for what they have made of the mappings) and mode are nobody's any more.
    fn by_memory(&mut self, vmas: &[&Vma]) -> Step<Known> {
        let mut pieces = Vec::new();
        for v in vmas {
            for r in self.shared_pages(v)? {
                pieces.push(Piece { offset: v.offset + (r.start - v.start), addr: r.start, len: r.len() });
            }
        }
        pieces.sort_by_key(|p| p.offset);
        let before = self.sink.take_runs();
        self.early.extend(before);
        let (mut done, mut page) = (0, vec![0; PAGE as usize]);
        for p in &pieces {
            for at in (0..p.len).step_by(PAGE as usize).filter(|at| p.offset + at >= done) {
                // behind the end of the file nothing can be read
                if self.mem.read(p.addr + at, &mut page).is_ok() {
                    self.sink.push(p.offset + at, &page)?;
                }
            }
            done = done.max(p.offset + p.len);
        }
        let size = self.size(vmas);
        Ok(Known { content: Content { size, pages: self.sink.take_runs() }, seals: 0, mode: libc::S_IFREG | 0o700 })
    }

    /// How far it goes, to a page: behind its end a mapping cannot be read.
    fn size(&self, vmas: &[&Vma]) -> u64 {
        let Some(v) = vmas.iter().max_by_key(|v| v.offset + v.len()) else { return 0 };
        let there = |page: u64| self.mem.read(v.start + page * PAGE, &mut [0]).is_ok();
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
}
