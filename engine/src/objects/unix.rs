//! Unix sockets: listening ones, unconnected ones, and pairs within the process with their queues.
use super::{encode, sock, Object};
use crate::capture::{FileView, Observer, SocketView};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use image::v1::sockets::{Message, Socket};
use sys::program::{Arg::Imm, Program};

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
    s.unix.as_ref().is_some_and(|u| u.peer == Some(0) && (s.kind == libc::SOCK_DGRAM || u.shutdown == BOTH_WAYS))
}

/// The name in a sockaddr_un, without a path's NUL.
pub(super) fn name(addr: &[u8]) -> &[u8] {
    let n = addr.get(2..).unwrap_or_default();
    match n.first() {
        Some(0) | None => n,
        _ => n.strip_suffix(&[0]).unwrap_or(n),
    }
}

fn in_flight(f: &FileView) -> Vec<Reason> {
    let why = "descriptors are in flight in its queue (SCM_RIGHTS), which are kept in connected sockets only";
    let reason = || Reason::new(f.describe(), why, "let the program receive them first");
    f.info.scm_fds.filter(|n| *n > 0).map(|_| reason()).into_iter().collect()
}

/// Mode of the file that a socket's name leads to, 0: none.
fn file_mode(s: &Socket, pid: i32) -> u32 {
    use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
    let Some(path) = path_of(s) else { return 0 };
    let p = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
    let p = match p.is_absolute() {
        true => p.to_path_buf(),
        false => sys::procfs::path(pid, "cwd").join(p),
    };
    std::fs::symlink_metadata(p).map_or(0, |m| m.mode())
}

impl Object for UnixListen {
    fn kind(&self) -> Kind {
        Kind::UnixListen
    }

    fn claims(&self, f: &FileView) -> bool {
        unix(f).is_some_and(|s| s.listening || s.remote.is_none() && s.unix.as_ref().is_none_or(|u| u.peer.is_none()))
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let mut r = in_flight(f);
        let waiting =
            unix(f).and_then(|s| s.unix.as_ref()).map_or(0, |u| if u.pending.is_empty() { 0 } else { u.pending.len() });
        if waiting > 0 {
            let why = format!("{waiting} connections wait to be accepted, which are not kept yet");
            r.push(Reason::new(f.describe(), why, "let the program accept them first"));
        }
        r
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, fd) = sock::common(f, o)?;
        if let Some(v) = unix(f) {
            if v.listening {
                s.backlog = v.unix.as_ref().map_or(libc::SOMAXCONN, |u| u.wqueue as i32);
            } else if s.kind == libc::SOCK_DGRAM {
                let failed = |e| o.explain(crate::capture::Fault::from(e));
                s.queue = sock::messages(sock::queue(&fd, &s).map_err(failed)?);
                let named = s.queue.iter().filter(|m| !name(&m.from).is_empty()).count();
                if named > 0 {
                    let what = "datagrams wait to be read whose sender's name is not kept: they cannot be answered";
                    o.reported.push(format!("{}: {named} {what}", f.describe()));
                }
            }
            s.file_mode = file_mode(&s, o.survey.pid);
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

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, fd) = sock::common(f, o)?;
        let failed = |e| o.explain(crate::capture::Fault::from(e));
        let waiting = sock::queue(&fd, &s).map_err(failed)?;
        s.queue = super::in_flight::known(f, o, waiting)?;
        s.file_mode = file_mode(&s, o.survey.pid);
        let peer = o.files().iter().find(|v| s.peer != 0 && v.stat.as_ref().is_some_and(|t| t.ino == s.peer));
        if s.kind == libc::SOCK_STREAM && has_rights(&s) {
            let taken = peer.map(|p| sys::fdstate::unsent(&o.descriptor_of(p)?).map_err(failed)).transpose()?;
            if let Some(r) = super::in_flight::joined(f, &s.queue, taken) {
                return Err(crate::Error {
                    kind: crate::Kind::Refused,
                    attempted: o.survey.attempted.clone(),
                    reasons: vec![r],
                });
            }
        }
        if let (libc::SOCK_STREAM, Some(peer), false) = (s.kind, peer, s.queue.is_empty() || has_rights(&s)) {
            let taken = sys::fdstate::unsent(&o.descriptor_of(peer)?).map_err(failed)?;
            let all: Vec<u8> = s.queue.iter().flat_map(|m| m.data.iter().copied()).collect();
            let size = sock::chunk(all.len(), taken);
            s.queue = all.chunks(size).map(|c| Message { data: c.to_vec().into(), ..Message::default() }).collect();
        }
        if let (libc::SOCK_DGRAM | libc::SOCK_SEQPACKET, Some(peer)) = (s.kind, peer) {
            let taken = sys::fdstate::unsent(&o.descriptor_of(peer)?).map_err(failed)?;
            match sock::unseen(s.kind, &s.queue, taken) {
                Some(0) | None => {}
                // the peer may have sent to others too
                Some(_) if s.queue.is_empty() && !sys::fdstate::is_readable(&fd).map_err(failed)? => {}
                Some(n) if s.queue.is_empty() => s.queue = vec![Message::default(); n],
                Some(n) => {
                    let why = format!("{n} empty messages wait in it among others, and where cannot be seen: an earlier checkpoint has looked, or they are its last");
                    let reasons = vec![Reason::new(f.describe(), why, "checkpoint when the program has read them")];
                    return Err(crate::Error {
                        kind: crate::Kind::Refused,
                        attempted: o.survey.attempted.clone(),
                        reasons,
                    });
                }
            }
        }
        Ok(encode(&s))
    }
}

