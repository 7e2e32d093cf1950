//! Which processes are captured together, and how they are related.
use super::observe::Observer;
use super::{Step, Survey};
use crate::{Error, Kind, Reason};
use image::v1::shares::Memory;
use image::v1::shares::Shares;
use image::v1::tree::Zombie;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use sys::kcmp::Resource;
use sys::procfs::{self, stat::Stat, State};
use sys::program::Program;

/// How processes that stand still are related.
#[derive(Debug, Default)]
pub(super) struct Kinship {
    /// The parent of each, in the order of the surveys, by its PID in the innermost namespace; 0: it is not among them.
    pub parents: Vec<i32>,
    /// Processes that have ended, and that theirs have yet to wait for.
    pub zombies: Vec<Zombie>,
    /// What they share beyond open files.
    pub shares: Vec<Shares>,
    /// Those who have the memory of another.
    pub memory: Vec<Memory>,
    /// Those who have the descriptor table or memory of another, by their indices.
    pub together: Vec<usize>,
}

/// A process that was found among those that are captured together.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// PID here.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its children's, the ended ones' too.
    pub children: Vec<i32>,
}

/// All processes below these, themselves first, each after its parent, without those that have ended.
pub(super) fn living(roots: &[i32]) -> procfs::Result<Vec<Found>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut todo: VecDeque<i32> = roots.iter().copied().collect();
    while let Some(pid) = todo.pop_front() {
        if !seen.insert(pid) {
            continue;
        }
        // it runs, or another thread of it does than its first
        let stat = procfs::stat::read(pid).ok().filter(|s| !s.state.is_ended() || s.num_threads > 1);
        let Some(stat) = stat else { continue };
        let children = match procfs::children(pid) {
            Err(e) if e.is_gone() => Vec::new(),
            children => children?,
        };
        todo.extend(&children);
        found.push(Found { pid, parent: stat.ppid, children });
    }
    Ok(found)
}

/// In which order processes (PID, and their parents') come into an image: the first one first, and each after its parent. They need not have been stopped
/// in that order: one that could not be stopped at once came after its children.
pub(super) fn parents_first(all: &[(i32, i32)]) -> Vec<usize> {
    let members: HashSet<i32> = all.iter().map(|p| p.0).collect();
    let mut todo: VecDeque<usize> = (0..all.len()).filter(|i| *i == 0 || !members.contains(&all[*i].1)).collect();
    let mut order = Vec::with_capacity(all.len());
    while let Some(i) = todo.pop_front() {
        order.push(i);
        todo.extend((1..all.len()).filter(|c| all[*c].1 == all[i].0));
    }
    order
}

/// How processes are related that were found when all stood still.
pub(super) fn kinship(all: &[Survey], found: &[Found]) -> Step<Kinship> {
    let inner: HashMap<i32, i32> = all.iter().map(|s| (s.pid, s.inner_pid())).collect();
    let found: HashMap<i32, &Found> = found.iter().map(|f| (f.pid, f)).collect();
    let mut kinship = Kinship::default();
    for s in all {
        let Some(f) = found.get(&s.pid) else { return Err(super::died(&s.attempted, "freeze").into()) };
        kinship.parents.push(inner.get(&f.parent).copied().unwrap_or(0));
        for child in f.children.iter().filter(|c| !inner.contains_key(c)) {
            kinship.zombies.push(zombie(*child, s)?);
        }
    }
    Ok(kinship)
}

fn zombie(pid: i32, parent: &Survey) -> Step<Zombie> {
    let stat = procfs::stat::read(pid)?;
    if stat.state != State::Zombie {
        return Err(unfrozen(pid, &stat, parent).into());
    }
    let status = procfs::status::read(pid)?;
    let last = |ids: &[i32]| ids.last().copied().unwrap_or(0);
    Ok(Zombie {
        pid: last(&status.ns_tgid),
        parent: parent.inner_pid(),
        pgid: last(&status.ns_pgid),
        sid: last(&status.ns_sid),
        status: stat.exit_code,
        exit_signal: Some(stat.exit_signal).filter(|s| *s != libc::SIGCHLD),
        comm: stat.comm.into(),
    })
}

fn unfrozen(pid: i32, stat: &Stat, parent: &Survey) -> Error {
    let object = format!("child process {pid} ({})", stat.comm.escape_ascii());
    let (why, remedy) = ("it came while the others were stopped, and cannot be", "they run on as before; try again");
    Error::new(Kind::Refused, parent.attempted.clone(), object, why, remedy)
}

/// Of each the first that has the same memory; None where the kernel does not tell.
pub(super) fn memories(all: &[Survey]) -> Option<Vec<usize>> {
    let pids: Vec<i32> = all.iter().map(|s| s.pid).collect();
    sys::kcmp::firsts(&pids, Resource::Vm).ok()
}

