//! Memory of huge pages, private and shared. The kernel has none to begin with: they are reserved for each case, as many as the program has.
use anyhow::Result;
use dormouse_tests::hugepages::HugePages;
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{unharmed, Bed, Case, Who};

/// Of mem_hugetlb, one of which is not reserved.
const PAGES: u64 = 7;
/// Of tree_hugetlb: the child has all but one, too.
const BOTH: u64 = PAGES + 6;
/// Of mem_hugeshared, three of which are not reserved; a child of its writes to another.
const SHARED: u64 = 10;
/// Of mem_hugeshm.
const SEGMENTS: u64 = 4;
/// Those that are to go with it.
const GOING: u64 = 3;

/// They are there for the case's user, whatever he makes of them.
fn reserve(bed: &Bed, n: u64) -> Result<HugePages> {
    let pages = HugePages::reserve(n)?;
    // of a case that was killed; there mostly is none
    std::process::Command::new("ipcrm").args(["-M", SEGMENT]).output()?;
    pages.for_segments_of(bed.who.uid())?;
    Ok(pages)
}

/// The key of mem_hugeshm's segment that outlives it.
const SEGMENT: &str = "0x646d7401";

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("mem_hugetlb/cycles", |bed, agent| cycles(bed, agent, "mem_hugetlb", PAGES));
    all.extend(Case::by_both_doors("tree_hugetlb/cycles", |bed, agent| cycles(bed, agent, "tree_hugetlb", BOTH)));
    all.extend(Case::by_both_doors("mem_hugetlb/run-on", run_on));
    all.extend(Case::by_both_doors("mem_hugetlb/shared", shared));
    let cycles_of = |program, pages| move |bed: &mut Bed, agent| cycles(bed, agent, program, pages);
    all.extend(Case::by_both_doors("mem_hugeshared/cycles", cycles_of("mem_hugeshared", SHARED)));
    all.extend(Case::by_both_doors("tree_hugeshared/cycles", cycles_of("tree_hugeshared", SHARED + 1)));
    all.extend(Case::by_both_doors("mem_hugeshared/run-on", shared_run_on));
    all.extend(Case::by_both_doors("mem_hugeshared/unreserved", unreserved));
    all.extend(Case::by_both_doors("mem_hugeshared/private", private));
    all.extend(Case::by_both_doors("mem_hugeshm/cycles", cycles_of("mem_hugeshm", SEGMENTS)));
    all.extend(Case::by_both_doors("tree_hugeshm/cycles", cycles_of("tree_hugeshm", SEGMENTS)));
    all.extend(Case::by_both_doors("mem_hugeshm/run-on", segments_run_on));
    all.extend(Case::by_both_doors("mem_hugeshm/unreserved", segments_unreserved));
    all.extend(Case::by_both_doors("mem_hugeshm/unseen", segments_unseen));
    all.extend(Case::each("mem_hugeshm/fresh", |bed| fresh(bed, "mem_hugeshm", SEGMENTS)));
    all.extend(Case::each("mem_hugeshm/sabotage", |bed| sabotage(bed, "mem_hugeshm", SEGMENTS)));
    all.extend(Case::each("mem_hugeshm/too-few", |bed| too_few(bed, "mem_hugeshm", (SEGMENTS, GOING))));
    all.extend(Case::each("mem_hugeshared/fresh", |bed| fresh(bed, "mem_hugeshared", SHARED)));
    all.extend(Case::each("mem_hugeshared/sabotage", |bed| sabotage(bed, "mem_hugeshared", SHARED)));
    all.extend(Case::each("mem_hugeshared/too-few", |bed| too_few(bed, "mem_hugeshared", (SHARED, SHARED))));
    all.extend(Case::each("mem_hugetlb/sabotage", |bed| sabotage(bed, "mem_hugetlb", PAGES)));
    all.extend(Case::each("mem_hugetlb/too-few", |bed| too_few(bed, "mem_hugetlb", (PAGES, PAGES))));
    // one has huge pages at a time
    all.into_iter().map(|c| c.limit(150)).collect()
}

