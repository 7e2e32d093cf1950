//! Phase observe: what the snapshot child does not preserve, read while everything stands still.
use super::door::{FromInside, Inside};
use super::files::{self, FileView};
use super::find::Survey;
use super::locked::Locked;
use super::memory::Unnamed;
use super::opened::AllHands;
use super::pending::Pending;
use super::shares::Table;
use super::told::{ServerTold, Told};
use super::{Fault, Step};
use crate::{objects, Door, Error, Reason, Result};
use image::v1::files::{Content, Fd, Lock, OpenFile};
use image::v1::process::{PosixTimer, Process};
use image::PageSink;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sys::agent::{Copies, Visited};
use sys::channel::{Channel, Listener};
use sys::clock::Clocks;
use sys::mem::RemoteMem;
use sys::pidfd::PidFd;
use sys::procfs::{self, maps::Vma, smaps::Smap};
use sys::program::{Out, Program};
use sys::tracer::Entered;

const SIGNALS: usize = 64;
/// sizeof(struct kernel_sigaction) on x86_64: handler, flags, restorer, mask.
const SIGACTION: usize = 32;

/// MEMBARRIER_CMD_GET_REGISTRATIONS, kernel 6.3, linux/membarrier.h
const MEMBARRIER_GET_REGISTRATIONS: i32 = 1 << 9;

const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;

/// Everything observed, but for the memory.
pub(super) struct Seen {
    pub process: Process,
    /// What each thread said of itself; the serving one comes last.
    pub told: Vec<Told>,
    /// Its descriptors, and the locks that it holds through open files whose record is of an earlier process.
    pub fds: Vec<Fd>,
    pub locks: Vec<(u32, Lock)>,
    pub maps: Vec<Vma>,
    /// As the program saw them when all this was known.
    pub clocks: Clocks,
    /// By the agent: pending signals, which the tracer reads on the other door.
    pub pending: Option<Pending>,
    /// The control groups that it is in.
    pub cgroups: Vec<procfs::cgroup::Membership>,
    /// Its user namespace, if that is in the one around the program.
    pub users: Option<super::users::Space>,
    /// NUMA policies of a process that cannot be asked for them once it runs again, as far as its child will not know them.
    pub policies: Option<Vec<procfs::numa::Mapping>>,
}

/// What a process said before its open files were looked at.
pub(super) struct Begun {
    pub process: Process,
    told: Vec<Told>,
    /// Its mappings; none: they are an earlier process's.
    pub maps: Vec<Vma>,
}

/// Copies of a process's descriptors.
pub(super) struct Hands {
    /// Of the agent: those that it has passed over.
    copies: Copies,
    pidfd: PidFd,
}

impl Hands {
    /// A copy of one: shares its open file.
    pub fn copy(&self, fd: i32) -> sys::Result<OwnedFd> {
        match self.copies.get(fd) {
            Some(copy) => copy.try_clone_to_owned().map_err(|e| sys::Error::call("dup", std::process::id() as i32, e)),
            None => self.pidfd.get(fd),
        }
    }
}

/// A panic while it is held goes on where its thread is waited for.
pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the recorders of all processes of a tree have in common.
pub(super) struct Common {
    /// Takes pages: of memory, and of files without a name. None: taken away.
    pub sink: Mutex<Option<PageSink>>,
    /// Copies of descriptors, by PID.
    pub hands: Mutex<AllHands>,
    /// Contents of files without a name.
    pub contents: Mutex<Vec<Content>>,
    kept: Mutex<Vec<((sys::procfs::Dev, u64), u32)>>,
    /// Files without a name whose content is stored.
    pub unnamed: Mutex<Vec<Unnamed>>,
    /// System V semaphores and message queues.
    pub ipc: Mutex<super::sysvipc::AllFound>,
    /// Parts of segments of System V shared memory whose pages are stored: shmid, first byte, bytes.
    pub segments: Mutex<BTreeSet<(u64, u64, u64)>>,
    /// PIDs of the processes.
    pub members: Vec<i32>,
    /// There is more than one process, or there are zombies.
    pub several: bool,
}

