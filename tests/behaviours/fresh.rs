//! New PIDs (`ctl restore --pids fresh`) beyond the matrix: beside the original, again and again, with libdormouse; and what is refused.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case, Who};
use std::fs;
use std::path::{Path, PathBuf};

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("new-pids/beside-the-original", beside);
    all.extend(Case::each("new-pids/five-times", five_times));
    all.extend(Case::each("new-pids/or-the-old-ones", old_ones));
    all.extend(Case::each("new-pids/refused-for-locks", locks));
    all.extend(Case::by_both_doors("new-pids/refused", refused));
    all.extend(Case::each("new-pids/static", not_shared));
    all.into_iter().map(|c| c.limit(60)).collect()
}

/// Answers what it is asked by files in its working folder: its PID, and a hash of a MiB that it made at its start.
const ANSWERS: &str = "
import hashlib, os, random, threading, time
random.seed(7)
data = random.randbytes(1 << 20)
open('ready', 'w').close()
n = 0
while True:
    n += 1
    while not os.path.exists('ask.%d' % n): time.sleep(0.001)
    said = []
    t = threading.Thread(target=lambda: said.append(hashlib.sha256(data).hexdigest()))
    t.start()
    t.join()
    open('tmp', 'w').write('%d %d %s' % (os.getpid(), threading.get_native_id(), said[0]))
    os.rename('tmp', 'answer.%d' % n)
";

/// Its PID and its hash.
fn ask(bed: &Bed, dir: &Path, n: usize) -> Result<(i32, String)> {
    fs::write(dir.join(format!("ask.{n}")), "")?;
    bed.give(&dir.join(format!("ask.{n}")))?;
    let answer = dir.join(format!("answer.{n}"));
    run::until("an answer", LIMIT, || Ok(answer.exists()))?;
    let said = fs::read_to_string(answer)?;
    let words: Vec<&str> = said.split(' ').collect();
    Ok((words[0].parse()?, words[2].to_owned()))
}

fn python(bed: &mut Bed, name: &str, options: &[&str]) -> Result<(i32, PathBuf)> {
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", name, "--detach", "--json"]);
    c.args(options).args(["--", "python3", "-c", ANSWERS]).current_dir(&dir);
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.who.assert_is("python", pid)?;
    Ok((pid, dir))
}

/// Two of it, both in our own namespaces, both alive, each with its own PID and the same memory.
fn beside(bed: &mut Bed) -> Result<()> {
    let (pid, dir) = python(bed, "first", &[])?;
    let (said, hash) = ask(bed, &dir, 1)?;
    ensure!(said == pid, "it is PID {pid}, and says {said}");
    bed.ctl(&["checkpoint", "first"])?.expect(0)?;
    store::made_by(bed, "first@1", "agent")?;
    let other = bed.folder()?;
    let map = format!("{}={}", dir.display(), other.display());
    let args = ["restore", "first", "--detach", "--as", "second", "--pids", "fresh", "--map-path", &map];
    let told = bed.ctl_json(&args)?;
    let second = told["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the second", second)?;
    ensure!(told["pids"] == "fresh" && second != pid, "{told}");
    let notes = told["notes"].to_string();
    ensure!(notes.contains(&format!("PID {pid} is PID {second} now")) && notes.contains("it gets new PIDs"), "{notes}");
    for n in 2..5 {
        ensure!(ask(bed, &dir, n)? == (pid, hash.clone()), "the original has changed");
        ensure!(
            ask(bed, &other, n)? == (second, hash.clone()),
            "the second should be PID {second} with the same memory"
        );
    }
    for ns in ["pid", "user", "mnt"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{ns}"));
        ensure!(of(pid)? == of(second)?, "the second is in another {ns} namespace");
    }
    let list = bed.ctl(&["list"])?.expect(0)?.out;
    ensure!(list.contains(&pid.to_string()) && list.contains(&second.to_string()), "{list}");
    for (name, pid) in [("first", pid), ("second", second)] {
        bed.ctl(&["checkpoint", name])?.expect(0)?;
        store::made_by(bed, name, "agent")?;
        unharmed::entirely(pid)?;
        bed.ctl(&["kill", name])?.expect(0)?;
        bed.reap();
    }
    Ok(())
}