/// One in vfork(2): it has the memory of its parent, of which a thread waits for it and cannot be stopped.
pub(super) fn in_vfork(all: &[Survey]) -> Option<(i32, Error)> {
    let pids: Vec<i32> = all.iter().map(|s| s.pid).collect();
    let (child, waits) = vforking(&pids, &memories(all)?).into_iter().next()?;
    Some((pids[child], vforked(&all[child], pids[waits])))
}

/// The same of one whose parent is among them.
pub(super) fn in_vfork_of_parent(s: &Survey) -> Option<Error> {
    let pids = [s.stat.ppid, s.pid];
    let firsts = sys::kcmp::firsts(&pids, Resource::Vm).ok()?;
    vforking(&pids, &firsts).contains_key(&1).then(|| vforked(s, pids[0]))
}

fn vforked(s: &Survey, waits: i32) -> Error {
    let why = format!("it is in vfork(2) (CLONE_VFORK): PID {waits} waits for it, and cannot be stopped");
    let r = Reason::new(s.describe(), why, "start it by fork, or checkpoint when it has executed a program");
    Error { kind: Kind::Refused, attempted: s.attempted.clone(), reasons: vec![r] }
}

/// Those in vfork and who waits for each, by their indices. `memories`: the first with the memory of each.
pub(super) fn vforking(pids: &[i32], memories: &[usize]) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    let group: Vec<usize> = super::shares::sharers(memories).collect();
    for waits in group.iter().copied().filter(|i| waits_in_vfork(pids[*i])) {
        let of_it = |i: &usize| *i != waits && memories[*i] == memories[waits];
        let is_child = |i: &usize| procfs::stat::read(pids[*i]).is_ok_and(|s| s.ppid == pids[waits]);
        let others: Vec<usize> = group.iter().copied().filter(of_it).collect();
        let children: Vec<usize> = others.iter().copied().filter(is_child).collect();
        // one that has its parent from who has borne it (CLONE_PARENT) may be any
        let children = if children.is_empty() { others } else { children };
        found.extend(children.into_iter().map(|child| (child, waits)));
    }
    found
}

/// Whether a thread of a process waits for a child in vfork: in the state "disk sleep" (wait_for_vfork_done in kernel/fork.c; only a fatal signal ends it), and in a
/// call that makes one, as far as that may be seen.
fn waits_in_vfork(pid: i32) -> bool {
    const CALLS: [i64; 3] = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
    // one that runs again by now is seen as "running"
    let is_one =
        |text: &str| text.split(' ').next().and_then(|nr| nr.parse().ok()).is_some_and(|nr| CALLS.contains(&nr));
    let waits = |tid: &i32| {
        procfs::stat::read_task(pid, *tid).is_ok_and(|s| s.state == State::DiskSleep)
            && procfs::task_syscall(pid, *tid, |text| is_one(text)).unwrap_or(true)
    };
    procfs::tasks(pid).unwrap_or_default().iter().any(waits)
}

impl Observer<'_> {
    /// How its children have ended: /proc tells that of one's own user's only.
    pub(super) fn ended_children(&mut self, zombies: &mut [Zombie]) -> Step<()> {
        const P_PID: i32 = 1;
        /// `siginfo_t` of SIGCHLD: si_code and si_status.
        const CODE: usize = 8;
        const STATUS: usize = 24;
        let inner = self.survey.inner_pid();
        let mut own: Vec<&mut Zombie> = zombies.iter_mut().filter(|z| z.parent == inner).collect();
        let mut p = Program::new();
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let mut asked = Vec::new();
        for z in &own {
            let info = p.out(128);
            let c = p.may(libc::SYS_waitid, &[P_PID.into(), z.pid.into(), info.arg(), how.into(), 0.into()]);
            asked.push((c, info));
        }
        if own.is_empty() {
            return Ok(());
        }
        let r = self.channel.run(&p)?;
        for (z, (c, info)) in own.iter_mut().zip(asked) {
            let status = r.u32(info, STATUS) as i32;
            z.status = match (r.get(c), r.u32(info, CODE) as i32) {
                (Ok(_), libc::CLD_EXITED) => (status & 0xff) << 8,
                (Ok(_), libc::CLD_KILLED) => status & 0x7f,
                (Ok(_), libc::CLD_DUMPED) => status & 0x7f | 0x80,
                _ => z.status,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::parents_first;

    #[test]
    fn each_comes_after_its_parent_and_the_program_first() {
        let pids = |all: &[(i32, i32)]| parents_first(all).into_iter().map(|i| all[i].0).collect::<Vec<_>>();
        // 30 was stopped before its parent 20, 50 is a daemon's child that came before it
        assert_eq!(pids(&[(10, 1), (30, 20), (50, 40), (20, 10), (40, 1), (60, 30)]), [10, 40, 20, 50, 30, 60]);
        assert_eq!(pids(&[(10, 1)]), [10]);
        // the program's own parent may be a daemon of its session
        assert_eq!(pids(&[(10, 40), (40, 1)]), [10, 40]);
    }
}
