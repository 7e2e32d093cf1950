//! Pseudo terminals whose masters are in the image.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A master, with all that is the terminal's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Master {
    /// N of /dev/pts/N: identity within the image.
    pub number: u32,
    /// Its slave was opened at some time.
    pub opened: bool,
    /// termios as TCGETS2 gives it.
    pub termios: ByteBuf,
    /// Window size: rows, columns, x and y pixels.
    pub winsize: (u16, u16, u16, u16),
    /// The slave cannot be opened (TIOCGPTLCK).
    pub locked: bool,
    /// Packet mode (TIOCGPKT).
    pub packets: bool,
    /// Session whose controlling terminal it is, and its foreground process group, by their numbers in the innermost PID namespace; 0: none, or outside it.
    pub session: i32,
    /// See `session`.
    pub foreground: i32,
    /// Owner, group and mode of /dev/pts/N; None: not known.
    pub owner: Option<(u32, u32, u32)>,
    /// What the master has not read yet.
    pub output: ByteBuf,
    /// Lines that the slave has not read yet; one without a newline or VEOL at its end was ended by VEOF.
    pub lines: Vec<ByteBuf>,
    /// What follows them: a part of a line; without ICANON all that the slave has not read yet.
    pub rest: ByteBuf,
    /// Output stands still: 1 by VSTOP, 2 by TCOOFF.
    pub stopped: u32,
}

/// An open file of a slave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slave {
    /// Its master's `number`.
    pub number: u32,
    /// It was opened as /dev/tty.
    pub controlling: bool,
    /// TIOCEXCL.
    pub exclusive: bool,
}
