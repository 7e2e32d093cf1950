//! FIFOs: pipes with a name, whose ends are all within the process or have nobody at the other one, with what is in them. One whose other end is
//! in another process is an external end.
use super::{encode, named, pipe, Object};
use crate::capture::{Fault, FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::{check, Reason, Result};
use image::v1::anon;
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use nix::fcntl::{fcntl, tee, FcntlArg, OFlag, SpliceFFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use sys::program::{Arg::Imm, Program};

/// An open file of a FIFO.
pub struct Fifo;

/// The kernel's default capacity, 16 pages (pipe(7)).
const CAPACITY: u32 = 64 << 10;

/// Whether nobody has an end to read from's other end, and nothing is in it: tee(2) finds the end of the file, and takes nothing. Before the first
/// writer has come poll(2) does not tell.
pub fn is_without_writer(reader: &OwnedFd) -> bool {
    let Ok((_r, w)) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) else { return false };
    tee(reader, &w, 1, SpliceFFlags::SPLICE_F_NONBLOCK) == Ok(0)
}

fn mode(flags: u32) -> i32 {
    flags as i32 & libc::O_ACCMODE
}

fn is_of(a: &FileView, b: &FileView) -> bool {
    a.is_fifo() && a.stat.as_ref().zip(b.stat.as_ref()).is_some_and(|(a, b)| a.dev == b.dev && a.ino == b.ino)
}

impl Object for Fifo {
    fn kind(&self) -> Kind {
        Kind::Fifo
    }

    fn claims(&self, f: &FileView) -> bool {
        f.is_fifo() && f.both_ends
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        named::check_name(f)
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let fd = o.descriptor(f.first_fd())?;
        let failed = |o: &Observer<'_>, e: nix::Error| o.explain(Fault::from(std::io::Error::from(e)));
        let capacity = fcntl(&fd, FcntlArg::F_GETPIPE_SZ).map_err(|e| failed(o, e))? as u32;
        let s = f.stat.unwrap_or_else(|| unreachable!("a FIFO is known by its mode"));
        let dev = libc::makedev(s.dev.major, s.dev.minor);
        let path = f.link.clone().into();
        let mut out = anon::Fifo { path, dev, ino: s.ino, capacity, content: Vec::new(), hung_up: false };
        let same: Vec<&FileView> = o.files().iter().filter(|v| is_of(v, f)).collect();
        // several processes may have it
        let of = |v: &&&FileView| (v.pid, v.first_fd());
        let own = Some((f.pid, f.first_fd()));
        let reader = same.iter().find(|v| mode(v.info.flags) != libc::O_WRONLY).as_ref().map(of);
        let packets = same.iter().any(|v| v.info.flags & libc::O_DIRECT as u32 != 0);
        if reader == own {
            out.content = pipe::content(&fd, capacity, packets).map_err(|e| failed(o, e))?;
        }
        if reader.is_none() && same.first().as_ref().map(of) == own {
            let lost = sys::fdstate::readable(&fd).unwrap_or(0);
            if lost > 0 {
                let what = format!("{lost} bytes in it, which nobody is there to read, are lost after a restore");
                o.reported.push(format!("{}: {what}", f.describe()));
            }
        }
        if mode(f.info.flags) == libc::O_RDONLY {
            let mut p = [PollFd::new(fd.as_fd(), PollFlags::empty())];
            poll(&mut p, PollTimeout::ZERO).map_err(|e| failed(o, e))?;
            out.hung_up = p[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP));
        }
        Ok(encode(&out))
    }
}

/// All open files of the FIFO: index, how it was open, and the record.
fn all(m: &Maker<'_>, own: &anon::Fifo) -> Step<Vec<(u32, i32, anon::Fifo)>> {
    let mut same = Vec::new();
    for (i, o) in m.image.files.open.iter().enumerate().filter(|(_, o)| o.kind == Kind::Fifo as u32) {
        let f: anon::Fifo = files::decode(o)?;
        if (f.dev, f.ino) == (own.dev, own.ino) {
            same.push((i as u32, mode(o.flags), f));
        }
    }
    Ok(same)
}

