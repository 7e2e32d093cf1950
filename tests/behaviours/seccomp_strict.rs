//! Threads in strict seccomp mode: refused by name, and kept by root who takes the risk that is in it.
use anyhow::{ensure, Result};
use dormouse_tests::target::{Door, Start, RISK};
use dormouse_tests::{unharmed, Bed, Case, Who};

/// Who is strict; see tests/programs/seccomp_strict.c.
const ALL: [&str; 5] = ["thread", "several", "leader", "alone", "all"];
const WHY: &str = "it is in strict seccomp mode: the first foreign system call would kill it";

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for what in ALL {
        let mut root = |name: &str, body: fn(&mut Bed, &str) -> Result<()>| {
            all.push(Case::new(format!("seccomp_strict/{what}-{name}"), Who::Root, move |bed| body(bed, what)))
        };
        root("cycles", cycles);
        root("run-on", run_on);
        root("sabotage", sabotage);
        root("launched", launched);
        all.extend(Case::each(&format!("seccomp_strict/{what}-refused"), move |bed| refused(bed, what)));
    }
    let mode = |bed: &mut Bed| come_and_go(bed, "strict");
    all.push(Case::new("seccomp_strict/come-and-go", Who::Root, mode));
    all.extend(Case::each("seccomp_strict/filters-come-and-go", |bed| come_and_go(bed, "filter")));
    all
}

fn start(what: &str) -> Start {
    Start::program("seccomp_strict").args(["--what", what])
}

/// Five times in a row, and once more, after which it runs on.
fn cycles(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = start(what).ready(bed)?;
    for _ in 0..5 {
        target.kill(bed)?;
        target.restore(bed)?;
    }
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

/// Checkpoints after which it runs on, and is what the last one has kept.
fn run_on(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = start(what).ready(bed)?;
    bed.ctl(&["check", "--pid", &target.pid.to_string(), RISK])?.expect(0)?;
    for _ in 0..3 {
        target.checkpoint(bed)?;
    }
    let stops = !["alone", "all"].contains(&what);
    if stops {
        bed.ctl(&target.checkpoint_args(&["--stop"]))?.expect(0)?;
    }
    bed.ctl(&["kill", &target.session.clone()])?.expect(0)?;
    target.gone(bed)?;
    let session = target.session.clone();
    let said = bed.ctl_json(&["inspect", &session])?["summary"]["strict_seccomp"].clone();
    let strict = if ["several", "all"].contains(&what) { 2 } else { 1 };
    ensure!(said == strict, "inspect should tell of {strict} threads in strict mode, not {said}");
    bed.ctl(&["check", &session])?.expect(0)?;
    target.restore(bed)?;
    // if it was stopped at the checkpoint, it is again
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(target.pid), nix::sys::signal::Signal::SIGCONT)?;
    target.prove(bed).map(drop)
}

fn sabotage(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = start(what).args(["--sabotage"]).ready(bed)?;
    target.kill(bed)?;
    target.restore(bed)?;
    target.fail(bed)
}

/// With an agent, which is not called.
fn launched(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = start(what).door(Door::Launched).agent().ready(bed)?;
    let session = target.session.clone();
    for then in [&["checkpoint", &session, RISK][..], &["checkpoint", &session, RISK, "--kill"]] {
        let said = bed.ctl(then)?.expect(0)?;
        ensure!(said.err.contains("made by attach (ptrace), not by its agent: seccomp"), "{}", said.err);
        let child = "all its threads are in strict seccomp mode, and so would a snapshot child be";
        let copied = ["alone", "all"].contains(&what) && then.len() == 3;
        ensure!(said.err.contains(child) == copied, "{}", said.err);
    }
    // the parent of a strict process is not strict
    target.agent = ["alone", "all"].contains(&what);
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// Without the option, by the agent, and by whoever may not suspend the mode.
fn refused(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = start(what).door(Door::Launched).agent().ready(bed)?;
    let root = bed.who == Who::Root;
    let remedy = if root { "pass --risk-seccomp-strict" } else { "run ctl as root" };
    let (pid, session) = (target.pid.to_string(), target.session.clone());
    let words = ["cannot checkpoint", WHY, remedy, "; "];
    bed.ctl(&["check", "--pid", &pid])?.refused(3, &words)?;
    for door in ["auto", "attach", "agent"] {
        let words = if door == "agent" { &["cannot checkpoint", "strict", "; "][..] } else { &words };
        bed.ctl(&["checkpoint", &session, "--door", door])?.refused(3, words)?;
        if !root || door == "agent" {
            bed.ctl(&["checkpoint", &session, "--door", door, RISK, "--kill"])?.refused(3, words)?;
        }
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// By the agent alone, of threads that go into the mode or set a filter, and end: refused where one has just done so. Neither those nor the others' calls are harmed.
fn come_and_go(bed: &mut Bed, what: &str) -> Result<()> {
    const ENOUGH: usize = 20;
    let mut target = Start::program("seccomp_flaps").args(["--what", what]).door(Door::Launched).agent().ready(bed)?;
    let mut checkpoint = vec!["checkpoint".to_owned(), target.session.clone(), "--door".into(), "agent".into()];
    checkpoint.extend((what == "strict").then(|| RISK.to_owned()));
    let (mut made, mut refused) = (0, 0);
    while made == 0 || refused == 0 || made + refused < ENOUGH {
        let said = bed.ctl(&checkpoint)?;
        if said.code() == 0 {
            made += 1;
        } else {
            said.refused(3, &["cannot checkpoint", "seccomp", " restricts it, and ", " could kill it: ", "; "])?;
            refused += 1;
        }
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}
