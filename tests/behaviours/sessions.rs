//! Sessions from outside: --stop, exit statuses through a restore, names that are live, private namespaces.
use anyhow::{ensure, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, sys, unharmed, Bed, Case, Target};
use std::fs;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("stop/then-continue", stop_then_continue));
    all.extend(Case::each("stop/then-restore-elsewhere", stop_then_restore));
    all.extend(Case::each("stop/was-stopped-before", was_stopped));
    all.extend(Case::each("stop/stopped-after-the-survey", |bed| stopped_by_then(bed, true)));
    all.extend(Case::each("stop/continued-after-the-survey", |bed| stopped_by_then(bed, false)));
    all.extend(Case::each("stop/stopped-and-continued-in-the-freeze", |bed| stopped_and_continued(bed, false)));
    all.extend(Case::each("stop/one-thread-continued-in-the-freeze", |bed| stopped_and_continued(bed, true)));
    all.extend(Case::each("stop/signals-that-die-with-it", late_signals));
    all.extend(Case::each("restored/log-of-another-name", log_of_another_name));
    all.extend(Case::each("unix_names/listeners-name", listeners_name));
    for call in ["pause", "poll", "epoll_wait", "read", "read--restart"] {
        all.extend(Case::each(&format!("woken/{call}"), move |bed| woken(bed, call)));
    }
    for call in ["pause", "poll", "poll--restart", "epoll_wait", "read", "read--restart"] {
        let name = format!("woken/{call}-in-the-freeze");
        all.extend(Case::by_both_doors(&name, move |bed, agent| woken_in_the_freeze(bed, agent, call)));
    }
    for (name, end, code) in [("exit-7", "sys.exit(7)", 7), ("sigterm", "kill(15)", 143), ("sigkill", "kill(9)", 137)] {
        all.extend(Case::each(&format!("status/{name}"), move |bed| status(bed, end, code)));
    }
    all.extend(Case::each("status/signal-passed-on", signal_passed_on));
    all.extend(Case::each("restored/is-private-or-kept", private_or_kept));
    all.extend(Case::each("restored/pid-taken", pid_taken));
    all.extend(Case::each("restored/under-another-name", another_name));
    all.extend(Case::each("restored/many-at-once", many_at_once));
    all.extend(Case::each("checkpoint/ten-in-a-row", ten_in_a_row));
    all.extend(Case::each("checkpoint/heartbeat", heartbeat));
    all.extend(Case::each("checkpoint/descriptors-come-and-go", come_and_go));
    all.extend(Case::each("state/private", state_private));
    for option in ["--kill", "--stop"] {
        all.extend(Case::each(&format!("checkpoint/frozen-until-the-end{option}"), move |bed| frozen(bed, option)));
    }
    all
}

/// --stop leaves it stopped, whole; SIGCONT lets it go on.
fn stop_then_continue(bed: &mut Bed) -> Result<()> {
    for door in [Door::Leader, Door::Launched] {
        let mut target = Start::program("mem_anon").door(door).ready(bed)?;
        bed.ctl(&target.checkpoint_args(&["--stop"]))?.expect(0)?;
        stopped(&target)?;
        proceed(&target)?;
        unharmed::entirely(target.pid)?;
        target.prove(bed)?;
    }
    Ok(())
}

/// While the original is stopped, a copy of it is restored under another name: both prove themselves.
fn stop_then_restore(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&["--stop"]))?.expect(0)?;
    stopped(&target)?;
    let name = target.session.clone();
    bed.ctl(&["restore", &name, "--detach"])?.refused(3, &["--as"])?;
    let said = bed.ctl_json(&["restore", &name, "--detach", "--as", "copy"])?;
    let copy = said["pid"].as_i64().unwrap_or(0) as i32;
    ensure!(copy != target.pid && proc::alive(copy), "the copy should be another process, it is {copy}");
    stopped(&target)?;
    fs::write(target.dir.join("gate"), "")?;
    let result = target.dir.join("result");
    run::until("the copy's result", LIMIT, || Ok(result.exists()))?;
    let of_copy = fs::read_to_string(&result)?;
    ensure!(of_copy.starts_with("OK"), "the copy's proof failed: {of_copy}");
    fs::remove_file(&result)?;
    proceed(&target)?;
    target.prove(bed).map(|_| ())
}

