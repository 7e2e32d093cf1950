//! The small questions: who exists, who descends from whom, and where it runs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::bytes::{int32, Words};
use super::{path_of, read_path, read_whole, stat, status, ParseError, Pid, ReadError, Result};

/// The numeric names in a directory, ascending.
pub(super) fn numbers_in(path: &Path) -> Result<Vec<i32>> {
    let list = || -> io::Result<Vec<i32>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(path)? {
            numbers.extend(int32(entry?.file_name().as_bytes()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    };
    list().map_err(|e| ReadError::io("list", path, e))
}

/// What a thread is doing (`/proc/PID/task/TID/syscall`, proc_pid_syscall(5)), as text.
pub fn task_syscall<T>(pid: Pid, tid: Pid, with: impl FnOnce(&str) -> T) -> Result<T> {
    read_whole(&path_of(pid, &format!("task/{tid}/syscall")), |text| with(&String::from_utf8_lossy(text)))
}

/// The TIDs of a process (`/proc/PID/task`), ascending. The list may be stale when it arrives.
pub fn tasks(pid: Pid) -> Result<Vec<Pid>> {
    use std::os::unix::fs::MetadataExt;
    let path = path_of(pid, "task");
    // two links of its own, and one for each thread (fs/proc/base.c, proc_task_getattr): of one thread there is no list to be read
    match std::fs::metadata(&path) {
        Ok(m) if m.nlink() == 2 + 1 => Ok(vec![pid]),
        _ => numbers_in(&path),
    }
}

/// Whether a thread of a process is one that the kernel has made in it for io_uring ([`stat::Stat::is_io_worker`]): none of the program's.
pub fn is_io_worker(pid: Pid, tid: Pid) -> bool {
    tid != pid && stat::read_task(pid, tid).is_ok_and(|s| s.is_io_worker())
}

/// A process has ended, or is about to and will run nothing of its own any more: SIGKILL has been taken (kernel/signal.c, complete_signal, makes it the
/// exit code at once; proc_pid_stat(5); in a ptrace stop that is the stop's signal, never this one), or each thread has PF_EXITING (flags,
/// include/linux/sched.h) or a SIGKILL that waits for it, or is gone.
pub fn is_ending(pid: Pid) -> bool {
    if stat::read(pid).is_ok_and(|s| s.exit_code == libc::SIGKILL) {
        return true;
    }
    const PF_EXITING: u32 = 4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let runs = |tid| stat::read(tid).is_ok_and(|s| s.flags & PF_EXITING == 0 && !s.is_io_worker());
    let ends = |tid| !runs(tid) || status::read(tid).is_ok_and(|s| s.sig_pending & KILLED != 0);
    ends(pid) && tasks(pid).unwrap_or_default().into_iter().all(ends)
}

/// All PIDs the caller's `/proc` shows, ascending.
pub fn pids() -> Result<Vec<Pid>> {
    numbers_in(Path::new("/proc"))
}

/// The living and zombie children of all threads of a process, ascending.
///
/// From `/proc/PID/task/*/children` (CONFIG_PROC_CHILDREN), else by asking every process for its
/// parent. Exact only while the process is frozen (proc_tid_children(5)).
pub fn children(pid: Pid) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for tid in tasks(pid)? {
        let path = path_of(pid, &format!("task/{tid}/children"));
        match read_path(&path) {
            Ok(text) => {
                for word in Words::new(&text) {
                    let what = || ParseError::new("children", 1, "expected a PID", word);
                    let child = int32(word).ok_or_else(|| ReadError::Parse { path: path.clone(), source: what() })?;
                    found.push(child);
                }
            }
            Err(e) if e.is_gone() => {
                // The thread ended, or this kernel has no such file.
                if !Path::new("/proc/thread-self/children").exists() {
                    return children_by_parent(pid);
                }
            }
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

pub(super) fn children_by_parent(pid: Pid) -> Result<Vec<Pid>> {
    let is_child = |candidate: &Pid| stat::read(*candidate).is_ok_and(|s| s.ppid == pid);
    Ok(pids()?.into_iter().filter(is_child).collect())
}

/// A thread that sleeps in one of these calls with this first argument; only what the caller may look into is seen (proc_pid_syscall(5)).
pub fn waits(calls: &[i64], first: u64) -> Option<Pid> {
    let in_it = |text: String| {
        let mut words = text.split_ascii_whitespace();
        let nr = words.next().and_then(|w| w.parse().ok());
        let arg = words.next().and_then(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok());
        nr.is_some_and(|nr: i64| calls.contains(&nr)) && arg.is_some_and(|a| a as u32 == first as u32)
    };
    let look = |tid: &Pid| std::fs::read_to_string(format!("/proc/{tid}/syscall")).is_ok_and(in_it);
    pids().ok()?.into_iter().flat_map(|pid| tasks(pid).unwrap_or_default()).find(look)
}

/// True if a process or thread of this number exists, a zombie too, whoever owns it.
pub fn pid_exists(pid: Pid) -> bool {
    pid > 0 && Path::new(&format!("/proc/{pid}/stat")).exists()
}

/// Start time in clock ticks after boot: with PID and [`boot_id`] the identity of a process.
pub fn start_time(pid: Pid) -> Result<u64> {
    Ok(stat::read(pid)?.starttime)
}

/// The boot id (random(4)): 36 characters, a UUID.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = read_path(path)?;
    let id = text.strip_suffix(b"\n").unwrap_or(&text);
    let is_id = id.len() == 36 && id.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    if !is_id {
        let source = ParseError::new("sys/kernel/random/boot_id", 1, "expected a UUID", id);
        return Err(ReadError::Parse { path: path.to_owned(), source });
    }
    Ok(String::from_utf8_lossy(id).into_owned())
}

/// The arguments (`/proc/PID/cmdline`); none for a zombie or kernel thread.
pub fn cmdline(pid: Pid) -> Result<Vec<Vec<u8>>> {
    Ok(split_cmdline(&read_path(&path_of(pid, "cmdline"))?))
}

/// Splits NUL-terminated arguments; a last one without NUL (setproctitle) counts too.
pub fn split_cmdline(data: &[u8]) -> Vec<Vec<u8>> {
    if data.is_empty() {
        return Vec::new();
    }
    let data = data.strip_suffix(b"\0").unwrap_or(data);
    data.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// The name of a process or thread (`comm`), without the final newline.
pub fn comm(pid: Pid) -> Result<Vec<u8>> {
    let mut name = read_path(&path_of(pid, "comm"))?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Ok(name)
}

/// Where a link of `/proc/PID` points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The path, without ` (deleted)`.
    pub path: PathBuf,
    /// The link ended in ` (deleted)`; a living file may be named so too.
    pub deleted: bool,
}

impl Link {
    /// From a link's target.
    pub fn parse(target: &[u8]) -> Link {
        let (path, deleted) = match target.strip_suffix(b" (deleted)") {
            Some(path) => (path, true),
            None => (target, false),
        };
        Link { path: PathBuf::from(OsStr::from_bytes(path)), deleted }
    }
}

fn link(pid: Pid, name: &str) -> Result<Link> {
    let path = path_of(pid, name);
    let target = std::fs::read_link(&path).map_err(|e| ReadError::io("readlink", &path, e))?;
    Ok(Link::parse(&target.into_os_string().into_vec()))
}

/// The executable (`/proc/PID/exe`); ENOENT for a kernel thread or zombie.
pub fn exe(pid: Pid) -> Result<Link> {
    link(pid, "exe")
}

/// The working directory (`/proc/PID/cwd`).
pub fn cwd(pid: Pid) -> Result<Link> {
    link(pid, "cwd")
}

/// The root directory (`/proc/PID/root`), as the caller names it.
pub fn root(pid: Pid) -> Result<Link> {
    link(pid, "root")
}
