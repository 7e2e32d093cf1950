//! What belongs to the process as a whole: folders, session and group, signal handlers, limits, timers.
use super::fresh::Ids;
use super::puppet::Puppet;
use super::{creds, files, Image, Step};
use crate::{objects, RestoreOptions};
use ::image::v1::process::{PosixTimer, Process};
use ::image::v1::rights::Rights;
use sys::program::{Arg::Imm, CallId, Program};

const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_SET_MDWE: u64 = 65;
const CAP_SYS_RESOURCE: u32 = 24;
/// Attempts at a timer's ID by making and deleting others, on kernels before 6.16.
const TIMER_TRIES: i32 = 4096;
/// Calls that may fail, and what is not as it was if they do.
pub struct Soft(Vec<(CallId, String)>);

impl Soft {
    /// None yet.
    pub fn new() -> Soft {
        Soft(Vec::new())
    }

    /// The latest call `c` may fail; then `lost` is noted, with the reason.
    pub fn add(&mut self, c: CallId, lost: impl Into<String>) {
        self.0.push((c, lost.into()));
    }

    /// Notes what failed, each thing once.
    pub fn note(&mut self, r: &sys::program::Reply, notes: &mut Vec<String>) {
        for (c, lost) in self.0.drain(..) {
            if let Err(e) = r.get(c) {
                let line = format!("{lost}: {e}");
                if !notes.contains(&line) {
                    notes.push(line);
                }
            }
        }
    }
}

/// The working directory, before anything relative to it is opened.
pub fn places(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>) -> Step<()> {
    if image.shares_fs {
        return Ok(());
    }
    if image.process.cwd_deleted {
        return deleted_place(p, image, o);
    }
    let mut prog = Program::new();
    let path = files::map_path(&image.process.cwd, o);
    let cwd = prog.cstr(&path);
    prog.call(libc::SYS_chdir, &[cwd]);
    prog.named(format!("entering its working directory {}", path.escape_ascii()));
    p.run(&prog).map(drop)
}

/// A working directory that was deleted: one is made where that was, or where one can be made, and deleted.
fn deleted_place(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>) -> Step<()> {
    let path = files::map_path(&image.process.cwd, o);
    let parent = path.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default();
    for dir in [parent, b"/tmp", b"/var/tmp"] {
        let mut prog = Program::new();
        let name = [dir, format!("/.dormouse-deleted-{}", p.pid).as_bytes()].concat();
        let name = prog.cstr(&name);
        let made = prog.may(libc::SYS_mkdir, &[name, Imm(0o700)]);
        let entered = prog.may(libc::SYS_chdir, &[name]);
        prog.may(libc::SYS_rmdir, &[name]);
        let r = p.run(&prog)?;
        if r.get(made).and(r.get(entered)).is_ok() {
            return Ok(());
        }
    }
    let object = format!("working directory {} (deleted)", path.escape_ascii());
    Err(super::cannot(
        object,
        "nowhere can a directory be made that takes its place",
        "make /tmp writable; no process is left",
    ))
}

/// Controlling terminal and foreground; session and process group are there. That the program leads a session which it did not, or the other way
/// round, is noted: setsid(2) and opening a terminal are another thing then.
///
/// `outside`: the number of the group that the program was in, which is the caller's now.
pub fn group(
    p: &mut Puppet,
    image: &Image<'_>,
    outside: i32,
    o: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
) -> Step<()> {
    let mut prog = Program::new();
    let own_group = image.process.pid == image.process.pgid;
    if p.ours {
        notes.extend(session_note(image.process.pid == image.process.sid, o.own_session).map(str::to_owned));
    }
    if p.ptys.keys().any(|n| super::ptys::device(*n) == image.process.tty) {
        // has it since it was born (ptys.rs)
        return Ok(());
    }
    if o.own_session && p.ours {
        for fd in (0..3).filter(|fd| !is_pty(image, *fd)) {
            prog.may(libc::SYS_ioctl, &[fd.into(), Imm(TIOCSCTTY), Imm(0)]);
        }
    } else if (own_group || !p.ours && image.process.pgid != outside)
        && image.process.foreground
        && (o.own_session || in_foreground())
    {
        // also of a group whose leader has ended: any of its members can
        let group = prog.bytes(&p.ids.of(image.process.pgid).to_le_bytes());
        for fd in 0..3 {
            prog.may(libc::SYS_ioctl, &[fd.into(), Imm(TIOCSPGRP), group]);
        }
    }
    p.run(&prog).map(drop)
}

