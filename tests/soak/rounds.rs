//! The order of things: checkpoints in a row of one process and its supervisor, then rounds that end with a kill and a restore. All of them by the agent, by
//! recorders that are denied ptrace. Every fourth in the row and one in each round is made by the supervisor, for a signal, at rest; the others by ctl, under load.
use crate::census::{self, Census};
use crate::work::Work;
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::job::Job;
use dormouse_tests::runner::FIGURES;
use dormouse_tests::{proc, run, store, sys, Bed};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

/// How many.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Checkpoints in a row.
    pub in_a_row: u64,
    /// Rounds after those.
    pub rounds: u64,
    /// Checkpoints in each round; the last kills, and is restored.
    pub each: u64,
}

/// A session under way.
struct Soak {
    work: Box<dyn Work>,
    job: Job,
    /// Number of the last checkpoint.
    n: u64,
    pauses: Vec<f64>,
}

/// All of it.
pub fn run(bed: &mut Bed, plan: &Plan, mut work: Box<dyn Work>) -> Result<()> {
    // System V objects of others are not ours; who may not do this has to do with what there is.
    let _ = nix::sched::unshare(CloneFlags::CLONE_NEWIPC);
    let job = work.start(bed)?;
    let mut s = Soak { work, job, n: 0, pauses: vec![] };
    let in_a_row = s.in_a_row(bed, plan)?;
    let rounds = s.rounds(bed, plan)?;
    ensure!(s.n == plan.in_a_row + plan.rounds * plan.each, "{} checkpoints were made", s.n);
    let did = s.work.figures();
    s.work.end(bed, &mut s.job)?;
    let name = s.job.line.name.clone();
    nothing_runs(bed)?;
    bed.ctl(&["rm", &name])?.expect(0)?;
    ensure!(!store::session_dir(bed, &name).exists(), "the session's folder is there after ctl rm");
    s.pauses.sort_by(f64::total_cmp);
    let (median, worst) = (s.pauses[s.pauses.len() / 2], s.pauses[s.pauses.len() - 1]);
    let (n, restores) = (s.n, plan.rounds);
    println!("{FIGURES}{n} checkpoints, {restores} restores, {did}; pause (ctl's) {median:.1} ms median, {worst:.1} ms worst");
    println!("{FIGURES}in a row: {in_a_row}");
    println!("{FIGURES}over restores: {rounds}");
    Ok(())
}

impl Soak {
    fn in_a_row(&mut self, bed: &mut Bed, plan: &Plan) -> Result<String> {
        let mut first: Option<Census> = None;
        let mut last = None;
        for i in 1..=plan.in_a_row {
            if i % 4 != 0 {
                self.checkpoint(bed)?;
                continue;
            }
            let now = self.at_rest(bed, first.as_ref(), census::SAME_SUPERVISOR)?;
            // The first checkpoints may make what is made once.
            match &first {
                None => first = Some(now),
                Some(_) => last = Some(now),
            }
        }
        let (first, last) = (first.context("four in a row")?, last.context("eight in a row")?);
        Ok(last.growth(&first))
    }

    fn rounds(&mut self, bed: &mut Bed, plan: &Plan) -> Result<String> {
        let mut first: Option<Census> = None;
        let mut last = None;
        for round in 0..plan.rounds {
            for _ in 2..plan.each {
                self.checkpoint(bed)?;
            }
            let now = self.at_rest(bed, first.as_ref(), census::NEW_SUPERVISOR)?;
            match &first {
                // before that it has not been restored
                None if round == 0 => {}
                None => first = Some(now),
                Some(_) => last = Some(now),
            }
            self.restored(bed, round % 2 == 0)?;
        }
        let (first, last) = (first.context("two rounds")?, last.context("three rounds")?);
        Ok(last.growth(&first))
    }

    /// One by ctl, under load; it runs on.
    fn checkpoint(&mut self, bed: &mut Bed) -> Result<()> {
        self.work.gets_on()?;
        let pause = self.recorded(bed, &[])?;
        self.pauses.push(pause);
        self.work.gets_on()
    }

    /// One by ctl, without ptrace; its pause.
    fn recorded(&mut self, bed: &mut Bed, options: &[&str]) -> Result<f64> {
        let name = self.job.line.name.clone();
        let mut c = bed.ctl_command(&["--json", "checkpoint", &name, "--door", "agent"]);
        c.args(self.work.options()).args(options);
        sys::deny(&mut c, &sys::TRACING);
        let said = bed.run(&mut c)?.expect(0)?.json()?;
        self.n += 1;
        ensure!(said["door"] == "agent" && said["n"] == self.n, "not by the agent, or not number {}: {said}", self.n);
        // the report of a failure is about the end
        bed.log.drain(..bed.log.len().saturating_sub(20));
        said["pause_ms"].as_f64().context("pause_ms")
    }

    /// One by the supervisor, at rest; then all is counted.
    fn at_rest(&mut self, bed: &mut Bed, first: Option<&Census>, supervisor: u64) -> Result<Census> {
        self.work.gets_on()?;
        self.work.rest(self.job.pid)?;
        self.job.signal(Signal::SIGUSR2)?;
        self.n += 1;
        self.job.made(bed, self.n)?;
        let name = format!("{}@{}", self.job.line.name, self.n);
        let said = bed.ctl_json(&["inspect", &name])?;
        ensure!(
            said["summary"]["door"] == "agent",
            "the supervisor's should be by the agent: {}",
            said["summary"]["door"]
        );
        census::kept(bed, &self.job, self.n)?;
        let threads = proc::threads(self.job.pid).len();
        ensure!(threads == self.work.threads(), "it has {threads} threads");
        let census = Census::take(bed, &self.job, (self.work.growth(), supervisor), first)
            .with_context(|| format!("after checkpoint {}", self.n))?;
        self.work.on();
        self.work.gets_on()?;
        Ok(census)
    }

    /// Killed, under load or between requests, and restored.
    fn restored(&mut self, bed: &mut Bed, under_load: bool) -> Result<()> {
        if under_load {
            self.work.gets_on()?;
            self.work.away();
        } else {
            self.work.rest(self.job.pid)?;
        }
        self.recorded(bed, &["--kill"])?;
        nothing_runs(bed)?;
        self.work.gone()?;
        self.job = self.job.restore(bed, &[])?;
        bed.who.assert_is("the restored program", self.job.pid)?;
        self.work.on();
        self.work.gets_on()
    }
}

/// Of what was started nothing is there, no zombie either.
fn nothing_runs(bed: &Bed) -> Result<()> {
    run::until("the end of all", SOON, || {
        bed.reap();
        Ok(proc::descendants(std::process::id() as i32).is_empty())
    })
}
