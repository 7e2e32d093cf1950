//! A checkpoint from its first phase to its last, of a process and all that are captured with it. All of them stand still before anything is read that another
//! of them could change, and none goes on before all are forked.
use super::door::{Doors, Inside};
use super::find::Survey;
use super::gather::{is_gone, Entry};
use super::observe::{lock, Common, Observer, Seen};
use super::record::{self, Recorder};
use super::shared::Others;
use super::shares::Connections;
use super::snapshot::Child;
use super::tree::{self, Found, Kinship};
use super::{door, explain, opened, shares, sink, strict, Fault, Phase, Step};
use crate::sharing::{FILES, VM};
use crate::{objects, spread, After, CaptureOptions, Captured, Error, Kind, Progress, Result};
use image::store::{NewCheckpoint, Store};
use image::v1::files::Files;
use image::SessionName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::channel::Listener;
use sys::seccomp::Judge;
use sys::tracer::{self, Snapshot};

/// A checkpoint in the making.
pub(super) struct Run<'a> {
    phase: Phase,
    pub(super) attempted: String,
    /// The program.
    pub(super) root: i32,
    /// The process that is dealt with: a failure is about that.
    pub(super) at: i32,
    /// It was called in before it was looked at.
    pub(super) called: bool,
    pub(super) o: &'a CaptureOptions<'a>,
    pub(super) doors: BTreeMap<i32, Doors>,
    /// Those who have the descriptor table or memory of another, of these.
    pub(super) together: (Vec<i32>, BTreeSet<i32>),
}

/// A snapshot child: what its filters let through, and the child, if it has been met.
type Born = (Judge, Option<Child>);

/// A process that is recorded: what is known of it, and where its memory is read.
struct Recorded<'a> {
    obs: Observer<'a>,
    seen: Seen,
}