impl Common {
    pub fn new(sink: PageSink, members: Vec<i32>, several: bool) -> Arc<Common> {
        Arc::new(Common {
            sink: Mutex::new(Some(sink)),
            hands: Mutex::default(),
            contents: Mutex::default(),
            kept: Mutex::default(),
            unnamed: Mutex::default(),
            ipc: Mutex::default(),
            segments: Mutex::default(),
            members,
            several,
        })
    }

    /// Files without a name whose content is stored.
    pub fn unnamed(&self) -> Vec<Unnamed> {
        lock(&self.unnamed).clone()
    }

    /// Uses the sink.
    pub fn sink<T>(&self, f: impl FnOnce(&mut PageSink) -> Step<T>) -> Step<T> {
        match lock(&self.sink).as_mut() {
            Some(sink) => f(sink),
            None => Err(sys::Error::Unfit { what: "the page pack is complete already".into() }.into()),
        }
    }
}

/// The recorder's hands inside a frozen target.
pub struct Observer<'a> {
    /// What was known before the freeze.
    pub survey: &'a Survey,
    pub(super) channel: Channel,
    pub(crate) entered: Entered,
    pub(super) mem: RemoteMem,
    /// Of the agent: its connection's number; None: the tracer brought the blob in.
    agent: Option<i32>,
    /// It is not dumpable, but for now.
    pub(super) opened: bool,
    /// Of the agent: what threads said as they came in.
    pub(super) visited: Visited,
    pub(super) common: Arc<Common>,
    /// All open files, of all processes.
    views: Arc<Vec<FileView>>,
    /// Page runs of memory taken in the freeze.
    pub(super) early: Vec<image::PageRun>,
    /// Guards in that memory.
    pub(super) guards: Vec<(u64, u64)>,
    /// What shared memory holds behind guards.
    pub(super) hidden: Vec<(u64, u64)>,
    /// Its private memory of huge pages.
    pub(super) huge: Vec<(u64, u64)>,
    /// Of System V shared memory.
    pub(super) segments: Vec<image::v1::memory::Segment>,
    /// Its memory is no earlier process's, which has it recorded.
    pub(super) has_own_memory: bool,
    /// Mappings of ours that are in it: of all who have the same memory. Addresses of the first byte, and of that after the last.
    pub(super) ours: Vec<(u64, u64)>,
    /// Mappings with their flags, but for what came after the survey.
    pub(crate) smaps: Cow<'a, [Smap]>,
    /// Its memory protection keys.
    pub(super) keys: super::keys::Asked,
    /// That of its libdormouse.
    pub(super) block: Option<sys::api::Block>,
    /// What is not kept, each with what is lost.
    pub reported: Vec<String>,
    /// What is said beside it, and never refused: what is given up on purpose, and how the checkpoint was made.
    pub noted: Vec<String>,
}

