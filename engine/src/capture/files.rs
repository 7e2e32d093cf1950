//! Open files of a target as the kinds in [`crate::objects`] see them: one view for each open file description, with
//! all its descriptors.
use super::ptys::{self, PtyView};
use super::Step;
use crate::{External, Externals};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use sys::api::Block;
use sys::kcmp::EpollSlot;
use sys::pidfd::PidFd;
use sys::procfs::fd::{Fd, FdStat};
use sys::procfs::fdinfo::FdInfo;

/// An open file description of the target.
#[derive(Clone, Debug)]
pub struct FileView {
    /// The process whose descriptors these are.
    pub pid: i32,
    /// Its descriptors: number and close-on-exec.
    pub fds: Vec<(i32, bool)>,
    /// Target of the link in /proc/PID/fd, without " (deleted)" where the file really is.
    pub link: Vec<u8>,
    /// fstat.
    pub stat: Option<FdStat>,
    /// fdinfo.
    pub info: FdInfo,
    /// For pipes and sockets: every end of it seen is the target's own. For pseudo terminals: the master is.
    pub both_ends: bool,
    /// Of what would be made again as the target's own: another process that holds it too, "PID 12 (make)".
    pub held: Option<String>,
    /// The link named a file that is deleted.
    pub deleted: bool,
    /// What the caller decided about it, should its other end be outside.
    pub decided: Option<External>,
    /// A connection that libdormouse has to us: in a restored program it reads as ended.
    pub ours: bool,
    /// For sockets: what they are.
    pub socket: Option<SocketView>,
    /// For handles of processes: it is of one that is captured too, has yet to be waited for by one of those, or of a thread of theirs. Before the freeze also
    /// of one that may be about to be.
    pub relative: bool,
    /// For ends of pseudo terminals: which.
    pub pty: Option<PtyView>,
    /// For epoll sets: a descriptor of each target, in fdinfo's order; None: only another process still holds it.
    pub watched: Vec<Option<i32>>,
}

/// What a socket is.
#[derive(Clone, Debug, Default)]
pub struct SocketView {
    /// AF_ constant.
    pub domain: i32,
    /// SOCK_ constant.
    pub kind: i32,
    /// Protocol number.
    pub protocol: i32,
    /// It listens.
    pub listening: bool,
    /// Own address, a sockaddr.
    pub local: Vec<u8>,
    /// Peer's address, a sockaddr.
    pub remote: Option<Vec<u8>>,
    /// Of a unix socket: what sock_diag says.
    pub unix: Option<sys::sockdiag::UnixSock>,
    /// Of a TCP socket: what it says itself.
    pub tcp: Option<sys::fdstate::Tcp>,
    /// For unix sockets: the peer is one of the target's own.
    pub own_peer: bool,
    /// A filter decides what it receives.
    pub filtered: bool,
    /// Of TCP: it had a connection, which has ended.
    pub ended: Option<sys::fdstate::Ended>,
}

impl FileView {
    /// Lowest descriptor.
    pub fn first_fd(&self) -> i32 {
        self.fds.first().map_or(-1, |f| f.0)
    }

    /// Which standard stream it is: the first of 0, 1, 2 among its descriptors; -1: none.
    pub fn stdio(&self) -> i32 {
        self.fds.iter().map(|f| f.0).find(|f| (0..=2).contains(f)).unwrap_or(-1)
    }

    /// "descriptor 5 (/srv/data)".
    pub fn describe(&self) -> String {
        let n: Vec<String> = self.fds.iter().map(|f| f.0.to_string()).collect();
        let s = if n.len() == 1 { "" } else { "s" };
        format!("descriptor{s} {} ({})", n.join(", "), self.link.escape_ascii())
    }

    /// Still has a name in a file system.
    pub fn has_name(&self) -> bool {
        self.link.starts_with(b"/") && !self.deleted && self.stat.as_ref().is_some_and(|s| s.nlink > 0)
    }

    /// Whether it is a pipe or FIFO.
    pub fn is_pipe(&self) -> bool {
        self.link.starts_with(b"pipe:") || self.is_fifo()
    }

    /// Whether it is a memfd.
    pub fn is_memfd(&self) -> bool {
        self.deleted && self.link.starts_with(b"/memfd:")
    }

