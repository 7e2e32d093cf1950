//! Rings of io_uring(7) with no request in flight. A new one is set up, has as many requests that do nothing as the old one had requests, and so counts like
//! it; then its memory is given the old content, and is mapped where it was. What the kernel tells of a ring is sys/src/uring.rs; what it does not tell is
//! reported.
use super::{encode, polled, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::{Error, Kind as Exit, Reason, Result};
use image::v1::files::{Fd, OpenFile};
use image::v1::memory::{Vma, BACKING_URING};
use image::v1::objects::Kind;
use image::v1::uring;
use std::os::fd::OwnedFd;
use sys::procfs::{self, maps::VmaKind};
use sys::program::{Arg::Imm, Program};
use sys::uring::{
    Asked, Content, Memory, Questions, Told, REGISTER_FILES, SETUP_DEFER_TASKRUN, SETUP_NO_SQARRAY,
    SETUP_SINGLE_ISSUER, SETUP_SQPOLL, SETUP_SUBMIT_ALL, SETUP_TASKRUN_FLAG,
};

/// A ring.
pub struct Uring;

/// Its link in /proc/PID/fd.
pub(crate) const RING: &[u8] = b"anon_inode:[io_uring]";
/// A new ring has to have as many requests as the old one had: the most for which that is done, a few seconds' worth.
const MOST: u32 = 1 << 24;
/// IORING_SQ_CQ_OVERFLOW, IORING_SQ_TASKRUN.
const WAITING: u32 = 1 << 1 | 1 << 2;
const REGISTER_BUFFERS: u64 = 0;
/// Where room begins (vm.mmap_min_addr), and up to where it may be refused.
const LOWEST: [u64; 2] = [0x1000, 0x10000];

pub(super) const CLOSE: &str = "let the program close the ring, or run it without io_uring";
const LATER: &str = "it runs on as before; checkpoint it when the ring is idle";

/// What fdinfo tells that the program does not change from one moment to the next.
fn lasting(t: &Told) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    if t.personalities > 0 {
        all.push(("credentials are registered (IORING_REGISTER_PERSONALITY), which are not kept yet".into(), CLOSE));
    }
    if t.napi {
        all.push(("it polls network devices (IORING_REGISTER_NAPI), which is not kept yet".into(), CLOSE));
    }
    if t.wide_sqes || t.wide_cqes {
        all.push((
            "it has wide entries (IORING_SETUP_SQE128, IORING_SETUP_CQE32), which are not kept yet".into(),
            CLOSE,
        ));
    }
    all
}

/// What is only so for the moment, or forever.
fn momentary(t: &Told, flags: u32) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    let (taken, finished) = (t.sq.0, t.cq.1);
    if t.sq.1 != taken {
        all.push((format!("{} requests wait to be submitted", t.sq.1.wrapping_sub(taken)), LATER));
    }
    if t.polls > 0 {
        all.push((format!("{} requests are in flight, and wait for a descriptor", t.polls), LATER));
    } else if taken != finished {
        let why = format!(
            "it has had {taken} requests and {finished} completions: some are in flight, or had none or several, and the kernel does not tell which"
        );
        all.push((why, LATER));
    }
    if t.overflow > 0 || flags & WAITING != 0 {
        all.push((
            "completions had no room, or wait to be delivered".into(),
            "let the program read those that there are",
        ));
    }
    if taken > MOST {
        let why = format!(
            "it has had {taken} requests: a new one would need as many to count like it, and {MOST} are the most"
        );
        all.push((why, "let the program set up a new ring from time to time"));
    }
    all
}