/// `--pids keep` of a program with an agent: root may choose PIDs, an ordinary user is refused, and it is restored in another way. The agent works on.
fn old_ones(bed: &mut Bed) -> Result<()> {
    let (pid, dir) = python(bed, "kept", &[])?;
    let (_, hash) = ask(bed, &dir, 1)?;
    bed.ctl(&["checkpoint", "kept", "--kill"])?.expect(0)?;
    store::made_by(bed, "kept@1", "agent")?;
    let keep = ["restore", "kept", "--detach", "--pids", "keep"];
    let told = match bed.who {
        Who::Root => bed.ctl_json(&keep)?,
        Who::User => {
            let why = ["cannot restore kept", "--pids keep", "CAP_CHECKPOINT_RESTORE", "use --pids private"];
            bed.ctl(&keep)?.refused(3, &why)?;
            bed.ctl_json(&["restore", "kept", "--detach"])?
        }
    };
    let restored = told["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored one", restored)?;
    ensure!(told["pids"] == if bed.who == Who::Root { "keep" } else { "private" }, "{told}");
    ensure!((restored == pid) == (bed.who == Who::Root), "PID {pid} is {restored} now");
    let levels = proc::status(restored).map(|s| s.ns_pids).unwrap_or_default();
    ensure!(levels.last() == Some(&pid), "inside it should be PID {pid} still, it is {levels:?}");
    ensure!(ask(bed, &dir, 2)? == (pid, hash), "it is another than before");
    bed.ctl(&["checkpoint", "kept"])?.expect(0)?;
    store::made_by(bed, "kept@2", "agent")?;
    unharmed::entirely(restored)?;
    bed.ctl(&["kill", "kept"])?.expect(0).map(drop)
}

/// By both doors in turn; its threads' numbers are others each time.
fn five_times(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_tid_use").door(Door::Launched).agent().ready(bed)?;
    for n in 0..5 {
        target.agent = n % 2 == 0;
        target.kill(bed)?;
        target.restore_fresh(bed)?;
    }
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

/// All reasons at once, before anything is made: the thread that holds, and those that wait.
fn locks(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").door(Door::Launched).ready(bed)?;
    target.kill(bed)?;
    let args = ["restore", &target.session.clone(), "--detach", "--pids", "fresh"];
    bed.ctl(&args)?.refused(3, &["it holds a robust mutex", "waits for a mutex with priority inheritance"])?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// A thread without a library's struct, and glibc's thread for timers: refused by name; then restored in another way, and whole.
fn refused(bed: &mut Bed, agent: bool) -> Result<()> {
    for (what, why) in [
        ("clone", "where its C library keeps its TID is not known"),
        ("timer", "it is one of glibc's with SIGEV_THREAD"),
        ("proc", "let the program leave it before the checkpoint"),
    ] {
        // glibc's thread for timers always blocks all signals: only ptrace reaches it
        if agent && what == "timer" {
            continue;
        }
        let start = Start::program("thr_named").args(["--what", what]).door(Door::Launched);
        let mut target = start.by_agent(agent).ready(bed)?;
        target.kill(bed)?;
        let args = ["restore", &target.session.clone(), "--detach", "--pids", "fresh"];
        bed.ctl(&args)?.refused(3, &["cannot restore", why])?;
        if what == "proc" {
            // in no way: there is no such folder before the program is there
            continue;
        }
        target.restore(bed)?;
        target.prove(bed)?;
    }
    Ok(())
}

/// Statically linked.
fn not_shared(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("static_threads").door(Door::Launched).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        target.restore_fresh(bed)?;
    }
    target.prove(bed).map(drop)
}
