//! Which door a checkpoint takes where nobody says: the agent's where it can be called, else ptrace, with the reason why.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, sys, unharmed, Bed, Case, Who};
use std::fs;
use std::os::unix::fs::{chown, FileExt, PermissionsExt};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("door/by-default", by_default));
    all.extend(Case::each("door/blocked-signal", blocked_signal));
    for (name, args) in [
        ("raw", &[][..]),
        ("raw-zero", &["--zero"]),
        ("handler", &["--handler"]),
        ("handler-zero", &["--handler", "--zero"]),
        ("brief", &["--brief"]),
        ("brief-zero", &["--brief", "--zero"]),
    ] {
        all.extend(Case::each(&format!("door/blocked-for-moments-{name}"), move |bed| blocked_for_moments(bed, args)));
    }
    all.extend(Case::each("door/static", static_program));
    all.extend(Case::each("door/empty-environment", empty_environment));
    all.push(Case::new("door/setuid", Who::Root, setuid));
    all.extend(Case::each("door/older-agent", older_agent));
    all.extend(Case::each("door/state-directory-with-a-space", space));
    all.extend(Case::each("door/not-dumpable", not_dumpable));
    all.extend(Case::each("door/not-dumpable-sabotage", not_dumpable_sabotage));
    all.extend(Case::each("door/not-dumpable-threads", not_dumpable_threads));
    all.extend(Case::each("door/not-dumpable-hooks", not_dumpable_hooks));
    all.push(Case::new("door/not-dumpable-without-agent", Who::User, not_dumpable_without_agent));
    all
}

/// A checkpoint, by the door that is taken by itself; what is said.
pub(crate) fn by_itself(bed: &mut Bed, args: &[&str], door: &str, noted: &str) -> Result<()> {
    let said = bed.ctl_json(&[&["checkpoint"], args].concat())?;
    ensure!(said["door"] == door, "the door should be {door}: {said}");
    let notes = said["notes"].as_array().context("no notes")?;
    let as_meant = match noted {
        "" => notes.is_empty(),
        noted => notes.len() == 1 && notes[0].as_str().is_some_and(|n| n.contains(noted)),
    };
    ensure!(as_meant, "its notes should be {noted:?}: {said}");
    let inspected = bed.ctl_json(&["inspect", args[0]])?["summary"]["door"].clone();
    ensure!(inspected == door, "ctl inspect should say {door}, it says {inspected}");
    Ok(())
}

/// Launched without a word about doors: its PID.
pub(crate) fn launched(bed: &mut Bed, name: &str, program: &[&str]) -> Result<i32> {
    let mut c = bed.launcher_command(&["--name", name, "--detach", "--json", "--"]);
    c.args(program);
    let said = bed.run(&mut c)?.expect(0)?.json()?;
    ensure!(said["notes"] == serde_json::json!([]), "nothing is to be noted: {said}");
    Ok(said["pid"].as_i64().context("no pid")? as i32)
}

/// Waits until a session's program runs what it was meant to.
fn executed(pid: i32, comm: &str) -> Result<()> {
    let now = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    run::until(&format!("{comm} executed"), LIMIT, || Ok(now().trim() == comm))
}

/// The agent, also after a restore; ptrace for --stop, and where it is asked for; neither launcher's nor ctl's word is needed.
fn by_default(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let program = bed.stage.program("thr_sync").display().to_string();
    let pid = launched(bed, "s", &[&program, "--dir", &dir.to_string_lossy()])?;
    run::until("it ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.who.assert_is("thr_sync", pid)?;
    by_itself(bed, &["s"], "agent", "")?;
    unharmed::entirely(pid)?;
    by_itself(bed, &["s", "--door", "attach"], "attach", "")?;
    unharmed::entirely(pid)?;
    by_itself(bed, &["s", "--stop"], "attach", "")?;
    // stopped, no signal reaches it
    by_itself(bed, &["s"], "attach", "not by its agent: it is stopped")?;
    sys_continue(pid)?;
    by_itself(bed, &["s", "--kill"], "agent", "")?;
    let pid = bed.ctl_json(&["restore", "s", "--detach"])?["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored thr_sync", pid)?;
    by_itself(bed, &["s"], "agent", "")?;
    unharmed::entirely(pid)?;
    fs::write(dir.join("gate"), "")?;
    run::until("its result", LIMIT, || Ok(dir.join("result").exists()))?;
    let said = fs::read_to_string(dir.join("result"))?;
    ensure!(said.starts_with("OK"), "its proof failed: {said}");
    ended(bed, pid)
}

fn sys_continue(pid: i32) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGCONT)?)
}

pub(crate) fn ended(bed: &mut Bed, pid: i32) -> Result<()> {
    run::until("its end", SOON, || {
        bed.reap();
        Ok(!proc::alive(pid))
    })
}

