//! User namespaces of a program's own, beyond what the matrix does with `userns`: as seen from outside, what is said of them, and what is refused.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::{Start, Target};
use dormouse_tests::who::ORDINARY;
use dormouse_tests::{proc, run, sys, unharmed, Bed, Case, Who};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("userns/outside", outside);
    all.extend(Case::by_both_doors("userns/twice", twice));
    all.extend(Case::by_both_doors("userns/shared", shared));
    all.extend(Case::by_both_doors("userns/late", late));
    all.extend(Case::each("userns/unshare", by_unshare));
    all.extend(Case::each("userns/with-others", with_others));
    all.push(Case::new("userns/setgroups", Who::User, setgroups));
    if Who::all().contains(&Who::Root) {
        all.push(Case::new("userns/strangers", Who::Root, strangers));
        all.push(Case::new("userns/few-rights", Who::Root, few_rights));
        all.push(Case::new("userns/threads-kept", Who::Root, threads_kept));
        for (name, dumpable) in [("userns/file-of-roots", "1"), ("userns/file-of-roots-not-dumpable", "0")] {
            all.push(Case::new(name, Who::Root, move |bed| file_of_roots(bed, dumpable)));
        }
    }
    all
}

fn start(bed: &mut Bed, what: &str, agent: bool) -> Result<Target> {
    Start::program("userns").args(["--what", what]).by_agent(agent).ready(bed)
}

/// A line of its status as we see it.
fn field(pid: i32, name: &str) -> Result<Vec<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    Ok(line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect())
}

fn words(pid: i32, file: &str) -> Result<Vec<String>> {
    Ok(fs::read_to_string(format!("/proc/{pid}/{file}"))?.split_whitespace().map(str::to_owned).collect())
}

fn space(pid: i32) -> Result<std::path::PathBuf> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/user"))?)
}

/// Root inside, its user outside; three times over; a file that it makes is its user's.
fn outside(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "root", agent)?;
    let uid = bed.who.uid().to_string();
    let full = field(target.pid, "CapBnd")?;
    for _ in 0..3 {
        target.kill(bed)?;
        target.restore(bed)?;
        let pid = target.pid;
        ensure!(space(pid)? != space(std::process::id() as i32)?, "it is in ours");
        ensure!(field(pid, "Uid")? == vec![uid.clone(); 4], "its users are {:?}", field(pid, "Uid")?);
        ensure!(field(pid, "CapEff")? == full, "its capabilities are {:?}", field(pid, "CapEff")?);
        for map in ["uid_map", "gid_map"] {
            ensure!(words(pid, map)? == ["0", &uid, "1"], "its {map} is {:?}", words(pid, map)?);
        }
        ensure!(words(pid, "setgroups")? == ["deny"], "setgroups says {:?}", words(pid, "setgroups")?);
    }
    target.prove(bed)?;
    let made = fs::metadata(target.dir.join("made"))?;
    ensure!((made.uid(), made.gid()) == (bed.who.uid(), bed.who.uid()), "what it made is {}'s", made.uid());
    Ok(())
}

/// A daemon that gave up root, has threads in one, and still has open what only root can open; and whom its user may not look at, if he might not before.
fn file_of_roots(bed: &mut Bed, dumpable: &str) -> Result<()> {
    let script = FILE_OF_ROOTS.replace("DUMPABLE", dumpable).replace("USER", &ORDINARY.to_string());
    let dir = bed.folder()?;
    let mut python = bed.command("python3");
    let (mut child, ..) = bed.spawn(python.args(["-c", &script]).current_dir(&dir))?;
    let there = |file: &str| run::until(file, LIMIT, || Ok(dir.join(file).exists()));
    there("ready")?;
    let pid = child.id().to_string();
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "job", "--kill"])?.expect(0)?;
    child.wait()?;
    bed.let_go(&child);
    for last in [false, true] {
        let said = bed.ctl_json(&["restore", "job", "--detach"])?;
        let pid = said["pid"].as_i64().context("no pid")? as i32;
        ensure!(words(pid, "uid_map")? == ["0", &ORDINARY.to_string(), "1"], "{:?}", words(pid, "uid_map")?);
        let owner = fs::metadata(format!("/proc/{pid}/mem"))?.uid();
        ensure!((owner == ORDINARY) == (dumpable == "1"), "user {owner} may read its memory");
        if !last {
            bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
        }
    }
    fs::write(dir.join("gate"), "")?;
    there("result")?;
    let held = fs::read_to_string(dir.join("held"))?;
    ensure!(held == "first second", "it wrote {held:?}");
    Ok(())
}

