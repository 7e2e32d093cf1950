//! Where the processes of a restore are born: each by the one that is to bear it, or by a helper. In which order, family.rs says.
mod helpers;

pub use helpers::Helper;

use super::beside::{self, How};
use super::build::{namespaces_refused, pid_taken, range, set, set_up_init, Places};
use super::fresh::Ids;
use super::pids::Rights;
use super::ptys::{self, Pty};
use super::puppet::{end, reap, Puppet};
use super::waiting::Waiting;
use super::{build, cannot, clock, vdso, Fault, Step, Tree};
use crate::sharing::{Births, FILES};
use crate::{spread, Pids, RestoreOptions};
use ::image::{PageRun, PAGE_SIZE};
use helpers::no_spare;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use sys::channel::{Channel, Watch};
use sys::inject::Layout;
use sys::mem::RemoteMem;
use sys::nest;
use sys::procfs::cgroup::Membership;
use sys::program::{Arg::Imm, Program};
use sys::tracer::Tracer;

/// Kills and reaps a child unless it was handed on.
struct Child(i32);

impl Child {
    fn keep(self) -> i32 {
        let pid = self.0;
        std::mem::forget(self);
        pid
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        end(self.0);
        reap(self.0);
    }
}

/// Our end of a conversation, and the number of the other.
pub struct Sock {
    /// Our end.
    pub ours: UnixStream,
    /// The other's number.
    pub number: i32,
    /// Our copy of it, until the children have theirs: while we hold it, a child's death would not end the conversation.
    pub theirs: Option<OwnedFd>,
}

/// Who bears those whose parents are outside: the init of a private namespace, or a cradle of ours that ends when all are born, so that we adopt them.
struct Base {
    channel: Channel,
    here: i32,
    init: Option<Init>,
}

/// What only the init of a namespace has.
struct Init {
    /// Number of its socket, and of the pipe for the program's wait status.
    numbers: [i32; 2],
    status: OwnedFd,
    own_users: bool,
}

/// What is left to be done for the memory of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Later {
    /// All of it.
    All,
    /// Its content: its mappings are there.
    Content,
}

/// Where processes are born.
pub struct Nursery<'a, 't> {
    /// What is to be.
    pub tree: &'a Tree<'t>,
    o: &'a RestoreOptions<'a>,
    pids: Pids,
    places: Places,
    /// Blobs of those who have another's memory, by process; the last is a helper's.
    beside: BTreeMap<usize, Layout>,
    /// One for each process, one for the cradle, one for helpers.
    socks: Vec<Sock>,
    stdio: [Option<OwnedFd>; 3],
    /// Pseudo terminals.
    pub ptys: Vec<Pty>,
    own_vdso: &'static [vdso::Part],
    /// Control groups of this command; None: it cannot be seen.
    groups: Option<Vec<Membership>>,
    born: Vec<Option<Puppet>>,
    /// What they are born sharing.
    births: Births,
    /// Of each the one whose memory it has by its birth.
    heirs: Vec<Option<usize>>,
    /// Those that bear nobody: what they get when all are born, several at the same time.
    later: BTreeMap<usize, Later>,
    /// The groups that processes join when all are born: their leaders are in them already.
    joins: BTreeMap<usize, i32>,
    /// The socket of the next helper that stays.
    next: usize,
    base: Option<Base>,
    /// Our child, the process or its init: ends with us.
    root: Option<Child>,
    /// Segments of System V shared memory that were made, by their old numbers.
    segments: BTreeMap<i32, i32>,
    notes: &'a mut Vec<String>,
}

impl Drop for Nursery<'_, '_> {
    fn drop(&mut self) {
        if let Some(cradle) = self.base.take().filter(|b| b.init.is_none()) {
            end(cradle.here);
            reap(cradle.here);
        }
    }
}