/// Whether a descriptor is of a pseudo terminal whose master is in the image, too.
fn is_pty(image: &Image<'_>, fd: i32) -> bool {
    let open = image.files.fds.iter().find(|d| d.fd == fd).and_then(|d| image.files.open.get(d.open as usize));
    open.is_some_and(|f| f.kind == ::image::v1::objects::Kind::PtySlave as u32)
}

/// What is said of its session, by whether it led one and does.
fn session_note(led: bool, leads: bool) -> Option<&'static str> {
    match (led, leads) {
        (false, true) => {
            Some("it leads a session of its own now: the leader of the session that it was in is not in the checkpoint")
        }
        (true, false) => {
            Some("it leads no session now: it is in that of who restores it (with --detach it leads one of its own)")
        }
        _ => None,
    }
}

/// Whether our own process group has our terminal, so that we may give it away.
fn in_foreground() -> bool {
    sys::procfs::stat::read(std::process::id() as i32).is_ok_and(|s| s.tpgid == s.pgrp)
}

/// Signal handlers, pending signals, and the small attributes.
pub fn attributes(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    let i = &image.process;
    let mut prog = Program::new();
    // those that are another's it has set
    for (n, action) in i.sigactions.chunks_exact(32).enumerate().filter(|_| !image.shares_handlers) {
        let sig = n as i32 + 1;
        if sig != libc::SIGKILL && sig != libc::SIGSTOP {
            let a = prog.bytes(action);
            prog.call(libc::SYS_rt_sigaction, &[sig.into(), a, Imm(0), Imm(8)]);
            prog.named(format!("the handler of signal {sig}"));
        }
    }
    let mut soft = Soft::new();
    for info in &i.pending {
        let sig = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
        let a = prog.bytes(&p.ids.siginfo(info));
        soft.add(
            prog.may(libc::SYS_rt_sigqueueinfo, &[p.ids.of(i.pid).into(), sig.into(), a]),
            format!("pending signal {sig} is lost"),
        );
    }
    soft.add(prog.may(libc::SYS_personality, &[Imm(i.personality as u64)]), "its personality is not as it was");
    if i.subreaper {
        prog.call(libc::SYS_prctl, &[Imm(libc::PR_SET_CHILD_SUBREAPER as u64), Imm(1)]);
    }
    prog.may(libc::SYS_prctl, &[Imm(PR_SET_THP_DISABLE), Imm(i.thp_disable as u64), Imm(0), Imm(0), Imm(0)]);
    let r = p.run(&prog)?;
    soft.note(&r, notes);
    merge(p, image, notes)?;
    put(p.pid, "oom_score_adj", &i.oom_score_adj.to_string(), notes);
    put(p.pid, "coredump_filter", &format!("{:#x}", i.coredump_filter), notes);
    Ok(())
}

/// CLOCK_THREAD_CPUTIME_ID, as the kernel keeps it (THREAD_CLOCK in kernel/time/posix-cpu-timers.c).
pub(crate) const THREAD_CLOCK: i32 = -2;

/// PR_SET_MEMORY_MERGE, which marks all mappings; those that the program had taken out again are.
fn merge(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    if !image.process.memory_merge {
        return Ok(());
    }
    let (mut prog, mut soft) = (Program::new(), Soft::new());
    let c = prog.may(libc::SYS_prctl, &[Imm(PR_SET_MEMORY_MERGE), Imm(1), Imm(0), Imm(0), Imm(0)]);
    soft.add(c, "its pages are not merged with equal ones as they were (PR_SET_MEMORY_MERGE)");
    soft.note(&p.run(&prog)?, notes);
    prog = Program::new();
    for v in image.memory.vmas.iter().filter(|v| !super::place::has_flag(&v.flags, "mg")) {
        prog.may(libc::SYS_madvise, &[Imm(v.start), Imm(v.end - v.start), Imm(libc::MADV_UNMERGEABLE as u64)]);
        p.run_if_full(&mut prog)?;
    }
    p.run(&prog).map(drop)
}