impl Remake for Fifo {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(own) = files::decode::<anon::Fifo>(f) else { return Vec::new() };
        let path = c.path(&own.path);
        let put_back = "make it again (mkfifo), or pass --map-path OLD=NEW";
        let (why, remedy) = match std::fs::metadata(&path) {
            Err(e) => (format!("{}: {}", path.display(), check::in_words(&path, &e)), check::remedy(&e, put_back)),
            Ok(m) if !m.file_type().is_fifo() => {
                (format!("{} is not a FIFO any more", path.display()), put_back.to_string())
            }
            // both, for what is in it has to be put there
            Ok(_)
                if nix::unistd::access(&path, nix::unistd::AccessFlags::R_OK | nix::unistd::AccessFlags::W_OK)
                    .is_err() =>
            {
                (format!("you may not read and write {}", path.display()), "change its owner or mode".to_string())
            }
            Ok(_) => return Vec::new(),
        };
        vec![Reason::new(c.describe(f), why, remedy)]
    }

    /// All open files of the FIFO at once, with the content.
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let own: anon::Fifo = files::decode(f)?;
        let same = all(m, &own)?;
        let both = open(m, &own)?;
        let content = same.iter().map(|s| &s.2.content).find(|c| !c.is_empty());
        if sys::fdstate::readable(&m.borrow_fd(both)?).unwrap_or(0) > 0 {
            let why = "something is in it, of another process that has it open";
            return Err(cannot(
                m.describe(id, f),
                why,
                "end that process, or pass --map-path OLD=NEW; no process is left",
            ));
        }
        pipe::fill(m, both, content.map_or(&[][..], |c| c))?;
        let written = same.iter().any(|s| s.1 != libc::O_RDONLY);
        // one that has never had a writer, which poll(2) tells from one whose writers have gone
        let fresh = |s: &(u32, i32, anon::Fifo)| !written && !s.2.hung_up;
        let mut made = Vec::new();
        for s in same.iter().filter(|s| !fresh(s)) {
            made.push((s.0, pipe::reopen(m, both, s.1 as u32)?));
        }
        let kept = pipe::reopen(m, both, libc::O_RDONLY as u32)?;
        close(m, both)?;
        for s in same.iter().filter(|s| fresh(s)) {
            made.push((s.0, pipe::reopen(m, kept, s.1 as u32)?));
        }
        close(m, kept)?;
        let mut mine = Made::Closed;
        for (i, fd) in made {
            match i == id {
                true => mine = Made::At(fd),
                false => m.also(i, fd),
            }
        }
        Ok(mine)
    }
}

/// Opens it for both, which waits for nobody, with its capacity.
fn open(m: &mut Maker<'_>, f: &anon::Fifo) -> Step<i32> {
    let mut p = Program::new();
    let path = m.path(&mut p, &f.path);
    let how = libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let low = p.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, how.into()]);
    p.named(format!("opening {}", f.path.escape_ascii()));
    let up = Imm(libc::F_DUPFD_CLOEXEC as u64);
    let high = p.call(libc::SYS_fcntl, &[low.arg(), up, m.temp_base().into()]);
    p.call(libc::SYS_close, &[low.arg()]);
    if f.capacity != CAPACITY {
        p.call(libc::SYS_fcntl, &[high.arg(), Imm(libc::F_SETPIPE_SZ as u64), Imm(f.capacity as u64)]);
        p.named("setting its size");
    }
    let r = m.run(&p)?;
    Ok(r.get(high)? as i32)
}

fn close(m: &mut Maker<'_>, fd: i32) -> Step<()> {
    let mut p = Program::new();
    p.call(libc::SYS_close, &[fd.into()]);
    m.run(&p).map(drop)
}
