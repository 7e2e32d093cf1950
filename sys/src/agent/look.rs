//! Whether a process has an agent that can be talked to, and what each thread is doing before it is called.
use crate::mem::RemoteMem;
use crate::procfs::maps::VmaKind;
use crate::procfs::{self, status::Status, State};
use crate::seccomp::{self, needs, Judge};
use std::collections::BTreeMap;
use std::fmt;
use std::mem::offset_of;
use std::time::{Duration, Instant};
use wire::agent::{AgentPage, AGENT_DISPATCHED, AGENT_MAGIC, AGENT_PAGE, AGENT_SIGNAL, AGENT_SMALL_STACK, NO_VM_READV};
use wire::interrupted::fingerprint;

/// Why the agent's door is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is none: not launched with one, a static program, one that ignores LD_PRELOAD.
    None,
    /// It is of another version of Dormouse.
    Version(u32),
    /// Its signal is not caught any more.
    Uncaught,
    /// The process is stopped: no signal reaches it.
    Stopped,
    /// What an earlier recorder worked in is still there: a thread is leaving it, or attach left it.
    Leaving,
    /// What filters restrict it is not known, and they could kill it for the calls that its handler makes.
    Seccomp(String),
    /// Its filters do not let these calls through.
    Filtered(String),
    /// A thread of it has, or had, its system calls dispatched to itself.
    Dispatched,
    /// This thread may stand where there is no room for a signal's frame.
    Stack(i32),
    /// This thread has memory protection keys where a signal needs memory without.
    Keyed(i32),
    /// This thread blocks its signal.
    Blocks(i32),
    /// Another process has its descriptors or memory, too.
    Shares,
    /// Signals wait for it, which only ptrace can look at.
    Pending,
    /// A thread did not come in time.
    Late(i32),
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Absent::None => write!(
                f,
                "it has no agent: it was not started by launcher (or with --door attach), or is a program that ignores LD_PRELOAD"
            ),
            Absent::Version(v) => write!(f, "its agent speaks version {v}, this build {}", wire::WIRE_VERSION),
            Absent::Uncaught => write!(f, "its agent's signal ({AGENT_SIGNAL}) has no handler any more"),
            Absent::Stopped => write!(f, "it is stopped, and its agent is reached by a signal"),
            Absent::Leaving => write!(f, "a thread is just leaving an earlier checkpoint that was broken off, or its mapping was left: try again in a moment"),
            Absent::Seccomp(why) => write!(f, "seccomp restricts it, and its agent's calls could kill it: {why}"),
            Absent::Filtered(calls) => write!(f, "its seccomp filters do not let through what its agent calls: {calls}"),
            Absent::Dispatched => write!(f, "its system calls are dispatched to itself (prctl PR_SET_SYSCALL_USER_DISPATCH), or were, and its agent's may be none"),
            Absent::Stack(tid) => write!(f, "thread {tid} has no alternate signal stack of its agent's, and may stand where there is no room for a signal"),
            Absent::Keyed(tid) => write!(f, "the stack or thread-local storage of thread {tid} has a memory protection key, and could not be used in a signal"),
            Absent::Shares => write!(f, "another process has its descriptors or memory, too (CLONE_FILES, CLONE_VM), and may run while its agent connects"),
            Absent::Blocks(tid) => write!(f, "thread {tid} blocks its agent's signal ({AGENT_SIGNAL})"),
            Absent::Pending => write!(f, "more signals of its own are pending than the agent can look at"),
            Absent::Late(tid) => write!(f, "thread {tid} did not come into the agent in time"),
            Absent::Other(what) => write!(f, "{what}"),
        }
    }
}

/// A process that can be called, as it was seen.
#[derive(Debug)]
pub(super) struct Present {
    /// What its agent is told of filters ([`wire::agent::AgentInfo::filters`]).
    pub filters: u32,
    /// Its status, which is its first thread's, too.
    pub status: Status,
    /// Its memory; of another program, should it have executed one since, nothing can be read by that.
    pub mem: RemoteMem,
}

/// Longest that a thread takes which leaves what the recorder before worked in, and which nobody tells of.
const LEAVES: Duration = Duration::from_secs(1);

/// Looks whether a process can be called; if a thread is just leaving, whether it can when that has left. Changes nothing.
pub fn check(pid: i32) -> Result<(), Absent> {
    let until = Instant::now() + LEAVES;
    loop {
        match present(pid) {
            Err(Absent::Leaving) if Instant::now() < until => super::quiesce::glance(),
            there => return there.map(drop),
        }
    }
}

