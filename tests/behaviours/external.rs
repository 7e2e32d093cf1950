//! External ends beyond the standard streams: refused, unless the caller gives them up; and what is at 0 when a server is
//! started by inetd.
use anyhow::{ensure, Result};
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{unharmed, Bed, Case};
use std::os::unix::net::UnixListener;

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("external/given-up", given_up);
    all.extend(Case::by_both_doors("external/inetd", inetd));
    for what in ["pipe", "eventfd", "memfd", "pair", "datagrams", "packets"] {
        all.extend(Case::by_both_doors(&format!("fd_shared/{what}-refused"), move |bed, agent| {
            shared(bed, agent, what)
        }));
        let given_up = move |bed: &mut Bed, agent| shared_given_up(bed, agent, what, false);
        all.extend(Case::by_both_doors(&format!("fd_shared/{what}-given-up"), given_up));
    }
    let sabotage = |bed: &mut Bed, agent| shared_given_up(bed, agent, "pipe", true);
    all.extend(Case::by_both_doors("fd_shared/pipe-given-up-sabotage", sabotage));
    all
}

/// Refused with the option that allows it; given up in part, in whole; said by the checkpoint, by check and by the restore, which
/// can decide anew.
fn given_up(bed: &mut Bed, agent: bool) -> Result<()> {
    let path = bed.folder()?.join("outside");
    let _listener = UnixListener::bind(&path)?;
    bed.give(&path)?;
    let start = Start::program("fd_external").args(["--unix".into(), path.display().to_string()]);
    let mut target = start.by_agent(agent).ready(bed)?;
    let pid = target.pid.to_string();
    let file = target.dir.join("instead");
    std::fs::write(&file, "instead")?;
    bed.give(&file)?;
    let file41 = format!("41={}", file.display());
    let all = ["descriptor 40", "descriptor 41", "descriptor 42", "--external close", "40=close or 40=PATH"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &all)?;
    bed.ctl(&["check", "--pid", &pid])?.refused(3, &all)?;
    let part = ["--external", "40=close", "--external", &file41];
    let left = bed.ctl(&target.checkpoint_args(&part))?.refused(3, &["descriptor 42", "42=close"])?;
    ensure!(!left.err.contains("descriptor 41"), "41 is decided: {}", left.err);
    unharmed::entirely(target.pid)?;
    let whole = ["--external", "close", "--external", &file41];
    bed.ctl(&["check", "--pid", &pid, whole[0], whole[1], whole[2], whole[3]])?.expect(0)?;
    let made = bed.ctl(&target.checkpoint_args(&[&whole[..], &["--kill", "--json"]].concat()))?.expect(0)?.json()?;
    let said = made["reported"].to_string();
    for line in
        ["descriptor 40", "after a restore it has ended", "descriptor 41", "after a restore it is /", "descriptor 42"]
    {
        ensure!(said.contains(line), "the checkpoint should report {line:?}: {said}");
    }
    target.by_the_door(bed)?;
    target.gone(bed)?;
    let session = target.session.clone();
    bed.ctl(&["check", &session, "--external", "42=/nowhere"])?.refused(3, &["/nowhere does not exist", "42=PATH"])?;
    let notes = bed.ctl(&["restore", &session, "--detach"])?.expect(0)?;
    for line in ["descriptor 40 (", "has ended now", "descriptor 41 (", "no longer watches descriptor 41"] {
        ensure!(notes.err.contains(line), "the restore should say {line:?}: {}", notes.err);
    }
    let listed = bed.ctl_json(&["list"])?;
    target.pid = listed["sessions"][0]["pid"].as_i64().unwrap_or(0) as i32;
    target.prove(bed).map(|_| ())
}

/// What another process holds too is refused, with who that is; the two go on talking through it.
fn shared(bed: &mut Bed, agent: bool, what: &str) -> Result<()> {
    let mut target = two_processes(bed, agent, &["--what", what])?;
    let words = ["descriptor", "40", "holds it too", " (fd_shared)", "end that process", "--external 40=close"];
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &words)?;
    }
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// Not below launcher, which would count the second one to the session.
fn two_processes(bed: &mut Bed, agent: bool, args: &[&str]) -> Result<Target> {
    let start = Start::program("fd_shared").args(args.iter().copied());
    if agent { start.preloaded(bed)? } else { start }.ready(bed)
}

/// Given up, it has ended in the restored program, or is closed, and that is said.
fn shared_given_up(bed: &mut Bed, agent: bool, what: &str, sabotage: bool) -> Result<()> {
    let args = ["--what", what, "--given-up", "--sabotage"];
    let mut target = two_processes(bed, agent, &args[..if sabotage { 4 } else { 3 }])?;
    let args = target.checkpoint_args(&["--external", "close", "--kill", "--json"]);
    let said = bed.ctl(&args)?.expect(0)?.json()?["reported"].to_string();
    let becomes = if ["eventfd", "memfd"].contains(&what) { "is closed" } else { "has ended" };
    ensure!(said.contains(&format!("(fd_shared) holds it too; after a restore it {becomes}")), "{said}");
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    if sabotage {
        return target.fail(bed);
    }
    // what has ended is kept as that by the next one
    bed.ctl(&target.checkpoint_args(&["--kill"]))?.expect(0)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// A TCP connection at 0 and 1, as inetd gives it: restored, they are those of the restoring command.
fn inetd(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("fd_external").args(["--inetd"]).by_agent(agent).ready(bed)?;
    let made = bed.ctl(&target.checkpoint_args(&["--kill", "--json"]))?.expect(0)?.json()?;
    let said = made["reported"].to_string();
    ensure!(said.contains("TCP connection") && said.contains("the restoring command's descriptor 0"), "{said}");
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}
