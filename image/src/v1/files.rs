//! Open files and descriptors.
use crate::pages::PageRun;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// All open files of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// Open file descriptions; an index in here is a file's ID.
    pub open: Vec<OpenFile>,
    /// Descriptors by number.
    pub fds: Vec<Fd>,
    /// Contents of files that have no name any more.
    pub contents: Vec<Content>,
}

/// A descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fd {
    /// Number.
    pub fd: i32,
    /// Open file.
    pub open: u32,
    /// Close on exec.
    pub cloexec: bool,
}

/// An open file description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenFile {
    /// One of the numbers of [`super::objects::Kind`].
    pub kind: u32,
    /// Status flags and access mode (O_ constants, without O_CLOEXEC).
    pub flags: u32,
    /// Position.
    pub pos: i64,
    /// F_SETOWN: type (F_OWNER_TID 0, PID 1, PGRP 2) and ID; ID 0: none.
    pub owner: (i32, i32),
    /// F_SETSIG; 0: the default.
    pub sig: i32,
    /// Locks held through it.
    pub locks: Vec<Lock>,
    /// What it is, in words, for messages: a path, "pipe:[123]".
    pub label: ByteBuf,
    /// The kind's own struct, a msgpack named map.
    pub data: ByteBuf,
}

/// flock(2): belongs to the open file.
pub const LOCK_FLOCK: u32 = 1;
/// F_SETLK: belongs to the process.
pub const LOCK_POSIX: u32 = 2;
/// F_OFD_SETLK: belongs to the open file.
pub const LOCK_OFD: u32 = 3;

/// F_SETLEASE: belongs to the open file.
pub const LOCK_LEASE: u32 = 4;

/// A lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lock {
    /// One of the `LOCK_` constants.
    pub kind: u32,
    /// Exclusive; else shared.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; all ones: to the end, however long.
    pub end: u64,
}

/// Content of a file without a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Where its pages lie; `addr` is the offset. Holes are absent.
    pub pages: Vec<PageRun>,
}
