//! Rings of io_uring for which a thread of the kernel's submits (IORING_SETUP_SQPOLL). That thread has the credentials of who set the ring up, for ever. So at a
//! restore something else stands in for the ring until the process has its own; then it is set up, numbered and mapped.
use super::uring::{complete, set_up, CLOSE};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker};
use crate::restore::pids::Rights;
use crate::restore::Step;
use image::v1::objects::Kind;
use image::v1::uring::Uring;
use sys::procfs::maps::VmaKind;
use sys::procfs::smaps::VmFlag;
use sys::procfs::status::read_task;
use sys::program::{Arg::Imm, Program};
use sys::uring::{Told, SETUP_SQPOLL, SETUP_SQ_AFF};

/// For each time that the thread is woken it takes a few requests: as often as that is done, a few seconds' worth.
const MOST: u32 = 1 << 17;
const CAP_SYS_PTRACE: u32 = 19;

/// Why such a ring cannot be kept. `tid`: of the kernel's thread; `owner`: of the one that it belongs to.
pub(super) fn reasons(
    o: &Observer<'_>,
    f: &FileView,
    told: &Told,
    (tid, owner): (i32, Option<i32>),
) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    let own = |v: &&FileView| v.pid == f.pid && f.fds != v.fds;
    let has = |fd: i32| f.fds.iter().any(|(n, _)| *n == fd);
    if o.files().iter().filter(own).any(|v| v.watched.iter().flatten().any(|fd| has(*fd))) {
        all.push(("a thread of the kernel's submits its requests (IORING_SETUP_SQPOLL), and it is in an epoll set, which together is not kept yet".into(), CLOSE));
    }
    let thread_of = |v: &FileView| sys::uring::told(v.pid, v.first_fd()).ok().flatten().and_then(|t| t.thread);
    if o.files().iter().filter(own).filter(|v| v.link == super::RING).any(|v| thread_of(v) == Some(tid)) {
        all.push((format!("the kernel's thread {tid} submits the requests of several rings (IORING_SETUP_SQPOLL with IORING_SETUP_ATTACH_WQ), which is not kept yet"), CLOSE));
    }
    let pid = f.pid;
    let by = owner.unwrap_or(sys::procfs::first::by(pid));
    let who = |tid| read_task(pid, tid).ok().map(|s| crate::capture::rights_of(&s, 0));
    if !sys::procfs::is_io_worker(pid, tid) {
        all.push((format!("a thread of the kernel's submits its requests (IORING_SETUP_SQPOLL), of which only the number outside all PID namespaces is told, {tid}"), "make the checkpoint from outside the PID namespace (container)"));
    } else if who(tid) != who(by) {
        all.push((format!("the kernel's thread {tid} submits its requests (IORING_SETUP_SQPOLL) with other credentials than thread {by} has, which is not kept yet"), CLOSE));
    }
    all.extend(late(o, f));
    let at_once = told.entries.0.min(told.entries.1);
    if told.sq.0 / at_once > MOST {
        let why = format!("it has had {} requests by a thread of the kernel's (IORING_SETUP_SQPOLL): a new one would need as many to count like it, and {} are the most", told.sq.0, u64::from(MOST) * u64::from(at_once));
        all.push((why, "let the program set up a new ring from time to time"));
    }
    all
}

/// What does not go with a ring that is mapped when the process has its limits, and after what it has sealed.
fn late(o: &Observer<'_>, f: &FileView) -> Vec<(String, &'static str)> {
    let its = |m: &&sys::procfs::smaps::Smap| f.stat.as_ref().is_some_and(|s| s.ino == m.vma.inode);
    let ring = |m: &&sys::procfs::smaps::Smap| m.vma.kind() == VmaKind::AnonInode(b"io_uring");
    let sealed = |m: &sys::procfs::smaps::Smap| m.flags.has(VmFlag::SEALED);
    let limit = sys::procfs::limits::read(f.pid).map_or(u64::MAX, |l| l[libc::RLIMIT_AS as usize].soft);
    let with = |what: &str| {
        format!("a thread of the kernel's submits its requests (IORING_SETUP_SQPOLL), and {what}, which together is not kept yet")
    };
    let sealed = o.smaps.iter().filter(ring).filter(its).any(sealed).then(|| with("its mapping is sealed (mseal)"));
    let limited = (limit != u64::MAX).then(|| with("the process has a limit of its address space (RLIMIT_AS)"));
    sealed.into_iter().chain(limited).map(|why| (why, CLOSE)).collect()
}