/// What calls tell.
fn refused(a: &Asked) -> Vec<(String, &'static str)> {
    let group = a.buffers.map(|g| format!("buffers are provided to it (group {g}), which are not kept yet"));
    [
        (
            a.single_issuer,
            "it belongs to one thread (IORING_SETUP_SINGLE_ISSUER), which is none of the program's, or has ended",
        ),
        (a.left, "the thread of the kernel's that submitted its requests (IORING_SETUP_SQPOLL) has ended with who made it, which is not kept yet"),
        (a.restricted, "it is restricted (IORING_REGISTER_RESTRICTIONS), which is not kept yet"),
        (a.disabled, "it was not enabled yet (IORING_SETUP_R_DISABLED), which is not kept yet"),
        (a.polls, "it polls for completions (IORING_SETUP_IOPOLL), which is not kept yet"),
        (a.eventfd, "an eventfd is registered (IORING_REGISTER_EVENTFD), and the kernel does not tell which"),
        (a.untold, "this kernel does not tell whether buffers are provided to it (6.9 and later do)"),
    ]
    .into_iter()
    .filter(|(is, _)| *is)
    .map(|(_, why)| why.to_owned())
    .chain(group)
    .map(|why| (why, CLOSE))
    .collect()
}

/// The registered files, a descriptor for each place. All that is told of one is a path: of a socket that says which open file it is, for it is never opened by it.
fn places(t: &Told, all: &[FileView], pid: i32) -> std::result::Result<Vec<i32>, (String, &'static str)> {
    let mut fds = vec![-1; t.places as usize];
    let unregister =
        "let the program unregister it (IORING_UNREGISTER_FILES, IORING_REGISTER_FILES_UPDATE), or close the ring";
    for (place, path) in &t.files {
        let is = || format!("{} is registered at place {place}", path.escape_ascii());
        if !path.starts_with(b"socket:[") {
            let why = format!(
                "{}, and of all files but sockets the kernel tells only the path, not which open file it is",
                is()
            );
            return Err((why, unregister));
        }
        match (all.iter().find(|v| v.link == *path && v.pid == pid), fds.get_mut(*place as usize)) {
            (Some(v), Some(fd)) => *fd = v.first_fd(),
            (_, Some(_)) => {
                return Err((
                    format!("{}, of which the process has no descriptor, or has it from another", is()),
                    unregister,
                ))
            }
            (_, None) => return Err((format!("{}, and there are {} places", is(), t.places), LATER)),
        }
    }
    Ok(fds)
}

