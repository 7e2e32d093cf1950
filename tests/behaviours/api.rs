//! From the program: libdormouse in C, Rust and Python; what each call gives alone, launched, restored; hooks, critical sections, memory not worth
//! keeping; other threads in the middle of anything.
mod beside;
mod critical;
mod hooks;
mod link;
mod python;

use hooks::order;

use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for example in ["counter_so", "counter_a", "counter_rs"] {
        all.extend(Case::each(&format!("api/{example}"), move |bed| counter(bed, example)));
    }
    all.extend(python::cases());
    all.extend(Case::each("api/alone", alone));
    all.extend(Case::each("api/continued-restored", continued_restored));
    all.extend(Case::each("api/restored-under-another-name", another_name));
    all.extend(Case::each("api/found-by-ctl-alone", by_pid));
    all.extend(Case::each("api/child-is-not-the-program", child));
    all.extend(Case::each("api/hooks", hooks::hooks));
    all.extend(Case::each("api/hooks-with-new-pids", hooks::new_pids));
    all.extend(Case::each("api/veto", hooks::veto));
    all.extend(Case::each("api/hook-time-out", hooks::hook_time_out));
    all.extend(Case::each("api/hooks-of-a-stopped-program", hooks::hooks_stopped));
    all.extend(Case::each("api/critical-nested", critical::critical_nested));
    all.extend(Case::each("api/critical-too-long", critical::critical_too_long));
    all.extend(Case::each("api/critical-at-a-tick", critical::critical_tick));
    all.extend(Case::each("api/dropped-memory", dropped));
    all.extend(Case::each("api/two-at-once", two_at_once));
    all.extend(Case::each("api/session-of-its-own", embedded));
    all.extend(Case::each("api/session-without-ctl", without_ctl));
    all.extend(beside::cases());
    all.extend(link::cases());
    all.extend(Case::each("api/recorder-killed", recorder_killed));
    all.extend(Case::each("api/recorder-killed-with-hooks", recorder_killed_with_hooks));
    all.into_iter().map(|c| c.limit(60)).collect()
}

/// A running `api` (tests/programs/api.c).
struct Api {
    dir: PathBuf,
    pid: i32,
    session: String,
    /// Commands given.
    k: usize,
    child: Option<Child>,
    /// The door by which its checkpoints are made.
    door: &'static str,
}

impl Api {
    fn new(bed: &mut Bed) -> Result<Api> {
        let dir = bed.folder()?;
        let session = format!("s{}", dir.file_name().unwrap_or_default().to_string_lossy());
        Ok(Api { dir, pid: 0, session, k: 0, child: None, door: "agent" })
    }

    fn ready(mut self, bed: &mut Bed) -> Result<Api> {
        let line = self.line("ready ")?;
        self.pid = line.parse()?;
        bed.who.assert_is("api", self.pid)?;
        Ok(self)
    }

    /// `launcher --detach -- api DIR`.
    fn launched(bed: &mut Bed, fault: Option<&str>) -> Result<Api> {
        Api::launched_with(bed, &[], fault)
    }

    fn launched_with(bed: &mut Bed, options: &[&str], fault: Option<&str>) -> Result<Api> {
        let mut api = Api::new(bed)?;
        api.door = if options.windows(2).any(|o| o == ["--door", "attach"]) { "attach" } else { "agent" };
        let mut c = bed.launcher_command(&["--name", &api.session, "--detach"]);
        c.args(options).arg("--").arg(bed.stage.program("api")).arg(&api.dir);
        if let Some(fault) = fault {
            c.env("DORMOUSE_FAULT", fault);
        }
        bed.run(&mut c)?.expect(0)?;
        api.ready(bed)
    }

