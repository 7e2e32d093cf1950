//! A session whose launcher makes checkpoints by itself: started in the foreground or detached, signalled, watched, and started again
//! by the same line.
use crate::bed::{LIMIT, SOON};
use crate::{proc, run, store, sys, Bed};
use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its launcher stays.
    Foreground,
    /// Its launcher has returned.
    Detached,
}

/// Both, with their names.
pub const MODES: [(Mode, &str); 2] = [(Mode::Foreground, "foreground"), (Mode::Detached, "detached")];

/// The line that starts it.
#[derive(Clone, Debug)]
pub struct Line {
    /// Name of the session.
    pub name: String,
    /// Where it runs.
    pub mode: Mode,
    /// The program's folder.
    pub dir: PathBuf,
    /// The door by which its checkpoints are made.
    pub door: &'static str,
    options: Vec<String>,
    words: Vec<OsString>,
    fault: Option<String>,
}

impl Line {
    /// A behaviour program with its arguments; it is `ready` in `dir`.
    pub fn program(bed: &mut Bed, mode: Mode, options: &[&str], words: &[&str]) -> Result<Line> {
        let dir = bed.folder()?;
        let mut all = vec![bed.stage.program(words[0]).into_os_string(), "--dir".into(), dir.clone().into()];
        all.extend(words[1..].iter().map(Into::into));
        let line = Line::of(mode, options, dir, all);
        Ok(if words[0].starts_with("static_") { line.attached() } else { line })
    }

    /// A Python script that runs in `dir`, and makes the file `ready` there.
    pub fn python(bed: &mut Bed, mode: Mode, options: &[&str], script: &str) -> Result<Line> {
        let dir = bed.folder()?;
        Ok(Line::of(mode, options, dir, ["python3", "-c", script].map(OsString::from).to_vec()))
    }

    /// Any words.
    pub fn of(mode: Mode, options: &[&str], dir: PathBuf, words: Vec<OsString>) -> Line {
        let door = if options.windows(2).any(|o| o == ["--door", "attach"]) { "attach" } else { "agent" };
        let options = options.iter().map(|o| o.to_string()).collect();
        Line { name: "job".into(), mode, dir, door, options, words, fault: None }
    }

    /// The program will have no agent when its checkpoints are made.
    pub fn attached(self) -> Line {
        Line { door: "attach", ..self }
    }

    /// The same line with other options.
    pub fn with(&self, options: &[&str]) -> Line {
        Line { options: options.iter().map(|o| o.to_string()).collect(), ..self.clone() }
    }

    /// Each recorder meets this fault.
    pub fn fault(&self, fault: &str) -> Line {
        Line { fault: Some(fault.into()), ..self.clone() }
    }

    fn command(&self, bed: &Bed) -> Command {
        let mut c = bed.launcher_command(&["--json", "--name", &self.name]);
        c.args(if self.mode == Mode::Detached { &["--detach"][..] } else { &[] });
        c.args(&self.options).arg("--").args(&self.words).current_dir(&self.dir);
        if let Some(fault) = &self.fault {
            c.env("DORMOUSE_FAULT", fault);
        }
        c
    }

    /// Runs it to its end, which must be soon.
    pub fn run(&self, bed: &mut Bed) -> Result<run::Ran> {
        let mut c = self.command(bed);
        bed.run(&mut c)
    }

    /// Runs it; the session is live then.
    pub fn start(&self, bed: &mut Bed) -> Result<Job> {
        let mut c = self.command(bed);
        let mut job = Job {
            line: self.clone(),
            pid: 0,
            supervisor: 0,
            to: 0,
            started: Value::Null,
            front: None,
            err: bed.state().join("sessions").join(&self.name).join("log"),
        };
        if self.mode == Mode::Detached {
            job.started = bed.run(&mut c)?.expect(0)?.json()?;
        } else {
            sys::own_session(&mut c);
            let (mut front, _, err) = bed.spawn(&mut c)?;
            job.err = err;
            run::until("the session's start", LIMIT, || {
                job.started = job.events("started").pop().unwrap_or_default();
                Ok(job.started.is_object() || front.try_wait()?.is_some())
            })?;
            if !job.started.is_object() {
                bed.let_go(&front);
                bail!("{}: it ended before it had started: {}", run::typed(&c), job.said());
            }
            job.front = Some(front);
        }
        job.pid = job.started["pid"].as_i64().context("no pid")? as i32;
        job.supervisor = job.started["supervisor"].as_i64().context("no supervisor")? as i32;
        job.to = job.front.as_ref().map_or(job.supervisor, |f| f.id() as i32);
        bed.log.push(format!("$ {} [PID {}, launcher {}]", run::typed(&c), job.pid, job.to));
        Ok(job)
    }

