//! Who else holds a pipe, an eventfd or a pair of sockets of which the processes that are captured together have all ends, after a fork or passed over: a restored
//! program would have one of its own, and that other process would be cut off.
//!
//! /proc/PID/fd tells, of processes that we may look into; the open files of others (another user's) cannot be known. To look through
//! all of them takes long, so it is done before the freeze; in the freeze only the processes that were started since are
//! looked at. What is passed over to an older one in between is not seen.
use super::files::FileView;
use std::collections::{BTreeMap, BTreeSet};
use sys::procfs;

/// Up to so many PIDs are tried one by one; beyond, the list of processes is cheaper.
const FEW: u32 = 64;

/// The other holders that were found.
#[derive(Clone, Debug, Default)]
pub(super) struct Others {
    /// What is held ([`identity`]), and "PID 12 (make)".
    held: BTreeMap<Vec<u8>, String>,
    /// PIDs of all that hold any of it, or did when they were looked at.
    holders: BTreeSet<i32>,
    /// Newest PID when they were looked for; None: not yet.
    newest: Option<u32>,
}

impl Others {
    /// Looks for holders and marks what they hold. The first time all processes are looked through, then known holders and new processes.
    /// `members`: those captured together.
    pub(super) fn mark(&mut self, members: &[i32], views: &mut [&mut FileView]) {
        let wanted: BTreeSet<Vec<u8>> = views.iter().filter(|v| is_own(v)).filter_map(|v| identity(v)).collect();
        self.search(members, &wanted);
        let holder = |link: &[u8]| self.held.get(link).cloned();
        for v in views.iter_mut().filter(|v| is_own(v)) {
            let peer = v.socket.as_ref().and_then(|s| s.unix.as_ref()).and_then(|u| u.peer);
            let peer = peer.and_then(|p| holder(format!("socket:[{p}]").as_bytes()));
            v.held = identity(v).and_then(|i| holder(&i)).or(peer);
            if v.held.is_some() {
                v.both_ends = false;
                v.socket.iter_mut().for_each(|s| s.own_peer = false);
            }
        }
    }

    fn search(&mut self, members: &[i32], wanted: &BTreeSet<Vec<u8>>) {
        let newest = newest_pid();
        // what was held then counts only if it still is
        self.held.clear();
        if !wanted.is_empty() {
            let mut asked = std::mem::take(&mut self.holders);
            asked.extend(processes(self.newest, newest));
            for other in asked.into_iter().filter(|p| !members.contains(p) && *p != own_pid()) {
                self.look(other, members, wanted);
            }
        }
        self.newest = newest;
    }

    /// Notes what one process holds of it. What was given out as a PID may be a thread's: also one of this process, which read something.
    fn look(&mut self, other: i32, members: &[i32], wanted: &BTreeSet<Vec<u8>>) {
        for (fd, link) in procfs::fd::links(other).unwrap_or_default() {
            let id = match is_eventfd(&link) {
                false if link.starts_with(b"/memfd:") => {
                    procfs::fd::read(other, fd).ok().and_then(|f| memfd(f.stat.ok().as_ref()))
                }
                false if link.starts_with(b"/dev/pt") => pty_end(other, fd, &link),
                false => Some(link),
                true => procfs::fdinfo::read(other, fd).ok().and_then(|i| eventfd(&i)),
            };
            if let Some(id) = id.filter(|i| wanted.contains(i)) {
                // one that is gone by now holds nothing any more
                let Ok(status) = procfs::status::read(other) else { return };
                if status.tgid == own_pid() || members.contains(&status.tgid) {
                    return;
                }
                let name = status.name.escape_ascii().to_string();
                self.held.entry(id).or_insert(format!("PID {} ({name})", status.tgid));
                self.holders.insert(status.tgid);
            }
        }
    }
}

/// It would be made again as the program's own.
fn is_own(v: &FileView) -> bool {
    (v.is_pipe() || v.pty.is_some()) && v.both_ends
        || v.socket.as_ref().is_some_and(|s| s.own_peer)
        || is_eventfd(&v.link)
        || v.is_memfd()
}

fn is_eventfd(link: &[u8]) -> bool {
    link == b"anon_inode:[eventfd]"
}

fn memfd(stat: Option<&procfs::fd::FdStat>) -> Option<Vec<u8>> {
    stat.map(|s| format!("memfd {}", s.ino).into_bytes())
}