impl<'a, 't> Nursery<'a, 't> {
    /// Without anybody in it.
    pub fn new(
        tree: &'a Tree<'t>,
        (o, pids): (&'a RestoreOptions<'a>, Pids),
        places: Places,
        (socks, stdio, ptys): (Vec<Sock>, [Option<OwnedFd>; 3], Vec<Pty>),
        notes: &'a mut Vec<String>,
    ) -> Step<Nursery<'a, 't>> {
        let n = tree.all.len();
        let together = (0..n).filter(|i| tree.all[*i].shares_memory).chain([n]);
        let blob = |(k, i): (u64, usize)| (i, places.layout.at(places.beside + k * places.layout.len));
        let beside = (0..).zip(together).map(blob).collect();
        Ok(Nursery {
            tree,
            o,
            pids,
            places,
            beside,
            socks,
            stdio,
            ptys,
            own_vdso: vdso::own()?,
            groups: sys::procfs::cgroup::read(std::process::id() as i32).ok(),
            born: std::iter::repeat_with(|| None).take(n).collect(),
            births: tree
                .births()
                .map_err(|_| cannot("process tree", "what they share was not looked at", "report this"))?,
            heirs: vec![None; n],
            later: BTreeMap::new(),
            joins: BTreeMap::new(),
            next: n + 1,
            base: None,
            root: None,
            segments: BTreeMap::new(),
            notes,
        })
    }

    fn kept(&self) -> Vec<i32> {
        let mut kept: Vec<i32> = self.socks.iter().map(|s| s.number).collect();
        kept.extend(self.stdio().into_iter().chain(ptys::numbers(&self.ptys)));
        kept
    }

    /// Numbers of the standard streams that the program is to get.
    pub fn stdio(&self) -> Vec<i32> {
        self.stdio.iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }

    fn ours(&self, sock: usize) -> Step<UnixStream> {
        self.socks[sock].ours.try_clone().map_err(|e| Fault::Io("socket".into(), e))
    }

    fn of(&mut self, i: usize) -> Step<&mut Puppet> {
        let unborn = || cannot("process tree", "a process was needed before it was there", "report this");
        self.born[i].as_mut().ok_or_else(unborn)
    }

    /// The PID to ask for.
    fn want(&self, pid: i32) -> i32 {
        if self.pids == Pids::Fresh {
            0
        } else {
            pid
        }
    }

    /// The program as our child, under its old PID or a new one.
    pub fn direct(&mut self) -> Step<()> {
        let ahead = clock::ahead(&self.tree.all[0].meta)?;
        let (time, refused) = clock::for_ours(ahead);
        self.notes.extend(ahead.map(|by| clock::note(by, self.pids, refused.as_ref())));
        self.roots()?;
        let ours = |e| Fault::Io("going back to our own time namespace".into(), e);
        time.map_or(Ok(()), |t| t.end().map_err(ours))
    }

    /// Our children: the program, and the cradle where it is needed.
    fn roots(&mut self) -> Step<()> {
        let want = self.want(self.tree.all[0].process.pid);
        let first = |sock: &Sock, n: &Self| nest::first_child(&n.places.layout, sock.number, range(&n.kept()), want, 0);
        let child = Child(first(&self.socks[0], self).map_err(|e| pid_taken(e, want))?);
        let here = child.0;
        self.root = Some(child);
        self.deliver(0, (here, here), None, self.places.layout)?;
        if self.tree.children(None).is_empty() {
            return Ok(());
        }
        let (sock, spare) = (self.tree.all.len(), self.spare());
        let cradle = spare.into_iter().find_map(|pid| {
            let r = nest::first_child(&self.places.layout, self.socks[sock].number, range(&self.kept()), pid, 0);
            (!is_taken(&r)).then_some(r)
        });
        let here = cradle.ok_or_else(no_spare)?.map_err(|e| pid_taken(e, 0))?;
        let channel = Channel::watched(self.ours(sock)?, here, Watch::process(here)?)?;
        self.base = Some(Base { channel, here, init: None });
        Ok(())
    }

