//! Pipes and the kernel's anonymous inodes.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// One end of a pipe; the ends of one pipe share `ino`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pipe {
    /// Identity within the image.
    pub ino: u64,
    /// Capacity in bytes, F_GETPIPE_SZ.
    pub capacity: u32,
    /// What is in it, with the first reading end only, in order.
    pub content: Vec<PipePart>,
}

/// A part of what is in a pipe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipePart {
    /// The bytes.
    pub data: ByteBuf,
    /// It is one packet (O_DIRECT); else a stretch of stream.
    pub packet: bool,
}

/// An open file of a FIFO; those of one FIFO share `dev` and `ino`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fifo {
    /// Path.
    pub path: ByteBuf,
    /// Device of the inode.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Capacity in bytes, F_GETPIPE_SZ.
    pub capacity: u32,
    /// What is in it, with the first that can be read only, in order.
    pub content: Vec<PipePart>,
    /// Of one to read from: its writers have gone, and poll(2) says so.
    pub hung_up: bool,
}

/// eventfd(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventFd {
    /// Counter.
    pub count: u64,
    /// EFD_SEMAPHORE.
    pub semaphore: bool,
}

/// epoll(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Epoll {
    /// What it watches.
    pub targets: Vec<EpollTarget>,
}

/// An entry of an epoll set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpollTarget {
    /// Descriptor number under which it was added.
    pub tfd: i32,
    /// A descriptor that is the same open file now; differs where `tfd` was closed but the file lives on.
    pub fd: i32,
    /// EPOLL_ bits.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// timerfd_create(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimerFd {
    /// Clock.
    pub clock: i32,
    /// Flags of timerfd_settime.
    pub settime_flags: u32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// Time left, nanoseconds; 0: disarmed.
    pub value_ns: u64,
    /// Interval, nanoseconds.
    pub interval_ns: u64,
    /// For an absolute timer of a clock that tells the date: when it goes off, nanoseconds since 1970; else 0.
    pub date_ns: u64,
}

/// signalfd(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalFd {
    /// Signals, bit n-1 for signal n.
    pub mask: u64,
}

/// pidfd_open(2), of the process itself or of one that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidFd {
    /// It is of the process itself; else of one that has ended.
    pub own: bool,
    /// Identity within the image of one that has ended: several may be of the same.
    pub ino: u64,
    /// How that one ended (wait status), where the kernel tells.
    pub status: Option<i32>,
}

/// pidfd_open(2), of another process of the image, which may have ended, or of a thread (PIDFD_THREAD).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handle {
    /// PID, or TID, in the innermost PID namespace.
    pub pid: i32,
}
