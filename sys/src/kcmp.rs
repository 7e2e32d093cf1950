//! kcmp(2): do two processes share a kernel object? Descriptors that are dups of one open file share
//! its offset and flags; nothing in `/proc` tells them from two openings of one path.
//!
//! Needs ptrace read access to both processes, and CONFIG_KCMP (ENOSYS without).

use std::cmp::Ordering;
use std::io;

use crate::procfs::{first, Pid};

/// What is shared between tasks (include/uapi/linux/kcmp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// CLONE_VM: the address space.
    Vm = 1,
    /// CLONE_FILES: the descriptor table.
    Files = 2,
    /// CLONE_FS: root, working directory, umask.
    Fs = 3,
    /// CLONE_SIGHAND: signal handlers.
    Sighand = 4,
    /// CLONE_IO: I/O context.
    Io = 5,
    /// CLONE_SYSVSEM: undo list of semaphores.
    SysvSem = 6,
}

const KCMP_FILE: libc::c_int = 0;
const KCMP_EPOLL_TFD: libc::c_int = 7;

/// An entry of an epoll set (struct kcmp_epoll_slot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollSlot {
    /// The epoll's descriptor.
    pub efd: u32,
    /// The descriptor number with which the target was added (`tfd` of fdinfo).
    pub tfd: u32,
    /// Which of the entries with this number, from 0.
    pub offset: u32,
}

/// struct kcmp_epoll_slot of include/uapi/linux/kcmp.h.
#[repr(C)]
struct RawSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

fn kcmp(pids: (Pid, Pid), kind: libc::c_int, first: u64, second: u64) -> io::Result<Ordering> {
    let pids = (first::by(pids.0), first::by(pids.1));
    // SAFETY: kcmp(2) takes five integers and changes no state. `first` and `second` are descriptor
    // numbers or 0, which the kernel checks, but for KCMP_EPOLL_TFD, where `second` is the address of
    // a RawSlot that its only caller, `same_epoll_target`, keeps alive over this call; the kernel
    // copies it in and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pids.0, pids.1, kind, first, second) };
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        3 => Err(io::Error::new(io::ErrorKind::InvalidData, "kcmp gave no order")),
        _ => Err(io::Error::last_os_error()),
    }
}