impl<'a> Run<'a> {
    pub fn new(o: &'a CaptureOptions<'a>, name: &SessionName, pid: i32) -> Run<'a> {
        let attempted = format!("checkpoint {name} (PID {pid})");
        let mut run = Run {
            phase: Phase::Find,
            attempted,
            root: pid,
            at: pid,
            called: false,
            o,
            doors: BTreeMap::new(),
            together: Default::default(),
        };
        // the first thing of all, while this process is small: a tracer would copy, in the freeze, each page that it inherits and writes to
        for found in run.living(&[]).unwrap_or_default() {
            run.knock(found.pid);
        }
        run
    }

    /// Makes it, by other doors if some turn out to be shut.
    pub fn make(mut self, store: &Store, name: &SessionName, began: Instant) -> Result<Captured> {
        let mut made = loop {
            match (self.all(store, name, began), self.doors.get_mut(&self.at)) {
                (Err(Fault::Shut(shut)), Some(doors)) if doors.is_another() => doors.shut_behind(shut),
                (r, _) => break r.map_err(|e| self.explain(e)),
            }
        };
        for (pid, doors) in self.doors {
            made = doors.tell(made, pid == self.root);
        }
        made
    }

    /// All that belong to it now. `known`: who is known to, and need not be found otherwise.
    pub(super) fn living(&self, known: &[Survey]) -> Step<Vec<Found>> {
        let mut roots = vec![self.root];
        roots.extend(known.iter().map(|s| s.pid));
        if let Some(others) = self.o.others {
            roots.extend(others()?);
        }
        let mut all = tree::living(&roots)?;
        if all.first().is_none_or(|f| f.pid != self.root) {
            // what is wrong with it will be said
            all.retain(|f| f.pid != self.root);
            all.insert(0, Found { pid: self.root, ..Found::default() });
        }
        Ok(all)
    }

    pub(super) fn knock(&mut self, pid: i32) -> &mut Doors {
        let (o, first) = (self.o, pid == self.root);
        self.doors.entry(pid).or_insert_with(|| Doors::new(o, pid, first))
    }

    fn enter(&mut self, p: Phase) -> Step<()> {
        self.phase = p;
        if let Some(f) = self.o.progress {
            f(Progress { phase: p.name(), done: 0, total: 0 });
        }
        sys::fault::point(p.name()).map_err(|e| {
            Fault::Sys(sys::Error::Call { doing: format!("phase {}", p.name()), pid: self.root, source: e })
        })
    }

    fn all(&mut self, store: &Store, name: &SessionName, began: Instant) -> Step<Captured> {
        self.enter(Phase::Find)?;
        let mut others = Others::default();
        let (mut surveys, mut entries) = self.gather(&mut others)?;
        strict::check(self.o, &surveys[0].attempted, || strict::surveys(&surveys))?;
        let incoming = store.begin(name)?;
        // nothing is opened in the freeze before its fanotify groups have been looked at
        let pages = sink(&incoming)?;

        self.enter(Phase::Freeze)?;
        let (inside, found) = self.freeze(&mut surveys, &mut entries)?;
        self.at = self.root;
        let inside = parents_first(&mut surveys, &mut entries, inside, &found);
        let mut kinship = tree::kinship(&surveys, &found)?;

        self.enter(Phase::Observe)?;
        let several = surveys.len() > 1 || !kinship.zombies.is_empty();
        let members = surveys.iter().map(|s| s.pid).collect();
        let common = Common::new(pages, members, several);
        let mut ours = Connections::default();
        let seen = (&mut kinship, &mut ours);
        let (mut all, files) = match self.observe(&surveys, inside, &entries, &common, &mut others, seen) {
            Err(f) => {
                drop(ours);
                return Err(self.shut_behind(f, &mut entries)?);
            }
            seen => seen?,
        };
        for r in &mut all {
            self.at = r.obs.survey.pid;
            r.obs.ended_children(&mut kinship.zombies)?;
        }
        self.at = self.root;
        strict::check(self.o, &surveys[0].attempted, || strict::observers(all.iter().map(|r| &r.obs)))?;
        let adopted = adopted(&all, &kinship);

        if self.o.after != After::Run {
            for ((r, e), adopted) in all.iter_mut().zip(&entries).zip(&adopted) {
                self.at = r.obs.survey.pid;
                r.obs.unseen_by_a_child_of_its_own(&e.listener, r.seen.process.subreaper, *adopted)?;
            }
            return self.while_frozen(all, entries, (files, kinship, ours), incoming, began);
        }
        self.enter(Phase::Fork)?;
        let Some(born) = self.fork(&mut all, &entries, &adopted)? else {
            // no child is to be had: copy within the freeze, and say so
            for r in &mut all {
                self.at = r.obs.survey.pid;
                r.obs.hidden(None)?;
                r.obs.unseen_unknown()?;
            }
            return self.while_frozen(all, entries, (files, kinship, ours), incoming, began);
        };
        self.enter(Phase::Thaw)?;
        drop(ours);
        for i in &kinship.together {
            self.at = all[*i].obs.survey.pid;
            match entries[*i].way.leave() {
                Err(f) if self.ended_meanwhile(&f) => {}
                left => left?,
            }
        }
        entries.iter_mut().for_each(|e| e.way.let_go());
        let mut pauses = Vec::with_capacity(all.len());
        for (r, e) in all.iter().zip(&mut entries) {
            self.at = r.obs.survey.pid;
            pauses.push(match e.way.release(tracer::After::Run) {
                Ok((pause, _)) => pause,
                // what runs again may end another
                Err(f) if self.ended_meanwhile(&f) => Duration::ZERO,
                Err(f) => return Err(f),
            });
        }
        let mut children = Vec::with_capacity(all.len());
        for ((r, e), (judge, child)) in all.iter_mut().zip(&entries).zip(born) {
            self.at = r.obs.survey.pid;
            children.push(match child {
                Some(child) => child,
                None => r.obs.meet(&e.listener, judge)?,
            });
        }
        let snapshots = self.collect(&all, &mut entries, children.iter().map(|c| c.pid))?;
        drop(entries);
        self.doors.values_mut().for_each(Doors::settle);

        self.enter(Phase::Record)?;
        let mut records = Vec::with_capacity(all.len());
        for (((r, snapshot), mut child), pause) in all.into_iter().zip(snapshots).zip(children).zip(pauses) {
            let Recorded { mut obs, seen } = r;
            self.at = obs.survey.pid;
            obs.unseen(&mut child)?;
            let mut record = Recorder::new(obs, seen, snapshot, pause);
            record.memory(child.pid, self.o.progress)?;
            // what shares its pages can go on without copying them
            drop(child);
            record.talk = None;
            records.push(record);
        }
        self.enter(Phase::Publish)?;
        self.at = self.root;
        record::publish(records, (files, kinship), incoming, self.o, began)
    }

    /// Another process than the program is gone or about to be, which is why it does not answer: what it was is safe in its child.
    fn ended_meanwhile(&self, f: &Fault) -> bool {
        self.at != self.root && (is_gone(f) || sys::procfs::is_ending(self.at))
    }

    /// The snapshot children of all, which they make at the same time; None if one cannot have any. Those that have something to do in the freeze have been met, the
    /// others connect when the program runs again.
    fn fork(&mut self, all: &mut [Recorded<'_>], entries: &[Entry], adopted: &[bool]) -> Step<Option<Vec<Born>>> {
        let mut asked = Vec::with_capacity(all.len());
        for (r, adopted) in all.iter_mut().zip(adopted) {
            self.at = r.obs.survey.pid;
            match r.obs.ask_for_a_child(r.seen.process.subreaper, *adopted)? {
                Some(judge) => asked.push(judge),
                None => break,
            }
        }
        let (mut born, mut refused) = (Vec::with_capacity(all.len()), asked.len() < all.len());
        for ((r, e), judge) in all.iter_mut().zip(entries).zip(asked) {
            self.at = r.obs.survey.pid;
            match r.obs.forked()? {
                true => born.push((r, e, (judge, None))),
                false => refused = true,
            }
        }
        // then all are met, and end
        for (r, e, (judge, child)) in born.iter_mut().filter(|(r, ..)| refused || r.obs.needs_its_child()) {
            self.at = r.obs.survey.pid;
            let mut met = r.obs.meet(&e.listener, judge.clone())?;
            if !refused {
                r.obs.hidden(Some(&mut met))?;
            }
            *child = Some(met);
        }
        self.at = self.root;
        Ok(Some(born.into_iter().map(|(.., born)| born).collect()).filter(|_| !refused))
    }

    /// Asks all of them, and looks at what they have open.
    fn observe<'s>(
        &mut self,
        surveys: &'s [Survey],
        inside: Vec<Inside>,
        entries: &[Entry],
        common: &Arc<Common>,
        others: &mut Others,
        (kinship, ours): (&mut Kinship, &mut Connections),
    ) -> Step<(Vec<Recorded<'s>>, Files)> {
        let made = spread::over(surveys.iter().zip(inside), |_, (s, inside)| Observer::new(s, inside, common.clone()));
        let mut all = Vec::with_capacity(surveys.len());
        for (s, one) in surveys.iter().zip(made) {
            self.at = s.pid;
            all.extend(one.transpose()?);
        }
        self.at = self.root;
        let shared = shares::find(&mut all)?;
        super::users::refuse_shared(surveys, &shared)?;
        super::users::refuse_threads(surveys)?;
        *ours = Connections::new(&all, &shared)?;
        let tables = shares::tables(&all, &shared)?;
        let with: Vec<_> = all.iter_mut().zip(entries.iter().map(|e| &e.listener)).zip(tables).collect();
        let ask = |_, ((obs, l), table): ((&mut Observer<'_>, &Listener), _)| -> Step<_> {
            Ok((obs.begin()?, obs.listed(l, table)?))
        };
        let said = spread::over(with.into_iter(), ask);
        let (mut begun, mut listed) = (Vec::new(), Vec::new());
        for (s, one) in surveys.iter().zip(said) {
            self.at = s.pid;
            if let Some(one) = one {
                let (its, files) = one?;
                begun.push(its);
                listed.push(files);
            }
        }
        self.at = self.root;
        let together: BTreeSet<usize> = shares::sharers(&shared[FILES]).chain(shares::sharers(&shared[VM])).collect();
        kinship.together = together.into_iter().collect();
        (kinship.shares, kinship.memory) = shares::kept(surveys, &begun, &kinship.parents, &shared)?;
        let members: Vec<i32> = surveys.iter().map(|s| s.pid).collect();
        let asking = listed.iter().flatten().filter_map(objects::decides);
        all[0].survey.refuse_for(asking.collect())?;
        let mut opened = opened::join(listed, &lock(&common.hands))?;
        opened::mark(&mut opened, &members, &lock(&common.hands), others);
        let views = Arc::new(std::mem::take(&mut opened.views));
        all.iter_mut().for_each(|obs| obs.knows(views.clone()));
        let (mut files, mut reasons) = (Files::default(), Vec::new());
        for v in views.iter() {
            self.at = v.pid;
            let Some(obs) = all.iter_mut().find(|obs| obs.survey.pid == v.pid) else { continue };
            match obs.open_file(v)? {
                Ok(f) => files.open.push(f),
                Err(mut more) => {
                    if v.pid != self.root {
                        more.iter_mut().for_each(|r| r.object = format!("{}: {}", obs.survey.describe(), r.object));
                    }
                    reasons.extend(more);
                }
            }
        }
        all[0].survey.refuse_for(reasons)?;
        super::unnamed::keep(&mut all, &begun, &mut files)?;
        super::sysvipc::look(&mut all, common)?;
        files.contents = std::mem::take(&mut *lock(&common.contents));
        let own = opened.fds.iter().zip(opened.locks).zip(&shared[FILES]);
        let with: Vec<_> = all.into_iter().zip(begun).zip(own).collect();
        let ended = spread::over(with.into_iter(), |_, ((mut obs, begun), ((fds, locks), first))| -> Step<_> {
            let seen = obs.end(begun, (fds.clone(), &opened.fds[*first]), locks)?;
            Ok(Recorded { obs, seen })
        });
        let mut recorded = Vec::with_capacity(surveys.len());
        for (s, one) in surveys.iter().zip(ended) {
            self.at = s.pid;
            recorded.extend(one.transpose()?);
        }
        self.at = self.root;
        Ok((recorded, files))
    }

    /// The agent of one cannot do what is wanted: it is let go here, so that it is known how long it stood still, and the others as their ways end.
    fn shut_behind(&self, f: Fault, entries: &mut [Entry]) -> Step<Fault> {
        let Some(way) = entries.iter_mut().map(|e| &mut e.way).find(|w| w.pid() == Some(self.at)) else { return Ok(f) };
        let why = match f {
            Fault::Shut(s) => s.why,
            Fault::Sys(sys::Error::Filtered { calls, .. }) => sys::agent::Absent::Filtered(calls),
            f => return Ok(f),
        };
        let (pause, _) = way.release(tracer::After::Run)?;
        Ok(Fault::Shut(sys::agent::Shut { why, pause }))
    }

    /// The states of all threads; memory as it was in the freeze is that of `from`.
    fn collect(
        &mut self,
        all: &[Recorded<'_>],
        entries: &mut [Entry],
        from: impl Iterator<Item = i32>,
    ) -> Step<Vec<Snapshot>> {
        let mut snapshots = Vec::with_capacity(all.len());
        for ((r, e), from) in all.iter().zip(entries).zip(from) {
            self.at = r.obs.survey.pid;
            snapshots.push(e.way.collect(from)?);
        }
        Ok(snapshots)
    }

    /// The rest of a checkpoint whose processes stay frozen until it is complete.
    fn while_frozen(
        &mut self,
        all: Vec<Recorded<'_>>,
        mut entries: Vec<Entry>,
        (files, kinship, ours): (Files, Kinship, Connections),
        incoming: NewCheckpoint,
        began: Instant,
    ) -> Step<Captured> {
        self.enter(Phase::Record)?;
        let frozen = Instant::now();
        let pids: Vec<i32> = all.iter().map(|r| r.obs.survey.pid).collect();
        let snapshots = self.collect(&all, &mut entries, pids.iter().copied())?;
        let (mut records, mut before) = (Vec::new(), Vec::new());
        for (r, snapshot) in all.into_iter().zip(snapshots) {
            self.at = r.obs.survey.pid;
            before.push(r.seen.pending.as_ref().map_or(0, |p| p.bits()));
            let mut record = Recorder::new(r.obs, r.seen, snapshot, Duration::ZERO);
            record.memory(self.at, self.o.progress)?;
            records.push(record);
        }
        records[0].note_frozen(frozen.elapsed());
        self.enter(Phase::Publish)?;
        self.at = self.root;
        let together = kinship.together.clone();
        // until they are let go: when the conversation ends, the blob lets everyone run
        let talks: Vec<_> = records.iter_mut().map(|r| r.talk.take()).collect();
        let mut done = match record::publish(records, (files, kinship), incoming, self.o, began) {
            Ok(done) => done,
            Err(e) => {
                drop((ours, entries));
                return Err(e);
            }
        };
        let after = match self.o.after {
            After::Run => tracer::After::Run,
            After::Kill => tracer::After::Kill,
            After::Stop => tracer::After::Stop,
        };
        self.enter(Phase::Thaw)?;
        done.pause = Duration::ZERO;
        let mut wrong = None;
        drop(ours);
        for i in together.into_iter().filter(|_| after != tracer::After::Kill) {
            if let Err(f) = entries[i].way.leave() {
                wrong.get_or_insert((pids[i], f));
            }
        }
        // children first: a parent is not to see the end of one. Whatever goes wrong with one, none of the others is to run on without it
        for ((pid, e), before) in pids.iter().zip(&mut entries).zip(before).rev() {
            self.at = *pid;
            let (pause, late) = match e.way.release(after) {
                Ok(r) => r,
                Err(_) if pids.len() > 1 && sys::procfs::is_ending(*pid) => continue,
                Err(f) => {
                    wrong.get_or_insert((*pid, f));
                    continue;
                }
            };
            done.pause = done.pause.max(pause);
            let late = late & !before;
            // of a process that ends with its tree, its child's end is no news
            let late = if pids.len() > 1 { late & !(1 << (libc::SIGCHLD - 1)) } else { late };
            let late: Vec<String> = (1..=64).filter(|n| late >> (n - 1) & 1 != 0).map(super::signal_name).collect();
            if !late.is_empty() {
                let what = "came while it was recorded: not in the checkpoint, and lost with the process";
                done.reported.push(format!("signals {} {what}", late.join(", ")));
            }
        }
        drop(talks);
        match wrong {
            Some((pid, f)) => {
                self.at = pid;
                let mut e = self.explain(f);
                let (why, remedy) =
                    ("it is complete all the same", "end what is left of the program, or let it run on");
                e.reasons.push(crate::Reason::new(format!("checkpoint {}", done.n), why, remedy));
                Err(e.into())
            }
            None => Ok(done),
        }
    }

    /// Whatever went wrong with a target that has ended, went wrong because of that.
    fn explain(&self, f: Fault) -> Error {
        let phase = self.phase.name();
        let called = self.called || self.phase != Phase::Find;
        let f = match f {
            Fault::Shut(s) => Fault::Ours(door::refusal(self.at, &self.attempted, &s.why)),
            f => f,
        };
        let ours = matches!(f, Fault::Image(_)) || self.phase == Phase::Thaw && self.o.after == After::Kill;
        if called && !ours && sys::procfs::is_ending(self.at) {
            return match self.at == self.root || sys::procfs::is_ending(self.root) {
                true => super::died(&self.attempted, phase),
                false => self.one_has_ended(),
            };
        }
        explain(f, &self.attempted, phase, self.phase != Phase::Find)
    }
}

impl Run<'_> {
    /// Another process than the program was at fault, by its end.
    fn one_has_ended(&self) -> Error {
        let (why, remedy) = ("it ended while it was looked at", "the others run on as before; try again");
        Error::new(Kind::PutBack, &self.attempted, format!("PID {}", self.at), why, remedy)
    }
}

