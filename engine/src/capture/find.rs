//! Phase find: who the targets are, and every reason why it could not be captured or restored, at once.
use super::files::{self, Ends, FileView, Look, Outside};
use super::shared::Others;
use super::threads::{Heard, Shares, Whole};
use super::{door, explain, handles, Fault, Step};
use crate::{objects, Door, Error, Externals, Kind, Reason, Result};
use sys::procfs::smaps::Smap;
use sys::procfs::{self, ns::NsIds, ns::NsKind, stat::Stat, status::Status};
use sys::seccomp::{Chains, Judge};

/// What is known of a target before it is stopped.
#[derive(Debug)]
pub struct Survey {
    /// PID here.
    pub pid: i32,
    /// For messages: "checkpoint web (PID 12)".
    pub attempted: String,
    /// /proc/PID/status.
    pub status: Status,
    /// /proc/PID/stat.
    pub stat: Stat,
    /// Where its program lies.
    program: Program,
    /// Its first thread has ended while others run, with this wait status: known in the freeze.
    pub(super) ended: Option<i32>,
    /// Open files.
    pub files: Vec<FileView>,
    /// Mappings with their flags.
    pub smaps: Vec<Smap>,
    /// How much of them was locked just before they were looked at, KiB.
    pub(super) locked: u64,
    /// The random bytes that its exec was given, and where.
    pub random: Option<(u64, [u8; 16])>,
    /// Its namespaces.
    pub spaces: Option<procfs::ns::NsIds>,
    /// The user namespace that it is in, if that is not the one around the program, but one in it.
    pub(super) users: Option<u64>,
    /// How far its clocks are ahead of ours.
    pub ahead: procfs::timens::Offsets,
    /// Threads, and what can be asked of them from outside.
    pub threads: std::collections::BTreeMap<i32, super::threads::Facts>,
    /// What makes room for a descriptor of each of them.
    raised: Option<sys::rlimit::Raised>,
    /// By which it is to be entered.
    pub(super) door: Door,
    /// Of its seccomp filters.
    pub(super) judge: Judge,
    /// A thread in strict seccomp mode may be brought into the danger that it is in if our tracer is killed.
    pub(super) risk: bool,
    /// In the freeze: seccomp is suspended in all threads.
    pub(super) suspended: bool,
    /// The filters of each thread, where there are any.
    pub(super) chains: Chains,
    /// What the caller decided about external ends.
    pub external: Externals,
    /// PID namespaces of our own making around it.
    pub private: bool,
    /// Reasons to refuse.
    pub reasons: Vec<Reason>,
    /// Reasons that its open files are, as they were judged last: certain ones, and ones like [`Survey::unsure`].
    files_refused: [Vec<Reason>; 2],
    /// Reasons that only stand if they still do in the freeze: a peer of a unix socket that is no open file of the process may
    /// be just about to be closed by it.
    pub unsure: Vec<Reason>,
    /// What is not kept, each with what is lost.
    pub reported: Vec<String>,
}

/// What tells one program from another: where its code and its stack begin.
#[derive(Debug, PartialEq)]
struct Program(u64, u64, u64);

impl Program {
    fn of(s: &Stat) -> Program {
        Program(s.start_code, s.end_code, s.start_stack)
    }
}

impl Survey {
    /// "process 12 (sleep)".
    pub fn describe(&self) -> String {
        format!("process {} ({})", self.pid, self.stat.comm.escape_ascii())
    }

    /// How it is looked at before the freeze.
    fn look(&self) -> Result<Box<dyn Look>> {
        door::look_before(self.pid, self.door).map_err(|f| explain(f, &self.attempted, "find", false))
    }

    /// The block of its libdormouse, as it is now.
    pub(super) fn block(&self) -> Option<sys::api::Block> {
        sys::api::Block::read(&sys::mem::RemoteMem::open(self.pid).ok()?, self.inner_pid())
    }

