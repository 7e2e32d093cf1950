//! Phases find and freeze, of all that are captured together: who belongs to them, by which ways they are entered, and that none of them is missing when all stand still.
use super::door::{Doors, Inside, Way};
use super::find::{self, Survey};
use super::run::Run;
use super::shared::Others;
use super::tree::{self, Found};
use super::{shares, Fault, Step};
use crate::{spread, Door, Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use sys::agent::{Absent, Shut};
use sys::channel::Listener;
use sys::procfs;

/// How often newcomers are looked for, or a process that has executed another program is looked at again, before that is given up.
const MOST_ROUNDS: usize = 200;
/// How often is looked at a process that seems to be in the way, before the freeze.
const LOOKS: usize = 10;
/// How long one that cannot be stopped is met as a newcomer: as long as programs take to be executed.
const SETTLES: Duration = Duration::from_secs(1);

/// How a process is entered.
pub(super) struct Entry {
    pub way: Way,
    pub listener: Listener,
    /// The way in is known.
    ready: bool,
}

impl Entry {
    /// Finds the way in.
    fn prepare(&mut self, s: &Survey) -> Result<()> {
        self.way.prepare(s, &self.listener)?;
        self.ready = true;
        Ok(())
    }
}

impl Run<'_> {
    /// All that belong to it, against none of which there is a certain reason, and the ways in.
    pub(super) fn gather(&mut self, others: &mut Others) -> Step<(Vec<Survey>, Vec<Entry>)> {
        let (mut surveys, mut entries) = self.find()?;
        self.together(&mut surveys, &mut entries, others)?;
        for _ in 0..LOOKS {
            if !self.look_again(&mut surveys, &mut entries)? {
                break;
            }
            self.together(&mut surveys, &mut entries, others)?;
        }
        // after the last look again, which forgets what is known of those that it looks at
        shares::with_others(&mut surveys);
        self.shut(&surveys)?;
        shares::too_many(&mut surveys);
        find::refuse(&surveys, false)?;
        self.ready(&mut surveys, &mut entries, others)?;
        Ok((surveys, entries))
    }

    /// Looks at all that belong to it.
    fn find(&mut self) -> Step<(Vec<Survey>, Vec<Entry>)> {
        let (mut surveys, mut entries) = (Vec::new(), Vec::new());
        for pid in self.living(&[])?.into_iter().map(|f| f.pid) {
            let mut looked = self.look(pid);
            for _ in 0..LOOKS {
                if looked.is_ok() || pid == self.root {
                    break;
                }
                self.doors.remove(&pid);
                looked = self.look(pid);
            }
            if let Some((s, e)) = looked? {
                surveys.push(s);
                entries.push(e);
            }
        }
        Ok((surveys, entries))
    }

    fn together(&mut self, surveys: &mut Vec<Survey>, entries: &mut Vec<Entry>, others: &mut Others) -> Result<()> {
        while let Err(e) = find::together(surveys, others) {
            self.without_ended(surveys, entries, e)?;
        }
        Ok(())
    }

    /// Looks a second time at those against which there is a reason, but for the program: they may have been about to execute another program, which had no
    /// agent yet. Whether there were any.
    fn look_again(&mut self, surveys: &mut Vec<Survey>, entries: &mut Vec<Entry>) -> Step<bool> {
        let odd: Vec<i32> = surveys.iter().filter(|s| s.pid != self.root && s.is_refused()).map(|s| s.pid).collect();
        for pid in &odd {
            self.renew(*pid, surveys, entries)?;
        }
        Ok(!odd.is_empty())
    }

    /// Looks again at one that is no program: it takes its place, or is left out if it has ended.
    fn renew(&mut self, pid: i32, surveys: &mut Vec<Survey>, entries: &mut Vec<Entry>) -> Step<()> {
        self.doors.remove(&pid);
        let looked = self.look(pid)?;
        let Some(i) = surveys.iter().position(|s| s.pid == pid) else { return Ok(()) };
        match looked {
            Some((s, e)) => (surveys[i], entries[i]) = (s, e),
            None => {
                surveys.remove(i);
                entries.remove(i);
            }
        }
        Ok(())
    }

    /// Looks at one; None: it is not the program, and has ended.
    fn look(&mut self, pid: i32) -> Step<Option<(Survey, Entry)>> {
        self.at = pid;
        let mut looked = || {
            let doors = self.knock(pid);
            let (mut way, shut) = (doors.next()?, doors.reasons());
            let listener = Listener::new()?;
            self.called |= way.opens();
            way.open(&listener)?;
            let s =
                find::survey(pid, self.attempted.clone(), (&self.o.external, self.o.risk_strict), way.door(), shut)?;
            Ok((s, Entry { way, listener, ready: false }))
        };
        match looked() {
            // one that is there after all is found again
            Err(f) if pid != self.root && (is_gone(&f) || procfs::is_ending(pid)) => Ok(None),
            r => r.map(Some),
        }
    }

    /// Finds the ways in. One that cannot be found may be of a process that ends, or that is about to execute another program (in vfork, say): it is
    /// looked at again.
    fn ready(&mut self, surveys: &mut Vec<Survey>, entries: &mut Vec<Entry>, others: &mut Others) -> Step<()> {
        let mut failed = BTreeMap::new();
        while let Err(e) = self.unfit(surveys, entries) {
            let long = failed.entry(self.at).or_insert_with(Instant::now).elapsed() > SETTLES;
            if self.at == self.root || long && !procfs::is_ending(self.at) {
                return Err(e.into());
            }
            self.renew(self.at, surveys, entries)?;
            self.together(surveys, entries, others)?;
            shares::with_others(surveys);
            self.shut(surveys)?;
            glance();
        }
        Ok(())
    }

    /// An error about one that cannot be stopped or kept as it is.
    fn unfit(&mut self, surveys: &[Survey], entries: &mut [Entry]) -> Result<()> {
        self.prepare(surveys, entries)?;
        if let Some((pid, e)) = tree::in_vfork(surveys) {
            self.at = pid;
            return Err(e);
        }
        self.at = surveys.iter().find(|s| s.is_refused()).map_or(self.at, |s| s.pid);
        find::refuse(surveys, false)
    }

    /// Finds the ways in that have not been found yet.
    fn prepare(&mut self, surveys: &[Survey], entries: &mut [Entry]) -> Result<()> {
        for (s, e) in surveys.iter().zip(entries).filter(|(_, e)| !e.ready) {
            self.at = s.pid;
            e.prepare(s)?;
        }
        Ok(())
    }

    /// Something failed: if that may be because a process has ended that is not the program, it is left out.
    fn without_ended(&self, surveys: &mut Vec<Survey>, entries: &mut Vec<Entry>, e: Error) -> Result<()> {
        let ended = surveys.iter().position(|s| s.pid != self.root && procfs::is_ending(s.pid)).ok_or(e)?;
        surveys.remove(ended);
        entries.remove(ended);
        Ok(())
    }

    /// Whether the agent's door turns out to be shut: to all of those to whom it is, at once.
    fn shut(&mut self, surveys: &[Survey]) -> Step<()> {
        let pids: Vec<i32> = surveys.iter().map(|s| s.pid).collect();
        let together = shares::seen_together(&pids);
        let why = |s: &Survey| {
            let shared = || (s.door == Door::Agent && together.contains(&s.pid)).then_some(Absent::Shares);
            s.shut_to_agent().or_else(shared)
        };
        let mut all = surveys.iter().filter_map(|s| Some((s.pid, why(s)?)));
        let Some((first, why)) = all.next() else { return Ok(()) };
        for (pid, why) in all {
            if let Some(doors) = self.doors.get_mut(&pid).filter(|d| d.is_another()) {
                doors.shut_behind(Shut { why, pause: Duration::ZERO });
            }
        }
        self.at = first;
        Err(why.into())
    }

    /// Stops all, until there is no newcomer. Who was found then, when all stood still, is given too.
    pub(super) fn freeze(
        &mut self,
        surveys: &mut Vec<Survey>,
        entries: &mut Vec<Entry>,
    ) -> Step<(Vec<Inside>, Vec<Found>)> {
        let mut inside: BTreeMap<i32, Option<Inside>> = BTreeMap::new();
        let mut failed = Failed::default();
        for _ in 0..MOST_ROUNDS {
            while inside.len() < surveys.len() {
                self.stop_some(surveys, entries, &mut inside, &mut failed)?;
            }
            let found = self.living(surveys)?;
            let newcomers: Vec<i32> = found.iter().map(|f| f.pid).filter(|p| !inside.contains_key(p)).collect();
            if newcomers.is_empty() {
                return Ok((self.enter_all(surveys, entries, inside)?, found));
            }
            let before = surveys.len();
            for pid in newcomers {
                self.beside_others(pid, surveys, &inside)?;
                if let Some((s, e)) = self.newcomer(pid, &mut failed)? {
                    surveys.push(s);
                    entries.push(e);
                }
            }
            if surveys.len() == before {
                glance();
            }
        }
        if let Some((pid, f)) = failed.last.filter(|(pid, _)| procfs::pid_exists(*pid)) {
            self.at = pid;
            return Err(f);
        }
        let why = "processes came faster than they could be stopped";
        let remedy = "all run on as before; checkpoint it when it starts fewer";
        let what = format!("the processes below PID {}", self.root);
        Err(Error::new(Kind::Refused, &self.attempted, what, why, remedy).into())
    }

    /// All stand still: goes in where that has not been done, as others have the same descriptors or memory.
    fn enter_all(
        &mut self,
        surveys: &mut [Survey],
        entries: &mut [Entry],
        mut inside: BTreeMap<i32, Option<Inside>>,
    ) -> Step<Vec<Inside>> {
        // where the kernel does not tell, each may have that of any: they take turns at the places
        let known = tree::memories(surveys);
        let place = |n: u64| if known.is_some() || n == 0 { n } else { 1 + (n - 1) % (wire::HOMES - 1) };
        let memories = known.clone().unwrap_or_else(|| vec![0; surveys.len()]);
        let mut entered = vec![0; surveys.len()];
        let is_in = |s: &Survey| inside.get(&s.pid).is_some_and(Option::is_some);
        surveys.iter().zip(&memories).filter(|(s, _)| is_in(s)).for_each(|(_, of)| entered[*of] += 1);
        let mut all = Vec::with_capacity(surveys.len());
        for ((s, e), of) in surveys.iter_mut().zip(entries).zip(&memories) {
            self.at = s.pid;
            all.push(match inside.remove(&s.pid).flatten() {
                Some(inside) => inside,
                None => {
                    entered[*of] += 1;
                    e.way.enter(s, &e.listener, place(entered[*of] - 1))?
                }
            });
        }
        self.at = self.root;
        Ok(all)
    }

    /// Stops those whose parents stand still, several at the same time, and the program first of all. A child of one that stands still has not its memory:
    /// for a child in vfork its parent would have been waited for.
    fn stop_some(
        &mut self,
        surveys: &mut Vec<Survey>,
        entries: &mut Vec<Entry>,
        inside: &mut BTreeMap<i32, Option<Inside>>,
        failed: &mut Failed,
    ) -> Step<()> {
        let runs: BTreeSet<i32> = surveys.iter().map(|s| s.pid).filter(|p| !inside.contains_key(p)).collect();
        let (root, root_runs) = (self.root, runs.contains(&self.root));
        let parent_stands = |s: &Survey| runs.contains(&s.pid) && !runs.contains(&s.stat.ppid);
        // where there is none, of two that are each other's parents (a number may be another's by now), the first
        let first = runs.first().copied().filter(|_| !surveys.iter().any(parent_stands));
        let stopped: BTreeSet<i32> = surveys.iter().filter(|s| parent_stands(s)).map(|s| s.pid).collect();
        let stops = |s: &Survey| match root_runs {
            true => s.pid == root,
            false => stopped.contains(&s.pid) || Some(s.pid) == first,
        };
        let pids: Vec<i32> = surveys.iter().map(|s| s.pid).collect();
        if self.together.0 != pids {
            self.together = (pids.clone(), shares::together(&pids));
        }
        let tables = &self.together.1;
        let some: Vec<(&mut Survey, &mut Entry)> =
            surveys.iter_mut().zip(entries.iter_mut()).filter(|(s, _)| stops(s)).collect();
        let pids: Vec<i32> = some.iter().map(|(s, _)| s.pid).collect();
        let came = spread::over(some.into_iter(), |_, (s, e)| e.way.freeze(s, &e.listener, tables.contains(&s.pid)));
        for (pid, came) in pids.into_iter().zip(came) {
            self.at = pid;
            match came {
                Some(Ok(it)) => drop(inside.insert(pid, it)),
                // not tried, as another one failed
                None => {}
                Some(Err(f)) if pid == self.root => return Err(f),
                // let go, and looked at as a newcomer: it may be about to end, or to execute a program
                Some(Err(f)) => {
                    let Some(i) = surveys.iter().position(|s| s.pid == pid) else { continue };
                    // until it has left: or it would be found leaving
                    entries[i].way.part();
                    surveys.remove(i);
                    entries.remove(i);
                    self.doors.remove(&pid);
                    let changes = matches!(f, Fault::Another(_)) || procfs::is_ending(pid);
                    if !changes && !failed.again(pid) {
                        return Err(f);
                    }
                }
            }
        }
        Ok(())
    }

    /// A newcomer that has the memory of one that stands still (CLONE_VM): its agent is that one's, and cannot be asked. If that one was called by it, all is begun
    /// anew without.
    fn beside_others(&mut self, pid: i32, surveys: &[Survey], inside: &BTreeMap<i32, Option<Inside>>) -> Step<()> {
        let with = shares::with_memory_of(pid, surveys).map(|i| &surveys[i]);
        let Some(s) = with.filter(|s| inside.contains_key(&s.pid)) else { return Ok(()) };
        if s.door == Door::Agent {
            self.at = s.pid;
            return Err(Absent::Shares.into());
        }
        let doors = Doors::by_attach(self.o, pid);
        self.doors.entry(pid).or_insert(doors);
        Ok(())
    }

    /// One that came while others were stopped; None: it has ended, or is to be looked at again.
    fn newcomer(&mut self, pid: i32, failed: &mut Failed) -> Step<Option<(Survey, Entry)>> {
        let (s, mut e) = match self.look(pid) {
            Ok(Some(looked)) => looked,
            Ok(None) => return Ok(None),
            Err(f) if failed.again(pid) => {
                self.doors.remove(&pid);
                failed.last = Some((pid, f));
                return Ok(None);
            }
            Err(f) => return Err(f),
        };
        if let Some(why) = s.shut_to_agent() {
            return Err(why.into());
        }
        let fit = || match tree::in_vfork_of_parent(&s) {
            Some(e) => Err(e),
            None => find::refuse(std::slice::from_ref(&s), false),
        };
        match fit().and_then(|()| e.prepare(&s)) {
            // seen in the middle of executing a program, perhaps, or of its end
            Err(e) if failed.again(pid) || procfs::is_ending(pid) => {
                self.doors.remove(&pid);
                failed.last = Some((pid, e.into()));
                Ok(None)
            }
            fit => Ok(fit.map(|()| Some((s, e)))?),
        }
    }
}

/// Processes that could not be stopped, or kept as they were.
#[derive(Default)]
struct Failed {
    /// Since when.
    since: BTreeMap<i32, Instant>,
    /// The last of them, and why.
    last: Option<(i32, Fault)>,
}

impl Failed {
    /// Whether it may be tried again.
    fn again(&mut self, pid: i32) -> bool {
        self.since.entry(pid).or_insert_with(Instant::now).elapsed() < SETTLES
    }
}

/// It failed because the process was not there any more, or not yet what it is about to be.
pub(super) fn is_gone(f: &Fault) -> bool {
    match f {
        Fault::Ours(e) => matches!(e.kind, Kind::TargetDied | Kind::NoSuch),
        Fault::Sys(e) => matches!(e, sys::Error::Died { .. }) || e.errno() == Some(libc::ESRCH),
        Fault::Proc(e) => e.is_gone(),
        _ => false,
    }
}

/// Until the next look at one that may be about to execute a program.
fn glance() {
    let _ = nix::poll::poll(&mut [], nix::poll::PollTimeout::from(2u8));
}
