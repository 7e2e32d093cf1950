//! What somebody meets who uses launcher and ctl for the first time: where the output goes, what is said of a file that others
//! wrote to, of what is inherited, of a folder that may not be entered; and that a refusal leaves nothing.
use anyhow::{ensure, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::{run, sys, Bed, Case, Who};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("newcomer/shared-file-has-grown", |bed| grown(bed, false)));
    all.extend(Case::each("newcomer/appended-file-has-grown", |bed| grown(bed, true)));
    all.extend(Case::each("newcomer/log-comes-here", log_comes_here));
    all.extend(Case::each("newcomer/refused-restore-leaves-nothing", refused_leaves_nothing));
    all.extend(Case::each("newcomer/closed-folder", closed_folder));
    all.extend(Case::each("newcomer/inherited", inherited));
    let root = Who::all().iter().filter(|w| **w == Who::Root);
    all.extend(root.map(|w| Case::new("newcomer/namesakes", *w, namesakes)));
    all
}

/// Says `ready`, waits for `gate`, and says `LAST` on its stdout, in a folder of its own.
const WAITS: &str = "
import os, sys, time
os.write(1, b'first\\n')
FILE
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
os.write(1, b'last\\n')
os.write(2, b'last of stderr\\n')
";

fn waits(more: &str) -> String {
    WAITS.replace("FILE", more)
}

/// Python with a script, started by us in a session of its own; when it is ready.
fn python(bed: &mut Bed, dir: &Path, script: &str) -> Result<(Child, PathBuf)> {
    let mut c = bed.command("python3");
    c.args(["-c", script]).current_dir(dir);
    sys::own_session(&mut c);
    let (child, out, _) = bed.spawn(&mut c)?;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    Ok((child, out))
}

/// `ctl checkpoint --pid --kill`, to its end.
fn put_to_sleep(bed: &mut Bed, mut child: Child, name: &str) -> Result<()> {
    bed.ctl(&["checkpoint", "--pid", &child.id().to_string(), "--name", name, "--kill"])?.expect(0)?;
    run::end(&mut child, "python", SOON)?;
    bed.let_go(&child);
    Ok(())
}

fn until_ended(bed: &mut Bed, name: &str) -> Result<()> {
    let live = bed.state().join("sessions").join(name).join("live.json");
    run::until("its end", LIMIT, || Ok(!live.exists()))
}

/// stdout is a file that somebody else wrote to since: said by check and by the restore, with both sizes; but not of one that is
/// appended to, and not of one that is as it was.
fn grown(bed: &mut Bed, append: bool) -> Result<()> {
    let dir = bed.folder()?;
    let set = "import fcntl; fcntl.fcntl(1, fcntl.F_SETFL, os.O_APPEND)";
    let (child, out) = python(bed, &dir, &waits(if append { set } else { "" }))?;
    put_to_sleep(bed, child, "shared")?;
    let quiet = bed.ctl(&["check", "shared"])?.expect(0)?;
    ensure!(!quiet.said().contains("has grown"), "it has not grown: {}", quiet.said());
    OpenOptions::new().append(true).open(&out)?.write_all(b"others wrote this\n")?;
    let note = format!(
        "descriptor 1 ({0}): the file has grown from 6 to 24 bytes since the checkpoint, and the program writes on at byte 6, over \
         what came since; to keep both, restore with --map-path {0}=COPY-OF-IT, or start the program with its output appended (>>)",
        out.display()
    );
    let checked = bed.ctl(&["check", "shared"])?.expect(0)?;
    let restored = bed.ctl(&["restore", "shared", "--detach"])?.expect(0)?;
    for ran in [checked, restored] {
        ensure!(ran.said().contains(&note) != append, "{}: should it say {note:?}?\n{}", ran.command, ran.said());
    }
    fs::write(dir.join("gate"), "")?;
    until_ended(bed, "shared")?;
    let (now, expected) = (
        fs::read_to_string(&out)?,
        match append {
            true => "first\nothers wrote this\nlast\n",
            false => "first\nlast\ns wrote this\n",
        },
    );
    ensure!(now == expected, "the file holds {now:?}, not {expected:?}");
    if append {
        return Ok(());
    }
    // As the note says: a copy keeps both.
    let copy = dir.join("copy");
    fs::write(&copy, "first\n")?;
    bed.give(&copy)?;
    let map = format!("{}={}", out.display(), copy.display());
    let ran = bed.ctl(&["restore", "shared", "--detach", "--map-path", &map])?.expect(0)?;
    ensure!(!ran.said().contains("descriptor 1 ("), "the copy has not grown: {}", ran.said());
    until_ended(bed, "shared")?;
    let both = (fs::read_to_string(&out)?, fs::read_to_string(&copy)?);
    ensure!(both == (expected.into(), "first\nlast\n".into()), "the file and its copy hold {both:?}");
    Ok(())
}

