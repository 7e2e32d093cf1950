//! Unix sockets: listening ones, unconnected ones, and pairs within the process with their queues.
use super::{encode, sock, Object};
use crate::capture::{FileView, Observer, SocketView};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use image::v1::sockets::{Message, Socket};
use sys::program::{Arg, Arg::Imm, Program};

/// A unix socket that listens or is not connected.
pub struct UnixListen;
/// A unix socket connected to another of the same process.
pub struct UnixPair;

fn unix(f: &FileView) -> Option<&SocketView> {
    f.socket.as_ref().filter(|s| s.domain == libc::AF_UNIX)
}

/// The other end is closed: it has no inode. Nor has one that an outside listener has yet to accept, but only a closed one has
/// shut this end down too.
fn peer_is_closed(s: &SocketView) -> bool {
    const BOTH_WAYS: u8 = 3;
    s.unix().is_some_and(|u| u.peer == Some(0) && (s.kind == libc::SOCK_DGRAM || u.shutdown == BOTH_WAYS))
}

/// The name in a sockaddr_un, without a path's NUL.
pub(super) fn name(addr: &[u8]) -> &[u8] {
    let n = addr.get(2..).unwrap_or_default();
    match n.first() {
        Some(0) | None => n,
        _ => n.strip_suffix(&[0]).unwrap_or(n),
    }
}

impl Object for UnixListen {
    fn kind(&self) -> Kind {
        Kind::UnixListen
    }

    fn claims(&self, f: &FileView) -> bool {
        unix(f).is_some_and(|s| s.listening || s.remote.is_none() && s.unix().is_none_or(|u| u.peer.is_none()))
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let waiting =
            unix(f).and_then(|s| s.unix()).map_or(0, |u| if u.pending.is_empty() { 0 } else { u.pending.len() });
        if waiting == 0 {
            return Vec::new();
        }
        let why = format!("{waiting} connections wait to be accepted, which are not kept yet");
        vec![Reason::new(f.describe(), why, "let the program accept them first")]
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, fd) = sock::common(f, o)?;
        if let Some(v) = unix(f) {
            if v.listening {
                s.backlog = v.unix().map_or(libc::SOMAXCONN, |u| u.wqueue as i32);
            } else if s.kind == libc::SOCK_DGRAM {
                s.queue = sock::queue(&fd, false).ok().flatten().unwrap_or_default();
            }
            let path = name(&s.local);
            if path.first().is_some_and(|b| *b != 0) {
                use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
                let p = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
                let p = if p.is_absolute() {
                    p.to_path_buf()
                } else {
                    std::path::Path::new(&format!("/proc/{}/cwd", o.survey.pid)).join(p)
                };
                s.file_mode = std::fs::symlink_metadata(p).map_or(0, |m| m.mode());
            }
        }
        Ok(encode(&s))
    }
}

impl Object for UnixPair {
    fn kind(&self) -> Kind {
        Kind::UnixPair
    }

    fn claims(&self, f: &FileView) -> bool {
        unix(f).is_some_and(|s| s.own_peer || peer_is_closed(s))
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let mut r = Vec::new();
        if f.info.scm_fds.is_some_and(|n| n > 0) {
            r.push(Reason::new(
                f.describe(),
                "descriptors are in flight in its queue (SCM_RIGHTS), which are not kept yet",
                "let the program receive them first",
            ));
        }
        r
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, fd) = sock::common(f, o)?;
        let failed = |e| o.explain(crate::capture::Fault::from(e));
        s.queue = sock::queue(&fd, s.kind == libc::SOCK_STREAM).map_err(failed)?.unwrap_or_default();
        let peer = o.files().iter().find(|v| s.peer != 0 && v.stat.as_ref().is_some_and(|t| t.ino == s.peer));
        if let (libc::SOCK_STREAM, Some(peer), false) = (s.kind, peer, s.queue.is_empty()) {
            let taken = sys::fdstate::unsent(&o.descriptor(peer.first_fd())?).map_err(failed)?;
            let all: Vec<u8> = s.queue.iter().flat_map(|m| m.data.iter().copied()).collect();
            let size = sock::chunk(all.len(), taken);
            s.queue = all.chunks(size).map(|c| Message { data: c.to_vec().into(), ..Message::default() }).collect();
        }
        Ok(encode(&s))
    }
}

