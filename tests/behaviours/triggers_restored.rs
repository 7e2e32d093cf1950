//! Triggers after a plain `ctl restore`: each of those that a launcher had been given is seen acting, not only listed.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Line, Mode, MODES};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case};
use nix::sys::signal::Signal;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        let mut both = |case: &str, body: fn(&mut Bed, Mode) -> Result<()>| {
            all.extend(Case::each(&format!("trigger/restored-{case}/{name}"), move |bed| body(bed, mode)));
        };
        both("every", every);
        both("signal-exit", signal_exit);
        both("grace", grace);
    }
    all
}

/// The clock goes on: numbers appear that were not there when it was restored.
fn every(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--every", "200ms"], &["mem_anon"])?.ready(bed)?;
    run::until("a checkpoint", LIMIT, || Ok(!store::numbers(bed, "job").is_empty()))?;
    bed.ctl(&["kill", "job"])?.expect(0)?;
    job.end(bed)?;
    let mut again = job.restore_as_it_was(bed)?;
    bed.who.assert_is("the restored program", again.pid)?;
    let before = again.started["from"].as_u64().context("no number")?;
    run::until("two checkpoints after the restore", LIMIT, || {
        Ok(store::numbers(bed, "job").last().is_some_and(|n| *n >= before + 2))
    })?;
    unharmed::entirely_between(again.pid, || again.recorders(bed).is_empty())?;
    again.prove(bed)?;
    let all = store::numbers(bed, "job");
    store::holds(bed, "job", &all)?;
    for n in all.iter().filter(|n| **n > before) {
        store::made_by(bed, &format!("job@{n}"), "agent")?;
    }
    Ok(())
}

/// The signal ends the restored session with 85, which can be restored once more.
fn signal_exit(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--signal-exit", "TSTP"], &["mem_anon"])?.ready(bed)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore_as_it_was(bed)?;
    bed.who.assert_is("the restored program", again.pid)?;
    again.signal(Signal::SIGTSTP)?;
    let code = again.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", again.said());
    ensure!(!proc::alive(again.pid), "the program still runs");
    store::holds(bed, "job", &[1, 2])?;
    store::all_made_by(bed, "job", "agent")?;
    again.restore_as_it_was(bed)?.prove(bed)
}

/// SIGTERM's checkpoint takes longer than it may: the program, which ends with 5 by it, is given the signal.
fn grace(bed: &mut Bed, mode: Mode) -> Result<()> {
    let script = "import signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\nopen('ready', 'w').close()\nsignal.sigwait([15])\nsys.exit(5)\n";
    let mut job = Line::python(bed, mode, &["--on-term", "checkpoint", "--grace", "300ms"], script)?.ready(bed)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore_faulty(bed, "record:1:stop-self")?;
    bed.who.assert_is("the restored program", again.pid)?;
    again.signal(Signal::SIGTERM)?;
    let code = again.end(bed)?;
    ensure!(code == 5, "the program ends with 5 by SIGTERM, it ended with {code}: {}", again.said());
    for words in ["300ms are over, so the program is given SIGTERM", "job@1 stands"] {
        ensure!(again.said().contains(words), "{words:?} is not in {}", again.said());
    }
    store::holds(bed, "job", &[1])
}
