//! examples/train.py: killed at random, in several ways, and taken up by the same line each time, it ends with the weights of a run
//! without interruption, bit by bit.
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Line, Mode, MODES};
use dormouse_tests::{run, store, Bed, Case};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        all.extend(Case::each(&format!("train.killed-and-resumed.{name}"), move |bed| killed_and_resumed(bed, mode)));
    }
    all.into_iter().map(|c| c.limit(90)).collect()
}

const EPOCHS: &str = "600";

fn killed_and_resumed(bed: &mut Bed, mode: Mode) -> Result<()> {
    let dir = bed.folder()?;
    let train = bed.stage.example("train.py");
    let words = |out: &str| {
        ["python3".into(), train.clone().into(), "--epochs".into(), EPOCHS.into(), "--out".into(), out.into()].to_vec()
    };
    let mut c = bed.command("python3");
    c.args(&words("uninterrupted")[1..]).current_dir(&dir);
    let began = Instant::now();
    bed.run(&mut c)?.expect(0)?;
    let whole = began.elapsed();
    let expected = fs::read_to_string(dir.join("uninterrupted"))?;
    let options = ["--resume", "--every", "40ms", "--keep", "2", "--on-term", "checkpoint"];
    let line = Line::of(mode, &options, dir.clone(), words("interrupted"));
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
                if !done() {
                    continue;
                }
                break;
            }
        }
        let code = job.end(bed)?;
        ensure!(code == 0, "it ended with {code}: {}", job.said());
        break;
    }
    ensure!(
        cut >= 3 && resumed >= 3,
        "it was cut off {cut} times and resumed {resumed} times: too few to prove anything"
    );
    let got = fs::read_to_string(dir.join("interrupted"))?;
    ensure!(got == expected && got.lines().count() == 65, "its weights differ:\n{got}\n--- expected:\n{expected}");
    Ok(())
}