/// A thread that blocks every signal by raw calls: nobody is called, ptrace does it, and where that is denied both reasons are given.
fn blocked_signal(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("sig_masked").args(["--call", "ppoll"]).door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    for _ in 0..2 {
        by_itself(bed, &[&name], "attach", "not by its agent: thread ")?;
        unharmed::entirely(target.pid)?;
    }
    let args = ["checkpoint", &name];
    let mut c = bed.ctl_command(&args);
    sys::deny(&mut c, &sys::TRACING);
    let ran = bed.run(&mut c)?;
    ran.refused(3, &["Operation not permitted", "its agent, which would need no ptrace", "blocks its agent's signal"])?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// The thread that stays blocks the agent's signal half of the time: it is waited for, and called when it does not. Where a handler does that, on an alternate stack that is
/// nearly full, the agent does not come upon it there.
fn blocked_for_moments(bed: &mut Bed, args: &[&str]) -> Result<()> {
    let mut target =
        Start::program("sig_windows").args(args.iter().copied()).door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    for _ in 0..CYCLES {
        for _ in 0..2 {
            by_itself(bed, &[&name, "--door", "agent"], "agent", "")?;
        }
        by_itself(bed, &[&name, "--door", "agent", "--kill"], "agent", "")?;
        target.gone(bed)?;
        target.restore(bed)?;
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// No loader, no agent.
fn static_program(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("static_threads").door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    by_itself(bed, &[&name], "attach", "")?;
    by_itself(bed, &[&name, "--kill"], "attach", "")?;
    target.gone(bed)?;
    target.restore(bed)?;
    by_itself(bed, &[&name], "attach", "")?;
    target.prove(bed).map(drop)
}

/// The environment that names the agent is gone when the program is executed.
fn empty_environment(bed: &mut Bed) -> Result<()> {
    let pid = launched(bed, "bare", &["env", "-i", "/bin/sleep", "1000"])?;
    executed(pid, "sleep")?;
    by_itself(bed, &["bare"], "attach", "")?;
    unharmed::entirely(pid)?;
    bed.ctl(&["kill", "bare"])?.expect(0).map(drop)
}

/// The loader preloads nothing into a program that is run with another's rights, and says nothing of it.
fn setuid(bed: &mut Bed) -> Result<()> {
    let sleep = bed.dir.join("sleep");
    fs::copy("/bin/sleep", &sleep)?;
    chown(&sleep, Some(Who::User.uid()), None)?;
    fs::set_permissions(&sleep, fs::Permissions::from_mode(0o4755))?;
    let pid = launched(bed, "rights", &[&sleep.to_string_lossy(), "1000"])?;
    executed(pid, "sleep")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let set = format!("Uid:\t0\t{}\t", Who::User.uid());
    ensure!(status.contains(&set), "it should run with the user's rights: {status}");
    by_itself(bed, &["rights"], "attach", "")?;
    let log = fs::read_to_string(bed.state().join("sessions/rights/log"))?;
    ensure!(log.is_empty(), "it said {log}");
    bed.ctl(&["kill", "rights"])?.expect(0).map(drop)
}

/// An image whose agent speaks another version: the restored program works, and is reached by ptrace.
fn older_agent(bed: &mut Bed) -> Result<()> {
    const VERSION_AT: u64 = 0x444f_5200_0000 + 8;
    let mut target = Start::program("thr_join").door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    by_itself(bed, &[&name], "agent", "")?;
    let mem = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", target.pid))?;
    mem.write_all_at(&1u32.to_le_bytes(), VERSION_AT)?;
    let note = "not by its agent: its agent speaks version 1, this build ";
    by_itself(bed, &[&name], "attach", note)?;
    by_itself(bed, &[&name, "--kill"], "attach", note)?;
    target.gone(bed)?;
    target.restore(bed)?;
    by_itself(bed, &[&name], "attach", note)?;
    unharmed::entirely(target.pid)?;
    bed.ctl(&["checkpoint", &name, "--door", "agent"])?.refused(3, &["its agent speaks version 1"])?;
    target.prove(bed).map(drop)
}

/// LD_PRELOAD cannot name a file with white space in its path: started without the agent, which is said; refused where the agent is asked for.
fn space(bed: &mut Bed) -> Result<()> {
    let state = bed.dir.join("a state").display().to_string();
    let launch = |bed: &mut Bed, options: &[&str]| {
        let mut c = bed.launcher_command(&["--state-dir", &state, "--name", "s", "--detach"]);
        c.args(options).args(["--", "sleep", "1000"]);
        bed.run(&mut c)
    };
    let ran = launch(bed, &["--door", "agent"])?.expect(125)?;
    ensure!(ran.said().contains("LD_PRELOAD knows no way"), "{}", ran.said());
    let ran = launch(bed, &[])?.expect(0)?;
    let why = "started without the agent, so its checkpoints need ptrace: ";
    ensure!(ran.said().contains(why) && ran.said().contains("white space"), "{}", ran.said());
    let said = bed.ctl_json(&["--state-dir", &state, "checkpoint", "s"])?;
    ensure!(said["door"] == "attach" && said["notes"] == serde_json::json!([]), "{said}");
    bed.ctl(&["--state-dir", &state, "kill", "s"])?.expect(0).map(drop)
}

/// Cycles of checkpoint, kill and restore.
const CYCLES: usize = 5;

/// Nobody but root may look at it from outside, and its agent lets its recorder in. It is as it was after each.
fn not_dumpable(bed: &mut Bed) -> Result<()> {
    let start = || Start::program("proc_dumpable").args(["--zero"]).door(Door::Launched).agent();
    let mut target = start().ready(bed)?;
    let name = target.session.clone();
    for _ in 0..CYCLES {
        closed(bed, target.pid)?;
        by_itself(bed, &[&name], "agent", "")?;
        closed(bed, target.pid)?;
        by_itself(bed, &[&name, "--door", "agent", "--kill"], "agent", "")?;
        target.gone(bed)?;
        target.restore(bed)?;
    }
    closed(bed, target.pid)?;
    by_itself(bed, &[&name], "agent", "")?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// That it is not dumpable any more, as root sees it: what is its own in /proc is root's.
fn closed(bed: &Bed, pid: i32) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if bed.who != Who::User || bed.who.uid() == 0 {
        return Ok(());
    }
    run::until(&format!("PID {pid} not dumpable"), SOON, || Ok(fs::metadata(format!("/proc/{pid}/maps"))?.uid() == 0))
}

fn not_dumpable_sabotage(bed: &mut Bed) -> Result<()> {
    let start = Start::program("proc_dumpable").args(["--zero", "--sabotage"]);
    let mut target = start.door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    by_itself(bed, &[&name, "--kill"], "agent", "")?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.fail(bed)
}

/// With threads, some of which come and go, and what a child does not inherit.
fn not_dumpable_threads(bed: &mut Bed) -> Result<()> {
    const SCRIPT: &str = "
import ctypes, mmap, os, threading, time
libc = ctypes.CDLL(None)
m = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_DONTFORK)
m[:5] = b'mouse'
assert libc.prctl(4, 0, 0, 0, 0) == 0
count = [0] * 4
def work(i):
    while not os.path.exists('gate'):
        time.sleep(0.001)
        t = threading.Thread(target=lambda: None)
        t.start(); t.join()
        count[i] += 1
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
open('ready', 'w').close()
for t in threads: t.join()
said = f'{libc.prctl(3)} {all(count)} {m[:5].decode()}'
open('said.tmp', 'w').write(said)
os.rename('said.tmp', 'said')
";
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "py", "--detach", "--json", "--", "python3", "-c", SCRIPT]);
    let mut pid = bed.run(c.current_dir(&dir))?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.who.assert_is("python", pid)?;
    for _ in 0..CYCLES {
        by_itself(bed, &["py"], "agent", "")?;
        closed(bed, pid)?;
        by_itself(bed, &["py", "--kill"], "agent", "")?;
        ended(bed, pid)?;
        pid = bed.ctl_json(&["restore", "py", "--detach"])?["pid"].as_i64().context("no pid")? as i32;
    }
    fs::write(dir.join("gate"), "")?;
    run::until("what it says", LIMIT, || Ok(dir.join("said").exists()))?;
    let said = fs::read_to_string(dir.join("said"))?;
    ensure!(said == "0 True mouse", "dumpable, counts, memory: {said}");
    ended(bed, pid)
}