/// Looks whether a process can be called, and how it is then. Changes nothing.
pub(super) fn present(pid: i32) -> Result<Present, Absent> {
    let mem = RemoteMem::open(pid).map_err(|_| Absent::None)?;
    let page = page(&mem).ok_or(Absent::None)?;
    if page.version != wire::WIRE_VERSION as u32 {
        return Err(Absent::Version(page.version));
    }
    if page.flags & AGENT_DISPATCHED != 0 {
        return Err(Absent::Dispatched);
    }
    let status = procfs::status::read(pid).map_err(|e| Absent::Other(e.to_string()))?;
    if status.state == State::Stopped {
        return Err(Absent::Stopped);
    }
    let filters = filters(&mem, &status)?;
    if status.sig_caught & signal_bit() == 0 {
        return Err(Absent::Uncaught);
    }
    // where the handler is to map its region: it would find no room, and leave without a word
    if maps_region(&mem) {
        return Err(Absent::Leaving);
    }
    Ok(Present { filters, status, mem })
}

/// That its seccomp filters are known, and let its agent's calls through.
fn filters(mem: &RemoteMem, status: &Status) -> Result<u32, Absent> {
    if is_strict(status) {
        return Err(Absent::Seccomp("its mode is strict".into()));
    }
    let kept = seccomp::kept_in(Some(mem), status.pid, status.seccomp != Some(2))
        .map_err(|why| Absent::Seccomp(why.to_string()))?;
    let judge = Judge::new(kept.chains.all(), false);
    let calls = [needs::essential(), needs::conversation(), needs::agent()].concat();
    let refused = judge.refused(calls);
    if !refused.is_empty() {
        return Err(Absent::Filtered(refused.join(", ")));
    }
    let may_read = judge.refused(needs::agent_may()).is_empty();
    Ok(kept.begun | if may_read { 0 } else { NO_VM_READV })
}

/// Whether a process that its user may not look at (PR_SET_DUMPABLE 0) may be called all the same, by somebody who knows that it has an agent: it is ours,
/// catches the signal (an agent that must not be called any more sees to it that it does not), and nothing that can be seen from outside is against it.
pub fn may_open(pid: i32) -> Result<(), Absent> {
    // SAFETY: takes no argument.
    let me = unsafe { libc::geteuid() };
    let denied = |e: &crate::Error| matches!(e.errno(), Some(libc::EACCES | libc::EPERM));
    let fit = |s: &Status| {
        [s.uid.real, s.uid.effective, s.uid.saved].iter().all(|u| *u == me)
            && s.state != State::Stopped
            && s.seccomp.unwrap_or(0) == 0
    };
    match procfs::status::read(pid) {
        Ok(s) if RemoteMem::open(pid).is_err_and(|e| denied(&e)) && fit(&s) => match s.sig_caught & signal_bit() {
            0 => Err(Absent::Uncaught),
            _ => Ok(()),
        },
        _ => Err(Absent::None),
    }
}

/// Whether a serving thread's region is there: a thread is inside, or about to leave. (What attach leaves at the same place begins with code.)
pub fn is_leaving(pid: i32) -> bool {
    procfs::maps::read(pid).is_ok_and(|maps| maps.iter().any(|v| v.start == wire::HOME && !v.perms.exec))
}

/// Whether something is mapped where a serving thread maps its region. False if the process has gone, or may not be looked at.
pub fn has_region(pid: i32) -> bool {
    RemoteMem::open(pid).is_ok_and(|mem| maps_region(&mem))
}

/// The same of memory that is open.
pub(super) fn maps_region(mem: &RemoteMem) -> bool {
    mem.read(wire::HOME, &mut [0]).is_ok()
}

/// Whether its page says by now that a thread has its system calls dispatched to itself: a signal of ours does not come there any more.
pub(super) fn is_dispatched(pid: i32) -> bool {
    RemoteMem::open(pid).ok().and_then(|mem| page(&mem)).is_some_and(|p| p.flags & AGENT_DISPATCHED != 0)
}

/// Whether there is an agent in memory that was opened earlier: of a program that has executed another one it is gone.
pub(super) fn has_page(mem: &RemoteMem) -> bool {
    page(mem).is_some()
}

/// What the agent's page says.
struct Page {
    version: u32,
    flags: u32,
    pid: i32,
    covered: u32,
}

