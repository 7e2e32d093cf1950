//! What one process may do to another: trace it, fetch its descriptors, compare them, give it IDs of our choice.
use super::{fork, in_child, no_effect, ok, pipe, read_i32, write_i32, Failed, Probe, NO_EFFECT};
use std::fs::File;
use std::io::Error;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null;

/// Who is to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracee {
    /// A child of the tracer: Yama's `ptrace_scope` 1 permits it.
    Child,
    /// A process of the same user that is no descendant of the tracer: what an attach by PID meets.
    Stranger,
}

/// A process of the same user was seized, stopped, its registers read, and let go again.
pub fn ptrace(who: Tracee) -> Probe {
    // The tracee waits for a signal; it dies with us.
    let sleeper = || {
        // SAFETY: no argument points anywhere.
        unsafe { libc::pause() as _ }
    };
    let tracee = fork(sleeper)?;
    let pid = tracee.0;
    match who {
        Tracee::Child => trace(pid),
        Tracee::Stranger => {
            let (read, write) = pipe()?;
            let fd = write.as_raw_fd();
            let tracer = fork(move || {
                let (step, errno) = match trace(pid) {
                    Ok(()) => (-1, 0),
                    Err(e) => (
                        TRACE_STEPS.iter().position(|s| *s == e.step).unwrap_or(0) as i32,
                        e.error.and_then(|e| e.raw_os_error()).unwrap_or(0),
                    ),
                };
                write_i32(fd, step);
                write_i32(fd, errno);
                0
            })?;
            drop(write);
            let (mut step, mut errno) = (0, 0);
            let told = read_i32(read.as_raw_fd(), &mut step) > 0 && read_i32(read.as_raw_fd(), &mut errno) > 0;
            tracer.wait_pid()?;
            match (told, step, errno) {
                (true, -1, _) => Ok(()),
                (true, step, errno) => Err(Failed {
                    step: TRACE_STEPS.get(step as usize).copied().unwrap_or(TRACE_STEPS[0]),
                    error: (errno != 0).then(|| Error::from_raw_os_error(errno)),
                }),
                // It ended before it could tell.
                _ => Err(Failed {
                    step: "PTRACE_SEIZE killed the tracer",
                    error: Some(Error::from_raw_os_error(libc::EPERM)),
                }),
            }
        }
    }
}

const TRACE_STEPS: [&str; 5] =
    ["PTRACE_SEIZE", "PTRACE_INTERRUPT", "wait4 for the stop", "PTRACE_GETREGSET", "PTRACE_DETACH"];

/// Allocates nothing: it also runs in a forked child.
fn trace(pid: i32) -> Probe {
    // SAFETY: ptrace and wait4 on a process that is ours alone; the iovec says how large the buffer is.
    unsafe {
        ok(TRACE_STEPS[0], libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0))?;
        ok(TRACE_STEPS[1], libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0))?;
        let mut status = 0i32;
        ok(TRACE_STEPS[2], libc::syscall(libc::SYS_wait4, pid, &mut status, libc::__WALL, 0))?;
        if !libc::WIFSTOPPED(status) {
            return no_effect(TRACE_STEPS[2]);
        }
        let mut regs: libc::user_regs_struct = zeroed();
        let mut iov = libc::iovec {
            iov_base: (&mut regs as *mut libc::user_regs_struct).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        const NT_PRSTATUS: i32 = 1;
        ok(TRACE_STEPS[3], libc::ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, &mut iov))?;
        ok(TRACE_STEPS[4], libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0))?;
    }
    Ok(())
}

/// A descriptor of a child was fetched with pidfd_getfd, and it is the same open file.
pub fn pidfd_getfd() -> Probe {
    let (read, write) = pipe()?;
    // SAFETY: no argument points anywhere.
    let child = fork(|| unsafe { libc::pause() as _ })?;
    // SAFETY: system calls on a child of ours, and descriptors that nobody else owns yet.
    let theirs = unsafe {
        let pidfd = ok("pidfd_open", libc::syscall(libc::SYS_pidfd_open, child.0, 0))?;
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let fd = ok("pidfd_getfd", libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), write.as_raw_fd(), 0))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    write_i32(theirs.as_raw_fd(), 4711);
    let mut v = 0;
    if read_i32(read.as_raw_fd(), &mut v) == size_of::<i32>() as isize && v == 4711 {
        Ok(())
    } else {
        no_effect("pidfd_getfd")
    }
}

/// kcmp tells descriptors of one open file from descriptors of two.
pub fn kcmp() -> Probe {
    const KCMP_FILE: i32 = 0;
    let a = File::open("/proc/self/stat").map_err(|e| Failed { step: "open", error: Some(e) })?;
    let b = a.try_clone().map_err(|e| Failed { step: "dup", error: Some(e) })?;
    let c = File::open("/proc/self/stat").map_err(|e| Failed { step: "open", error: Some(e) })?;
    let same = |x: &File, y: &File| {
        // SAFETY: compares two descriptors of this process; no argument points anywhere.
        ok("kcmp", unsafe {
            let me = libc::getpid();
            libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, x.as_raw_fd(), y.as_raw_fd())
        })
    };
    if same(&a, &b)? == 0 && same(&a, &c)? != 0 {
        Ok(())
    } else {
        no_effect("kcmp")
    }
}

/// The kernel has PR_SET_MM_MAP (CONFIG_CHECKPOINT_RESTORE): argument areas, brk and the exe link can be restored.
pub fn set_mm_map() -> Probe {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP_SIZE: i32 = 15;
    let mut size = 0u32;
    // SAFETY: this option only writes the size of the kernel's struct to `size`.
    let r = unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &mut size as *mut u32, 0, 0) };
    ok("prctl(PR_SET_MM_MAP_SIZE)", r as _)?;
    if size > 0 {
        Ok(())
    } else {
        no_effect("prctl(PR_SET_MM_MAP_SIZE)")
    }
}

/// POSIX timers can be made with ids of our choice.
pub fn timer_ids() -> Probe {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    in_child("prctl(PR_TIMER_CREATE_RESTORE_IDS)", || {
        // SAFETY: switches a mode of this child, then makes a timer whose id is read from and written to `id`.
        unsafe {
            if libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0) < 0 {
                return -1;
            }
            let mut id = 4711i32;
            let r = libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, null::<u8>(), &mut id);
            if r == 0 && id != 4711 {
                return NO_EFFECT;
            }
            r
        }
    })
}

/// NS_GET_PID_FROM_PIDNS translates a PID of a namespace into ours.
pub fn pid_from_pidns() -> Probe {
    const NS_GET_PID_FROM_PIDNS: libc::c_ulong = 0x8004_b706;
    let ns = File::open("/proc/self/ns/pid").map_err(|e| Failed { step: "open /proc/self/ns/pid", error: Some(e) })?;
    // SAFETY: takes a PID by value and returns one.
    let (me, got) = unsafe {
        let me = libc::getpid();
        (me, libc::ioctl(ns.as_raw_fd(), NS_GET_PID_FROM_PIDNS, me as libc::c_ulong))
    };
    ok("ioctl(NS_GET_PID_FROM_PIDNS)", got as _)?;
    if got == me {
        Ok(())
    } else {
        no_effect("ioctl(NS_GET_PID_FROM_PIDNS)")
    }
}
