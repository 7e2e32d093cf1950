//! Every call that a signal can end (tests/programs/calls.c, a thread for each), under a hundred checkpoints by the agent: none returns EINTR, each wakes
//! when it should; and where a signal of the program's own comes at the same moment, each returns EINTR for it.
use anyhow::{bail, ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{agent, proc, run, sys, unharmed, Bed, Case, Target};
use nix::fcntl::{Flock, FlockArg};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many checkpoints at least.
const TIMES: usize = 100;
/// Through how many of a hundred each must have been blocked in its call.
const THROUGH: usize = 90;
/// So many checkpoints long, as a trial took them, calls wait until they end: of a hundred checkpoints few see one end, on any machine.
const CHECKPOINTS_LONG: u32 = 30;
const MS: i64 = 1_000_000;
/// Longest that a call may end after it should, beside the pause, and what a program that is left alone shows at the same time.
const LATE: i64 = 5 * MS;
/// Checkpoints that tell how long one takes.
const TRIALS: u32 = 5;
/// The calls wait no shorter and no longer than this.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);
/// The agent's signal in a set.
const OURS: u64 = 1 << (agent::SIGNAL - 1);
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
    /// When it is woken, in the proof only.
    Stays,
}

impl Bound {
    /// It ends again and again, at a time that checkpoints do not change.
    fn is_fixed(self) -> bool {
        matches!(self, Bound::Woken | Bound::Exact)
    }
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
            3 => Bound::Stays,
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

    /// There were enough, and each was blocked through so many of them.
    fn enough(&self) -> bool {
        self.times >= TIMES && self.through.iter().all(|n| n * 100 >= self.times * THROUGH)
    }

    /// Those that were not.
    fn few(&self, target: &Target) -> Result<Vec<(usize, Seen)>> {
        let all = self.through.iter().copied().zip(seen(target)?);
        Ok(all.filter(|(n, _)| n * 100 < self.times * THROUGH).collect())
    }
}

/// None ended later than is allowed, the longest pause, and what the same calls show at the same time in a program that is left alone (whatever is late
/// there is the machine's doing). `alone`: how late something else was there.
fn in_time(bed: &mut Bed, target: &Target, twin: &Target, count: &Count, pause: i64, alone: i64) -> Result<i64> {
    let left_alone = seen(twin)?.iter().filter(|s| s.bound.is_fixed()).map(|s| s.late).fold(alone, i64::max);
    let allowed = LATE + pause + left_alone;
    let all: Vec<Seen> = seen(target)?.into_iter().filter(|s| s.bound.is_fixed()).collect();
    let worst = all.iter().max_by_key(|s| s.late).context("no calls")?;
    bed.log.push(format!(
        "{} checkpoints, fewest through {:?}, longest pause {} us, alone {} us late, {} {} us",
        count.times,
        count.through.iter().min(),
        pause / 1000,
        left_alone / 1000,
        worst.name,
        worst.late / 1000
    ));
    ensure!(
        worst.late <= allowed,
        "{} was {} us late, {} are allowed: {worst:?}",
        worst.name,
        worst.late / 1000,
        allowed / 1000
    );
    Ok(allowed)
}

/// Milliseconds that calls are to wait so that few end in a checkpoint: some are made of the same program, which ends.
fn long_enough(bed: &mut Bed) -> Result<String> {
    let calls = Start::program("calls").args(["--timeout", "300", "--watched"]);
    let mut target = calls.door(Door::Launched).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    let (mut count, args) = (Count::new(&target)?, target.checkpoint_args(&[]));
    let began = Instant::now();
    for _ in 0..TRIALS {
        count.once(&target, || pause_of(bed, &target, &args).map(drop))?;
    }
    let long = began.elapsed() / TRIALS * CHECKPOINTS_LONG;
    drop(watch);
    target.prove(bed)?;
    Ok(long.clamp(SHORTEST, LONGEST).as_millis().to_string())
}