fn stopped(target: &Target) -> Result<()> {
    let pid = target.pid;
    run::until("the target stopped", SOON, || Ok(proc::status(pid).is_some_and(|s| s.state == 'T' && s.tracer == 0)))?;
    ensure!(proc::ours(pid).is_empty(), "a mapping of ours is left in the stopped target");
    ensure!(proc::children(pid).is_empty(), "a child of ours is left with the stopped target");
    Ok(())
}

fn proceed(target: &Target) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(target.pid), nix::sys::signal::Signal::SIGCONT)?)
}

/// A program that waits for DIR/gate, and then ends in one way or another.
const ENDS: &str = "
import os, sys, time
def kill(n): os.kill(os.getpid(), n)
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
";

/// The foreground restore ends with the program's own status.
fn status(bed: &mut Bed, end: &str, code: i32) -> Result<()> {
    let dir = bed.folder()?;
    let script = format!("{ENDS}{end}\n");
    let mut c = bed.launcher_command(&["--name", "ends", "--detach", "--", "python3", "-c", &script]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "ends", "--kill"])?.expect(0)?;
    let mut restore = bed.ctl_command(&["restore", "ends"]);
    sys::own_session(&mut restore);
    let (mut child, _, err) = bed.spawn(&mut restore)?;
    run::until("the session live again", LIMIT, || {
        ensure!(child.try_wait()?.is_none(), "ctl restore ended at once: {}", fs::read_to_string(&err)?);
        Ok(bed.state().join("sessions/ends/live.json").exists())
    })?;
    fs::write(dir.join("gate"), "")?;
    let ended = run::end(&mut child, "ctl restore in the foreground", LIMIT)?;
    bed.let_go(&child);
    ensure!(
        run::code(ended) == code,
        "ctl restore should end with {code}, it ended with {}: {}",
        run::code(ended),
        fs::read_to_string(&err)?
    );
    Ok(())
}

/// SIGTERM to the foreground ctl restore reaches the program.
fn signal_passed_on(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "import signal,sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\nopen('ready','w').close()\nsignal.sigwait([15])\nsys.exit(5)\n";
    let mut c = bed.launcher_command(&["--name", "ends", "--detach", "--", "python3", "-c", script]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "ends", "--kill"])?.expect(0)?;
    let mut restore = bed.ctl_command(&["restore", "ends"]);
    sys::own_session(&mut restore);
    let (mut child, _, err) = bed.spawn(&mut restore)?;
    run::until("the session live again", LIMIT, || Ok(bed.state().join("sessions/ends/live.json").exists()))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)?;
    let ended = run::end(&mut child, "ctl restore after SIGTERM", LIMIT)?;
    bed.let_go(&child);
    ensure!(
        run::code(ended) == 5,
        "the program ends by it with 5, ctl restore ended with {}: {}",
        run::code(ended),
        fs::read_to_string(&err)?
    );
    Ok(())
}

