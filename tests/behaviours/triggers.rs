//! Checkpoints nobody asked ctl for: by a signal, by the clock, on SIGTERM, from the program; one at a time, none lost; in force
//! after a restore.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::job::{Job, Line, Mode, MODES};
use dormouse_tests::pty::Pty;
use dormouse_tests::{proc, run, store, unharmed, Bed, Case};
use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;
use std::fs;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        let mut both = |case: &str, body: fn(&mut Bed, Mode) -> Result<()>| {
            all.extend(Case::each(&format!("trigger/{case}/{name}"), move |bed| body(bed, mode)));
        };
        both("signal", signal);
        both("signal-exit", signal_exit);
        both("signal-meanwhile", signal_meanwhile);
        both("two-at-once", two_at_once);
        both("every", every);
        both("every-never-overlaps", never_overlaps);
        both("on-term", on_term);
        both("on-term-meanwhile", on_term_meanwhile);
        both("grace-runs-out", grace_runs_out);
        both("refused", refused);
        both("on-term-refused", on_term_refused);
        both("in-force-after-restore", in_force);
        both("dropped-at-restore", dropped);
        both("program-ends-meanwhile", program_ends);
    }
    all.extend(Case::each("trigger/signal-to-the-group", to_the_group));
    all.extend(Case::each("trigger/on-term-to-the-group", term_to_the_group));
    all.extend(Case::each("trigger/ctrl-z", ctrl_z));
    all.extend(Case::each("trigger/ctl-meanwhile", ctl_meanwhile));
    all.extend(Case::each("trigger/killed-while-recording", killed_while_recording));
    all.extend(Case::each("trigger/program-ends-while-ctl-records", ends_while_ctl_records));
    all.extend(Case::each("trigger/asked-by-the-program", asked));
    all.extend(Case::each("trigger/refused-under-ctl", refused_under_ctl));
    all
}

const USR2: Signal = Signal::SIGUSR2;
const TERM: Signal = Signal::SIGTERM;
const TSTP: Signal = Signal::SIGTSTP;

/// A complete checkpoint for each signal; the program knows nothing of it.
fn signal(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--signal", "USR2"], &["mem_anon"])?.ready(bed)?;
    for n in 1..=3 {
        job.signal(USR2)?;
        job.made(bed, n)?;
        unharmed::entirely(job.pid)?;
    }
    store::holds(bed, "job", &[1, 2, 3])?;
    if mode == Mode::Foreground {
        let said = job.events("checkpointed");
        ensure!(said.len() == 3 && said[2]["checkpoint"] == 3, "three events should be there: {said:?}");
        ensure!(said.iter().all(|e| e["pause_ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{said:?}");
    }
    job.prove(bed)
}

/// The program ends with the checkpoint, launcher with 85.
fn signal_exit(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--signal-exit", "TSTP"], &["mem_anon"])?.ready(bed)?;
    job.signal(TSTP)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    ensure!(!proc::alive(job.pid), "the program still runs");
    store::holds(bed, "job", &[1])?;
    job.restore(bed, &[])?.prove(bed)
}

/// Signals that come while a checkpoint is made are one more checkpoint, when that is done.
fn signal_meanwhile(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &["--signal", "USR2"], &["mem_anon"])?.fault("record:1:stop-self");
    let mut job = line.ready(bed)?;
    job.signal(USR2)?;
    let first = job.stopped_recorder(bed)?;
    // In the foreground the launcher hands them on, which cannot be seen: two of them might be one before and one after.
    for _ in 0..if mode == Mode::Detached { 3 } else { 1 } {
        job.signal(USR2)?;
        job.taken(USR2)?;
    }
    ensure!(job.recorders(bed) == [first], "two at once: {:?}", job.recorders(bed));
    proceed(first)?;
    run::until("the first checkpoint", LIMIT, || Ok(store::numbers(bed, "job") == [1]))?;
    let mut second = first;
    run::until("the second recorder", LIMIT, || {
        second = job.stopped_recorder(bed)?;
        Ok(second != first)
    })?;
    proceed(second)?;
    job.made(bed, 2)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1, 2])
}

fn proceed(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGCONT)?)
}

