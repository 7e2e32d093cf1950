//! Start or resume: the same line for ever.
use anyhow::{ensure, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::job::{Line, Mode, MODES};
use dormouse_tests::{proc, run, store, Bed, Case};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        let mut both = |case: &str, body: fn(&mut Bed, Mode) -> Result<()>| {
            all.extend(Case::each(&format!("resume/{case}/{name}"), move |bed| body(bed, mode)));
        };
        both("after-kill-9-of-everything", killed);
        both("without-a-checkpoint", without);
        both("live", live);
        both("damaged-newest", damaged);
        both("supervisor-killed", supervisor_killed);
    }
    all
}

const OPTIONS: [&str; 3] = ["--resume", "--signal", "USR2"];

/// Launcher, supervisor, program: all killed, again and again. The same line takes it up.
fn killed(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &OPTIONS, &["mem_anon"])?;
    let mut job = line.ready(bed)?;
    ensure!(job.started["from"].is_null(), "{}", job.started);
    for n in 1..=3 {
        job.signal(Signal::SIGUSR2)?;
        job.made(bed, n)?;
        job.kill_all(bed);
        job = line.start(bed)?;
        ensure!(job.started["from"] == n, "it should be resumed from {n}: {}", job.started);
    }
    job.prove(bed)?;
    store::holds(bed, "job", &[1, 2, 3])
}

/// Nothing to take up: it starts anew, each time.
fn without(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &OPTIONS, &["mem_anon"])?;
    line.ready(bed)?.kill_all(bed);
    fs::remove_file(line.dir.join("ready"))?;
    let mut job = line.ready(bed)?;
    ensure!(job.started["from"].is_null(), "{}", job.started);
    job.prove(bed)
}

/// A session that runs is not started or restored a second time.
fn live(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &OPTIONS, &["mem_anon"])?;
    let mut job = line.ready(bed)?;
    in_use(bed, &line, job.pid)?;
    job.signal(Signal::SIGUSR2)?;
    job.made(bed, 1)?;
    in_use(bed, &line, job.pid)?;
    job.prove(bed)
}

fn in_use(bed: &mut Bed, line: &Line, pid: i32) -> Result<()> {
    let ran = line.run(bed)?.expect(125)?;
    for words in ["in use", "ctl kill job", &format!("live as PID {pid}")] {
        ensure!(ran.said().contains(words), "{words:?} is not in {}", ran.said());
    }
    Ok(())
}

/// One byte of a file in its middle is another one.
fn spoil(path: &std::path::Path) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let (mut byte, at) = ([0], file.metadata()?.len() / 2);
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x55], at)?)
}

/// A damaged newest checkpoint is not passed over unasked.
fn damaged(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &OPTIONS, &["mem_anon"])?;
    let job = line.ready(bed)?;
    let packs = store::session_dir(bed, "job").join("packs");
    let mut spoiled = Vec::new();
    for n in 1..=3 {
        job.signal(Signal::SIGUSR2)?;
        job.made(bed, n)?;
        let new = fs::read_dir(&packs)?.flatten().map(|e| e.path()).filter(|p| !spoiled.contains(p));
        spoiled.extend(new.collect::<Vec<_>>());
        ensure!(spoiled.len() == n as usize, "a pack for each checkpoint: {spoiled:?}");
    }
    job.kill_all(bed);
    // The pages of the newest, and the manifest of the one before.
    spoil(&spoiled[2])?;
    spoil(&store::session_dir(bed, "job").join("checkpoints/2/manifest"))?;
    let ran = line.run(bed)?.expect(125)?;
    for words in ["job@3", "--resume=intact"] {
        ensure!(ran.said().contains(words), "{words:?} is not in {}", ran.said());
    }
    ensure!(store::numbers(bed, "job") == [1, 2, 3], "the store has changed");
    let mut again = line.with(&["--resume=intact"]).start(bed)?;
    ensure!(again.started["from"] == 1, "{}", again.started);
    let notes = again.started["notes"].to_string();
    for words in ["job@3 is damaged and passed over", "job@2 is damaged and passed over"] {
        ensure!(notes.contains(words), "{words:?} is not in {notes}");
    }
    again.prove(bed)?;
    spoil(&spoiled[0])?;
    let ran = line.with(&["--resume=intact"]).run(bed)?.expect(125)?;
    for words in ["job@3", "job@2", "job@1", "ctl rm job"] {
        ensure!(ran.said().contains(words), "{words:?} is not in {}", ran.said());
    }
    Ok(())
}

/// Only the supervisor is killed: the program lives, so the session is in use; when that has ended, too, it is taken up.
fn supervisor_killed(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &OPTIONS, &["mem_anon"])?;
    let mut job = line.ready(bed)?;
    job.signal(Signal::SIGUSR2)?;
    job.made(bed, 1)?;
    kill(Pid::from_raw(job.supervisor), Signal::SIGKILL)?;
    if mode == Mode::Foreground {
        let code = job.end(bed)?;
        ensure!(code == 125 && job.said().contains("it was killed"), "{code}: {}", job.said());
    }
    let supervisor = job.supervisor;
    run::until("the supervisor's end", SOON, || {
        bed.reap();
        Ok(!proc::alive(supervisor))
    })?;
    in_use(bed, &line, job.pid)?;
    job.kill_all(bed);
    let mut again = line.start(bed)?;
    ensure!(again.started["from"] == 1, "{}", again.started);
    again.prove(bed)
}
