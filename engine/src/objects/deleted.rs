//! Regular files without a name: deleted ones, and O_TMPFILE. Their content is in the image.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::{cannot, Image, Step};
use crate::Result;
use image::v1::files::OpenFile;
use image::v1::objects::{Kind, Unnamed};
use std::os::unix::fs::FileExt;
use sys::program::{Arg::Imm, Program};

/// A regular file without a name.
pub struct Deleted;

impl Object for Deleted {
    fn kind(&self) -> Kind {
        Kind::Deleted
    }

    fn claims(&self, f: &FileView) -> bool {
        let regular = f.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFREG);
        regular && f.deleted && f.link.starts_with(b"/") && !f.link.starts_with(b"/memfd:")
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let Some(s) = f.stat else { return Ok(Vec::new()) };
        let fd = o.descriptor(f.first_fd())?;
        let content = o.keep_content(f, &std::fs::File::from(fd))?;
        let dev = libc::makedev(s.dev.major, s.dev.minor);
        Ok(encode(&Unnamed { path: f.link.clone().into(), content, mode: s.mode, ino: s.ino, dev }))
    }
}

impl Remake for Deleted {
    /// A file without a name in the same directory, or in the first other that has room for one.
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let u: Unnamed = files::decode(f)?;
        if let Some(fd) = made_already(m, id, &u)? {
            return again(m, fd, f);
        }
        let fd = match m.content(u.content) {
            Some(fd) => fd,
            None => whole(m, id, f)?,
        };
        if is_linkable(f) {
            m.give(u.content);
            // kept as it is: its flags say again that it can be linked
            return Ok(Made::At(fd));
        }
        again(m, fd, f)
    }
}

/// Makes the file with its content; a descriptor above the image's.
pub(crate) fn whole(m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<i32> {
    let u: Unnamed = files::decode(f)?;
    let fd = unnamed(m, id, f, &u)?;
    fill_whole(m, fd, u.content)?;
    Ok(fd)
}

/// Gives a file its size and its content.
pub(super) fn fill_whole(m: &Maker<'_>, fd: i32, content: u32) -> Step<()> {
    let content = m.image.files.contents.get(content as usize).cloned().unwrap_or_default();
    let file = std::fs::File::from(m.borrow_fd(fd)?);
    file.set_len(content.size).map_err(|e| super::io("setting its size", e))?;
    content.pages.iter().try_for_each(|run| fill(m.image, &file, run, content.size))
}

/// A descriptor, already numbered, of another open file of the same inode.
fn made_already(m: &Maker<'_>, id: u32, u: &Unnamed) -> Step<Option<i32>> {
    for (i, o) in
        m.image.files.open.iter().take(id as usize).enumerate().filter(|(_, o)| o.kind == Kind::Deleted as u32)
    {
        let other: Unnamed = files::decode(o)?;
        if (other.dev, other.ino) == (u.dev, u.ino) {
            return Ok(m.fds(i as u32).first().copied());
        }
    }
    Ok(None)
}

/// Opens it again with the flags that this open file had; the first descriptor stays below the temporary ones until the end.
pub(super) fn again(m: &mut Maker<'_>, fd: i32, f: &OpenFile) -> Step<Made> {
    let mut p = Program::new();
    let path = p.cstr(format!("/proc/self/fd/{fd}").as_bytes());
    let how = (libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC) as u32;
    let flags = f.flags & how | libc::O_CLOEXEC as u32;
    let new = p.call(libc::SYS_openat, &[(libc::AT_FDCWD).into(), path, Imm(flags as u64)]);
    let r = m.run(&p)?;
    m.take(r.get(new))
}

/// It was opened with O_TMPFILE.
fn is_linkable(f: &OpenFile) -> bool {
    f.flags & (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32 != 0
}

fn unnamed(m: &mut Maker<'_>, id: u32, f: &OpenFile, u: &Unnamed) -> Step<i32> {
    // linkat(2) works on what was opened with O_TMPFILE, and not on what was deleted
    let how = if is_linkable(f) { f.flags as i32 & libc::O_ACCMODE } else { libc::O_RDWR | libc::O_EXCL };
    let flags = libc::O_TMPFILE | libc::O_CLOEXEC | how;
    let dir = u.path.rsplit(|b| *b == b'/').next().map_or(0, |n| u.path.len() - n.len());
    let own: &[u8] = if dir > 1 { &u.path[..dir - 1] } else { b"/" };
    let mode = u.mode & 0o7777;
    for dir in [own, b"/var/tmp", b"/tmp", b"/dev/shm"] {
        let mut p = Program::new();
        let path = m.path(&mut p, dir);
        let fd = p.may(libc::SYS_openat, &[(libc::AT_FDCWD).into(), path, Imm(flags as u64), Imm(0o600)]);
        let r = m.run(&p)?;
        let Ok(fd) = r.get(fd) else { continue };
        let mut p = Program::new();
        let up = p.call(libc::SYS_fcntl, &[Imm(fd as u64), Imm(libc::F_DUPFD_CLOEXEC as u64), m.temp_base().into()]);
        p.call(libc::SYS_close, &[Imm(fd as u64)]);
        p.call(libc::SYS_fchmod, &[up.arg(), Imm(mode as u64)]);
        let r = m.run(&p)?;
        return Ok(r.get(up)? as i32);
    }
    let why = "no directory takes a file without a name (O_TMPFILE) here";
    Err(cannot(m.describe(id, f), why, "make its old directory writable, or /var/tmp"))
}

/// Writes the pages of a run, as far as the file's size goes.
fn fill(image: &Image<'_>, file: &std::fs::File, run: &::image::PageRun, size: u64) -> Step<()> {
    each_page(image, run, &mut |at, pages| {
        let len = (pages.len() as u64).min(size.saturating_sub(at)) as usize;
        file.write_all_at(&pages[..len], at).map_err(|e| super::io("writing its content", e))
    })
}

/// Reads the pages of a run, some at a time: what is done with those from an offset on.
pub(super) fn each_page(
    image: &Image<'_>,
    run: &::image::PageRun,
    with: &mut dyn FnMut(u64, &[u8]) -> Step<()>,
) -> Step<()> {
    const PAGES: u64 = 256;
    let ::image::PageSource::Pack { pack, place } = run.source else { return Ok(()) };
    let packs = image.handle.packs();
    let pack = packs.get(pack as usize).ok_or_else(|| cannot("image", "it lacks a pack", "run `ctl verify`"))?;
    let page = ::image::PAGE_SIZE as u64;
    let mut buf = vec![0; (PAGES * page) as usize];
    let mut done = 0;
    while done < run.pages {
        let n = PAGES.min(run.pages - done);
        let b = &mut buf[..(n * page) as usize];
        pack.read_pages(place + done, b)?;
        with(run.addr + done * page, b)?;
        done += n;
    }
    Ok(())
}