    /// The program as child of an init in a PID namespace of its own.
    pub fn private(&mut self) -> Step<()> {
        let rights = Rights::own();
        let users = !rights.may_make_namespaces();
        let spaces = nest::NEW_PID | nest::NEW_MOUNTS | if users { nest::NEW_USER } else { 0 };
        let io = |what: &str| {
            let w = what.to_string();
            move |e: std::io::Error| Fault::Io(w, e)
        };
        let (init_ours, init_theirs) = UnixStream::pair().map_err(io("socketpair"))?;
        let (status, status_theirs) = std::io::pipe().map_err(io("pipe"))?;
        let base = self.socks[0].number;
        let init_sock = nest::dup_above(init_theirs.as_raw_fd(), base)?;
        let status_fd = nest::dup_above(status_theirs.as_raw_fd(), base)?;
        drop((init_theirs, status_theirs));
        let numbers = [init_sock.as_raw_fd(), status_fd.as_raw_fd()];
        let mut kept = self.kept();
        kept.extend(numbers);
        let init = nest::first_child(&self.places.layout, numbers[0], range(&kept), 0, spaces);
        let init = Child(init.map_err(namespaces_refused)?);
        let here = init.0;
        self.root = Some(init);
        drop((init_sock, status_fd));
        if users {
            build::map_users(here, &rights)?;
        }
        let mut channel = Channel::watched(init_ours, here, Watch::process(here)?)?;
        set_up_init(&mut channel)?;
        if let Some(by) = clock::ahead(&self.tree.all[0].meta)? {
            let made = clock::for_children_of(&mut channel, here, by)?;
            self.notes.push(clock::note(by, self.pids, made.as_ref().err()));
        }
        let init = Some(Init { numbers, status: status.into(), own_users: users });
        self.base = Some(Base { channel, here, init });
        self.bear_at(None, 0)
    }

    /// All are there: the init of their namespace, if they have one, and what it is to wait for.
    fn inits(&mut self) -> Step<Option<(Waiting, Init)>> {
        let (kept, layout, child, signals) =
            (self.kept(), self.places.layout, self.of(0)?.inner, set(&self.o.triggers));
        Ok(match self.base.take() {
            Some(Base { channel, init: Some(init), .. }) => {
                let reap = wire::Reap { child, status_fd: init.numbers[1], signals };
                Some((Waiting::new(channel, kept, layout, reap), init))
            }
            cradle => {
                self.base = cradle;
                None
            }
        })
    }

    /// A child of `parent` (None: of what bears those without parents) that serves on a socket, by its index; its PID as it knows it, and here.
    fn spawn(&mut self, parent: Option<usize>, pid: i32, sock: usize, how: How) -> Step<(i32, i32)> {
        self.spawned(parent, pid, sock, how)?.map_err(|e| unborn(pid, &e))
    }

    /// The same; or the kernel's answer.
    fn spawned(&mut self, parent: Option<usize>, pid: i32, sock: usize, how: How) -> Step<std::io::Result<(i32, i32)>> {
        let (number, private) = (self.socks[sock].number, self.pids == Pids::Private);
        let (channel, above) = match (parent, self.base.as_mut()) {
            (Some(p), _) => {
                let puppet = self.of(p)?;
                (&mut puppet.channel, puppet.pid)
            }
            (None, Some(base)) => (&mut base.channel, base.here),
            (None, None) => return Err(cannot("process tree", "there is nobody to bear it", "report this")),
        };
        match beside::spawn(channel, (above, pid), number, how)? {
            Ok(inner) if private => Ok(Ok((inner, number_here(above, inner)?))),
            r => Ok(r.map(|inner| (inner, inner))),
        }
    }

    /// Where the blob lies in who is born by `parent`.
    fn layout_of(&self, parent: Option<usize>) -> Layout {
        parent.and_then(|p| self.born[p].as_ref()).map_or(self.places.layout, |p| p.layout)
    }

    /// How process `i` is born by one whose blob lies at `above`, and where its own comes to lie.
    fn how(&self, i: usize, above: Layout) -> (How, Layout) {
        let beside = self.beside.get(&i).copied();
        let image = &self.tree.all[i];
        // who gets another parent sends it SIGCHLD (kernel/exit.c, reparent_leader)
        let signal = image.process.exit_signal.filter(|_| image.parent != 0).unwrap_or(libc::SIGCHLD);
        (How { signal, shares: self.births.with[i], beside }, beside.unwrap_or(above))
    }

    /// Bears a process, as a child of another, whose memory it has then; None: of what bears those without parents.
    pub fn bear_at(&mut self, parent: Option<usize>, i: usize) -> Step<()> {
        let want = self.want(self.tree.all[i].process.pid);
        let (how, layout) = self.how(i, self.layout_of(parent));
        let born = self.spawn(parent, want, i, how)?;
        self.deliver(i, born, parent, layout)
    }