/// The thread that runs hooks is found in memory that a user may not read: refused, not left out.
fn not_dumpable_hooks(bed: &mut Bed) -> Result<()> {
    const SCRIPT: &str = "
import ctypes, os, time
import dormouse
dormouse.hook('a', before=lambda: open('ran', 'w').close())
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
open('ready', 'w').close()
while True: time.sleep(0.01)
";
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "hooks", "--detach", "--json", "--", "python3", "-c", SCRIPT]);
    c.current_dir(&dir).env("PYTHONPATH", bed.stage.path.join("p")).env("PYTHONDONTWRITEBYTECODE", "1");
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    if bed.who.uid() == 0 {
        by_itself(bed, &["hooks"], "agent", "")?;
        ensure!(dir.join("ran").exists(), "its hook did not run");
    } else {
        bed.ctl(&["checkpoint", "hooks"])?.refused(3, &["it has hooks, and is not dumpable", "run ctl as root"])?;
        closed(bed, pid)?;
    }
    unharmed::entirely(pid)?;
    bed.ctl(&["kill", "hooks"])?.expect(0).map(drop)
}

/// Without an agent it is refused, by name; so it is by its PID, of which no record says that it has one.
fn not_dumpable_without_agent(bed: &mut Bed) -> Result<()> {
    if bed.who.uid() == 0 {
        return Ok(());
    }
    let says = ["the kernel does not let this user look into it", "start it by launcher"];
    for agent in [false, true] {
        let start = Start::program("proc_dumpable").args(["--zero"]).door(Door::Launched);
        let mut target = if agent { start.agent() } else { start }.ready(bed)?;
        let pid = target.pid.to_string();
        let args: Vec<&str> = match agent {
            false => vec!["checkpoint", &target.session],
            true => vec!["check", "--pid", &pid],
        };
        bed.ctl(&args)?.refused(3, &says)?;
        closed(bed, target.pid)?;
        target.prove(bed)?;
    }
    Ok(())
}
