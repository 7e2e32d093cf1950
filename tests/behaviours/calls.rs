//! Every call that a signal can end (tests/programs/calls.c, a thread for each), under a hundred checkpoints by the agent: none returns EINTR, each wakes
//! when it should; and where a signal of the program's own comes at the same moment, each returns EINTR for it.
use anyhow::{bail, ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{agent, proc, run, sys, unharmed, Bed, Case, Target};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::JoinHandle;

/// How many checkpoints at least.
const TIMES: usize = 100;
/// Through how many of them each must have been blocked in its call.
const THROUGH: usize = 90;
const MS: i64 = 1_000_000;
/// Longest that a call may end after it should, beside the pause, and what a program that is left alone shows at the same time.
const LATE: i64 = 5 * MS;
/// Bytes of a record (`struct seen` in calls.c).
const RECORD: usize = 96;
/// Where in it the test says that it was seen asleep.
const ASLEEP: usize = 88;

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("calls/under-checkpoints", under_checkpoints);
    all.extend(Case::each("calls/with-signals", with_signals));
    all.extend(Case::each("calls/terminal", terminal));
    all.extend(Case::each("calls/outside", outside));
    all.into_iter().map(|c| c.limit(120)).collect()
}

/// When a call should end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// When it is woken.
    Woken,
    /// After its time.
    Exact,
    /// After its time, which may begin anew with a checkpoint.
    Whole,
    /// After its time and that of the pauses: what is left is what was left when it was interrupted.
    OnTop,
}

/// What the program notes of one call.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    tid: i32,
    nr: i32,
    bound: Bound,
    rounds: u32,
    began: i64,
    ended: i64,
    late: i64,
    timeout: i64,
    lost: i64,
}

fn seen(target: &Target) -> Result<Vec<Seen>> {
    seen_in(&target.dir)
}

fn seen_in(dir: &Path) -> Result<Vec<Seen>> {
    let bytes = fs::read(dir.join("calls"))?;
    let mut all = Vec::new();
    for r in bytes.chunks_exact(RECORD).take_while(|r| r[0] != 0) {
        let int = |at: usize| r[at..at + 4].try_into().map(i32::from_le_bytes);
        let long = |at: usize| r[at..at + 8].try_into().map(i64::from_le_bytes);
        let bound = match int(40)? {
            0 => Bound::Woken,
            1 => Bound::Exact,
            2 => Bound::Whole,
            3 => Bound::OnTop,
            n => bail!("calls.c has a bound {n}"),
        };
        all.push(Seen {
            name: r[..32].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect(),
            tid: int(32)?,
            nr: int(36)?,
            bound,
            rounds: int(44)? as u32,
            began: long(48)?,
            ended: long(56)?,
            late: long(64)?,
            timeout: long(72)?,
            lost: long(80)?,
        });
    }
    Ok(all)
}

/// The kernel has the thread asleep in its call, or going on with it.
fn blocked(pid: i32, s: &Seen) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{}/syscall", s.tid)).unwrap_or_default();
    let nr = text.split_whitespace().next().and_then(|w| w.parse::<i32>().ok());
    nr == Some(s.nr) || nr == Some(219)
}