    /// A process is there: as what the rest of a restore works on. `heir_of`: the process whose memory it has, as a copy or together with it; `layout`: of its blob.
    fn deliver(&mut self, i: usize, (inner, here): (i32, i32), heir_of: Option<usize>, layout: Layout) -> Step<()> {
        if i == 0 {
            sys::fault::target(here);
        }
        let image = &self.tree.all[i];
        let init = self.base.as_ref().and_then(|b| b.init.as_ref());
        let mut puppet = Puppet {
            // relatives hold its end of the conversation too
            channel: Channel::watched(self.ours(i)?, here, Watch::process(here)?)?,
            pid: here,
            inner,
            child: here,
            ours: false,
            heir: heir_of.is_some(),
            // our thread's, which bore it; who has another's memory has none of ours in it any more
            rseq: nest::own_rseq().filter(|_| heir_of.is_none()),
            pids: self.pids,
            own_users: init.is_some_and(|i| i.own_users),
            layout,
            area: self.places.area,
            park: self.places.layout.base + self.places.layout.len,
            shares: self.places.shares.places(),
            segments: BTreeMap::new(),
            fit: vdso::fits(self.own_vdso, &self.tree.all[self.tree.memory_of(i)], &image.threads)
                .map_err(Fault::Cannot)?,
            vdso_at: 0,
            sock: self.socks[i].number,
            socks: self.table(i),
            stdio: [0, 1, 2].map(|n| self.stdio[n].as_ref().map(AsRawFd::as_raw_fd)),
            ptys: ptys::by_number(&self.ptys),
            temp_base: self.kept().into_iter().max().unwrap_or(0) + 3,
            status: None,
            mem: RemoteMem::open(here)?,
            tracer: None,
            tids: Vec::new(),
            ids: Ids::default(),
            // it has all descriptors of who bore it
            unfilled: Default::default(),
            mapped: heir_of.and_then(|h| self.born[h].as_ref()).map(|h| h.mapped.clone()).unwrap_or_default(),
            woken: false,
        };
        if image.shares_memory {
            // or it might still be in the blob of a helper, which is taken away behind it
            puppet.run(&puppet.first_calls())?;
        }
        // what is said of the program goes for all that were where it was
        let note = (self.groups.as_ref())
            .and_then(|own| super::cgroup::put(here, image, own))
            .filter(|n| !self.notes.contains(n));
        self.notes.extend(super::named(i, image, Vec::from_iter(note)));
        self.born[i] = Some(puppet);
        self.heirs[i] = heir_of.map(|of| self.tree.memory_of(of));
        Ok(())
    }

    /// The sockets in the descriptor table of a process, ascending.
    fn table(&self, i: usize) -> Vec<i32> {
        let of = &self.tree.shared[FILES];
        let mut socks: Vec<i32> = (0..of.len()).filter(|s| of[*s] == of[i]).map(|s| self.socks[s].number).collect();
        socks.sort_unstable();
        socks
    }

    /// Descriptors of files without a name that those made who share a table: the first of them makes what is theirs.
    fn pool(&mut self) {
        for (i, first) in self.tree.shared[FILES].iter().enumerate().filter(|(i, first)| i != *first) {
            let its = self.born[i].as_mut().map(|p| std::mem::take(&mut p.mapped)).unwrap_or_default();
            if let Some(p) = &mut self.born[*first] {
                for (of, fd) in its {
                    p.mapped.entry(of).or_insert(fd);
                }
            }
        }
    }

    /// Gives a process its memory, before it bears any other: those have it then.
    pub fn memory(&mut self, i: usize) -> Step<()> {
        let (o, tree, from) = (self.o, self.tree, self.heirs[i]);
        if tree.all[i].shares_memory {
            return Ok(());
        }
        let childless = self.bears_nobody(i);
        if childless && super::place::stands_alone(&tree.all[i]) && self.is_light(i) {
            self.later.insert(i, Later::All);
            return Ok(());
        }
        let (image, kept) = (&tree.all[i], kept(tree, i, from));
        let mut notes = Vec::new();
        // it would ask those who do not let others trace them yet
        let asks = |k: usize| self.later.get(&k) != Some(&Later::All);
        super::unnamed::lend(&mut self.born, asks, i, image)?;
        let segments = std::mem::take(&mut self.segments);
        let puppet = self.of(i)?;
        puppet.segments = segments;
        super::place::place(puppet, image, &kept, o, &mut notes)?;
        self.segments = std::mem::take(&mut self.of(i)?.segments);
        self.notes.extend(super::named(i, image, notes));
        if childless {
            self.later.insert(i, Later::Content);
            return Ok(());
        }
        fill(self.of(i)?, tree, (i, from), &kept, o)
    }

