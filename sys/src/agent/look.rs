//! Whether a process has an agent that can be talked to, and what each thread is doing before it is called.
use crate::mem::RemoteMem;
use crate::procfs::{self, State};
use std::fmt;
use wire::agent::{AgentPage, AGENT_MAGIC, AGENT_PAGE, AGENT_SIGNAL};
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
    /// A filter could kill it for the calls that its handler makes.
    Seccomp,
    /// This thread blocks its signal.
    Blocks(i32),
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
                "it has no agent: it was not started by launcher --door agent, or is a program that ignores LD_PRELOAD"
            ),
            Absent::Version(v) => write!(f, "its agent speaks version {v}, this build {}", wire::WIRE_VERSION),
            Absent::Uncaught => write!(f, "its agent's signal ({AGENT_SIGNAL}) has no handler any more"),
            Absent::Stopped => write!(f, "it is stopped, and its agent is reached by a signal"),
            Absent::Seccomp => write!(f, "seccomp restricts it, and its agent's calls could kill it"),
            Absent::Blocks(tid) => write!(f, "thread {tid} blocks its agent's signal ({AGENT_SIGNAL})"),
            Absent::Pending => write!(f, "signals of its own are pending, which the agent cannot look at"),
            Absent::Late(tid) => write!(f, "thread {tid} did not come into the agent in time"),
            Absent::Other(what) => write!(f, "{what}"),
        }
    }
}

/// Looks whether a process can be called. Changes nothing.
pub fn present(pid: i32) -> Result<(), Absent> {
    let page = page(pid).ok_or(Absent::None)?;
    if page != wire::WIRE_VERSION as u32 {
        return Err(Absent::Version(page));
    }
    let status = procfs::status::read(pid).map_err(|e| Absent::Other(e.to_string()))?;
    if status.state == State::Stopped {
        return Err(Absent::Stopped);
    }
    if status.seccomp.unwrap_or(0) != 0 {
        return Err(Absent::Seccomp);
    }
    if status.sig_caught & signal_bit() == 0 {
        return Err(Absent::Uncaught);
    }
    Ok(())
}

/// The version that the agent's page says; None: there is no such page.
fn page(pid: i32) -> Option<u32> {
    let mut b = [0; size_of::<AgentPage>()];
    RemoteMem::open(pid).ok()?.read(AGENT_PAGE, &mut b).ok()?;
    b.starts_with(&AGENT_MAGIC).then(|| u32::from_le_bytes([b[8], b[9], b[10], b[11]]))
}

/// The agent's signal in a mask.
pub(super) fn signal_bit() -> u64 {
    1 << (AGENT_SIGNAL - 1)
}

/// Whether a thread blocks the agent's signal at the moment; an error if it has ended.
pub(super) fn blocks(pid: i32, tid: i32) -> procfs::Result<bool> {
    Ok(procfs::status::read_task(pid, tid)?.sig_blocked & signal_bit() != 0)
}

/// What a thread is seen doing: the call, the low half of its instruction pointer, and the fingerprint. /proc/PID/task/TID/syscall (proc(5)).
pub(super) fn doing(pid: i32, tid: i32) -> (i32, u32, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    parse(&text).unwrap_or((-1, 0, 0))
}

fn parse(text: &str) -> Option<(i32, u32, u64)> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [nr, args @ .., sp, pc] = words.as_slice() else { return None };
    let hex = |w: &str| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok();
    let args: Vec<u64> = args.iter().filter_map(|w| hex(w)).collect();
    let args: [u64; 6] = args.try_into().ok()?;
    let (nr, sp, pc): (i32, u64, u64) = (nr.parse().ok()?, hex(sp)?, hex(pc)?);
    (nr >= 0).then(|| (nr, pc as u32, fingerprint(sp, &args)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_is_doing() {
        let seen = parse("232 0x4 0x7ffd10 0x1 0xffffffff 0x0 0x8 0x7ffd00 0x7f0112345678\n");
        assert_eq!(seen, Some((232, 0x1234_5678, fingerprint(0x7ffd00, &[4, 0x7ffd10, 1, 0xffff_ffff, 0, 8]))));
        for nothing in ["running\n", "-1 0x7ffd00 0x7f0112345678\n", ""] {
            assert_eq!(parse(nothing), None, "{nothing}");
        }
    }
}