    /// Runs it for the first time, and waits until the program is ready.
    pub fn ready(&self, bed: &mut Bed) -> Result<Job> {
        let job = self.start(bed)?;
        let ready = self.dir.join("ready");
        run::until("the program ready", LIMIT, || {
            ensure!(proc::alive(job.pid), "the program ended: {}", job.said());
            Ok(ready.exists())
        })?;
        bed.who.assert_is("the program", job.pid)?;
        Ok(job)
    }
}

/// One that was started or restored.
pub struct Job {
    /// How.
    pub line: Line,
    /// The program.
    pub pid: i32,
    /// Its supervisor.
    pub supervisor: i32,
    /// Who gets the signals that are for the launcher.
    pub to: i32,
    /// What was said when it was started.
    pub started: Value,
    front: Option<Child>,
    err: PathBuf,
}

impl Job {
    /// `ctl restore` brings it back, detached.
    pub fn restore(&self, bed: &mut Bed, options: &[&str]) -> Result<Job> {
        let mut args = vec!["restore", &self.line.name, "--detach"];
        args.extend(options);
        let said = bed.ctl_json(&args)?;
        Job::detached(bed, &self.line, said)
    }

    /// `ctl restore` brings it back, in the foreground.
    pub fn restore_here(&self, bed: &mut Bed) -> Result<Job> {
        self.restore_here_with(bed, &[])
    }

    /// The same with options.
    pub fn restore_here_with(&self, bed: &mut Bed, options: &[&str]) -> Result<Job> {
        let mut c = bed.ctl_command(&["--json", "restore", &self.line.name]);
        c.args(options);
        self.in_front(bed, c)
    }

    fn in_front(&self, bed: &mut Bed, mut c: Command) -> Result<Job> {
        sys::own_session(&mut c);
        let (front, _, err) = bed.spawn(&mut c)?;
        let mut said = Value::Null;
        run::until("the restore", LIMIT, || {
            said =
                serde_json::from_str(fs::read_to_string(&err)?.lines().next().unwrap_or_default()).unwrap_or_default();
            Ok(said["pid"].is_number())
        })?;
        let line = Line { mode: Mode::Foreground, ..self.line.clone() };
        let to = front.id() as i32;
        Ok(Job { front: Some(front), err, to, ..Job::detached(bed, &line, said)? })
    }

    /// The same where it ran before, by a ctl whose session's recorders meet a fault.
    pub fn restore_faulty(&self, bed: &mut Bed, fault: &str) -> Result<Job> {
        let mut c = bed.ctl_command(&["--json", "restore", &self.line.name]);
        c.env("DORMOUSE_FAULT", fault);
        match self.line.mode {
            Mode::Foreground => self.in_front(bed, c),
            Mode::Detached => {
                let said = bed.run(c.arg("--detach"))?.expect(0)?.json()?;
                Job::detached(bed, &self.line, said)
            }
        }
    }

    /// Where it ran before: detached or in the foreground.
    pub fn restore_as_it_was(&self, bed: &mut Bed) -> Result<Job> {
        match self.line.mode {
            Mode::Foreground => self.restore_here(bed),
            Mode::Detached => self.restore(bed, &[]),
        }
    }

    fn detached(bed: &Bed, line: &Line, said: Value) -> Result<Job> {
        let number = |key: &str| said[key].as_i64().map(|n| n as i32).with_context(|| format!("no {key} in {said}"));
        let (pid, supervisor) = (number("pid")?, number("supervisor")?);
        let err = bed.state().join("sessions").join(&line.name).join("log");
        Ok(Job { line: line.clone(), pid, supervisor, to: supervisor, started: said, front: None, err })
    }