/// What is the same for all who hold it: the link, with its inode; of eventfds, which share one inode, the kernel's number.
fn identity(v: &FileView) -> Option<Vec<u8>> {
    if is_eventfd(&v.link) {
        eventfd(&v.info)
    } else if v.is_memfd() {
        memfd(v.stat.as_ref())
    } else if let Some(p) = &v.pty {
        Some(pty(p.number))
    } else {
        Some(v.link.clone())
    }
}

/// The same for both ends.
fn pty(number: u32) -> Vec<u8> {
    format!("pty {number}").into_bytes()
}

/// An end of a pseudo terminal, by its link: a slave says it itself.
fn pty_end(other: i32, fd: i32, link: &[u8]) -> Option<Vec<u8>> {
    let slave = link.strip_prefix(b"/dev/pts/").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
    let number = slave.or_else(|| procfs::fdinfo::read(other, fd).ok()?.tty_index)?;
    // another instance of devpts (a container's) has numbers of its own
    let dev =
        |root: String| std::fs::metadata(format!("{root}/dev/pts")).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
    let elsewhere = dev(format!("/proc/{other}/root")).ok().zip(dev(String::new()).ok()).is_some_and(|(a, b)| a != b);
    (!elsewhere).then(|| pty(number))
}

fn eventfd(info: &procfs::fdinfo::FdInfo) -> Option<Vec<u8>> {
    info.eventfd.and_then(|e| e.id).map(|id| format!("eventfd {id}").into_bytes())
}

/// All processes, or those whose PIDs were given out after `since`, up to `newest`: PIDs count upwards, and begin again at the end.
fn processes(since: Option<u32>, newest: Option<u32>) -> Vec<i32> {
    let all = || procfs::pids().unwrap_or_default();
    match (since, newest) {
        (Some(a), Some(b)) if a <= b && b - a <= FEW => (a + 1..=b).map(|p| p as i32).collect(),
        (Some(a), Some(b)) => all().into_iter().filter(|p| is_new(*p as u32, a, b)).collect(),
        _ => all(),
    }
}

fn is_new(pid: u32, since: u32, newest: u32) -> bool {
    if since <= newest {
        pid > since && pid <= newest
    } else {
        pid > since || pid <= newest
    }
}

/// The PID that was given out last (proc_loadavg(5)).
fn newest_pid() -> Option<u32> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_are_the_pids_given_out_since() {
        assert!([11, 12].iter().all(|p| is_new(*p, 10, 12)));
        assert!([10, 13].iter().all(|p| !is_new(*p, 10, 12)));
        // begun again
        assert!([32760, 1, 300].iter().all(|p| is_new(*p, 32750, 300)));
        assert!([32750, 301].iter().all(|p| !is_new(*p, 32750, 300)));
    }

    #[test]
    fn a_holder_counts_as_long_as_it_holds() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader))).unwrap();
        let wanted = BTreeSet::from([std::os::unix::ffi::OsStringExt::into_vec(link.into_os_string())]);
        let mut others = Others::default();
        let hold = || std::process::Command::new("sleep").arg("20").stdin(reader.try_clone().unwrap()).spawn().unwrap();
        let (mut first, mut second) = (hold(), hold());
        others.search(&[own_pid()], &wanted);
        // another test's child may hold it, too, until it has executed its program
        let ids = [first.id() as i32, second.id() as i32];
        let hold = |o: &Others| ids.map(|id| o.holders.contains(&id));
        assert_eq!((hold(&others), others.held.len()), ([true, true], 1), "{:?}", others.held);
        for (child, left) in [(&mut first, [false, true]), (&mut second, [false, false])] {
            child.kill().unwrap();
            child.wait().unwrap();
            others.search(&[own_pid()], &wanted);
            assert_eq!(hold(&others), left, "{:?}", others.held);
        }
    }

    #[test]
    fn a_thread_of_ours_is_nobody_else() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader))).unwrap();
        let wanted = BTreeSet::from([std::os::unix::ffi::OsStringExt::into_vec(link.into_os_string())]);
        let (tid, ask) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tid.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = wait.recv();
        });
        let mut others = Others::default();
        others.look(ask.recv().unwrap(), &[], &wanted);
        assert!(others.held.is_empty(), "{:?}", others.held);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_new_process_is_looked_at() {
        let before = newest_pid();
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let seen = processes(before, newest_pid());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(before.is_some() && seen.contains(&(child.id() as i32)), "{before:?} {seen:?}");
    }
}
