//! Which processes are captured together, and how they are related.
use super::{Step, Survey};
use crate::{Error, Kind, Reason};
use image::v1::tree::Zombie;
use std::collections::{HashMap, HashSet, VecDeque};
use sys::kcmp::Resource;
use sys::procfs::{self, stat::Stat, State};

/// How processes that stand still are related.
#[derive(Debug, Default)]
pub(super) struct Kinship {
    /// The parent of each, in the order of the surveys, by its PID in the innermost namespace; 0: it is not among them.
    pub parents: Vec<i32>,
    /// Processes that have ended, and that theirs have yet to wait for.
    pub zombies: Vec<Zombie>,
}

/// All processes below these, themselves first, each after its parent, without those that have ended.
pub(super) fn living(roots: &[i32]) -> Vec<i32> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut todo: VecDeque<i32> = roots.iter().copied().collect();
    while let Some(pid) = todo.pop_front() {
        if seen.insert(pid) && lives(pid) {
            found.push(pid);
            todo.extend(procfs::children(pid).unwrap_or_default());
        }
    }
    found
}

/// It runs, or another thread of it does than its first.
fn lives(pid: i32) -> bool {
    procfs::stat::read(pid).is_ok_and(|s| !s.state.is_ended() || s.num_threads > 1)
}

/// Looks at processes that all stand still.
pub(super) fn kinship(all: &[Survey]) -> Step<Kinship> {
    let inner: HashMap<i32, i32> = all.iter().map(|s| (s.pid, s.inner_pid())).collect();
    let mut kinship = Kinship::default();
    for s in all {
        let parent = procfs::stat::read(s.pid)?.ppid;
        kinship.parents.push(inner.get(&parent).copied().unwrap_or(0));
        for child in procfs::children(s.pid)?.into_iter().filter(|c| !inner.contains_key(c)) {
            kinship.zombies.push(zombie(child, s)?);
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
        comm: stat.comm.into(),
    })
}

fn unfrozen(pid: i32, stat: &Stat, parent: &Survey) -> Error {
    let object = format!("child process {pid} ({})", stat.comm.escape_ascii());
    let (why, remedy) = ("it came while the others were stopped, and cannot be", "they run on as before; try again");
    Error::new(Kind::Refused, parent.attempted.clone(), object, why, remedy)
}

/// What a process shares with its parent that is no thread of it, as vfork(2) and clone(2) can: none of it is kept yet.
pub(super) fn shared_with_parent(all: &[Survey]) -> Vec<Reason> {
    const SHARED: [(Resource, &str); 4] = [
        (Resource::Vm, "its memory (CLONE_VM, or it is in vfork)"),
        (Resource::Files, "its descriptors (CLONE_FILES)"),
        (Resource::Fs, "its working directory and umask (CLONE_FS)"),
        (Resource::Sighand, "its signal handlers (CLONE_SIGHAND)"),
    ];
    let members: HashSet<i32> = all.iter().map(|s| s.pid).collect();
    let mut reasons = Vec::new();
    for s in all.iter().filter(|s| members.contains(&s.stat.ppid)) {
        let with = |(what, words): &(Resource, &str)| {
            let shares = sys::kcmp::shares(s.stat.ppid, s.pid, *what).unwrap_or(false);
            let why = format!("it shares {words} with its parent, PID {}, which is not kept yet", s.stat.ppid);
            shares.then(|| {
                Reason::new(s.describe(), why, "start it by fork, or checkpoint when it has executed a program")
            })
        };
        reasons.extend(SHARED.iter().filter_map(with).next());
    }
    reasons
}