/// Where PIDs may be kept they are; else it says in one line that they are private. Inside they are as before.
fn private_or_kept(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_tid").ready(bed)?;
    let before = target.pid;
    target.kill(bed)?;
    let said = bed.ctl_json(&["restore", &target.session, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    let levels = proc::status(target.pid).map(|s| s.ns_pids).unwrap_or_default();
    ensure!(levels.last() == Some(&before), "it should see itself as PID {before}, its PIDs are {levels:?}");
    if bed.who == dormouse_tests::Who::Root {
        ensure!(
            said["pids"] == "keep" && target.pid == before,
            "root's PID {before} is free and should be kept: {said}"
        );
    } else {
        ensure!(said["pids"] == "private" && levels.len() == 2, "an ordinary user's should be private: {said}");
        let notes =
            said["notes"].as_array().map_or(0, |n| n.iter().filter(|n| n.to_string().contains("private")).count());
        ensure!(notes == 1, "one note should say that PIDs are private: {said}");
        let namespace = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        ensure!(
            namespace(target.pid, "user")? != namespace(std::process::id() as i32, "user")?,
            "it should have a user namespace"
        );
    }
    target.prove(bed).map(|_| ())
}

/// A PID that is taken: private, automatically.
fn pid_taken(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_tid").ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?.expect(0)?;
    let said = bed.ctl_json(&["restore", &target.session, "--detach", "--as", "copy"])?;
    ensure!(
        said["pids"] == "private",
        "PID {} is taken by the original, so the copy's should be private: {said}",
        target.pid
    );
    ensure!(
        bed.ctl(&["restore", &target.session, "--detach", "--as", "other", "--pids", "keep"])?.code() == 3,
        "--pids keep should be refused"
    );
    bed.ctl(&["kill", "copy"])?.expect(0)?;
    target.prove(bed).map(|_| ())
}

/// --as gives a session of its own with no checkpoint; the first is dead and can be restored too.
fn another_name(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    target.kill(bed)?;
    bed.ctl(&["restore", &target.session, "--detach", "--as", "copy"])?.expect(0)?;
    store::holds(bed, &target.session.clone(), &[1])?;
    bed.ctl(&["checkpoint", "copy"])?.expect(0)?;
    store::holds(bed, "copy", &[1])?;
    bed.ctl(&["kill", "copy"])?.expect(0)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// Four copies of one checkpoint live side by side.
fn many_at_once(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_join").door(Door::Launched).ready(bed)?;
    target.kill(bed)?;
    for n in 0..4 {
        bed.ctl(&["restore", &target.session, "--detach", "--as", &format!("copy{n}")])?.expect(0)?;
    }
    let list = bed.ctl(&["list"])?.expect(0)?;
    ensure!((0..4).all(|n| list.out.contains(&format!("copy{n}"))), "ctl list should show all four:\n{}", list.out);
    for n in 0..4 {
        bed.ctl(&["kill", &format!("copy{n}")])?.expect(0)?;
    }
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// A descriptor that closes while it is looked at is no failure, nor the target's death.
fn come_and_go(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("fd_churn").ready(bed)?;
    for _ in 0..60 {
        target.checkpoint(bed)?;
    }
    target.prove(bed).map(|_| ())
}

/// Nothing piles up in a target that is checkpointed again and again: no mapping, no descriptor, no child.
fn ten_in_a_row(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").ready(bed)?;
    let look = |pid| (proc::maps(pid).len(), proc::descriptors(pid), proc::status(pid).map(|s| s.threads));
    target.checkpoint(bed)?;
    let before = look(target.pid);
    for _ in 0..9 {
        target.checkpoint(bed)?;
    }
    ensure!(
        look(target.pid) == before,
        "mappings, descriptors, threads: before {before:?}, after {:?}",
        look(target.pid)
    );
    store::holds(bed, &target.session.clone(), &(1..=10).collect::<Vec<u64>>())?;
    target.prove(bed).map(|_| ())
}

/// A hundred threads and 64 MiB that are written all the time run on through three checkpoints, none of them late for long.
fn heartbeat(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("heartbeat").args(["--threads", "100", "--mib", "64", "--write"]).ready(bed)?;
    for _ in 0..3 {
        target.checkpoint(bed)?;
    }
    let said = target.prove(bed)?;
    let worst = said.lines().find_map(|l| l.strip_prefix("worst_ns ")?.parse::<u64>().ok());
    // A pause of a second would be a fault; what it is exactly is for the benchmarks to say.
    ensure!(worst.is_some_and(|w| w < 1_000_000_000), "the worst pause is {worst:?} ns");
    Ok(())
}

/// Images hold secrets: all of the state directory is its user's alone, whatever the umask is, while sessions live and after.
fn state_private(bed: &mut Bed) -> Result<()> {
    let mut c = bed.command("sh");
    c.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(bed.stage.bin("launcher"));
    c.args(["--name", "open", "--detach", "--", "sleep", "1000"]);
    bed.run(&mut c)?.expect(0)?;
    let mut c = bed.command("sh");
    c.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(bed.stage.bin("ctl")).args(["checkpoint", "open"]);
    bed.run(&mut c)?.expect(0)?;
    store::is_private(bed)?;
    bed.ctl(&["checkpoint", "open", "--kill"])?.expect(0)?;
    bed.ctl(&["restore", "open", "--detach"])?.expect(0)?;
    store::is_private(bed)?;
    bed.ctl(&["kill", "open"])?.expect(0)?;
    store::is_private(bed)
}

/// Appends to a file as fast as it can, and counts: every byte in the file must be one that it remembers.
const APPENDS: &str = "
import os
log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
n = 0
open('ready', 'w').close()
while n % 64 or not os.path.exists('gate'): n += os.write(log, b'x')
size = os.path.getsize('log')
open('result.tmp', 'w').write('OK' if size == n else f'{n} bytes written, {size} in the file')
os.rename('result.tmp', 'result')
";

/// What is to be killed or stopped makes no step between what is recorded and its end: nothing of it happens twice.
fn frozen(bed: &mut Bed, option: &str) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "appends", "--detach", "--", "python3", "-c", APPENDS]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let rounds: &[&str] = if option == "--kill" { &["appends"; 5] } else { &["copy"] };
    for name in rounds {
        bed.ctl(&["checkpoint", "appends", option])?.expect(0)?;
        bed.ctl(&["restore", "appends", "--detach", "--as", name])?.expect(0)?;
    }
    fs::write(dir.join("gate"), "")?;
    let result = dir.join("result");
    run::until("a result", LIMIT, || Ok(result.exists()))?;
    let said = fs::read_to_string(result)?;
    bed.ctl(&["kill", "appends"])?;
    ensure!(said == "OK", "it ran on after it was recorded: {said}");
    Ok(())
}

fn send(pid: i32, signal: nix::sys::signal::Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
}

/// A program that somebody had stopped is stopped after a restore too, which is said; SIGCONT lets it go on.
fn was_stopped(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").ready(bed)?;
    send(target.pid, nix::sys::signal::SIGSTOP)?;
    run::until("it stopped", SOON, || Ok(proc::status(target.pid).is_some_and(|s| s.state == 'T')))?;
    target.kill(bed)?;
    let ran = bed.ctl(&["restore", &target.session, "--detach"])?.expect(0)?;
    ensure!(ran.said().contains("it was stopped at the checkpoint and is again"), "nothing is said: {}", ran.said());
    let list = bed.ctl_json(&["list"])?;
    target.pid = list["sessions"][0]["pid"].as_i64().unwrap_or(0) as i32;
    stopped(&target)?;
    proceed(&target)?;
    target.prove(bed).map(|_| ())
}

/// Starts a checkpoint that waits at a phase, does something meanwhile, and gives what was said when it succeeded.
fn at_phase(
    bed: &mut Bed,
    target: &Target,
    phase: &str,
    options: &[&str],
    act: impl Fn() -> Result<()>,
) -> Result<String> {
    let ran = bed.ctl_stopped(phase, &target.checkpoint_args(options), |_| act())?.expect(0)?;
    Ok(ran.out + &ran.err)
}

/// It is stopped, or continued, between the survey and the freeze: what it is in the freeze counts.
fn stopped_by_then(bed: &mut Bed, stop: bool) -> Result<()> {
    let mut target = Start::program("mem_anon").ready(bed)?;
    let pid = target.pid;
    let is = |state: bool| {
        run::until("its state", SOON, || Ok(proc::status(pid).is_some_and(|s| (s.state == 'T') == state)))
    };
    if !stop {
        send(pid, nix::sys::signal::SIGSTOP)?;
        is(true)?;
    }
    at_phase(bed, &target, "freeze", &["--kill"], || {
        send(pid, if stop { nix::sys::signal::SIGSTOP } else { nix::sys::signal::SIGCONT })?;
        is(stop)
    })?;
    target.gone(bed)?;
    let said = bed.ctl_json(&["restore", &target.session, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    let noted = said["notes"].to_string().contains("it was stopped at the checkpoint");
    ensure!(noted == stop, "it was {}stopped, and the notes say {}", if stop { "" } else { "not " }, said["notes"]);
    if stop {
        stopped(&target)?;
        proceed(&target)?;
    }
    target.prove(bed).map(|_| ())
}

/// SIGSTOP and then SIGCONT while all threads are in the blob: it runs on afterwards, also if the SIGCONT is for one thread.
fn stopped_and_continued(bed: &mut Bed, one_thread: bool) -> Result<()> {
    let mut target = Start::program("thr_join").ready(bed)?;
    let pid = target.pid;
    at_phase(bed, &target, "observe", &[], || {
        send(pid, nix::sys::signal::SIGSTOP)?;
        match one_thread {
            true => sys::send_to_thread(pid, pid, libc::SIGCONT),
            false => send(pid, nix::sys::signal::SIGCONT),
        }
    })?;
    unharmed::entirely(pid)?;
    target.prove(bed).map(|_| ())
}

/// A signal that comes while the program is recorded to be killed dies with it, and that is said.
fn late_signals(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_join").ready(bed)?;
    let pid = target.pid;
    let said = at_phase(bed, &target, "record", &["--kill"], || send(pid, nix::sys::signal::SIGUSR1))?;
    ensure!(said.contains("SIGUSR1 came while it was recorded"), "nothing is said of SIGUSR1: {said}");
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// A detached session that is restored under another name writes to that one's log, and needs the old one's no more.
fn log_of_another_name(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script =
        "import os, time\nn = 0\nwhile not os.path.exists('gate'):\n n += 1\n print(n, flush=True)\n time.sleep(0.01)";
    let mut c = bed.launcher_command(&["--name", "old", "--detach", "--", "python3", "-c", script]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    let state = bed.state();
    let log = |name: &str| fs::read_to_string(bed_log(&state, name)).unwrap_or_default();
    run::until("the first lines", LIMIT, || Ok(log("old").lines().count() > 2))?;
    bed.ctl(&["checkpoint", "old", "--kill"])?.expect(0)?;
    let before = log("old");
    bed.ctl(&["restore", "old", "--detach", "--as", "new"])?.expect(0)?;
    run::until("lines in the new log", LIMIT, || Ok(log("new").lines().count() > 2))?;
    ensure!(log("old") == before, "the old session's log has grown: {}", log("old"));
    let (last, first) = (before.lines().last().map(str::parse::<u64>), log("new"));
    let first = first.lines().next().map(str::parse::<u64>);
    ensure!(
        matches!((&last, &first), (Some(Ok(l)), Some(Ok(f))) if f - l <= 1),
        "it went on from {last:?} with {first:?}"
    );
    bed.ctl(&["checkpoint", "new", "--kill"])?.expect(0)?;
    bed.ctl(&["rm", "old"])?.expect(0)?;
    bed.ctl(&["restore", "new", "--detach"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    Ok(())
}

fn bed_log(state: &std::path::Path, name: &str) -> std::path::PathBuf {
    state.join("sessions").join(name).join("log")
}

/// A signal with a handler is pending when it is recorded: the call that the handler would have ended ends with EINTR after the
/// restore, and goes on under SA_RESTART where the kernel lets it.
fn woken(bed: &mut Bed, call: &str) -> Result<()> {
    let mut target = in_its_call(bed, false, call)?;
    send(target.pid, nix::sys::signal::SIGSTOP)?;
    run::until("it stopped", SOON, || Ok(proc::status(target.pid).is_some_and(|s| s.state == 'T')))?;
    send(target.pid, nix::sys::signal::SIGUSR1)?;
    target.kill(bed)?;
    let said = bed.ctl_json(&["restore", &target.session, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    proceed(&target)?;
    target.prove(bed).map(|_| ())
}

fn in_its_call(bed: &mut Bed, agent: bool, call: &str) -> Result<Target> {
    let (call, restart) = call.split_once("--").map_or((call, false), |(call, _)| (call, true));
    let args = ["--call", call].into_iter().chain(restart.then_some("--restart"));
    Start::program("sig_woken").args(args).by_agent(agent).ready(bed)
}

/// It comes while all threads are in the blob, or in the agent's handler: once the program runs on, its handler ends the call as it would have without us.
fn woken_in_the_freeze(bed: &mut Bed, agent: bool, call: &str) -> Result<()> {
    let mut target = in_its_call(bed, agent, call)?;
    let pid = target.pid;
    at_phase(bed, &target, "observe", &[], || send(pid, nix::sys::signal::SIGUSR1))?;
    target.by_the_door(bed)?;
    unharmed::entirely(pid)?;
    target.prove(bed).map(|_| ())
}

/// An accepted unix socket cannot have its listener's name again, which is said of each of the two.
fn listeners_name(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("unix_names").ready(bed)?;
    target.kill(bed)?;
    let said = bed.ctl_json(&["restore", &target.session, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    let notes = said["notes"].to_string();
    let number = notes.matches(": it has its listener's name no more").count();
    ensure!(number == 2, "two accepted sockets should be named, and are in {number} notes: {notes}");
    target.prove(bed).map(|_| ())
}
