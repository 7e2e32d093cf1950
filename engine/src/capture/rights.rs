//! Credentials of threads that are not their process's: set by raw system calls, as file servers do; the C library sets them in all threads.
use super::observe::Seen;
use super::threads::Facts;
use image::v1::rights::Rights;
use std::collections::BTreeMap;
use sys::procfs::status::{Ids, Status};

/// Capabilities in the image's order.
pub(super) fn caps(s: &Status) -> [u64; 5] {
    [s.cap_inheritable, s.cap_permitted, s.cap_effective, s.cap_bounding, s.cap_ambient]
}

/// User or group IDs in the image's order.
pub(super) fn ids(i: &Ids) -> [u32; 4] {
    [i.real, i.effective, i.saved, i.fs]
}

/// A thread's, as far as /proc tells them: not compared with others' before all stand still, for whose are the process's may change.
pub(crate) fn of(s: &Status, tid: i32) -> Rights {
    Rights {
        tid,
        uid: ids(&s.uid),
        gid: ids(&s.gid),
        groups: s.groups.clone(),
        caps: caps(s),
        securebits: 0,
        no_new_privs: s.no_new_privs,
    }
}

/// The credentials of all threads that have others than the process: with their secure bits, which each has told itself.
pub(super) fn all(seen: &Seen, facts: &BTreeMap<i32, Facts>) -> Vec<Rights> {
    let process = Rights::of(&seen.process);
    let one = |t: &super::told::Told| {
        let own = facts.get(&t.tid)?.rights.clone();
        let own = Rights { securebits: t.securebits.max(0) as u32, ..own };
        (Rights { tid: process.tid, ..own.clone() } != process).then_some(own)
    };
    seen.told.iter().filter_map(one).collect()
}
