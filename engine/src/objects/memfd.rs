//! memfd_create(2): memory as a file, with its seals, of ordinary or of huge pages. Its content is in the image. One that another process holds too is refused.
//!
//! A file of huge pages can be read(2), but not written: it is filled through a mapping, which reserves none of them, so that it has those that it had.
use super::{deleted, encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::{hugetlb, Step};
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::{self as v1, Kind};
use nix::fcntl::{fcntl, FcntlArg};
use nix::sys::statfs::{fstatfs, statfs, Statfs, HUGETLBFS_MAGIC};
use sys::program::{Arg::Imm, Program};

/// Memory as a file.
pub enum Memfd {
    /// Of ordinary pages.
    Plain,
    /// Of huge ones (MFD_HUGETLB).
    Huge,
}

const PREFIX: &[u8] = b"/memfd:";

impl Object for Memfd {
    fn kind(&self) -> Kind {
        match self {
            Memfd::Plain => Kind::Memfd,
            Memfd::Huge => Kind::HugeMemfd,
        }
    }

    fn claims(&self, f: &FileView) -> bool {
        let path = || sys::procfs::path(f.pid, &format!("fd/{}", f.first_fd()));
        let of_this_sort = || statfs(&path()).is_ok_and(|s| huge_kb(&s) > 0) == matches!(self, Memfd::Huge);
        f.is_memfd() && f.held.is_none() && of_this_sort()
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let fd = o.descriptor(f.first_fd())?;
        let page_kb = fstatfs(&fd).map_or(0, |s| huge_kb(&s));
        if (page_kb > 0) != matches!(self, Memfd::Huge) {
            let why = "whether it is memory of huge pages (MFD_HUGETLB) could not be told in time";
            return Err(o.refused(Reason::new(f.describe(), why, "it runs on as before; try again")));
        }
        let unit = u64::from(page_kb) << 10;
        if page_kb > 0 && f.stat.as_ref().is_some_and(|s| !(s.size as u64).is_multiple_of(unit)) {
            // fallocate(2) makes such a size, and ftruncate(2) does not
            let why = "its size is not one of whole huge pages, which nobody could give it again";
            return Err(o.refused(Reason::new(
                f.describe(),
                why,
                "let the program make it as long as its pages (ftruncate)",
            )));
        }
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap_or(0) as u32;
        let content = o.keep_content(f, &std::fs::File::from(fd))?;
        let name = f.link.strip_prefix(PREFIX).unwrap_or_default().to_vec().into();
        Ok(encode(&v1::Memfd { name, content, seals, mode: f.stat.as_ref().map_or(0, |s| s.mode), page_kb }))
    }
}

/// Size of the pages of a file's file system in KiB, if those are huge ones; else 0.
pub(crate) fn huge_kb(s: &Statfs) -> u32 {
    if s.filesystem_type() == HUGETLBFS_MAGIC {
        (s.block_size() >> 10) as u32
    } else {
        0
    }
}

/// Whether an open file of the image is one of either sort.
pub(crate) fn is(f: &OpenFile) -> bool {
    f.kind == Kind::Memfd as u32 || f.kind == Kind::HugeMemfd as u32
}

/// Makes it with its content, still without seals; a descriptor above the image's.
pub(crate) fn whole(m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<i32> {
    let own: v1::Memfd = files::decode(f)?;
    let mut p = Program::new();
    let name = p.cstr(&own.name);
    let how = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | hugetlb::memfd_flags(own.page_kb);
    let low = p.call(libc::SYS_memfd_create, &[name, Imm(how as u64)]);
    let up = Imm(libc::F_DUPFD_CLOEXEC as u64);
    let high = p.call(libc::SYS_fcntl, &[low.arg(), up, m.temp_base().into()]);
    p.call(libc::SYS_close, &[low.arg()]);
    p.call(libc::SYS_fchmod, &[high.arg(), Imm((own.mode & 0o7777) as u64)]);
    let r = m.run(&p)?;
    let fd = r.get(high)? as i32;
    match own.page_kb {
        0 => deleted::fill_whole(m, fd, own.content)?,
        _ => fill_huge(m, fd, own.content)?,
    }
    Ok(fd)
}

/// Gives one of huge pages its size and its content.
fn fill_huge(m: &mut Maker<'_>, fd: i32, content: u32) -> Step<()> {
    let content = m.image.files.contents.get(content as usize).cloned().unwrap_or_default();
    std::fs::File::from(m.borrow_fd(fd)?).set_len(content.size).map_err(|e| super::io("setting its size", e))?;
    if content.pages.is_empty() {
        return Ok(());
    }
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    let mut p = Program::new();
    let at = p.call(libc::SYS_mmap, &[Imm(0), Imm(content.size), prot.into(), flags.into(), fd.into(), Imm(0)]);
    p.named("mapping it to fill it");
    let at = m.run(&p)?.get(at)? as u64;
    let image = m.image;
    for run in &content.pages {
        deleted::each_page(image, run, &mut |offset, pages| match offset + pages.len() as u64 <= content.size {
            true => m.write(at + offset, pages),
            false => Err(super::io("filling it", std::io::Error::other("its content is longer than it is"))),
        })?;
    }
    let mut p = Program::new();
    p.call(libc::SYS_munmap, &[Imm(at), Imm(content.size)]);
    m.run(&p).map(drop)
}

/// Puts its seals on, when it has its content and its mappings.
pub(crate) fn seal(m: &mut Maker<'_>, fd: i32, f: &OpenFile) -> Step<()> {
    let own: v1::Memfd = files::decode(f)?;
    let mut p = Program::new();
    if own.seals != 0 {
        p.call(libc::SYS_fcntl, &[fd.into(), libc::F_ADD_SEALS.into(), Imm(own.seals as u64)]);
        p.named("sealing it");
    }
    m.run(&p).map(drop)
}

impl Remake for Memfd {
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let own: v1::Memfd = files::decode(f)?;
        for (i, o) in m.image.files.open.iter().take(id as usize).enumerate() {
            if is(o) && files::decode::<v1::Memfd>(o)?.content == own.content {
                if let Some(fd) = m.fds(i as u32).first().copied() {
                    return deleted::again(m, fd, f);
                }
            }
        }
        let fd = match m.content(own.content) {
            Some(fd) => fd,
            None => {
                let fd = whole(m, id, f)?;
                seal(m, fd, f)?;
                fd
            }
        };
        deleted::again(m, fd, f)
    }
}
