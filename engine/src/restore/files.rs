//! Phase files: the open files are made again inside the new process, and numbered.
//!
//! # Writing a kind
//! A kind of open file implements [`Remake`] and is listed in [`remaker`]. All system calls are made *in the new process*, as
//! [`Program`]s that [`Maker::run`] sends there; descriptors in here are numbers of that process.
//!
//! - [`Remake::make`] makes one open file and gives the descriptor that it has for the moment, wherever the kernel put it.
//!   It is then dup'ed onto its final numbers and closed. Most kinds are one program that ends in one descriptor:
//!   `let c = p.call(...); let r = m.run(&p)?; m.take(r.get(c))`.
//! - One `make` may make several open files at once (both ends of a pipe): it hands the others over by [`Maker::also`].
//! - Flags (O_APPEND, O_NONBLOCK, ...) and the position are set by the dispatcher if [`Remake::common`] says so (the default).
//! - [`Remake::finish`] runs when all descriptors have their final numbers: epoll sets, locks. [`Maker::fds`] tells numbers.
//! - [`Remake::check`] finds what would make it fail, before anything starts. It changes nothing.
//!
//! Descriptors below [`Maker::temp_base`] belong to the image, those from it on are free for temporary use; what `make` leaves
//! open there is closed at the end of the phase.
//!
//! What is done to open files in later phases is in [`late`].
pub(super) mod late;

use super::beside::How;
use super::puppet::Puppet;
use super::{cannot, named, stdio, unnamed, Image, Step, Tree};
use crate::{objects, spread, Reason, RestoreOptions};
use ::image::v1::files::OpenFile;
use ::image::v1::objects::Kind;
use std::collections::HashMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use sys::program::{Arg, Arg::Imm, CallId, Program, Reply};

/// Status flags that F_SETFL sets.
const SETTABLE: u32 = (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// How a kind of open file is made again.
pub trait Remake: Sync {
    /// What would make it fail here.
    fn check(&self, _c: &Checker<'_>, _f: &OpenFile) -> Vec<Reason> {
        Vec::new()
    }

    /// What will not be as it was, a line each.
    fn notes(&self, _c: &Checker<'_>, _f: &OpenFile) -> Vec<String> {
        Vec::new()
    }

    /// Makes it; `id` is its index in [`::image::v1::files::Files::open`].
    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made>;

    /// Whether the dispatcher sets flags and position.
    fn common(&self) -> bool {
        true
    }

    /// Whether it watches what is done to files: then it is finished when nothing more is opened or closed in this phase, so that it sees nothing of a restore.
    fn watches(&self) -> bool {
        false
    }

    /// What can only be done when all descriptors have their numbers.
    fn finish(&self, _m: &mut Maker<'_>, _id: u32, _f: &OpenFile) -> Step<()> {
        Ok(())
    }
}

/// The kind's way, by its number in the image.
pub fn remaker(kind: u32) -> Option<&'static dyn Remake> {
    const REGULAR: u32 = Kind::Regular as u32;
    const DIRECTORY: u32 = Kind::Directory as u32;
    const DEVICE: u32 = Kind::Device as u32;
    const PATH: u32 = Kind::Path as u32;
    const EXTERNAL: u32 = Kind::External as u32;
    const TERMINAL: u32 = Kind::Terminal as u32;
    const DELETED: u32 = Kind::Deleted as u32;
    const PIPE: u32 = Kind::Pipe as u32;
    const EVENTFD: u32 = Kind::EventFd as u32;
    const EPOLL: u32 = Kind::Epoll as u32;
    const TIMERFD: u32 = Kind::TimerFd as u32;
    const SIGNALFD: u32 = Kind::SignalFd as u32;
    const TCP: u32 = Kind::TcpListen as u32;
    const UDP: u32 = Kind::Udp as u32;
    const UNIX: u32 = Kind::UnixListen as u32;
    const UNIX_PAIR: u32 = Kind::UnixPair as u32;
    const INOTIFY: u32 = Kind::Inotify as u32;
    const FANOTIFY: u32 = Kind::Fanotify as u32;
    const PIDFD: u32 = Kind::PidFd as u32;
    const MEMFD: u32 = Kind::Memfd as u32;
    const HUGE_MEMFD: u32 = Kind::HugeMemfd as u32;
    const MQUEUE: u32 = Kind::Mqueue as u32;
    const PROC: u32 = Kind::Proc as u32;
    const FIFO: u32 = Kind::Fifo as u32;
    const HANDLE: u32 = Kind::Handle as u32;
    const PTY_MASTER: u32 = Kind::PtyMaster as u32;
    const PTY_SLAVE: u32 = Kind::PtySlave as u32;
    const URING: u32 = Kind::Uring as u32;
    Some(match kind {
        REGULAR => &named::Regular,
        DIRECTORY | PATH => &named::Name,
        DEVICE => &named::Device,
        EXTERNAL | TERMINAL => &stdio::Stdio,
        DELETED => &objects::Deleted,
        PIPE => &objects::Pipe,
        EVENTFD => &objects::EventFd,
        EPOLL => &objects::Epoll,
        TIMERFD => &objects::TimerFd,
        SIGNALFD => &objects::SignalFd,
        TCP => &objects::Tcp,
        UDP => &objects::Udp,
        UNIX => &objects::UnixListen,
        UNIX_PAIR => &objects::UnixPair,
        INOTIFY => &objects::Inotify,
        FANOTIFY => &objects::Fanotify,
        PIDFD => &objects::PidFd,
        MEMFD => &objects::Memfd::Plain,
        HUGE_MEMFD => &objects::Memfd::Huge,
        MQUEUE => &objects::Mqueue,
        PROC => &objects::ProcFile,
        FIFO => &objects::Fifo,
        HANDLE => &objects::Handle,
        PTY_MASTER => &objects::PtyMaster,
        PTY_SLAVE => &objects::PtySlave,
        URING => &objects::Uring,
        _ => return None,
    })
}

