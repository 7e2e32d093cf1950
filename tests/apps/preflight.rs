//! What stands in the way of a restore is named all at once, by `check` and by `restore` alike, and nothing is begun; and with
//! the obstacles away, or gone round, it works.
use crate::server::Server;
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::Start;
use dormouse_tests::{proc, run, store, Bed, Case};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("preflight/all-at-once", all_at_once));
    all.extend(Case::each("preflight/map-path", map_path));
    all.extend(Case::each("preflight/file-changed", file_changed));
    all.extend(Case::each("preflight/another-machine", another_machine));
    all.extend(Case::each("preflight/limits-elsewhere", limits_elsewhere));
    all
}

/// A sleeping server: its working directory, and a file that it wrote to.
fn asleep(bed: &mut Bed) -> Result<(Server, PathBuf, PathBuf)> {
    let mut web = Server::new()?;
    let dir = bed.folder()?;
    let log = dir.join("written");
    let file = File::create(&log)?;
    bed.give(&log)?;
    let argv = web.argv(bed);
    let mut c = bed.command(&argv[0]);
    c.args(&argv[1..]).current_dir(&dir).stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
    dormouse_tests::sys::own_session(&mut c);
    let mut child = c.spawn()?;
    bed.hold(child.id() as i32);
    run::until("the server listening", LIMIT, || Ok(fs::read_to_string(&log)?.contains("listening")))?;
    web.ask("/a", 1)?;
    bed.ctl(&["checkpoint", "--pid", &child.id().to_string(), "--name", "web", "--kill"])?.expect(0)?;
    run::end(&mut child, "the server", LIMIT)?;
    bed.let_go(&child);
    Ok((web, dir, log))
}

/// The session sleeps on: nothing was begun.
fn untouched(bed: &mut Bed) -> Result<()> {
    bed.reap();
    let left = proc::children(std::process::id() as i32);
    ensure!(left.is_empty(), "a refused restore left {left:?}");
    store::holds(bed, "web", &[1])
}

/// The working directory is gone (and with it the file), the port is taken by somebody.
fn all_at_once(bed: &mut Bed) -> Result<()> {
    let (mut web, dir, log) = asleep(bed)?;
    let away = dir.with_extension("away");
    fs::rename(&dir, &away)?;
    let taken = TcpListener::bind(("127.0.0.1", web.port))?;
    let (dir_text, log_text, port) = (format!("{} ", dir.display()), log.display().to_string(), web.port.to_string());
    let words = ["cannot restore web@1", dir_text.trim_end(), &log_text, &port, "; "];
    let checked = bed.ctl(&["check", "web"])?.refused(3, &words)?;
    let tried = bed.ctl(&["restore", "web", "--detach"])?.refused(3, &words)?;
    ensure!(checked.err == tried.err, "check and restore disagree:\n{}\n{}", checked.err, tried.err);
    ensure!(
        checked.err.lines().filter(|l| l.contains("; ")).count() >= 3,
        "each obstacle should have a line and a remedy:\n{}",
        checked.err
    );
    if bed.who == dormouse_tests::Who::Root {
        // An ordinary user may not see whose it is.
        let me = std::process::id().to_string();
        ensure!(checked.err.contains(&me), "who has the port (PID {me}) should be named:\n{}", checked.err);
    }
    untouched(bed)?;
    drop(taken);
    fs::rename(&away, &dir)?;
    bed.ctl(&["check", "web"])?.expect(0)?;
    untouched(bed)?;
    bed.ctl(&["restore", "web", "--detach"])?.expect(0)?;
    web.ask("/b", 2)?;
    bed.ctl(&["kill", "web"])?.expect(0)?;
    web.refuses()
}

/// The folder moved: --map-path leads to it.
fn map_path(bed: &mut Bed) -> Result<()> {
    let (mut web, dir, _) = asleep(bed)?;
    let moved = dir.with_extension("moved");
    fs::rename(&dir, &moved)?;
    bed.ctl(&["restore", "web", "--detach"])?.refused(3, &[&dir.display().to_string(), "--map-path"])?;
    let map = format!("{}={}", dir.display(), moved.display());
    bed.ctl(&["restore", "web", "--detach", "--map-path", &map])?.expect(0)?;
    web.ask("/b", 2)?;
    let log = fs::read_to_string(moved.join("written"))?;
    ensure!(
        log.contains("request 1: /a") && log.contains("request 2: /b"),
        "the moved file should be written on: {log:?}"
    );
    bed.ctl(&["kill", "web"])?.expect(0)?;
    web.refuses()
}

