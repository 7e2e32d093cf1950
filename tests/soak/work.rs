//! The programs: the Python server with clients, and sixteen threads that allocate.
use crate::load::Load;
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::job::{Job, Line, Mode};
use dormouse_tests::port::own_port;
use dormouse_tests::{proc, run, Bed};
use std::ffi::OsString;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;

/// How each is launched: by the agent, with a signal that makes checkpoints, of which three stay.
const OPTIONS: [&str; 6] = ["--door", "agent", "--signal", "USR2", "--keep", "3"];

/// A program that works while it is checkpointed.
pub trait Work {
    /// Starts it, and its load.
    fn start(&mut self, bed: &mut Bed) -> Result<Job>;
    /// It has done more since this was asked last, without a fault.
    fn gets_on(&mut self) -> Result<()>;
    /// What `ctl checkpoint` has to be told while it works.
    fn options(&self) -> &'static [&'static str];
    /// Brings it to a state that is the same each time, as far as it has one.
    fn rest(&mut self, pid: i32) -> Result<()>;
    /// It may work again.
    fn on(&mut self);
    /// It is about to be killed, while it works.
    fn away(&mut self);
    /// It was killed: whoever was served has noticed that, and waits.
    fn gone(&self) -> Result<()>;
    /// Everything that it did was right; it is to end.
    fn end(&mut self, bed: &mut Bed, job: &mut Job) -> Result<()>;
    /// Threads at rest.
    fn threads(&self) -> usize;
    /// How many KiB more it may have than at first, by what it does itself.
    fn growth(&self) -> u64;
    /// What it did, for people.
    fn figures(&self) -> String;
}

/// examples/server.py.
pub struct Web {
    port: u16,
    load: Option<Load>,
    seen: usize,
}

impl Web {
    /// On a port of its own.
    pub fn new() -> Result<Web> {
        Ok(Web { port: own_port()?, load: None, seen: 0 })
    }

    fn load(&self) -> Result<&Load> {
        self.load.as_ref().context("it was not started")
    }

    /// Connections of the server's port, by their states (/proc/net/tcp), and those that wait to be accepted.
    fn connections(&self) -> Result<String> {
        let text = fs::read_to_string("/proc/net/tcp")?;
        let mut all = String::new();
        for line in text.lines().skip(1) {
            let w: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, state, queues, ..] = w[..] else { continue };
            let ours = [local, remote].iter().any(|a| a.ends_with(&format!(":{:04X}", self.port)));
            let idle = state == "0A" && queues.ends_with(":00000000") || state == "06"; // listening, waited out
            if ours && !idle {
                all += &format!("\n{line}");
            }
        }
        Ok(all)
    }
}

impl Work for Web {
    fn start(&mut self, bed: &mut Bed) -> Result<Job> {
        let script = bed.stage.example("server.py").to_string_lossy().into_owned();
        let (dir, port) = (bed.folder()?, self.port.to_string());
        // With few arenas of malloc's what grows is not malloc's.
        let words = ["env", "MALLOC_ARENA_MAX=2", "python3", &script, &port].map(OsString::from);
        let job = Line::of(Mode::Detached, &OPTIONS, dir, words.to_vec()).start(bed)?;
        run::until("the server listening", LIMIT, || Ok(TcpStream::connect(("127.0.0.1", self.port)).is_ok()))?;
        bed.who.assert_is("the server", job.pid)?;
        self.load = Some(Load::start(self.port));
        // until what is made once has been made
        run::until("the first answers", LIMIT, || Ok(self.load()?.answered()? >= 50))?;
        Ok(job)
    }

    fn gets_on(&mut self) -> Result<()> {
        let seen = self.seen;
        run::until("an answer", LIMIT, || Ok(self.load()?.answered()? > seen))?;
        self.seen = self.load()?.answered()?;
        Ok(())
    }

    fn options(&self) -> &'static [&'static str] {
        &["--external", "close"]
    }

    fn rest(&mut self, pid: i32) -> Result<()> {
        self.load()?.shut()?;
        let mut left = String::new();
        let rests = run::until("no connection", SOON, || {
            left = self.connections()?;
            Ok(left.is_empty() && proc::threads(pid).len() == self.threads())
        });
        rests.with_context(|| format!("threads {:?}, connections:{left}", proc::threads(pid)))
    }

    fn on(&mut self) {
        if let Some(load) = &self.load {
            load.open();
        }
    }

    fn away(&mut self) {
        if let Some(load) = &self.load {
            load.away();
        }
    }

    fn gone(&self) -> Result<()> {
        self.load()?.shut()
    }

    fn end(&mut self, bed: &mut Bed, job: &mut Job) -> Result<()> {
        self.load.take().context("it was not started")?.end()?;
        bed.ctl(&["kill", &job.line.name])?.expect(0).map(drop)
    }

    fn threads(&self) -> usize {
        1
    }

    /// Of each request it keeps the path: a Python string (some 64 bytes), its place in a list, its part of each reply while that is made. And an arena of Python's or malloc's more.
    fn growth(&self) -> u64 {
        2048 + self.seen as u64 / 4
    }

    fn figures(&self) -> String {
        let load = self.load.as_ref();
        let worst = load.map_or(0.0, |l| l.worst().as_secs_f64() * 1000.0);
        let cut = load.map_or(0, Load::cut);
        format!("{} requests answered, the slowest in {worst:.1} ms, {cut} cut off by a kill", self.seen)
    }
}

/// tests/programs/alloc16.c.
#[derive(Default)]
pub struct Alloc {
    shown: PathBuf,
    seen: Vec<u64>,
}

impl Alloc {
    /// Operations of each thread.
    fn ops(&self) -> Result<Vec<u64>> {
        let bytes = fs::read(&self.shown)?;
        let mut words: Vec<u64> =
            bytes.chunks_exact(8).take(17).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))).collect();
        let damaged = words.pop().context("DIR/work is short")?;
        ensure!(damaged == 0, "{damaged} blocks were damaged");
        Ok(words)
    }
}

impl Work for Alloc {
    fn start(&mut self, bed: &mut Bed) -> Result<Job> {
        let line = Line::program(bed, Mode::Detached, &OPTIONS, &["alloc16", "--nap-us", "8000"])?;
        self.shown = line.dir.join("work");
        let job = line.ready(bed)?;
        // until what is made once has been made: as many blocks as there will be
        run::until("the first operations", LIMIT, || Ok(self.ops()?.iter().all(|n| *n > 5000)))?;
        self.seen = self.ops()?;
        Ok(job)
    }

    fn gets_on(&mut self) -> Result<()> {
        run::until("all threads getting on", LIMIT, || {
            Ok(self.ops()?.iter().zip(&self.seen).all(|(now, then)| now > then))
        })?;
        self.seen = self.ops()?;
        Ok(())
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn rest(&mut self, _: i32) -> Result<()> {
        Ok(())
    }

    fn on(&mut self) {}

    fn away(&mut self) {}

    fn gone(&self) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, bed: &mut Bed, job: &mut Job) -> Result<()> {
        job.prove(bed)
    }

    fn threads(&self) -> usize {
        17
    }

    /// 544 blocks of 3 KiB; what lies between them depends on sizes and orders.
    fn growth(&self) -> u64 {
        8192
    }

    fn figures(&self) -> String {
        format!("{} operations", self.seen.iter().sum::<u64>())
    }
}