/// What [`Remake::make`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// This descriptor, wherever it is.
    At(i32),
    /// Nothing: its descriptors stay closed.
    Closed,
}

/// What a check has to go by.
pub struct Checker<'a> {
    /// The image.
    pub image: &'a Image<'a>,
    /// The caller's wishes.
    pub o: &'a RestoreOptions<'a>,
    /// Index of the open file.
    pub id: u32,
}

impl Checker<'_> {
    /// "descriptor 5 (/srv/data)".
    pub fn describe(&self, f: &OpenFile) -> String {
        describe(self.image, self.id, f)
    }

    /// A path of the image as it is here.
    pub fn path(&self, path: &[u8]) -> PathBuf {
        PathBuf::from(std::ffi::OsString::from_vec(map_path(path, self.o)))
    }
}

/// What was made, and what was made along with another file.
pub(super) type Begun = (HashMap<u32, Made>, HashMap<u32, (usize, i32)>);

/// The new process while its files are made.
pub struct Maker<'a> {
    puppet: &'a mut Puppet,
    /// The image.
    pub image: &'a Image<'a>,
    /// The caller's wishes.
    pub o: &'a RestoreOptions<'a>,
    /// What changed, a line each.
    pub notes: &'a mut Vec<String>,
    made: &'a mut HashMap<u32, Made>,
    /// Made along with another file, and not the process's own: where each is for the moment.
    left: &'a mut HashMap<u32, (usize, i32)>,
    /// Index of the process.
    at: usize,
    /// When all have their numbers: who has each, by the PID that it knows, and its descriptor.
    holders: Option<&'a HashMap<u32, (i32, i32)>>,
}

