//! The few system calls that std and nix do not offer safely. The only file here with unsafe.
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Descriptors above 2 that were inherited (make's job server, a terminal's) are not passed on to what tests start.
pub fn keep_descriptors_to_myself() {
    // SAFETY: only sets a flag on descriptors, closes none.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Signals that whoever started the tests has ignored (a shell does for what runs in its background) are not ignored by what tests start.
pub fn ignore_no_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        // SAFETY: sets the default action only.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The command starts in a session of its own; with the terminal that is its stdin as controlling terminal if there is one.
pub fn own_session(command: &mut Command) {
    let setup = || {
        // SAFETY: async-signal-safe calls with integers only. Without a terminal at 0 the ioctl fails, as it may.
        unsafe {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        Ok(())
    };
    // SAFETY: `setup` makes async-signal-safe calls only and allocates nothing.
    unsafe { command.pre_exec(setup) };
}

/// The command's process leads a new process group.
pub fn own_group(command: &mut Command) {
    command.process_group(0);
}

/// Rows and columns of a terminal are set.
pub fn set_window_size(terminal: &impl AsRawFd, (rows, columns): (u16, u16)) -> std::io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which `size` is.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Reaps the zombie `pid` if it is a child of ours that has ended.
pub fn reap(pid: i32) {
    let mut status = 0;
    // SAFETY: `status` lives; a null rusage is allowed. __WALL: also children that ended with another signal than SIGCHLD.
    unsafe { libc::wait4(pid, &mut status, libc::WNOHANG | libc::__WALL, std::ptr::null_mut()) };
}

/// tgkill(2): a signal for one thread.
pub fn send_to_thread(pid: i32, tid: i32, signal: i32) -> anyhow::Result<()> {
    // SAFETY: takes three integers.
    if unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> i64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

/// What ptrace and its kin are made of: a recorder that is denied them gets in by the agent or not at all.
pub const TRACING: [libc::c_long; 5] =
    [libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pidfd_getfd, libc::SYS_kcmp];

/// The command is started under a seccomp filter that answers these calls with EPERM.
pub fn deny(command: &mut Command, calls: &[libc::c_long]) {
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
    // struct seccomp_data begins with the number
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, nr) in calls.iter().enumerate() {
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, calls.len() - i, *nr as u32));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let setup = move || {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: prctl with integers and a filter program that lives over the call.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: `setup` makes async-signal-safe calls only; its error is an errno and holds no memory.
    unsafe { command.pre_exec(setup) };
}

/// rt_tgsigqueueinfo(2): a signal with this siginfo for one thread.
pub fn queue_to_thread(pid: i32, tid: i32, signal: i32, info: &[u8; 128]) -> anyhow::Result<()> {
    // SAFETY: `info` is as large as a siginfo, and lives.
    if unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, info.as_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