impl<'a> Observer<'a> {
    pub(super) fn new(survey: &'a Survey, inside: Inside, common: Arc<Common>) -> Step<Observer<'a>> {
        let Inside { channel, entered, sock, visited, opened } = inside;
        let mem = RemoteMem::open(survey.pid)?;
        let block = sys::api::Block::read(&mem, survey.inner_pid());
        let ours = vec![(entered.layout.base, entered.layout.base + entered.layout.len)];
        Ok(Observer {
            survey,
            channel,
            entered,
            mem,
            block,
            agent: sock,
            opened,
            visited,
            common,
            views: Arc::default(),
            early: Vec::new(),
            guards: Vec::new(),
            hidden: Vec::new(),
            huge: Vec::new(),
            segments: Vec::new(),
            has_own_memory: true,
            ours,
            keys: Default::default(),
            smaps: Cow::Borrowed(&survey.smaps),
            reported: survey.reported.clone(),
            noted: Vec::new(),
        })
    }

    /// A copy of the target's descriptor `n`: shares its open file.
    pub fn descriptor(&self, n: i32) -> Result<OwnedFd> {
        self.copy(self.survey.pid, n)
    }

    /// A copy of an open file, whichever process has it.
    pub fn descriptor_of(&self, f: &FileView) -> Result<OwnedFd> {
        self.copy(f.pid, f.first_fd())
    }

    fn copy(&self, pid: i32, fd: i32) -> Result<OwnedFd> {
        let none = || sys::Error::Unfit { what: format!("nothing is known of PID {pid}") };
        let copy = lock(&self.common.hands).get(&pid).ok_or_else(none).and_then(|h| h.copy(fd));
        copy.map_err(|e| self.failed(e))
    }

    /// The way in.
    pub fn door(&self) -> Door {
        match self.agent {
            Some(_) => Door::Agent,
            None => Door::Attach,
        }
    }

    /// Runs a program inside the target.
    pub fn run(&mut self, p: &Program) -> Result<sys::program::Reply> {
        let r = self.channel.run(p);
        r.map_err(|e| self.failed(e))
    }

    /// Runs a program in a thread that is parked in a slot; None: in the serving one.
    pub(crate) fn run_in(&mut self, slot: Option<u32>, mut p: Program) -> Result<sys::program::Reply> {
        if let Some(slot) = slot {
            p.for_thread(slot, 0);
        }
        self.run(&p)
    }

    /// All open files of the processes that are captured together.
    pub fn files(&self) -> &[FileView] {
        &self.views
    }

    /// The first standard stream that is a terminal; -1: none.
    pub fn terminal_stdio(&self) -> i32 {
        self.views.iter().filter(|f| f.is_terminal()).map(FileView::stdio).filter(|s| *s >= 0).min().unwrap_or(-1)
    }

    /// Keeps the content of a file that has no name; its index in [`Files::contents`]. Two open files of one inode share it.
    pub fn keep_content(&mut self, f: &FileView, file: &std::fs::File) -> Result<u32> {
        let key = f.stat.as_ref().map(|s| (s.dev, s.ino));
        if let Some((_, i)) = lock(&self.common.kept).iter().find(|k| Some(k.0) == key) {
            return Ok(*i);
        }
        // no run of memory is in the sink: each process takes its own at once
        let read = |sink: &mut PageSink| Ok((objects::content::read(file, sink)?, sink.take_runs()));
        let (size, pages) = self.common.sink(read).map_err(|e| self.explain(e))?;
        let mut contents = lock(&self.common.contents);
        contents.push(Content { size, pages });
        let i = contents.len() as u32 - 1;
        lock(&self.common.kept).extend(key.map(|k| (k, i)));
        let unnamed = key.map(|k| Unnamed { ino: k.1, path: f.link.clone(), content: i });
        lock(&self.common.unnamed).extend(unnamed);
        Ok(i)
    }

    /// A failure of the host crate in the engine's words.
    pub fn failed(&self, e: sys::Error) -> Error {
        self.explain(Fault::Sys(e))
    }

    /// An error for a reason that only a look at an open file's state has told.
    pub(crate) fn refused(&self, mut r: Reason) -> Error {
        if self.common.several {
            r.object = format!("{}: {}", self.survey.describe(), r.object);
        }
        Error { kind: crate::Kind::Refused, attempted: self.survey.attempted.clone(), reasons: vec![r] }
    }

    pub(crate) fn explain(&self, f: Fault) -> Error {
        super::explain(f, &self.survey.attempted, "observe", true)
    }

    /// What the process and its threads say, before the open files of any are looked at.
    pub(super) fn begin(&mut self) -> Step<Begun> {
        self.critical()?;
        self.refuse_unheard_hooks()?;
        let visited = match self.door() {
            Door::Attach => self.visited()?,
            Door::Agent => self.visit()?,
        };
        let (process, told) = self.process(visited)?;
        // the first who has them answers for them
        let maps = if self.has_own_memory { procfs::maps::read(self.survey.pid)? } else { Vec::new() };
        Ok(Begun { process, told, maps })
    }

    /// What is left, when all open files are known. `fds`, `locks`: its own; `table`: its descriptors, whichever process has them.
    pub(super) fn end(&mut self, b: Begun, (fds, table): (Vec<Fd>, &[Fd]), locks: Vec<(u32, Lock)>) -> Step<Seen> {
        let Begun { process, told, maps } = b;
        self.survey.refuse_for(super::sysv::shared_with_others(&maps, self.survey.pid, &self.common.members))?;
        let pending = match self.door() {
            // of several, one may have sent a signal to another that stood still already
            Door::Attach => self.common.several.then(|| self.pending(&told)).transpose()?,
            Door::Agent => Some(self.pending(&told)?),
        };
        self.asynchronous(&maps)?;
        self.survey.refuse_for(objects::uring_strays(self.survey.pid, &self.views, table, &maps))?;
        self.report_dropped(&maps);
        self.unforkable(&maps)?;
        let lacks = self.smaps.iter().any(|m| m.flags.has(procfs::smaps::VmFlag::DONTFORK));
        let policies = (self.opened && lacks).then(|| procfs::numa::read(self.survey.pid)).transpose()?;
        let cgroups = self.cgroups();
        let users = self.survey.space()?;
        // last: when the clocks go on from here, what its timers have left ends no earlier than they were set to
        let clocks = Clocks::now()?.ahead(self.survey.ahead);
        Ok(Seen { process, told, fds, locks, maps, clocks, pending, cgroups, users, policies })
    }

    /// It has something to wait for, but no child: what it traces.
    fn refuse_tracing(&self) -> Step<()> {
        let pid = self.survey.pid;
        if procfs::children(pid)?.is_empty() {
            let w = "it traces another process, which a restore could not do again";
            return self.survey.refuse_for(vec![Reason::new(format!("PID {pid}"), w, "end the tracing first")]);
        }
        Ok(())
    }

    /// What the serving thread says of the process and of itself, and what /proc does. `visited`: the other threads' answers.
    fn process(&mut self, visited: Vec<Told>) -> Step<(Process, Vec<Told>)> {
        let pid = self.survey.pid;
        let timers = procfs::timers::read(pid).unwrap_or_else(|e| {
            self.reported.push(format!(
                "POSIX timers: they cannot be looked at ({e}); if it has any, a restored program has none"
            ));
            Vec::new()
        });
        let unclear = |t: &&procfs::timers::Timer| t.clock_id == crate::restore::THREAD_CLOCK && !t.to_thread;
        if self.survey.threads.len() > 1 {
            self.reported.extend(timers.iter().filter(unclear).map(|t| {
                let what = "it goes by the CPU time of a thread, and the kernel does not tell which";
                let then = if self.survey.ended.is_some() { "it never runs out" } else { "it is the first one's" };
                format!("POSIX timer {}: {what}: after a restore {then}", t.id)
            }));
        }
        let mut p = Program::new();
        let actions = p.out(SIGNALS * SIGACTION);
        for s in 0..SIGNALS {
            let at = actions.at((s * SIGACTION) as u32);
            p.may(libc::SYS_rt_sigaction, &[(s as i32 + 1).into(), 0.into(), at, 8.into()]);
        }
        let it = p.out(3 * 32);
        for i in 0..3 {
            p.may(libc::SYS_getitimer, &[(i as i32).into(), it.at(i * 32)]);
        }
        let tv = p.out(32 * timers.len());
        for (i, t) in timers.iter().enumerate() {
            p.may(libc::SYS_timer_gettime, &[t.id.into(), tv.at(i as u32 * 32)]);
        }
        let ints = p.out(16);
        p.may(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER.into(), ints.arg()]);
        let dumpable = p.may(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()]);
        let thp = p.may(libc::SYS_prctl, &[libc::PR_GET_THP_DISABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()]);
        let five =
            |p: &mut Program, get: i32| p.may(libc::SYS_prctl, &[get.into(), 0.into(), 0.into(), 0.into(), 0.into()]);
        let (mdwe, merge) = (five(&mut p, PR_GET_MDWE), five(&mut p, PR_GET_MEMORY_MERGE));
        let l = self.entered.layout;
        let locked = Locked::ask(&mut p, &l);
        let personality = p.may(libc::SYS_personality, &[0xffff_ffffu64.into()]);
        let brk = p.may(libc::SYS_brk, &[0.into()]);
        let membarrier = p.may(libc::SYS_membarrier, &[MEMBARRIER_GET_REGISTRATIONS.into(), 0.into(), 0.into()]);
        let info = p.out(128);
        // P_ALL is 0; no child at all is ECHILD, on whichever thread it would be; nobody is waited for
        let waits = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let family = p.may(libc::SYS_waitid, &[0.into(), 0.into(), info.arg(), waits.into(), 0.into()]);
        let server = ServerTold::ask(&mut p);
        let r = self.channel.run(&p)?;
        let told = self.server_told(visited, server, &r);
        if r.raw(family) != -i64::from(libc::ECHILD) {
            self.refuse_tracing()?;
        }

