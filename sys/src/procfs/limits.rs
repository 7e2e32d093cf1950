//! `/proc/PID/limits` (proc_pid_limits(5)). Reading another user's limits with prlimit(2) needs
//! CAP_SYS_RESOURCE; this file needs nothing.

use super::bytes::{dec, lines, Words};
use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "limits";

/// How many there are (RLIM_NLIMITS).
pub const COUNT: usize = 16;

/// Names in the order of RLIMIT_CPU (0) .. RLIMIT_RTTIME (15) (fs/proc/base.c `lnames`).
const NAMES: [&str; COUNT] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// One limit in the unit of getrlimit(2); `u64::MAX` (RLIM_INFINITY) is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Soft limit (rlim_cur).
    pub soft: u64,
    /// Hard limit (rlim_max).
    pub hard: u64,
}

/// All limits; the index is the number of RLIMIT_*.
pub type Limits = [Limit; COUNT];

/// Threads that this machine may have (/proc/sys/kernel/threads-max, proc(5)).
pub fn threads_max() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/kernel/threads-max").ok()?.trim().parse().ok()
}

fn value(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" {
        Some(u64::MAX)
    } else {
        dec(word)
    }
}

/// Parses the table. A limit we have no name for is ignored; one that is missing is an error.
pub fn parse(text: &[u8]) -> std::result::Result<Limits, ParseError> {
    let mut found = [None; COUNT];
    for (number, line) in lines(text) {
        let row = NAMES
            .iter()
            .zip(found.iter_mut())
            .find_map(|(name, slot)| Some((line.strip_prefix(name.as_bytes())?, slot)));
        let Some((rest, slot)) = row.filter(|(rest, _)| rest.starts_with(b" ")) else {
            continue;
        };
        let mut words = Words::new(rest);
        let mut next = || words.next().and_then(value);
        let limit = next().zip(next()).map(|(soft, hard)| Limit { soft, hard });
        let fail = || ParseError::new(FILE, number, "expected a soft and a hard limit", line);
        *slot = Some(limit.ok_or_else(fail)?);
    }
    let mut limits = Limits::default();
    for ((limit, value), name) in limits.iter_mut().zip(found).zip(NAMES) {
        *limit = value.ok_or_else(|| ParseError::missing(FILE, name))?;
    }
    Ok(limits)
}

/// Reads `/proc/PID/limits`.
pub fn read(pid: Pid) -> Result<Limits> {
    read_with(&path_of(pid, FILE), parse)
}
