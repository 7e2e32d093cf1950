//! What a process must change of the memory that it has from the one that bears it. Equal pages of a checkpoint have one place in its packs, so what both have as the
//! fork left it is told by the image: it is not written, and stays shared copy-on-write.
use super::place::Kept;
use ::image::v1::memory::{BACKING_FILE_PRIVATE, BACKING_SHARED_ANON};
use ::image::{PageRun, PageSource, PAGE_SIZE};

const PAGE: u64 = PAGE_SIZE as u64;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Pages to be written.
    pub write: Vec<PageRun>,
    /// Ranges whose content goes: first byte, and byte after the last.
    pub forget: Vec<(u64, u64)>,
}

/// Compares the pages of a process with those of the one that bears it; both are in the order of their addresses, as is what it keeps.
pub fn change(own: &[PageRun], theirs: &[PageRun], kept: &[Kept]) -> Change {
    let mut c = Change::default();
    let mut from = 0;
    for k in kept {
        add(own, from, k.range.0, &mut c.write);
        c.compare(own, theirs, k);
        from = k.range.1;
    }
    add(own, from, u64::MAX, &mut c.write);
    c
}

impl Change {
    fn compare(&mut self, own: &[PageRun], theirs: &[PageRun], k: &Kept) {
        let (mut at, end) = k.range;
        while at < end {
            let (mine, my_end) = here(own, at);
            let (its, its_end) = here(theirs, at);
            let next = end.min(my_end).min(its_end);
            match (mine, its) {
                (a, b) if a == b => {}
                // shared memory is one: whoever has borne it has filled it
                (None, _) if k.backing == BACKING_SHARED_ANON => {}
                (None, _) => self.forget.push((at, next)),
                (Some(PageSource::Zero), _) if k.backing != BACKING_FILE_PRIVATE => self.forget.push((at, next)),
                (Some(source), _) => self.write.push(PageRun { addr: at, pages: (next - at) / PAGE, source }),
            }
            at = next;
        }
    }
}

/// What lies at an address, and up to where that goes on.
fn here(runs: &[PageRun], at: u64) -> (Option<PageSource>, u64) {
    let i = runs.partition_point(|r| r.addr + r.pages * PAGE <= at);
    match runs.get(i) {
        Some(r) if r.addr <= at => (Some(source(r, at)), r.addr + r.pages * PAGE),
        Some(r) => (None, r.addr),
        None => (None, u64::MAX),
    }
}

/// Where the page at an address of a run is.
fn source(r: &PageRun, at: u64) -> PageSource {
    match r.source {
        PageSource::Zero => PageSource::Zero,
        PageSource::Pack { pack, place } => PageSource::Pack { pack, place: place + (at - r.addr) / PAGE },
    }
}

/// The part of the runs that lies between two addresses.
fn add(runs: &[PageRun], from: u64, to: u64, out: &mut Vec<PageRun>) {
    for r in &runs[runs.partition_point(|r| r.addr + r.pages * PAGE <= from)..] {
        let (start, end) = (r.addr.max(from), (r.addr + r.pages * PAGE).min(to));
        if start >= to {
            break;
        }
        out.push(PageRun { addr: start, pages: (end - start) / PAGE, source: source(r, start) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::v1::memory::BACKING_ANON;

    fn run(page: u64, pages: u64, place: u64) -> PageRun {
        PageRun { addr: page * PAGE, pages, source: PageSource::Pack { pack: 0, place } }
    }

    fn zero(page: u64, pages: u64) -> PageRun {
        PageRun { addr: page * PAGE, pages, source: PageSource::Zero }
    }

    fn kept(from: u64, to: u64, backing: u32) -> Kept {
        Kept { range: (from * PAGE, to * PAGE), backing }
    }

    #[test]
    fn what_both_have_is_not_touched_and_all_else_is_made_right() {
        let theirs = [run(1, 10, 100), zero(20, 2)];
        // page 3 is another, 5 and 6 are gone, 7 is zero, 30 is outside what is kept
        let own =
            [run(1, 2, 100), run(3, 1, 500), run(4, 1, 103), zero(7, 1), run(8, 3, 107), zero(20, 2), run(30, 4, 7)];
        let c = change(&own, &theirs, &[kept(1, 25, BACKING_ANON)]);
        assert_eq!(c.write, [run(3, 1, 500), run(30, 4, 7)]);
        assert_eq!(c.forget, [(5 * PAGE, 7 * PAGE), (7 * PAGE, 8 * PAGE)]);
    }

    #[test]
    fn a_zero_page_over_a_file_is_written_and_shared_memory_is_never_forgotten() {
        let c = change(&[zero(1, 1)], &[run(1, 1, 4)], &[kept(1, 2, BACKING_FILE_PRIVATE)]);
        assert_eq!((c.write, c.forget), (vec![zero(1, 1)], vec![]));
        assert_eq!(change(&[], &[run(1, 1, 4)], &[kept(1, 2, BACKING_SHARED_ANON)]), Change::default());
    }

    #[test]
    fn without_anything_kept_all_is_written_even_over_borders() {
        let own = [run(1, 10, 0)];
        assert_eq!(change(&own, &own, &[]).write, own);
        let c = change(&own, &[], &[kept(4, 6, BACKING_ANON)]);
        assert_eq!(c.write, [run(1, 3, 0), run(4, 2, 3), run(6, 5, 5)]);
        assert!(c.forget.is_empty());
    }
}