    /// Whether little of the memory that it has by its birth is to go: until then that, and the tables of its pages, count as its own.
    fn is_light(&self, i: usize) -> bool {
        const PAGES: u64 = (16 << 20) / PAGE_SIZE as u64;
        let Some(from) = self.heirs[i] else { return true };
        let pages = |r: &PageRun| r.pages;
        let all = &self.tree.all[from].memory.pages;
        let kept = kept(self.tree, i, Some(from));
        let goes = |r: &&PageRun| {
            let before = kept.partition_point(|k| k.range.0 <= r.addr);
            before.checked_sub(1).is_none_or(|k| r.addr >= kept[k].range.1)
        };
        all.iter().map(pages).sum::<u64>() <= PAGES || all.iter().filter(goes).map(pages).sum::<u64>() <= PAGES
    }

    /// Whether it bears nobody, not even a helper.
    fn bears_nobody(&self, i: usize) -> bool {
        let (tree, pid) = (self.tree, self.tree.all[i].process.pid);
        i != 0
            && tree.children(Some(i)).is_empty()
            && tree.zombies.iter().all(|z| z.parent != pid)
            && tree.all.iter().all(|o| o.process.pid == pid || o.process.sid != pid)
    }

    /// A process is to join a group whose leader is in it: when all are born, for nobody waits for that.
    pub fn joins(&mut self, i: usize, group: i32) {
        self.joins.insert(i, group);
    }

    /// All are born: those who have shared something only so that others could be born to it leave it.
    pub fn part(&mut self) -> Step<()> {
        for (i, shares) in self.births.until.clone().into_iter().enumerate().filter(|(_, shares)| *shares != 0) {
            let mut p = Program::new();
            p.call(libc::SYS_unshare, &[Imm(shares as u64)]);
            match self.base.as_mut() {
                Some(base) if i == self.born.len() => drop(base.channel.run_all(&p)?),
                _ => self.run(i, &p)?,
            }
        }
        Ok(())
    }

    /// What the restore could not make as it was.
    pub fn note(&mut self, line: String) {
        self.notes.push(line);
    }

    /// Runs a program in a process.
    pub fn run(&mut self, i: usize, p: &Program) -> Step<()> {
        self.of(i)?.run(p).map(drop)
    }

    /// Each has the parent and the session that it is to have, or there is no restore.
    fn as_wanted(&mut self) -> Step<()> {
        let here: Vec<i32> = self.born.iter().map(|p| p.as_ref().map_or(0, |p| p.pid)).collect();
        for (i, image) in self.tree.all.iter().enumerate().skip(1) {
            let stat = sys::procfs::stat::read(here[i])?;
            let parent = self.tree.index(image.parent).map(|p| here[p]);
            let leads = image.process.sid == image.process.pid;
            let right = match parent {
                Some(p) => stat.ppid == p,
                None => !here.contains(&stat.ppid),
            };
            if !right || leads != (stat.session == here[i]) {
                let why = format!("it was born as a child of PID {} in session {}", stat.ppid, stat.session);
                return Err(cannot(super::family::name(image), why, "report this, with what `ctl inspect` says of it"));
            }
        }
        Ok(())
    }

