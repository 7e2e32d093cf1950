//! `--strict`: what is only reported otherwise is refused, wherever it comes to light, and the program is none the worse for it.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Line, Mode, MODES};
use dormouse_tests::pty::Pty;
use dormouse_tests::run::{self, Ran};
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{proc, store, unharmed, Bed, Case};
use nix::sys::signal::Signal;
use std::fs;
use std::os::fd::AsRawFd;

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("strict/in-the-freeze", in_the_freeze);
    all.extend(Case::by_both_doors("strict/after-the-thaw", after_the_thaw));
    all.extend(Case::by_both_doors("strict/of-a-child", of_a_child));
    all.extend(Case::by_both_doors("strict/everything-is-kept", everything));
    all.extend(Case::by_both_doors("strict/given-up", given_up));
    all.extend(Case::by_both_doors("strict/another-terminal", another_terminal));
    all.extend(Case::each("strict/by-looking", by_looking));
    for (mode, name) in MODES {
        all.extend(Case::each(&format!("strict/session/{name}"), move |bed| session(bed, mode)));
    }
    all
}

/// Refused with each of these reasons and no other, with the remedy, and nothing is in the store.
fn refused(bed: &mut Bed, target: &Target, options: &[&str], reasons: &[&str]) -> Result<()> {
    let said = bed.ctl(&target.checkpoint_args(&[&["--strict"], options].concat()))?;
    says(said, reasons)?;
    ensure!(store::numbers(bed, &target.session).is_empty(), "a checkpoint was made");
    unharmed::entirely(target.pid)
}

fn says(said: Ran, reasons: &[&str]) -> Result<()> {
    let said = said.refused(3, reasons)?;
    let given = said.err.matches("with --strict everything is to be kept, and this is not: ").count();
    ensure!(given == reasons.len(), "{given} reasons instead of {}: {}", reasons.len(), said.err);
    ensure!(said.err.matches("; the program runs on as before; without --strict ").count() == given, "{}", said.err);
    Ok(())
}

