//! Control groups, cgroups(7). They are not made again: a process that is restored goes into its own if that is there.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Those that a process is in, of which at least one is not the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroups {
    /// Whose: PID in the innermost namespace.
    pub pid: i32,
    /// One in each hierarchy.
    pub groups: Vec<Cgroup>,
}

/// A control group, as the recorder's cgroup namespace named it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// Hierarchy of version 1: its controllers, or `name=...`; empty: version 2.
    pub hierarchy: ByteBuf,
    /// Its path.
    pub path: ByteBuf,
    /// Inode of its folder, in version 2, which tells it from another of that name until the next boot; 0: not known.
    pub inode: u64,
}
