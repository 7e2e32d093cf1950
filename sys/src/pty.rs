//! Pseudo terminals (pty(7), ioctl_tty(2)): what a pair is set to, and what waits in it.
//!
//! The kernel has no way to look at what waits in a terminal: it can only be read, and written again. That is done by a child of ours which nothing
//! but its own SIGKILL keeps from finishing ([`waiting`]), so that nobody's death loses a byte.
use crate::tty;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

mod queues;
#[cfg(test)]
mod tests;
pub use queues::{put, waiting};

const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
/// Opens the other end of a master; its argument are the flags of open(2).
pub const TIOCGPTPEER: libc::c_ulong = 0x5441;
/// Sets whether the slave can be opened; its argument is a pointer.
pub const LOCK: u64 = TIOCSPTLCK;
/// Major number of slaves (Documentation/admin-guide/devices.txt).
pub const SLAVE_MAJOR: u32 = 136;
/// The ordinary line discipline.
pub const N_TTY: i32 = 0;

/// What waits in a pair, and whether its output stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// What was written to the slave and echoed, and the master has not read.
    pub output: Vec<u8>,
    /// Lines that the slave has not read. One that ends otherwise than by a newline or VEOL was ended by VEOF.
    pub lines: Vec<Vec<u8>>,
    /// A line that is not complete; without ICANON, all that the slave has not read.
    pub rest: Vec<u8>,
    /// Why its output stands still.
    pub stopped: Stopped,
}

impl Waiting {
    /// Nothing does.
    pub fn is_empty(&self) -> bool {
        self.output.is_empty() && self.lines.is_empty() && self.rest.is_empty()
    }
}

/// Why a terminal's output stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Stopped {
    /// It does not.
    #[default]
    No = 0,
    /// By VSTOP: Ctrl-S.
    ByKey = 1,
    /// By the program (TCOOFF).
    ByProgram = 2,
}

fn ioctl(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: i32) -> io::Result<i32> {
    // SAFETY: only requests that take a number or nothing are made by this.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument as libc::c_long) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        r => Ok(r),
    }
}

fn get(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<i32> {
    let mut n = 0i32;
    // SAFETY: only requests that write one int are made by this.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut n) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        _ => Ok(n),
    }
}

fn set(fd: BorrowedFd<'_>, request: libc::c_ulong, n: i32) -> io::Result<()> {
    // SAFETY: only requests that read one int are made by this.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw const n) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A new pair's master, not yet unlocked.
pub fn open_master() -> io::Result<OwnedFd> {
    let open = |path: &std::ffi::CStr| {
        // SAFETY: a path that ends in NUL.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
        // SAFETY: the descriptor was just made and nobody else owns it.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(io::Error::last_os_error)
    };
    open(c"/dev/ptmx").or_else(|e| open(c"/dev/pts/ptmx").map_err(|_| e))
}

/// Number of the pair whose master this is.
pub fn number(master: &impl AsFd) -> io::Result<u32> {
    get(master.as_fd(), TIOCGPTN).map(|n| n as u32)
}

/// Another open file of the slave, that does not block.
pub fn open_slave(master: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = ioctl(master.as_fd(), TIOCGPTPEER, flags)?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Device of the terminal that a descriptor is of, also if that was opened as /dev/tty: major and minor. EIO: it was hung up.
pub fn device(terminal: &impl AsFd) -> io::Result<(u32, u32)> {
    let d = get(terminal.as_fd(), TIOCGDEV)? as u32;
    // new_encode_dev
    Ok((d >> 8 & 0xfff, d & 0xff | d >> 12 & 0xfff00))
}

/// Whether the slave cannot be opened (unlockpt(3) was not called).
pub fn is_locked(master: &impl AsFd) -> io::Result<bool> {
    get(master.as_fd(), TIOCGPTLCK).map(|n| n != 0)
}

/// Sets whether the slave can be opened.
pub fn lock(master: &impl AsFd, locked: bool) -> io::Result<()> {
    set(master.as_fd(), TIOCSPTLCK, locked.into())
}

/// Whether the master reads in packets.
pub fn in_packets(master: &impl AsFd) -> io::Result<bool> {
    get(master.as_fd(), TIOCGPKT).map(|n| n != 0)
}

/// Sets packet mode.
pub fn set_packets(master: &impl AsFd, packets: bool) -> io::Result<()> {
    set(master.as_fd(), libc::TIOCPKT, packets.into())
}

/// Whether nobody but root may open this end (TIOCEXCL).
pub fn is_exclusive(end: &impl AsFd) -> io::Result<bool> {
    get(end.as_fd(), TIOCGEXCL).map(|n| n != 0)
}

/// Number of the line discipline.
pub fn discipline(end: &impl AsFd) -> io::Result<i32> {
    get(end.as_fd(), libc::TIOCGETD)
}

/// Bytes that can be read; of complete lines only where it reads lines.
pub fn readable(end: &impl AsFd) -> io::Result<usize> {
    get(end.as_fd(), libc::FIONREAD).map(|n| n as usize)
}

/// POLL bits that are there now. The kernel brings what is on its way in first, if nothing could be read.
pub fn polled(end: &impl AsFd) -> io::Result<i16> {
    queues::poll(end.as_fd(), libc::POLLIN | libc::POLLOUT | libc::POLLPRI, 0)
}

/// Whether it reads lines, by its `struct termios2`.
pub fn reads_lines(termios: &[u8]) -> bool {
    tty::Words::of(termios).is_some_and(|w| w.local & libc::ICANON != 0 && w.local & libc::EXTPROC == 0)
}

/// Masters with these numbers, as far as those are free. The kernel gives the lowest that is.
pub fn masters(wanted: &[u32]) -> io::Result<Vec<(u32, OwnedFd)>> {
    let (mut left, mut got, mut others) = (wanted.to_vec(), Vec::new(), Vec::new());
    let last = wanted.iter().max().copied().unwrap_or(0);
    while !left.is_empty() {
        let master = match open_master() {
            Ok(master) => master,
            // those that were passed by are in the way
            Err(e) if others.is_empty() => return Err(e),
            Err(_) => break,
        };
        let n = number(&master)?;
        match left.iter().position(|w| *w == n) {
            Some(i) => got.push((left.swap_remove(i), master)),
            None => others.push(master),
        }
        if n >= last {
            break;
        }
    }
    // where a number is taken, any
    for wanted in left {
        let master = match others.pop() {
            Some(other) => other,
            None => open_master()?,
        };
        got.push((wanted, master));
    }
    Ok(got)
}