    /// Whether it is a FIFO: a pipe with a name.
    pub fn is_fifo(&self) -> bool {
        self.link.starts_with(b"/") && self.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFIFO)
    }

    /// Whether it is a terminal: a pty's slave, a console, /dev/tty.
    pub fn is_terminal(&self) -> bool {
        let Some(s) = &self.stat else { return false };
        // Documentation/admin-guide/devices.txt: 4 and 5 consoles and tty, 136 to 143 pty slaves, 229 hvc
        let tty = matches!(s.rdev.major, 4 | 136..=143 | 204 | 229) || (s.rdev.major == 5 && s.rdev.minor != 2);
        s.mode & libc::S_IFMT == libc::S_IFCHR && tty
    }
}

/// How open files are looked at.
pub(super) trait Look {
    /// What only a descriptor tells cannot be asked.
    fn is_blind(&self) -> bool {
        false
    }

    /// A copy of a descriptor: shares its open file.
    fn copy(&mut self, fd: i32) -> sys::Result<OwnedFd>;

    /// Whether two descriptors are one open file; EBADF if one is closed.
    fn same_file(&mut self, a: i32, b: i32) -> io::Result<bool>;

    /// Whether a descriptor is the open file that an epoll set watches at `slot`.
    fn same_epoll_target(&mut self, fd: i32, slot: EpollSlot) -> io::Result<bool>;
}

/// From outside, with the rights of a tracer: pidfd_getfd and kcmp.
pub(super) struct Outside {
    pid: i32,
    pidfd: PidFd,
}

impl Outside {
    pub fn new(pid: i32) -> sys::Result<Outside> {
        Ok(Outside { pid, pidfd: PidFd::with_files(pid)? })
    }
}

impl Look for Outside {
    fn copy(&mut self, fd: i32) -> sys::Result<OwnedFd> {
        self.pidfd.get(fd)
    }

    fn same_file(&mut self, a: i32, b: i32) -> io::Result<bool> {
        sys::kcmp::same_file((self.pid, a), (self.pid, b))
    }

    fn same_epoll_target(&mut self, fd: i32, slot: EpollSlot) -> io::Result<bool> {
        sys::kcmp::same_epoll_target((self.pid, fd), self.pid, slot)
    }
}

/// All open files of a process that runs, its descriptors grouped by what they share. One may close between two looks at it: it is left out, and the
/// freeze lists anew.
pub(super) fn list(pid: i32, look: &mut dyn Look) -> Step<Vec<FileView>> {
    grouped(pid, sys::procfs::fd::list(pid)?, look, false)
}

/// The same of these descriptors. `frozen`: it stands still, and nothing may be left out.
pub(super) fn grouped(pid: i32, fds: Vec<Fd>, look: &mut dyn Look, frozen: bool) -> Step<Vec<FileView>> {
    let mut views: Vec<FileView> = Vec::with_capacity(fds.len());
    for f in fds {
        let info = match sys::procfs::fdinfo::read(pid, f.fd) {
            Err(e) if !frozen && e.is_gone() && sys::procfs::pid_exists(pid) => continue,
            info => info?,
        };
        let stat = f.stat.ok();
        let cloexec = info.cloexec();
        if let Some(i) = dup_of(&views, look, (f.fd, &f.target, stat.as_ref()), frozen)? {
            views[i].fds.push((f.fd, cloexec));
            continue;
        }
        let gone = stat.as_ref().is_some_and(|s| s.nlink == 0);
        let (link, deleted) = match f.target.strip_suffix(b" (deleted)") {
            Some(l) if f.target.starts_with(b"/") && (gone || std::fs::symlink_metadata(path(&f.target)).is_err()) => {
                (l.to_vec(), true)
            }
            _ => (f.target.clone(), gone && f.target.starts_with(b"/")),
        };
        views.push(FileView {
            pid,
            fds: vec![(f.fd, cloexec)],
            link,
            stat,
            info,
            both_ends: false,
            held: None,
            deleted,
            decided: None,
            ours: false,
            socket: None,
            relative: false,
            pty: None,
            watched: Vec::new(),
        });
    }
    look_at_sockets(look, frozen, &mut views)?;
    ptys::look_at(look, frozen, &mut views)?;
    look_at_epolls(look, &mut views);
    Ok(views)
}

