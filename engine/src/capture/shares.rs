//! What processes share that are no threads of each other (clone(2)): asked of the kernel (kcmp) when all of them stand still.
use super::observe::{Begun, Observer};
use super::tree::{sharing, VM};
use super::{Step, Survey};
use crate::sharing::{Groups, Kin, FILES, FS, KINDS};
use crate::Reason;
use image::v1::shares::Shares;
use std::collections::BTreeSet;
use sys::channel::{Channel, Watch};
use sys::kcmp::Resource;
use sys::procfs;
use sys::program::Program;

/// Most questions in one program.
const AT_ONCE: usize = 2048;

/// What may be shared, in the order of [`KINDS`].
const KEPT: [Resource; KINDS.len()] = [Resource::Fs, Resource::Files];

/// The first with which each shares; refuses what may not be shared.
pub(super) fn find(all: &mut [Observer<'_>]) -> Step<Groups> {
    let mut groups = Groups::default();
    if all.len() < 2 {
        groups.iter_mut().for_each(|of| of.push(0));
        return Ok(groups);
    }
    if let Some((i, first)) = firsts(all, Resource::Vm)?.into_iter().enumerate().find(|(i, first)| first != i) {
        let with = all[first].survey.pid;
        all[i].survey.refuse_for(vec![sharing(all[i].survey, VM, with)])?;
    }
    for (of, what) in groups.iter_mut().zip(KEPT) {
        *of = firsts(all, what)?;
    }
    Ok(groups)
}

/// The first with which each shares.
fn firsts(all: &mut [Observer<'_>], what: Resource) -> Step<Vec<usize>> {
    let pids: Vec<i32> = all.iter().map(|o| o.survey.pid).collect();
    match sys::kcmp::firsts(&pids, what) {
        Ok(firsts) => Ok(firsts),
        Err(_) => inside(all, what),
    }
}

/// Those who have the descriptor table of another of them, as far as that can be seen from outside; all of them, where that cannot be seen of one.
pub(super) fn with_table_of_another(pids: &[i32]) -> BTreeSet<i32> {
    seen(pids).unwrap_or_else(|| pids.iter().copied().collect())
}

/// The same, and none where it cannot be seen. Their agents are not called: one would connect, and close its connection, while another may run and fork with it.
pub(super) fn seen_with_table_of_another(pids: &[i32]) -> BTreeSet<i32> {
    seen(pids).unwrap_or_default()
}

fn seen(pids: &[i32]) -> Option<BTreeSet<i32>> {
    let firsts = sys::kcmp::firsts(pids, Resource::Files).ok()?;
    Some(sharers(&firsts).map(|i| pids[i]).collect())
}

/// What the program shares with its parent, which is not captured with it: a restored one would share it with nobody. Where the kernel does not tell, nothing is known.
pub(super) fn with_its_parent(s: &Survey) -> Vec<Reason> {
    let parent = s.stat.ppid;
    let with = |what: &&Resource| parent > 0 && sys::kcmp::shares(s.pid, parent, **what).is_ok_and(|same| same);
    let reason = |what: &Resource| {
        let what = if *what == Resource::Fs { KINDS[FS].1 } else { KINDS[FILES].1 };
        let why = format!("it shares {what} with PID {parent}, which is not captured with it");
        Reason::new(format!("PID {}", s.pid), why, "checkpoint that process, or let it unshare(2)")
    };
    KEPT.iter().filter(with).map(reason).collect()
}

/// Those who share.
pub(super) fn sharers(firsts: &[usize]) -> impl Iterator<Item = usize> + '_ {
    (0..firsts.len()).filter(|i| firsts.iter().filter(|f| **f == firsts[*i]).count() > 1)
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
pub(super) fn kept(all: &[Survey], begun: &[Begun], parents: &[i32], groups: &Groups) -> Step<Vec<Shares>> {
    let kin = |(b, parent): (&Begun, &i32)| Kin { pid: b.process.pid, parent: *parent, sid: b.process.sid };
    let kin: Vec<Kin> = begun.iter().zip(parents).map(kin).collect();
    if let Err(apart) = crate::sharing::plan(&kin, groups) {
        all[0].refuse_for(apart.iter().map(|a| a.reason(|i| all[i].describe())).collect())?;
    }
    let with = |kind: usize, i: usize| Some(groups[kind][i]).filter(|first| *first != i).map_or(0, |f| kin[f].pid);
    let one = |i: usize| Shares { pid: kin[i].pid, fs: with(FS, i), files: with(FILES, i) };
    Ok((0..kin.len()).map(one).filter(|s| s.fs != 0 || s.files != 0).collect())
}
