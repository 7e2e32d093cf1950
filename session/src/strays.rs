//! Processes of a session that are neither its program nor below it: those that its command left behind (double fork, daemon(3)) and its supervisor has adopted.
use crate::Live;

/// Their PIDs, ascending: the children of its supervisor, or of the init of its namespace, but for the program. What is below any of them is the engine's to find.
pub(crate) fn of(live: &Live) -> sys::procfs::Result<Vec<i32>> {
    let Some(supervisor) = live.supervisor.as_ref().filter(|s| s.lives()).map(|s| s.pid) else {
        return Ok(Vec::new());
    };
    let parent = live.init.as_ref().map_or(supervisor, |init| init.pid);
    // one that ends during a look may hide another from it (proc_tid_children(5)): in the freeze, when this is asked again, hardly any but ours can end
    let look = || match sys::procfs::children(parent) {
        Err(e) if e.is_gone() => Ok(Vec::new()),
        children => children,
    };
    let mut all: Vec<i32> = look()?.into_iter().chain(look()?).collect();
    all.sort_unstable();
    all.dedup();
    // this one is a recorder, or ctl
    let me = std::process::id() as i32;
    all.retain(|pid| *pid != live.program.pid && *pid != me);
    // In this order: one that is ending, as the snapshot child of the checkpoint before may be, has no memory any more to be known by.
    all.retain(|pid| !is_ours(*pid, supervisor) && !sys::procfs::is_ending(*pid));
    Ok(all)
}

/// A recorder or its tracer, which are forks of the supervisor (what it executes has another stack); or the snapshot child of a recorder that was killed,
/// which ends when it has seen that.
fn is_ours(pid: i32, supervisor: i32) -> bool {
    let stack = |pid: i32| sys::procfs::stat::read(pid).map_or(0, |s| s.start_stack);
    let its = stack(pid);
    its != 0 && its == stack(supervisor) || sys::agent::has_region(pid)
}
