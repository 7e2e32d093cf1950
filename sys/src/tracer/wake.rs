//! The end of a restore: every thread, parked in the blob, is stopped there and given the state in which it goes on. So none of
//! the program's calls is ever interrupted by us, none of its instructions runs before all is in place, and nobody is in
//! the blob when it goes.
use super::proto::{LastCalls, SetFilter, ThreadState};
use super::raw;
use super::tasks::Tasks;
use crate::sigframe::Regs;
use crate::{Error, Result};

/// Gives the threads `tids` their `states`; the leader, which is the first, makes the last calls, by an instruction that stays.
pub fn wake(tasks: &mut Tasks, tids: &[i32], states: &[ThreadState], last: LastCalls) -> Result<()> {
    let pid = tasks.pid;
    let mut all = tids.iter().zip(states);
    let leader =
        all.next().filter(|(tid, _)| **tid == pid && tids.len() == states.len() && tids.len() == tasks.all.len());
    let (_, leader) = leader.ok_or_else(|| Error::Unfit { what: "its threads are not those of the image".into() })?;
    tasks.stop_all()?;
    let xstate = raw::xstate(pid)?.len();
    let f = &last.filters;
    for tid in tids.iter().filter(|tid| f.suspend && (**tid == pid || !f.threads.is_empty())) {
        raw::suspend_seccomp(*tid, true)?;
    }
    last_call(tasks, pid, last.syscall, (libc::SYS_close, [last.close as u64, 0, 0]))?;
    // those for all threads come first: the kernel sets none for a thread that has others already
    let (common, own) = f.calls.split_at(f.common.min(f.calls.len()));
    for call in common {
        last_call(tasks, pid, last.syscall, *call)?;
    }
    for (i, (tid, state)) in all.enumerate() {
        for call in f.threads.get(&(i + 1)).into_iter().flatten() {
            last_call(tasks, *tid, last.syscall, *call)?;
        }
        set_state(*tid, state, xstate)?;
    }
    for call in own {
        last_call(tasks, pid, last.syscall, *call)?;
    }
    last_call(tasks, pid, last.syscall, (libc::SYS_munmap, [last.unmap.0, last.unmap.1, 0]))?;
    // from here on it can make no call of ours
    if let Some(strict) = f.strict {
        last_call(tasks, pid, last.syscall, strict)?;
    }
    match last.end {
        Some(status) => end_leader(tasks, &last, status),
        None => set_state(pid, leader, xstate),
    }
}

/// Lets the leader end, as it had when the checkpoint was made: the others stand still. It stays a zombie, and traced, so that this tracer is told when it has ended.
fn end_leader(tasks: &mut Tasks, last: &LastCalls, status: i32) -> Result<()> {
    let pid = tasks.pid;
    let exit = Regs {
        rax: libc::SYS_exit as u64,
        orig_rax: u64::MAX,
        rdi: status as u64,
        rip: last.syscall,
        ..raw::regs(pid)?
    };
    raw::set_regs(pid, &exit)?;
    // or the end of this tracer would kill all that the zombie leads
    match last.filters.suspend {
        true => raw::suspend_seccomp(pid, false)?,
        false => raw::outlive_tracer(pid)?,
    }
    tasks.resume(pid)?;
    tasks.wait_zombie(pid)?;
    tasks.all.remove(&pid);
    Ok(())
}

/// Lets every thread go. One may end all others as soon as it runs.
pub fn let_go(tasks: &mut Tasks) -> Result<()> {
    for tid in std::mem::take(&mut tasks.all).into_keys() {
        match raw::detach(tid, 0) {
            Err(Error::Died { .. }) => {}
            r => r?,
        }
    }
    Ok(())
}

/// A system call of a stopped thread, led from entry to exit.
fn last_call(tasks: &mut Tasks, tid: i32, syscall: u64, (nr, a): SetFilter) -> Result<()> {
    let r =
        Regs { rax: nr as u64, orig_rax: u64::MAX, rdi: a[0], rsi: a[1], rdx: a[2], rip: syscall, ..raw::regs(tid)? };
    raw::set_regs(tid, &r)?;
    let mut seen = 0;
    while seen < 2 {
        if let Some(t) = tasks.all.get_mut(&tid) {
            t.stopped = false;
            t.at_syscall = false;
        }
        raw::to_syscall(tid)?;
        tasks.wait_stop(tid)?;
        seen += tasks.all.get(&tid).is_some_and(|t| t.at_syscall) as u32;
    }
    let done = raw::regs(tid)?.rax as i64;
    if done != 0 {
        // a positive one of seccomp(2) is a thread that could not be brought along
        let source = std::io::Error::from_raw_os_error(if done > 0 { libc::EBUSY } else { -done as i32 });
        return Err(Error::Inside { call: crate::syscalls::name(nr), pid: tid, source });
    }
    Ok(())
}

/// `xstate`: bytes of extended state on this machine; the kernel takes no other number. What an image has beyond that is
/// in its initial state, or it would have been refused, but for rights by protection keys that nobody has.
fn set_state(tid: i32, t: &ThreadState, xstate: usize) -> Result<()> {
    let mut x = t.xstate.clone();
    x.resize(xstate, 0);
    if crate::nest::xcr0() & 1 << crate::pkru::COMPONENT == 0 {
        crate::pkru::without(&mut x);
    }
    raw::set_xstate(tid, &x)?;
    raw::set_regs(tid, &t.regs)?;
    raw::set_sigmask(tid, t.sigmask)
}