    /// PID in the innermost namespace.
    pub fn inner_pid(&self) -> i32 {
        self.status.ns_tgid.last().copied().unwrap_or(self.pid)
    }
}

/// Looks at a process without touching it. `door`: by which it is to be entered; `shut`: what stands against that.
/// Its open files are judged by [`together`].
pub fn survey(
    pid: i32,
    attempted: String,
    (external, risk): (&Externals, bool),
    door: Door,
    shut: Vec<Reason>,
) -> Result<Survey> {
    let refused = |o: &str, w: &str, r: &str| Error::new(Kind::Refused, attempted.clone(), o, w, r);
    let me = std::process::id() as i32;
    if pid <= 0 || !procfs::pid_exists(pid) {
        return Err(Error::new(
            Kind::NoSuch,
            attempted,
            format!("PID {pid}"),
            "there is no such process",
            "look for it with ps or `ctl list`",
        ));
    }
    if pid == 1 {
        return Err(refused(
            "PID 1",
            "it is this machine's (or container's) init",
            "checkpoint the programs that it started",
        ));
    }
    if pid == me {
        return Err(refused("this very process", "a recorder cannot freeze itself", "name another process"));
    }
    let gone = |e| explain(Fault::Proc(e), &attempted, "find", false);
    procfs::first::has_ended(pid);
    let status = procfs::status::read(pid).map_err(gone)?;
    let stat = procfs::stat::read(pid).map_err(gone)?;
    if stat.is_kernel_thread() {
        return Err(refused(
            &format!("PID {pid} ({})", stat.comm.escape_ascii()),
            "it is a kernel thread",
            "only programs can be checkpointed",
        ));
    }
    if status.tgid != pid {
        let w = format!("it is a thread of process {}", status.tgid);
        return Err(refused(&format!("PID {pid}"), &w, &format!("checkpoint PID {}", status.tgid)));
    }
    if stat.state == procfs::State::Zombie && !procfs::first::has_ended(pid) {
        let w = "it has ended and waits for its parent to notice";
        return Err(Error::new(Kind::TargetDied, attempted, format!("PID {pid}"), w, "nothing is left to checkpoint"));
    }
    let program = Program::of(&procfs::stat::read(procfs::first::by(pid)).map_err(gone)?);
    let mut s = Survey {
        pid,
        attempted,
        locked: super::locked::amount(&status),
        status,
        stat,
        program,
        ended: None,
        files: Vec::new(),
        smaps: Vec::new(),
        random: None,
        spaces: None,
        users: None,
        ahead: Default::default(),
        threads: Default::default(),
        raised: None,
        door,
        judge: Judge::default(),
        risk,
        suspended: false,
        chains: Chains::default(),
        external: external.clone(),
        private: false,
        reasons: Vec::new(),
        files_refused: Default::default(),
        unsure: Vec::new(),
        reported: Vec::new(),
    };
    s.rights();
    s.reasons.extend(shut);
    // without the right to look there is nothing more to say
    refuse(std::slice::from_ref(&s), false)?;
    let mut look = s.look()?;
    let look = look.as_mut();
    let r: std::result::Result<(), Fault> = std::thread::scope(|scope| {
        // the kernel walks all page tables for that: meanwhile the rest
        let smaps = scope.spawn(|| procfs::smaps::read(pid));
        s.random = random(pid);
        s.files = files::list(pid, look)?;
        s.namespaces();
        let (threads, odd, raised) = super::threads::facts(&s.status, s.private, look.is_blind());
        s.threads = threads;
        s.raised = raised;
        s.reasons.extend(odd);
        s.process();
        s.seccomp();
        s.cgroups();
        s.smaps = smaps.join().map_err(super::record::panicked)??;
        Ok(())
    });
    r.map_err(|f| explain(f, &s.attempted, "find", false))?;
    s.mappings();
    Ok(s)
}

