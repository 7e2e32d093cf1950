//! Starting processes for sessions: the supervisor's fork, a program with the signal state that our caller had, waiting
//! for any child, and the few terminal ioctls. What `session` needs and safe Rust does not offer.
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// SIGPIPE was ignored when this process was executed. Rust's runtime ignores it before `main`, so it is looked at before that.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

#[used]
#[link_section = ".init_array"]
static LOOK_AT_SIGPIPE: extern "C" fn() = look_at_sigpipe;

extern "C" fn look_at_sigpipe() {
    PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

fn is_ignored(sig: i32) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of that plain C struct.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only (null new action) and writes to `old`, which lives.
    let asked = unsafe { libc::sigaction(sig, std::ptr::null(), &mut old) };
    asked == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// The signal state this process was executed with, to be given to a program it starts (take it before changing any), and the
/// descriptors that such a program gets.
#[derive(Clone)]
pub struct Inherited {
    mask: libc::sigset_t,
    pipe_ignored: bool,
    child_ignored: bool,
    more_ignored: Vec<i32>,
    fds: Vec<i32>,
}

impl Inherited {
    /// As it is now; SIGPIPE as it was at exec.
    pub fn now() -> Inherited {
        // SAFETY: an all-zero sigset_t is a valid, empty set.
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a null set only asks; `mask` lives.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut mask) };
        // SAFETY: F_GETFD takes no argument and changes nothing.
        let stays_open = |fd: &i32| *fd > 2 && unsafe { libc::fcntl(*fd, libc::F_GETFD) } == 0;
        let fds = crate::procfs::fd::numbers(std::process::id() as i32).unwrap_or_default();
        Inherited {
            mask,
            pipe_ignored: PIPE_IGNORED.load(Ordering::Relaxed),
            child_ignored: is_ignored(libc::SIGCHLD),
            more_ignored: Vec::new(),
            fds: fds.into_iter().filter(stays_open).collect(),
        }
    }

    /// With these signals ignored, too.
    pub fn ignoring(self, more_ignored: Vec<i32>) -> Inherited {
        Inherited { more_ignored, ..self }
    }

    /// Closes the descriptors above 2 that the program has inherited, once it runs: it has its own copies, and whoever is at the
    /// other end of a pipe must see its end when the program closes it, not when we do.
    pub fn let_go(self) {
        for fd in self.fds {
            // SAFETY: open without FD_CLOEXEC when this was made, so it came from whoever executed us: everything that we open has
            // that flag, and nothing of ours knows of this one.
            unsafe { libc::close(fd) };
        }
    }
}

/// SIGCHLD to its default: where it is ignored, children vanish without a status.
pub fn want_children() {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The parent, with the child's PID.
    Parent(i32),
    /// The child.
    Child,
}

/// Forks; both sides run on in this program. Refused in a process with several threads, where the child could find any
/// lock held for ever.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has several threads"));
    }
    // SAFETY: this is the only thread, so the child is a full copy in which no lock is held by another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process without flushing or running what is registered for exit: what a forked side needs, whose buffers
/// are copies of its parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A child that is about to become a command.
pub struct Prepared {
    pid: i32,
    go: PipeWriter,
    failed: PipeReader,
}

/// Forks a child that waits for [`Prepared::go`] and then becomes the command, with the signal state `inherited`, in a session
/// of its own if wanted. So the caller can write down who it is before it runs. Only for a process with one thread.
pub fn prepare(command: &mut Command, inherited: Inherited, own_session: bool) -> io::Result<Prepared> {
    let setup = move || {
        let of = |ignored| if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: async-signal-safe calls only; SIG_IGN and SIG_DFL run no code, `mask` is a copy in this closure.
        unsafe {
            libc::signal(libc::SIGPIPE, of(inherited.pipe_ignored));
            libc::signal(libc::SIGCHLD, of(inherited.child_ignored));
            for sig in &inherited.more_ignored {
                libc::signal(*sig, libc::SIG_IGN);
            }
            if own_session && libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            // Last: from here on a pending signal takes effect, with the program's dispositions.
            if libc::sigprocmask(libc::SIG_SETMASK, &inherited.mask, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `setup` makes async-signal-safe calls only and allocates nothing (an io::Error of an errno holds no memory).
    unsafe { command.pre_exec(setup) };
    let (mut wait, go) = io::pipe()?;
    let (failed, mut tell) = io::pipe()?;
    match fork()? {
        Fork::Parent(pid) => Ok(Prepared { pid, go, failed }),
        Fork::Child => {
            drop((go, failed));
            // Without the word the parent is gone or has thought better of it. All these pipes close at exec.
            if wait.read_exact(&mut [0]).is_ok() {
                let errno = command.exec().raw_os_error().unwrap_or(libc::EINVAL);
                // A parent that is gone needs no reason.
                let _ = tell.write_all(&errno.to_ne_bytes());
            }
            exit_now(127)
        }
    }
}

impl Prepared {
    /// The child's PID. It is the caller's to reap.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it become the command; returns when it has, or with exec's error (it is reaped then). Dropped instead, it ends.
    pub fn go(mut self) -> io::Result<()> {
        self.go.write_all(&[1])?;
        let mut errno = [0; 4];
        match self.failed.read_exact(&mut errno) {
            Ok(()) => {
                // SAFETY: it is our unreaped child, which ends now; a null status is allowed.
                unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
            // Closed by exec.
            Err(_) => Ok(()),
        }
    }
}

/// What [`wait_any`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// This child changed; the status is wait4's.
    Changed(i32, i32),
    /// Children are there, and none has changed.
    Nothing,
    /// There is no child.
    NoChild,
}

/// Reaps a child that ended, or tells one that was stopped or continued; never waits. Raw, as nix's waitpid loses what
/// ended by a real-time signal.
pub fn wait_any() -> Waited {
    loop {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
        // SAFETY: `status` lives; a null rusage is allowed.
        let pid = unsafe { libc::wait4(-1, &mut status, flags, std::ptr::null_mut()) };
        match pid {
            0 => return Waited::Nothing,
            -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            -1 => return Waited::NoChild,
            pid => return Waited::Changed(pid, status),
        }
    }
}

/// Stops this process by `sig` (SIGTSTP, SIGTTIN, SIGTTOU or SIGSTOP) whatever its mask is, and returns when it is continued.
/// Returns at once where the kernel does not stop it: an orphaned process group ignores SIGTSTP and its like.
pub fn stop_self(sig: i32) {
    // SAFETY: an all-zero sigset_t is a valid, empty set.
    let (mut set, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: the sets live; the signals' default action is a stop and runs no code. An ignored one has no effect.
    unsafe {
        libc::sigaddset(&mut set, sig);
        libc::raise(sig);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, &mut old);
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
    }
}

/// Rows and columns of a terminal.
pub fn window_size(terminal: BorrowedFd) -> io::Result<(u16, u16)> {
    // SAFETY: an all-zero winsize is a valid value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize, which `size` is.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &mut size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((size.ws_row, size.ws_col))
}

/// Sets rows and columns of a terminal.
pub fn set_window_size(terminal: BorrowedFd, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which `size` is.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
