//! Threads with credentials of their own, beyond what the matrix does with `thr_rights`.
use anyhow::{ensure, Context, Result};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{Bed, Case, Who};

pub fn cases() -> Vec<Case> {
    if !Who::all().contains(&Who::Root) {
        return Vec::new();
    }
    vec![
        Case::new("rights/refused", Who::Root, refused),
        Case::new("rights/inheritable", Who::Root, inheritable),
        Case::new("rights/without-setpcap", Who::Root, without_setpcap),
        Case::new("rights/filtered", Who::Root, filtered),
    ]
}

/// Who may not choose users or groups does not restore a thread that has others, though the process has his own.
fn refused(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_rights").ready(bed)?;
    target.kill(bed)?;
    for args in [&["check"][..], &["restore", "--detach"]] {
        let mut without = bed.command("/usr/bin/setpriv");
        without.args(["--bounding-set=-setuid,-setgid"]).arg(bed.stage.bin("ctl")).args(args).arg(&target.session);
        let words = [
            "its thread ",
            " runs as user 602, and you are user 0",
            "restore it as user 602 or as root",
            "runs with group 502",
            " has [7, 4321] and the program [",
            "you may not choose them (CAP_SETGID)",
        ];
        bed.run(&mut without)?.refused(3, &words)?;
    }
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// What a thread can inherit has to be in the bounding set of who restores it, as a failed capset(2) would leave it all that he has.
fn inheritable(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_rights").ready(bed)?;
    target.kill(bed)?;
    let mut without = bed.command("/usr/bin/setpriv");
    without
        .arg("--bounding-set=-sys_chroot")
        .arg(bed.stage.bin("ctl"))
        .args(["restore", "--detach"])
        .arg(&target.session);
    let words = ["its thread ", "has inheritable capabilities that you cannot give it (0x40000)", "bounding set"];
    bed.run(&mut without)?.refused(3, &words)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// Secure bits are as they were, without the right to choose them.
fn without_setpcap(bed: &mut Bed) -> Result<()> {
    const LESS: [&str; 2] = ["/usr/bin/setpriv", "--bounding-set=-setpcap"];
    let mut target = Start::program("thr_rights").door(Door::Launched).agent().under(&LESS).ready(bed)?;
    target.kill(bed)?;
    let mut restore = bed.command(LESS[0]);
    restore.arg(LESS[1]).arg(bed.stage.bin("ctl")).args(["--json", "restore", "--detach"]).arg(&target.session);
    let said = bed.run(&mut restore)?.expect(0)?.json()?;
    target.pid = said["pid"].as_i64().context("no pid")? as i32;
    target.prove(bed).map(drop)
}

/// Filters are set in all threads by the first, and with them its no_new_privs: that is said.
fn filtered(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_rights").args(["--filtered"]).ready(bed)?;
    target.kill(bed)?;
    let notes = target.restore_with(bed, &[])?["notes"].to_string();
    ensure!(notes.contains("get no_new_privs, which they had not"), "its notes: {notes}");
    for task in std::fs::read_dir(format!("/proc/{}/task", target.pid))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        ensure!(status.contains("NoNewPrivs:\t1\n"), "a thread without: {status}");
    }
    target.end(bed)
}
