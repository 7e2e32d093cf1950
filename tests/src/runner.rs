//! Runs cases: each in a process of its own, a few at a time, with a time limit; says how a failure is run again.
use crate::case::{Case, Skip, PERMITTED_SKIPS};
use crate::stage::Stage;
use crate::{proc, run, sys, watch, Bed};
use anyhow::{bail, ensure, Context, Result};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// Exit codes of a case's process.
const PASSED: u8 = 0;
const FAILED: u8 = 1;
const SKIPPED: u8 = 77;

/// How a line begins that is said of a case that has passed, too.
pub const FIGURES: &str = "figures: ";

/// How many at a time; a case mostly waits.
const JOBS: usize = 3;

/// What the command line asks for.
#[derive(Default)]
struct Options {
    /// Cases whose name contains one of these (all if there is none).
    filters: Vec<String>,
    /// Names must be equal.
    exact: bool,
    /// Only say the names.
    list: bool,
    /// Also what is only in `make test-full`.
    full: bool,
    /// How many at a time.
    jobs: usize,
    /// How often each.
    repeat: usize,
    /// This one, in this process.
    run: Option<String>,
    /// Which part of a run this process has: the watcher's, the runner's.
    watch: bool,
    watched: bool,
}

/// The main function of a test: runs the cases that `cases` gives.
pub fn main(cases: impl Fn(&Stage) -> Result<Vec<Case>>) -> ExitCode {
    sys::keep_descriptors_to_myself();
    sys::ignore_no_signals();
    match options().and_then(|o| act(&o, cases)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            println!("error: {e:#}");
            ExitCode::from(101)
        }
    }
}

fn options() -> Result<Options> {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let mut o = Options { jobs: number("JOBS", JOBS), repeat: number("REPEAT", 1), ..Options::default() };
    o.full = std::env::var_os("FULL").is_some();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--exact" => o.exact = true,
            "--list" => o.list = true,
            "--full" => o.full = true,
            "--run" => o.run = args.next(),
            watch::WATCH => o.watch = true,
            watch::WATCHED => o.watched = true,
            "--jobs" | "--test-threads" => o.jobs = args.next().context("--jobs N")?.parse()?,
            "--repeat" => o.repeat = args.next().context("--repeat N")?.parse()?,
            // What libtest understands and cargo or people may pass.
            "--nocapture" | "--no-capture" | "--include-ignored" | "-q" | "--quiet" => {}
            "--format" | "--color" | "-Z" => drop(args.next()),
            flag if flag.starts_with('-') => bail!("unknown option {flag}"),
            _ => o.filters.push(arg),
        }
    }
    Ok(o)
}

fn act(o: &Options, cases: impl Fn(&Stage) -> Result<Vec<Case>>) -> Result<u8> {
    if let Some(name) = &o.run {
        let stage = Stage::given()?;
        let case = cases(&stage)?.into_iter().find(|c| c.name == *name);
        return Ok(one(&case.with_context(|| format!("there is no case {name}"))?));
    }
    if o.watch {
        return watch::watch();
    }
    if !o.list && !o.watched {
        return watch::run();
    }
    let stage = Stage::make()?;
    let all = cases(&stage).map(|all| chosen(o, all));
    let code = all.and_then(|all| {
        if o.list {
            all.iter().for_each(|c| println!("{}: test", c.name));
            return Ok(0);
        }
        nix::sys::prctl::set_child_subreaper(true)?;
        Runs::new(&all, o).go()
    });
    stage.remove();
    code
}

fn chosen(o: &Options, all: Vec<Case>) -> Vec<Case> {
    let wanted = |c: &Case| match (o.filters.is_empty(), o.exact) {
        (true, _) => o.full || !c.full,
        // What is named is run, also if it is only in the full test.
        (_, true) => o.filters.contains(&c.name),
        _ => (o.full || !c.full) && o.filters.iter().any(|f| c.name.contains(f.as_str())),
    };
    all.into_iter().filter(wanted).collect()
}

/// Runs one case in this process; what it says is its report.
fn one(case: &Case) -> u8 {
    let mut bed = match Bed::make(case.who) {
        Ok(bed) => bed,
        Err(e) => {
            println!("cannot make its surroundings: {e:#}");
            return FAILED;
        }
    };
    let body = std::panic::AssertUnwindSafe(|| (case.body)(&mut bed));
    let mut result = std::panic::catch_unwind(body).unwrap_or_else(|_| bail!("the case panicked (see above)"));
    let skipped = result.as_ref().err().and_then(|e| e.downcast_ref::<Skip>()).map(|s| s.to_string());
    let patience = if result.is_ok() { crate::bed::SOON } else { Duration::ZERO };
    let left = bed.leave_nothing(patience);
    if result.is_ok() {
        result = left;
    }
    match (result, skipped) {
        (Ok(()), _) => PASSED,
        (_, Some(_)) if PERMITTED_SKIPS.iter().any(|(name, _)| case.name.starts_with(name)) => SKIPPED,
        (Err(e), _) => {
            println!("{e:#}\n--- what was done:\n{}", bed.log.join("\n"));
            FAILED
        }
    }
}

/// A case's process.
struct Running<'a> {
    case: &'a Case,
    child: Child,
    report: PathBuf,
    began: Instant,
}