/// Refuses if there is any certain reason to, naming the others too; or, with `unsure_too`, if there is any.
pub(super) fn refuse(all: &[Survey], unsure_too: bool) -> Result<()> {
    if !unsure_too && !all.iter().any(Survey::is_refused) {
        return Ok(());
    }
    // what several have in common is one reason
    let mut said: Vec<(&Reason, Vec<usize>)> = Vec::new();
    for (i, s) in all.iter().enumerate() {
        for r in s.reasons.iter().chain(&s.unsure).chain(s.files_refused.iter().flatten()) {
            match said.iter_mut().find(|(other, _)| *other == r) {
                Some((_, whose)) if whose.last() == Some(&i) => {}
                Some((_, whose)) => whose.push(i),
                None => said.push((r, vec![i])),
            }
        }
    }
    let reasons: Vec<Reason> = said.into_iter().map(|(r, whose)| of(r, all, &whose)).collect();
    match all.first().filter(|_| !reasons.is_empty()) {
        Some(s) => Err(Error { kind: Kind::Refused, attempted: s.attempted.clone(), reasons }),
        None => Ok(()),
    }
}

/// A reason with whose it is: of the first one, which the caller has named, that goes without saying.
fn of(r: &Reason, all: &[Survey], whose: &[usize]) -> Reason {
    let first = &all[whose[0]];
    let more = match whose.len() {
        1 => String::new(),
        2 => format!(", and in {}", all[whose[1]].describe()),
        n => format!(", and in {} other processes", n - 1),
    };
    let names_it = whose[0] == 0 || r.object.contains(&first.pid.to_string());
    let object = if names_it { r.object.clone() } else { format!("{}: {}", first.describe(), r.object) };
    Reason { object: object + &more, ..r.clone() }
}

/// Judges the open files of processes that are captured together: what one holds the other end of, another needs not miss.
pub(super) fn together(all: &mut [Survey], others: &mut Others) -> Result<()> {
    one_time(all);
    super::users::report_others(all);
    let members: Vec<i32> = all.iter().map(|s| s.pid).collect();
    // whom those who lose their parents get
    let above = all.first().map(|s| s.stat.ppid);
    let ends = Ends::of(all.iter().flat_map(|s| &s.files));
    let mut looks = all.iter().map(Survey::look).collect::<Result<Vec<_>>>()?;
    for (s, look) in all.iter_mut().zip(&mut looks) {
        files::mark_ends(&mut |v| look.copy(v.first_fd()).ok(), s.files.iter_mut(), &ends);
        handles::mark(s.files.iter_mut(), &members, above);
    }
    others.mark(&members, &mut all.iter_mut().flat_map(|s| &mut s.files).collect::<Vec<_>>());
    for (s, look) in all.iter_mut().zip(&mut looks) {
        let block = Vec::from_iter(s.block());
        files::decide(&mut s.files, &s.external, &block);
        s.open_files(look.as_mut(), (&members, above), &ends).map_err(|f| explain(f, &s.attempted, "find", false))?;
    }
    Ok(())
}

/// Their clocks are the same.
fn one_time(all: &mut [Survey]) {
    let time = |s: &Survey| s.spaces.as_ref().and_then(|ids| ids.get(NsKind::Time));
    let first = all.first().and_then(time);
    for s in all.iter_mut().filter(|s| time(s) != first) {
        let w = "it is in another one than the program, which is not kept";
        let reason = Reason::new("time namespace", w, "let all of its processes be in the same one");
        // they may have been looked at before
        if !s.reasons.contains(&reason) {
            s.reasons.push(reason);
        }
    }
}

impl Survey {
    /// Whether there is a certain reason to refuse it.
    pub(super) fn is_refused(&self) -> bool {
        !self.reasons.is_empty() || !self.files_refused[0].is_empty()
    }

    fn reason(&mut self, o: impl Into<String>, w: impl Into<String>, r: impl Into<String>) {
        self.reasons.push(Reason::new(o, w, r));
    }