impl<'a> Maker<'a> {
    /// For files that are made before the others.
    pub(super) fn early(
        puppet: &'a mut Puppet,
        image: &'a Image<'a>,
        o: &'a RestoreOptions<'a>,
        notes: &'a mut Vec<String>,
        (made, left): &'a mut Begun,
    ) -> Maker<'a> {
        Maker { puppet, image, o, notes, made, left, at: 0, holders: None }
    }

    /// A descriptor of the file without a name with this content, if it was made already: for a mapping, or in another process.
    pub fn content(&self, content: u32) -> Option<i32> {
        self.puppet.mapped.get(&content).copied()
    }

    /// That descriptor is to be the program's.
    pub fn give(&mut self, content: u32) {
        self.puppet.mapped.remove(&content);
    }

    /// Runs a program in the new process; each must-call has to succeed.
    pub fn run(&mut self, p: &Program) -> Step<Reply> {
        self.puppet.run(p)
    }

    /// Runs a program in a thread of the new process, by its TID in the image (0: in any); each must-call has to succeed.
    pub fn run_in(&mut self, tid: i32, mut p: Program) -> Step<Reply> {
        if tid == 0 {
            return self.run(&p);
        }
        match self.image.threads.iter().position(|t| t.tid == tid) {
            Some(0) => self.run(&p),
            Some(n) => {
                p.for_thread(n as u32 - 1, 0);
                self.puppet.run_threads(&p)
            }
            None => {
                let remedy = "run `ctl verify`; restore an earlier checkpoint";
                Err(cannot(format!("thread {tid}"), "something belongs to it, and it is not in the image", remedy))
            }
        }
    }

    /// A call's result as what was made.
    pub fn take(&self, fd: std::io::Result<i64>) -> Step<Made> {
        match fd {
            Ok(fd) => Ok(Made::At(fd as i32)),
            Err(e) => Err(super::Fault::Io("making an open file".into(), e)),
        }
    }

    /// Hands over another open file that was made along with this one.
    pub fn also(&mut self, id: u32, fd: i32) {
        if self.image.fds_of(id).next().is_some() {
            self.made.insert(id, Made::At(fd));
        } else {
            self.left.insert(id, (self.at, fd));
        }
    }

    /// Final descriptors of an open file. Before `finish`, only those of files made earlier are there.
    pub fn fds(&self, id: u32) -> Vec<i32> {
        self.image.fds_of(id).collect()
    }

    /// The queues of a pair of sockets, of which this is the one made first, are filled in `finish`; `fd`: its peer.
    pub fn fill_later(&mut self, id: u32, fd: i32) {
        self.puppet.unfilled.insert(id, fd);
    }

    /// The peer, if that is so.
    pub fn take_unfilled(&mut self, id: u32) -> Option<i32> {
        self.puppet.unfilled.remove(&id)
    }

    /// In `finish`: a descriptor in this process of an open file of any.
    pub fn passable(&mut self, id: u32) -> Step<i32> {
        if let Some(fd) = self.image.fds_of(id).next() {
            return Ok(fd);
        }
        let f = self.image.files.open.get(id as usize);
        let what = f.map_or_else(|| format!("open file {id}"), |f| self.describe(id, f));
        let Some(holder) = self.holders.and_then(|h| h.get(&id)).copied() else {
            let why = "a descriptor of it was in flight, and nobody has it";
            return Err(cannot(what, why, "run `ctl verify`; restore an earlier checkpoint"));
        };
        let mut p = Program::new();
        let c = copied(&mut p, &what, holder, self.temp_base());
        Ok(self.run(&p)?.get(c)? as i32)
    }

    /// It was given up and cannot end: it is closed.
    pub fn is_closed(&self, fd: i32) -> bool {
        let open = self.image.files.fds.iter().find(|d| d.fd == fd).map(|d| d.open);
        open.is_some_and(|id| self.made.get(&id) == Some(&Made::Closed))
    }

    /// Its other end was outside.
    pub fn is_external(&self, fd: i32) -> bool {
        let open =
            self.image.files.fds.iter().find(|d| d.fd == fd).and_then(|d| self.image.files.open.get(d.open as usize));
        open.is_some_and(|f| f.kind == Kind::External as u32)
    }

    /// All descriptors from here on are free for temporary use.
    pub fn temp_base(&self) -> i32 {
        self.puppet.temp_base
    }

    /// The new process's copy of the standard stream that it is to get; None: the caller's is closed.
    pub fn stdio(&self, n: usize) -> Option<i32> {
        self.puppet.stdio.get(n).copied().flatten()
    }

    /// What a PID or TID of the image is here, as the program sees it.
    pub fn number_of(&self, pid: i32) -> i32 {
        self.puppet.ids.of(pid)
    }

    /// Its descriptors of a pseudo terminal, by the number that that has in the image: master, and slave.
    pub fn pty(&self, number: u32) -> Option<(i32, Option<i32>)> {
        self.puppet.ptys.get(&number).copied()
    }

    /// A path of the image as it is here, NUL-terminated in a program.
    pub fn path(&self, p: &mut Program, path: &[u8]) -> sys::program::Arg {
        p.cstr(&map_path(path, self.o))
    }

    /// A copy of one of its descriptors in this process; shares the open file.
    pub fn borrow_fd(&self, fd: i32) -> Step<std::os::fd::OwnedFd> {
        Ok(sys::pidfd::PidFd::open(self.puppet.pid)?.get(fd)?)
    }

    /// What /proc says of one of its descriptors.
    pub fn fdinfo(&self, fd: i32) -> Step<sys::procfs::fdinfo::FdInfo> {
        Ok(sys::procfs::fdinfo::read(self.puppet.pid, fd)?)
    }

    /// Writes into its memory.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Step<()> {
        Ok(self.puppet.mem.write(at, bytes)?)
    }

    /// Its mappings as they are now.
    pub fn maps(&self) -> Step<Vec<sys::procfs::maps::Vma>> {
        Ok(sys::procfs::maps::read(self.puppet.pid)?)
    }

    /// Makes a child of the new process that serves on its descriptor `sock`, and sends no signal when it ends; its PID there.
    pub fn spawn(&mut self, sock: i32) -> Step<i32> {
        let made = super::beside::spawn(&mut self.puppet.channel, (self.puppet.pid, 0), sock, How::COPY)?;
        made.map_err(|e| super::Fault::Io("making a process".into(), e))
    }

    /// "descriptor 5 (/srv/data)".
    pub fn describe(&self, id: u32, f: &OpenFile) -> String {
        describe(self.image, id, f)
    }
}

