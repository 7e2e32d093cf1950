//! Processes of a session that are neither its program nor below it: those that its command left behind (double fork, daemon(3)) and its supervisor has adopted.
use crate::{procfs, Live};

/// Their PIDs, ascending. What is below the program is the engine's to find.
pub(crate) fn of(live: &Live) -> Vec<i32> {
    let Some(supervisor) = live.supervisor.as_ref().filter(|s| s.lives()).map(|s| s.pid) else { return Vec::new() };
    let parents = procfs::Parents::look();
    let below = |pid: i32| parents.below(pid).into_iter().map(|p| p.pid);
    let mut known: Vec<i32> = below(live.program.pid).collect();
    // this one is a recorder, or ctl
    known.extend([live.program.pid, std::process::id() as i32]);
    known.extend(live.init.as_ref().map(|i| i.pid));
    let mut all: Vec<i32> = below(supervisor).filter(|pid| !known.contains(pid)).collect();
    // In this order: one that is ending, as the snapshot child of the checkpoint before may be, has no memory any more to be known by.
    all.retain(|pid| !is_ours(*pid, supervisor) && !sys::procfs::is_ending(*pid));
    all.sort_unstable();
    all
}

/// A recorder or its tracer, which are forks of the supervisor (what it executes has another stack); or the snapshot child of a recorder that was killed,
/// which ends when it has seen that.
fn is_ours(pid: i32, supervisor: i32) -> bool {
    let stack = |pid: i32| sys::procfs::stat::read(pid).map_or(0, |s| s.start_stack);
    let its = stack(pid);
    its != 0 && its == stack(supervisor) || sys::agent::has_region(pid)
}
