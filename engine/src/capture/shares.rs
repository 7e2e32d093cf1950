//! What processes share that are no threads of each other (clone(2)): asked of the kernel (kcmp) when all of them stand still.
use super::observe::{Begun, Observer};
use super::{Step, Survey};
use crate::sharing::{Groups, Kin, FILES, FS, KINDS, SIGHAND, VM};
use crate::{Door, Reason};
use image::v1::shares::{Memory, Shares};
use std::collections::{BTreeMap, BTreeSet};
use sys::channel::{Channel, Watch};
use sys::kcmp::Resource;
use sys::procfs;
use sys::program::Program;

/// Most questions in one program.
const AT_ONCE: usize = 2048;

/// What may be shared, in the order of [`KINDS`].
const KEPT: [Resource; KINDS.len()] = [Resource::Fs, Resource::Files, Resource::Sighand, Resource::Vm];

/// The first with which each shares. Refuses memory that several have and their agents have been called in, who would have to be in the same place at once: where
/// it cannot be seen from outside.
pub(super) fn find(all: &mut [Observer<'_>]) -> Step<Groups> {
    let mut groups = Groups::default();
    if all.len() < 2 {
        groups.iter_mut().for_each(|of| of.push(0));
        return Ok(groups);
    }
    for (of, what) in groups.iter_mut().zip(KEPT) {
        *of = firsts(all, what)?;
    }
    for i in sharers(&groups[VM]).filter(|i| all[*i].door() == Door::Agent) {
        let why = "another process has its memory, too (CLONE_VM), which could not be seen from outside before their agents were called";
        let r = Reason::new(all[i].survey.describe(), why, "use --door attach, which asks the kernel (kcmp)");
        all[i].survey.refuse_for(vec![r])?;
    }
    beside(all, &groups[VM]);
    Ok(groups)
}

/// Those who have an earlier one's memory are not asked for it; and of our mappings in memory that several have, each is known to who has it recorded.
fn beside(all: &mut [Observer<'_>], memories: &[usize]) {
    let ours: Vec<(u64, u64)> = all.iter().map(|o| (o.entered.layout.base, o.entered.layout.len)).collect();
    for (i, first) in memories.iter().enumerate().filter(|(i, first)| i != *first) {
        let (base, len) = ours[i];
        all[*first].ours.push((base, base + len));
        all[i].has_own_memory = false;
    }
}

/// The first with which each shares.
fn firsts(all: &mut [Observer<'_>], what: Resource) -> Step<Vec<usize>> {
    let pids: Vec<i32> = all.iter().map(|o| o.survey.pid).collect();
    match sys::kcmp::firsts(&pids, what) {
        Ok(firsts) => Ok(firsts),
        Err(_) => inside(all, what),
    }
}

/// Those who have the descriptor table or memory of another of them, as far as that can be seen from outside; all of them, where that cannot be seen of one.
pub(super) fn together(pids: &[i32]) -> BTreeSet<i32> {
    seen(pids).unwrap_or_else(|| pids.iter().copied().collect())
}

/// The same, and none where it cannot be seen. Their agents are not called: one would connect, and close its connection, while another may run and fork with it; and
/// of one memory there is one agent.
pub(super) fn seen_together(pids: &[i32]) -> BTreeSet<i32> {
    seen(pids).unwrap_or_default()
}

fn seen(pids: &[i32]) -> Option<BTreeSet<i32>> {
    let tables = sys::kcmp::firsts(pids, Resource::Files).ok()?;
    let memories = sys::kcmp::firsts(pids, Resource::Vm).ok()?;
    let mut all: BTreeSet<i32> = sharers(&tables).map(|i| pids[i]).collect();
    // one in vfork has its memory for a moment only, and is waited for
    let vforking = super::tree::vforking(pids, &memories);
    let (lasting, memories): (Vec<i32>, Vec<usize>) =
        (0..pids.len()).filter(|i| !vforking.contains_key(i)).map(|i| (pids[i], memories[i])).unzip();
    all.extend(sharers(&memories).map(|i| lasting[i]));
    // of those that have ended meanwhile nothing is the same
    all.retain(|pid| !procfs::is_ending(*pid));
    Some(all)
}

/// What these share with processes that are not captured with them: restored, they would share it with nobody. Of those whose kernel or rights do not tell nothing is
/// known.
pub(super) fn with_others(all: &mut [Survey]) {
    let members: BTreeSet<i32> = all.iter().map(|s| s.pid).collect();
    let pids: Vec<i32> = all.iter().map(|s| s.pid).collect();
    for (what, (_, words)) in KEPT.into_iter().zip(KINDS) {
        let Ok(sorted) = sys::kcmp::Sorted::new(&pids, what) else { continue };
        for other in procfs::pids().unwrap_or_default().into_iter().filter(|p| !members.contains(p)) {
            let Some(i) = sorted.find(other).ok().flatten().filter(|_| !is_below(other, &members)) else { continue };
            // those that have ended have nothing, as the kernel's own processes have no memory
            if procfs::is_ending(all[i].pid) {
                continue;
            }
            let why = format!("it shares {words} with PID {other}, which is not captured with it");
            let remedy = "checkpoint that process, or let it have its own (unshare(2), exec)";
            let reason = Reason::new(all[i].describe(), why, remedy);
            if !all[i].reasons.contains(&reason) {
                all[i].reasons.push(reason);
            }
        }
    }
}

/// More that have one memory than there are places for blobs in it.
pub(super) fn too_many(all: &mut [Survey]) {
    let memories = super::tree::memories(all).unwrap_or_default();
    let has_it = |(i, m): &(usize, &usize), of| **m == of && !procfs::is_ending(all[*i].pid);
    let many = |of: usize| memories.iter().enumerate().filter(|e| has_it(e, of)).count() as u64;
    let Some(i) = sharers(&memories).find(|i| many(memories[*i]) > wire::HOMES) else { return };
    let why = format!("{} processes have its memory, and {} are the most", many(memories[i]), wire::HOMES);
    let reason = Reason::new(all[i].describe(), why, "checkpoint it when some of them have ended");
    all[i].reasons.push(reason);
}

/// Whether a process was born by one of these since they were found, and so will be found, too, or has ended.
fn is_below(pid: i32, members: &BTreeSet<i32>) -> bool {
    let parent = |pid: &i32| procfs::stat::read(*pid).ok().map(|s| s.ppid).filter(|p| *p > 0);
    // as many generations as there are PIDs at the very most
    let below = std::iter::successors(parent(&pid), parent).take(1 << 22).any(|p| members.contains(&p));
    // last: one that has ended has no parent any more
    below || procfs::is_ending(pid)
}

/// Those who share.
pub(super) fn sharers(firsts: &[usize]) -> impl Iterator<Item = usize> + '_ {
    let mut many: BTreeMap<usize, usize> = BTreeMap::new();
    firsts.iter().for_each(|f| *many.entry(*f).or_default() += 1);
    (0..firsts.len()).filter(move |i| many[&firsts[*i]] > 1)
}

/// Whether a process has the memory of one of these; which of them, by its index.
pub(super) fn with_memory_of(pid: i32, all: &[Survey]) -> Option<usize> {
    all.iter().position(|s| s.pid != pid && sys::kcmp::shares(s.pid, pid, Resource::Vm).is_ok_and(|same| same))
}

/// A descriptor table: what is ours in it, and the blocks of those who have it.
#[derive(Default)]
pub(super) struct Table {
    pub ours: Vec<i32>,
    pub blocks: Vec<sys::api::Block>,
}

/// The descriptor table of each process; None: it is that of an earlier one.
pub(super) fn tables(all: &[Observer<'_>], groups: &Groups) -> Step<Vec<Option<Table>>> {
    let mut tables: Vec<Option<Table>> =
        groups[FILES].iter().enumerate().map(|(i, first)| (i == *first).then(Table::default)).collect();
    for (obs, first) in all.iter().zip(&groups[FILES]) {
        if let Some(table) = &mut tables[*first] {
            table.ours.push(obs.own_descriptor()?);
            table.blocks.extend(obs.block.clone());
        }
    }
    Ok(tables)
}

/// Our connections in descriptor tables that several have. The end of a process does not close its own there; so should one have ended while all stand still,
/// another of them does, when this is dropped: before any of them is let go.
#[derive(Default)]
pub(super) struct Connections(Vec<Connection>);

struct Connection {
    table: usize,
    pid: i32,
    number: i32,
    /// What it is: "socket:[12]".
    link: Vec<u8>,
    /// The conversation over it.
    channel: Channel,
}

impl Connections {
    pub fn new(all: &[Observer<'_>], groups: &Groups) -> Step<Connections> {
        let one = |i: usize| -> Step<Connection> {
            let (obs, number) = (&all[i], all[i].own_descriptor()?);
            let pid = obs.survey.pid;
            let sock = obs.channel.socket().try_clone()?;
            let channel = Channel::watched(sock, pid, Watch::process(pid)?)?.judged(obs.survey.judge.clone());
            let link = link(pid, number).unwrap_or_default();
            Ok(Connection { table: groups[FILES][i], pid, number, link, channel })
        };
        Ok(Connections(sharers(&groups[FILES]).map(one).collect::<Step<_>>()?))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let (ended, mut there): (Vec<Connection>, Vec<Connection>) =
            std::mem::take(&mut self.0).into_iter().partition(|c| procfs::is_ending(c.pid));
        for c in ended {
            let holds = |o: &&mut Connection| o.table == c.table && link(o.pid, c.number) == Some(c.link.clone());
            if let Some(other) = there.iter_mut().find(holds) {
                let mut p = Program::new();
                p.may(libc::SYS_close, &[c.number.into()]);
                let _ = other.channel.run(&p);
            }
        }
    }
}

fn link(pid: i32, number: i32) -> Option<Vec<u8>> {
    procfs::fd::links(pid).ok()?.into_iter().find(|(fd, _)| *fd == number).map(|(_, link)| link)
}

/// The same, asked by each of itself and those before it: where that is not permitted from outside.
fn inside(all: &mut [Observer<'_>], what: Resource) -> Step<Vec<usize>> {
    let living: Vec<i32> = all.iter().map(|o| o.survey.inner_living()).collect();
    // one of each class
    let (mut classes, mut firsts): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (i, obs) in all.iter_mut().enumerate() {
        let mut first = i;
        for some in classes.chunks(AT_ONCE) {
            let mut p = Program::new();
            let ask = |p: &mut Program, with: usize| {
                let a = [living[with].into(), living[i].into(), (what as i32).into(), 0.into(), 0.into()];
                p.may(libc::SYS_kcmp, &a)
            };
            let asked: Vec<_> = some.iter().map(|c| (*c, ask(&mut p, *c))).collect();
            let r = obs.channel.run(&p)?;
            for (with, c) in asked {
                let order = r.get(c).map_err(|e| sys::Error::call("kcmp of it and another", obs.survey.pid, e))?;
                if order == 0 {
                    first = with;
                }
            }
        }
        if first == i {
            classes.push(i);
        }
        firsts.push(first);
    }
    Ok(firsts)
}

/// What each shares, in the image's words; refuses what a restore could not make so again. `parents`: in the order of the processes.
pub(super) fn kept(
    all: &[Survey],
    begun: &[Begun],
    parents: &[i32],
    groups: &Groups,
) -> Step<(Vec<Shares>, Vec<Memory>)> {
    let kin = |(b, parent): (&Begun, &i32)| Kin { pid: b.process.pid, parent: *parent, sid: b.process.sid };
    let kin: Vec<Kin> = begun.iter().zip(parents).map(kin).collect();
    if let Err(apart) = crate::sharing::plan(&kin, groups) {
        all[0].refuse_for(apart.iter().map(|a| a.reason(|i| all[i].describe())).collect())?;
    }
    let with = |kind: usize, i: usize| Some(groups[kind][i]).filter(|first| *first != i).map_or(0, |f| kin[f].pid);
    let one = |i: usize| Shares { pid: kin[i].pid, fs: with(FS, i), files: with(FILES, i) };
    let memory = |i: usize| Memory { pid: kin[i].pid, vm: with(VM, i), sighand: with(SIGHAND, i) };
    let shares = (0..kin.len()).map(one).filter(|s| s.fs != 0 || s.files != 0).collect();
    Ok((shares, (0..kin.len()).map(memory).filter(|m| m.vm != 0).collect()))
}
