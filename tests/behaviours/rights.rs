//! Threads with credentials of their own, beyond what the matrix does with `thr_rights`.
use anyhow::Result;
use dormouse_tests::target::Start;
use dormouse_tests::{Bed, Case, Who};

pub fn cases() -> Vec<Case> {
    let root = Who::all().iter().filter(|who| **who == Who::Root);
    root.map(|who| Case::new("rights/refused", *who, refused)).collect()
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
        ];
        bed.run(&mut without)?.refused(3, &words)?;
    }
    target.restore(bed)?;
    target.prove(bed).map(drop)
}
