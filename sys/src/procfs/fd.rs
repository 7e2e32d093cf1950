//! `/proc/PID/fd`: the descriptors of a process, what they point at and their stat(2).
//!
//! Needs ptrace read access. stat follows the link in the kernel: it opens nothing, but may wait for a
//! dead network or FUSE file system.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{readlinkat, AtFlags};
use nix::sys::stat::fstatat;

use super::bytes::{dec, split_at_byte};
use super::process::numbers_in;
use super::{path_of, Dev, Pid, ReadError, Result};

/// What stat(2) says of the file behind a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdStat {
    /// File system.
    pub dev: Dev,
    /// Inode number.
    pub ino: u64,
    /// S_IFMT type and permission bits.
    pub mode: u32,
    /// The device, if the file is one.
    pub rdev: Dev,
    /// Links; 0 when deleted.
    pub nlink: u64,
    /// Bytes.
    pub size: i64,
}

impl FdStat {
    /// The S_IFMT part, such as `libc::S_IFIFO`.
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

/// One descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fd {
    /// Its number.
    pub fd: i32,
    /// The link's target, unescaped, as the kernel gives it.
    pub target: Vec<u8>,
    /// stat(2), or the errno with which it failed (a dead FUSE or NFS mount).
    pub stat: std::result::Result<FdStat, i32>,
}

/// What a link's target says. Only `stat` proves it: a file may be named `pipe:[1]`, but then it has
/// a slash before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// `pipe:[INODE]`
    Pipe(u64),
    /// `socket:[INODE]`
    Socket(u64),
    /// `anon_inode:NAME`, the name without brackets: `eventpoll`, `eventfd`, `timerfd`, `signalfd`,
    /// `inotify`, `pidfd`, `io_uring`, `userfaultfd`, ...
    AnonInode(&'a [u8]),
    /// `/memfd:NAME (deleted)`
    Memfd(&'a [u8]),
    /// A namespace, `net:[INODE]`.
    Namespace(&'a [u8], u64),
    /// A path.
    Path {
        /// Without ` (deleted)`.
        path: &'a [u8],
        /// It ended in ` (deleted)`; a living file may be named so too: compare `nlink`.
        deleted: bool,
    },
    /// None of these.
    Other(&'a [u8]),
}

impl<'a> Target<'a> {
    /// From a link's target.
    pub fn parse(target: &'a [u8]) -> Target<'a> {
        if target.starts_with(b"/") {
            let (path, deleted) = match target.strip_suffix(b" (deleted)") {
                Some(path) => (path, true),
                None => (target, false),
            };
            return match path.strip_prefix(b"/memfd:") {
                Some(name) if deleted => Target::Memfd(name),
                _ => Target::Path { path, deleted },
            };
        }
        let Some((kind, rest)) = split_at_byte(target, b':') else {
            return Target::Other(target);
        };
        let inner = rest.strip_prefix(b"[").and_then(|r| r.strip_suffix(b"]"));
        match (kind, inner.and_then(dec)) {
            (b"pipe", Some(ino)) => Target::Pipe(ino),
            (b"socket", Some(ino)) => Target::Socket(ino),
            (b"anon_inode", _) => Target::AnonInode(inner.unwrap_or(rest)),
            (_, Some(ino)) => Target::Namespace(kind, ino),
            _ => Target::Other(target),
        }
    }
}

impl Fd {
    /// What the target says.
    pub fn kind(&self) -> Target<'_> {
        Target::parse(&self.target)
    }
}

/// The descriptor numbers, ascending.
pub fn numbers(pid: Pid) -> Result<Vec<i32>> {
    numbers_in(&path_of(pid, "fd"))
}

/// Every descriptor, ascending. One that is closed meanwhile is left out.
pub fn list(pid: Pid) -> Result<Vec<Fd>> {
    let dir = path_of(pid, "fd");
    let handle = File::open(&dir).map_err(|e| ReadError::io("open", &dir, e))?;
    let mut fds = Vec::new();
    for fd in numbers_in(&dir)? {
        match entry_in(&handle, fd) {
            Ok(entry) => fds.push(entry),
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(ReadError::io("readlink", &dir.join(fd.to_string()), e.into())),
        }
    }
    Ok(fds)
}

/// Every descriptor's number and link, and no more. One that is closed meanwhile is left out.
pub fn links(pid: Pid) -> Result<Vec<(i32, Vec<u8>)>> {
    let dir = path_of(pid, "fd");
    let handle = File::open(&dir).map_err(|e| ReadError::io("open", &dir, e))?;
    let link = |fd: i32| Some((fd, readlinkat(&handle, fd.to_string().as_str()).ok()?.into_vec()));
    Ok(numbers_in(&dir)?.into_iter().filter_map(link).collect())
}

/// One descriptor; ENOENT if it is not open.
pub fn read(pid: Pid, fd: i32) -> Result<Fd> {
    let dir = path_of(pid, "fd");
    let handle = File::open(&dir).map_err(|e| ReadError::io("open", &dir, e))?;
    entry_in(&handle, fd).map_err(|e| ReadError::io("readlink", &dir.join(fd.to_string()), e.into()))
}

/// Link and stat are of one file: they are two looks, between which the number may become another's. A file that is renamed has another link, too.
fn entry_in(dir: &File, fd: i32) -> std::result::Result<Fd, Errno> {
    const TRIES: usize = 100;
    let name = fd.to_string();
    let link = || readlinkat(dir, name.as_str()).map(OsString::into_vec);
    let (mut entry, mut same) = (one_look(dir, fd, link()?), 0);
    for _ in 0..TRIES {
        let now = link()?;
        same = if now == entry.target { same + 1 } else { 0 };
        // a stat of what was closed for a moment fails; so it does on a file system (FUSE, NFS) that forgot a file which is still open
        if same > 2 || same > 0 && entry.stat != Err(libc::ENOENT) {
            break;
        }
        entry = one_look(dir, fd, now);
    }
    Ok(entry)
}

fn one_look(dir: &File, fd: i32, target: Vec<u8>) -> Fd {
    let name = fd.to_string();
    let stat = match fstatat(dir, name.as_str(), AtFlags::empty()) {
        Ok(st) => Ok(FdStat {
            dev: Dev::from_stat(st.st_dev),
            ino: st.st_ino,
            mode: st.st_mode,
            rdev: Dev::from_stat(st.st_rdev),
            nlink: st.st_nlink,
            size: st.st_size,
        }),
        Err(e) => Err(e as i32),
    };
    Fd { fd, target, stat }
}
