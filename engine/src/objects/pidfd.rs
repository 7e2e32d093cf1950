//! pidfd_open(2): of the process itself, of others that are captured with it and of threads, and of processes that have ended. One of somebody else is that
//! one's, and is refused unless it is given up: then it is, in a restored program, of a process that has ended.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::Step;
use crate::{External, Reason, Result};
use image::v1::anon;
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use std::os::unix::net::UnixStream;
use sys::channel::Channel;
use sys::procfs::{self, State};
use sys::program::{Arg::Imm, Program};

/// A handle of the process itself, of one that has ended, or of a stranger.
pub struct PidFd;
/// A handle of another process that is captured too, which may have ended but was not waited for; or of a thread.
pub struct Handle;

/// Whose a handle is.
enum Whose {
    Own,
    /// Its number, as the program knows it.
    Relative(i32),
    /// It has ended, and was waited for, or will be by nobody who is captured: how, if that is known by its PID.
    Ended(Option<i32>),
    /// PID and name; 0: of a process that cannot be seen from here.
    Stranger(i32, String),
}

fn whose(f: &FileView) -> Whose {
    let Some(of) = f.info.pidfd.as_ref() else { return Whose::Stranger(0, String::new()) };
    let ended = |s: &procfs::stat::Stat| s.state == State::Zombie && s.num_threads <= 1;
    match of.pid {
        p if p == f.pid => Whose::Own,
        p if f.relative => Whose::Relative(of.ns_pid.last().copied().unwrap_or(p)),
        -1 => Whose::Ended(None),
        0 => Whose::Stranger(0, String::new()),
        p => match procfs::stat::read(p) {
            Ok(s) if ended(&s) => Whose::Ended(Some(s.exit_code)),
            Ok(s) => Whose::Stranger(p, s.comm.escape_ascii().to_string()),
            Err(e) if e.is_gone() => Whose::Ended(None),
            Err(_) => Whose::Stranger(p, String::new()),
        },
    }
}

fn is_pidfd(f: &FileView) -> bool {
    f.link == b"anon_inode:[pidfd]"
}

impl Object for Handle {
    fn kind(&self) -> Kind {
        Kind::Handle
    }

    fn claims(&self, f: &FileView) -> bool {
        is_pidfd(f) && matches!(whose(f), Whose::Relative(_))
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let pid = if let Whose::Relative(pid) = whose(f) { pid } else { 0 };
        Ok(encode(&anon::Handle { pid }))
    }
}

impl Remake for Handle {
    /// All processes and threads are there.
    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let h: anon::Handle = files::decode(f)?;
        let mut p = Program::new();
        let fd = p.call(libc::SYS_pidfd_open, &[m.number_of(h.pid).into(), Imm((f.flags & HOW) as u64)]);
        p.named(format!("opening a handle of process or thread {}", h.pid));
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }
}

impl Object for PidFd {
    fn kind(&self) -> Kind {
        Kind::PidFd
    }

    fn claims(&self, f: &FileView) -> bool {
        is_pidfd(f)
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let why = match whose(f) {
            Whose::Stranger(..) if f.decided == Some(External::Close) => return Vec::new(),
            Whose::Stranger(0, _) => "it is a handle of a process outside this PID namespace".to_string(),
            Whose::Stranger(p, name) => format!("it is a handle of PID {p} ({name}), which is not the program's own"),
            _ => return Vec::new(),
        };
        let remedy = format!(
            "close it, or give it up (--external close, --external {}=close): it is then a handle of a process that has ended",
            f.first_fd()
        );
        vec![Reason::new(f.describe(), why, remedy)]
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let ino = f.stat.as_ref().map_or(0, |s| s.ino);
        let (own, status) = match whose(f) {
            Whose::Own => (true, None),
            Whose::Stranger(p, name) => {
                let what = format!("it is a handle of PID {p} ({name}); after a restore of a process that has ended");
                o.noted.push(format!("{}: {what}", f.describe()));
                (false, None)
            }
            Whose::Ended(how) => (false, sys::pidfd::exit_status(&o.descriptor(f.first_fd())?).or(how)),
            Whose::Relative(_) => (false, None),
        };
        Ok(encode(&anon::PidFd { own, ino, status }))
    }
}