/// Flags, and the CPU on which the kernel's thread stays.
pub(super) fn flags(tid: i32, told: &Told) -> (u32, u32) {
    let on = sys::sched::affinity(tid);
    let only = on.iter().map(|b| b.count_ones()).sum::<u32>() == 1;
    match told.cpu.filter(|_| only) {
        Some(cpu) => (SETUP_SQPOLL | SETUP_SQ_AFF, cpu),
        None => (SETUP_SQPOLL, 0),
    }
}

/// What of this machine, or of the process, stands in its way; and what to do.
pub(super) fn unlike(c: &Checker<'_>, u: &Uring) -> Option<(String, &'static str)> {
    if u.flags & SETUP_SQPOLL == 0 {
        return None;
    }
    if u.done / u.sq_entries.min(u.cq_entries).max(1) > MOST {
        return Some((
            "that it has had so many requests makes no sense".into(),
            "run `ctl verify`; restore an earlier checkpoint",
        ));
    }
    let here = sys::sched::affinity(0);
    let is_there = here.get(u.cpu as usize / 8).is_some_and(|b| b >> (u.cpu % 8) & 1 != 0);
    if u.flags & SETUP_SQ_AFF != 0 && !is_there {
        let why = format!("a thread of the kernel's submits its requests on CPU {} (IORING_SETUP_SQ_AFF), which is not there, or not permitted", u.cpu);
        return Some((why, "restore it where that CPU may be used (taskset, cpuset of the control group)"));
    }
    if c.image.process.dumpable != 1 && !Rights::own().has(CAP_SYS_PTRACE) {
        let why = "a thread of the kernel's submits its requests (IORING_SETUP_SQPOLL), and the process is not dumpable: nobody but root can make it again";
        return Some((why.into(), "restore it as root"));
    }
    None
}

/// Said of each such ring.
pub(super) const UNTOLD: &str =
    "how long the kernel's thread that submits stays awake is not told (sq_thread_idle): after a restore a second";

/// What has its numbers until there is the ring.
pub(super) fn stand_in(m: &mut Maker<'_>) -> Step<Made> {
    let mut p = Program::new();
    let fd = p.call(libc::SYS_eventfd2, &[Imm(0), libc::O_CLOEXEC.into()]);
    let r = m.run(&p)?;
    m.take(r.get(fd))
}

/// Whether a process has any.
pub(crate) fn any(image: &crate::restore::Image<'_>) -> bool {
    let own = image.own_files().filter(|(_, f)| f.kind == Kind::Uring as u32);
    own.filter_map(|(_, f)| files::decode::<Uring>(f).ok()).any(|u| u.flags & SETUP_SQPOLL != 0)
}

/// Makes them, in a process that has its credentials.
pub(crate) fn make_all(m: &mut Maker<'_>) -> Step<()> {
    for (id, f) in m.image.own_files().filter(|(_, f)| f.kind == Kind::Uring as u32) {
        let u: Uring = files::decode(f)?;
        let numbers: Vec<(i32, bool)> =
            m.image.files.fds.iter().filter(|d| d.open == id).map(|d| (d.fd, d.cloexec)).collect();
        let Some(first) = numbers.first().filter(|_| u.flags & SETUP_SQPOLL != 0) else { continue };
        let Made::At(fd) = set_up(m, &u)? else { continue };
        let mut p = Program::new();
        for (n, cloexec) in &numbers {
            let flag = if *cloexec { libc::O_CLOEXEC } else { 0 };
            p.call(libc::SYS_dup3, &[fd.into(), (*n).into(), flag.into()]);
        }
        p.call(libc::SYS_close, &[fd.into()]);
        let status = f.flags & libc::O_NONBLOCK as u32;
        p.call(libc::SYS_fcntl, &[first.0.into(), libc::F_SETFL.into(), Imm(status.into())]);
        m.run(&p)?;
        complete(m, first.0, &u)?;
    }
    Ok(())
}