/// The signalfd that was asked for with all signals has all but the agent's; and has that where there is no agent.
fn signalfd_lacks_ours(target: &Target, twin: &Target) -> Result<()> {
    let set = |pid: i32| {
        let all = proc::descriptors(pid);
        let (fd, _) = all.iter().find(|(_, what)| what.contains("[signalfd]")).context("no signalfd")?;
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("sigmask:")).context("no sigmask in its fdinfo")?;
        u64::from_str_radix(line.trim(), 16).context("its sigmask")
    };
    let (with, without) = (set(target.pid)?, set(twin.pid)?);
    ensure!(without & OURS != 0, "without an agent, too, the signalfd's set is {without:x}");
    ensure!(with == without & !OURS, "the signalfd's set is {with:x}, without an agent {without:x}");
    Ok(())
}

/// A thread that was just let go needs a moment to be back in its call; one whose call has ended is not in it any more.
fn blocked_soon(target: &Target, s: &Seen) -> bool {
    run::until("back in its call", SOON, || Ok(blocked(target.pid, s))).is_ok()
}

fn under_checkpoints(bed: &mut Bed) -> Result<()> {
    let timeout = long_enough(bed)?;
    let calls = Start::program("calls").args(["--timeout", &timeout]);
    let mut twin = calls.clone().ready(bed)?;
    let mut target = calls.args(["--watched"]).door(Door::Launched).agent().ready(bed)?;
    signalfd_lacks_ours(&target, &twin)?;
    let watch = Watch::start(&target)?;
    let (mut count, mut pause) = (Count::new(&target)?, 0.0f64);
    ensure!(count.through.len() > 50, "only {} calls", count.through.len());
    while !count.enough() || seen(&target)?.iter().any(|s| s.rounds == 0 && s.bound.is_fixed()) {
        ensure!(
            count.times < 3 * TIMES,
            "with {timeout} ms, after {} checkpoints, some have not ended, or were hardly blocked: {:#?}",
            count.times,
            count.few(&target)?
        );
        let args = target.checkpoint_args(&[]);
        count.once(&target, || pause_of(bed, &target, &args).map(|this| pause = pause.max(this)))?;
        bed.log.clear();
    }
    let last = sys::monotonic_ns();
    target.by_the_door(bed)?;
    unharmed::entirely(target.pid)?;
    run::until("the end of those whose time began anew", LIMIT, || {
        Ok(seen(&target)?.iter().all(|s| s.ended > last || s.bound != Bound::Whole))
    })?;
    let allowed = in_time(bed, &target, &twin, &count, (pause * MS as f64) as i64, 0)?;
    for (s, t) in seen(&target)?.iter().zip(seen(&twin)?).filter(|(s, _)| s.bound == Bound::Whole) {
        // from the last checkpoint its whole time; a socket's is kept in ticks, as seen alone
        let (late, allowed) = (s.ended - s.began.max(last).min(s.ended) - s.timeout, allowed + t.late);
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

/// read and write on a terminal. A line is typed while the program is frozen, or just before or after.
fn terminal(bed: &mut Bed) -> Result<()> {
    let timeout = long_enough(bed)?;
    let calls = Start::program("calls").args(["--group", "tty", "--timeout", &timeout]);
    let mut twin = calls.clone().door(Door::OnTerminal).ready(bed)?;
    let mut target = calls.args(["--watched"]).door(Door::Terminal).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    for one in [&target, &twin] {
        fs::write(one.dir.join("go"), "")?;
        run::until("both calls", SOON, || Ok(seen(one)?.iter().filter(|s| blocked(one.pid, s)).count() == 2))?;
    }
    let mut pty = target.pty.take().context("it has a terminal")?;
    let (mut count, mut pause) = (Count::new(&target)?, 0.0f64);
    let (mut late, mut alone) = (0, 0);
    // On a fast machine the checkpoints are made before both calls have ended.
    while !count.enough() || seen(&target)?.iter().any(|s| s.rounds < 2) {
        ensure!(
            count.times < 20 * TIMES,
            "after {} checkpoints: {:?} {:?}",
            count.times,
            count.through,
            seen(&target)?
        );
        let (args, pid) = (target.checkpoint_args(&[]), target.pid);
        if count.times % 50 > 0 {
            count.once(&target, || pause_of(bed, &target, &args).map(|this| pause = pause.max(this)))?;
        } else {
            let [before, before_alone] = [&target, &twin].map(|one| seen(one).map(|s| s[0].rounds));
            let mut typed = 0;
            count.once(&target, || {
                let over = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let typing = scope.spawn(|| {
                        while !over.load(SeqCst) && proc::ours(pid).is_empty() {
                            std::thread::yield_now();
                        }
                        let typed = sys::monotonic_ns();
                        pty.type_in("wake").map(|()| typed)
                    });
                    let this = pause_of(bed, &target, &args);
                    over.store(true, SeqCst);
                    typed = typing.join().map_err(|_| anyhow::anyhow!("typing"))??;
                    pause = pause.max(this?);
                    Ok(())
                })
            })?;
            late = late.max(read_since(&target, before?, typed)?);
            let typed = sys::monotonic_ns();
            twin.pty.as_mut().context("it has a terminal")?.type_in("wake")?;
            alone = alone.max(read_since(&twin, before_alone?, typed)?);
        }
        bed.log.clear();
    }
    target.pty = Some(pty);
    let allowed = in_time(bed, &target, &twin, &count, (pause * MS as f64) as i64, alone)?;
    bed.log.push(format!("what was typed was read {} us later, alone {} us", late / 1000, alone / 1000));
    ensure!(late > 0 && late <= allowed, "it was read {} us later, {} are allowed", late / 1000, allowed / 1000);
    target.by_the_door(bed)?;
    twin.prove(bed)?;
    drop(watch);
    target.prove(bed).map(drop)
}

