//! Handles of processes, and copies of their descriptors (pidfd_open(2), pidfd_getfd(2)).
use crate::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A handle of a process: stays with it whatever becomes of its PID.
#[derive(Debug)]
pub struct PidFd {
    pid: i32,
    fd: OwnedFd,
}

impl PidFd {
    /// Opens a handle.
    pub fn open(pid: i32) -> Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let r = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if r < 0 {
            return Err(Error::call("pidfd_open", pid, std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(PidFd { pid, fd: unsafe { OwnedFd::from_raw_fd(r as i32) } })
    }

    /// A handle for [`PidFd::get`]: of a process whose first thread has ended, that of a thread that has the descriptors (PIDFD_THREAD, kernel 6.9).
    pub fn with_files(pid: i32) -> Result<PidFd> {
        const PIDFD_THREAD: i32 = libc::O_EXCL;
        let by = crate::procfs::first::by(pid);
        if by == pid {
            return PidFd::open(pid);
        }
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let r = unsafe { libc::syscall(libc::SYS_pidfd_open, by, PIDFD_THREAD) };
        if r < 0 {
            return Err(Error::call("pidfd_open of a thread", by, std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(PidFd { pid, fd: unsafe { OwnedFd::from_raw_fd(r as i32) } })
    }

    /// A copy of descriptor `n` of the process; shares its open file description. Wants ptrace rights.
    pub fn get(&self, n: i32) -> Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory.
        let r = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), n, 0) };
        if r < 0 {
            return Err(Error::call(
                format!("pidfd_getfd of descriptor {n}"),
                self.pid,
                std::io::Error::last_os_error(),
            ));
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(r as i32) })
    }

    /// Sends a signal to exactly this process.
    pub fn kill(&self, sig: i32) -> Result<()> {
        // SAFETY: pidfd_send_signal without siginfo takes integers and a null pointer.
        let r =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), sig, std::ptr::null::<u8>(), 0) };
        if r < 0 {
            return Err(Error::call("pidfd_send_signal", self.pid, std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Waits until the process has ended; false if it still lives after `ms` milliseconds (-1: without limit).
    pub fn wait_end(&self, ms: i32) -> bool {
        let mut p = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `p` is one valid pollfd.
        unsafe { libc::poll(&mut p, 1, ms) == 1 }
    }
}

impl From<PidFd> for OwnedFd {
    fn from(p: PidFd) -> OwnedFd {
        p.fd
    }
}

/// `struct pidfd_info` as of kernel 6.15, uapi/linux/pidfd.h.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// PIDFD_GET_INFO, `_IOWR(0xff, 11, struct pidfd_info)`, and PIDFD_INFO_EXIT.
const GET_INFO: libc::c_ulong = 0xc040_ff0b;
const INFO_EXIT: u64 = 1 << 3;

/// The wait status of a process that has ended and was waited for; None: the kernel does not tell (before 6.15).
pub fn exit_status(pidfd: &impl std::os::fd::AsFd) -> Option<i32> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: the request reads and writes one Info, whose size is in its number.
    let r = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO, &mut info) };
    (r == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