fn reasons(f: &FileView, all: Vec<(String, &'static str)>) -> Vec<Reason> {
    all.into_iter().map(|(why, remedy)| Reason::new(f.describe(), why, remedy)).collect()
}

/// Of a process: rings that it has from another, and those of which it has mappings only.
pub(crate) fn strays(pid: i32, views: &[FileView], fds: &[Fd], maps: &[procfs::maps::Vma]) -> Vec<Reason> {
    let ring = |v: &&FileView| v.link == RING;
    let held = |d: &Fd| views.get(d.open as usize).filter(ring);
    let of_another = |v: &&FileView| v.pid != pid;
    let shared = fds.iter().filter_map(held).filter(of_another).map(|v| {
        let why = format!("another process has it too, PID {pid}, which is not kept yet");
        Reason::new(v.describe(), why, "let it close the ring, as execve(2) does")
    });
    let own =
        |ino: u64| fds.iter().filter_map(held).any(|v| v.pid == pid && v.stat.as_ref().is_some_and(|s| s.ino == ino));
    let mapped = maps.iter().filter(|v| v.kind() == VmaKind::AnonInode(b"io_uring") && !own(v.inode));
    let mapped = mapped.map(|v| {
        let object = format!("mapping {:x}-{:x} (io_uring)", v.start, v.end);
        let why = "the process has no descriptor of its ring, or has it from another, which is not kept yet";
        Reason::new(object, why, "let it unmap the ring, or keep its descriptor")
    });
    shared.chain(mapped).collect()
}

impl Object for Uring {
    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn claims(&self, f: &FileView) -> bool {
        f.link == RING
    }

    fn inspect(&self, f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
        let Some(told) = sys::uring::told(pid, f.first_fd()).ok().flatten() else { return Vec::new() };
        let files = places(&told, all, pid).err();
        reasons(f, lasting(&told).into_iter().chain(files).collect())
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let refuse = |o: &Observer<'_>, all: Vec<(String, &'static str)>| match all.is_empty() {
            true => Ok(()),
            false => {
                Err(Error { kind: Exit::Refused, attempted: o.survey.attempted.clone(), reasons: reasons(f, all) })
            }
        };
        let (pid, fd) = (o.survey.pid, f.first_fd());
        let told = sys::uring::told(pid, fd).map_err(|e| o.explain(e.into()))?;
        let Some(told) = told else {
            refuse(o, vec![("the kernel tells nothing of it just now".into(), LATER)])?;
            return Ok(Vec::new());
        };
        refuse(o, momentary(&told, 0))?;
        let files = places(&told, o.files(), pid);
        refuse(o, files.as_ref().err().cloned().into_iter().collect())?;
        let ring = o.descriptor(fd)?;
        if o.survey.has_strict_threads() && sys::uring::ask(&ring).single_issuer {
            let why = "it belongs to one thread (IORING_SETUP_SINGLE_ISSUER), which may be the one in strict seccomp mode, and that cannot be asked";
            refuse(o, vec![(why.into(), CLOSE)])?;
        }
        let (asked, of, owned) = judged(o, &ring, fd)?;
        if registered(o, &of)? {
            let why = "its descriptor is registered (IORING_REGISTER_RING_FDS), which is not kept yet";
            refuse(o, vec![(why.into(), "let the program unregister it (IORING_UNREGISTER_RING_FDS)")])?;
        }
        refuse(o, refused(&asked))?;
        let (polled, cpu) = match told.thread {
            Some(tid) => {
                refuse(o, polled::reasons(o, f, &told, (tid, of.as_ref().map(|of| of.tid))))?;
                polled::flags(tid, &told)
            }
            None => (0, 0),
        };
        let failed = |e: std::io::Error| {
            let why =
                format!("its memory cannot be looked at ({e}): it may be the program's own (IORING_SETUP_NO_MMAP)");
            Error {
                kind: Exit::Refused,
                attempted: o.survey.attempted.clone(),
                reasons: reasons(f, vec![(why, CLOSE)]),
            }
        };
        let array = has_array(&ring, &told, || sys::uring::told(pid, fd).ok().flatten()).map_err(failed)?;
        let Some(array) = array else {
            refuse(o, vec![("it has wide entries (IORING_SETUP_SQE128), which are not kept yet".into(), CLOSE)])?;
            return Ok(Vec::new());
        };
        let flags = SETUP_SUBMIT_ALL | owned | polled | if array { 0 } else { SETUP_NO_SQARRAY };
        let (offsets, c) = read(&ring, &told, flags).map_err(failed)?;
        refuse(o, [momentary(&told, c.flags.0), lasting(&told)].concat())?;
        o.reported.push(format!("{}: {}", f.describe(), UNTOLD));
        if polled != 0 {
            o.reported.push(format!("{}: {}", f.describe(), polled::UNTOLD));
        }
        Ok(encode(&uring::Uring {
            ino: f.stat.as_ref().map_or(0, |s| s.ino),
            sq_entries: told.entries.0,
            cq_entries: told.entries.1,
            flags,
            offsets,
            done: told.sq.0,
            cq_head: c.cq.0,
            cq_flags: c.flags.1,
            dropped: c.dropped,
            overflow: c.overflow,
            array: c.array.into(),
            sqes: c.sqes.into(),
            cqes: c.cqes.into(),
            buffers: told.buffers,
            owner: of.map_or(0, |of| o.inner_tid(of.tid)),
            files: files.unwrap_or_default(),
            cpu,
        }))
    }
}