/// A checkpoint's pause, milliseconds. Meanwhile the program has no TCP connection, which would be refused.
fn pause_of(bed: &mut Bed, target: &Target, args: &[String]) -> Result<f64> {
    let _locked = unconnected(target)?;
    bed.ctl_json(args)?["pause_ms"].as_f64().context("no pause_ms")
}

/// The program connects to itself for an instant only while it has this file locked.
fn unconnected(target: &Target) -> Result<Flock<fs::File>> {
    let file = fs::OpenOptions::new().write(true).open(target.dir.join("peers"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, why)| why).context("lock DIR/peers")
}

/// Waits for the line that was typed then to be read: how long that took.
fn read_since(target: &Target, before: u32, typed: i64) -> Result<i64> {
    run::until("the line to be read", SOON, || Ok(seen(target)?[0].rounds > before))?;
    Ok(seen(target)?[0].ended - typed)
}

/// What a checkpoint refuses before it begins (a child, a connection that waits): the agent is called in by hand.
fn outside(bed: &mut Bed) -> Result<()> {
    let calls = Start::program("calls").args(["--group", "outside", "--timeout", "1000"]);
    let mut twin = calls.clone().ready(bed)?;
    let mut target = calls.args(["--watched"]).door(Door::Launched).agent().ready(bed)?;
    let watch = Watch::start(&target)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint"])?;
    let (mut count, mut pause, began) = (Count::new(&target)?, Duration::ZERO, Instant::now());
    while !count.enough() || seen(&target)?.iter().any(|s| s.rounds < 2 && s.bound.is_fixed()) {
        ensure!(began.elapsed() < LIMIT, "after {} freezes: {:?} {:#?}", count.times, count.through, seen(&target)?);
        let number = count.times as u64;
        count.once(&target, || agent::freeze(target.pid, number).map(|this| pause = pause.max(this)))?;
    }
    ensure!(proc::ours(target.pid).is_empty(), "something of ours is left");
    in_time(bed, &target, &twin, &count, pause.as_nanos() as i64, 0)?;
    twin.prove(bed)?;
    drop(watch);
    target.prove(bed).map(drop)
}
