//! Threads in strict seccomp mode (seccomp(2)). The kernel ends one for any call but read, write, exit and rt_sigreturn: it looks at the mode as the call is
//! entered, and lets everything pass only as long as a tracer that may do so keeps that off (PTRACE_O_SUSPEND_SECCOMP). Should the tracer be killed, a thread that
//! is about to be looked at ends. So as little as can be is called in one:
//!
//! - It makes calls of ours one by one, each begun as an `rt_sigreturn` that it may make ([`call`]), and then stands still with its own registers. It is never
//!   sent into the blob.
//! - Another thread serves. Where all are strict, one makes a thread for us ([`helper`]), which has the same mode: if that ends, nobody is harmed.
use super::enter::{call_regs, name_offset, ALL_SIGNALS};
use super::raw;
use super::stops::STOP_LIMIT;
use super::tasks::{Task, Tasks};
use super::{EntryPlan, VisitPlace};
use crate::inject::MAPPING_NAME;
use crate::mem::RemoteMem;
use crate::sigframe::{self, Regs};
use crate::{procfs, Error, Result};
use std::io;

/// Of /proc/PID/status, "Seccomp".
const STRICT: u32 = 1;
/// What the helper shares: all that threads do. CLONE_PTRACE: it is traced from its first instruction, by the same options.
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PTRACE;
/// Bytes of a call in a program of calls, its kinds of arguments, and its arguments.
const CALL: usize = size_of::<wire::Call>();
const KINDS: usize = std::mem::offset_of!(wire::Call, kinds);
const ARGS: usize = std::mem::offset_of!(wire::Call, args);

/// Notes which threads are strict; all stand still. Whether any is.
pub(super) fn mark(tasks: &mut Tasks) -> bool {
    let pid = tasks.pid;
    let is = |tid: i32| procfs::status::read_task(pid, tid).is_ok_and(|s| s.seccomp == Some(STRICT));
    tasks.all.iter_mut().for_each(|(tid, t)| t.strict = is(*tid));
    tasks.all.values().any(|t| t.strict)
}

/// This process is to be the last that the kernel kills when memory is short. Who may not say that (it takes CAP_SYS_RESOURCE) is where it was.
pub(super) fn not_for_the_oom_killer() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Who serves, if that may be chosen: not a strict thread, if there is another.
pub(super) fn server(tasks: &Tasks, first: i32) -> i32 {
    let is_strict = |tid: i32| tasks.all.get(&tid).is_some_and(|t| t.strict);
    let other = || tasks.all.iter().find(|(_, t)| !t.strict && t.stopped).map(|(tid, _)| *tid);
    if is_strict(first) {
        other().unwrap_or(first)
    } else {
        first
    }
}

/// Makes one system call in a stopped strict thread; its emergency frame is at `frame`. What it enters is an rt_sigreturn, by which it would go on where it was:
/// only there it becomes another call, so that a tracer that ends before or after that harms nobody.
pub(super) fn call(tasks: &mut Tasks, tid: i32, plan: &EntryPlan, frame: u64, nr: i64, a: [u64; 6]) -> Result<i64> {
    let Some(t) = tasks.all.get_mut(&tid) else {
        return Err(Error::Died { doing: crate::syscalls::name(nr), pid: tasks.pid });
    };
    // as if `ret` had taken the frame's first word
    let begin = call_regs(&t.regs, plan.syscall_ret, frame + 8, libc::SYS_rt_sigreturn, [0; 6]);
    raw::set_regs(tid, &begin)?;
    raw::set_sigmask(tid, ALL_SIGNALS)?;
    tasks.until_syscall(tid)?;
    let at_entry = raw::regs(tid)?;
    let wanted = call_regs(&at_entry, at_entry.rip, frame, nr, a);
    raw::set_regs(tid, &Regs { rax: at_entry.rax, orig_rax: nr as u64, eflags: at_entry.eflags, ..wanted })?;
    tasks.until_syscall(tid)?;
    Ok(raw::regs(tid)?.rax as i64)
}

/// A strict thread's visit: its calls, whose results go where it would have put them itself, then its own registers again. Its emergency frame is at `frame`.
pub(super) fn visit(
    tasks: &mut Tasks,
    mem: &RemoteMem,
    tid: i32,
    plan: &EntryPlan,
    frame: u64,
    at: VisitPlace,
) -> Result<()> {
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    let mut results: Vec<i64> = Vec::with_capacity(plan.visit_calls.len() / CALL);
    for c in plan.visit_calls.chunks_exact(CALL) {
        let arg = |k: usize| {
            let v = word(&c[ARGS + k * 8..][..8]);
            match c[KINDS + k] {
                wire::ARG_BUF => at.buf + v,
                wire::ARG_RET => results.get(v as usize).map_or(0, |r| *r as u64),
                _ => v,
            }
        };
        let args = std::array::from_fn(arg);
        let nr = u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        super::enter::strict_call(tasks, tid, plan, frame, i64::from(nr), args).map(|r| results.push(r))?;
    }
    mem.write(at.results, &results.iter().flat_map(|r| r.to_le_bytes()).collect::<Vec<u8>>())?;
    as_it_was(tasks, tid)
}

