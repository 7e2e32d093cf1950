//! What can be asked about a thread or a file from outside: CPU affinity, owners of signals.
use std::os::fd::{AsFd, AsRawFd};

/// CPUs that a thread may run on (sched_getaffinity(2)), a bit a CPU, lowest first; empty if it cannot be asked.
pub fn affinity(tid: i32) -> Vec<u8> {
    let mut b = vec![0u8; 1024];
    // SAFETY: the kernel writes at most the length that is passed.
    let n = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, b.len(), b.as_mut_ptr()) };
    b.truncate(n.max(0) as usize);
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
