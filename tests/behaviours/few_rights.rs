//! Root with fewer capabilities, as in a container: what it can do still, and what it is told.
use anyhow::{ensure, Context, Result};
use dormouse_tests::target::{Door, Start, Target};
use dormouse_tests::{proc, Bed, Case, Who};
use std::process::Command;

pub fn cases() -> Vec<Case> {
    let as_root =
        |name: &str, body: fn(&mut Bed) -> Result<()>| Case::new(format!("few-rights/{name}"), Who::Root, body);
    if !Who::all().contains(&Who::Root) {
        return Vec::new();
    }
    vec![
        as_root("without-sys-time", |bed| goes_on(bed, "-sys_time", false)),
        as_root("without-choosing-pids", |bed| goes_on(bed, "-sys_time,-sys_admin,-checkpoint_restore", true)),
        as_root("without-setfcap", without_setfcap),
        as_root("narrower-bounding-set", narrower),
    ]
}

/// The same command, with these capabilities only.
fn with(bed: &Bed, set: &str, inner: &Command) -> Command {
    let mut c = bed.command("setpriv");
    c.args(["--inh-caps", "-all", "--bounding-set", set]).arg(inner.get_program()).args(inner.get_args());
    c
}

/// A program that has been started by launcher with these capabilities only, and killed by ctl.
fn killed(bed: &mut Bed, set: &str) -> Result<Target> {
    let start = Start::program("clock").door(Door::Launched).agent();
    let mut target = start.under(&["setpriv", "--inh-caps", "-all", "--bounding-set", set]).ready(bed)?;
    let kill = with(bed, set, &bed.ctl_command(&target.checkpoint_args(&["--kill"])));
    bed.run(&mut { kill })?.expect(0)?;
    target.gone(bed)?;
    Ok(target)
}

fn goes_on(bed: &mut Bed, set: &str, private: bool) -> Result<()> {
    let mut target = killed(bed, set)?;
    let mut restore = with(bed, set, &bed.ctl_command(&["--json", "restore", &target.session, "--detach"]));
    let said = bed.run(&mut restore)?.expect(0)?.json()?;
    target.pid = said["pid"].as_i64().context("no pid")? as i32;
    let levels = proc::status(target.pid).context("it is gone")?.ns_pids.len();
    ensure!(levels == 1 + usize::from(private), "it has PIDs in {levels} namespaces: {said}");
    target.prove(bed).map(drop)
}

/// What cannot be given back of its bounding set is said, and nothing where nothing is lacking.
fn narrower(bed: &mut Bed) -> Result<()> {
    // it has none of them, or what it has would be missed
    let start = Start::program("heartbeat").door(Door::Launched).agent();
    let start = start.under(&["setpriv", "--securebits", "+noroot", "--inh-caps", "-all"]);
    let mut target = start.ready(bed)?;
    target.kill(bed)?;
    let ask = bed.ctl_command(&["--json", "check", &target.session]);
    let mask = format!("{:#x}", 1u64 << 25); // CAP_SYS_TIME
    for (set, said) in [("-sys_time", true), ("+all", false)] {
        let mut check = with(bed, set, &ask);
        let notes = bed.run(&mut check)?.expect(0)?.json()?.to_string();
        let words = format!("had capabilities in its bounding set ({mask}) which yours lacks");
        ensure!(notes.contains(&words) == said, "with {set} it says {notes}");
    }
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// Nothing of it can be had: it is said what is missing, and what would do.
fn without_setfcap(bed: &mut Bed) -> Result<()> {
    const SET: &str = "-all,+setuid,+setgid,+chown,+dac_override,+kill,+fowner";
    let mut target = killed(bed, SET)?;
    let words = ["cannot restore", "a private PID namespace", "CAP_SETFCAP", "or use --pids fresh"];
    let mut restore = with(bed, SET, &bed.ctl_command(&["restore", &target.session, "--detach"]));
    bed.run(&mut restore)?.refused(3, &words)?;
    let mut fresh = bed.ctl_command(&["--json", "restore", &target.session, "--detach", "--pids", "fresh"]);
    fresh = with(bed, SET, &fresh);
    let said = bed.run(&mut fresh)?.expect(0)?.json()?;
    target.pid = said["pid"].as_i64().context("no pid")? as i32;
    target.prove(bed).map(drop)
}