    fn rights(&mut self) {
        let Ok(me) = procfs::status::read(std::process::id() as i32) else { return };
        let pid = self.pid;
        let cap_ptrace = me.cap_effective & 1 << 19 != 0;
        let them = self.status.uid;
        let mine = me.uid.effective;
        if !cap_ptrace && [them.real, them.effective, them.saved].iter().any(|u| *u != mine) {
            let w = format!("it belongs to user {} (this is user {mine})", them.real);
            return self.reason(format!("PID {pid}"), w, format!("run as user {} or as root", them.real));
        }
        if self.status.tracer_pid != 0 {
            let t = self.status.tracer_pid;
            let name = procfs::comm(t).map(|c| c.escape_ascii().to_string()).unwrap_or_default();
            return self.reason(
                format!("PID {pid}"),
                format!("it is traced by PID {t} ({name})"),
                "end the debugger or strace first",
            );
        }
        if let Err(e) = sys::mem::RemoteMem::open(pid) {
            self.reason(
                format!("PID {pid}"),
                format!("the kernel does not let this user look into it ({e})"),
                "it is not dumpable, or Yama forbids it: run as root, start it by launcher (its agent lets its own session in), or see `ctl doctor`",
            );
        }
    }

    fn namespaces(&mut self) {
        let (Ok(mine), Ok(theirs)) = (procfs::ns::read(std::process::id() as i32), procfs::ns::read(self.pid)) else {
            return;
        };
        let differ: Vec<NsKind> = mine.differences(&theirs);
        self.time(&mine, &theirs);
        // a private restore of ours: its own user, PID and mount namespaces, whose init says so
        self.private = self.status.ns_tgid.len() == 2 && super::users::our_init(&self.status).is_some();
        self.user_namespace(&mine, &theirs);
        self.spaces = Some(theirs);
        for k in differ {
            let ours = self.private && matches!(k, NsKind::Pid | NsKind::PidForChildren | NsKind::Mnt);
            if !ours && !matches!(k, NsKind::User | NsKind::Cgroup | NsKind::Time | NsKind::TimeForChildren) {
                self.reason(
                    format!("{} namespace", k.name()),
                    "the process is in another one than this command",
                    "run ctl inside the same container or namespace",
                );
            }
        }
    }

    /// A time namespace is what its clocks say, and they are in the image: whoever has made it. But all must be in it.
    fn time(&mut self, mine: &NsIds, theirs: &NsIds) {
        let other = |kind| theirs.get(kind) != mine.get(kind);
        if theirs.get(NsKind::Time) != theirs.get(NsKind::TimeForChildren) {
            let w = "it has made another one for its children, which is not kept";
            return self.reason(
                "time namespace",
                w,
                "start it in a time namespace (unshare --time), instead of making one in it",
            );
        }
        if !other(NsKind::Time) {
            return;
        }
        match (procfs::timens::read(self.pid), procfs::timens::read(std::process::id() as i32)) {
            (Ok(theirs), Ok(mine)) => self.ahead = theirs - mine,
            (Err(e), _) | (_, Err(e)) => {
                let w = format!("it has clocks of its own, and how far they are from ours cannot be read ({e})");
                self.reason("time namespace", w, "run ctl inside the same time namespace");
            }
        }
    }

    fn process(&mut self) {
        let pid = self.pid;
        if elf_class(pid) == Some(1) {
            self.reason(
                format!("PID {pid}"),
                "it is a 32-bit program, and only 64-bit ones are kept",
                "run its 64-bit build",
            );
        }
        if self.status.x86_features.iter().any(|f| f == b"shstk") {
            self.reason(
                format!("PID {pid}"),
                "it uses a shadow stack (CET), which is not kept yet",
                "start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK",
            );
        }
        self.reasons.extend(places(pid));
        if let Ok(l) = procfs::exe(pid) {
            if l.deleted {
                self.reported.push(format!(
                    "/proc/self/exe: {} was deleted or replaced; after a restore the link leads elsewhere",
                    l.path.display()
                ));
            }
        }
        let limits = procfs::limits::read(pid).ok();
        let nofile = limits.map_or(u64::MAX, |l| l[7].soft);
        if self.files.iter().map(|f| f.fds.len() as u64).sum::<u64>() >= nofile {
            self.reason(
                "descriptor table",
                format!("all {nofile} descriptors are in use and one is needed for a moment"),
                format!("raise the limit: prlimit --pid {pid} --nofile={}", nofile + 8),
            );
        }
    }