/// A mapped file that is another one now is refused by name.
fn file_changed(bed: &mut Bed) -> Result<()> {
    let copy = bed.dir.join("program-copy");
    let program = bed.stage.program("counter");
    fs::copy(&program, &copy)?;
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "changed", "--detach", "--"]);
    c.arg(&copy).arg("--dir").arg(&dir);
    bed.run(&mut c)?.expect(0)?;
    run::until("counter ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "changed", "--kill"])?.expect(0)?;
    let aside = copy.with_extension("aside");
    fs::rename(&copy, &aside)?;
    bed.ctl(&["check", "changed"])?.refused(3, &["cannot restore changed@1", &copy.display().to_string(), "; "])?;
    fs::copy(bed.stage.program("mem_anon"), &copy)?;
    bed.ctl(&["check", "changed"])?.refused(3, &["cannot restore changed@1", &copy.display().to_string(), "; "])?;
    bed.ctl(&["restore", "changed", "--detach"])?.refused(3, &[&copy.display().to_string()])?;
    fs::rename(&aside, &copy)?;
    bed.ctl(&["restore", "changed", "--detach"])?.expect(0)?;
    bed.ctl(&["kill", "changed"])?.expect(0)?;
    Ok(())
}

/// An image from a machine with other registers, and a kernel with higher PIDs: both are named at once; the one from here is restored.
fn another_machine(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_join").ready(bed)?;
    target.kill(bed)?;
    reimage(bed, &target.session, "--elsewhere")?;
    let (s, first) = (target.session.clone(), format!("{}@1", target.session));
    bed.ctl(&["verify", &s])?.expect(0)?;
    let words = [
        "CPU: registers of MPX are in use, which this CPU does not have; restore it on a CPU that has them",
        "PID 5000000: this kernel's PIDs end at ",
        "; sysctl -w kernel.pid_max=5000001",
    ];
    let checked = bed.ctl(&["check", &s])?.refused(3, &words)?;
    let tried = bed.ctl(&["restore", &s, "--detach"])?.refused(3, &words)?;
    ensure!(checked.err == tried.err, "check and restore disagree:\n{}\n{}", checked.err, tried.err);
    store::holds(bed, &s, &[1, 2])?;
    let said = bed.ctl_json(&["restore", &first, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    target.prove(bed).map(|_| ())
}

fn reimage(bed: &mut Bed, session: &str, how: &str) -> Result<()> {
    let tool = bed.dir.join("reimage");
    fs::copy(env!("CARGO_BIN_EXE_reimage"), &tool)?;
    let mut c = bed.command(&tool);
    c.arg(bed.state()).arg(session).arg(how);
    bed.run(&mut c)?.expect(0).map(drop)
}

/// A machine's default limits follow its memory, so those of a slightly larger one are no obstacle, and said; a limit that somebody
/// chose is one.
fn limits_elsewhere(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_join").ready(bed)?;
    target.kill(bed)?;
    let s = target.session.clone();
    let own = |what: &str| -> Result<u64> {
        let all = fs::read_to_string("/proc/self/limits")?;
        let line = all.lines().find(|l| l.starts_with(what)).context("no such limit")?;
        line.split_whitespace().rev().nth(1).context("no hard limit")?.parse().context("not a number")
    };
    let files = own("Max open files")?;
    reimage(bed, &s, "--limited")?;
    if !may_raise(bed)? {
        let words = format!(
            "limit of open files: the program has {} and your hard limit is {files}; raise it first",
            files + 1
        );
        bed.ctl(&["check", &s])?.refused(3, &[&words])?;
    }
    bed.ctl(&["rm", &format!("{s}@2")])?.expect(0)?;
    reimage(bed, &s, "--larger")?;
    let checked = bed.ctl(&["check", &s])?.expect(0)?;
    let said = bed.ctl_json(&["restore", &s, "--detach"])?;
    target.pid = said["pid"].as_i64().unwrap_or(0) as i32;
    if !may_raise(bed)? {
        for (what, name) in [("Max processes", "processes"), ("Max pending signals", "pending signals")] {
            let note = format!("its limit of {name} is {0} instead of {1}: this machine's", own(what)?, own(what)? + 1);
            ensure!(checked.out.contains(&note), "check does not say {note:?}: {}", checked.out);
            ensure!(said["notes"].to_string().contains(&note), "restore does not say {note:?}: {said}");
        }
    }
    target.prove(bed).map(|_| ())
}

/// Whether it is a root with CAP_SYS_RESOURCE (24), to whom no limit is one.
fn may_raise(bed: &Bed) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let caps = status.lines().find_map(|l| l.strip_prefix("CapEff:")).context("no capabilities")?;
    Ok(bed.who.uid() == 0 && u64::from_str_radix(caps.trim(), 16)? >> 24 & 1 != 0)
}
