//! `/proc/PID/ns`: which namespaces a process is in (namespaces(7)).

use std::os::unix::ffi::OsStrExt;

use super::bytes::{dec, split_at_byte};
use super::{path_of, ParseError, Pid, ReadError, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// A kind of namespace; the name is that of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum NsKind {
    Cgroup,
    Ipc,
    Mnt,
    Net,
    Pid,
    PidForChildren,
    Time,
    TimeForChildren,
    User,
    Uts,
}

impl NsKind {
    /// All kinds.
    pub const ALL: [NsKind; 10] = [
        NsKind::Cgroup,
        NsKind::Ipc,
        NsKind::Mnt,
        NsKind::Net,
        NsKind::Pid,
        NsKind::PidForChildren,
        NsKind::Time,
        NsKind::TimeForChildren,
        NsKind::User,
        NsKind::Uts,
    ];

    /// The link's name in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            NsKind::Cgroup => "cgroup",
            NsKind::Ipc => "ipc",
            NsKind::Mnt => "mnt",
            NsKind::Net => "net",
            NsKind::Pid => "pid",
            NsKind::PidForChildren => "pid_for_children",
            NsKind::Time => "time",
            NsKind::TimeForChildren => "time_for_children",
            NsKind::User => "user",
            NsKind::Uts => "uts",
        }
    }
}

/// The inode numbers of a process's namespaces. None: the kernel has no such kind, or (for
/// `pid_for_children`) none exists yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NsIds([Option<u64>; 10]);

impl NsIds {
    /// The inode number of one kind.
    pub fn get(&self, kind: NsKind) -> Option<u64> {
        self.0[kind as usize]
    }

    /// The kinds in which the two processes differ.
    pub fn differences(&self, other: &NsIds) -> Vec<NsKind> {
        NsKind::ALL.into_iter().filter(|kind| self.get(*kind) != other.get(*kind)).collect()
    }
}

/// Parses a link's target, `mnt:[4026531841]`: the inode number.
pub fn parse(target: &[u8]) -> std::result::Result<u64, ParseError> {
    split_at_byte(target, b':')
        .and_then(|(_, rest)| rest.strip_prefix(b"[")?.strip_suffix(b"]"))
        .and_then(dec)
        .ok_or_else(|| ParseError::new("ns", 1, "expected KIND:[INODE]", target))
}

/// The inode number of one namespace of a process; needs ptrace read access.
pub fn read_one(pid: Pid, kind: NsKind) -> Result<u64> {
    let path = path_of(pid, &format!("ns/{}", kind.name()));
    let link = std::fs::read_link(&path).map_err(|e| ReadError::io("readlink", &path, e))?;
    parse(link.as_os_str().as_bytes()).map_err(|source| ReadError::Parse { path, source })
}

/// All namespaces of a process. Fails if the process is gone or may not be looked at.
pub fn read(pid: Pid) -> Result<NsIds> {
    // by its directory, whose name is looked up once
    let path = path_of(pid, "ns");
    let failed = |op, e: Errno| ReadError::io(op, &path, e.into());
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(&path, how, Mode::empty()).map_err(|e| failed("open", e))?;
    let mut ids = NsIds::default();
    for kind in NsKind::ALL {
        match nix::fcntl::readlinkat(&dir, kind.name()) {
            Ok(link) => {
                let id = parse(link.as_bytes());
                ids.0[kind as usize] = Some(id.map_err(|source| ReadError::Parse { path: path.clone(), source })?);
            }
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(failed("readlink", e)),
        }
    }
    if ids.get(NsKind::Mnt).is_none() {
        // Every kernel has mount namespaces: the process ended.
        read_one(pid, NsKind::Mnt)?;
    }
    Ok(ids)
}