/// A unix socket's name is a path in the file system.
fn path_of(s: &Socket) -> Option<&[u8]> {
    let n = name(&s.local);
    n.first().is_some_and(|b| *b != 0).then_some(n)
}

/// Binds a unix socket to its name; one whose file was deleted meanwhile loses it again.
fn bind(p: &mut Program, fd: Arg, s: &Socket) {
    if s.local.is_empty() {
        return;
    }
    if let Some(path) = path_of(s) {
        // what stands there belonged to the former process: the check has seen that nobody listens
        let path = p.cstr(path);
        p.may(libc::SYS_unlinkat, &[libc::AT_FDCWD.into(), path, Imm(0)]);
    }
    let addr = p.bytes(&s.local);
    p.call(libc::SYS_bind, &[fd, addr, Imm(s.local.len() as u64)]);
    p.named("binding to its name");
    if let Some(path) = path_of(s) {
        let path = p.cstr(path);
        if s.file_mode == 0 {
            p.may(libc::SYS_unlinkat, &[libc::AT_FDCWD.into(), path, Imm(0)]);
        } else {
            p.may(libc::SYS_fchmodat, &[libc::AT_FDCWD.into(), path, Imm((s.file_mode & 0o7777) as u64)]);
        }
    }
}

/// A socket's path as seen from the image's working directory.
fn in_cwd(c: &Checker<'_>, path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    c.path(&c.image.process.cwd).join(std::ffi::OsStr::from_bytes(path))
}

impl Remake for UnixListen {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(s) = files::decode::<Socket>(f) else { return Vec::new() };
        let mut reasons = Vec::new();
        let shown = name(&s.local).escape_ascii().to_string();
        if !s.local.is_empty() && (path_of(&s).is_none() || s.file_mode != 0) {
            let all = sys::sockdiag::SockDiag::open().and_then(|mut d| d.unix()).unwrap_or_default();
            // a path is a socket's if it leads to that socket's file: the same relative name elsewhere is another
            let file = path_of(&s).and_then(|p| std::fs::metadata(in_cwd(c, p)).ok());
            let user = all.iter().find(|u| match (&file, path_of(&s)) {
                (Some(m), Some(_)) => {
                    u.vfs.is_some_and(|v| v.0 as u64 == std::os::unix::fs::MetadataExt::ino(m)) && u.state == 10
                }
                (None, Some(_)) => false,
                (_, None) => u.name.as_deref() == Some(name(&s.local)),
            });
            if let Some(u) = user {
                let why = format!("{shown} is in use by {}", sock::holder(u.inode as u64));
                reasons.push(Reason::new(c.describe(f), why, "end that program"));
            }
        }
        if let Some(path) = path_of(&s).filter(|p| p.starts_with(b"/")) {
            use std::os::unix::ffi::OsStrExt;
            use std::os::unix::fs::FileTypeExt;
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
            let occupied = std::fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket());
            if occupied {
                reasons.push(Reason::new(
                    c.describe(f),
                    format!("{shown} is something else than a socket now"),
                    "move it away",
                ));
            }
            if path.parent().is_some_and(|d| !d.is_dir()) {
                reasons.push(Reason::new(
                    c.describe(f),
                    format!("the directory of {shown} does not exist"),
                    "create it",
                ));
            }
        }
        reasons
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let s: Socket = files::decode(f)?;
        let mut p = Program::new();
        let fd = sock::begin(&mut p, &s);
        for o in s.options.iter().filter(|o| o.0 == libc::SOL_SOCKET && o.1 == libc::SO_REUSEADDR) {
            sock::set(&mut p, fd.arg(), o);
        }
        bind(&mut p, fd.arg(), &s);
        if s.backlog >= 0 {
            p.call(libc::SYS_listen, &[fd.arg(), s.backlog.into()]);
        }
        let r = m.run(&p)?;
        if !s.queue.is_empty() {
            refill_by_name(m, &s)?;
        }
        m.take(r.get(fd))
    }
}