    /// In the freeze: the program is the one that was looked at, still where a restore could put it, and its leader can be entered.
    pub(super) fn still(&mut self, frozen: &[i32]) -> Step<()> {
        let first = procfs::stat::read(self.pid)?;
        let pid = format!("PID {}", self.pid);
        self.first(&first, frozen)?;
        let now = match procfs::first::by(self.pid) {
            by if by != self.pid => procfs::stat::read(by)?,
            _ => first,
        };
        let mut reasons = Vec::new();
        let random = |(at, bytes)| random_at(self.pid, at) == Some(bytes);
        if Program::of(&now) != self.program || !self.random.is_none_or(random) {
            let w = "it has executed another program while it was looked at";
            let e = Error::new(Kind::Refused, &self.attempted, pid, w, "it runs on as before; try again");
            return Err(Fault::Another(e));
        }
        reasons.extend(places(self.pid));
        let leader = procfs::status::read(self.pid)?;
        if leader.seccomp != self.status.seccomp {
            let w = "it has come under seccomp while it was looked at";
            reasons.push(Reason::new(&pid, w, "it runs on as before; try again"));
        }
        self.status = leader;
        let (then, now) = (&self.spaces, procfs::ns::read(self.pid)?);
        reasons.extend(then.iter().flat_map(|then| then.differences(&now)).map(|k| {
            let w = "it has entered another one while it was looked at";
            Reason::new(format!("{} namespace", k.name()), w, "it runs on as before; try again")
        }));
        self.refuse_for(reasons)
    }

    /// The same of its threads, each of which was looked at while it ran, or is younger than that.
    /// `shares`: whether a thread shares something with the leader.
    pub(super) fn still_all(&mut self, tids: &[i32], heard: Heard, shares: &Shares<'_>) -> Step<()> {
        let whole = Whole { leader: &self.status, private: self.private, shares };
        let mut reasons = super::threads::again(&whole, tids, heard, &mut self.threads)?;
        reasons.extend(self.come_under_seccomp(tids));
        self.refuse_for(reasons)
    }

    pub(super) fn refuse_for(&self, reasons: Vec<Reason>) -> Step<()> {
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Error { kind: Kind::Refused, attempted: self.attempted.clone(), reasons }.into())
    }

    /// Refusals of open files. The process runs: what was opened, closed and its number given to another while it was looked at
    /// is seen as a mixture. So a refusal counts only if a second look finds the same open file there; the freeze decides.
    fn open_files(&mut self, look: &mut dyn Look, members: (&[i32], Option<i32>), ends: &Ends) -> Step<()> {
        self.files_refused = Default::default();
        if look.is_blind() {
            return Ok(()); // the freeze will tell
        }
        let mut first = refused(&self.files, self.pid);
        if !first.is_empty() {
            let mut again = files::list(self.pid, look)?;
            let now = ends.and(&Ends::of(again.iter()));
            files::mark_ends(&mut |v| look.copy(v.first_fd()).ok(), again.iter_mut(), &now);
            handles::mark(again.iter_mut(), members.0, members.1);
            Others::default().mark(members.0, &mut again.iter_mut().collect::<Vec<_>>());
            files::decide(&mut again, &self.external, &Vec::from_iter(self.block()));
            let again = refused(&again, self.pid);
            first.retain(|(key, _)| again.iter().any(|(k, _)| k == key));
        }
        // nor what a child holds that is gone, or frozen too, when the freeze comes
        // nor what waits in a terminal
        let unsure = |f: &&FileView| has_unix_peer(f) || f.held.is_some() || f.pty.is_some();
        let pairs: Vec<i32> = self.files.iter().filter(unsure).map(FileView::first_fd).collect();
        for ((fd, ..), reasons) in first {
            self.files_refused[usize::from(pairs.contains(&fd))].extend(reasons);
        }
        // nor to what a child is attached that has just begun
        let vmas = self.smaps.iter().map(|m| &m.vma);
        self.files_refused[1].extend(super::sysv::shared_with_others(vmas, self.pid, members.0));
        Ok(())
    }
}

