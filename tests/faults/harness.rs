//! The harness itself: whichever process of a run is killed, nothing of it is left.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, sys, Bed, Case};
use nix::sys::signal::{kill, Signal};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `sleeper` says that all it starts is there.
const SLEEPER: &str = "DORMOUSE_TEST_SLEEPER";

pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = Case::each("harness/sleeper", sleeper).into_iter().map(Case::full).collect();
    for who in ["cargo", "the-first", "the-watcher", "the-runner", "all-but-the-watcher"] {
        all.extend(Case::each(&format!("harness/killed-{who}"), move |bed| killed(bed, who)));
    }
    all
}

/// A run within a run: has sessions, one of them restored, and a program in a session of its own; and waits to be killed, if it is
/// told to.
fn sleeper(bed: &mut Bed) -> Result<()> {
    let mut launched = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    let mut restored = Start::program("mem_anon").ready(bed)?;
    restored.kill(bed)?;
    restored.restore(bed)?;
    let mut leader = Start::program("mem_anon").ready(bed)?;
    if let Some(path) = std::env::var_os(SLEEPER) {
        std::fs::write(path, format!("{} {} {}", launched.pid, restored.pid, leader.pid))?;
        run::until("being killed", LIMIT, || Ok(false))?;
    }
    for target in [&mut launched, &mut restored, &mut leader] {
        target.prove(bed)?;
    }
    Ok(())
}

fn killed(bed: &mut Bed, who: &str) -> Result<()> {
    let (dir, report) = (bed.folder()?, bed.dir.join("sleeper"));
    let mut words = vec![std::env::current_exe()?.into_os_string()];
    words.extend(["--exact".into(), format!("harness/sleeper/{}", bed.who.name()).into()]);
    // Stands for cargo: waits for the run, and does not take it along when it is killed.
    let mut c = Command::new("sh");
    c.args(["-c", "\"$@\" & wait", "-"]).args(words);
    c.env(SLEEPER, &report).env("DORMOUSE_TEST_DIR", &dir).env_remove("DORMOUSE_TEST_STAGE").env_remove("REPEAT");
    sys::own_group(&mut c);
    let (_, to) = bed.file("run")?;
    let mut cargo = run::start(&mut c, to.try_clone()?, to)?;
    bed.hold(cargo.id() as i32);
    run::until("the inner run's programs", LIMIT, || {
        Ok(std::fs::read_to_string(&report).is_ok_and(|t| t.split(' ').count() == 3))
    })?;
    let child = |pid: i32| proc::children(pid).first().copied().with_context(|| format!("PID {pid} has no child"));
    let first = child(cargo.id() as i32)?;
    let watcher = child(first)?;
    let runner = child(watcher)?;
    let all = proc::descendants(cargo.id() as i32);
    let programs: Vec<i32> = std::fs::read_to_string(&report)?.split(' ').filter_map(|w| w.parse().ok()).collect();
    ensure!(programs.iter().all(|p| all.contains(p)) && all.len() > 8, "{programs:?} should be among {all:?}");
    let victims = match who {
        "cargo" => vec![cargo.id() as i32],
        "the-first" => vec![first],
        "the-watcher" => vec![watcher],
        "the-runner" => vec![runner],
        _ => vec![cargo.id() as i32, first, runner],
    };
    for pid in victims {
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    run::end(&mut cargo, "the inner run", LIMIT)?;
    bed.let_go(&cargo);
    run::until("the end of all of it", SOON, || {
        bed.reap();
        Ok(!all.iter().any(|pid| proc::alive(*pid)))
    })?;
    run::until("its folder gone", SOON, || Ok(stages(&dir)?.is_empty()))
}

fn stages(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(dir)?.flatten().map(|e| e.path()).collect())
}