/// Says to the program which of its threads are asleep in their calls, until it is dropped.
struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watch {
    fn start(target: &Target) -> Result<Watch> {
        let file = fs::OpenOptions::new().write(true).open(target.dir.join("calls"))?;
        let (dir, pid, over) = (target.dir.clone(), target.pid, Arc::new(AtomicBool::new(false)));
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(SeqCst) {
                for (i, s) in seen_in(&dir)?.iter().enumerate() {
                    if blocked(pid, s) && seen_in(&dir)?[i].rounds == s.rounds {
                        let asleep = i64::from(s.rounds) + 1;
                        file.write_all_at(&asleep.to_le_bytes(), (i * RECORD + ASLEEP) as u64)?;
                    }
                }
                std::thread::sleep(run::TICK);
            }
            Ok(())
        });
        Ok(Watch { over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        // One that fails leaves the program unwoken, which the case sees.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Through how many of how many each was blocked in one and the same call.
struct Count {
    times: usize,
    through: Vec<usize>,
}

impl Count {
    fn new(target: &Target) -> Result<Count> {
        Ok(Count { times: 0, through: vec![0; seen(target)?.len()] })
    }

    /// Does it once, and looks before and after.
    fn once(&mut self, target: &Target, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = seen(target)?;
        let was: Vec<bool> = before.iter().map(|s| blocked(target.pid, s)).collect();
        what()?;
        for (i, after) in seen(target)?.iter().enumerate() {
            let is = was[i] && before[i].rounds == after.rounds && before[i].began == after.began;
            self.through[i] += usize::from(is && blocked_soon(target, after));
        }
        self.times += 1;
        Ok(())
    }

    /// There were enough, and each was blocked through enough of them. (On a machine with much else to do each takes long, and more calls end
    /// meanwhile: then it takes more.)
    fn enough(&self) -> bool {
        self.times >= TIMES && self.through.iter().all(|n| *n >= THROUGH)
    }
}

/// A thread that was just let go needs a moment to be back in its call; one whose call has ended is not in it any more.
fn blocked_soon(target: &Target, s: &Seen) -> bool {
    run::until("back in its call", SOON, || Ok(blocked(target.pid, s))).is_ok()
}

fn under_checkpoints(bed: &mut Bed) -> Result<()> {
    let calls = Start::program("calls").args(["--timeout", "5000"]);
    // The same without us, at the same time: what is late there is the machine's doing.
    let mut twin = calls.clone().ready(bed)?;
    let mut target = calls.args(["--watched"]).door(Door::Launched).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    let (mut count, mut pause, mut pauses) = (Count::new(&target)?, 0.0f64, 0.0);
    ensure!(count.through.len() > 40, "only {} calls", count.through.len());
    while count.times < TIMES || seen(&target)?.iter().any(|s| s.rounds == 0 && s.bound != Bound::Whole) {
        ensure!(
            count.times < 3 * TIMES,
            "after {} checkpoints some have not ended: {:#?}",
            count.times,
            seen(&target)?
        );
        let args = target.checkpoint_args(&[]);
        count.once(&target, || {
            let this = bed.ctl_json(&args)?["pause_ms"].as_f64().context("no pause_ms")?;
            (pause, pauses) = (pause.max(this), pauses + this);
            Ok(())
        })?;
        bed.log.clear();
    }
    let last = sys::monotonic_ns();
    target.by_the_door(bed)?;
    unharmed::entirely(target.pid)?;
    run::until("the end of those whose time began anew", LIMIT, || {
        Ok(seen(&target)?.iter().all(|s| s.ended > last || s.bound != Bound::Whole))
    })?;
    let alone = seen(&twin)?.iter().filter(|s| s.bound != Bound::Whole).map(|s| s.late).max().unwrap_or(0);
    let allowed = LATE + (pause * MS as f64) as i64 + alone;
    bed.log.push(format!("{} checkpoints, longest pause {pause} ms, alone {} us late", count.times, alone / 1000));
    for (s, t) in seen(&target)?.iter().zip(seen(&twin)?) {
        let (late, allowed) = match s.bound {
            // from the last checkpoint its whole time; a socket's is kept in ticks, as seen alone
            Bound::Whole => (s.ended - s.began.max(last).min(s.ended) - s.timeout, allowed + t.late),
            Bound::OnTop => (s.late, allowed + (pauses * MS as f64) as i64),
            _ => (s.late, allowed),
        };
        ensure!(late <= allowed, "{} was {} us late, {} are allowed: {s:?}", s.name, late / 1000, allowed / 1000);
    }
    twin.prove(bed)?;
    drop(watch);
    target.prove(bed).map(drop)
}

/// Each returns EINTR for the program's own signal, once; of what README's Limits says (a call that is issued again though a signal came in the last
/// instant of the pause) there is next to nothing.
fn with_signals(bed: &mut Bed) -> Result<()> {
    let calls = Start::program("calls").args(["--signals", "--timeout", "20"]);
    let mut target = calls.args(["--watched"]).door(Door::Launched).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    let args = target.checkpoint_args(&[]);
    for _ in 0..TIMES {
        bed.ctl(&args)?.expect(0)?;
        bed.log.clear();
    }
    target.by_the_door(bed)?;
    let all = seen(&target)?;
    let (rounds, lost) = all.iter().fold((0, 0), |(r, l), s| (r + i64::from(s.rounds), l + s.lost));
    bed.log.push(format!("{rounds} signals, {lost} of them let a call go on"));
    ensure!(all.iter().all(|s| s.rounds > 3), "some were hardly signalled: {all:?}");
    ensure!(lost * 1000 <= rounds, "{lost} of {rounds} signals let the call go on");
    drop(watch);
    target.prove(bed).map(drop)
}

/// read and write on a terminal.
fn terminal(bed: &mut Bed) -> Result<()> {
    let calls = Start::program("calls").args(["--group", "tty", "--timeout", "2000"]);
    let mut target = calls.args(["--watched"]).door(Door::Terminal).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    fs::write(target.dir.join("go"), "")?;
    run::until("both calls", SOON, || Ok(seen(&target)?.iter().filter(|s| blocked(target.pid, s)).count() == 2))?;
    let mut count = Count::new(&target)?;
    let (mut typed, mut late) = (0, 0);
    // On a fast machine the checkpoints are made before both calls have ended.
    while !count.enough() || seen(&target)?.iter().any(|s| s.rounds < 2) {
        ensure!(
            count.times < 20 * TIMES,
            "after {} checkpoints: {:?} {:?}",
            count.times,
            count.through,
            seen(&target)?
        );
        let args = target.checkpoint_args(&[]);
        count.once(&target, || bed.ctl(&args)?.expect(0).map(drop))?;
        bed.log.clear();
        if count.times % 25 == 0 {
            let before = seen(&target)?[0].rounds;
            typed = sys::monotonic_ns();
            target.pty.as_mut().context("it has a terminal")?.type_in("wake")?;
            run::until("the line to be read", SOON, || Ok(seen(&target)?[0].rounds > before))?;
            late = late.max(seen(&target)?[0].ended - typed);
        }
    }
    ensure!(typed > 0 && late < 50 * MS, "what was typed was read {} us later", late / 1000);
    target.by_the_door(bed)?;
    drop(watch);
    target.prove(bed).map(drop)
}

/// What a checkpoint refuses before it begins (a child, a connection that waits): the agent is called in by hand.
fn outside(bed: &mut Bed) -> Result<()> {
    let calls = Start::program("calls").args(["--group", "outside", "--timeout", "500"]);
    let mut target = calls.args(["--watched"]).door(Door::Launched).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint"])?;
    let mut count = Count::new(&target)?;
    while !count.enough() || seen(&target)?.iter().any(|s| s.rounds < 2) {
        ensure!(count.times < 100 * TIMES, "some have not ended: {:#?}", seen(&target)?);
        let number = count.times as u64;
        count.once(&target, || agent::freeze(target.pid, number))?;
    }
    ensure!(proc::ours(target.pid).is_empty(), "something of ours is left");
    drop(watch);
    target.prove(bed).map(drop)
}