/// What tells one exec from the next, even of the same program at the same addresses: the kernel gives each 16 random bytes.
fn random(pid: i32) -> Option<(u64, [u8; 16])> {
    let at = procfs::auxv::read(pid).ok()?.get(libc::AT_RANDOM)?;
    Some((at, random_at(pid, at)?))
}

/// The bytes there.
fn random_at(pid: i32, at: u64) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    sys::mem::RemoteMem::open(pid).ok()?.read(at, &mut bytes).ok()?;
    Some(bytes)
}

/// The root directory, if it cannot be entered again.
fn places(pid: i32) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Some(l) = procfs::root(pid).ok().filter(|l| l.path != std::path::Path::new("/")) {
        let o = format!("root directory {}", l.path.display());
        reasons.push(Reason::new(o, "a changed root (chroot) is not kept yet", "run it without chroot"));
    }
    reasons
}

fn has_unix_peer(f: &FileView) -> bool {
    f.socket.as_ref().and_then(|s| s.unix.as_ref()).is_some_and(|u| u.peer.is_some())
}

/// What tells an open file from the next one under its number: descriptor, link, inode.
type Key = (i32, Vec<u8>, u64);

/// The open files with reasons to refuse them.
fn refused(all: &[FileView], pid: i32) -> Vec<(Key, Vec<Reason>)> {
    let key = |f: &FileView| (f.first_fd(), f.link.clone(), f.stat.as_ref().map_or(0, |s| s.ino));
    all.iter().map(|f| (key(f), objects::inspect(f, all, pid))).filter(|(_, r)| !r.is_empty()).collect()
}

/// What a program that this process starts would inherit beyond 0, 1, 2, and because of which it would be refused: the descriptors of each,
/// and the reason.
pub fn inherited() -> Result<Vec<(Vec<i32>, Reason)>> {
    let me = std::process::id() as i32;
    let own = |f| explain(f, "look at own descriptors", "find", false);
    let mut look = Outside::new(me).map_err(|e| own(e.into()))?;
    let mut all = files::list(me, &mut look).map_err(own)?;
    all.iter_mut().for_each(|f| f.fds.retain(|(_, cloexec)| !cloexec));
    all.retain(|f| !f.fds.is_empty());
    let ends = Ends::of(all.iter());
    files::mark_ends(&mut |v| look.copy(v.first_fd()).ok(), all.iter_mut(), &ends);
    Others::default().mark(&[me], &mut all.iter_mut().collect::<Vec<_>>());
    let numbers = |f: &FileView| f.fds.iter().map(|(fd, _)| *fd).collect::<Vec<_>>();
    let beyond = all.iter().filter(|f| f.stdio() < 0);
    Ok(beyond.filter_map(|f| Some((numbers(f), objects::inspect(f, &all, me).into_iter().next()?))).collect())
}

/// EI_CLASS of its executable: 1 for 32-bit, 2 for 64-bit (elf(5)).
fn elf_class(pid: i32) -> Option<u8> {
    let mut head = [0; 5];
    let mut f = std::fs::File::open(procfs::path(pid, "exe")).ok()?;
    std::io::Read::read_exact(&mut f, &mut head).ok()?;
    head.starts_with(b"\x7fELF").then_some(head[4])
}