/// Said of each ring, for nothing tells it.
const UNTOLD: &str =
    "what the kernel does not tell of a ring is lost at a restore: limits and sharing of its workers, tags of buffers and files, which places for files the kernel chooses from, registered ring descriptors of \
     other threads, and requests in flight, where others with several completions hide them; it has IORING_SETUP_SUBMIT_ALL, and not \
     IORING_SETUP_COOP_TASKRUN; with IORING_SETUP_DEFER_TASKRUN it has IORING_SETUP_TASKRUN_FLAG";

/// The thread that a ring belongs to.
struct Owner {
    tid: i32,
    /// None: it serves.
    slot: Option<u32>,
}

/// What calls tell of a ring; the thread that it belongs to, and flags that follow from that.
fn judged(o: &mut Observer<'_>, ring: &OwnedFd, fd: i32) -> Result<(Asked, Option<Owner>, u32)> {
    let asked = sys::uring::ask(ring);
    if !asked.single_issuer || asked.disabled {
        return Ok((asked, None, 0));
    }
    let Some(of) = owner(o, fd)? else { return Ok((asked, None, 0)) };
    let mut p = Program::new();
    let questions = Questions::ask(&mut p, fd);
    let mut asked = questions.answers(&o.run_in(of.slot, p)?);
    const GROUPS: u32 = 1 << 16;
    // as many as one program has room for
    const SOME: u32 = 1 << 12;
    for first in (0..GROUPS).step_by(SOME as usize).filter(|_| refused(&asked).is_empty()).collect::<Vec<u32>>() {
        let mut p = Program::new();
        let groups = sys::uring::ask_groups(&mut p, fd, first..first + SOME);
        let r = o.run_in(of.slot, p)?;
        let there = groups.iter().position(|c| r.raw(*c) != -i64::from(libc::ENOENT));
        asked.buffers = asked.buffers.or(there.map(|i| (first + i as u32) as u16));
    }
    let defers = if sys::uring::defers(ring) { SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG } else { 0 };
    Ok((asked, Some(of), SETUP_SINGLE_ISSUER | defers))
}

/// Which thread is the one that the kernel does not tell EEXIST.
fn owner(o: &mut Observer<'_>, fd: i32) -> Result<Option<Owner>> {
    let mut p = Program::new();
    let it = sys::uring::ask_owner(&mut p, fd);
    if sys::uring::is_owner(&o.run(&p)?, it) {
        return Ok(Some(Owner { tid: o.entered.server, slot: None }));
    }
    let others: Vec<(usize, i32)> = o.entered.visited.iter().copied().enumerate().collect();
    // threads whose answers are one request
    const SOME: usize = 1000;
    for some in others.chunks(SOME) {
        let mut p = Program::new();
        let mut one = |slot: usize| {
            let first = p.len();
            let it = sys::uring::ask_owner(&mut p, fd);
            p.for_thread(slot as u32, first);
            it
        };
        let asked: Vec<_> = some.iter().map(|(slot, tid)| (*slot, *tid, one(*slot))).collect();
        let r = o.run(&p)?;
        if let Some((slot, tid, _)) = asked.into_iter().find(|(_, _, it)| sys::uring::is_owner(&r, *it)) {
            return Ok(Some(Owner { tid, slot: Some(slot as u32) }));
        }
    }
    Ok(None)
}

