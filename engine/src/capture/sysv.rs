//! System V shared memory. A segment outlives its users, as a named file does: it stays the kernel's, and a restore attaches it again. One that is
//! marked to go with the last of them (IPC_RMID) is memory of the program's own, unless somebody outside is attached.
use super::{Observer, Step};
use crate::Reason;
use image::v1::memory::Segment;
use std::collections::BTreeSet;
use sys::kcmp::Resource;
use sys::procfs;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::pagemap::{Categories, Pagemap, Query, Region};
use sys::procfs::sysvipc::{self, Shm};

/// Bytes.
const PAGE: usize = image::PAGE_SIZE;

fn is_of(v: &Vma, s: &Shm) -> bool {
    matches!(v.kind(), VmaKind::SysvShm { .. }) && v.inode == s.id as u64
}

/// The segments behind these mappings; asked in the freeze, as later one may have been removed.
fn segments(maps: &[Vma]) -> Vec<Segment> {
    if !maps.iter().any(|v| matches!(v.kind(), VmaKind::SysvShm { .. })) {
        return Vec::new();
    }
    let mapped = |s: &Shm| maps.iter().any(|v| is_of(v, s));
    let one = |s: Shm| Segment { id: s.id, key: s.key, size: s.size, mode: s.mode, ends: s.ends, page_kb: 0 };
    sysvipc::shm().unwrap_or_default().into_iter().filter(mapped).map(one).collect()
}

impl Observer<'_> {
    /// The same with the size of their pages.
    pub(super) fn segments_of(&mut self, maps: &[Vma]) -> Step<Vec<Segment>> {
        let mut all = segments(maps);
        for s in &mut all {
            let of = |v: &&Vma| matches!(v.kind(), VmaKind::SysvShm { .. }) && v.inode == s.id as u64;
            if let Some(v) = maps.iter().find(of) {
                s.page_kb = self.huge_pages(v)?;
            }
        }
        Ok(all)
    }

    /// Which of the huge pages of a segment are to be stored, of those that a mapping shows. To look at one that is not there takes it from the pool, unless it is
    /// reserved, of which nothing is told (SHM_NORESERVE). So only those are looked at that some process has in its page tables, and if there are more, nobody
    /// can tell which: refused.
    pub(super) fn huge_pages_there(&mut self, v: &Vma, s: &Segment) -> Step<Vec<Region>> {
        let bytes = u64::from(s.page_kb) << 10;
        let mut known = BTreeSet::new();
        for pid in &self.common.members {
            let maps = procfs::maps::read(*pid)?;
            let of = maps.iter().filter(|m| matches!(m.kind(), VmaKind::SysvShm { .. }) && m.inode == v.inode);
            for m in of {
                let pages = Pagemap::open(*pid)?.regions(m.start..m.end, &THERE)?;
                let at = pages.iter().flat_map(|r| (r.start..r.end).step_by(PAGE));
                known.extend(at.map(|at| (at - m.start + m.offset) / bytes * bytes));
            }
        }
        let there = sysvipc::shm()?.into_iter().find(|h| is_of(v, h)).map_or(0, |h| h.resident);
        if !is_all(known.len() as u64 * bytes, there, s) {
            let why = "more of its huge pages are there than the program has in its page tables, and to look for them could take some from others";
            let remedy = "let the program touch each page that it has written, or not remove the segment (IPC_RMID) before it ends";
            return Err(self.refused(Reason::new(super::mappings::describe(v), why, remedy)).into());
        }
        let shown = known.range(v.offset..v.offset + (v.end - v.start));
        let region = |at: &u64| Region {
            start: v.start + (at - v.offset),
            end: v.start + (at - v.offset) + bytes,
            categories: Categories::NONE,
        };
        Ok(shown.map(region).collect())
    }
}

/// What is in the page tables.
const THERE: Query =
    Query { all: Categories::NONE, any: Categories::PRESENT, none: Categories::NONE, tell: Categories::NONE };

/// Whether `known` bytes of a segment are all of it that is there. Since 6.7 the kernel says too much of that: its page cache counts small pages, and
/// shm_add_rss_swap (ipc/shm.c) multiplies that by their number in a huge one.
fn is_all(known: u64, there: u64, s: &Segment) -> bool {
    let pages = (u64::from(s.page_kb) << 10) / PAGE as u64;
    known == there || known * pages == there
}

/// How often processes are attached to it.
fn attached(pids: &[i32], s: &Shm) -> u64 {
    // of those with the same memory the first
    let firsts = sys::kcmp::firsts(pids, Resource::Vm).unwrap_or_else(|_| (0..pids.len()).collect());
    let pids = pids.iter().enumerate().filter(|(i, _)| firsts[*i] == *i).map(|(_, pid)| *pid);
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
    let is_another = |m: &i32| *m != pid && !sys::kcmp::shares(*m, pid, Resource::Vm).is_ok_and(|same| same);
    let others: Vec<i32> = members.iter().copied().filter(|m| !own.is_empty() && is_another(m)).collect();
    let all = if own.is_empty() { Vec::new() } else { sysvipc::shm().unwrap_or_default() };
    let reason = |v: &&Vma| {
        let what = |why: String, remedy| Reason::new(super::mappings::describe(v), why, remedy);
        let Some(s) = all.iter().find(|s| is_of(v, s)) else {
            let why = "its segment of System V shared memory is not among those that are seen here";
            return Some(what(why.into(), "run ctl inside the same container or namespace"));
        };
        let ours = own.iter().filter(|v| is_of(v, s)).count() as u64;
        let why = format!(
            "its segment of System V shared memory ({}) is marked to go, and other processes are attached to it, which a restored one could not be",
            s.id
        );
        (s.ends && s.attached > ours && s.attached > ours + attached(&others, s))
            .then(|| what(why, "end those processes (ipcs -mp), or detach it (shmdt)"))
    };
    own.iter().filter_map(reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_of_a_segment_of_huge_pages() {
        let huge = 2 << 20;
        let s = Segment { size: 1024 * huge, page_kb: 2048, ..Segment::default() };
        assert!(is_all(3 * huge, 3 * huge, &s) && !is_all(2 * huge, 3 * huge, &s) && is_all(0, 0, &s));
        // as newer kernels count
        assert!(is_all(3 * huge, 3 * 512 * huge, &s) && !is_all(2 * huge, 3 * 512 * huge, &s));
    }
}
