//! /proc as the oracle. Parsers of the tests' own: the product's are among what is tested.
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

/// What /proc/PID/status says.
#[derive(Clone, Debug)]
pub struct Status {
    /// Name.
    pub comm: String,
    /// State's letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Tracer, or 0.
    pub tracer: i32,
    /// Real, effective, saved and file system uid.
    pub uids: [u32; 4],
    /// Effective capabilities.
    pub cap_eff: u64,
    /// PIDs, from the outermost namespace visible to the innermost.
    pub ns_pids: Vec<i32>,
    /// Number of threads.
    pub threads: usize,
}

/// The status of a process, zombies too; None if there is none.
pub fn status(pid: i32) -> Option<Status> {
    parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(text: &str) -> Option<Status> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
    let number = |key: &str| fields.get(key)?.parse::<i32>().ok();
    let uids: Vec<u32> = fields.get("Uid")?.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let state = fields.get("State")?.chars().next()?;
    let first_of_several = state == 'Z' && number("Threads")? > 1;
    Some(Status {
        comm: (*fields.get("Name")?).into(),
        // a first thread that has ended is no process that has
        state: if first_of_several { 'S' } else { state },
        ppid: number("PPid")?,
        tracer: number("TracerPid")?,
        uids: uids.try_into().ok()?,
        cap_eff: u64::from_str_radix(fields.get("CapEff")?, 16).ok()?,
        ns_pids: fields.get("NSpid").map_or(vec![], |v| v.split_whitespace().filter_map(|w| w.parse().ok()).collect()),
        threads: number("Threads")? as usize,
    })
}

/// True while it runs (a zombie does not).
pub fn alive(pid: i32) -> bool {
    status(pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X'))
}

/// The wait status of one that has ended and not been waited for (proc_pid_stat(5), exit_code).
pub fn ended_with(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.split_whitespace().next_back()?.parse().ok()
}

/// Its threads.
pub fn threads(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return vec![] };
    tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Start time, which with the PID names a process for good.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Children of a process, zombies too.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return vec![] };
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let text: Vec<String> = tasks.flatten().map(of).collect();
    text.iter().flat_map(|t| t.split_whitespace()).filter_map(|w| w.parse().ok()).collect()
}

/// All that descends from a process, zombies too, parents before their children.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

/// One line of maps.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// "r-xp".
    pub perms: String,
    /// Path or name, or "".
    pub name: String,
}

/// The mappings of a process.
pub fn maps(pid: i32) -> Vec<Mapping> {
    fs::read_to_string(format!("/proc/{}/maps", living(pid))).unwrap_or_default().lines().filter_map(mapping).collect()
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let perms = words.next()?.to_owned();
    let name = words.skip(3).collect::<Vec<_>>().join(" ");
    Some(Mapping { start: u64::from_str_radix(start, 16).ok()?, end: u64::from_str_radix(end, 16).ok()?, perms, name })
}

/// The task by which a process is looked at: itself, or a thread of it if the first has ended.
fn living(pid: i32) -> i32 {
    let ended = |tid: &i32| fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|s| s.contains("State:\tZ"));
    if ended(&pid) {
        return threads(pid).into_iter().find(|tid| !ended(tid)).unwrap_or(pid);
    }
    pid
}

/// Mappings of ours in a process: those with our name, and the documented one, which is anonymous, executable and begins
/// with DORMBLOB.
pub fn ours(pid: i32) -> Vec<Mapping> {
    let memory = fs::File::open(format!("/proc/{}/mem", living(pid)));
    maps(pid)
        .into_iter()
        .filter(|m| {
            let anonymous = m.name.is_empty() || m.name.starts_with("[anon");
            let mut head = [0u8; 8];
            let mut magic = || {
                let mut memory = memory.as_ref().ok()?;
                memory.seek(SeekFrom::Start(m.start)).ok()?;
                memory.read_exact(&mut head).ok()?;
                (&head == b"DORMBLOB").then_some(())
            };
            m.name.starts_with("[anon:dormouse")
                || m.name.starts_with("/memfd:dormouse")
                || (anonymous && m.perms.contains('x') && magic().is_some())
        })
        .collect()
}

/// What its descriptors are, by number.
pub fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return vec![] };
    let mut all: Vec<(i32, String)> = dir
        .filter_map(|e| {
            let e = e.ok()?;
            let link = fs::read_link(e.path()).ok()?;
            Some((e.file_name().to_str()?.parse().ok()?, link.to_string_lossy().into_owned()))
        })
        .collect();
    all.sort();
    all
}

/// Eight bytes of a process's memory.
pub fn word(pid: i32, at: u64) -> anyhow::Result<u64> {
    let mut b = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(format!("/proc/{pid}/mem"))?, &mut b, at)?;
    Ok(u64::from_le_bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_itself() {
        let me = std::process::id() as i32;
        let status = status(me).unwrap();
        assert_eq!((status.tracer, *status.ns_pids.last().unwrap()), (0, me));
        assert!(status.threads >= 1 && alive(me) && start_time(me).is_some());
        assert!(children(status.ppid).contains(&me));
        assert!(descendants(status.ppid).contains(&me));
        assert!(maps(me).iter().any(|m| m.name == "[stack]" && m.perms.starts_with("rw")));
        assert!(ours(me).is_empty());
        assert!(descriptors(me).len() >= 3);
        assert!(!alive(-1) && start_time(-1).is_none());
    }
}
