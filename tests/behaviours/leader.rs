//! First threads that have ended while others run, beyond what the matrix does with `thr_leader` and `tree_leader`.
use anyhow::{ensure, Result};
use dormouse_tests::target::Start;
use dormouse_tests::{unharmed, Bed, Case};

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("leader/signal", signal);
    all.extend(Case::by_both_doors("leader/private", private));
    all.extend(Case::by_both_doors("leader/inspect", inspect));
    all
}

/// A child that would get a signal as its parent's first thread ends again.
fn signal(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("tree_leader").args(["--signal"]).by_agent(agent).ready(bed)?;
    let why = "it wants a signal when its parent ends (PR_SET_PDEATHSIG), and the first thread of that, PID ";
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &[why, "let the parent's first thread wait"])?;
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// In a namespace of its own, and once more from there.
fn private(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("thr_leader").args(["--what", "raw"]).by_agent(agent).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        target.restore_with(bed, &["--pids", "private"])?;
    }
    target.prove(bed).map(drop)
}

/// It is said, also after it has ended again.
fn inspect(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("thr_leader").args(["--what", "raw"]).by_agent(agent).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        let said = bed.ctl(&["inspect", &target.session])?.expect(0)?.said();
        ensure!(said.contains("has ended    the first thread of PID "), "inspect says {said}");
        ensure!(said.contains(", wait status 0x300"), "inspect says {said}");
        target.restore(bed)?;
    }
    target.prove(bed).map(drop)
}