/// Descriptors are in flight to it.
fn has_rights(s: &Socket) -> bool {
    s.queue.iter().any(|m| !m.rights.is_empty())
}

/// A unix socket's name is a path in the file system.
fn path_of(s: &Socket) -> Option<&[u8]> {
    let n = name(&s.local);
    n.first().is_some_and(|b| *b != 0).then_some(n)
}

/// Binds a unix socket to its name.
fn bind(m: &mut Maker<'_>, fd: i32, s: &Socket) -> Step<()> {
    if s.local.is_empty() {
        return Ok(());
    }
    let mut p = Program::new();
    if let Some(path) = path_of(s).filter(|_| s.file_mode != 0) {
        // what stands there belonged to the former process: the check has seen that nobody listens
        let path = p.cstr(path);
        p.may(libc::SYS_unlinkat, &[libc::AT_FDCWD.into(), path, Imm(0)]);
    }
    let addr = p.bytes(&s.local);
    p.call(libc::SYS_bind, &[fd.into(), addr, Imm(s.local.len() as u64)]);
    p.named("binding to its name");
    if let Some(path) = path_of(s).filter(|_| s.file_mode != 0) {
        let path = p.cstr(path);
        p.may(libc::SYS_fchmodat, &[libc::AT_FDCWD.into(), path, Imm((s.file_mode & 0o7777) as u64)]);
    }
    m.run(&p).map(drop)
}

/// Takes the file of a name away again whose file was deleted at the checkpoint.
fn unname(m: &mut Maker<'_>, s: &Socket) -> Step<()> {
    let Some(path) = path_of(s).filter(|_| s.file_mode == 0) else { return Ok(()) };
    let mut p = Program::new();
    let path = p.cstr(path);
    p.may(libc::SYS_unlinkat, &[libc::AT_FDCWD.into(), path, Imm(0)]);
    m.run(&p).map(drop)
}

/// Whether the name is another socket's of the image: an accepted socket has its listener's, and can have it by no bind.
fn is_anothers(m: &Maker<'_>, id: u32, s: &Socket) -> Step<bool> {
    for (i, o) in m.image.files.open.iter().enumerate() {
        let listens = o.kind == Kind::UnixListen as u32;
        if !s.local.is_empty() && (listens || o.kind == Kind::UnixPair as u32 && (i as u32) < id) {
            let other: Socket = files::decode(o)?;
            if other.local == s.local {
                return Ok(true);
            }
        }
    }
    Ok(false)
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
        let fd = m.run(&p)?.get(fd)? as i32;
        bind(m, fd, &s)?;
        if s.backlog >= 0 {
            let mut p = Program::new();
            p.call(libc::SYS_listen, &[fd.into(), s.backlog.into()]);
            m.run(&p)?;
        }
        if !s.queue.is_empty() {
            refill_by_name(m, &s)?;
        }
        unname(m, &s)?;
        m.take(Ok(fd.into()))
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
        let their_id = other.as_ref().map_or(id, |o| o.0);
        for (fd, s, id) in [(a, &mine, id), (b, &theirs, their_id)] {
            let mut p = Program::new();
            for o in &s.options {
                sock::set(&mut p, fd.into(), o);
            }
            m.run(&p)?;
            if is_anothers(m, id, s)? {
                let what =
                    format!("{}: it has its listener's name no more", m.describe(id, &m.image.files.open[id as usize]));
                m.notes.push(what);
            } else {
                bind(m, fd, s)?;
                unname(m, s)?;
            }
        }
        let mut p = Program::new();
        let later = has_rights(&mine) || has_rights(&theirs);
        let kept = later.then(|| {
            let above = m.temp_base().into();
            p.call(libc::SYS_fcntl, &[b.into(), Imm(libc::F_DUPFD_CLOEXEC as u64), above])
        });
        match kept {
            Some(c) => {
                let b = m.run(&p)?.get(c)? as i32;
                m.fill_later(id, b);
            }
            None => fill(m, (a, &mine), (b, &theirs))?,
        }
        match other {
            Some((i, _)) => m.also(i, b),
            None if later => {
                let mut p = Program::new();
                p.call(libc::SYS_close, &[b.into()]);
                m.run(&p)?;
            }
            None => {}
        }
        Ok(Made::At(a))
    }

    /// What is sent may be any open file of the tree: by now all are there.
    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let Some(b) = m.take_unfilled(id) else { return Ok(()) };
        let mine: Socket = files::decode(f)?;
        let other = m.image.files.open.iter().filter(|o| o.kind == Kind::UnixPair as u32);
        let all = other.map(files::decode::<Socket>).collect::<Step<Vec<_>>>()?;
        let theirs = all.into_iter().find(|s| mine.peer != 0 && s.ino == mine.peer).unwrap_or_default();
        let a = m.passable(id)?;
        fill(m, (a, &mine), (b, &theirs))
    }
}

/// Fills the queues of both ends, and shuts them down as they were. What has no inode is closed.
fn fill(m: &mut Maker<'_>, (a, mine): (i32, &Socket), (b, theirs): (i32, &Socket)) -> Step<()> {
    let stream = mine.kind == libc::SOCK_STREAM;
    sock::refill(m, b, &mine.queue, stream)?;
    sock::refill(m, a, &theirs.queue, stream)?;
    let mut p = Program::new();
    if theirs.ino != 0 {
        shut(&mut p, a, mine.shutdown);
        shut(&mut p, b, theirs.shutdown);
    } else {
        p.call(libc::SYS_close, &[b.into()]);
        // of a datagram socket the end of its peer does not shut it down
        shut(&mut p, a, mine.shutdown);
    }
    m.run(&p).map(drop)
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