/// A signal that keeps and one that ends, back to back: both are heeded, in one order or the other, and never at the same time.
fn two_at_once(bed: &mut Bed, mode: Mode) -> Result<()> {
    let options = ["--signal", "USR2", "--signal-exit", "USR1", "--every", "50ms", "--on-term", "checkpoint"];
    let mut job = Line::program(bed, mode, &options, &["mem_anon"])?.ready(bed)?;
    job.signal(USR2)?;
    job.signal(Signal::SIGUSR1)?;
    job.signal(TERM)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    ensure!(!job.said().contains("cannot checkpoint"), "one of them failed: {}", job.said());
    let made = store::numbers(bed, "job");
    store::holds(bed, "job", &made)?;
    job.restore(bed, &[])?.prove(bed)
}

/// The clock makes checkpoints; the oldest go, and only when a newer one is there.
fn every(bed: &mut Bed, mode: Mode) -> Result<()> {
    let options = ["--every", "60ms", "--keep", "3"];
    let mut job = Line::program(bed, mode, &options, &["mem_anon"])?.ready(bed)?;
    let mut most = 0;
    run::until("eight checkpoints", LIMIT, || {
        let there = store::numbers(bed, "job");
        most = most.max(there.len());
        // A look takes a while: one may have come, and the oldest gone, in the middle of it.
        let newest = there.last().copied().unwrap_or(0) as usize;
        ensure!(there.len() + 1 >= newest.min(3) && there.len() <= 4, "{there:?} are kept of {newest}");
        Ok(newest >= 8)
    })?;
    ensure!(most >= 3, "never were three there");
    unharmed::entirely_between(job.pid, || job.recorders(bed).is_empty())?;
    job.prove(bed)?;
    let kept = store::numbers(bed, "job");
    ensure!(kept.len() == 3 && kept[2] - kept[0] == 2, "the three newest should be kept: {kept:?}");
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &kept)
}

/// However slow a checkpoint is, the next one never begins before it is done.
fn never_overlaps(bed: &mut Bed, mode: Mode) -> Result<()> {
    let words = ["heartbeat", "--threads", "2", "--mib", "100", "--write"];
    let mut job = Line::program(bed, mode, &["--every", "10ms", "--keep", "2"], &words)?.ready(bed)?;
    let dir = store::session_dir(bed, "job");
    let (mut looks, mut busy) = (0, 0);
    run::until("three checkpoints", LIMIT, || {
        let at_work = job.recorders(bed);
        ensure!(at_work.len() <= 1, "two recorders at once: {at_work:?}");
        let names = fs::read_dir(&dir)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let half = names.filter(|n| n.starts_with(".incoming-")).count();
        ensure!(half <= 1, "{half} checkpoints are being written");
        looks += 1;
        busy += half;
        Ok(store::numbers(bed, "job").last().is_some_and(|n| *n >= 3))
    })?;
    // Or this has seen nothing: an interval is shorter than a look at a checkpoint that is being written.
    ensure!(busy > 10, "{busy} of {looks} looks saw a checkpoint being written");
    job.prove(bed)?;
    let all = store::numbers(bed, "job");
    store::made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &all)
}

/// SIGTERM is a checkpoint and the end.
fn on_term(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--on-term", "checkpoint"], &["mem_anon"])?.ready(bed)?;
    job.signal(TERM)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    store::holds(bed, "job", &[1])?;
    job.restore(bed, &[])?.prove(bed)
}

/// SIGTERM comes while a checkpoint is made after which the program would run on.
fn on_term_meanwhile(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &["--signal", "USR2", "--on-term", "checkpoint"], &["mem_anon"])?;
    let mut job = line.fault("record:1:stop-self").ready(bed)?;
    job.signal(USR2)?;
    let first = job.stopped_recorder(bed)?;
    job.signal(TERM)?;
    job.taken(TERM)?;
    proceed(first)?;
    let mut second = first;
    run::until("the second recorder", LIMIT, || {
        second = job.stopped_recorder(bed)?;
        Ok(second != first)
    })?;
    proceed(second)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    store::holds(bed, "job", &[1, 2])?;
    job.restore(bed, &[])?.prove(bed)
}