const FILE_OF_ROOTS: &str = "
import ctypes, os, threading, time
held = open('held', 'w')
os.chmod('held', 0o600), os.chmod('.', 0o777)
held.write('first '), held.flush()
os.setgroups([]), os.setresgid(USER, USER, USER), os.setresuid(USER, USER, USER)
libc = ctypes.CDLL(None)
libc.prctl(4, 1, 0, 0, 0)
assert libc.unshare(0x10000000) == 0
for name, text in ('setgroups', 'deny'), ('uid_map', '0 USER 1'), ('gid_map', '0 USER 1'): open('/proc/self/' + name, 'w').write(text)
libc.prctl(4, DUMPABLE, 0, 0, 0)
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
held.write('second'), held.flush()
open('result.tmp', 'w').write('OK')
os.rename('result.tmp', 'result')
os._exit(0)
";

/// One in another is refused, before anything is touched.
fn twice(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "twice", agent)?;
    let why = [
        "user namespace: it is in one that is in another one, and only one inside this command's is kept",
        "run ctl inside the outer one (nsenter --user --preserve-credentials, with a process of that as --target)",
    ];
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &why)?;
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &why)?;
        unharmed::entirely(target.pid)?;
    }
    target.prove(bed).map(drop)
}

fn shared(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "shared", agent)?;
    let why = [
        "it shares its working directory and umask (CLONE_FS), and is in a user namespace of its own, which is not kept together",
        "let it unshare(2) them, or start it without one of the two",
    ];
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &why)?;
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// Threads in one, below a process that is not in it.
fn late(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "late", agent)?;
    let pid = *proc::descendants(target.pid).first().context("it has no child")?;
    let why = [
        &format!(
            "user namespace: process {pid} (userns) has threads, and process {} (userns) is not in it",
            target.pid
        )[..],
        &format!("checkpoint what is in it alone (--pid {pid})"),
    ];
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &why)?;
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// As people do it: an ordinary program under unshare(1).
fn by_unshare(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.command("/usr/bin/unshare");
    c.args(["--user", "--map-root-user"]).arg(bed.stage.program("mem_anon")).arg("--dir").arg(&dir);
    sys::own_session(&mut c);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    run::until("ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let pid = child.id().to_string();
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "unshared", "--kill"])?.expect(0)?;
    run::end(&mut child, "mem_anon", LIMIT)?;
    bed.let_go(&child);
    let said = bed.ctl(&["--json", "restore", "unshared", "--detach"])?.expect(0)?.json()?;
    let pid = said["pid"].as_i64().unwrap_or(0) as i32;
    bed.hold(pid);
    ensure!(words(pid, "uid_map")? == ["0", &bed.who.uid().to_string(), "1"], "{:?}", words(pid, "uid_map")?);
    fs::write(dir.join("gate"), "")?;
    run::until("its result", LIMIT, || Ok(dir.join("result").exists()))?;
    let result = fs::read_to_string(dir.join("result"))?;
    ensure!(result.starts_with("OK"), "{result}");
    Ok(())
}

