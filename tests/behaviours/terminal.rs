//! Programs on terminals: restored onto another one, with the size of that and the settings of the program's; and under the
//! job control of a shell.
use anyhow::{ensure, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::pty::Pty;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, Bed, Case};
use std::fs;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("terminal/another", another));
    all.extend(Case::each("terminal/another-by-pid", another_by_pid));
    for (name, door) in [("launched", Door::Terminal), ("by-pid", Door::OnTerminal)] {
        for (what, size) in [("another-size", (40, 100)), ("the-same-size", (24, 80))] {
            let body = move |bed: &mut Bed| redrawn(bed, door, size);
            all.extend(Case::each(&format!("terminal/redrawn-{name}-{what}"), body));
        }
    }
    all.extend(Case::each("terminal/job-control", job_control));
    all.extend(Case::each("terminal/progress", progress).into_iter().map(|c| c.limit(60)));
    all
}

/// Restored in the foreground of a terminal of another size, whose exit status is the program's.
fn another(bed: &mut Bed) -> Result<()> {
    onto_another(bed, Door::Terminal)
}

/// The same for a program that we did not launch.
fn another_by_pid(bed: &mut Bed) -> Result<()> {
    onto_another(bed, Door::OnTerminal)
}

fn onto_another(bed: &mut Bed, door: Door) -> Result<()> {
    let mut target = Start::program("tty").env("DORMOUSE_TEST_SIZE", "40 100").door(door).ready(bed)?;
    target.kill(bed)?;
    let pty = Pty::new((40, 100))?;
    let mut restore = bed.ctl_command(&["restore", &target.session]);
    target.child = Some(pty.spawn(bed, &mut restore)?);
    drop(restore);
    let live = bed.state().join("sessions").join(&target.session).join("live.json");
    run::until("the session live again", SOON, || Ok(live.exists()))?;
    let proof = target.prove(bed);
    bed.log.push(format!("the new terminal shows: {}", pty.said()));
    proof.map(|_| ())
}

/// Says each SIGWINCH with the size of its terminal; the marks are not in this text, which a terminal may echo. Not in a handler: Python
/// runs those before its next call, and a signal that comes right before a read waits for its end.
const DRAWS: &str = "
import os, select, signal, sys
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w)
signal.signal(signal.SIGWINCH, lambda *_: None)
os.write(1, b'<started>')
open('ready', 'w').close()
while True:
    if r in select.select([0, r], [], [])[0]:
        size = os.get_terminal_size(0)
        for _ in os.read(r, 64): os.write(1, b'<winch %d %d>' % (size.lines, size.columns))
        continue
    line = os.read(0, 999).strip()
    os.write(1, b'<got ' + line + b'>')
    if line == b'end': sys.exit(0)
";

/// Restored in the foreground of a terminal it gets one SIGWINCH, once the terminal is its own, and is told the size of that one.
fn redrawn(bed: &mut Bed, door: Door, size: (u16, u16)) -> Result<()> {
    let dir = bed.folder()?;
    let first = Pty::new((24, 80))?;
    let words = ["python3", "-c", DRAWS];
    let mut c = match door {
        Door::Terminal => bed.launcher_command(&[&["--name", "draws", "--json", "--"], &words[..]].concat()),
        _ => bed.command(words[0]),
    };
    if door != Door::Terminal {
        c.args(&words[1..]);
    }
    c.current_dir(&dir);
    let mut child = first.spawn(bed, &mut c)?;
    drop(c);
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    if door == Door::Terminal {
        first.wait_for("\"started\"")?;
        bed.ctl(&["checkpoint", "draws", "--kill"])?.expect(0)?;
    } else {
        bed.ctl(&["checkpoint", "--pid", &child.id().to_string(), "--name", "draws", "--kill"])?.expect(0)?;
    }
    store::made_by(bed, "draws", if door == Door::Terminal { "agent" } else { "attach" })?;
    run::end(&mut child, "the first run", LIMIT)?;
    bed.let_go(&child);
    let mut second = Pty::new(size)?;
    let mut restore = bed.ctl_command(&["restore", "draws"]);
    let mut child = second.spawn(bed, &mut restore)?;
    drop(restore);
    let told = format!("<winch {} {}>", size.0, size.1);
    second.wait_for(&told)?;
    second.type_in("one\nend\n")?;
    second.wait_for("<got end>")?;
    let status = run::end(&mut child, "ctl restore", LIMIT)?;
    bed.let_go(&child);
    let said = second.said();
    ensure!(status.success(), "ctl restore: {status}: {said}");
    ensure!(said.matches("<winch").count() == 1, "one SIGWINCH: {said}");
    ensure!(!first.said().contains("<winch"), "on the first terminal nothing changed: {}", first.said());
    Ok(())
}