/// "descriptor 5 (/srv/data)".
pub fn describe(image: &Image<'_>, id: u32, f: &OpenFile) -> String {
    let n: Vec<String> = image.fds_of(id).map(|fd| fd.to_string()).collect();
    let s = if n.len() == 1 { "" } else { "s" };
    format!("descriptor{s} {} ({})", n.join(", "), f.label.escape_ascii())
}

/// A path of the image as it is here: the longest of the caller's prefixes is exchanged.
pub fn map_path(path: &[u8], o: &RestoreOptions<'_>) -> Vec<u8> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let longest =
        o.map_path.iter().filter(|(old, _)| path.starts_with(old)).max_by_key(|(old, _)| old.as_os_str().len());
    let mapped = longest.and_then(|(old, new)| {
        let rest = path.strip_prefix(old).ok()?;
        Some(if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) })
    });
    mapped.unwrap_or_else(|| path.to_path_buf()).into_os_string().into_vec()
}

/// A kind's struct.
pub fn decode<T: serde::de::DeserializeOwned>(f: &OpenFile) -> Step<T> {
    rmp_serde::from_slice(&f.data).map_err(|e| {
        let why = format!("its record cannot be understood ({e})");
        let remedy = "run `ctl verify`; restore an earlier checkpoint";
        crate::Error::new(crate::Kind::Damaged, "restore", f.label.escape_ascii().to_string(), why, remedy).into()
    })
}

/// Makes and numbers the open files of all processes; gives those that are open, of each process those that it has before the others.
///
/// An open file is made by the first process that has it. The others copy its descriptor from that one (pidfd_getfd(2)).
pub fn all(
    puppets: &mut [Puppet],
    tree: &Tree<'_>,
    o: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
) -> Step<Vec<Vec<u32>>> {
    unnamed::seal(puppets, tree, o, notes)?;
    let (mut made, mut left) = (HashMap::new(), HashMap::new());
    for (at, image) in tree.all.iter().enumerate().filter(|(_, image)| !follows(image)) {
        unnamed::lend_open(puppets, at, tree)?;
        let passed = pass(puppets, at, image, &made, &left)?;
        let (made, left) = (&mut made, &mut left);
        let mut m = Maker { puppet: &mut puppets[at], image, o, notes, made, left, at, holders: None };
        let mut numbers = Numbers::new(image);
        let mut prog = Program::new();
        for (id, fd) in passed {
            let f = &image.files.open[id as usize];
            let fresh = !image.files.earlier.contains_key(&id);
            numbering(
                &mut prog,
                (image, m.temp_base()),
                (id, f, fd.into()),
                fresh && way(f, image, id)?.common(),
                &mut numbers,
            );
            m.made.insert(id, Made::At(fd));
            m.puppet.run_if_full(&mut prog)?;
        }
        m.run(&prog)?;
        for (id, f) in image.own_files() {
            let kind = way(f, image, id)?;
            let made = match m.made.get(&id) {
                Some(_) if !numbers.0.contains_key(&id) => continue,
                Some(made) => *made,
                None => kind.make(&mut m, id, f).map_err(|e| about(e, image, id, f))?,
            };
            if let Made::At(fd) = made {
                number(&mut m, id, f, fd, kind.common(), &mut numbers)?;
            }
            m.made.insert(id, made);
        }
    }
    let mut open = Vec::new();
    let mut holders = HashMap::new();
    for (p, image) in puppets.iter().zip(&tree.all) {
        for d in &image.files.fds {
            holders.entry(d.open).or_insert((p.inner, d.fd));
        }
    }
    for (at, image) in tree.all.iter().enumerate() {
        let (made, left) = (&mut made, &mut left);
        let mut m = Maker { puppet: &mut puppets[at], image, o, notes, made, left, at, holders: Some(&holders) };
        let is_open = |m: &Maker<'_>, id: u32| m.made.get(&id) != Some(&Made::Closed);
        finish(&mut m, image, false)?;
        open.push(image.own_files().map(|(id, _)| id).filter(|id| is_open(&m, *id)).collect());
    }
    let pids: Vec<i32> = puppets.iter().map(|p| p.inner).collect();
    let numbered = spread::over(puppets.iter_mut().zip(&tree.all), |_, (p, image)| {
        let mut prog = Program::new();
        if follows(image) {
            follow(&mut prog, p, image, &made, &pids)?;
        }
        if !image.shares_files {
            closing(&mut prog, p, image);
        }
        p.run(&prog)
    });
    numbered.into_iter().flatten().collect::<Step<Vec<Reply>>>()?;
    for (at, image) in tree.all.iter().enumerate().filter(|(_, image)| !image.shares_files) {
        let (made, left) = (&mut made, &mut left);
        objects::locks::take(
            &mut Maker { puppet: &mut puppets[at], image, o, notes, made, left, at, holders: None },
            image,
        )?;
    }
    for (at, image) in tree.all.iter().enumerate() {
        let (made, left) = (&mut made, &mut left);
        finish(&mut Maker { puppet: &mut puppets[at], image, o, notes, made, left, at, holders: None }, image, true)?;
    }
    Ok(open)
}