/// A process of outside is in the same one: said at the checkpoint.
fn with_others(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.command("/usr/bin/unshare");
    c.args(["--user", "--map-root-user", "sh", "-c", "\"$0\" --dir \"$1\" & wait"]);
    c.arg(bed.stage.program("mem_anon")).arg(&dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    run::until("ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let pid: i32 = fs::read_to_string(dir.join("ready"))?.trim().parse()?;
    let said = bed.ctl(&["checkpoint", "--pid", &pid.to_string(), "--name", "beside"])?.expect(0)?.said();
    let word = format!(
        "user namespace: PID {} (sh) is in it, too, and not in the checkpoint; a restored program has one of its own",
        child.id()
    );
    ensure!(said.contains(&word), "it should say {word:?}: {said}");
    fs::write(dir.join("gate"), "")?;
    run::end(&mut child, "sh", LIMIT)?;
    bed.let_go(&child);
    Ok(())
}

/// In a private namespace of an ordinary user setgroups(2) is not permitted, so it is not in one inside it either: said.
fn setgroups(bed: &mut Bed) -> Result<()> {
    let mut target = start(bed, "none", false)?;
    target.kill(bed)?;
    let word = "setgroups(2) is not permitted in its user namespace, as it is not in the one around it; it was";
    let looked = bed.ctl(&["check", &target.session.clone()])?.expect(0)?.said();
    ensure!(looked.contains(word), "check should say {word:?}: {looked}");
    let notes = target.restore_with(bed, &[])?["notes"].to_string();
    ensure!(notes.contains(word), "restore should say {word:?}: {notes}");
    target.prove(bed).map(drop)
}

/// One that is another user than who made it, by a map that only root writes; from inside it has users and groups of its own.
fn strangers(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.command(bed.stage.program("userns"));
    c.args(["--what", "strangers", "--dir"]).arg(&dir);
    sys::own_session(&mut c);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    run::until("ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    let mut pid = child.id() as i32;
    let users = ["100010", "100020", "0", "100040"];
    for n in 0..3 {
        ensure!(field(pid, "Uid")? == users, "its users are {:?}", field(pid, "Uid")?);
        let number = pid.to_string();
        let first = ["checkpoint", "--pid", &number, "--name", "strange", "--kill"];
        let args = if n == 0 { &first[..] } else { &["checkpoint", "strange", "--kill"] };
        bed.ctl(args)?.expect(0)?;
        if n == 0 {
            run::end(&mut child, "userns", LIMIT)?;
            bed.let_go(&child);
        }
        let said = bed.ctl(&["--json", "restore", "strange", "--detach"])?.expect(0)?.json()?;
        pid = said["pid"].as_i64().unwrap_or(0) as i32;
        bed.hold(pid);
    }
    ensure!(field(pid, "Uid")? == users, "its users are {:?}", field(pid, "Uid")?);
    ensure!(words(pid, "uid_map")? == ["0", "100000", "1000", "5000", "0", "1"], "{:?}", words(pid, "uid_map")?);
    fs::write(dir.join("gate"), "")?;
    run::until("its result", LIMIT, || Ok(dir.join("result").exists()))?;
    let result = fs::read_to_string(dir.join("result"))?;
    ensure!(result.starts_with("OK"), "{result}");
    Ok(())
}

/// Who may not write such maps is told so.
fn few_rights(bed: &mut Bed) -> Result<()> {
    let mut target = start(bed, "ranges", false)?;
    target.kill(bed)?;
    for args in [&["check"][..], &["restore", "--detach"]] {
        let mut without = bed.command("/usr/bin/setpriv");
        without.args(["--bounding-set=-setfcap"]).arg(bed.stage.bin("ctl")).args(args).arg(&target.session);
        let words = [
            "user namespace: its map of users (0 100000 1000, 5000 0 1) is more than you may write: your own only (0)",
            "its map of groups (0 200000 1000, 5000 0 1) is more than",
            "its map of groups was written by who may, as setgroups(2) is permitted in it, and you may not",
            "restore it as root",
        ];
        bed.run(&mut without)?.refused(3, &words)?;
    }
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// Nobody may choose the numbers of threads in one but the init of a private namespace: root gets one without asking.
fn threads_kept(bed: &mut Bed) -> Result<()> {
    let mut target = start(bed, "threads", false)?;
    target.kill(bed)?;
    let why = ["has threads in it, and nobody may choose their numbers there", "use --pids private, or --pids fresh"];
    bed.ctl(&["restore", &target.session.clone(), "--detach", "--pids", "keep"])?.refused(3, &why)?;
    let notes = target.restore_with(bed, &[])?["notes"].to_string();
    let word = "runs in a private PID namespace as PID";
    ensure!(notes.contains(word) && notes.contains("threads in a user namespace"), "its notes: {notes}");
    ensure!(proc::threads(target.pid).len() == 3, "threads: {:?}", proc::threads(target.pid));
    target.prove(bed).map(drop)
}