/// From the exit of a call of ours to a stop from which the kernel restarts its own, with its own registers.
fn as_it_was(tasks: &mut Tasks, tid: i32) -> Result<()> {
    tasks.bring_to_stop(&[tid])?;
    tasks.cure(tid)
}

/// Where the helper's frame lies in the scratch of the thread that makes it, behind that one's frame and the mapping's name.
fn helpers_frame(tasks: &Tasks, tid: i32) -> u64 {
    const ALIGN: u64 = 64;
    (name_offset(tasks, tid) + MAPPING_NAME.len() as u64 + 1).next_multiple_of(ALIGN)
}

/// Bytes of that scratch.
pub(super) fn scratch(tasks: &Tasks, tid: i32) -> u64 {
    helpers_frame(tasks, tid) + name_offset(tasks, tid)
}

/// Has a strict thread, whose frame is in the scratch, make the one that serves, and stand still again with its own registers. All that the new one can go on with
/// by itself is its end.
pub(super) fn helper(tasks: &mut Tasks, mem: &RemoteMem, tid: i32, plan: &EntryPlan) -> Result<i32> {
    let gone = || Error::Died { doing: "clone".into(), pid: tid };
    let at = tasks.borrowed.as_ref().map(|b| b.at).ok_or_else(gone)?;
    let frame = at + helpers_frame(tasks, tid);
    let t = tasks.all.get(&tid).ok_or_else(gone)?;
    let end = call_regs(&t.regs, plan.syscall_ret, frame, libc::SYS_exit, [0; 6]);
    mem.write(frame, &sigframe::build(frame, plan.sigreturn, &end, ALL_SIGNALS, &t.xstate))?;
    tasks.making = true;
    let made = super::enter::strict_call(tasks, tid, plan, at, libc::SYS_clone, [THREAD as u64, frame, 0, 0, 0, 0]);
    let made = made.and_then(|r| match r {
        ..0 => {
            let source = io::Error::from_raw_os_error(-r as i32);
            Err(Error::Inside { call: "clone".into(), pid: tid, source })
        }
        _ => arrived(tasks),
    });
    tasks.making = false;
    let helper = made?;
    let (xstate, regs) = (raw::xstate(helper)?, end);
    if let Some(t) = tasks.all.get_mut(&helper) {
        *t = Task { stopped: true, helper: true, regs, sigmask: ALL_SIGNALS, xstate, ..Task::seized() };
    }
    raw::suspend_seccomp(helper, false)?;
    as_it_was(tasks, tid)?;
    if let Some(b) = tasks.borrowed.as_mut() {
        b.tid = helper;
    }
    Ok(helper)
}

/// Waits for the thread that was made for us. It has the scratch until then, so it is not given up before it has come or its process has ended.
fn arrived(tasks: &mut Tasks) -> Result<i32> {
    loop {
        tasks.pump()?;
        if let Some((tid, _)) = tasks.all.iter().find(|(_, t)| t.helper && t.stopped) {
            return Ok(*tid);
        }
        tasks.wait_news(STOP_LIMIT);
    }
}

/// Whether a thread that was made for an earlier tracer, which was killed, has not ended yet: its way out lies below the stack of another, where our frame would
/// be. It has that one's place of thread-local data, and all signals blocked.
pub(super) fn left_behind(tasks: &Tasks) -> bool {
    const BLOCKED: u64 = ALL_SIGNALS & !(1 << (libc::SIGKILL - 1)) & !(1 << (libc::SIGSTOP - 1));
    let is_helper = |(tid, t): (&i32, &Task)| {
        let mut others = tasks.all.iter().filter(|(o, _)| *o != tid);
        t.strict && t.sigmask | !BLOCKED == ALL_SIGNALS && others.any(|(_, o)| o.regs.fs_base == t.regs.fs_base)
    };
    tasks.all.iter().any(is_helper)
}

/// Lets the helper end, which is all that is left for it to do: nobody is to see it.
pub(super) fn end(tasks: &mut Tasks, helper: i32) -> Result<()> {
    tasks.resume(helper)?;
    tasks.wait_stop(helper)
}