/// Writes a file of /proc/PID if it does not say so already.
fn put(pid: i32, file: &str, value: &str, notes: &mut Vec<String>) {
    let path = format!("/proc/{pid}/{file}");
    let number = |t: &str| match t.strip_prefix("0x") {
        Some(h) => i64::from_str_radix(h, 16).ok(),
        None => t.parse().ok(),
    };
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    let have = have.trim();
    // coredump_filter shows hexadecimal digits without a prefix
    let have = if file == "coredump_filter" { i64::from_str_radix(have, 16).ok() } else { number(have) };
    if have == number(value) {
        return;
    }
    if let Err(e) = std::fs::write(&path, value) {
        notes.push(format!("its {file} is not {value} as it was: {e}"));
    }
}

/// What comes after everything that needs room, and before credentials, of which it takes some: limits, root, umask.
pub fn limits(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let i = &image.process;
    let mut prog = Program::new();
    let mut soft = Soft::new();
    let own = sys::procfs::limits::read(std::process::id() as i32).ok();
    let may_raise = super::pids::Rights::own().has(CAP_SYS_RESOURCE);
    for (n, (cur, max)) in i.rlimits.iter().enumerate() {
        // what may not be raised was noted by the check
        let hard = own.as_ref().and_then(|o| o.get(n)).map_or(u64::MAX, |o| o.hard);
        let max = if may_raise { *max } else { (*max).min(hard) };
        let mut cur = (*cur).min(max);
        let mut max = max;
        if n == libc::RLIMIT_NOFILE as usize && objects::polled(image) {
            // rings are still to come, at numbers beyond it perhaps: it is lowered after them
            let now = own.as_ref().and_then(|o| o.get(n)).map_or((cur, max), |o| (o.soft, o.hard));
            (cur, max) = (cur.max(now.0), max.max(now.1));
        }
        let l = prog.bytes(&[cur.to_le_bytes(), max.to_le_bytes()].concat());
        let c = prog.may(libc::SYS_prlimit64, &[Imm(0), Imm(n as u64), l, Imm(0)]);
        soft.add(
            c,
            format!("its limit of {} is not as it was", crate::check::RLIMITS.get(n).map_or("(unknown)", |l| l.0)),
        );
    }
    if &i.root[..] != b"/" && !i.root.is_empty() && !image.shares_fs {
        let path = files::map_path(&i.root, o);
        let root = prog.cstr(&path);
        prog.call(libc::SYS_chroot, &[root]);
        prog.named(format!("entering its root directory {}", path.escape_ascii()));
    }
    if !image.shares_fs {
        prog.call(libc::SYS_umask, &[Imm(i.umask as u64)]);
    }
    if i.mlockall != 0 {
        // without MCL_CURRENT: what is mapped has its own locks already
        let c = prog.may(libc::SYS_mlockall, &[Imm(i.mlockall as u64)]);
        soft.add(c, "what it maps from now on is not locked in memory (mlockall) as it was");
    }
    let r = p.run(&prog)?;
    soft.note(&r, notes);
    Ok(())
}

/// The limit of open files, of one that has been given more ([`limits`]).
pub fn descriptors(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    let which = libc::RLIMIT_NOFILE as usize;
    let Some((cur, max)) = image.process.rlimits.get(which).filter(|_| objects::polled(image)) else { return Ok(()) };
    let hard = sys::procfs::limits::read(p.pid)?.get(which).map_or(*max, |l| l.hard.min(*max));
    let (mut prog, mut soft) = (Program::new(), Soft::new());
    let l = prog.bytes(&[(*cur).min(hard).to_le_bytes(), hard.to_le_bytes()].concat());
    let c = prog.may(libc::SYS_prlimit64, &[Imm(0), Imm(which as u64), l, Imm(0)]);
    soft.add(c, "its limit of open files is not as it was");
    soft.note(&p.run(&prog)?, notes);
    Ok(())
}