fn cycles(bed: &mut Bed, agent: bool, program: &str, pages: u64) -> Result<()> {
    let _pages = reserve(bed, pages)?;
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
    let _pages = reserve(bed, PAGES)?;
    let mut target = Start::program("mem_hugetlb").by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(|_| ())
}

/// The same mappings, shared.
fn shared(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, PAGES)?;
    let target = Start::program("mem_hugetlb").args(["--shared"]).by_agent(agent).ready(bed)?;
    by_root_only(bed, target)
}

/// What no descriptor leads to and is not reserved is read by root, through the link of its mapping.
fn unreserved(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, SHARED + 1)?;
    let target = Start::program("mem_hugeshared").args(["--unreserved"]).by_agent(agent).ready(bed)?;
    by_root_only(bed, target)
}

fn by_root_only(bed: &mut Bed, mut target: Target) -> Result<()> {
    if bed.who != Who::Root {
        let words = [
            "mapping ",
            "no descriptor leads to this file of huge pages without a name, and to look at those that are not reserved (MAP_NORESERVE) could take them",
            "or make the checkpoint as root",
        ];
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
        unharmed::entirely(target.pid)?;
        return target.prove(bed).map(drop);
    }
    for _ in 0..3 {
        target.kill(bed)?;
        target.restore(bed)?;
    }
    target.prove(bed).map(drop)
}

fn private(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, SHARED + 2)?;
    let mut target = Start::program("mem_hugeshared").args(["--private"]).by_agent(agent).ready(bed)?;
    let words = ["mapping ", "of a memfd that is mapped MAP_PRIVATE are not kept yet; ", "map a memfd MAP_SHARED"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

fn shared_run_on(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, SHARED)?;
    let mut target = Start::program("mem_hugeshared").by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

fn segments_run_on(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, SEGMENTS)?;
    let mut target = Start::program("mem_hugeshm").by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

/// A page that is not there is not looked at, which would take one: there is none. A restored one has all of its pages.
fn segments_unreserved(bed: &mut Bed, agent: bool) -> Result<()> {
    let pages = reserve(bed, SEGMENTS - 1)?;
    let mut target = Start::program("mem_hugeshm").args(["--unreserved"]).by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.kill(bed)?;
    pages.set(SEGMENTS)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// What is in nobody's page tables nobody can be asked for without a danger for others.
fn segments_unseen(bed: &mut Bed, agent: bool) -> Result<()> {
    let _pages = reserve(bed, SEGMENTS)?;
    let mut target = Start::program("mem_hugeshm").args(["--unseen"]).by_agent(agent).ready(bed)?;
    let words = ["more of its huge pages are there than the program has in its page tables", "let the program touch"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

fn fresh(bed: &mut Bed, program: &str, pages: u64) -> Result<()> {
    let _pages = reserve(bed, pages)?;
    let start = Start::program(program).env("DORMOUSE_TEST_FRESH_PIDS", "1");
    let mut target = start.ready(bed)?;
    target.kill(bed)?;
    target.restore_fresh(bed)?;
    target.prove(bed).map(drop)
}

fn sabotage(bed: &mut Bed, program: &str, pages: u64) -> Result<()> {
    let _pages = reserve(bed, pages)?;
    let mut target = Start::program(program).args(["--sabotage"]).ready(bed)?;
    target.kill(bed)?;
    target.restore(bed)?;
    target.fail(bed)
}

/// Refused with how many it takes and how they are reserved; and then it is restored.
fn too_few(bed: &mut Bed, program: &str, (number, needed): (u64, u64)) -> Result<()> {
    let pages = reserve(bed, number)?;
    let mut target = Start::program(program).ready(bed)?;
    target.kill(bed)?;
    pages.set(number - 1)?;
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let (needed, remedy) = (format!("{needed} huge pages of 2048 KiB"), format!("> {pool}"));
    let words =
        [&needed, "its memory consists of them, and ", " are free here; have root reserve more: echo ", &remedy];
    let name = target.session.clone();
    bed.ctl(&["check", &name])?.refused(3, &words)?;
    bed.ctl(&["restore", &name, "--detach"])?.refused(3, &words)?;
    pages.set(number)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}