/// A detached session that is restored in the foreground writes here, stdout and stderr apart, and needs the old log no more.
fn log_comes_here(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "old", "--detach", "--", "python3", "-c", &waits("")]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "old", "--kill"])?.expect(0)?;
    let log = bed.state().join("sessions/old/log");
    let before = fs::read_to_string(&log)?;
    let file = dir.join("exported");
    bed.ctl(&["export", "old", &file.display().to_string()])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    let note = format!("descriptors 1, 2 wrote to its session's log ({}), and now to here", log.display());
    let here = |bed: &mut Bed, name: &str| -> Result<()> {
        let ran = bed.ctl(&["restore", name])?.expect(0)?;
        ensure!(ran.out == "last\n", "its stdout should be ours: {}", ran.said());
        ensure!(ran.err.contains(&note), "it should say {note:?}: {}", ran.err);
        ensure!(ran.err.contains("last of stderr\n"), "its stderr should be ours: {}", ran.err);
        Ok(())
    };
    here(bed, "old")?;
    ensure!(fs::read_to_string(&log)? == before, "the old log has grown");
    // What it wrote before is not needed: the session it came from is gone, log and all.
    bed.ctl(&["rm", "old"])?.expect(0)?;
    ensure!(!log.exists(), "the log is there still");
    bed.ctl(&["import", &file.display().to_string(), "--name", "other"])?.expect(0)?;
    bed.ctl(&["check", "other"])?.expect(0)?;
    here(bed, "other")?;
    bed.ctl(&["restore", "other", "--detach"])?.expect(0)?;
    until_ended(bed, "other")?;
    let said = fs::read_to_string(bed.state().join("sessions/other/log"))?;
    ensure!(said == "last\nlast of stderr\n", "detached, it should write to its log: {said:?}");
    Ok(())
}

/// A restore that is refused, or fails before the program runs, leaves no session of the new name, and the old one as it was.
fn refused_leaves_nothing(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let needed = dir.join("needed");
    fs::write(&needed, "x")?;
    bed.give(&needed)?;
    let (child, _) = python(bed, &dir, &waits("f = open('needed')"))?;
    put_to_sleep(bed, child, "web")?;
    let before = bed.ctl_json(&["list"])?;
    let same = |bed: &mut Bed, after: &str| -> Result<()> {
        let now = bed.ctl_json(&["list"])?;
        ensure!(now == before, "{after}, ctl list says {now} instead of {before}");
        let names: Vec<_> = fs::read_dir(bed.state().join("sessions"))?.flatten().map(|e| e.file_name()).collect();
        ensure!(names == ["web"], "{after}, the folders of sessions are {names:?}");
        ensure!(!bed.state().join("sessions/web/log").exists(), "{after}, web has a log, and it has never written one");
        Ok(())
    };
    let ways: [&[&str]; 3] = [&["--as", "new", "--detach"], &["--detach"], &["--as", "new"]];
    for way in ways {
        let args = [&["restore", "web"], way].concat();
        let detach = way.contains(&"--detach");
        let faults = [("read:1:fail", 3), ("build:1:fail", 9), ("wake:1:fail", 9), ("fill:1:kill-self", 9)];
        for (fault, code) in faults.map(|(fault, code)| (format!("restore-{fault}"), code)) {
            let fault = fault.as_str();
            bed.ctl_fault(fault, &args)?.refused(if detach { code } else { 125 }, &["cannot restore web@1"])?;
            same(bed, &format!("{args:?} with {fault}"))?;
        }
        fs::rename(&needed, dir.join("away"))?;
        bed.ctl(&args)?.refused(if detach { 3 } else { 125 }, &["needed: does not exist; put it back"])?;
        fs::rename(dir.join("away"), &needed)?;
        same(bed, &format!("{args:?} refused"))?;
    }
    fs::write(dir.join("gate"), "")?;
    bed.ctl(&["restore", "web", "--as", "new", "--detach"])?.expect(0)?;
    until_ended(bed, "new")
}

/// A folder that may not be searched is said to be that, by the checkpoint's check and by the restore's; root may.
fn closed_folder(bed: &mut Bed) -> Result<()> {
    let (dir, closed) = (bed.folder()?, bed.folder()?);
    let inner = closed.join("inner");
    fs::create_dir(&inner)?;
    fs::write(inner.join("file"), "x")?;
    for path in [&inner, &inner.join("file")] {
        bed.give(path)?;
    }
    let open = |mode: u32| fs::set_permissions(&closed, Permissions::from_mode(mode));
    let file = format!("f = open('{0}/file'); d = os.open('{0}', os.O_RDONLY)", inner.display());
    let (child, _) = python(bed, &dir, &waits(&file))?;
    let pid = child.id().to_string();
    let why =
        format!("permission denied: {} may not be searched; give yourself the right (chmod, chown)", closed.display());
    let judged = |bed: &mut Bed, args: &[&str], more: &str| -> Result<()> {
        let ran = bed.ctl(args)?;
        match bed.who {
            Who::Root => drop(ran.expect(0)?),
            Who::User => {
                let ran = ran.refused(3, &[&why, more])?;
                let lines = ran.err.matches("may not be searched").count();
                ensure!(lines == 2, "one line for each of the two: {}", ran.err);
            }
        }
        Ok(())
    };
    open(0o600)?;
    judged(bed, &["check", "--pid", &pid], "a restore could not open it")?;
    open(0o700)?;
    put_to_sleep(bed, child, "closed")?;
    open(0o600)?;
    judged(bed, &["check", "closed"], "restore as its owner or as root, or pass --map-path")?;
    if bed.who == Who::User {
        judged(bed, &["restore", "closed", "--detach"], "/inner/file: permission denied")?;
    }
    open(0o700)?;
    fs::write(dir.join("gate"), "")?;
    bed.ctl(&["restore", "closed", "--detach"])?.expect(0)?;
    until_ended(bed, "closed")
}