/// What comes after everything that needs rights: credentials, dumpable, timers.
pub fn last(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    let i = &image.process;
    let mut prog = Program::new();
    let mut soft = Soft::new();
    creds::Creds::new(p, image, notes).calls(&Rights::of(i), &mut prog, &mut soft);
    // a change of credentials reset both
    super::threads::after_creds(&mut prog, &image.threads[0]);
    prog.may(libc::SYS_prctl, &[Imm(0x5961_6d61), Imm(0)]);
    prog.may(libc::SYS_prctl, &[Imm(libc::PR_SET_DUMPABLE as u64), Imm((i.dumpable == 1) as u64)]);
    for bit in (0..32).filter(|b| i.membarrier & 1 << b != 0) {
        prog.may(libc::SYS_membarrier, &[Imm(1 << bit), Imm(0), Imm(0)]);
    }
    timers(&mut prog, i, &p.ids, &mut soft);
    for (which, (interval, value)) in i.itimers.iter().enumerate().filter(|(_, t)| t.0 != 0 || t.1 != 0) {
        // an interval without time left: it has gone off, and its signal, still pending, would have started it again
        let value = &(*value).max(1);
        let mut v = Vec::with_capacity(32);
        for us in [*interval, *value] {
            v.extend_from_slice(&(us / 1_000_000).to_le_bytes());
            v.extend_from_slice(&(us % 1_000_000).to_le_bytes());
        }
        let v = prog.bytes(&v);
        prog.call(libc::SYS_setitimer, &[Imm(which as u64), v, Imm(0)]);
    }
    if i.mdwe != 0 {
        // no code is mapped any more
        let c = prog.may(libc::SYS_prctl, &[Imm(PR_SET_MDWE), Imm(i.mdwe as u64), Imm(0), Imm(0), Imm(0)]);
        soft.add(c, "it may make memory that was written executable, which it could not (PR_SET_MDWE)");
    }
    let r = p.run(&prog)?;
    soft.note(&r, notes);
    Ok(())
}

/// POSIX timers under their IDs: all made, then all armed.
/// A timer's clock. A CPU clock of a certain task has its number in it (clock_getcpuclockid(3)), 0 for the caller's own. Timers are made by the serving thread; one of a
/// thread's own clock that signals a thread was made by that, as profilers make them.
fn clock(t: &PosixTimer, ids: &Ids) -> i32 {
    const KIND: i32 = 7;
    match (!(t.clock >> 3), t.tid) {
        _ if t.clock >= 0 => t.clock,
        (0, tid) if t.clock == THREAD_CLOCK && tid != 0 => !ids.of(tid) << 3 | t.clock & KIND,
        (0, _) => t.clock,
        (number, _) => !ids.of(number) << 3 | t.clock & KIND,
    }
}

fn timers(prog: &mut Program, i: &Process, ids: &Ids, soft: &mut Soft) {
    let on = |p: &mut Program, on: u64| {
        p.may(libc::SYS_prctl, &[Imm(PR_TIMER_CREATE_RESTORE_IDS), Imm(on), Imm(0), Imm(0), Imm(0)])
    };
    if i.timers.is_empty() {
        return;
    }
    let mut timers: Vec<&PosixTimer> = i.timers.iter().collect();
    timers.sort_by_key(|t| t.id);
    let can = sys::probe::timer_ids().is_ok();
    if can {
        on(prog, 1);
    }
    let mut next = 0;
    for t in &timers {
        let clock = Imm(clock(t, ids) as i64 as u64);
        // struct sigevent, 64 bytes: value, signo, notify, tid
        let mut ev = vec![0u8; 64];
        ev[0..8].copy_from_slice(&t.value.to_le_bytes());
        ev[8..12].copy_from_slice(&t.signal.to_le_bytes());
        ev[12..16].copy_from_slice(&t.notify.to_le_bytes());
        let tid = ids.of(if t.tid != 0 { t.tid } else { i.pid });
        ev[16..20].copy_from_slice(&tid.to_le_bytes());
        let ev = prog.bytes(&ev);
        let id = prog.bytes(&t.id.to_le_bytes());
        if !can {
            // IDs count upwards: those before it are made and deleted
            while next < t.id && t.id < TIMER_TRIES {
                let scratch = prog.bytes(&[0; 4]);
                prog.call(libc::SYS_timer_create, &[clock, ev, scratch]);
                prog.call(libc::SYS_timer_delete, &[next.into()]);
                next += 1;
            }
            next = t.id + 1;
        }
        let c = prog.may(libc::SYS_timer_create, &[clock, ev, id]);
        soft.add(c, format!("timer {} is lost", t.id));
    }
    if can {
        on(prog, 0);
    }
    for t in timers.iter().filter(|t| t.value_ns != 0) {
        let mut v = Vec::with_capacity(32);
        for ns in [t.interval_ns, t.value_ns] {
            v.extend_from_slice(&(ns / 1_000_000_000).to_le_bytes());
            v.extend_from_slice(&(ns % 1_000_000_000).to_le_bytes());
        }
        let v = prog.bytes(&v);
        let c = prog.may(libc::SYS_timer_settime, &[t.id.into(), Imm(0), v, Imm(0)]);
        soft.add(c, format!("timer {} is not armed", t.id));
    }
}