    /// Started by nobody of ours.
    fn by_itself(bed: &mut Bed, ctl: &Path) -> Result<Api> {
        let mut api = Api::new(bed)?;
        let mut c = bed.command(bed.stage.program("api"));
        c.arg(&api.dir).env("DORMOUSE_CTL", ctl);
        dormouse_tests::sys::own_session(&mut c);
        let (child, _, _) = bed.spawn(&mut c)?;
        api.child = Some(child);
        api.door = "attach";
        api.ready(bed)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Rest of the first whole line that begins so, once it is there.
    fn line(&self, begin: &str) -> Result<String> {
        let mut found = String::new();
        let waited = run::until("", LIMIT, || {
            let log = self.log();
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            let line = whole.lines().find_map(|l| l.strip_prefix(begin));
            found = line.unwrap_or_default().to_owned();
            Ok(line.is_some())
        });
        waited.with_context(|| format!("a line that begins {begin:?}; the log holds\n{}", self.log()))?;
        Ok(found)
    }

    /// Gives it a command, and does not wait.
    fn begin(&mut self, bed: &Bed, command: &str) -> Result<String> {
        self.k += 1;
        let (tmp, path) = (self.dir.join("do.tmp"), self.dir.join(format!("do.{}", self.k)));
        fs::write(&tmp, command)?;
        bed.give(&tmp)?;
        fs::rename(&tmp, path)?;
        Ok(format!("{}", self.k))
    }

    /// Gives it a command; what it answers.
    fn tell(&mut self, bed: &mut Bed, command: &str) -> Result<String> {
        let k = self.begin(bed, command)?;
        let said = self.answer(&k)?;
        bed.log.push(format!("api: {command}: {said}"));
        Ok(said)
    }

    fn answer(&self, k: &str) -> Result<String> {
        let mut found = String::new();
        let waited = run::until("", LIMIT, || {
            let log = self.log();
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            let mut answers = whole.lines().filter_map(|l| l.strip_prefix(k));
            let answer = answers.find(|rest| rest.is_empty() || rest.starts_with(' '));
            found = answer.unwrap_or_default().trim_start().to_owned();
            Ok(answer.is_some())
        });
        waited.with_context(|| format!("the answer to command {k}; the log holds\n{}", self.log()))?;
        Ok(found)
    }

    fn says(&mut self, bed: &mut Bed, command: &str, expected: &str) -> Result<()> {
        let said = self.tell(bed, command)?;
        ensure!(said == expected, "{command}: expected {expected:?}, it said {said:?}\n{}", self.log());
        Ok(())
    }

    /// Kills it by hand, and takes the answers of the commands that the image is in the middle of out of its log.
    fn kill(&mut self, bed: &mut Bed) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL)?;
        self.gone(bed)
    }

    fn gone(&mut self, bed: &mut Bed) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            run::end(&mut child, "api", SOON)?;
            bed.let_go(&child);
            return Ok(()); // no supervisor is there to end with it
        }
        let (pid, session) = (self.pid, self.session.clone());
        run::until("the end of the session", SOON, || {
            bed.reap();
            Ok(!proc::alive(pid) && !bed.state().join("sessions").join(&session).join("live.json").exists())
        })
    }

    fn restore(&mut self, bed: &mut Bed, options: &[&str]) -> Result<()> {
        fs::remove_file(self.dir.join("log"))?;
        let mut args = vec!["restore", &self.session, "--detach"];
        args.extend(options);
        let said = bed.ctl_json(&args)?;
        if let ["--as", name] = options {
            self.session = name.to_string();
        }
        self.pid = said["pid"].as_i64().context("ctl restore --json tells no pid")? as i32;
        bed.who.assert_is("the restored api", self.pid)
    }

    /// Its descriptors, but for the files by which it is told what to do and answers: it may be about to close one.
    fn descriptors(&self) -> Vec<(i32, String)> {
        let dir = self.dir.to_string_lossy();
        proc::descriptors(self.pid).into_iter().filter(|d| !d.1.starts_with(&*dir)).collect()
    }

    /// The latest checkpoint was made by the door that was meant.
    fn door(&self, bed: &mut Bed) -> Result<()> {
        store::made_by(bed, &self.session, self.door)
    }

    /// It is unharmed, its latest checkpoint, if there is one, was made by the door that was meant; it ends.
    fn end(mut self, bed: &mut Bed) -> Result<()> {
        unharmed::entirely(self.pid)?;
        if !store::numbers(bed, &self.session).is_empty() {
            self.door(bed)?;
        }
        self.begin(bed, "end")?;
        if self.child.is_none() {
            let pid = self.pid;
            return run::until("the end of api", SOON, || {
                bed.reap();
                Ok(!proc::alive(pid))
            });
        }
        self.gone(bed)
    }
}

