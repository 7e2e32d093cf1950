//! What can be asked about a thread or a file from outside: CPU affinity, owners of signals, numbers in use.
use std::os::fd::{AsFd, AsRawFd};

/// CPUs that a thread may run on (sched_getaffinity(2)), a bit a CPU, lowest first; empty if it cannot be asked.
pub fn affinity(tid: i32) -> Vec<u8> {
    let mut b = vec![0u8; 1024];
    // SAFETY: the kernel writes at most the length that is passed.
    let n = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, b.len(), b.as_mut_ptr()) };
    b.truncate(n.max(0) as usize);
    b
}

/// Keeps this thread, and those that it starts meanwhile, off one CPU. Dropped, this thread may run where it might before.
#[derive(Debug)]
pub struct KeepOff(nix::sched::CpuSet);

impl KeepOff {
    /// Keeps off CPU `n`. `None` where there is no other to run on, or it cannot be asked for.
    pub fn cpu(n: usize) -> Option<KeepOff> {
        let own = nix::unistd::Pid::from_raw(0);
        let before = nix::sched::sched_getaffinity(own).ok()?;
        let mut others = before;
        others.unset(n).ok()?;
        nix::sched::sched_setaffinity(own, &others).ok()?;
        Some(KeepOff(before))
    }
}

impl Drop for KeepOff {
    fn drop(&mut self) {
        // Refused only if all of these CPUs have been taken from us meanwhile.
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &self.0);
    }
}

/// Policy, nice value, priority and flags of a thread as the kernel tells them (struct sched_attr of sched_getattr(2)), to be
/// compared; empty if it cannot be asked.
pub fn attributes(tid: i32) -> Vec<u8> {
    const SCHED_ATTR_SIZE_VER0: usize = 48;
    let mut b = vec![0u8; SCHED_ATTR_SIZE_VER0];
    // SAFETY: the kernel writes at most the length that is passed.
    let r = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, b.as_mut_ptr(), b.len(), 0) };
    b.truncate(if r < 0 { 0 } else { b.len() });
    b
}

/// F_GETOWN_EX (type, ID) and F_GETSIG of an open file (fcntl(2)).
pub fn file_owner(fd: &impl AsFd) -> ((i32, i32), i32) {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let fd = fd.as_fd().as_raw_fd();
    let mut o = [0i32; 2];
    // SAFETY: F_GETOWN_EX writes one struct f_owner_ex, two ints.
    let r = unsafe { libc::fcntl(fd, F_GETOWN_EX, o.as_mut_ptr()) };
    // SAFETY: F_GETSIG takes no pointer.
    let sig = unsafe { libc::fcntl(fd, F_GETSIG) };
    (if r < 0 { (0, 0) } else { (o[0], o[1]) }, sig.max(0))
}

/// Tells which PIDs of this namespace are in use: as that of a process or thread, or still as that of a group or session.
#[derive(Debug)]
pub struct Numbers(std::os::fd::OwnedFd);

impl Numbers {
    /// Ready to ask.
    pub fn new() -> std::io::Result<Numbers> {
        Ok(Numbers(std::io::pipe()?.0.into()))
    }

    /// Whether clone3 could not give this number. The owner of a file's signals can be set to any number that is in
    /// use, whatever for; ESRCH says that there is none (kernel 4.13 and later, clone3 is of 5.3).
    pub fn used(&self, id: i32) -> bool {
        const F_SETOWN_EX: i32 = 15;
        const F_OWNER_PGRP: i32 = 2;
        let owner = [F_OWNER_PGRP, id];
        // SAFETY: F_SETOWN_EX reads one struct f_owner_ex, two ints. Nothing makes this pipe send a signal (no O_ASYNC).
        let r = unsafe { libc::fcntl(self.0.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) };
        r == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_number_is_in_use_as_long_as_it_is_a_session() {
        let numbers = Numbers::new().unwrap();
        assert!(numbers.used(std::process::id() as i32));
        // a session whose leader has ended and been reaped; what is left in it has another group
        let script = "set -m; sleep 1000 >/dev/null 2>&1 </dev/null & echo $!";
        let mut leader = Command::new("setsid").args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let (id, mut said) = (leader.id() as i32, String::new());
        std::io::Read::read_to_string(&mut leader.stdout.take().unwrap(), &mut said).unwrap();
        leader.wait().unwrap();
        let left = crate::pidfd::PidFd::open(said.trim().parse().unwrap()).unwrap();
        assert!(!crate::procfs::pid_exists(id));
        assert!(numbers.used(id));
        left.kill(libc::SIGKILL).unwrap();
        let mut alone = Command::new("true").spawn().unwrap();
        alone.wait().unwrap();
        assert!(!numbers.used(alone.id() as i32));
    }

    #[test]
    fn a_cpu_is_kept_off_and_taken_back() {
        let before = affinity(0);
        let count = |mask: &[u8]| mask.iter().map(|b| b.count_ones()).sum::<u32>();
        let first = (0..before.len() * 8).find(|n| before[n / 8] >> (n % 8) & 1 != 0).expect("a CPU");
        let off = KeepOff::cpu(first);
        if count(&before) > 1 {
            let now = affinity(0);
            assert_eq!(count(&now), count(&before) - 1);
            assert_eq!(now[first / 8] >> (first % 8) & 1, 0);
            assert_eq!(std::thread::spawn(|| affinity(0)).join().expect("a thread"), now, "a thread inherits it");
        } else {
            assert!(off.is_none(), "there is no other");
        }
        drop(off);
        assert_eq!(affinity(0), before);
    }
}
