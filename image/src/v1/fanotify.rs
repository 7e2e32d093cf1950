//! fanotify(7).
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// [`Mark::on`]: an inode.
pub const ON_INODE: u32 = 0;
/// [`Mark::on`]: a mount.
pub const ON_MOUNT: u32 = 1;
/// [`Mark::on`]: a file system.
pub const ON_FILE_SYSTEM: u32 = 2;

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fanotify {
    /// FAN_ bits of fanotify_init(2).
    pub flags: u32,
    /// O_ flags of what its events open.
    pub event_flags: u32,
    /// It was made without CAP_SYS_ADMIN, so that its events do not tell whose they are.
    pub plain: bool,
    /// What it watches, the newest first.
    pub marks: Vec<Mark>,
}

/// A mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// One of the `ON_` constants.
    pub on: u32,
    /// FAN_ bits: events, FAN_EVENT_ON_CHILD, FAN_ONDIR.
    pub mask: u32,
    /// The same of what it ignores.
    pub ignored: u32,
    /// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE, FAN_MARK_IGNORE.
    pub flags: u32,
    /// A name of the inode, without symbolic links; or where the mount, or one of the file system, is.
    pub path: ByteBuf,
    /// Type and mode, of an inode.
    pub mode: u32,
    /// The inode has no name: it is what this descriptor has open.
    pub fd: Option<i32>,
    /// Type of the file system, of a mount or file system.
    pub fs_type: ByteBuf,
    /// The directory of its file system that is mounted, of a mount.
    pub root: ByteBuf,
}