    /// All are born: each lets go of what it has by its birth from us and the others. Gives them away, and the init of their namespace, if it has something to do yet.
    pub fn puppets(mut self, tracers: Vec<Tracer>) -> Step<(Vec<Puppet>, Option<Waiting>)> {
        let (mut waiting, init) = self.inits()?.unzip();
        if !super::users::numbers_threads(self.tree) {
            waiting.take().map_or(Ok(()), Waiting::retire)?;
        }
        let mut others: Vec<i32> = self.socks.iter().map(|s| s.number).collect();
        self.socks.iter_mut().for_each(|s| s.theirs = None);
        let mut ids = Ids::default();
        if self.pids == Pids::Fresh {
            ids.set(self.tree.all[0].process.pid, self.of(0)?.inner);
        }
        others.extend(init.iter().flat_map(|i| i.numbers));
        others.sort_unstable();
        self.as_wanted()?;
        self.pool();
        let (o, tree, heirs, later, joins) = (self.o, self.tree, &self.heirs, &self.later, &self.joins);
        let born: Vec<Puppet> = std::mem::take(&mut self.born).into_iter().flatten().collect();
        let ready = spread::over(born.into_iter().zip(tracers), |i, (mut puppet, tracer)| -> Step<_> {
            let mut notes = Vec::new();
            if let Some(left) = later.get(&i) {
                let kept = kept(tree, i, heirs[i]);
                if *left == Later::All {
                    super::place::place(&mut puppet, &tree.all[i], &kept, o, &mut notes)?;
                }
                fill(&mut puppet, tree, (i, heirs[i]), &kept, o)?;
            }
            let mut last = Program::new();
            if let Some(group) = joins.get(&i) {
                last.call(libc::SYS_setpgid, &[Imm(0), (*group).into()]);
            }
            if !tree.all[i].shares_files {
                closing(&mut last, others.iter().copied().filter(|s| !puppet.socks.contains(s)));
            }
            puppet.run(&last)?;
            puppet.tracer = Some(tracer);
            puppet.ids = ids.clone();
            Ok((puppet, super::named(i, &tree.all[i], notes)))
        });
        let mut puppets = Vec::with_capacity(ready.len());
        for of_one in ready.into_iter().flatten() {
            let (puppet, notes) = of_one?;
            puppets.push(puppet);
            self.notes.extend(notes);
        }
        // from here on the first of them is the guard
        if let (Some(first), Some(root)) = (puppets.first_mut(), self.root.take()) {
            (first.child, first.ours) = (root.keep(), true);
            first.status = init.map(|i| i.status);
        }
        Ok((puppets, waiting))
    }
}

/// What process `i` keeps of the memory of `from`, with which it was born.
fn kept(tree: &Tree<'_>, i: usize, from: Option<usize>) -> Vec<super::place::Kept> {
    from.map_or_else(Vec::new, |from| super::place::inherited(&tree.all[i], &tree.all[from]))
}

/// Gives the memory of process `i` its content.
fn fill(
    puppet: &mut Puppet,
    tree: &Tree<'_>,
    (i, from): (usize, Option<usize>),
    kept: &[super::place::Kept],
    o: &RestoreOptions<'_>,
) -> Step<()> {
    super::fill::fill(puppet, &tree.all[i], from.map(|f| (&tree.all[f], kept)), o)
}

/// Closes these descriptors, ascending: those that follow each other in one call.
fn closing(p: &mut Program, fds: impl Iterator<Item = i32>) {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for fd in fds {
        match ranges.last_mut().filter(|r| r.1 + 1 == fd) {
            Some(range) => range.1 = fd,
            None => ranges.push((fd, fd)),
        }
    }
    for (first, last) in ranges {
        p.may(libc::SYS_close_range, &[first.into(), last.into(), Imm(0)]);
    }
}

fn is_taken(r: &sys::Result<i32>) -> bool {
    r.as_ref().is_err_and(|e| e.errno() == Some(libc::EEXIST))
}

fn unborn(pid: i32, e: &std::io::Error) -> Fault {
    let remedy = "see /proc/sys/kernel/pid_max, the limit of processes and pids.max of its control group; use --pids private if the PID is in use";
    cannot(format!("PID {pid}"), format!("it cannot be made: {e}"), remedy)
}

/// PID, as seen from here, of the child that its parent knows by another number.
fn number_here(parent: i32, inner: i32) -> Step<i32> {
    let is_it = |pid: &i32| sys::procfs::status::read(*pid).is_ok_and(|s| s.ns_tgid.last() == Some(&inner));
    let found = sys::procfs::children(parent)?.into_iter().find(is_it);
    found.ok_or_else(|| Fault::Sys(sys::Error::Died { doing: "its making".into(), pid: parent }))
}
