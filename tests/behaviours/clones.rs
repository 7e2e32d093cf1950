//! Processes that have one memory (CLONE_VM) and were made in odd ways, or while the freeze is on its way.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("clones/adopted", adopted);
    all.extend(Case::by_both_doors("clones/come-and-go", come_and_go));
    all.extend(Case::each("clones/many", many));
    all.extend(Case::each("clones/too-many", too_many));
    all.extend(Case::each("clones/sibling-in-vfork", sibling_in_vfork));
    all.extend(Case::each("clones/silent", silent));
    all
}

/// One that shares a child's memory and was adopted from outside: its sharing would be lost.
fn adopted(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("clones").args(["--what", "adopted"]).door(Door::Leader).ready(bed)?;
    let child = proc::children(target.pid)[0];
    let words = [&format!("process {child}"), "it shares its memory (CLONE_VM) with PID ", "not captured with it"];
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    let said = bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    ensure!(store::numbers(bed, &target.session).is_empty(), "a checkpoint was made");
    unharmed::family(target.pid)?;
    target.prove(bed)?;
    // which nobody has below him
    let other = said.err.split("with PID ").nth(1).and_then(|t| t.split(',').next()?.parse().ok()).context("no PID")?;
    Ok(kill(Pid::from_raw(other), Signal::SIGKILL)?)
}

/// Some that come and go all the time: while others stand still one has the memory of those, and our blob in it.
fn come_and_go(bed: &mut Bed, agent: bool) -> Result<()> {
    let start = Start::program("clones").args(["--what", "loop"]).door(Door::Launched);
    let mut target = if agent { start.agent() } else { start }.ready(bed)?;
    for _ in 0..10 {
        // with an agent: which cannot be called for this, and another way is taken
        let door: &[&str] = if agent { &["--door", "auto"] } else { &["--door", "attach"] };
        let made = bed.ctl(&[&["--json", "checkpoint", &target.session.clone()], door].concat())?.expect(0)?.json()?;
        ensure!(made["pause_ms"].as_f64().is_some_and(|ms| ms < 900.0), "as long as a region is waited for: {made}");
        unharmed::family(target.pid)?;
    }
    target.agent = false;
    target.kill(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

fn many(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("clones").args(["--what", "many"]).door(Door::Launched).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        target.restore(bed)?;
    }
    ensure!(proc::children(target.pid).len() == 63, "some are missing");
    target.prove(bed).map(drop)
}

/// Before anybody stands still.
fn too_many(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("clones").args(["--what", "toomany"]).door(Door::Launched).ready(bed)?;
    let words = ["cannot checkpoint", "71 processes have its memory, and 64 are the most"];
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    unharmed::family(target.pid)?;
    target.prove(bed).map(drop)
}

fn sibling_in_vfork(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("clones").args(["--what", "waits"]).door(Door::Launched).ready(bed)?;
    let words = ["cannot checkpoint", "it is in vfork(2) (CLONE_VFORK): PID ", "waits for it, and cannot be stopped"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    unharmed::family(target.pid)?;
    bed.ctl(&["kill", &target.session.clone()])?.expect(0)?;
    target.gone(bed)
}

/// A program whose end is no news for its parent ends in its session all the same.
fn silent(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.command(bed.stage.program("clones"));
    c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut outside = c.arg("--dir").arg(&dir).args(["--what", "silent"]).spawn()?;
    bed.hold(outside.id() as i32);
    run::until("ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let pid = fs::read_to_string(dir.join("ready"))?.trim().to_owned();
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "silent", "--kill"])?.expect(0)?;
    run::end(&mut outside, "its parent", LIMIT)?;
    bed.let_go(&outside);
    bed.reap();
    bed.ctl(&["restore", "silent", "--detach", "--pids", "private"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    run::until("its proof", LIMIT, || Ok(dir.join("result").exists()))?;
    ensure!(fs::read_to_string(dir.join("result"))?.starts_with("OK"), "its proof");
    let live = store::session_dir(bed, "silent").join("live.json");
    run::until("the end of its session", LIMIT, || Ok(!live.exists()))
}
