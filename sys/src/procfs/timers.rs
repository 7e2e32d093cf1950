//! `/proc/PID/timers`: POSIX timers (proc_pid_timers(5), fs/proc/base.c `show_timer`). What remains on
//! them only timer_gettime(2) inside the process tells.

use super::bytes::{hex, int32, lines, split_at_byte, trim};
use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "timers";

/// How a timer tells (sigev_notify).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// SIGEV_SIGNAL
    Signal,
    /// SIGEV_NONE
    None,
    /// SIGEV_THREAD: only libc knows it; the kernel shows what it was told
    Thread,
}

/// One timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// The kernel's id (timer_t of the system call).
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// sigev_notify without SIGEV_THREAD_ID.
    pub notify: Notify,
    /// SIGEV_THREAD_ID: `target` is a TID.
    pub to_thread: bool,
    /// PID or TID signalled, as the reader's namespace numbers it; 0 if it has ended.
    pub target: Pid,
    /// CLOCK_*; negative for a process's or thread's CPU clock.
    pub clock_id: i32,
}

/// Parses the list. The kernel's order (6.18: newest first) means nothing.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Timer>, ParseError> {
    let mut timers: Vec<Timer> = Vec::new();
    for (number, line) in lines(text) {
        let fail = |what| ParseError::new(FILE, number, what, line);
        let Some((key, value)) = split_at_byte(line, b':') else {
            continue;
        };
        let value = trim(value);
        if key == b"ID" {
            let id = int32(value).ok_or_else(|| fail("expected a timer id"))?;
            timers.push(Timer {
                id,
                signal: 0,
                value: 0,
                notify: Notify::Signal,
                to_thread: false,
                target: 0,
                clock_id: 0,
            });
            continue;
        }
        if !matches!(key, b"signal" | b"notify" | b"ClockID") {
            continue;
        }
        let timer = timers.last_mut().ok_or_else(|| fail("a field before any ID"))?;
        field(timer, key, value).ok_or_else(|| fail("unexpected value"))?;
    }
    Ok(timers)
}

fn field(timer: &mut Timer, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        b"signal" => {
            let (signal, sigval) = split_at_byte(value, b'/')?;
            timer.signal = int32(signal)?;
            // A null pointer is printed as "(null)" by some kernels.
            timer.value = if sigval == b"(null)" { 0 } else { hex(trim(sigval))? };
        }
        b"notify" => {
            let (how, target) = split_at_byte(value, b'/')?;
            timer.notify = match how {
                b"signal" => Notify::Signal,
                b"none" => Notify::None,
                b"thread" => Notify::Thread,
                _ => return None,
            };
            let (kind, pid) = split_at_byte(target, b'.')?;
            timer.to_thread = kind == b"tid";
            timer.target = int32(pid)?;
        }
        _ => timer.clock_id = int32(value)?,
    }
    Some(())
}

/// Reads `/proc/PID/timers` (needs CONFIG_CHECKPOINT_RESTORE: ENOENT without).
pub fn read(pid: Pid) -> Result<Vec<Timer>> {
    read_with(&path_of(pid, FILE), parse)
}