/// All of them.
struct Runs<'a> {
    waiting: VecDeque<&'a Case>,
    running: Vec<Running<'a>>,
    jobs: usize,
    number: usize,
    passed: usize,
    skipped: usize,
    failed: Vec<(String, String)>,
    began: Instant,
}

impl<'a> Runs<'a> {
    fn new(cases: &'a [Case], o: &Options) -> Runs<'a> {
        let waiting: VecDeque<&Case> = (0..o.repeat.max(1)).flat_map(|_| cases).collect();
        println!("\nrunning {} tests", waiting.len());
        Runs {
            waiting,
            running: vec![],
            jobs: o.jobs.max(1),
            number: 0,
            passed: 0,
            skipped: 0,
            failed: vec![],
            began: Instant::now(),
        }
    }

    fn go(mut self) -> Result<u8> {
        let watcher = nix::unistd::getppid();
        loop {
            if nix::unistd::getppid() != watcher {
                watch::end_all_below();
                bail!("the watcher of this run was killed");
            }
            while self.running.len() < self.jobs {
                let Some(case) = self.waiting.pop_front() else { break };
                let running = self.start(case)?;
                self.running.push(running);
            }
            if self.running.is_empty() {
                self.nothing_left();
                return Ok(self.summary());
            }
            self.look()?;
            std::thread::sleep(run::TICK);
        }
    }

    /// What a killed case left came to us and is killed too; anything else that is there is a fault of the harness.
    fn nothing_left(&mut self) {
        let me = std::process::id() as i32;
        for _ in 0..500 {
            let left = proc::descendants(me);
            if left.is_empty() {
                return;
            }
            left.iter().for_each(|pid| end_all(*pid));
            proc::children(me).into_iter().for_each(sys::reap);
            std::thread::sleep(run::TICK);
        }
        self.failed.push(("harness".into(), format!("processes are left: {:?}", proc::descendants(me))));
    }

    fn start(&mut self, case: &'a Case) -> Result<Running<'a>> {
        self.number += 1;
        let report = Stage::given()?.path.join(format!("report-{}", self.number));
        let to = File::create(&report)?;
        let mut c = Command::new(std::env::current_exe()?);
        c.args(["--run", &case.name]).env_remove("DORMOUSE_FAULT");
        let child = run::start(&mut c, to.try_clone()?, to)?;
        Ok(Running { case, child, report, began: Instant::now() })
    }

    fn look(&mut self) -> Result<()> {
        let mut i = 0;
        while i < self.running.len() {
            let running = &mut self.running[i];
            let late = running.began.elapsed() > running.case.limit;
            match running.child.try_wait()? {
                Some(status) => {
                    let done = self.running.swap_remove(i);
                    self.note(done, run::code(status));
                }
                None if late => {
                    end_all(running.child.id() as i32);
                    running.child.wait()?;
                    let done = self.running.swap_remove(i);
                    self.note(done, -1);
                }
                None => i += 1,
            }
        }
        Ok(())
    }

    fn note(&mut self, done: Running, code: i32) {
        let seconds = done.began.elapsed().as_secs_f64();
        let name = &done.case.name;
        let report = fs::read_to_string(&done.report).unwrap_or_default();
        let word = match code {
            0 => "ok",
            77 => "skipped",
            _ => "FAILED",
        };
        println!("test {name} ... {word} ({seconds:.1} s)");
        // Of a case that has passed, its figures.
        report.lines().filter(|l| l.starts_with(FIGURES)).for_each(|l| println!("    {l}"));
        match code {
            0 => self.passed += 1,
            77 => self.skipped += 1,
            -1 => self.failed.push((name.clone(), format!("not over after {:?}, killed\n{report}", done.case.limit))),
            _ => self.failed.push((name.clone(), report)),
        }
        if code == 0 && std::env::var_os("KEEP").is_none() {
            // Cases are many and some images large. What stays goes with the stage.
            let _ = fs::remove_dir_all(done.report.with_file_name(done.child.id().to_string()));
            let _ = fs::remove_file(&done.report);
        }
    }

    fn summary(&self) -> u8 {
        if !self.failed.is_empty() {
            println!("\nfailures:");
        }
        for (name, report) in &self.failed {
            println!("\n---- {name} ----\n{}\nagain: make test ONE={name}", report.trim_end());
        }
        if !self.failed.is_empty() {
            println!("\nfailures:");
        }
        self.failed.iter().for_each(|(name, _)| println!("    {name}"));
        let word = if self.failed.is_empty() { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            self.passed,
            self.failed.len(),
            self.skipped,
            self.began.elapsed().as_secs_f64()
        );
        if self.failed.is_empty() {
            0
        } else {
            101
        }
    }
}

/// Ends a case that takes too long, and all that it started.
fn end_all(case: i32) {
    let mut all = vec![case];
    all.extend(proc::descendants(case));
    for pid in &all {
        // What is gone already is just as well.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    // The case itself is waited for by its handle; the others come to us.
    all[1..].iter().for_each(|pid| sys::reap(*pid));
}

/// A check of the harness itself, used by its tests.
pub fn no_two_alike(cases: &[Case]) -> Result<()> {
    let mut names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    names.sort();
    for pair in names.windows(2) {
        ensure!(pair[0] != pair[1], "two cases are named {}", pair[0]);
    }
    Ok(())
}
