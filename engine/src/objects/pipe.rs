//! Pipes whose ends are all within the processes that are captured together, with what is in them.
use super::{encode, Object};
use crate::capture::{Fault, FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::Result;
use image::v1::anon;
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use nix::fcntl::{fcntl, tee, FcntlArg, OFlag, SpliceFFlags};
use serde_bytes::ByteBuf;
use std::os::fd::OwnedFd;
use sys::program::{Arg::Imm, Program};

/// An end of a pipe.
pub struct Pipe;

impl Object for Pipe {
    fn kind(&self) -> Kind {
        Kind::Pipe
    }

    fn claims(&self, f: &FileView) -> bool {
        f.is_pipe() && !f.is_fifo() && f.both_ends
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let ino = f.stat.as_ref().map_or(0, |s| s.ino);
        let fd = o.descriptor(f.first_fd())?;
        let failed = |o: &Observer<'_>, e: nix::Error| o.explain(Fault::from(std::io::Error::from(e)));
        let capacity = fcntl(&fd, FcntlArg::F_GETPIPE_SZ).map_err(|e| failed(o, e))? as u32;
        let reads = |v: &FileView| v.info.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32;
        let first = o.files().iter().find(|v| v.is_pipe() && v.link == f.link && reads(v));
        let mut p = anon::Pipe { ino, capacity, content: Vec::new() };
        if first.is_some_and(|v| (v.pid, v.first_fd()) == (f.pid, f.first_fd())) {
            let packets = o.files().iter().any(|v| v.link == f.link && v.info.flags & libc::O_DIRECT as u32 != 0);
            p.content = content(&fd, capacity, packets).map_err(|e| failed(o, e))?;
        }
        Ok(encode(&p))
    }
}

/// A copy of what is in a pipe (tee(2)), which stays where it is; None: it is empty.
fn copy(fd: &OwnedFd, capacity: u32) -> nix::Result<Option<OwnedFd>> {
    let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(&w, FcntlArg::F_SETPIPE_SZ(capacity as i32))?;
    match tee(fd, &w, capacity as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(_) => Ok(Some(r)),
        Err(nix::Error::EAGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is in a pipe. A read ends behind a packet, so more than one read, or an end in packet mode, means that there are
/// packets; which bytes they are is then found out on a second copy.
pub(super) fn content(fd: &OwnedFd, capacity: u32, packets: bool) -> nix::Result<Vec<anon::PipePart>> {
    let Some(r) = copy(fd, capacity)? else { return Ok(Vec::new()) };
    let mut buf = vec![0; capacity.max(4096) as usize];
    let mut all = Vec::new();
    let mut reads = 0;
    loop {
        match nix::unistd::read(&r, &mut buf)? {
            0 => break,
            n => all.extend_from_slice(&buf[..n]),
        }
        reads += 1;
    }
    if reads <= 1 && !packets {
        return Ok(vec![anon::PipePart { data: ByteBuf::from(all), packet: false }]);
    }
    let Some(r) = copy(fd, capacity)? else { return Ok(Vec::new()) };
    parts(&r, &all)
}

/// Reading one byte takes one byte off a stream, and the whole of a packet.
fn parts(r: &OwnedFd, all: &[u8]) -> nix::Result<Vec<anon::PipePart>> {
    let left = |r: &OwnedFd| sys::fdstate::readable(r).map(|n| n as usize).map_err(|_| nix::Error::EIO);
    let mut out: Vec<anon::PipePart> = Vec::new();
    let mut at = 0;
    while at < all.len() {
        let before = left(r)?;
        nix::unistd::read(r, &mut [0])?;
        let n = before - left(r)?;
        if n == 0 || at + n > all.len() {
            return Err(nix::Error::EIO);
        }
        let data = &all[at..at + n];
        match out.last_mut().filter(|p| n == 1 && !p.packet) {
            Some(stream) => stream.data.extend_from_slice(data),
            None => out.push(anon::PipePart { data: ByteBuf::from(data.to_vec()), packet: n > 1 }),
        }
        at += n;
    }
    Ok(out)
}

impl Remake for Pipe {
    /// Both ends at once, with the content; every other open file of this pipe is opened again through /proc.
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let own: anon::Pipe = files::decode(f)?;
        let mut ends = Vec::new();
        let mut filled = own.clone();
        for (i, o) in m.image.files.open.iter().enumerate().filter(|(_, o)| o.kind == Kind::Pipe as u32) {
            let p: anon::Pipe = files::decode(o)?;
            if p.ino == own.ino {
                ends.push((i as u32, o.flags));
                if !p.content.is_empty() {
                    filled = p;
                }
            }
        }
        let (r, w) = make_pipe(m, &filled)?;
        let (mut reader, mut writer) = (Some(r), Some(w));
        let mut mine = None;
        for (i, flags) in ends {
            let mode = flags & libc::O_ACCMODE as u32;
            let taken = match mode as i32 {
                libc::O_RDONLY => reader.take(),
                libc::O_WRONLY => writer.take(),
                _ => None,
            };
            let fd = match taken {
                Some(fd) => fd,
                None => reopen(m, if mode == libc::O_WRONLY as u32 { w } else { r }, mode)?,
            };
            if i == id {
                mine = Some(fd);
            } else {
                m.also(i, fd);
            }
        }
        Ok(mine.map_or(Made::Closed, Made::At))
    }
}

/// A pipe with its capacity and content; its ends, above the image's descriptors.
fn make_pipe(m: &mut Maker<'_>, pipe: &anon::Pipe) -> Step<(i32, i32)> {
    let mut p = Program::new();
    let ends = p.out(8);
    p.call(libc::SYS_pipe2, &[ends.arg(), Imm(libc::O_NONBLOCK as u64)]);
    let r = m.run(&p)?;
    let (low_r, low_w) = (r.u32(ends, 0) as i32, r.u32(ends, 4) as i32);
    let mut p = Program::new();
    let dup = Imm(libc::F_DUPFD_CLOEXEC as u64);
    let up_r = p.call(libc::SYS_fcntl, &[low_r.into(), dup, m.temp_base().into()]);
    let up_w = p.call(libc::SYS_fcntl, &[low_w.into(), dup, m.temp_base().into()]);
    p.call(libc::SYS_close, &[low_r.into()]);
    p.call(libc::SYS_close, &[low_w.into()]);
    p.call(libc::SYS_fcntl, &[up_w.arg(), Imm(libc::F_SETPIPE_SZ as u64), Imm(pipe.capacity as u64)]);
    p.named("setting the pipe's size");
    let r = m.run(&p)?;
    let (up_r, up_w) = (r.get(up_r)? as i32, r.get(up_w)? as i32);
    fill(m, up_w, &pipe.content)?;
    Ok((up_r, up_w))
}

/// Puts content into a pipe by its descriptor `up_w`, of which the flags are changed.
pub(super) fn fill(m: &mut Maker<'_>, up_w: i32, content: &[anon::PipePart]) -> Step<()> {
    const CHUNK: usize = 256 << 10;
    for part in content {
        for chunk in part.data.chunks(CHUNK) {
            let mut p = Program::new();
            let flags = libc::O_NONBLOCK | if part.packet { libc::O_DIRECT } else { 0 };
            p.call(libc::SYS_fcntl, &[up_w.into(), Imm(libc::F_SETFL as u64), Imm(flags as u64)]);
            let data = p.bytes(chunk);
            let n = p.call(libc::SYS_write, &[up_w.into(), data, Imm(chunk.len() as u64)]);
            p.named("filling the pipe");
            let r = m.run(&p)?;
            if r.get(n)? as usize != chunk.len() {
                return Err(cannot(
                    "pipe",
                    "its content does not fit into it here",
                    "raise /proc/sys/fs/pipe-max-size",
                ));
            }
        }
    }
    Ok(())
}

/// Another open file of the same pipe.
pub(super) fn reopen(m: &mut Maker<'_>, fd: i32, mode: u32) -> Step<i32> {
    let mut p = Program::new();
    let path = p.cstr(format!("/proc/self/fd/{fd}").as_bytes());
    let flags = mode | (libc::O_NONBLOCK | libc::O_CLOEXEC) as u32;
    let new = p.call(libc::SYS_openat, &[(libc::AT_FDCWD).into(), path, Imm(flags as u64)]);
    let up = p.call(libc::SYS_fcntl, &[new.arg(), Imm(libc::F_DUPFD_CLOEXEC as u64), m.temp_base().into()]);
    p.call(libc::SYS_close, &[new.arg()]);
    let r = m.run(&p)?;
    Ok(r.get(up)? as i32)
}