/// Reads lines and answers them; says CONT when it was continued and INT on Ctrl-C.
const ANSWERS: &str = "
import os, select, signal, sys
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w)
signal.signal(signal.SIGCONT, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
os.write(1, b'<ready>')
while True:
    if r in select.select([0, r], [], [])[0]:
        for s in os.read(r, 64):
            os.write(1, b'<CONT>' if s == signal.SIGCONT else b'<INT>')
            if s == signal.SIGINT: sys.exit(3)
        continue
    line = os.read(0, 999)
    if not line: sys.exit(4)
    os.write(1, b'<got ' + line.strip() + b'>')
";

/// In an interactive shell: restored in the foreground, stopped by Ctrl-Z, continued by fg, read from, ended by Ctrl-C.
fn job_control(bed: &mut Bed) -> Result<()> {
    let script = bed.dir.join("answers.py");
    fs::write(&script, ANSWERS)?;
    bed.give(&script)?;
    let mut pty = Pty::new((24, 80))?;
    let mut shell = bed.command("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "PROMPT> ").env("TERM", "dumb");
    let mut child = pty.spawn(bed, &mut shell)?;
    drop(shell);
    let (launcher, ctl) = (bed.stage.bin("launcher"), bed.stage.bin("ctl"));
    pty.wait_for("PROMPT> ")?;
    pty.type_in(&format!("{} --name job -- python3 {}\n", launcher.display(), script.display()))?;
    pty.wait_for("<ready>")?;
    pty.type_in("one\n")?;
    pty.wait_for("<got one>")?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    store::made_by(bed, "job", "agent")?;
    pty.type_in("echo left with $?\n")?;
    pty.wait_for("left with 85")?;
    pty.type_in(&format!("{} restore job\n", ctl.display()))?;
    let live = bed.state().join("sessions/job/live.json");
    run::until("the session live again", SOON, || Ok(live.exists()))?;
    pty.type_in("two\n")?;
    pty.wait_for("<got two>")?;
    pty.type_in("\x1a")?;
    pty.wait_for("Stopped")?;
    let pid = bed.ctl_json(&["list"])?["sessions"][0]["pid"].as_i64().unwrap_or(0) as i32;
    ensure!(proc::status(pid).is_some_and(|s| s.state == 'T'), "Ctrl-Z should have stopped PID {pid}");
    pty.type_in("fg\n")?;
    pty.wait_for("<CONT>")?;
    pty.type_in("three\n")?;
    pty.wait_for("<got three>")?;
    pty.type_in("\x03")?;
    pty.wait_for("<INT>")?;
    pty.type_in("echo ended with $?\n")?;
    pty.wait_for("ended with 3")?;
    pty.type_in("exit\n")?;
    run::end(&mut child, "the shell", LIMIT)?;
    bed.let_go(&child);
    Ok(())
}

/// A checkpoint that takes over half a second shows on a terminal how far it is; nowhere else.
fn progress(bed: &mut Bed) -> Result<()> {
    const MIB: u64 = 768;
    let args = ["--mib".to_owned(), MIB.to_string()];
    let mut target = Start::program("heartbeat").args(args).ready(bed)?;
    let pty = Pty::new((24, 100))?;
    let mut ctl = bed.ctl_command(&target.checkpoint_args(&[]));
    ctl.env("TERM", "xterm");
    let mut child = pty.spawn(bed, &mut ctl)?;
    drop(ctl);
    let status = run::end(&mut child, "ctl checkpoint", LIMIT)?;
    bed.let_go(&child);
    pty.wait_for(", took ")?;
    let said = pty.said();
    ensure!(status.success(), "ctl checkpoint: {status}: {said}");
    ensure!(said.contains("record [") && said.contains("MiB") && said.contains("/s"), "no progress is shown: {said:?}");
    let again = bed.ctl(&["--json", "checkpoint", &target.session])?.expect(0)?;
    store::all_made_by(bed, &target.session.clone(), "attach")?;
    let took = again.json()?["took_ms"].as_f64().unwrap_or(0.0);
    ensure!(took > 500.0, "this machine is too fast for {MIB} MiB to show anything: it took {took} ms");
    ensure!(again.err.is_empty(), "progress where no terminal is: {}", again.err);
    target.prove(bed).map(|_| ())
}
