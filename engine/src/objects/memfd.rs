//! memfd_create(2): memory as a file, with its seals. Its content is in the image. One that another process holds too is refused.
use super::{deleted, encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::{self as v1, Kind};
use nix::fcntl::{fcntl, FcntlArg};
use sys::program::{Arg::Imm, Program};

/// Memory as a file.
pub struct Memfd;

const PREFIX: &[u8] = b"/memfd:";

impl Object for Memfd {
    fn kind(&self) -> Kind {
        Kind::Memfd
    }

    fn claims(&self, f: &FileView) -> bool {
        f.is_memfd() && f.held.is_none()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], pid: i32) -> Vec<Reason> {
        let path = sys::procfs::path(pid, &format!("fd/{}", f.first_fd()));
        let huge =
            nix::sys::statfs::statfs(&path).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC);
        let why = "it is memory of huge pages (MFD_HUGETLB), which is not kept yet";
        Vec::from_iter(huge.then(|| Reason::new(f.describe(), why, "run the program without huge pages")))
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let fd = o.descriptor(f.first_fd())?;
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap_or(0) as u32;
        let content = o.keep_content(f, &std::fs::File::from(fd))?;
        let name = f.link.strip_prefix(PREFIX).unwrap_or_default().to_vec().into();
        Ok(encode(&v1::Memfd { name, content, seals, mode: f.stat.as_ref().map_or(0, |s| s.mode) }))
    }
}

/// Makes it with its content, still without seals; a descriptor above the image's.
pub(crate) fn whole(m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<i32> {
    let own: v1::Memfd = files::decode(f)?;
    let mut p = Program::new();
    let name = p.cstr(&own.name);
    let how = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let low = p.call(libc::SYS_memfd_create, &[name, Imm(how as u64)]);
    let up = Imm(libc::F_DUPFD_CLOEXEC as u64);
    let high = p.call(libc::SYS_fcntl, &[low.arg(), up, m.temp_base().into()]);
    p.call(libc::SYS_close, &[low.arg()]);
    p.call(libc::SYS_fchmod, &[high.arg(), Imm((own.mode & 0o7777) as u64)]);
    let r = m.run(&p)?;
    let fd = r.get(high)? as i32;
    deleted::fill_whole(m, fd, own.content)?;
    Ok(fd)
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
            if o.kind == Kind::Memfd as u32 && files::decode::<v1::Memfd>(o)?.content == own.content {
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