/// Queued datagrams of a bound socket are sent to it again.
fn refill_by_name(m: &mut Maker<'_>, s: &Socket) -> Step<()> {
    let mut p = Program::new();
    let fd = p.call(libc::SYS_socket, &[s.domain.into(), (s.kind | libc::SOCK_CLOEXEC).into(), Imm(0)]);
    let addr = p.bytes(&s.local);
    p.call(libc::SYS_connect, &[fd.arg(), addr, Imm(s.local.len() as u64)]);
    let r = m.run(&p)?;
    let fd = r.get(fd)? as i32;
    sock::refill(m, fd, &s.queue, false)?;
    let mut p = Program::new();
    p.call(libc::SYS_close, &[fd.into()]);
    m.run(&p).map(drop)
}

impl Remake for UnixPair {
    /// Both ends at once, each with what waits to be read at it; the end of a pair whose other end is closed, too.
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let mine: Socket = files::decode(f)?;
        let mut other = None;
        for (i, o) in m.image.files.open.iter().enumerate().filter(|(_, o)| o.kind == Kind::UnixPair as u32) {
            let s: Socket = files::decode(o)?;
            if mine.peer != 0 && s.ino == mine.peer && i as u32 != id {
                other = Some((i as u32, s));
            }
        }
        let (a, b) = pair(m, &mine)?;
        let theirs = other.as_ref().map(|o| o.1.clone()).unwrap_or_default();
        let mut p = Program::new();
        for (fd, s) in [(a, &mine), (b, &theirs)] {
            for o in &s.options {
                sock::set(&mut p, fd.into(), o);
            }
            bind(&mut p, fd.into(), s);
        }
        m.run(&p)?;
        let stream = mine.kind == libc::SOCK_STREAM;
        sock::refill(m, b, &mine.queue, stream)?;
        sock::refill(m, a, &theirs.queue, stream)?;
        let mut p = Program::new();
        match other {
            Some((i, s)) => {
                shut(&mut p, a, mine.shutdown);
                shut(&mut p, b, s.shutdown);
                m.also(i, b);
            }
            None => {
                p.call(libc::SYS_close, &[b.into()]);
            }
        }
        m.run(&p)?;
        Ok(Made::At(a))
    }
}

/// A pair, above the image's descriptors.
fn pair(m: &mut Maker<'_>, s: &Socket) -> Step<(i32, i32)> {
    let mut p = Program::new();
    let ends = p.out(8);
    p.call(
        libc::SYS_socketpair,
        &[s.domain.into(), (s.kind | libc::SOCK_CLOEXEC).into(), s.protocol.into(), ends.arg()],
    );
    let r = m.run(&p)?;
    let low = [r.u32(ends, 0) as i32, r.u32(ends, 4) as i32];
    let mut p = Program::new();
    let dup = Imm(libc::F_DUPFD_CLOEXEC as u64);
    let up = low.map(|fd| p.call(libc::SYS_fcntl, &[fd.into(), dup, m.temp_base().into()]));
    for fd in low {
        p.call(libc::SYS_close, &[fd.into()]);
    }
    let r = m.run(&p)?;
    Ok((r.get(up[0])? as i32, r.get(up[1])? as i32))
}

/// shutdown(2) by the kernel's bits: receiving 1, sending 2.
fn shut(p: &mut Program, fd: i32, bits: u8) {
    if let 1..=3 = bits {
        p.may(libc::SYS_shutdown, &[fd.into(), Imm(bits as u64 - 1)]);
    }
}