/// A checkpoint that takes longer than SIGTERM may: the last complete one stands, and the program gets the signal.
fn grace_runs_out(bed: &mut Bed, mode: Mode) -> Result<()> {
    let script = "import signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\nopen('ready', 'w').close()\nsignal.sigwait([15])\nsys.exit(5)\n";
    let line = Line::python(bed, mode, &["--on-term", "checkpoint", "--grace", "300ms"], script)?;
    let mut job = line.fault("record:1:stop-self").ready(bed)?;
    bed.ctl(&["checkpoint", "job"])?.expect(0)?;
    job.signal(TERM)?;
    let code = job.end(bed)?;
    ensure!(code == 5, "the program ends with 5 by SIGTERM, it ended with {code}: {}", job.said());
    for words in ["300ms are over, so the program is given SIGTERM", "job@1 stands"] {
        ensure!(job.said().contains(words), "{words:?} is not in {}", job.said());
    }
    store::holds(bed, "job", &[1])?;
    let left = fs::read_dir(store::session_dir(bed, "job"))?.flatten().map(|e| e.file_name());
    bed.log.push(format!("in the session's folder: {:?}", left.collect::<Vec<_>>()));
    // What the killed recorder had begun goes with the next.
    let again = job.restore(bed, &[])?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    run::until("the end of its supervisor", SOON, || Ok(!proc::alive(again.supervisor)))?;
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &[1, 2])
}

/// Refused as long as it holds a handle of a process that is not its own; ends with 7 by SIGTERM.
const HOLDS_A_STRANGER: &str = "
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
handle = os.pidfd_open(1)
open('ready', 'w').close()
while not os.path.exists('close'): time.sleep(0.002)
os.close(handle)
open('closed', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
open('result.tmp', 'w').write('OK')
os.rename('result.tmp', 'result')
";

/// A refused checkpoint is reported, and the program runs on; the next one may well be possible.
fn refused(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::python(bed, mode, &["--signal", "USR2"], HOLDS_A_STRANGER)?.ready(bed)?;
    job.signal(USR2)?;
    job.says("it is a handle of PID ")?;
    let said = job.said();
    ensure!(said.contains("checkpoint job (PID") && said.contains("descriptor 3"), "{said}");
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    unharmed::entirely(job.pid)?;
    fs::write(job.line.dir.join("close"), "")?;
    run::until("the handle closed", LIMIT, || Ok(job.line.dir.join("closed").exists()))?;
    job.signal(USR2)?;
    job.made(bed, 1)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1])
}

/// A restored session, whose front is ctl, says it, too; and more than once.
fn refused_under_ctl(bed: &mut Bed) -> Result<()> {
    let script = HOLDS_A_STRANGER.replace("handle = os.pidfd_open(1)\n", "").replace(
        "while not os.path.exists('close')",
        "while not os.path.exists('open'): time.sleep(0.002)\nhandle = os.pidfd_open(1)\nopen('opened', 'w').close()\nwhile not os.path.exists('close')",
    );
    let mut job = Line::python(bed, Mode::Foreground, &["--signal", "USR2"], &script)?.ready(bed)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore_here(bed)?;
    fs::write(job.line.dir.join("open"), "")?;
    run::until("the handle open", LIMIT, || Ok(job.line.dir.join("opened").exists()))?;
    for n in 1..=2 {
        again.signal(USR2)?;
        run::until("the report", LIMIT, || Ok(again.said().matches("\"kind\":\"refused\"").count() == n))
            .with_context(|| again.said())?;
    }
    ensure!(again.said().contains("it is a handle of PID "), "it should name the handle: {}", again.said());
    fs::write(job.line.dir.join("close"), "")?;
    again.prove(bed)
}

/// SIGTERM's checkpoint is refused: then the program has it at once.
fn on_term_refused(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::python(bed, mode, &["--on-term", "checkpoint"], HOLDS_A_STRANGER)?.ready(bed)?;
    job.signal(TERM)?;
    let code = job.end(bed)?;
    ensure!(job.said().contains("it is a handle of PID "), "it should name the handle: {}", job.said());
    ensure!(code == 7, "the program ends with 7 by SIGTERM, it ended with {code}: {}", job.said());
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    Ok(())
}

