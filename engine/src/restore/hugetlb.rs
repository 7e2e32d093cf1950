//! Memory of huge pages: whether there are enough of them, and how it is mapped. What is shared is a file without a name (objects/memfd.rs).
use super::{files, place, unnamed, Tree};
use crate::{objects, Reason};
use ::image::v1::files::OpenFile;
use ::image::v1::memory::{Segment, Vma, BACKING_HUGETLB, BACKING_UNNAMED};
use ::image::v1::objects::{Kind, Memfd};
use ::image::PageSource;
use std::collections::{BTreeMap, BTreeSet};

/// What mmap(2) is told of it: the binary logarithm of the size of its pages is in the flags.
pub fn flags(v: &Vma) -> i32 {
    libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB | (log(v.page_kb) << libc::MAP_HUGE_SHIFT) as i32
}

/// The same for memfd_create(2), whose flags are alike; `page_kb` 0: ordinary pages.
pub fn memfd_flags(page_kb: u32) -> u32 {
    if page_kb == 0 {
        return 0;
    }
    libc::MFD_HUGETLB | log(page_kb) << libc::MAP_HUGE_SHIFT
}

/// The same for shmget(2).
pub fn segment_flags(page_kb: u32) -> i32 {
    if page_kb == 0 {
        return 0;
    }
    libc::SHM_HUGETLB | (log(page_kb) << libc::MAP_HUGE_SHIFT) as i32
}

fn log(page_kb: u32) -> u32 {
    (u64::from(page_kb) << 10).checked_ilog2().unwrap_or(0)
}

/// The size of its pages makes no sense.
pub fn nonsense(v: &Vma) -> bool {
    let bytes = u64::from(v.page_kb) << 10;
    v.backing == BACKING_HUGETLB
        && (!bytes.is_power_of_two() || !v.start.is_multiple_of(bytes) || !v.end.is_multiple_of(bytes))
}

/// Refuses what there are too few huge pages for, by their size.
pub fn check(tree: &Tree<'_>) -> Vec<Reason> {
    let mut needed: BTreeMap<u32, u64> = BTreeMap::new();
    for image in &tree.all {
        for v in image.memory.vmas.iter().filter(|v| v.backing == BACKING_HUGETLB) {
            let bytes = u64::from(v.page_kb) << 10;
            let whole = (v.end - v.start) / bytes;
            // with MAP_NORESERVE only those that are there
            let within = |at: &u64| (v.start..v.end).contains(at);
            let runs =
                image.memory.pages.iter().flat_map(|r| (0..r.pages).map(|i| r.addr + i * ::image::PAGE_SIZE as u64));
            let there = || runs.filter(within).map(|at| at / bytes).collect::<BTreeSet<_>>().len() as u64;
            *needed.entry(v.page_kb).or_default() += if place::has_flag(&v.flags, "nr") { there() } else { whole };
        }
    }
    for (of, kb) in shared(tree) {
        let bytes = u64::from(kb) << 10;
        let page = ::image::PAGE_SIZE as u64;
        let filled = tree.all.first().and_then(|i| i.files.contents.get(of as usize));
        let filled = filled
            .iter()
            .flat_map(|c| &c.pages)
            .filter(|r| r.source != PageSource::Zero)
            .flat_map(|r| (0..r.pages).map(move |i| (r.addr + i * page) / bytes));
        // a mapping reserves what it shows, whoever else has reserved that, unless it is MAP_NORESERVE
        let maps = |v: &&Vma| v.backing == BACKING_UNNAMED && v.file == of && !place::has_flag(&v.flags, "nr");
        let mapped = tree.all.iter().flat_map(|i| i.memory.vmas.iter().filter(maps));
        let mapped = mapped.flat_map(|v| v.offset / bytes..(v.offset + (v.end - v.start)) / bytes);
        *needed.entry(kb).or_default() += filled.chain(mapped).collect::<BTreeSet<_>>().len() as u64;
    }
    let made: BTreeMap<i32, &Segment> =
        tree.all.iter().flat_map(|i| &i.memory.segments).filter(|s| s.ends).map(|s| (s.id, s)).collect();
    for s in made.values().filter(|s| s.page_kb > 0) {
        *needed.entry(s.page_kb).or_default() += s.size.div_ceil(u64::from(s.page_kb) << 10);
    }
    needed.into_iter().filter_map(|(kb, n)| missing(kb, n)).collect()
}

/// Shared memory of huge pages: its content, and their size.
fn shared(tree: &Tree<'_>) -> BTreeMap<u32, u32> {
    let open = tree.all.first().into_iter().flat_map(|i| i.files.open.iter());
    let huge = open.filter(|f| f.kind == Kind::HugeMemfd as u32);
    huge.filter_map(|f| Some((unnamed::content(f)?, files::decode::<Memfd>(f).ok()?.page_kb))).collect()
}

/// A memfd the size of whose pages makes no sense.
pub fn odd_memfd(f: &OpenFile) -> bool {
    let kb = || files::decode::<Memfd>(f).map_or(0, |m| m.page_kb);
    match f.kind == Kind::HugeMemfd as u32 {
        true => !kb().is_power_of_two(),
        false => objects::is_memfd(f) && kb() != 0,
    }
}

fn missing(kb: u32, needed: u64) -> Option<Reason> {
    let dir = format!("/sys/kernel/mm/hugepages/hugepages-{kb}kB");
    let number =
        |file: &str| std::fs::read_to_string(format!("{dir}/{file}")).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let object = format!("{needed} huge pages of {kb} KiB");
    let Some(all) = number("nr_hugepages") else {
        let why = "this machine has none of that size";
        return Some(Reason::new(object, why, "restore it on a machine that has them"));
    };
    let of = |file| number(file).unwrap_or(0);
    let surplus = of("surplus_hugepages");
    let more = of("nr_overcommit_hugepages").saturating_sub(surplus);
    let free = of("free_hugepages").saturating_sub(of("resv_hugepages")) + more;
    (free < needed).then(|| {
        let remedy = format!(
            "have root reserve more: echo {} > {dir}/nr_hugepages",
            all.saturating_sub(surplus) + needed - free
        );
        Reason::new(object, format!("its memory consists of them, and {free} are free here"), remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_told_by_its_logarithm() {
        let v = |page_kb, end| Vma { backing: BACKING_HUGETLB, end, page_kb, ..Vma::default() };
        assert_eq!(flags(&v(2048, 0)) >> libc::MAP_HUGE_SHIFT, 21);
        assert_eq!(flags(&v(1 << 20, 0)) >> libc::MAP_HUGE_SHIFT, 30);
        assert_eq!((memfd_flags(0), memfd_flags(2048)), (0, libc::MFD_HUGETLB | 21 << 26));
        assert!(!nonsense(&v(2048, 4 << 20)) && !nonsense(&Vma { end: 0x1000, ..Vma::default() }));
        assert!(nonsense(&v(2048, 3 << 20)) && nonsense(&v(0, 4 << 20)) && nonsense(&v(3, 3 << 10)));
    }
}