/// The examples in C (shared and static library) and Rust: alone, launched, restored, and restored again from what the restored one made.
fn counter(bed: &mut Bed, example: &str) -> Result<()> {
    let program = bed.stage.program(example);
    let alone = bed.run(bed.command(&program).arg("6"))?.expect(0)?;
    ensure!(alone.out.contains("alone: ") && alone.out.ends_with("\n6\n"), "alone it said {}", alone.said());
    let mut c = bed.launcher_command(&["--name", "counting", "--detach", "--"]);
    c.arg(&program).arg("10");
    let said = detached(bed, "counting", &mut c)?;
    says_all(&said, &["\n5\n", "continued", "checkpoint 1", "\n6\n", "checkpoint 2", "\n10\n"])?;
    store::holds(bed, "counting", &[1, 2])?;
    let inspected = bed.ctl(&["inspect", "counting@1"])?.expect(0)?.out;
    ensure_has(&inspected, "KiB of memory in 1 region: the program said that it is not worth keeping")?;
    let mut c = bed.ctl_command(&["restore", "counting@1", "--detach"]);
    let said = detached(bed, "counting", &mut c)?;
    says_all(&said, &["restored", "checkpoint 1", "generation 1", "6\n", "continued", "checkpoint 3"])?;
    let mut c = bed.ctl_command(&["restore", "counting@3", "--detach"]);
    says_all(&detached(bed, "counting", &mut c)?, &["restored", "checkpoint 3", "generation 2"])?;
    store::all_made_by(bed, "counting", "agent")
}

/// Runs a command that starts a detached session, until that has ended; gives what it added to its log.
fn detached(bed: &mut Bed, session: &str, command: &mut Command) -> Result<String> {
    let dir = bed.state().join("sessions").join(session);
    let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
    let before = log().len();
    bed.run(command)?.expect(0)?;
    run::until("the end of the session", LIMIT, || {
        bed.reap();
        Ok(!dir.join("live.json").exists())
    })?;
    Ok(log()[before..].to_owned())
}

fn says_all(text: &str, words: &[&str]) -> Result<()> {
    words.iter().try_for_each(|w| ensure_has(text, w))
}

fn ensure_has(text: &str, what: &str) -> Result<()> {
    ensure!(text.contains(what), "it should say {what:?}, it says {text}");
    Ok(())
}

/// Without Dormouse every call is harmless, and says so.
fn alone(bed: &mut Bed) -> Result<()> {
    let mut api = Api::by_itself(bed, Path::new(""))?;
    ensure_has(&api.tell(bed, "checkpoint")?, "alone (no checkpoint was made: it is not the program of a session")?;
    api.says(bed, "name", "none")?;
    api.says(bed, "generation", "0")?;
    api.says(bed, "enable", "-2")?;
    api.says(bed, "disable", "")?;
    api.says(bed, "enable", "0")?;
    api.says(bed, "threads", "1")?;
    ensure!(!bed.state().exists(), "a state directory was made");
    api.end(bed)
}

/// Continued; killed and restored: restored, generation 1, and again, 2.
fn continued_restored(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.says(bed, "name", &name)?;
    api.says(bed, "threads", "1")?;
    api.door(bed)?;
    let before = api.descriptors();
    for n in 2..5 {
        api.says(bed, "checkpoint", &format!("continued (checkpoint {n} is complete), generation 0"))?;
    }
    ensure!(api.descriptors() == before, "a descriptor is left: {:?}", api.descriptors());
    for generation in 1..=2 {
        api.kill(bed)?;
        api.restore(bed, &[])?;
        let k = api.k.to_string();
        let said = api.answer(&k)?;
        let n = if generation == 1 { 4 } else { 5 };
        ensure_has(
            &said,
            &format!("restored (restored from checkpoint {n}, generation {generation}), generation {generation}"),
        )?;
        if generation == 1 {
            api.says(bed, "checkpoint", "continued (checkpoint 5 is complete), generation 1")?;
        }
    }
    ensure!(api.descriptors().len() == before.len(), "it has {:?}", api.descriptors());
    api.end(bed)
}

