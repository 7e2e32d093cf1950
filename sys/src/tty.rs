//! Terminals: termios and window size (ioctl_tty(2)).
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
/// sizeof(struct termios2)
const TERMIOS2: usize = 44;

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