/// The view of the open file that a descriptor (number, link, stat) shares. That kcmp cannot tell is an error, or it would come back with an
/// offset of its own; but a descriptor that has closed meanwhile shares nothing.
fn dup_of(
    views: &[FileView],
    look: &mut dyn Look,
    (fd, link, stat): (i32, &[u8], Option<&FdStat>),
    frozen: bool,
) -> Step<Option<usize>> {
    for (i, v) in views.iter().enumerate().filter(|(_, v)| v.link_matches(link, stat)) {
        match look.same_file(v.first_fd(), fd) {
            Ok(true) => return Ok(Some(i)),
            Ok(false) => {}
            Err(e) if !frozen && e.raw_os_error() == Some(libc::EBADF) => {}
            Err(e) => {
                let pid = std::process::id() as i32;
                return Err(sys::Error::call(format!("kcmp of descriptor {fd}"), pid, e).into());
            }
        }
    }
    Ok(None)
}

/// Asks every socket what it is, through a copy of the descriptor.
fn look_at_sockets(look: &mut dyn Look, frozen: bool, views: &mut Vec<FileView>) -> Step<()> {
    if look.is_blind() || !views.iter().any(|v| v.link.starts_with(b"socket:")) {
        return Ok(());
    }
    let mut diag = sys::sockdiag::SockDiag::open().ok();
    let mut closed = Vec::new();
    for v in views.iter_mut().filter(|v| v.link.starts_with(b"socket:")) {
        let fd = match look.copy(v.first_fd()) {
            Err(e) if !frozen && e.errno() == Some(libc::EBADF) => {
                closed.push(v.first_fd());
                continue;
            }
            fd => fd?,
        };
        let int = |name| sys::sockopt::get_int(&fd, libc::SOL_SOCKET, name).unwrap_or(0);
        let ino = v.stat.as_ref().map_or(0, |s| s.ino);
        let remote = sys::sockopt::address(&fd, true).ok();
        let domain = int(libc::SO_DOMAIN);
        let is_unix = domain == libc::AF_UNIX;
        let is_tcp = int(libc::SO_PROTOCOL) == libc::IPPROTO_TCP;
        let tcp = is_tcp && int(libc::SO_ACCEPTCONN) == 0 && remote.is_none();
        v.socket = Some(SocketView {
            domain,
            kind: int(libc::SO_TYPE),
            protocol: int(libc::SO_PROTOCOL),
            listening: int(libc::SO_ACCEPTCONN) != 0,
            local: sys::sockopt::address(&fd, false).unwrap_or_default(),
            remote,
            unix: diag.as_mut().filter(|_| is_unix).and_then(|d| d.unix_by_inode(ino as u32).ok().flatten()),
            tcp: if is_tcp { sys::fdstate::tcp(&fd).ok() } else { None },
            own_peer: false,
            filtered: sys::sockopt::has_filter(&fd),
            ended: if tcp { sys::fdstate::ended(&fd).ok().flatten() } else { None },
        });
    }
    views.retain(|v| !closed.contains(&v.first_fd()));
    Ok(())
}

/// Finds the open files that epoll sets watch.
fn look_at_epolls(look: &mut dyn Look, views: &mut [FileView]) {
    for i in (0..views.len()).filter(|i| !look.is_blind() && !views[*i].info.epoll.is_empty()).collect::<Vec<_>>() {
        let targets: Vec<i32> = views[i].info.epoll.iter().map(|t| t.tfd).collect();
        let efd = views[i].first_fd() as u32;
        let watched = targets.iter().enumerate().map(|(n, tfd)| {
            // counted among those of the same descriptor number
            let offset = targets[..n].iter().filter(|t| *t == tfd).count() as u32;
            watched(look, views, EpollSlot { efd, tfd: *tfd as u32, offset })
        });
        views[i].watched = watched.collect();
    }
}

/// A descriptor of an open file of the target that an entry of its epoll set is about.
fn watched(look: &mut dyn Look, views: &[FileView], slot: EpollSlot) -> Option<i32> {
    let tfd = slot.tfd as i32;
    let mut same = |v: &&FileView| look.same_epoll_target(v.first_fd(), slot).unwrap_or(false);
    // most likely what is at that number now
    let here = views.iter().find(|v| v.fds.iter().any(|d| d.0 == tfd));
    here.filter(&mut same).map(|_| tfd).or_else(|| views.iter().find(&mut same).map(FileView::first_fd))
}