    /// All that launcher or supervisor said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// The launcher's events of a kind; in the foreground.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let all = self.said();
        let events = all.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        events.filter(|e| e["event"] == kind).collect()
    }

    /// Sends launcher a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.to), signal)?)
    }

    /// Its recorders: the children of its supervisor that run launcher or ctl.
    pub fn recorders(&self, bed: &Bed) -> Vec<i32> {
        let ours = |pid: &i32| {
            let init = proc::status(*pid).is_some_and(|s| s.comm == "dormouse-init");
            !init && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|e| e.starts_with(bed.stage.bin("")))
        };
        proc::children(self.supervisor).into_iter().filter(ours).collect()
    }

    /// Waits for checkpoint `n`, and until nothing is recorded any more; it was made by the door that was meant.
    pub fn made(&self, bed: &mut Bed, n: u64) -> Result<()> {
        let waited = run::until(&format!("checkpoint {n}"), LIMIT, || {
            Ok(store::numbers(bed, &self.line.name).contains(&n) && self.recorders(bed).is_empty())
        });
        waited.with_context(|| self.said())?;
        store::made_by(bed, &format!("{}@{n}", self.line.name), self.line.door)
    }

    /// Waits until what it says has `words`.
    pub fn says(&self, words: &str) -> Result<()> {
        run::until(&format!("{words:?} in what it says"), LIMIT, || Ok(self.said().contains(words)))
            .with_context(|| self.said())
    }

    /// Waits for a recorder that a fault has stopped; gives its PID.
    pub fn stopped_recorder(&self, bed: &Bed) -> Result<i32> {
        let mut found = None;
        run::until("a stopped recorder", LIMIT, || {
            let stopped = |pid: &i32| proc::status(*pid).is_some_and(|s| s.state == 'T');
            found = self.recorders(bed).into_iter().find(stopped);
            Ok(found.is_some())
        })?;
        found.context("it is there")
    }

    /// Waits until the launcher has taken the signals that were sent to it.
    pub fn taken(&self, signal: Signal) -> Result<()> {
        run::until(&format!("{signal} taken"), SOON, || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.to))?;
            let pending = status.lines().find_map(|l| l.strip_prefix("ShdPnd:")).context("ShdPnd")?;
            Ok(u64::from_str_radix(pending.trim(), 16)? >> (signal as i32 - 1) & 1 == 0)
        })
    }

    /// Waits for its end; gives the launcher's exit code, or what it would be. If it was checkpointed and left, that was by the door that was meant.
    pub fn end(&mut self, bed: &mut Bed) -> Result<i32> {
        let code = self.ended(bed)?;
        if code == 85 {
            store::made_by(bed, &self.line.name, self.line.door)?;
        }
        Ok(code)
    }

    fn ended(&mut self, bed: &mut Bed) -> Result<i32> {
        let supervisor = self.supervisor;
        if let Some(mut front) = self.front.take() {
            let status = run::end(&mut front, "the launcher", LIMIT);
            bed.let_go(&front);
            let status = status.with_context(|| self.said())?;
            bed.log.push(format!("the launcher ended with {}; it said {}", run::code(status), self.said()));
            return Ok(run::code(status));
        }
        run::until("the session's end", LIMIT, || {
            bed.reap();
            Ok(!proc::alive(supervisor))
        })?;
        let list = bed.ctl_json(&["list"])?;
        let all = list["sessions"].as_array().cloned().unwrap_or_default();
        let Some(one) = all.iter().find(|s| s["name"] == *self.line.name) else { return Ok(0) };
        let last = one["last"].as_str().with_context(|| format!("how it ended is not known: {list}"))?;
        let number = |text: &str| last.strip_prefix(text).and_then(|n| n.parse::<i32>().ok());
        let signal = || last.strip_prefix("killed by ").and_then(|s| s.parse::<Signal>().ok());
        match (last.starts_with("checkpointed as "), number("exited with "), signal()) {
            (true, ..) => Ok(85),
            (_, Some(code), _) => Ok(code),
            (_, _, Some(signal)) => Ok(128 + signal as i32),
            _ => bail!("it ended: {last}"),
        }
    }

    /// Opens the gate of a behaviour program: it proves itself, and ends.
    pub fn prove(&mut self, bed: &mut Bed) -> Result<()> {
        fs::write(self.line.dir.join("gate"), "")?;
        let result = self.line.dir.join("result");
        run::until("a result", LIMIT, || Ok(result.exists() || !proc::alive(self.pid))).with_context(|| self.said())?;
        let said =
            fs::read_to_string(&result).with_context(|| format!("it ended without a result: {}", self.said()))?;
        ensure!(said.lines().next() == Some("OK"), "its proof failed: {said}");
        let code = self.end(bed)?;
        ensure!(code == 0, "after its proof it ended with {code}: {}", self.said());
        Ok(())
    }

    /// Kills all of it at once: program, supervisor, launcher, recorder, everything.
    pub fn kill_all(mut self, bed: &mut Bed) {
        if let Some(front) = self.front.take() {
            bed.let_go(&front);
        }
        crate::watch::end_all_below();
    }
}