        let status = &self.survey.status;
        let stat = procfs::stat::read(procfs::first::by(pid))?;
        // its first thread's, even if that has ended
        let exit_signal = match self.survey.ended {
            None => stat.exit_signal,
            Some(_) => procfs::stat::read(pid)?.exit_signal,
        };
        // of the thread whose rights /proc tells as the process's
        let securebits =
            told.iter().find(|t| t.tid == procfs::first::by(pid)).map_or(0, |t| t.securebits.max(0) as u32);
        let mlockall = locked.flags(&r);
        // the agent had mapped its region before that was looked at
        self.locked_since(if mlockall != 0 && self.door() == Door::Agent { l.len } else { 0 })?;
        let microseconds = |o: Out, at: usize| r.u64(o, at) * 1_000_000 + r.u64(o, at + 8);
        let nanoseconds = |o: Out, at: usize| r.u64(o, at) * 1_000_000_000 + r.u64(o, at + 8);
        let posix = |(i, t): (usize, &procfs::timers::Timer)| PosixTimer {
            id: t.id,
            clock: t.clock_id,
            notify: notify_number(t),
            signal: t.signal,
            value: t.value,
            tid: if t.to_thread { self.inner_tid(t.target) } else { 0 },
            interval_ns: nanoseconds(tv, i * 32),
            value_ns: nanoseconds(tv, i * 32 + 16),
        };
        let mut process = Process {
            pid: self.survey.inner_pid(),
            exit_signal: Some(exit_signal).filter(|s| *s != libc::SIGCHLD),
            pgid: status.ns_pgid.last().copied().unwrap_or(0),
            sid: status.ns_sid.last().copied().unwrap_or(0),
            foreground: stat.tty_nr != 0 && stat.tpgid == stat.pgrp,
            tty: stat.tty_nr as u64,
            uid: super::rights::ids(&status.uid),
            gid: super::rights::ids(&status.gid),
            groups: status.groups.clone(),
            caps: super::rights::caps(status),
            securebits,
            no_new_privs: status.no_new_privs,
            dumpable: if self.opened { 0 } else { r.raw(dumpable) as i32 },
            umask: status.umask.unwrap_or(0o22),
            personality: r.raw(personality) as u32,
            subreaper: r.u32(ints, 0) != 0,
            thp_disable: r.raw(thp) > 0,
            memory_merge: r.raw(merge) > 0,
            mdwe: r.raw(mdwe).max(0) as u32,
            mlockall,
            membarrier: r.raw(membarrier).max(0) as u32,
            mm: [
                stat.start_code,
                stat.end_code,
                stat.start_data,
                stat.end_data,
                stat.start_brk,
                r.raw(brk) as u64,
                stat.start_stack,
                stat.arg_start,
                stat.arg_end,
                stat.env_start,
                stat.env_end,
            ],
            sigactions: r.bytes(actions).to_vec().into(),
            pending: Vec::new(),
            itimers: (0..3).map(|i| (microseconds(it, i * 32), microseconds(it, i * 32 + 16))).collect(),
            timers: timers.iter().enumerate().map(posix).collect(),
            // the tracer tells whether it is stopped, and its child what that has, too (inherited.rs)
            ..Process::default()
        };
        super::inherited::cwd(&mut process, pid)?;
        Ok((process, told))
    }

    /// Flags of the mappings as they were before the freeze, unless what is locked has changed since: a snapshot child has no locks,
    /// so they count. `ours`: bytes that our mapping adds.
    fn locked_since(&mut self, ours: u64) -> Step<()> {
        if super::locked::amount(&self.survey.status) != self.survey.locked + (ours >> 10) {
            self.smaps = procfs::smaps::read(self.survey.pid)?.into();
        }
        Ok(())
    }

    /// A TID as the target sees it.
    pub(crate) fn inner_tid(&self, tid: i32) -> i32 {
        self.survey.threads.get(&tid).map_or(tid, |t| t.inner_tid)
    }

    /// What it has open, but for the descriptors that blobs talk through: nothing, if its table is that of an earlier process.
    pub(super) fn listed(&mut self, l: &Listener, table: Option<Table>) -> Step<Vec<FileView>> {
        let (pid, inner) = (self.survey.pid, self.survey.inner_living());
        let mut hands = Hands { copies: Copies::default(), pidfd: PidFd::with_files(pid)? };
        let Some(Table { ours, blocks }) = table else {
            lock(&self.common.hands).insert(pid, hands);
            return Ok(Vec::new());
        };
        let mut fds = procfs::fd::list(pid)?;
        fds.retain(|f| !ours.contains(&f.fd));
        let mut views = if self.agent.is_some() {
            // rings of io_uring cannot be passed over (SCM_RIGHTS)
            let numbers: Vec<i32> = fds.iter().filter(|f| f.target != objects::RING).map(|f| f.fd).collect();
            let uid = self.survey.status.uid.effective;
            hands.copies = Copies::fetch(&mut self.channel, l, uid, &numbers)?;
            let mut look = FromInside { channel: &mut self.channel, copies: &hands.copies, pid: inner };
            files::grouped(pid, fds, &mut look, true)?
        } else {
            files::grouped(pid, fds, &mut files::Outside::new(pid)?, true)?
        };
        super::ptys::ask_close_on_exec(&mut self.channel, &mut views)?;
        files::decide(&mut views, &self.survey.external, &blocks);
        lock(&self.common.hands).insert(pid, hands);
        Ok(views)
    }

    /// From now on it knows all open files.
    pub(super) fn knows(&mut self, views: Arc<Vec<FileView>>) {
        self.views = views;
    }

    /// An open file in the image's words, which it has before all other processes; or the reasons against it.
    pub(super) fn open_file(&mut self, v: &FileView) -> Step<std::result::Result<OpenFile, Vec<Reason>>> {
        let more = objects::inspect(v, &self.views.clone(), self.survey.pid);
        let (true, Some(kind)) = (more.is_empty(), objects::of(v)) else { return Ok(Err(more)) };
        let data = kind.capture(v, self)?;
        let (owner, sig) = self.owner(v)?;
        Ok(Ok(OpenFile {
            kind: kind.kind() as u32,
            flags: v.info.flags & !(libc::O_CLOEXEC as u32),
            pos: v.info.pos,
            owner,
            sig,
            locks: objects::locks::held(v),
            label: v.link.clone().into(),
            data: data.into(),
        }))
    }

    /// The blob's own socket.
    pub(super) fn own_descriptor(&self) -> Step<i32> {
        if let Some(sock) = self.agent {
            return Ok(sock);
        }
        let mut b = [0; 4];
        self.mem.read(self.entered.layout.params() + 120, &mut b)?;
        Ok(i32::from_le_bytes(b))
    }
}

fn notify_number(t: &procfs::timers::Timer) -> i32 {
    use procfs::timers::Notify;
    let base = match t.notify {
        Notify::Signal => libc::SIGEV_SIGNAL,
        Notify::None => libc::SIGEV_NONE,
        Notify::Thread => libc::SIGEV_THREAD,
    };
    if t.to_thread {
        libc::SIGEV_THREAD_ID
    } else {
        base
    }
}
