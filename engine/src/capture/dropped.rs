//! What the program has said by libdormouse: that this is no moment for a checkpoint (`disable`), and which memory is not worth keeping
//! (`drop`), which is left out, so that it comes back as zero pages.
use super::{Observer, Step};
use crate::{Error, Kind};
use std::ops::Range;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::pagemap::Region;

/// Whether it would come back as zeros: private memory of no file.
fn zeroed(v: &Vma) -> bool {
    let kinds = matches!(v.kind(), VmaKind::Anonymous | VmaKind::AnonNamed(_) | VmaKind::Heap);
    kinds && !v.perms.shared
}

/// What of a mapping is left out.
pub(super) fn of(regions: &[(u64, u64)], v: &Vma) -> Vec<Range<u64>> {
    let parts = regions.iter().map(|r| r.0.max(v.start)..r.1.min(v.end)).filter(|r| r.start < r.end);
    if zeroed(v) {
        parts.collect()
    } else {
        Vec::new()
    }
}

/// The regions without what is left out of them (sorted).
pub(super) fn without(all: Vec<Region>, dropped: &[Range<u64>]) -> Vec<Region> {
    let mut kept = Vec::with_capacity(all.len());
    for r in all {
        let mut from = r.start;
        for d in dropped.iter().filter(|d| d.start < r.end && r.start < d.end) {
            if from < d.start {
                kept.push(Region { start: from, end: d.start, ..r });
            }
            from = from.max(d.end);
        }
        if from < r.end {
            kept.push(Region { start: from, ..r });
        }
    }
    kept
}

impl Observer<'_> {
    /// Refuses a program that has said that this is no moment for a checkpoint.
    pub(super) fn critical(&self) -> Step<()> {
        let Some(n) = self.block.as_ref().map(sys::api::Block::disabled).filter(|n| *n > 0) else { return Ok(()) };
        let why = format!("it is in a critical section (dormouse_disable, {n} deep)");
        let remedy = "try again when it has left it (dormouse_enable)";
        let (attempted, object) = (self.survey.attempted.clone(), format!("PID {}", self.survey.pid));
        Err(Error::new(Kind::Busy, attempted, object, why, remedy).into())
    }

    /// Its hooks run before a checkpoint, by a thread that is found in its memory: which could not be looked at then.
    pub(super) fn refuse_unheard_hooks(&self) -> Step<()> {
        if !self.opened || self.block.as_ref().and_then(sys::api::Block::helper).is_none() {
            return Ok(());
        }
        let (attempted, object) = (self.survey.attempted.clone(), format!("PID {}", self.survey.pid));
        let why = "it has hooks, and is not dumpable, so that nobody but root may find the thread that runs them";
        let remedy = "run ctl as root, or let it be dumpable (PR_SET_DUMPABLE) while it has hooks";
        Err(Error::new(Kind::Refused, attempted, object, why, remedy).into())
    }

    /// Memory not worth keeping, as the program said.
    pub(super) fn dropped(&self) -> Vec<(u64, u64)> {
        self.block.as_ref().map(|b| b.regions()).unwrap_or_default()
    }

    /// Says what is left out, and what the program wanted left out that is kept.
    pub(super) fn report_dropped(&mut self, maps: &[Vma]) {
        let regions = self.dropped();
        if regions.is_empty() {
            return;
        }
        let left_out: u64 = maps.iter().flat_map(|v| of(&regions, v)).map(|d| d.end - d.start).sum();
        let asked: u64 = regions.iter().map(|r| r.1 - r.0).sum();
        let kib = |bytes: u64| bytes >> 10;
        let n = regions.len();
        self.noted.push(format!(
            "{} KiB of memory in {n} region{}: the program said that it is not worth keeping (dormouse_drop); zeros after a restore",
            kib(left_out),
            if n == 1 { "" } else { "s" }
        ));
        if left_out < asked {
            let what = "it is not private memory of no file, or no memory at all: kept as it is";
            self.noted.push(format!("{} KiB that dormouse_drop named: {what}", kib(asked.saturating_sub(left_out))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_cut_out() {
        let r = |start, end| Region { start, end, categories: Default::default() };
        let cut = |d: &[Range<u64>]| {
            without(vec![r(10, 20), r(30, 40)], d).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>()
        };
        assert_eq!(cut(&[]), [(10, 20), (30, 40)]);
        assert_eq!(cut(&[12..14, 15..35]), [(10, 12), (14, 15), (35, 40)]);
        assert!(cut(&[5..50, 50..51]).is_empty());
        assert_eq!(cut(&[0..1, 20..30]), [(10, 20), (30, 40)]);
    }
}
