//! `/proc/PID/cgroup` (cgroups(7)): which control group a process is in, in each hierarchy.

use super::bytes::lines;
use super::{mountinfo, path_of, read_with, ParseError, Pid, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const FILE: &str = "cgroup";
/// What the kernel appends to the path of one that was removed.
const DELETED: &[u8] = b" (deleted)";

/// A control group, as the reader's cgroup namespace names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Hierarchy of version 1: its controllers, or `name=...`; empty: version 2.
    pub hierarchy: Vec<u8>,
    /// Path from the root of the reader's cgroup namespace; it begins with `/..` where it is outside of that.
    pub path: Vec<u8>,
}

fn parse_line(line: &[u8]) -> Option<Membership> {
    let mut parts = line.splitn(3, |b| *b == b':');
    let (_, hierarchy, path) = (parts.next()?, parts.next()?, parts.next()?);
    let path = path.strip_suffix(DELETED).unwrap_or(path);
    path.starts_with(b"/").then(|| Membership { hierarchy: hierarchy.to_vec(), path: path.to_vec() })
}

/// Parses the list.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Membership>, ParseError> {
    let parse = |(number, line)| {
        parse_line(line).ok_or_else(|| ParseError::new(FILE, number, "expected ID:CONTROLLERS:/PATH", line))
    };
    lines(text).map(parse).collect()
}

/// Reads `/proc/PID/cgroup`.
pub fn read(pid: Pid) -> Result<Vec<Membership>> {
    read_with(&path_of(pid, FILE), parse)
}

/// Reads `/proc/PID/task/TID/cgroup`.
pub fn read_task(pid: Pid, tid: Pid) -> Result<Vec<Membership>> {
    read_with(&path_of(pid, &format!("task/{tid}/{FILE}")), parse)
}

/// The folder of a control group of version 2; None if no mount here shows it, or it is above this namespace's root.
pub fn folder(path: &[u8]) -> Option<PathBuf> {
    folder_in(&mountinfo::read(std::process::id() as Pid).ok()?, path)
}

fn folder_in(mounts: &[mountinfo::Mount], path: &[u8]) -> Option<PathBuf> {
    if path.split(|b| *b == b'/').any(|name| name == b"..") {
        return None;
    }
    let below = |m: &mountinfo::Mount| {
        let root = m.root.strip_suffix(b"/").unwrap_or(&m.root);
        let rest = path.strip_prefix(root).filter(|r| r.is_empty() || r.starts_with(b"/"))?;
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        Some(PathBuf::from(OsStr::from_bytes(&m.mount_point)).join(OsStr::from_bytes(rest)))
    };
    mounts.iter().rev().filter(|m| m.fs_type == b"cgroup2").find_map(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions() {
        let text = b"12:cpu,cpuacct:/a:b\n3:name=systemd:/\n0::/user.slice/x.scope (deleted)\n";
        let all = parse(text).unwrap();
        let words: Vec<(&[u8], &[u8])> = all.iter().map(|m| (&m.hierarchy[..], &m.path[..])).collect();
        assert_eq!(words[0], (&b"cpu,cpuacct"[..], &b"/a:b"[..]));
        assert_eq!(words[1], (&b"name=systemd"[..], &b"/"[..]));
        assert_eq!(words[2], (&b""[..], &b"/user.slice/x.scope"[..]));
        for odd in [&b"0:/x\n"[..], b"nothing\n", b"0::x\n"] {
            assert!(parse(odd).is_err(), "{}", odd.escape_ascii());
        }
    }

    #[test]
    fn folders_are_below_the_mount_that_shows_them() {
        let mounts = b"26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                       27 25 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                       30 25 0:23 /jobs /jobs\\040here rw - cgroup2 cgroup2 rw\n";
        let mounts = mountinfo::parse(mounts).unwrap();
        let at = |path: &str| folder_in(&mounts, path.as_bytes()).map(|p| p.to_str().unwrap().to_owned());
        assert_eq!(at("/a/b").as_deref(), Some("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(at("/jobs/1").as_deref(), Some("/jobs here/1"));
        assert_eq!(at("/jobs").as_deref(), Some("/jobs here/"));
        assert_eq!(at("/jobs2").as_deref(), Some("/sys/fs/cgroup/unified/jobs2"));
        assert_eq!(at("/").as_deref(), Some("/sys/fs/cgroup/unified/"));
        assert_eq!((at("/../x"), at("/x/../../etc")), (None, None));
        assert_eq!(folder_in(&mounts[1..2], b"/x"), None);
    }
}