/// What was asked for when it was launched holds in the restored session, and in the one restored from that.
fn in_force(bed: &mut Bed, mode: Mode) -> Result<()> {
    let options = ["--signal", "USR2", "--on-term", "checkpoint", "--keep", "2"];
    let mut job = Line::program(bed, mode, &options, &["mem_anon"])?.ready(bed)?;
    job.signal(TERM)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore(bed, &[])?;
    again.signal(USR2)?;
    again.made(bed, 2)?;
    again.signal(TERM)?;
    ensure!(again.end(bed)? == 85, "{}", again.said());
    store::holds(bed, "job", &[2, 3])?;
    let mut third = match mode {
        Mode::Foreground => job.restore_here(bed)?,
        Mode::Detached => job.line.with(&["--resume"]).start(bed)?,
    };
    third.signal(USR2)?;
    third.made(bed, 4)?;
    let list = bed.ctl_json(&["list"])?;
    let triggers = &list["sessions"][0]["triggers"];
    let expected = serde_json::json!({"signal": "USR2", "on_term": true, "keep": 2});
    ensure!(*triggers == expected, "ctl list should show {expected}, it shows {triggers}");
    third.prove(bed)?;
    store::holds(bed, "job", &[3, 4])
}

/// ctl restore --no-triggers, and what is said on the line goes before what was in force.
fn dropped(bed: &mut Bed, mode: Mode) -> Result<()> {
    let options = ["--signal", "USR2", "--on-term", "checkpoint"];
    let mut job = Line::program(bed, mode, &options, &["mem_anon"])?.ready(bed)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore(bed, &["--no-triggers"])?;
    ensure!(bed.ctl_json(&["list"])?["sessions"][0]["triggers"].is_null(), "triggers are shown");
    again.signal(TERM)?;
    ensure!(again.end(bed)? == 143, "SIGTERM is the program's: {}", again.said());
    store::holds(bed, "job", &[1])?;
    let mut third = job.line.with(&["--resume", "--signal", "USR1"]).start(bed)?;
    third.signal(Signal::SIGUSR1)?;
    third.made(bed, 2)?;
    third.signal(TERM)?;
    ensure!(third.end(bed)? == 85, "{}", third.said());
    store::holds(bed, "job", &[1, 2, 3])?;
    let mut fourth = job.line.with(&["--resume", "--no-triggers", "--signal", "USR1"]).start(bed)?;
    fourth.signal(TERM)?;
    ensure!(fourth.end(bed)? == 143, "SIGTERM is the program's: {}", fourth.said());
    Ok(())
}

/// The program ends while its memory is recorded: that becomes a checkpoint, and the launcher's status is the program's.
fn program_ends(bed: &mut Bed, mode: Mode) -> Result<()> {
    let line = Line::program(bed, mode, &["--signal", "USR2"], &["mem_anon"])?.fault("record:1:stop-self");
    let mut job = line.ready(bed)?;
    job.signal(USR2)?;
    let recorder = job.stopped_recorder(bed)?;
    fs::write(job.line.dir.join("gate"), "")?;
    run::until("the program's end", LIMIT, || Ok(!proc::alive(job.pid)))?;
    ensure!(proc::alive(job.to), "the launcher did not wait for the checkpoint");
    proceed(recorder)?;
    let code = job.end(bed)?;
    ensure!(code == 0, "it ended with {code}: {}", job.said());
    ensure!(job.events("background").is_empty(), "what a checkpoint leaves is none of its processes: {}", job.said());
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &[1])?;
    fs::remove_file(job.line.dir.join("result"))?;
    job.restore(bed, &["--no-triggers"])?.prove(bed)
}

/// The same when ctl records: what is left of the session is ctl's snapshot child, which is none of its processes.
fn ends_while_ctl_records(bed: &mut Bed) -> Result<()> {
    let mut job = Line::program(bed, Mode::Foreground, &[], &["mem_anon"])?.ready(bed)?;
    let act = |_| {
        fs::write(job.line.dir.join("gate"), "")?;
        run::until("the program's end", LIMIT, || Ok(!proc::alive(job.pid)))
    };
    bed.ctl_stopped("record", &["checkpoint", "job"], act)?.expect(0)?;
    let code = job.end(bed)?;
    ensure!(code == 0, "it ended with {code}: {}", job.said());
    ensure!(job.events("background").is_empty(), "its snapshot child is none of its processes: {}", job.said());
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &[1])
}