fn index(fd: i32) -> io::Result<u64> {
    u64::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

/// Orders two tasks' objects: Equal if shared, else an order that holds until the next boot.
pub fn compare(first: Pid, second: Pid, resource: Resource) -> io::Result<Ordering> {
    kcmp((first, second), resource as libc::c_int, 0, 0)
}

/// True if two tasks share the resource.
pub fn shares(first: Pid, second: Pid, resource: Resource) -> io::Result<bool> {
    Ok(compare(first, second, resource)?.is_eq())
}

/// Tasks in the kernel's order of an object that they have.
pub struct Sorted {
    /// One of each class, by PID and index.
    classes: Vec<(Pid, usize)>,
    resource: Resource,
}

impl Sorted {
    /// Sorts them: of those that share it there is the first. It takes n log n calls.
    pub fn new(tasks: &[Pid], resource: Resource) -> io::Result<Sorted> {
        let mut sorted = Sorted { classes: Vec::new(), resource };
        for (i, task) in tasks.iter().enumerate() {
            if let Err(at) = sorted.search(*task)? {
                sorted.classes.insert(at, (*task, i));
            }
        }
        Ok(sorted)
    }

    /// The index of the first of them with which this one shares it, if there is one.
    pub fn find(&self, task: Pid) -> io::Result<Option<usize>> {
        Ok(self.search(task)?.ok().map(|at| self.classes[at].1))
    }

    fn search(&self, task: Pid) -> io::Result<Result<usize, usize>> {
        let (mut low, mut high) = (0, self.classes.len());
        while low < high {
            let middle = low.midpoint(high);
            match compare(task, self.classes[middle].0, self.resource)? {
                Ordering::Equal => return Ok(Ok(middle)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(low))
    }
}

/// Of each task the index of the first of them with which it shares the resource: its own, if that is none. It takes n log n calls.
pub fn firsts(tasks: &[Pid], resource: Resource) -> io::Result<Vec<usize>> {
    let mut sorted = Sorted { classes: Vec::new(), resource };
    let mut add = |(i, task): (usize, &Pid)| {
        Ok(match sorted.search(*task)? {
            Ok(at) => sorted.classes[at].1,
            Err(at) => {
                sorted.classes.insert(at, (*task, i));
                i
            }
        })
    };
    tasks.iter().enumerate().map(&mut add).collect()
}

/// Orders two descriptors, each (PID, number), by their open file: Equal if they are dups.
pub fn compare_files(first: (Pid, i32), second: (Pid, i32)) -> io::Result<Ordering> {
    kcmp((first.0, second.0), KCMP_FILE, index(first.1)?, index(second.1)?)
}

/// True if two descriptors are one open file. EBADF if either is not open.
pub fn same_file(first: (Pid, i32), second: (Pid, i32)) -> io::Result<bool> {
    Ok(compare_files(first, second)?.is_eq())
}

/// True if `file` is the open file that an epoll set of process `owner` watches at `slot`: the
/// number in fdinfo may be closed since, or have become another file. ENOENT if there is no such entry.
pub fn same_epoll_target(file: (Pid, i32), owner: Pid, slot: EpollSlot) -> io::Result<bool> {
    let raw = RawSlot { efd: slot.efd, tfd: slot.tfd, toff: slot.offset };
    let result = kcmp((file.0, owner), KCMP_EPOLL_TFD, index(file.1)?, &raw const raw as u64);
    Ok(result?.is_eq())
}

/// Puts descriptors into classes of one open file each, in the order of their first members; a class
/// lists indices into `fds`. It takes n log n calls: sort out by (device, inode) first, dups have both
/// in common.
pub fn open_files(fds: &[(Pid, i32)]) -> io::Result<Vec<Vec<usize>>> {
    let mut classes: Vec<Vec<usize>> = Vec::new(); // in the kernel's order
    for (number, &fd) in fds.iter().enumerate() {
        let (mut low, mut high) = (0, classes.len());
        let mut home = None;
        while low < high {
            let middle = low + (high - low) / 2;
            match compare_files(fd, fds[classes[middle][0]])? {
                Ordering::Equal => {
                    home = Some(middle);
                    break;
                }
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        match home {
            Some(class) => classes[class].push(number),
            None => classes.insert(low, vec![number]),
        }
    }
    classes.sort_unstable_by_key(|class| class[0]);
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    fn me() -> Pid {
        std::process::id() as Pid
    }

    #[test]
    fn dups_are_one_open_file_and_two_openings_are_not() {
        let first = File::open("/dev/null").unwrap();
        let dup = first.try_clone().unwrap();
        let second = File::open("/dev/null").unwrap();
        let key = |f: &File| (me(), f.as_raw_fd());
        assert!(same_file(key(&first), key(&dup)).unwrap());
        assert!(!same_file(key(&first), key(&second)).unwrap());
        let order = compare_files(key(&first), key(&second)).unwrap();
        assert_eq!(compare_files(key(&second), key(&first)).unwrap(), order.reverse());
        let classes = open_files(&[key(&first), key(&second), key(&dup)]).unwrap();
        assert_eq!(classes, [vec![0, 2], vec![1]]);
    }

    #[test]
    fn a_closed_descriptor_is_ebadf() {
        let error = same_file((me(), 900_000), (me(), 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let error = same_file((me(), -1), (me(), 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn each_has_a_first_with_which_it_shares() {
        let tid = std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw();
            let mut children: Vec<_> =
                (0..2).map(|_| std::process::Command::new("sleep").arg("20").spawn().unwrap()).collect();
            let pids: Vec<Pid> = children.iter().map(|c| c.id() as Pid).collect();
            let found = firsts(&[pids[0], me(), pids[1], tid, pids[0]], Resource::Files).unwrap();
            children.iter_mut().for_each(|c| c.kill().and_then(|()| c.wait().map(drop)).unwrap());
            found
        });
        assert_eq!(tid.join().unwrap(), [0, 1, 2, 1, 0]);
    }

    #[test]
    fn threads_share_memory_and_files() {
        std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw();
            assert!(shares(me(), tid, Resource::Vm).unwrap());
            assert!(shares(me(), tid, Resource::Files).unwrap());
            assert!(shares(me(), tid, Resource::Sighand).unwrap());
        })
        .join()
        .unwrap();
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let pid = child.id() as Pid;
        assert!(!shares(me(), pid, Resource::Vm).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_epoll_target_is_known_after_its_number_was_closed() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        // SAFETY: both calls get integers and one pointer to a live local; the descriptor returned is
        // new and owned by nobody else.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let added = libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), &mut event);
            assert!(fd >= 0 && added == 0);
            OwnedFd::from_raw_fd(fd)
        };
        let slot = EpollSlot { efd: epoll.as_raw_fd() as u32, tfd: reader.as_raw_fd() as u32, offset: 0 };
        let dup = reader.try_clone().unwrap();
        drop(reader);
        assert!(same_epoll_target((me(), dup.as_raw_fd()), me(), slot).unwrap());
        let other = File::open("/dev/null").unwrap();
        assert!(!same_epoll_target((me(), other.as_raw_fd()), me(), slot).unwrap());
        let none = EpollSlot { tfd: 900_000, ..slot };
        let error = same_epoll_target((me(), dup.as_raw_fd()), me(), none).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
