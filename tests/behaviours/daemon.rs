//! A daemon as the old ones are made, of a program that launcher has started: two forks, a session of its own, nothing open, another directory. It has
//! the agent from its parents, and is checkpointed by its PID.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case};
use std::fs;
use std::path::Path;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, how) in [
        ("one-by-one", "os.closerange(0, 4096)"),
        ("closefrom", "libc.closefrom(0)"),
        ("close_range", "assert libc.close_range(0, 4096, 0) == 0"),
    ] {
        all.extend(Case::each(&format!("daemon/closes-all-{name}"), move |bed| closes_all(bed, how)));
    }
    all.extend(Case::each("daemon/session-is-told", session_is_told));
    all.into_iter().map(|c| c.limit(60)).collect()
}

/// What a restore notes of one that led no session and does.
const LEADS: &str = "leads a session of its own now: the leader of the session that it was in is not in the checkpoint";
/// And of one that did, and does not.
const LEADS_NONE: &str =
    "leads no session now: it is in that of who restores it (with --detach it leads one of its own)";

/// Whether it leads its session, as it sees itself (in a namespace of its own).
fn leads(pid: i32) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let last = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().last()).map(str::to_owned)
    };
    ensure!(last("NSpid:").is_some(), "no NSpid in {status}");
    Ok(last("NSsid:") == last("NSpid:"))
}

/// A member of our session leads one when it is restored detached, which is noted; then it is a leader, of which nothing is to be said; in the
/// foreground it leads none, which is noted again.
fn session_is_told(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Member).ready(bed)?;
    ensure!(!leads(target.pid)?, "it leads a session from the beginning");
    for noted in [true, false] {
        target.kill(bed)?;
        let said = target.restore_with(bed, &[])?;
        ensure!(leads(target.pid)?, "restored detached it leads no session");
        let notes = said["notes"].to_string();
        ensure!(notes.contains(LEADS) == noted && !notes.contains(LEADS_NONE), "its notes: {notes}");
    }
    target.kill(bed)?;
    let mut c = bed.ctl_command(&["--json", "restore", &target.session]);
    let (mut ctl, _, err) = bed.spawn(&mut c)?;
    let mut said = String::new();
    run::until("the restore in the foreground", LIMIT, || {
        ensure!(ctl.try_wait()?.is_none(), "ctl ended: {}", fs::read_to_string(&err)?);
        said = fs::read_to_string(&err)?;
        Ok(said.ends_with('\n'))
    })?;
    let started: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    target.pid = started["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored program", target.pid)?;
    ensure!(!leads(target.pid)?, "restored in the foreground it leads a session");
    let notes = started["notes"].to_string();
    ensure!(notes.contains(LEADS_NONE) && !notes.contains(LEADS), "its notes: {notes}");
    target.prove(bed)?;
    let status = run::end(&mut ctl, "ctl restore", LIMIT)?;
    bed.let_go(&ctl);
    ensure!(status.success(), "ctl restore: {}", fs::read_to_string(&err)?);
    Ok(())
}

/// Answers by files in the folder in which it was started: what it is and has, a number that counts on, and a hash of a MiB.
const DAEMON: &str = "
import ctypes, hashlib, os, random, time
libc = ctypes.CDLL(None)
here = os.getcwd() + '/'
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir('/')
os.umask(0o27)
CLOSE
random.seed(11)
data = random.randbytes(1 << 20)
def say(name, text):
    fd = os.open(here + 'tmp', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, text.encode())
    os.close(fd)
    os.rename(here + 'tmp', here + name)
say('ready', str(os.getpid()))
n = 0
while True:
    n += 1
    while not os.path.exists(here + 'ask.%d' % n): time.sleep(0.001)
    opened = os.listdir('/proc/self/fd')
    mask = os.umask(0o27)
    leads = os.getsid(0) == os.getpid()
    say('answer.%d' % n, '%d of %d: %s %s %o %s %s' % (n, os.getpid(), os.getcwd(), opened, mask, leads, hashlib.sha256(data).hexdigest()))
";

/// What it says when it is asked for the n-th time.
fn ask(bed: &Bed, dir: &Path, n: usize) -> Result<String> {
    let (ask, answer) = (dir.join(format!("ask.{n}")), dir.join(format!("answer.{n}")));
    fs::write(&ask, "")?;
    bed.give(&ask)?;
    run::until("the daemon's answer", LIMIT, || Ok(answer.exists()))?;
    Ok(fs::read_to_string(answer)?)
}

fn closes_all(bed: &mut Bed, how: &str) -> Result<()> {
    let dir = bed.folder()?;
    let script = DAEMON.replace("CLOSE", how);
    let mut c = bed.launcher_command(&["--name", "job", "--detach", "--json", "--", "python3", "-c", &script]);
    c.current_dir(&dir);
    let command = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("the daemon ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let daemon: i32 = fs::read_to_string(dir.join("ready"))?.parse()?;
    run::until("the command's end", SOON, || Ok(!proc::alive(command)))?;
    ensure!(daemon != command && proc::descriptors(daemon).is_empty(), "it is no daemon with nothing open");
    bed.who.assert_is("the daemon", daemon)?;
    let said = ask(bed, &dir, 1)?;
    let is = |n: usize| said.replacen("1 of", &format!("{n} of"), 1);
    ensure!(said.starts_with(&format!("1 of {daemon}: / ['0'] 27 False ")), "with the listed folder: {said}");

    let pid = daemon.to_string();
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "d", "--door", "agent"])?.expect(0)?;
    unharmed::entirely(daemon)?;
    ensure!(proc::descriptors(daemon).is_empty(), "it has {:?} open", proc::descriptors(daemon));
    ensure!(ask(bed, &dir, 2)? == is(2), "running on it is another");
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "d", "--door", "agent", "--kill"])?.expect(0)?;
    let live = store::session_dir(bed, "job").join("live.json");
    run::until("the end of the daemon and of its session", SOON, || {
        bed.reap();
        Ok(!proc::alive(daemon) && !live.exists())
    })?;
    let told = bed.ctl_json(&["restore", "d", "--detach"])?;
    let restored = told["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored daemon", restored)?;
    // its session's leader had ended: restored detached it has a session of its own
    let is = |n: usize| is(n).replace(" False ", " True ");
    let now = ask(bed, &dir, 3)?;
    ensure!(now == is(3), "restored it says {now}, it said {said}: {told}");
    ensure!(told["notes"].to_string().contains(LEADS), "its notes should say that it {LEADS}: {told}");
    bed.ctl(&["checkpoint", "d", "--door", "agent"])?.expect(0)?;
    unharmed::entirely(restored)?;
    ensure!(ask(bed, &dir, 4)? == is(4), "after a checkpoint of the restored one it is another");
    store::holds(bed, "d", &[1, 2, 3])?;
    store::all_made_by(bed, "d", "agent")?;
    bed.ctl(&["kill", "d"])?.expect(0).map(drop)
}
