//! What every probe is made of: a step with its error, a forked child, a pipe to hear from it.
use super::{Failed, Probe};
use std::io::Error;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd};

pub(super) fn failed<T>(step: &'static str) -> Result<T, Failed> {
    Err(Failed { step, error: Some(Error::last_os_error()) })
}

pub(super) fn no_effect<T>(step: &'static str) -> Result<T, Failed> {
    Err(Failed { step, error: None })
}

/// -1 becomes the error of `step`.
pub(super) fn ok(step: &'static str, r: libc::c_long) -> Result<libc::c_long, Failed> {
    if r < 0 {
        failed(step)
    } else {
        Ok(r)
    }
}

pub(super) fn read_i32(fd: i32, v: &mut i32) -> isize {
    // SAFETY: `v` is four writable bytes for which every value is right.
    unsafe { libc::read(fd, (v as *mut i32).cast(), size_of::<i32>()) }
}

pub(super) fn write_i32(fd: i32, v: i32) {
    // SAFETY: four readable bytes. Nobody listening is told by the end of file, so the result says nothing more.
    unsafe { libc::write(fd, (&v as *const i32).cast(), size_of::<i32>()) };
}

/// A forked child: killed and reaped when it goes.
pub(crate) struct Child(pub(super) i32);

impl Child {
    /// Waits for its end by itself; its PID, which is free now.
    pub(super) fn wait_pid(self) -> Result<i32, Failed> {
        let pid = self.0;
        self.wait().map(|_| pid)
    }

    /// Waits for its end by itself; its wait status.
    pub(crate) fn wait(self) -> Result<i32, Failed> {
        let pid = self.0;
        std::mem::forget(self);
        reap(pid)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet reaped: the PID is still its.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        let _ = reap(self.0);
    }
}

fn reap(pid: i32) -> Result<i32, Failed> {
    let mut status = 0i32;
    loop {
        // SAFETY: our own child; the status goes to a local.
        let r = unsafe { libc::syscall(libc::SYS_wait4, pid, &mut status, libc::__WALL, 0) };
        if r >= 0 {
            return Ok(status);
        }
        if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return failed("wait4");
        }
    }
}

/// Forks a child that does `f`, which may only make system calls, and ends.
pub(crate) fn fork(f: impl FnOnce() -> libc::c_long) -> Result<Child, Failed> {
    let parent = std::process::id() as i32;
    // SAFETY: the child only makes system calls (`f` promises it) and leaves by _exit. A raw clone rather than fork:
    // libc's runs handlers of pthread_atfork.
    let pid = ok("fork", unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? as i32;
    if pid > 0 {
        return Ok(Child(pid));
    }
    // SAFETY: as above.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // It may have died before that.
        if libc::getppid() != parent {
            libc::_exit(libc::EIO);
        }
        libc::_exit(f() as i32)
    }
}

/// What `f` in [`in_child`] returns where the kernel said yes and did nothing.
pub(super) const NO_EFFECT: libc::c_long = -2;

/// Does `f`, a system call, in a child; its errno comes back in the exit status.
pub(super) fn in_child(step: &'static str, f: impl FnOnce() -> libc::c_long) -> Probe {
    let child = fork(|| match f() {
        NO_EFFECT => 255,
        r if r < 0 => Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) as _,
        _ => 0,
    })?;
    let status = child.wait()?;
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, 255) => no_effect(step),
        (true, errno) => Err(Failed { step, error: Some(Error::from_raw_os_error(errno)) }),
        // A filter that kills ended it.
        _ => Err(Failed { step, error: Some(Error::from_raw_os_error(libc::EPERM)) }),
    }
}

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Failed> {
    let mut fds = [0i32; 2];
    // SAFETY: the two descriptors go to an array of two, and are nobody else's.
    unsafe {
        ok("pipe2", libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) as _)?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}