/// Restored with --as it is another session, and knows it.
fn another_name(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.kill(bed)?;
    api.restore(bed, &["--as", "other"])?;
    ensure_has(&api.answer("1")?, "restored (restored from checkpoint 1, generation 1)")?;
    api.says(bed, "name", "other")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 1")?;
    store::holds(bed, "other", &[1])?;
    api.end(bed)
}

/// One that used no call before its checkpoint finds its session after a restore, also under another name; and one that ctl made a session.
fn by_pid(bed: &mut Bed) -> Result<()> {
    let mut api = Api::by_itself(bed, Path::new(""))?;
    let pid = api.pid.to_string();
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", &api.session, "--kill"])?.expect(0)?;
    api.gone(bed)?;
    api.restore(bed, &["--as", "found"])?;
    api.says(bed, "name", "found")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.end(bed)
}

/// A process below the session's program is told that it is not the one.
fn child(bed: &mut Bed) -> Result<()> {
    let program = bed.stage.program("counter_so");
    let script = format!("{} 5; echo ended", program.display());
    let mut c = bed.launcher_command(&["--name", "sh", "--", "/bin/sh", "-c", &script]);
    let ran = bed.run(&mut c)?.expect(0)?;
    ensure_has(&ran.out, "alone: no checkpoint was made: this process is not the program of session sh: PID ")
}

/// 32 MiB that do not compress are not in the image, are said to be left out, and are zeros after a restore; but for the two pages that are not
/// wholly in what was dropped. The program that runs on has them, and taken back they are kept.
fn dropped(bed: &mut Bed) -> Result<()> {
    const BYTES: u64 = (32 << 20) - 8192;
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "big", "made")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.says(bed, "drop", &BYTES.to_string())?;
    for options in [&[][..], &["--kill"]] {
        let said = bed.ctl(&[&["checkpoint", &name], options].concat())?.expect(0)?.said();
        ensure_has(
            &said,
            &format!("{} KiB of memory in 1 region: the program said that it is not worth keeping", BYTES >> 10),
        )?;
        if options.is_empty() {
            api.says(bed, "look", "all there")?;
        }
    }
    let bytes = |bed: &mut Bed, n: u32| -> Result<u64> {
        bed.ctl_json(&["inspect", &format!("{name}@{n}")])?["summary"]["stored_bytes"]
            .as_u64()
            .context("no stored_bytes")
    };
    let (whole, less, killed) = (bytes(bed, 1)?, bytes(bed, 2)?, bytes(bed, 3)?);
    ensure!(
        less + (25 << 20) < whole && killed + (25 << 20) < whole,
        "{whole} bytes with it, {less} and {killed} without"
    );
    ensure_has(&bed.ctl(&["inspect", &name])?.expect(0)?.out, "not kept     32760 KiB of memory")?;
    api.gone(bed)?;
    api.restore(bed, &[])?;
    api.says(bed, "look", "zeros within")?;
    api.says(bed, "keep", "0")?;
    api.says(bed, "keep", "-2")?;
    api.end(bed)
}

/// Two threads at once: each has its own checkpoint. Restored, one comes back as restored, the other makes its own.
fn two_at_once(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "two", "0 0, generation 0")?;
    store::holds(bed, &name, &[1, 2])?;
    api.kill(bed)?;
    let first = format!("{name}@1");
    fs::remove_file(api.dir.join("log"))?;
    let said = bed.ctl_json(&["restore", &first, "--detach"])?;
    api.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    let said = api.answer("1")?;
    ensure!(
        ["1 0, generation 1", "0 1, generation 1", "1 1, generation 1"].contains(&said.as_str()),
        "restored it said {said}"
    );
    api.end(bed)
}

