//! inotify(7).
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inotify {
    /// What it watches, by number.
    pub watches: Vec<Watch>,
}

/// A watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Watch descriptor.
    pub wd: i32,
    /// IN_ bits: events, IN_EXCL_UNLINK, IN_ONESHOT.
    pub mask: u32,
    /// A name of what is watched, without symbolic links.
    pub path: ByteBuf,
    /// Its type and mode.
    pub mode: u32,
    /// It has no name: it is what this descriptor has open.
    pub fd: Option<i32>,
}