/// Whether the serving thread, or the one that the ring belongs to, has registered a ring's descriptor (IORING_REGISTER_RING_FDS).
fn registered(o: &mut Observer<'_>, of: &Option<Owner>) -> Result<bool> {
    const MOST: i32 = 16; // IO_RINGFD_REG_MAX
    const REGISTERED_RING: u64 = 1 << 4;
    for slot in [None].into_iter().chain(of.iter().map(|of| of.slot).filter(Option::is_some)) {
        let mut p = Program::new();
        // submits nothing, and fails where there is none
        let by_number = |n: i32| [n.into(), Imm(0), Imm(0), Imm(REGISTERED_RING), Imm(0), Imm(0)];
        let asked: Vec<_> = (0..MOST).map(|n| p.may(libc::SYS_io_uring_enter, &by_number(n))).collect();
        let r = o.run_in(slot, p)?;
        if asked.into_iter().any(|c| r.get(c).is_ok()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(ring: &OwnedFd, t: &Told, flags: u32) -> std::io::Result<(Vec<u32>, Content)> {
    let (_, offsets) = sys::uring::setup(t.entries.0, t.entries.1, flags)?;
    let memory = Memory::map(ring, t.entries, offsets, flags & SETUP_NO_SQARRAY == 0)?;
    Ok((offsets.words(), memory.read()?))
}

/// Whether the submission queue has indices; None: its entries are wide. fdinfo shows entries with their indices; of a queue without them kernels show none, or
/// the places.
fn has_array(ring: &OwnedFd, t: &Told, told: impl FnOnce() -> Option<Told>) -> std::io::Result<Option<bool>> {
    const LOOKED_AT: u32 = 2;
    let (_, offsets) = sys::uring::setup(t.entries.0, t.entries.1, 0)?;
    let memory = Memory::map(ring, t.entries, offsets, true)?;
    let indices = memory.read()?.array;
    let at = |n: u32| {
        let slot = (n & (t.entries.0 - 1)) as usize * 4;
        indices.get(slot..slot + 4).and_then(|b| b.try_into().ok()).map_or(u32::MAX, u32::from_ne_bytes)
    };
    let head = t.sq.0;
    // should this process die meanwhile, the queue is not to look full
    let n = LOOKED_AT.min((t.entries.0 / 2).max(1));
    let expected: Vec<u32> = (1..=n).rev().map(|i| at(head.wrapping_sub(i))).filter(|i| *i < t.entries.0).collect();
    let shown = memory.look_back(n, told)?.unwrap_or_default();
    Ok((!shown.wide_sqes).then_some(shown.submitted == expected))
}

impl Remake for Uring {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(u) = files::decode::<uring::Uring>(f) else { return Vec::new() };
        if let Some(why) = polled::unlike(c, &u) {
            return vec![Reason::new(c.describe(f), why.0, why.1)];
        }
        let why = match sys::uring::setup(u.sq_entries, u.cq_entries, u.flags) {
            Ok((ring, o)) if o.words() == u.offsets => return no_places(&ring, c, f, u.files.len()),
            Ok(_) => "in a ring of this kernel things lie at other places, which the program knows".to_string(),
            Err(e) => format!("no such ring can be set up here: {e}"),
        };
        let remedy = "see /proc/sys/kernel/io_uring_disabled; restore it under the kernel that it comes from";
        vec![Reason::new(c.describe(f), why, remedy)]
    }

    fn notes(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<String> {
        let polled = files::decode::<uring::Uring>(f).is_ok_and(|u| u.flags & SETUP_SQPOLL != 0);
        let all = [Some(UNTOLD), polled.then_some(polled::UNTOLD)];
        all.into_iter().flatten().map(|what| format!("{}: {what}", c.describe(f))).collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let u: uring::Uring = files::decode(f)?;
        if u.flags & SETUP_SQPOLL != 0 {
            return polled::stand_in(m);
        }
        set_up(m, &u)
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let u: uring::Uring = files::decode(f)?;
        match m.fds(id).first().copied() {
            Some(fd) if u.flags & SETUP_SQPOLL == 0 => complete(m, fd, &u),
            _ => Ok(()),
        }
    }
}

/// The new ring: a descriptor.
pub(super) fn set_up(m: &mut Maker<'_>, u: &uring::Uring) -> Step<Made> {
    let mut p = Program::new();
    let params = p.inout(&sys::uring::params(u.sq_entries, u.cq_entries, u.flags, u.cpu));
    let fd = p.call(libc::SYS_io_uring_setup, &[Imm(u.sq_entries.into()), params.arg()]);
    p.named("setting up a ring of io_uring");
    let r = m.run_in(u.owner, p)?;
    m.take(r.get(fd))
}

/// What a new ring gets when it has its number.
pub(super) fn complete(m: &mut Maker<'_>, fd: i32, u: &uring::Uring) -> Step<()> {
    let ring = m.borrow_fd(fd)?;
    fill(m, &ring, fd, u)?;
    if !u.buffers.is_empty() {
        let mut p = Program::new();
        let words = u.buffers.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()]);
        let (list, n) = (p.bytes(&words.flatten().collect::<Vec<u8>>()), Imm(u.buffers.len() as u64));
        p.call(libc::SYS_io_uring_register, &[fd.into(), Imm(REGISTER_BUFFERS), list, n]);
        p.named("registering the ring's buffers (see RLIMIT_MEMLOCK)");
        m.run_in(u.owner, p)?;
    }
    if !u.files.is_empty() {
        let open: Vec<i32> = u.files.iter().map(|fd| if m.is_closed(*fd) { -1 } else { *fd }).collect();
        let mut p = Program::new();
        let list = p.bytes(&open.iter().flat_map(|fd| fd.to_le_bytes()).collect::<Vec<u8>>());
        p.call(libc::SYS_io_uring_register, &[fd.into(), Imm(REGISTER_FILES.into()), list, Imm(open.len() as u64)]);
        p.named("registering the ring's files (see RLIMIT_NOFILE)");
        m.run_in(u.owner, p)?;
    }
    for v in m.image.memory.vmas.iter().filter(|v| v.backing == BACKING_URING && v.share == u.ino) {
        map(m, v, fd)?;
    }
    Ok(())
}

/// That a ring of this process does not take so many places for registered files.
fn no_places(ring: &OwnedFd, c: &Checker<'_>, f: &OpenFile, n: usize) -> Vec<Reason> {
    let taken = || {
        let _raised = sys::rlimit::Raised::for_descriptors(n as u64)?;
        sys::uring::has_places(ring, n)
    };
    let refused = |e| {
        let why = format!("{n} places for registered files are not to be had here: {e}");
        Reason::new(c.describe(f), why, format!("raise the hard limit of open files first: ulimit -Hn {n}"))
    };
    if n == 0 { None } else { taken().err() }.map(refused).into_iter().collect()
}

/// The most places for registered files that a ring of a tree has: so high has the limit of descriptors to be (io_uring_register(2)).
pub(crate) fn most_places(tree: &crate::restore::Tree<'_>) -> u64 {
    let places = |f: &OpenFile| files::decode::<uring::Uring>(f).map_or(0, |u| u.files.len() as u64);
    let rings = tree.all.iter().flat_map(|i| i.own_files()).filter(|(_, f)| f.kind == Kind::Uring as u32);
    rings.map(|(_, f)| places(f)).max().unwrap_or(0)
}

/// Maps a ring at its old place. The kernel maps a ring nowhere but where it finds room itself, and does not move it; so all other room is taken for a moment.
fn map(m: &mut Maker<'_>, v: &Vma, fd: i32) -> Step<()> {
    let len = v.end - v.start;
    let mut taken: Vec<(u64, u64)> = m.maps()?.iter().map(|v| (v.start, v.end)).collect();
    taken.extend([(v.start, v.end), (sys::nest::task_size(), u64::MAX)]);
    taken.sort_unstable();
    let (mut p, mut free, mut at) = (Program::new(), Vec::new(), LOWEST[1]);
    for (start, end) in taken {
        // next to its place any room is taken, or it would reach from there into its place
        let beside = at == v.end || start == v.start;
        if start > at && (start - at >= len || beside) {
            free.push((at, start - at));
        }
        at = at.max(end);
    }
    let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // what may not be taken there is not offered to the ring either
    let low = [Imm(LOWEST[0]), Imm(LOWEST[1] - LOWEST[0])];
    let lowest = p.may(libc::SYS_mmap, &[low[0], low[1], Imm(0), how.into(), (-1).into(), Imm(0)]);
    for (at, len) in &free {
        p.call(libc::SYS_mmap, &[Imm(*at), Imm(*len), Imm(0), how.into(), (-1).into(), Imm(0)]);
        p.named("taking all room but a ring's (see RLIMIT_AS and /proc/sys/vm/max_map_count)");
    }
    let offset = Imm(v.offset);
    let there =
        p.call(libc::SYS_mmap, &[Imm(0), Imm(len), Imm(v.prot.into()), libc::MAP_SHARED.into(), fd.into(), offset]);
    p.named(format!("mapping the ring at {:x}", v.start));
    // where it was not to be had, its error is no address
    p.may(libc::SYS_munmap, &[lowest.arg(), low[1]]);
    for (at, len) in &free {
        p.call(libc::SYS_munmap, &[Imm(*at), Imm(*len)]);
    }
    if crate::restore::place::has_flag(&v.flags, "dc") {
        p.call(libc::SYS_madvise, &[there.arg(), Imm(len), libc::MADV_DONTFORK.into()]);
    }
    let got = m.run(&p)?.raw(there) as u64;
    if got == v.start {
        return Ok(());
    }
    let why = format!("the kernel maps it at {got:x}");
    Err(cannot(format!("mapping {:x}-{:x} (io_uring)", v.start, v.end), why, "try again; no process is left"))
}

/// Lets it count like the old one, and have its content. Descriptor `fd` there is `ring` here.
fn fill(m: &mut Maker<'_>, ring: &OwnedFd, fd: i32, u: &uring::Uring) -> Step<()> {
    let failed = |e| super::io("filling the ring", e);
    let array = u.flags & SETUP_NO_SQARRAY == 0;
    let (_, offsets) = sys::uring::setup(u.sq_entries, u.cq_entries, u.flags).map_err(failed)?;
    let memory = Memory::map(ring, (u.sq_entries, u.cq_entries), offsets, array).map_err(failed)?;
    match u.owner {
        0 if u.flags & SETUP_SQPOLL == 0 => memory.advance(ring, u.done).map_err(failed)?,
        owner => memory.advance_by(fd, u.done, |p| m.run_in(owner, p.clone()))?,
    }
    let content = Content {
        sq: (u.done, u.done),
        cq: (u.cq_head, u.done),
        flags: (0, u.cq_flags),
        dropped: u.dropped,
        overflow: u.overflow,
        array: u.array.to_vec(),
        sqes: u.sqes.to_vec(),
        cqes: u.cqes.to_vec(),
    };
    memory.write(&content).map_err(failed)
}

/// Rings of threads that there are not yet when files are made, where that is so of a tree.
pub(crate) fn check_owners(tree: &crate::restore::Tree<'_>) -> Vec<Reason> {
    if !crate::restore::users::numbers_threads(tree) {
        return Vec::new();
    }
    let of_another = |image: &crate::restore::Image<'_>, f: &OpenFile| {
        f.kind == Kind::Uring as u32
            && files::decode::<uring::Uring>(f).is_ok_and(|u| u.owner != 0 && u.owner != image.threads[0].tid)
    };
    let one = |(image, (id, f))| {
        let why = "it belongs to another thread than the first one (IORING_SETUP_SINGLE_ISSUER), and a process of the program has threads in a user namespace of its own, which is not kept yet";
        Reason::new(files::describe(image, id, f), why, "checkpoint it when the ring is closed")
    };
    let all = tree.all.iter().flat_map(|image| image.own_files().map(move |f| (image, f)));
    all.filter(|(image, (_, f))| of_another(image, f)).map(one).collect()
}
