//! Pseudo terminals whose masters are within the processes that are captured together: both ends, what waits in them, and the session whose terminal it is.
//! One whose master is outside is an external end.
use super::{encode, Object};
use crate::capture::{Fault, FileView, Observer, PtyView};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use image::v1::pty as v1;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use sys::program::{Arg::Imm, Program};

/// A master.
pub struct PtyMaster;
/// An open file of a slave whose master is there.
pub struct PtySlave;

const TIOCGSID: u64 = 0x5429;
const TIOCGPGRP: u64 = 0x540f;
/// The line discipline holds 4095 bytes; what lies behind them in buffers has not been through it yet, and would be twice.
const MOST_INPUT: usize = 4000;

fn of(f: &FileView, master: bool) -> Option<&PtyView> {
    f.pty.as_ref().filter(|p| f.both_ends && p.master == master)
}

/// The reasons that both ends have in common.
fn inspect(f: &FileView, p: &PtyView) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut say = |why: &str, remedy: &str| reasons.push(Reason::new(f.describe(), why, remedy));
    if p.hung_up {
        say("it was hung up (vhangup(2)), which is not kept", "close it before the checkpoint");
    }
    if p.discipline != sys::pty::N_TTY {
        say(
            &format!("it has line discipline {}, and only the ordinary one is kept", p.discipline),
            "end what has set it (PPP, SLIP, ...)",
        );
    }
    if p.status_waits {
        say(
            "a status waits in it, in packet mode, that the program has not read yet",
            "let the program read it, and try again",
        );
    }
    if f.info.flags & libc::O_ASYNC as u32 != 0 {
        say(
            "it tells by a signal when there is something to read (O_ASYNC), and would do so as it is looked at",
            "clear O_ASYNC before the checkpoint",
        );
    }
    if !p.master && p.readable > MOST_INPUT {
        let why =
            format!("{} bytes of input wait in it, which is more than can be put in again ({MOST_INPUT})", p.readable);
        say(&why, "let the program read them first");
    }
    reasons
}

impl Object for PtyMaster {
    fn kind(&self) -> Kind {
        Kind::PtyMaster
    }

    fn claims(&self, f: &FileView) -> bool {
        of(f, true).is_some()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let Some(p) = of(f, true) else { return Vec::new() };
        inspect(f, p)
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let Some(p) = of(f, true) else { unreachable!("only what is claimed is captured") };
        let fd = o.descriptor(f.first_fd())?;
        let holder =
            o.files().iter().find(|v| of(v, false).is_some_and(|s| s.number == p.number && !s.hung_up)).cloned();
        let holder = holder.map(|v| o.descriptor_of(&v)).transpose()?;
        let failed = |o: &Observer<'_>, e: std::io::Error| o.explain(Fault::from(e));
        let (session, foreground) = whose(f, o)?;
        let settings = sys::tty::get(&fd).map_err(|e| failed(o, e))?;
        let mut m = v1::Master {
            number: p.number,
            opened: p.opened || holder.is_some(),
            termios: settings.termios.into(),
            winsize: settings.winsize,
            locked: sys::pty::is_locked(&fd).map_err(|e| failed(o, e))?,
            packets: sys::pty::in_packets(&fd).unwrap_or(false),
            session,
            foreground,
            owner: owner(f.pid, p.number),
            ..v1::Master::default()
        };
        if !m.opened {
            // to open it would be seen: from then on the master knows that nobody has it open
            if p.readable > 0 {
                let (why, remedy) = ("it has been written to and its other end was never open, so that what waits in it cannot be looked at", "open its other end, and try again");
                return Err(o.refused(Reason::new(f.describe(), why, remedy)));
            }
            o.reported.push(format!("{}: if it was written to before its other end (/dev/pts/{}) is open for the first time, that is lost after a restore", f.describe(), p.number));
            return Ok(encode(&m));
        }
        let w = sys::pty::waiting(&fd, holder.as_ref().map(AsFd::as_fd)).map_err(|e| {
            let why = match e.raw_os_error() {
                Some(libc::ENOBUFS) => "more lines wait in it than can be put in again (2000 bytes)".into(),
                _ => format!("what waits in it cannot be looked at ({e})"),
            };
            o.refused(Reason::new(f.describe(), why, "let the program read it, and try again"))
        })?;
        m.output = w.output.into();
        m.lines = w.lines.into_iter().map(Into::into).collect();
        m.rest = w.rest.into();
        m.stopped = w.stopped as u32;
        Ok(encode(&m))
    }
}

