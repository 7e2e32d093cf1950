//! Processes whose first thread has ended while others run (main has called pthread_exit). The first is a zombie as long as there are
//! others: it has no memory, files, directories or namespaces any more, and what `/proc/PID` says of them is nothing. They are the other threads', and
//! `/proc/TID` of any of these says what `/proc/PID` would. So they are looked at by one of them, by whatever calls this module is asked.
use super::{stat, tasks, Pid};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Whether there is any: else nothing has to be looked up.
static ANY: AtomicBool = AtomicBool::new(false);
/// The thread by which each is looked at.
static BY: RwLock<BTreeMap<Pid, Pid>> = RwLock::new(BTreeMap::new());

/// Looks whether a process's first thread has ended while others run: from here on, and until the next look, it is looked at by one of those.
/// Whether it is so.
pub fn has_ended(pid: Pid) -> bool {
    note(pid, stat::read(pid).ok().as_ref())
}

/// The same of one that has just been looked at.
pub fn note(pid: Pid, now: Option<&stat::Stat>) -> bool {
    let ended = now.is_some_and(|s| s.state.is_ended() && s.num_threads > 1);
    let by = if ended { living(pid) } else { None };
    if by.is_some() || ANY.load(Ordering::Acquire) {
        let mut all = BY.write().unwrap_or_else(PoisonError::into_inner);
        match by {
            Some(by) => drop(all.insert(pid, by)),
            None => drop(all.remove(&pid)),
        }
        ANY.store(!all.is_empty(), Ordering::Release);
    }
    by.is_some()
}

/// By which task a process is looked at: its first thread, if that has not ended.
pub fn by(pid: Pid) -> Pid {
    if !ANY.load(Ordering::Acquire) {
        return pid;
    }
    let known = BY.read().unwrap_or_else(PoisonError::into_inner).get(&pid).copied();
    match known {
        // it may end, too
        Some(tid) if !lives(pid, tid) => living(pid).unwrap_or(pid),
        Some(tid) => tid,
        None => pid,
    }
}

fn lives(pid: Pid, tid: Pid) -> bool {
    stat::read_task(pid, tid).is_ok_and(|s| !s.is_exiting() && !s.state.is_ended() && !s.is_io_worker())
}

/// The oldest thread that has not ended.
fn living(pid: Pid) -> Option<Pid> {
    tasks(pid).ok()?.into_iter().find(|tid| lives(pid, *tid))
}
