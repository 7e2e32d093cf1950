//! System V shared memory. A segment outlives its users, as a named file does: it stays the kernel's, and a restore attaches it again. One that is
//! marked to go with the last of them (IPC_RMID) is memory of the program's own, unless somebody outside is attached.
use crate::Reason;
use image::v1::memory::Segment;
use sys::procfs;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::sysvipc::{self, Shm};

fn is_of(v: &Vma, s: &Shm) -> bool {
    matches!(v.kind(), VmaKind::SysvShm { .. }) && v.inode == s.id as u64
}

/// The segments behind these mappings; asked in the freeze, as later one may have been removed.
pub(super) fn segments(maps: &[Vma]) -> Vec<Segment> {
    if !maps.iter().any(|v| matches!(v.kind(), VmaKind::SysvShm { .. })) {
        return Vec::new();
    }
    let mapped = |s: &Shm| maps.iter().any(|v| is_of(v, s));
    let one = |s: Shm| Segment { id: s.id, key: s.key, size: s.size, mode: s.mode, ends: s.ends };
    sysvipc::shm().unwrap_or_default().into_iter().filter(mapped).map(one).collect()
}

/// How often processes are attached to it.
fn attached(pids: impl Iterator<Item = i32>, s: &Shm) -> u64 {
    pids.map(|pid| procfs::maps::read(pid).unwrap_or_default().iter().filter(|v| is_of(v, s)).count() as u64).sum()
}

/// Those that are marked to go, and that others are attached to than these (`members`) that are captured together; `maps` are the mappings of one of them,
/// `pid`. Asked while there is no snapshot child, which would count.
pub(super) fn shared_with_others<'a>(
    maps: impl IntoIterator<Item = &'a Vma>,
    pid: i32,
    members: &[i32],
) -> Vec<Reason> {
    let own: Vec<&Vma> = maps.into_iter().filter(|v| matches!(v.kind(), VmaKind::SysvShm { .. })).collect();
    let all = if own.is_empty() { Vec::new() } else { sysvipc::shm().unwrap_or_default() };
    let reason = |v: &&Vma| {
        let what = |why: String, remedy| Reason::new(super::find::describe(v), why, remedy);
        let Some(s) = all.iter().find(|s| is_of(v, s)) else {
            let why = "its segment of System V shared memory is not among those that are seen here";
            return Some(what(why.into(), "run ctl inside the same container or namespace"));
        };
        let ours = own.iter().filter(|v| is_of(v, s)).count() as u64;
        let why = format!(
            "its segment of System V shared memory ({}) is marked to go, and other processes are attached to it, which a restored one could not be",
            s.id
        );
        let others = || attached(members.iter().copied().filter(|m| *m != pid), s);
        (s.ends && s.attached > ours && s.attached > ours + others())
            .then(|| what(why, "end those processes (ipcs -mp), or detach it (shmdt)"))
    };
    own.iter().filter_map(reason).collect()
}