fn path(b: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(b))
}

impl FileView {
    /// Whether it may be the same open file as another, by what kcmp need not be asked for.
    pub(super) fn may_be(&self, other: &FileView) -> bool {
        self.link_matches(&other.link, other.stat.as_ref())
    }

    /// A cheap test before kcmp: dups have the same inode.
    fn link_matches(&self, link: &[u8], stat: Option<&FdStat>) -> bool {
        match (&self.stat, stat) {
            (Some(a), Some(b)) => a.dev == b.dev && a.ino == b.ino && a.rdev == b.rdev,
            _ => self.link == link,
        }
    }
}

/// Notes what the caller decided about each, and which are libdormouse's own.
pub(super) fn decide(views: &mut [FileView], e: &Externals, blocks: &[Block]) {
    for v in views {
        let inode = v.stat.as_ref().map_or(0, |s| s.ino);
        if v.socket.is_some() && blocks.iter().any(|b| v.fds.iter().any(|f| b.is_connection(f.0, inode))) {
            v.ours = true;
            v.decided = Some(External::Path("/dev/null".into()));
            continue;
        }
        let named = v.fds.iter().find_map(|f| e.named.get(&f.0)).cloned();
        v.decided = named.or((e.close && v.stdio() < 0).then_some(External::Close));
    }
}

/// The ends that processes captured together hold: of pipes, sockets and pseudo terminals.
#[derive(Default)]
pub(super) struct Ends {
    /// Link, and whether it reads and writes.
    pipes: Vec<(Vec<u8>, bool, bool)>,
    inodes: HashSet<u64>,
    /// Numbers of pseudo terminals whose masters they hold.
    masters: HashSet<u32>,
}

impl Ends {
    /// Those among these open files.
    pub fn of<'v>(views: impl Iterator<Item = &'v FileView>) -> Ends {
        let mut ends = Ends::default();
        for v in views {
            ends.inodes.extend(v.stat.as_ref().map(|s| s.ino));
            ends.masters.extend(v.pty.as_ref().filter(|p| p.master).map(|p| p.number));
            let mode = v.info.flags & libc::O_ACCMODE as u32;
            if v.is_pipe() {
                ends.pipes.push((v.link.clone(), mode != libc::O_WRONLY as u32, mode != libc::O_RDONLY as u32));
            }
        }
        ends
    }

    /// These and those.
    pub fn and(&self, other: &Ends) -> Ends {
        let pipes = self.pipes.iter().chain(&other.pipes).cloned().collect();
        let masters = self.masters.union(&other.masters).copied().collect();
        Ends { pipes, inodes: self.inodes.union(&other.inodes).copied().collect(), masters }
    }
}

/// Marks pipes both of whose ends are there, sockets whose peer is, and pseudo terminals whose master is. `copy`: of a descriptor of a view.
pub(super) fn mark_ends<'v>(
    copy: &mut dyn FnMut(&FileView) -> Option<OwnedFd>,
    views: impl Iterator<Item = &'v mut FileView>,
    ends: &Ends,
) {
    for v in views {
        if v.is_pipe() {
            let has = |read: bool| ends.pipes.iter().any(|p| p.0 == v.link && if read { p.1 } else { p.2 });
            v.both_ends =
                (has(true) && has(false)) || copy(v).and_then(|fd| is_alone(&fd, v.is_fifo())).unwrap_or(false);
        } else if let Some(p) = &v.pty {
            v.both_ends = ends.masters.contains(&p.number);
        } else if let Some(s) = v.socket.as_mut() {
            s.own_peer = s.unix.as_ref().and_then(|u| u.peer).is_some_and(|p| ends.inodes.contains(&p.into()));
        }
    }
}

/// An end that nobody holds any more is no outside end either: the kernel says so to who polls.
fn is_alone(fd: &OwnedFd, fifo: bool) -> Option<bool> {
    let mut p = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    poll(&mut p, PollTimeout::ZERO).ok()?;
    let over = p[0].revents()?.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
    Some(over || fifo && crate::objects::is_without_writer(fd))
}