/// What is inherited and would refuse every checkpoint is said at the start, and what to do; the program runs all the same. What can
/// be kept is not mentioned.
fn inherited(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let launcher = bed.stage.bin("launcher").display().to_string();
    let start = |bed: &mut Bed, descriptors: &str, options: &[&str]| -> Result<run::Ran> {
        // The pipe's reader ends with its last writer.
        let script = format!("exec {descriptors} 6</dev/null 7>>file 8>&2; exec \"$@\"");
        let mut c = bed.command("bash");
        c.args(["-c", &script, "-", &launcher, "--name", "web", "--detach"]).args(options);
        c.args(["--", "python3", "-c", &waits("")]).current_dir(&dir);
        bed.run(&mut c)?.expect(0)
    };
    let end = |bed: &mut Bed| -> Result<()> {
        bed.ctl(&["kill", "web"])?.expect(0)?;
        until_ended(bed, "web")
    };
    let pipe = "5> >(cat >/dev/null)";
    let ran = start(bed, pipe, &[])?;
    let words = [
        "launcher: a checkpoint will be refused for what the program inherits, unless it closes it: descriptor 5 (pipe:[",
        "]): the other end of this pipe is outside the process; start it with 5>&-\n",
    ];
    ensure!(words.iter().all(|w| ran.err.contains(w)), "{words:?} should be said: {}", ran.err);
    ensure!(ran.err.lines().count() == 2, "one line, and that it runs: {}", ran.err);
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "web"])?.refused(3, &["descriptor 5 (pipe:["])?;
    end(bed)?;
    let ran = start(bed, pipe, &["--quiet"])?;
    ensure!(ran.said().is_empty(), "--quiet: {}", ran.said());
    end(bed)?;
    let ran = start(bed, pipe, &["--json"])?;
    let first: serde_json::Value = serde_json::from_str(ran.out.lines().next().unwrap_or_default())?;
    ensure!(first["event"] == "inherited" && first["refused"][0]["fds"] == serde_json::json!([5]), "{first}");
    end(bed)?;
    fs::remove_file(dir.join("ready"))?;
    let ran = start(bed, "5>&-", &[])?;
    ensure!(!ran.err.contains("inherits"), "nothing would be refused: {}", ran.err);
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.ctl(&["checkpoint", "web"])?.expect(0)?;
    end(bed)
}

/// Something is mounted over what is open, with files of the same names and inode numbers: each is named, for what it is read from
/// after a restore would be another. (Only root may mount.)
fn namesakes(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let below = dir.join("below");
    fs::create_dir(&below)?;
    let mount = |bed: &mut Bed| -> Result<u64> {
        let mut c = bed.command("mount");
        bed.run(c.args(["-t", "tmpfs", "none"]).arg(&below))?.expect(0)?;
        fs::write(below.join("file"), "x")?;
        Ok(fs::metadata(below.join("file"))?.ino())
    };
    let first = mount(bed)?;
    let open = "f = open('below/file')\np = os.open('below/file', os.O_PATH)\nd = os.open('below', os.O_RDONLY)";
    let (mut child, _) = python(bed, &dir, &waits(open))?;
    let second = mount(bed)?;
    ensure!(first == second, "the two files should have one inode number, not {first} and {second}");
    let pid = child.id().to_string();
    let checked = bed.ctl(&["check", "--pid", &pid])?.refused(3, &["put the file back under that name"])?;
    let number = checked.err.matches("its name leads to another file now, or to none").count();
    ensure!(number == 3, "three descriptors should be named, not {number}: {}", checked.err);
    bed.ctl(&["checkpoint", "--pid", &pid, "--name", "namesakes"])?
        .refused(3, &["its name leads to another file now"])?;
    let unmount = |bed: &mut Bed| bed.command("umount").arg("-l").arg(&below).status();
    unmount(bed)?;
    bed.ctl(&["check", "--pid", &pid])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    run::end(&mut child, "python", SOON)?;
    bed.let_go(&child);
    ensure!(unmount(bed)?.success(), "umount failed");
    Ok(())
}