/// Finishes those of a process that are open: those that watch, or those that do not.
fn finish(m: &mut Maker<'_>, image: &Image<'_>, watches: bool) -> Step<()> {
    for (id, f) in image.own_files() {
        let kind = way(f, image, id)?;
        if kind.watches() == watches && m.made.get(&id) != Some(&Made::Closed) {
            kind.finish(m, id, f).map_err(|e| about(e, image, id, f))?;
        }
    }
    Ok(())
}

/// Whether all that it has open is another's, too, from which it gets everything, and there is nothing to be made.
fn follows(image: &Image<'_>) -> bool {
    !image.shares_files && image.files.fds.iter().all(|d| image.files.earlier.contains_key(&d.open))
}

/// The descriptors of a process of which that is so, when all others have theirs; `pids`: what the processes know themselves by.
fn follow(prog: &mut Program, p: &mut Puppet, image: &Image<'_>, made: &HashMap<u32, Made>, pids: &[i32]) -> Step<()> {
    let mut numbers = Numbers::new(image);
    for (id, (from, fd)) in image.files.earlier.iter().filter(|(id, _)| made.get(id) != Some(&Made::Closed)) {
        let f = &image.files.open[*id as usize];
        let up = copied(prog, &describe(image, *id, f), (pids[*from], *fd), p.temp_base);
        numbering(prog, (image, p.temp_base), (*id, f, up.arg()), false, &mut numbers);
        p.run_if_full(prog)?;
    }
    Ok(())
}

/// Closes all descriptors behind the image's but for ours.
fn closing(prog: &mut Program, p: &Puppet, image: &Image<'_>) {
    let mut base = image.highest_fd() + 1;
    for keep in &p.socks {
        if base < *keep {
            prog.call(libc::SYS_close_range, &[base.into(), Imm(*keep as u64 - 1), Imm(0)]);
        }
        base = keep + 1;
    }
    prog.call(libc::SYS_close_range, &[base.into(), Imm(u32::MAX as u64), Imm(0)]);
}

/// Copies descriptors of earlier processes: the IDs of the open files, and where they are for the moment.
fn pass(
    puppets: &mut [Puppet],
    at: usize,
    image: &Image<'_>,
    made: &HashMap<u32, Made>,
    left: &HashMap<u32, (usize, i32)>,
) -> Step<Vec<(u32, i32)>> {
    let ids: std::collections::BTreeSet<u32> = image.files.fds.iter().map(|f| f.open).collect();
    let mut passed = Vec::new();
    let mut prog = Program::new();
    for id in ids.into_iter().filter(|id| made.get(id) != Some(&Made::Closed)) {
        let Some((from, fd)) = image.files.earlier.get(&id).or_else(|| left.get(&id)) else { continue };
        let from = puppets[*from].inner;
        let what = describe(image, id, &image.files.open[id as usize]);
        passed.push((id, copied(&mut prog, &what, (from, *fd), puppets[at].temp_base)));
    }
    let r = puppets[at].run(&prog)?;
    passed.into_iter().map(|(id, up)| Ok((id, r.get(up)? as i32))).collect()
}