/// Session and foreground group, by the numbers that the program knows.
fn whose(f: &FileView, o: &mut Observer<'_>) -> Result<(i32, i32)> {
    let mut p = Program::new();
    let (sid, group) = (p.out(4), p.out(4));
    let fd = f.first_fd();
    let asked = p.may(libc::SYS_ioctl, &[fd.into(), Imm(TIOCGSID), sid.arg()]);
    let told = p.may(libc::SYS_ioctl, &[fd.into(), Imm(TIOCGPGRP), group.arg()]);
    let r = o.run(&p)?;
    let of = |c, out| r.get(c).map_or(0, |_| r.u32(out, 0) as i32);
    Ok((of(asked, sid), of(told, group)))
}

fn owner(pid: i32, number: u32) -> Option<(u32, u32, u32)> {
    let at = |root: std::path::PathBuf| std::fs::metadata(root.join(format!("dev/pts/{number}"))).ok();
    let m = at(sys::procfs::path(pid, "root")).or_else(|| at("/".into()))?;
    (m.rdev() == libc::makedev(sys::pty::SLAVE_MAJOR, number)).then(|| (m.uid(), m.gid(), m.mode() & 0o7777))
}

impl Object for PtySlave {
    fn kind(&self) -> Kind {
        Kind::PtySlave
    }

    fn claims(&self, f: &FileView) -> bool {
        of(f, false).is_some()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        of(f, false).map_or_else(Vec::new, |p| inspect(f, p))
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let Some(p) = of(f, false) else { unreachable!("only what is claimed is captured") };
        let exclusive = sys::pty::is_exclusive(&o.descriptor(f.first_fd())?).unwrap_or(false);
        Ok(encode(&v1::Slave { number: p.number, controlling: f.link == b"/dev/tty", exclusive }))
    }
}

impl Remake for PtyMaster {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let want = nix::unistd::AccessFlags::R_OK | nix::unistd::AccessFlags::W_OK;
        match nix::unistd::access("/dev/ptmx", want) {
            Ok(()) => Vec::new(),
            Err(e) => vec![Reason::new(
                c.describe(f),
                format!("/dev/ptmx cannot be opened here: {e}"),
                "mount devpts with ptmxmode=666",
            )],
        }
    }

    /// It was made before any process (restore/ptys.rs), and all have it.
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let own: v1::Master = files::decode(f)?;
        let Some((master, _)) = m.pty(own.number) else { return Err(lost(m, id, f)) };
        let mut p = Program::new();
        let fd = p.call(libc::SYS_fcntl, &[master.into(), Imm(libc::F_DUPFD_CLOEXEC as u64), m.temp_base().into()]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    /// Now nobody has to open its slave any more.
    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let own: v1::Master = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied().filter(|_| own.locked) else { return Ok(()) };
        let mut p = Program::new();
        let one = p.bytes(&1i32.to_le_bytes());
        p.call(libc::SYS_ioctl, &[fd.into(), Imm(sys::pty::LOCK), one]);
        m.run(&p).map(drop)
    }
}

impl Remake for PtySlave {
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let own: v1::Slave = files::decode(f)?;
        let Some((master, _)) = m.pty(own.number) else { return Err(lost(m, id, f)) };
        // TIOCGPTPEER would leave O_CLOEXEC among the flags that F_GETFL tells
        let mode = f.flags & libc::O_ACCMODE as u32 | (libc::O_NOCTTY | libc::O_NONBLOCK) as u32;
        let mut p = Program::new();
        if own.controlling && m.image.process.tty == crate::restore::ptys::device(own.number) {
            let path = p.cstr(b"/dev/tty");
            let fd = p.may(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, Imm(mode.into())]);
            if let Ok(fd) = m.run(&p)?.get(fd) {
                return Ok(Made::At(fd as i32));
            }
            p = Program::new();
        }
        let fd = p.call(libc::SYS_ioctl, &[master.into(), Imm(sys::pty::TIOCGPTPEER), Imm(mode.into())]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let own: v1::Slave = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied().filter(|_| own.exclusive) else { return Ok(()) };
        let mut p = Program::new();
        p.call(libc::SYS_ioctl, &[fd.into(), Imm(libc::TIOCEXCL)]);
        m.run(&p).map(drop)
    }
}

fn lost(m: &Maker<'_>, id: u32, f: &OpenFile) -> crate::restore::Fault {
    cannot(m.describe(id, f), "its master is not in the image", "run `ctl verify`; restore an earlier checkpoint")
}
