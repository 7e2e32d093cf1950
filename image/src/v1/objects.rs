//! The kinds of open file: their numbers, and the structs of those that need no file of their own.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Numbers of the kinds: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Kind {
    /// A regular file with a name: [`Named`].
    Regular = 1,
    /// A directory: [`Named`].
    Directory = 2,
    /// A character device without state (/dev/null and kin): [`Named`].
    Device = 3,
    /// Something whose other end is outside: [`External`].
    External = 4,
    /// A terminal: [`External`].
    Terminal = 5,
    /// A regular file without a name: [`Unnamed`].
    Deleted = 6,
    Pipe = 7,
    EventFd = 8,
    Epoll = 9,
    TimerFd = 10,
    SignalFd = 11,
    TcpListen = 12,
    Udp = 13,
    UnixListen = 14,
    UnixPair = 15,
    /// Opened with O_PATH: [`Named`].
    Path = 16,
    /// memfd_create(2): [`Memfd`].
    Memfd = 17,
    /// An unconnected or unbound socket.
    Socket = 18,
    /// inotify(7).
    Inotify = 19,
    /// pidfd_open(2).
    PidFd = 20,
    /// A named pipe.
    Fifo = 21,
    /// A POSIX message queue.
    Mqueue = 22,
    /// A file of /proc or /sys: [`Named`].
    Proc = 23,
    /// pidfd_open(2) of another process of the image, or of a thread: [`super::anon::Handle`].
    Handle = 26,
    /// io_uring_setup(2): [`super::uring::Uring`].
    Uring = 27,
    /// Master of a pseudo terminal: [`super::pty::Master`].
    PtyMaster = 32,
    /// Slave of one whose master is in the image: [`super::pty::Slave`].
    PtySlave = 33,
    /// memfd_create(2) with MFD_HUGETLB, or shared memory of huge pages without a file: [`Memfd`].
    HugeMemfd = 40,
    /// fanotify(7): [`super::fanotify::Fanotify`].
    Fanotify = 41,
}

/// A file with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Path.
    pub path: ByteBuf,
    /// Bytes; checked where the file is one that is only read.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Type and mode.
    pub mode: u32,
    /// Device number, of a device.
    pub rdev: u64,
}

/// A regular file without a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unnamed {
    /// Path that it had.
    pub path: ByteBuf,
    /// Index in `Files::contents`.
    pub content: u32,
    /// Type and mode.
    pub mode: u32,
    /// Inode: two open files of the same one share it.
    pub ino: u64,
    /// Device of the inode.
    pub dev: u64,
}

/// memfd_create(2). One that is only mapped has an open file, too, without a descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memfd {
    /// Name.
    pub name: ByteBuf,
    /// Index in `Files::contents`: those of the same one share it.
    pub content: u32,
    /// F_GET_SEALS.
    pub seals: u32,
    /// Type and mode.
    pub mode: u32,
    /// Size of its pages in KiB, of [`Kind::HugeMemfd`].
    pub page_kb: u32,
}

/// The other end is outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct External {
    /// Which standard stream it is connected to at restore: 0, 1, 2; or -1: none.
    pub stdio: i32,
    /// What the checkpoint's caller decided: it is given up, and has ended.
    pub close: bool,
    /// Or this is opened in its place; empty: nothing was decided.
    pub path: ByteBuf,
    /// termios as TCGETS2 gives it; empty: no terminal.
    pub termios: ByteBuf,
    /// Window size: rows, columns, x and y pixels.
    pub winsize: (u16, u16, u16, u16),
    /// A connection of libdormouse to its recorder: `path` reads as its end, and nobody else decides about it.
    pub ours: bool,
    /// Of a socket: AF_, SOCK_ and protocol numbers. Zeros: no socket, or an older writer.
    pub socket: (i32, i32, i32),
    /// An end of a pipe, or a FIFO.
    pub pipe: bool,
}
