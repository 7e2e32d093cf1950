//! examples/train.py: killed at random, in several ways, and taken up by the same line each time, it ends with the weights of a run
//! without interruption, bit by bit.
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Line, Mode, MODES};
use dormouse_tests::{proc, run, store, Bed, Case};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        all.extend(Case::each(&format!("train.killed-and-resumed.{name}"), move |bed| {
            killed_and_resumed(bed, mode, false)
        }));
        all.extend(Case::each(&format!("train.checkpoints-itself.{name}"), move |bed| {
            killed_and_resumed(bed, mode, true)
        }));
    }
    all.into_iter().map(|c| c.limit(240)).collect()
}

/// How long the work is to take: long beside a checkpoint, or it is over before it was cut off often enough.
const ALONE: Duration = Duration::from_secs(8);
/// Epochs by whose time the number for that is found, and the least and most.
const PROBE: u32 = 50;
const LEAST: u32 = 200;
const MOST: u32 = 4000;
/// Longest that the work may take, on a machine that has much else to do.
const WORK: Duration = Duration::from_secs(90);

/// How long it takes without us.
fn alone(bed: &mut Bed, dir: &Path, words: &[OsString]) -> Result<Duration> {
    let mut c = bed.command("python3");
    c.args(&words[1..]).current_dir(dir);
    let began = Instant::now();
    let (mut child, _, _) = bed.spawn(&mut c)?;
    let status = run::end(&mut child, "train.py without interruption", WORK)?;
    bed.let_go(&child);
    ensure!(status.success(), "train.py ended with {status}");
    Ok(began.elapsed())
}

/// `itself`: it asks for its checkpoints, else they are made by the clock.
fn killed_and_resumed(bed: &mut Bed, mode: Mode, itself: bool) -> Result<()> {
    let dir = bed.folder()?;
    let train = bed.stage.example("train.py");
    let words = |epochs: u32, out: &str| {
        let epochs = epochs.to_string().into();
        ["python3".into(), train.clone().into(), "--epochs".into(), epochs, "--out".into(), out.into()].to_vec()
    };
    let probe = alone(bed, &dir, &words(PROBE, "probe"))?;
    let epochs = (ALONE.as_secs_f64() / probe.as_secs_f64() * f64::from(PROBE)) as u32;
    let epochs = epochs.clamp(LEAST, MOST);
    let whole = alone(bed, &dir, &words(epochs, "uninterrupted"))?;
    let expected = fs::read_to_string(dir.join("uninterrupted"))?;
    let mut options = vec!["--resume", "--keep", "2", "--on-term", "checkpoint"];
    let mut words = words(epochs, "interrupted");
    if itself {
        let modules = format!("PYTHONPATH={}", bed.stage.path.join("p").display());
        words.splice(0..0, ["env".into(), modules.into(), "PYTHONDONTWRITEBYTECODE=1".into()]);
        words.extend(["--checkpoint-every".into(), (epochs / 100).max(1).to_string().into()]);
    } else {
        options.extend(["--every", "20ms"]);
    }
    let line = Line::of(mode, &options, dir.clone(), words);
    let mut seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 20;
    let mut resumed = 0;
    let mut cut = 0;
    for round in 0.. {
        let mut job = line.start(bed)?;
        let from = job.started["from"].as_u64();
        resumed += u32::from(from.is_some());
        // Six times it is cut off: a while after its next checkpoint, so that it gets on. At random, for whatever it is doing then.
        if round < 6 {
            let done = || dir.join("interrupted").exists();
            run::until("the next checkpoint", LIMIT, || {
                Ok(store::numbers(bed, "job").last().copied() > from || done())
            })?;
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let part = whole.mul_f64((seed >> 33) as f64 / (1u64 << 31) as f64 / 12.0);
            std::thread::sleep(part.min(Duration::from_secs(1)));
            if !done() {
                cut += 1;
                bed.log.push(format!("cut off {part:?} after its checkpoint"));
                if round % 3 == 2 {
                    job.signal(Signal::SIGTERM)?;
                    let code = job.end(bed)?;
                    ensure!(code == 85 || (code == 0 && done()), "by SIGTERM it ended with {code}: {}", job.said());
                } else {
                    job.kill_all(bed);
                }
                // the first ones may be of a program that has not loaded its libraries yet
                if round > 1 {
                    store::made_by(bed, "job", "agent")?;
                }
                if !done() {
                    continue;
                }
                break;
            }
        }
        run::until("the end of the work", WORK, || Ok(!proc::alive(job.pid)))?;
        let code = job.end(bed)?;
        ensure!(code == 0, "it ended with {code}: {}", job.said());
        break;
    }
    ensure!(
        cut >= 3 && resumed >= 3,
        "it was cut off {cut} times and resumed {resumed} times: too few to prove anything"
    );
    // where its output went, in the foreground or detached
    let places = fs::read_dir(&bed.dir)?.flatten().map(|e| e.path()).chain([bed.state().join("sessions/job/log")]);
    let told = places.filter_map(|p| fs::read_to_string(p).ok()).any(|text| text.contains("\nrestored for the "));
    ensure!(told == itself, "that it is restored it should{} have said", if itself { "" } else { " not" });
    let got = fs::read_to_string(dir.join("interrupted"))?;
    ensure!(got == expected && got.lines().count() == 65, "its weights differ:\n{got}\n--- expected:\n{expected}");
    Ok(())
}
