//! Threads that leave the blob through their own frames, which is many times faster than giving each its registers by
//! ptrace. What has to be known before the blob can go is that they are out of it.
use super::raw;
use super::tasks::{Task, Tasks};
use crate::{restart, Error, Result};
use std::time::{Duration, Instant};

/// A thread that computes is never seen asleep; after this long it is stopped and looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// Longest wait for a thread to get a CPU.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until these threads of the process are out of the blob (address, bytes).
pub fn wait_out(tasks: &mut Tasks, tids: &[i32], blob: (u64, u64)) -> Result<()> {
    let began = Instant::now();
    let mut todo = tids.to_vec();
    while !todo.is_empty() {
        todo.retain(|tid| !seen_outside(tasks.pid, *tid, blob));
        if began.elapsed() > GLANCE {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    for tid in todo {
        while !is_outside(tasks, tid, blob)? {
            if began.elapsed() > LIMIT {
                return Err(Error::Stuck { tid, seconds: LIMIT.as_secs(), state: "leaving the blob".into() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Whether it sleeps outside the blob, or has ended: by /proc/PID/task/TID/syscall, whose last word is the address at which
/// it entered the kernel, and which says "running" of one that has no such address now.
fn seen_outside(pid: i32, tid: i32, blob: (u64, u64)) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) else { return true };
    let last =
        text.trim_end().rsplit(' ').next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok());
    last.is_some_and(|rip| !(blob.0..blob.0 + blob.1).contains(&rip))
}

/// The same, by stopping it for a moment.
fn is_outside(tasks: &mut Tasks, tid: i32, blob: (u64, u64)) -> Result<bool> {
    let gone = |e: Error| if matches!(e, Error::Died { .. }) { Ok(true) } else { Err(e) };
    if let Err(e) = raw::seize(tid) {
        return gone(e);
    }
    tasks.all.insert(tid, Task::seized());
    let looked = look(tasks, tid, blob);
    tasks.all.remove(&tid);
    looked.or_else(gone)
}

fn look(tasks: &mut Tasks, tid: i32, blob: (u64, u64)) -> Result<bool> {
    raw::interrupt(tid)?;
    tasks.wait_stop(tid)?;
    let regs = raw::regs(tid)?;
    // what our stop would have ended with EINTR is issued again
    let again = restart::for_thaw(&regs, false);
    if again != regs {
        raw::set_regs(tid, &again)?;
    }
    raw::detach(tid, 0)?;
    Ok(!(blob.0..blob.0 + blob.1).contains(&regs.rip))
}
