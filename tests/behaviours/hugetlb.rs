//! Private memory of huge pages. The kernel has none to begin with: they are reserved for each case, as many as the program has.
use anyhow::Result;
use dormouse_tests::hugepages::HugePages;
use dormouse_tests::target::Start;
use dormouse_tests::{unharmed, Bed, Case};

/// Of mem_hugetlb, one of which is not reserved.
const PAGES: u64 = 7;
/// Of tree_hugetlb: the child has all but one, too.
const BOTH: u64 = PAGES + 6;

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("mem_hugetlb/cycles", |bed, agent| cycles(bed, agent, "mem_hugetlb", PAGES));
    all.extend(Case::by_both_doors("tree_hugetlb/cycles", |bed, agent| cycles(bed, agent, "tree_hugetlb", BOTH)));
    all.extend(Case::by_both_doors("mem_hugetlb/run-on", run_on));
    all.extend(Case::by_both_doors("mem_hugetlb/shared", shared));
    all.extend(Case::each("mem_hugetlb/sabotage", sabotage));
    all.extend(Case::each("mem_hugetlb/too-few", too_few));
    // one has huge pages at a time
    all.into_iter().map(|c| c.limit(150)).collect()
}

fn cycles(bed: &mut Bed, agent: bool, program: &str, pages: u64) -> Result<()> {
    let _pages = HugePages::reserve(pages)?;
    let mut target = Start::program(program).by_agent(agent).ready(bed)?;
    for _ in 0..5 {
        target.checkpoint(bed)?;
        target.kill(bed)?;
        target.restore(bed)?;
    }
    target.prove(bed).map(|_| ())
}

/// What it writes meanwhile takes no page from the pool, which is empty.
fn run_on(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = HugePages::reserve(PAGES)?;
    let mut target = Start::program("mem_hugetlb").by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(|_| ())
}

fn shared(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = HugePages::reserve(PAGES)?;
    let mut target = Start::program("mem_hugetlb").args(["--shared"]).by_agent(agent).ready(bed)?;
    let words = ["mapping ", "shared memory of huge pages is not kept yet; run it without MAP_HUGETLB"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    unharmed::entirely(target.pid)?;
    target.end(bed)
}

fn sabotage(bed: &mut Bed) -> Result<()> {
    let _pages = HugePages::reserve(PAGES)?;
    let mut target = Start::program("mem_hugetlb").args(["--sabotage"]).ready(bed)?;
    target.kill(bed)?;
    target.restore(bed)?;
    target.fail(bed)
}

/// Refused with how many it takes and how they are reserved; and then it is restored.
fn too_few(bed: &mut Bed) -> Result<()> {
    let pages = HugePages::reserve(PAGES)?;
    let mut target = Start::program("mem_hugetlb").ready(bed)?;
    target.kill(bed)?;
    pages.set(PAGES - 1)?;
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let (needed, remedy) = (format!("{PAGES} huge pages of 2048 KiB"), format!("> {pool}"));
    let words =
        [&needed, "its memory consists of them, and ", " are free here; have root reserve more: echo ", &remedy];
    let name = target.session.clone();
    bed.ctl(&["check", &name])?.refused(3, &words)?;
    bed.ctl(&["restore", &name, "--detach"])?.refused(3, &words)?;
    pages.set(PAGES)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}
