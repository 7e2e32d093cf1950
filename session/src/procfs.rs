//! What /proc says of a process, as far as a session needs it: which one it is, whether it lives, what descends from it.
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::sync::OnceLock;

/// A process that cannot be mistaken for another: a PID may be used again, and all are after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcId {
    /// Its PID.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of /proc/PID/stat), whatever time namespace it is read in.
    pub start: u64,
    /// The boot in which it started.
    pub boot: String,
}

impl ProcId {
    /// The process that has this PID now; None if there is none.
    pub fn of(pid: i32) -> Option<ProcId> {
        Some(ProcId { pid, start: Stat::of(pid)?.start, boot: boot_id().to_string() })
    }

    /// This process.
    pub fn me() -> Option<ProcId> {
        ProcId::of(std::process::id() as i32)
    }

    /// Its state letter (proc(5)) if it is still there and has not ended; None otherwise.
    pub fn state(&self) -> Option<char> {
        let stat = Stat::of(self.pid)?;
        let same = stat.start == self.start && self.boot == boot_id();
        (same && !matches!(stat.state, 'Z' | 'X' | 'x')).then_some(stat.state)
    }

    /// True while it is there and has not ended.
    pub fn lives(&self) -> bool {
        self.state().is_some()
    }
}

/// The part of /proc/PID/stat that is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) state: char,
    pub(crate) ppid: i32,
    pub(crate) start: u64,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> Option<Stat> {
        // all processes are asked: one read each, since the file's size is not known before
        let mut bytes = [0; 2048];
        let n = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut bytes).ok()?;
        let stat = Stat::parse(&bytes[..n])?;
        Some(Stat { start: stat.start.wrapping_sub(ticks_ahead()), ..stat })
    }

    /// The command name may hold anything, blanks and parentheses too: the last `)` ends it.
    fn parse(bytes: &[u8]) -> Option<Stat> {
        let end = bytes.iter().rposition(|b| *b == b')')?;
        let pid = std::str::from_utf8(&bytes[..bytes.iter().position(|b| *b == b' ')?]).ok()?.parse().ok()?;
        let rest = std::str::from_utf8(&bytes[end + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let state = fields.first()?.chars().next()?;
        let threads: u32 = fields.get(17)?.parse().ok()?;
        Some(Stat {
            pid,
            // a first thread that has ended is the process's end if there is no other
            state: if state == 'Z' && threads > 1 { 'S' } else { state },
            ppid: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// How far the start times that /proc tells this process are ahead of the machine's: a restored program may have a time namespace, and run us.
fn ticks_ahead() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    let read = || sys::procfs::timens::read(std::process::id() as i32).map_or(0, |o| o.boottime);
    *TICKS.get_or_init(|| read().div_euclid(sys::clock::TICK) as u64)
}

/// The id of this boot.
pub(crate) fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_string()).unwrap_or_default()
    })
}

/// Everything that descends from `root` now, without itself; ended ones that nobody has reaped are left out.
pub(crate) fn descendants(root: i32) -> Vec<ProcId> {
    Parents::look().below(root)
}

/// Who is whose child, by one look. (/proc/PID/task/TID/children would be less to read, but may leave one out while another ends: proc(5).)
pub(crate) struct Parents(HashMap<i32, Vec<Stat>>);

impl Parents {
    /// Looks at all processes.
    pub(crate) fn look() -> Parents {
        let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|s| s.parse().ok());
            if let Some(stat) = pid.and_then(Stat::of) {
                children.entry(stat.ppid).or_default().push(stat);
            }
        }
        Parents(children)
    }

    /// As [`descendants`].
    pub(crate) fn below(&self, root: i32) -> Vec<ProcId> {
        // a PID that was used again during the look may seem to be below itself
        let mut seen = HashSet::from([root]);
        let (mut todo, mut found) = (vec![root], Vec::new());
        while let Some(parent) = todo.pop() {
            for stat in self.0.get(&parent).into_iter().flatten().filter(|s| seen.insert(s.pid)) {
                todo.push(stat.pid);
                if !matches!(stat.state, 'Z' | 'X') {
                    found.push(ProcId { pid: stat.pid, start: stat.start, boot: boot_id().to_string() });
                }
            }
        }
        found
    }
}

/// Command line of a process for people: arguments joined by blanks, control characters left out.
pub(crate) fn command_line(pid: i32) -> String {
    // of one whose first thread has ended another knows it
    sys::procfs::first::has_ended(pid);
    let bytes = fs::read(sys::procfs::path(pid, "cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(&bytes)).replace('\0', " ");
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_and_blanks_is_read_past() {
        let line = b"42 (a) S (b) T 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 1";
        assert_eq!(Stat::parse(line), Some(Stat { pid: 42, state: 'T', ppid: 7, start: 987654 }));
        // its first thread has ended, and it runs on
        let line = String::from_utf8_lossy(line).replace(") T", ") Z").replace("0 1 0 987", "0 2 0 987");
        assert_eq!(Stat::parse(line.as_bytes()).map(|s| s.state), Some('S'));
        assert_eq!(Stat::parse(b"42 (a"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let me = ProcId::me().unwrap();
        assert!(me.lives());
        assert!(!ProcId { start: me.start + 1, ..me.clone() }.lives());
        assert!(!ProcId { boot: "another".into(), ..me.clone() }.lives());
        assert!(!ProcId { pid: i32::MAX, ..me }.lives());
    }
}
