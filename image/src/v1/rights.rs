//! Threads whose credentials are not those of their process.
use super::process::Process;
use serde::{Deserialize, Serialize};

/// The credentials of a thread, credentials(7): as a process's, they are the kernel's per thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rights {
    /// TID in the innermost PID namespace.
    pub tid: i32,
    /// Real, effective, saved, file-system UID.
    pub uid: [u32; 4],
    /// The same of the GID.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub caps: [u64; 5],
    /// Secure bits, prctl(2).
    pub securebits: u32,
    /// no_new_privs.
    pub no_new_privs: bool,
}

impl Rights {
    /// A process's, which are those of its first thread.
    pub fn of(p: &Process) -> Rights {
        Rights {
            tid: p.pid,
            uid: p.uid,
            gid: p.gid,
            groups: p.groups.clone(),
            caps: p.caps,
            securebits: p.securebits,
            no_new_privs: p.no_new_privs,
        }
    }
}