/// None: there is no such page.
fn page(mem: &RemoteMem) -> Option<Page> {
    let mut b = [0; size_of::<AgentPage>()];
    mem.read(AGENT_PAGE, &mut b).ok()?;
    let word = |at: usize| b[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    b.starts_with(&AGENT_MAGIC).then(|| Page {
        version: word(offset_of!(AgentPage, version)),
        flags: word(offset_of!(AgentPage, flags)),
        pid: word(offset_of!(AgentPage, pid)) as i32,
        covered: word(offset_of!(AgentPage, covered)),
    })
}

/// Whether each of these threads, of `threads` in all, has room for the signal's frame: an alternate stack, or a stack that it is seen waiting on.
pub(super) fn room(pid: i32, mem: &RemoteMem, seen: &BTreeMap<i32, Doing>, threads: usize) -> Result<(), Absent> {
    let page = page(mem).ok_or(Absent::None)?;
    let other = |e: procfs::ReadError| Absent::Other(e.to_string());
    let counted = threads == 1 || procfs::status::read(pid).map_err(other)?.ns_tgid.last() == Some(&page.pid);
    if counted && page.covered as usize + 1 >= threads && page.flags & AGENT_SMALL_STACK == 0 {
        return Ok(());
    }
    let maps = procfs::maps::read(pid).map_err(other)?;
    let has_room = |sp: u64| {
        let stack = maps.iter().find(|v| (v.start..v.end).contains(&sp));
        stack.is_some_and(|v| v.perms.write && (sp - v.start >= ROOM || v.kind() == VmaKind::Stack))
    };
    match seen.iter().find(|(_, d)| d.call < 0 || !has_room(d.sp)) {
        Some((tid, _)) => Err(Absent::Stack(*tid)),
        None => Ok(()),
    }
}

/// Bytes that the signal's frame and the handler have room in.
const ROOM: u64 = 16 << 10;

/// The agent's signal in a mask.
pub(super) fn signal_bit() -> u64 {
    1 << (AGENT_SIGNAL - 1)
}

/// Whether a thread blocks the agent's signal at the moment; an error if it has ended.
pub(super) fn blocks(pid: i32, tid: i32) -> procfs::Result<bool> {
    Ok(blocks_then(&procfs::status::read_task(pid, tid)?))
}

/// Whether it is in strict seccomp mode.
fn is_strict(s: &Status) -> bool {
    s.seccomp == Some(1)
}

/// Why a thread that does not come never will: it has gone into strict seccomp mode since it was looked at.
pub(super) fn never_comes(pid: i32, tid: i32) -> Option<Absent> {
    strict_then(&procfs::status::read_task(pid, tid).ok()?, tid)
}

/// The same of what was read of it.
pub(super) fn strict_then(s: &Status, tid: i32) -> Option<Absent> {
    is_strict(s).then(|| Absent::Seccomp(format!("the mode of thread {tid} is strict")))
}

/// Whether it did when that was read.
pub(super) fn blocks_then(s: &Status) -> bool {
    s.sig_blocked & signal_bit() != 0
}

/// What a thread is seen doing. All zero but for a call of -1: it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doing {
    /// The system call that it is in, or -1.
    pub call: i32,
    /// Its instruction pointer.
    pub pc: u64,
    /// Of stack pointer and arguments: [`fingerprint`].
    pub print: u64,
    /// Stack pointer.
    pub sp: u64,
}

impl Doing {
    /// Nothing that is known.
    pub const UNKNOWN: Doing = Doing { call: -1, pc: 0, print: 0, sp: 0 };
}

/// Looks at a thread: /proc/PID/task/TID/syscall (proc(5)).
pub(super) fn doing(pid: i32, tid: i32) -> Doing {
    procfs::task_syscall(pid, tid, parse).ok().flatten().unwrap_or(Doing::UNKNOWN)
}

/// Its stack pointer; 0: it runs.
pub(crate) fn stack(pid: i32, tid: i32) -> u64 {
    doing(pid, tid).sp
}

/// Whether it waits in a call of 32-bit code (`int 0x80`): its agent could not take that up again.
pub(super) fn calls_in_32_bit(mem: &RemoteMem, seen: &Doing) -> bool {
    let mut code = [0; 2];
    seen.call >= 0 && seen.pc > 2 && mem.read(seen.pc - 2, &mut code).is_ok() && code == [0xcd, 0x80]
}

fn parse(text: &str) -> Option<Doing> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [nr, args @ .., sp, pc] = words.as_slice() else { return None };
    let hex = |w: &str| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok();
    let args: Vec<u64> = args.iter().filter_map(|w| hex(w)).collect();
    let args: [u64; 6] = args.try_into().ok()?;
    let (call, sp, pc): (i32, u64, u64) = (nr.parse().ok()?, hex(sp)?, hex(pc)?);
    (call >= 0).then(|| Doing { call, pc, print: fingerprint(sp, &args), sp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_is_doing() {
        let seen = parse("232 0x4 0x7ffd10 0x1 0xffffffff 0x0 0x8 0x7ffd00 0x7f0112345678\n");
        let print = fingerprint(0x7ffd00, &[4, 0x7ffd10, 1, 0xffff_ffff, 0, 8]);
        assert_eq!(seen, Some(Doing { call: 232, pc: 0x7f01_1234_5678, print, sp: 0x7ffd00 }));
        for nothing in ["running\n", "-1 0x7ffd00 0x7f0112345678\n", ""] {
            assert_eq!(parse(nothing), None, "{nothing}");
        }
    }
}