/// Brings processes that stand still into the order in which they come into the image.
fn parents_first(
    surveys: &mut Vec<Survey>,
    entries: &mut Vec<Entry>,
    inside: Vec<Inside>,
    found: &[Found],
) -> Vec<Inside> {
    let parents: BTreeMap<i32, i32> = found.iter().map(|f| (f.pid, f.parent)).collect();
    let pids: Vec<(i32, i32)> = surveys.iter().map(|s| (s.pid, parents.get(&s.pid).copied().unwrap_or(0))).collect();
    let order = tree::parents_first(&pids);
    let all = surveys.drain(..).zip(entries.drain(..)).zip(inside);
    let mut all: Vec<Option<((Survey, Entry), Inside)>> = all.map(Some).collect();
    let mut sorted = Vec::with_capacity(all.len());
    for ((s, e), i) in order.into_iter().filter_map(|i| all[i].take()) {
        surveys.push(s);
        entries.push(e);
        sorted.push(i);
    }
    sorted
}

/// Whether each has a reaper among those above it, which a snapshot child would be given to.
fn adopted(all: &[Recorded<'_>], kinship: &Kinship) -> Vec<bool> {
    let by_pid: BTreeMap<i32, usize> = all.iter().enumerate().map(|(i, r)| (r.seen.process.pid, i)).collect();
    let above = |i: usize| kinship.parents.get(i).and_then(|p| by_pid.get(p)).copied();
    let has = |i: usize| {
        // a parent stands before its children, or this would not end
        std::iter::successors(above(i), |p| above(*p)).take(all.len()).any(|p| all[p].seen.process.subreaper)
    };
    (0..all.len()).map(has).collect()
}
