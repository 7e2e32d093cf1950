//! Terminals: termios and window size (ioctl_tty(2)).
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
/// sizeof(struct termios2)
pub(crate) const TERMIOS2: usize = 44;

/// What a terminal is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `struct termios2`.
    pub termios: Vec<u8>,
    /// Rows, columns, x and y pixels.
    pub winsize: (u16, u16, u16, u16),
}

/// Reads both; ENOTTY if it is no terminal.
pub fn get(fd: &impl AsFd) -> io::Result<Settings> {
    let fd = fd.as_fd().as_raw_fd();
    let mut t = vec![0u8; TERMIOS2];
    // SAFETY: TCGETS2 writes one struct termios2, which `t` has room for.
    if unsafe { libc::ioctl(fd, TCGETS2, t.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut w = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one struct winsize.
    if unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut w) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Settings { termios: t, winsize: (w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel) })
}

/// Sets termios, at once (TCSANOW). A background process would be stopped by SIGTTOU: block it first.
pub fn set_termios(fd: &impl AsFd, termios: &[u8]) -> io::Result<()> {
    if termios.len() != TERMIOS2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: TCSETS2 reads one struct termios2, whose length was checked.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TCSETS2, termios.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the window size: rows, columns, x and y pixels.
pub fn set_winsize(fd: &impl AsFd, w: (u16, u16, u16, u16)) -> io::Result<()> {
    let w = libc::winsize { ws_row: w.0, ws_col: w.1, ws_xpixel: w.2, ws_ypixel: w.3 };
    // SAFETY: TIOCSWINSZ reads one struct winsize.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &w) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The parts of a `struct termios2` that are of interest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_lflag.
    pub local: u32,
    /// c_cc.
    pub keys: [u8; KEYS],
}

/// Where c_cc begins, and how many there are.
const KEYS_AT: usize = 17;
const KEYS: usize = 19;

impl Words {
    /// None: it has not the length.
    pub fn of(termios: &[u8]) -> Option<Words> {
        let word = |at: usize| termios.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let keys = termios.get(KEYS_AT..KEYS_AT + KEYS)?.try_into().ok()?;
        (termios.len() == TERMIOS2).then_some(())?;
        Some(Words { input: word(0)?, output: word(4)?, local: word(12)?, keys })
    }

    /// The settings with these in the place of its own.
    pub fn within(&self, termios: &[u8; TERMIOS2]) -> [u8; TERMIOS2] {
        let mut t = *termios;
        for (at, word) in [(0, self.input), (4, self.output), (12, self.local)] {
            t[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        t[KEYS_AT..KEYS_AT + KEYS].copy_from_slice(&self.keys);
        t
    }
}