/// A signal to the whole process group is one for the launcher, once; the program, which has its own copy, does not die of it.
fn to_the_group(bed: &mut Bed) -> Result<()> {
    // without an agent: that would pass the program's own on
    let options = ["--door", "attach", "--signal", "USR2"];
    let mut job = Line::program(bed, Mode::Foreground, &options, &["mem_anon"])?.ready(bed)?;
    killpg(Pid::from_raw(job.to), USR2)?;
    job.made(bed, 1)?;
    unharmed::entirely(job.pid)?;
    kill(Pid::from_raw(job.pid), USR2)?;
    unharmed::entirely(job.pid)?;
    killpg(Pid::from_raw(job.to), USR2)?;
    job.made(bed, 2)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1, 2])
}

/// SIGTERM to the whole group: a program that handles it is ending, which is nothing to wake up to; one that ignores it is as ever.
fn term_to_the_group(bed: &mut Bed) -> Result<()> {
    let handles = "import os, signal, sys, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\nopen('ready', 'w').close()\nsignal.sigwait([15])\nwhile not os.path.exists('gate'): time.sleep(0.002)\nsys.exit(5)\n";
    let mut job = Line::python(bed, Mode::Foreground, &["--on-term", "checkpoint"], handles)?.ready(bed)?;
    killpg(Pid::from_raw(job.to), TERM)?;
    job.says("it went to the whole process group")?;
    fs::write(job.line.dir.join("gate"), "")?;
    let code = job.end(bed)?;
    ensure!(code == 5, "it ended with {code}: {}", job.said());
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made");
    let ignores = "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nopen('ready', 'w').close()\nwhile not os.path.exists('gate'): time.sleep(0.002)\nopen('result.tmp', 'w').write('OK')\nos.rename('result.tmp', 'result')\n";
    let mut job = Line::python(bed, Mode::Foreground, &["--on-term", "checkpoint"], ignores)?.ready(bed)?;
    killpg(Pid::from_raw(job.to), TERM)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    job.restore(bed, &[])?.prove(bed)
}

/// Ctrl-Z on the terminal puts it to sleep for good: it is not stopped when it is restored.
fn ctrl_z(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut pty = Pty::new((24, 80))?;
    let mut c = bed.launcher_command(&["--signal-exit", "TSTP", "--name", "job", "--"]);
    c.arg(bed.stage.program("mem_anon")).arg("--dir").arg(&dir);
    let mut front = pty.spawn(bed, &mut c)?;
    run::until("the program ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    pty.type_in("\x1a")?;
    let status = run::end(&mut front, "the launcher after Ctrl-Z", LIMIT).with_context(|| pty.said())?;
    bed.let_go(&front);
    ensure!(run::code(status) == 85, "it ended with {status}: {}", pty.said());
    pty.wait_for("job@1 and left")?;
    store::made_by(bed, "job@1", "agent")?;
    let said = bed.ctl_json(&["restore", "job", "--detach"])?;
    let pid = said["pid"].as_i64().unwrap_or(0) as i32;
    fs::write(dir.join("gate"), "")?;
    let result = dir.join("result");
    run::until("a result", LIMIT, || Ok(result.exists() || !proc::alive(pid)))?;
    let said = fs::read_to_string(result)?;
    ensure!(said.starts_with("OK"), "its proof failed: {said}");
    Ok(())
}

/// While ctl makes a checkpoint, a signal waits for that, and the clock leaves its own out.
fn ctl_meanwhile(bed: &mut Bed) -> Result<()> {
    let line = Line::program(bed, Mode::Detached, &["--signal", "USR2", "--every", "20ms"], &["mem_anon"])?;
    let mut job = line.ready(bed)?;
    let mut c = bed.ctl_command(&["checkpoint", "job"]);
    c.env("DORMOUSE_FAULT", "record:1:stop-self");
    let mut ctl = loop {
        let (mut ctl, _, err) = bed.spawn(&mut c)?;
        let stopped = |pid| proc::status(pid).is_some_and(|s| s.state == 'T');
        run::until("ctl stopped, or refused", LIMIT, || Ok(stopped(ctl.id() as i32) || ctl.try_wait()?.is_some()))?;
        match ctl.try_wait()? {
            None => break ctl,
            // One of the clock's was under way.
            Some(status) => {
                bed.let_go(&ctl);
                ensure!(run::code(status) == 6, "ctl ended with {status}: {}", fs::read_to_string(err)?);
            }
        }
    };
    let before = store::numbers(bed, "job").len() as u64;
    job.signal(USR2)?;
    job.taken(USR2)?;
    let lock = store::session_dir(bed, "job").join("lock");
    run::until("a recorder that waits", LIMIT, || waits_for(&lock, &job.recorders(bed)))?;
    ensure!(store::numbers(bed, "job").len() as u64 == before, "one was made beside ctl's");
    proceed(ctl.id() as i32)?;
    ensure!(run::end(&mut ctl, "ctl", LIMIT)?.success(), "ctl's checkpoint failed");
    bed.let_go(&ctl);
    run::until("the signal's checkpoint", LIMIT, || Ok(store::numbers(bed, "job").len() as u64 >= before + 2))?;
    ensure!(!job.said().contains("cannot checkpoint"), "{}", job.said());
    job.prove(bed)?;
    let all = store::numbers(bed, "job");
    for n in all.iter().filter(|n| **n > before) {
        store::made_by(bed, &format!("job@{n}"), "agent")?;
    }
    store::holds(bed, "job", &all)
}

/// True if one of these processes is blocked on the record lock of a file.
fn waits_for(file: &std::path::Path, pids: &[i32]) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", fs::metadata(file)?.ino());
    let locks = fs::read_to_string("/proc/locks")?;
    let blocked = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pid = words.get(5).and_then(|w| w.parse::<i32>().ok());
        words.get(1) == Some(&"->")
            && words.get(6).is_some_and(|w| w.ends_with(&inode))
            && pid.is_some_and(|p| pids.contains(&p))
    };
    Ok(locks.lines().any(blocked))
}