/// PIDFD_THREAD (O_EXCL) and PIDFD_NONBLOCK (O_NONBLOCK), uapi/linux/pidfd.h.
const HOW: u32 = (libc::O_EXCL | libc::O_NONBLOCK) as u32;

impl Remake for PidFd {
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let h: anon::PidFd = files::decode(f)?;
        if !h.own {
            return ended(m, id, &h);
        }
        let mut p = Program::new();
        let own = p.call(libc::SYS_getpid, &[]);
        let fd = p.call(libc::SYS_pidfd_open, &[own.arg(), Imm((f.flags & HOW) as u64)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }
}

/// Handles of a process that has ended: all those of the same one, of a child that is made for it and ends as that one did.
fn ended(m: &mut Maker<'_>, id: u32, own: &anon::PidFd) -> Step<Made> {
    let mut p = Program::new();
    let ends = p.out(8);
    let how = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    p.call(libc::SYS_socketpair, &[libc::AF_UNIX.into(), how.into(), Imm(0), ends.arg()]);
    let r = m.run(&p)?;
    let (ours, theirs) = (r.u32(ends, 0) as i32, r.u32(ends, 4) as i32);
    // the only one of our end: if we die, so does the child
    let talk = UnixStream::from(m.borrow_fd(ours)?);
    let mut p = Program::new();
    p.call(libc::SYS_close, &[ours.into()]);
    m.run(&p)?;
    let child = m.spawn(theirs)?;

    let mut p = Program::new();
    let mut handles = Vec::new();
    for (i, o) in m.image.files.open.iter().enumerate().filter(|(_, o)| o.kind == Kind::PidFd as u32) {
        let h: anon::PidFd = files::decode(o)?;
        if !h.own && h.ino == own.ino {
            let low = p.call(libc::SYS_pidfd_open, &[child.into(), Imm((o.flags & HOW) as u64)]);
            let up = Imm(libc::F_DUPFD_CLOEXEC as u64);
            let high = p.call(libc::SYS_fcntl, &[low.arg(), up, m.temp_base().into()]);
            p.call(libc::SYS_close, &[low.arg()]);
            handles.push((i as u32, high));
        }
    }
    let r = m.run(&p)?;
    Channel::beside(talk, child).send(wire::OP_BATCH, &end_as(own.status.unwrap_or(0)).encode())?;
    let mut p = Program::new();
    p.call(libc::SYS_wait4, &[child.into(), Imm(0), libc::__WALL.into(), Imm(0)]);
    p.call(libc::SYS_close, &[theirs.into()]);
    m.run(&p)?;
    let mut made = Made::Closed;
    for (i, high) in handles {
        match i == id {
            true => made = m.take(r.get(high))?,
            false => m.also(i, r.get(high)? as i32),
        }
    }
    Ok(made)
}

/// Ends whoever runs it with a wait status; a signal that would not do it is SIGKILL. No core is written.
fn end_as(status: i32) -> Program {
    let mut p = Program::new();
    let (limit, none) = (p.bytes(&[0; 16]), p.bytes(&[0; 8]));
    let signal = status & 0x7f;
    if signal != 0 {
        p.may(libc::SYS_prlimit64, &[Imm(0), Imm(libc::RLIMIT_CORE as u64), limit, Imm(0)]);
        p.may(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK.into(), none, Imm(0), Imm(8)]);
        let own = p.call(libc::SYS_getpid, &[]);
        for sig in [signal, libc::SIGKILL] {
            p.may(libc::SYS_kill, &[own.arg(), sig.into()]);
        }
    }
    p.call(libc::SYS_exit_group, &[(status >> 8 & 0xff).into()]);
    p
}