/// Copies a descriptor of another process (pidfd_getfd(2)) to a number from `above` on.
pub fn copied(prog: &mut Program, what: &str, (from, fd): (i32, i32), above: i32) -> CallId {
    let pidfd = prog.call(libc::SYS_pidfd_open, &[from.into(), Imm(0)]);
    let got = prog.call(libc::SYS_pidfd_getfd, &[pidfd.arg(), fd.into(), Imm(0)]);
    prog.named(format!("copying {what} from process {from}"));
    let up = prog.call(libc::SYS_fcntl, &[got.arg(), Imm(libc::F_DUPFD_CLOEXEC as u64), above.into()]);
    prog.call(libc::SYS_close, &[got.arg()]);
    prog.call(libc::SYS_close, &[pidfd.arg()]);
    up
}

fn way(f: &OpenFile, image: &Image<'_>, id: u32) -> Step<&'static dyn Remake> {
    remaker(f.kind).ok_or_else(|| {
        cannot(
            describe(image, id, f),
            format!("this build does not know its kind {}", f.kind),
            "use the version that made the image",
        )
    })
}

/// An error about one open file says so.
fn about(e: super::Fault, image: &Image<'_>, id: u32, f: &OpenFile) -> super::Fault {
    let remedy = "`ctl check` tells what is missing; no process is left";
    match e {
        super::Fault::Sys(e @ (sys::Error::Inside { .. } | sys::Error::Call { .. })) => {
            cannot(describe(image, id, f), e.to_string(), remedy)
        }
        super::Fault::Io(what, e) => cannot(describe(image, id, f), format!("{what}: {e}"), remedy),
        e => e,
    }
}

/// Which numbers open files get.
struct Numbers(HashMap<u32, Vec<(i32, bool)>>);

impl Numbers {
    fn new(image: &Image<'_>) -> Numbers {
        let mut by: HashMap<u32, Vec<(i32, bool)>> = HashMap::new();
        for fd in &image.files.fds {
            by.entry(fd.open).or_default().push((fd.fd, fd.cloexec));
        }
        Numbers(by)
    }
}

/// Gives an open file its flags, position and numbers. It first moves out of the way: the kernel takes the lowest free
/// descriptor, which may be another file's number.
fn number(m: &mut Maker<'_>, id: u32, f: &OpenFile, fd: i32, common: bool, numbers: &mut Numbers) -> Step<()> {
    let mut p = Program::new();
    numbering(&mut p, (m.image, m.temp_base()), (id, f, fd.into()), common, numbers);
    m.run(&p).map(drop).map_err(|e| about(e, m.image, id, f))
}

/// The same, as calls of a program. `above`: from where on its descriptors are free.
fn numbering(
    p: &mut Program,
    (image, above): (&Image<'_>, i32),
    (id, f, fd): (u32, &OpenFile, Arg),
    common: bool,
    numbers: &mut Numbers,
) {
    let dup = libc::F_DUPFD_CLOEXEC as u64;
    let up = p.call(libc::SYS_fcntl, &[fd, Imm(dup), above.into()]);
    p.named(format!("numbering {}", describe(image, id, f)));
    p.call(libc::SYS_close, &[fd]);
    if common {
        // O_ASYNC comes with its owner, later
        let flags = f.flags & SETTABLE & !(libc::O_ASYNC as u32);
        if f.flags & libc::O_PATH as u32 == 0 {
            p.call(libc::SYS_fcntl, &[up.arg(), Imm(libc::F_SETFL as u64), Imm(flags as u64)]);
            p.named(format!("setting the flags of {}", describe(image, id, f)));
        }
        if f.pos != 0 {
            p.call(libc::SYS_lseek, &[up.arg(), Imm(f.pos as u64), Imm(libc::SEEK_SET as u64)]);
            p.named(format!("setting the position of {}", describe(image, id, f)));
        }
    }
    for (n, cloexec) in numbers.0.remove(&id).unwrap_or_default() {
        let flag = if cloexec { libc::O_CLOEXEC } else { 0 };
        p.call(libc::SYS_dup3, &[up.arg(), n.into(), Imm(flag as u64)]);
        p.named(format!("numbering {} as {n}", describe(image, id, f)));
    }
    p.call(libc::SYS_close, &[up.arg()]);
}