/// No launcher: it names itself a session, and starts its recorders, which are no children of its; restored it has a supervisor. Hooks and critical
/// sections as ever.
fn embedded(bed: &mut Bed) -> Result<()> {
    let ctl = bed.stage.bin("ctl");
    let mut api = Api::by_itself(bed, &ctl)?;
    let name = api.session.clone();
    ensure_has(&api.tell(bed, "checkpoint")?, "alone")?;
    api.says(bed, &format!("session {name}"), "0")?;
    api.says(bed, "name", &name)?;
    let before = api.descriptors();
    for n in 1..4 {
        api.says(bed, "checkpoint", &format!("continued (checkpoint {n} is complete), generation 0"))?;
        ensure!(proc::children(api.pid).is_empty(), "it has children: {:?}", proc::children(api.pid));
    }
    ensure!(api.descriptors() == before, "a descriptor is left: {:?}", api.descriptors());
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "veto 1", "")?;
    ensure_has(&api.tell(bed, "checkpoint")?, "its hook a vetoed the checkpoint: a transaction is open; try again")?;
    api.says(bed, "veto 0", "")?;
    api.says(bed, "checkpoint", "continued (checkpoint 4 is complete), generation 0")?;
    order(&api, &["before b", "before a", "after a: made 4", "after b: made 4"])?;
    for generation in 1..=2 {
        api.kill(bed)?;
        api.restore(bed, &[])?;
        let k = api.k.to_string();
        ensure_has(
            &api.answer(&k)?,
            &format!("restored (restored from checkpoint {}, generation {generation})", 3 + generation),
        )?;
        let made = format!("continued (checkpoint {} is complete), generation {generation}", 4 + generation);
        api.says(bed, "checkpoint", &made)?;
    }
    api.end(bed)
}

/// Its recorder cannot be started: an error that says what to do, and the program runs on.
fn without_ctl(bed: &mut Bed) -> Result<()> {
    let mut api = Api::by_itself(bed, Path::new("/nowhere/ctl"))?;
    api.says(bed, "session lonely", "0")?;
    ensure_has(
        &api.tell(bed, "checkpoint")?,
        "error -9 (cannot checkpoint lonely: /nowhere/ctl could not be started: No such file",
    )?;
    api.end(bed)?;
    let mut api = Api::by_itself(bed, Path::new(""))?;
    api.says(bed, "session lonely", "0")?;
    ensure_has(
        &api.tell(bed, "checkpoint")?,
        "error -3 (cannot checkpoint lonely: there is no ctl to start as its recorder: set DORMOUSE_CTL",
    )?;
    api.end(bed)
}

/// The recorder is killed in each phase: the call gives an error, and the program runs on.
fn recorder_killed(bed: &mut Bed) -> Result<()> {
    for phase in ["find", "freeze", "observe", "fork", "thaw", "record", "publish"] {
        let mut api = Api::launched(bed, Some(&format!("{phase}:1:kill-self")))?;
        let said = api.tell(bed, "checkpoint")?;
        ensure_has(&said, "recorder: it was killed before it was done")?;
        unharmed::but_for_the_documented(api.pid)?;
        let name = api.session.clone();
        run::until("everyone out of a broken-off checkpoint", SOON, || {
            let ran = bed.ctl(&["checkpoint", &name])?;
            if ran.code() == 3 && ran.said().contains("just leaving an earlier checkpoint") {
                return Ok(false);
            }
            ran.expect(0).map(|_| true)
        })?;
        api.end(bed)?;
    }
    Ok(())
}

/// So it is with hooks, whose `after`s are told.
fn recorder_killed_with_hooks(bed: &mut Bed) -> Result<()> {
    for phase in ["find", "observe", "publish"] {
        let mut api = Api::launched(bed, Some(&format!("{phase}:1:kill-self")))?;
        api.says(bed, "hooks", "1 2")?;
        ensure_has(&api.tell(bed, "checkpoint")?, "recorder: it was killed before it was done")?;
        let why = "the recorder ended before it told how the checkpoint did";
        order(&api, &["before b", "before a", &format!("after a: {why}"), &format!("after b: {why}")])?;
        api.end(bed)?;
    }
    Ok(())
}