/// Without it the same is reported, and made.
fn reported(bed: &mut Bed, target: &mut Target, lines: &[&str]) -> Result<()> {
    let made = bed.ctl(&target.checkpoint_args(&["--json"]))?.expect(0)?.json()?;
    let all = made["reported"].as_array().cloned().unwrap_or_default();
    let is = |line: &&str| all.iter().filter_map(|l| l.as_str()).any(|l| l.contains(*line));
    ensure!(all.len() == lines.len() && lines.iter().all(is), "reported: {all:?}");
    target.by_the_door(bed)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// Events that wait in an inotify: seen when all stand still.
fn in_the_freeze(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("inotify").args(["--unread"]).by_agent(agent).ready(bed)?;
    let lost = ["32 bytes of events that the program has not read yet"];
    // only ptrace leaves it stopped
    for options in [&[][..], &["--kill"], &["--stop"]].into_iter().take(if agent { 2 } else { 3 }) {
        refused(bed, &target, options, &lost)?;
    }
    reported(bed, &mut target, &lost)
}

/// A session keyring, of which only the snapshot child can be asked.
fn after_the_thaw(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("restricted").args(["--session-key"]).by_agent(agent).ready(bed)?;
    let lost = ["session keyring of-a-test"];
    for options in [&[][..], &["--kill"]] {
        refused(bed, &target, options, &lost)?;
    }
    reported(bed, &mut target, &lost)
}

/// What another process than the first has is named with its PID.
fn of_a_child(bed: &mut Bed, agent: bool) -> Result<()> {
    let (program, dir) = (bed.stage.program("restricted"), bed.folder()?);
    let script = format!("'{}' --dir '{}' --keys; true", program.display(), dir.display());
    let door = ["--door", if agent { "agent" } else { "attach" }];
    let words = ["sh", "-c", &script].map(Into::into).to_vec();
    let mut job = Line::of(Mode::Detached, &door, dir, words).ready(bed)?;
    let child = proc::children(job.pid)[0];
    let lost = [format!("PID {child}: process keyring"), format!("PID {child}: keyring of thread ")];
    says(bed.ctl(&["checkpoint", "job", door[0], door[1], "--strict"])?, &[&lost[0], &lost[1]])?;
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    unharmed::entirely(child)?;
    job.prove(bed)
}

/// Nothing stands against a program of which all is kept.
fn everything(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("mem_anon").by_agent(agent).ready(bed)?;
    bed.ctl(&["check", "--strict", "--pid", &target.pid.to_string()])?.expect(0)?;
    bed.ctl(&target.checkpoint_args(&["--strict", "--kill"]))?.expect(0)?;
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// A terminal that is neither what the program is on nor inside it: nobody can give it back. By an option another takes its place.
fn another_terminal(bed: &mut Bed, agent: bool) -> Result<()> {
    let (dir, pty) = (bed.folder()?, Pty::new((24, 80))?);
    let path = fs::read_link(format!("/proc/self/fd/{}", pty.slave().as_raw_fd()))?;
    nix::unistd::fchown(pty.slave(), Some(bed.who.uid().into()), None)?;
    let script = format!(
        "import os, time
there = os.open('{}', os.O_RDWR | os.O_NOCTTY)
os.dup2(there, 40)
os.close(there)
os.rename('begun', 'ready')
while not os.path.exists('gate'): time.sleep(0.002)
os.write(40, b'x')
print(os.ttyname(40) if os.isatty(40) else os.readlink('/proc/self/fd/40'), file=open('said.new', 'w'), flush=True)
os.rename('said.new', 'said')",
        path.display()
    );
    fs::write(dir.join("begun"), "")?;
    let door = if agent { "agent" } else { "attach" };
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--door", door, "--detach", "--"]);
    c.args(["python3", "-c", &script]).current_dir(&dir);
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let lost = "a terminal from outside that is not the program's own";
    says(bed.ctl(&["checkpoint", "job", "--strict"])?, &[lost])?;
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    unharmed::entirely(pid)?;
    let made = bed.ctl_json(&["checkpoint", "job", "--kill"])?;
    ensure!(made["door"] == door && made["reported"][0].as_str().is_some_and(|l| l.contains(lost)), "{made}");
    run::until("its end", LIMIT, || Ok(!proc::alive(pid)))?;
    bed.ctl(&["restore", "job", "--detach"])?.refused(3, &["its other end is outside", "--external 40=PATH"])?;
    let instead = dir.join("instead");
    fs::write(&instead, "")?;
    std::os::unix::fs::chown(&instead, Some(bed.who.uid()), None)?;
    let option = format!("40={}", instead.display());
    bed.ctl(&["restore", "job", "--detach", "--external", &option])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    run::until("its answer", LIMIT, || Ok(dir.join("said").exists()))?;
    let said = fs::read_to_string(dir.join("said"))?;
    ensure!(said.trim() == instead.to_string_lossy() && fs::read_to_string(&instead)? == "x", "it says {said}");
    Ok(())
}

/// What is given up by an option is reported and not refused; nor is what becomes of 0, 1 and 2.
fn given_up(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target =
        Start::program("fd_pidfd").args(["--what", "stranger", "--given-up"]).by_agent(agent).ready(bed)?;
    let given_up = ["--strict", "--external", "close", "--kill", "--json"];
    let said = bed.ctl(&target.checkpoint_args(&given_up))?.expect(0)?.json()?["reported"].to_string();
    ensure!(said.contains("after a restore of a process that has ended"), "reported: {said}");
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed)?;
    let mut target = Start::program("fd_external").args(["--inetd"]).by_agent(agent).ready(bed)?;
    let said =
        bed.ctl(&target.checkpoint_args(&["--strict", "--kill", "--json"]))?.expect(0)?.json()?["reported"].to_string();
    ensure!(said.contains("the restoring command's descriptor 0"), "reported: {said}");
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// An executable that is there no more: known before anything is touched, by ctl check too.
fn by_looking(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let copy = dir.join("sleep");
    fs::copy("/bin/sleep", &copy)?;
    let mut command = bed.command(&copy);
    let (mut child, ..) = bed.spawn(command.arg("600"))?;
    let pid = child.id() as i32;
    dormouse_tests::run::until("it to be sleep", dormouse_tests::bed::SOON, || {
        Ok(fs::read_link(format!("/proc/{pid}/exe"))? == copy)
    })?;
    fs::remove_file(&copy)?;
    let pid = pid.to_string();
    let lost = ["/proc/self/exe"];
    let looked = bed.ctl(&["check", "--pid", &pid])?.expect(0)?;
    ensure!(looked.out.contains("was deleted or replaced"), "{}", looked.out);
    says(bed.ctl(&["check", "--strict", "--pid", &pid])?, &lost)?;
    says(bed.ctl(&["checkpoint", "--strict", "--pid", &pid, "--name", "gone"])?, &lost)?;
    bed.ctl(&["check", "--strict", "gone"])?.refused(2, &["cannot be used with"])?;
    unharmed::entirely(child.id() as i32)?;
    child.kill()?;
    child.wait()?;
    bed.let_go(&child);
    Ok(())
}

/// launcher --strict: it holds for whoever asks, and after a restore.
fn session(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--signal", "USR2", "--strict"], &["inotify", "--unread"])?.ready(bed)?;
    job.signal(Signal::SIGUSR2)?;
    job.says("32 bytes of events that the program has not read yet")?;
    says(bed.ctl(&["checkpoint", "job"])?, &["32 bytes of events that the program has not read yet"])?;
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    job.prove(bed)?;
    let mut job = Line::program(bed, mode, &["--strict"], &["mem_anon"])?.ready(bed)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore(bed, &[])?;
    let list = bed.ctl_json(&["list"])?;
    ensure!(list["sessions"][0]["triggers"]["strict"] == true, "ctl list: {list}");
    again.prove(bed)
}