/// SIGKILL to a supervisor in the middle of a checkpoint: its recorder completes that, the program runs on, and the rest works.
fn killed_while_recording(bed: &mut Bed) -> Result<()> {
    let line = Line::program(bed, Mode::Detached, &["--signal", "USR2"], &["mem_anon"])?.fault("record:1:stop-self");
    let job: Job = line.ready(bed)?;
    job.signal(USR2)?;
    let recorder = job.stopped_recorder(bed)?;
    kill(Pid::from_raw(job.supervisor), Signal::SIGKILL)?;
    proceed(recorder)?;
    run::until("the checkpoint, and the recorder's end", LIMIT, || {
        bed.reap();
        Ok(store::numbers(bed, "job") == [1] && !proc::alive(recorder))
    })?;
    unharmed::entirely(job.pid)?;
    job.line.with(&["--resume"]).run(bed)?.expect(125)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    bed.reap();
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &[1, 2])?;
    job.restore(bed, &[])?.prove(bed)
}

/// A program that asks its own supervisor: its connection is left out of the checkpoint, and has ended after a restore.
const ASKS: &str = "
import json, os, socket, struct
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ['CONTROL'])
def ask(end):
    body = json.dumps({'op': 'checkpoint', 'end': end, 'fd': s.fileno()}).encode()
    s.sendall(struct.pack('<I', len(body)) + body)
    head = s.recv(4)
    if not head: # the connection has ended, which an answer would have come before
        return 'restored'
    return 'continued %d' % json.loads(s.recv(struct.unpack('<I', head)[0]))['n']
open('ready', 'w').close()
said = [ask(False), ask(True)]
while not os.path.exists('gate'): pass
open('result.tmp', 'w').write('OK\\n' + ', '.join(said))
os.rename('result.tmp', 'result')
";

fn asked(bed: &mut Bed) -> Result<()> {
    let control = bed.state().join("sessions/job/control");
    let script = format!("import os\nos.environ['CONTROL'] = {:?}\n{ASKS}", control.to_string_lossy());
    let mut job = Line::python(bed, Mode::Foreground, &[], &script)?.ready(bed)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    store::all_made_by(bed, "job", "agent")?;
    store::holds(bed, "job", &[1, 2])?;
    job.restore(bed, &[])?.prove(bed)?;
    let said = fs::read_to_string(job.line.dir.join("result"))?;
    ensure!(said == "OK\ncontinued 1, restored", "{said}");
    Ok(())
}
