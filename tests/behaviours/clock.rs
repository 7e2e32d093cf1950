//! A program from a machine whose CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of this one's (src/bin/reimage.rs makes it so): they go on for it.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::target::Start;
use dormouse_tests::{proc, run, Bed, Case, Target, Who};
use std::fs;

/// How far ahead reimage sets them, in ns.
const AHEAD: [i64; 2] = [1_000_000 * 1_000_000_000, 2_000_000 * 1_000_000_000];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::by_both_doors("clock/goes-on", |bed, agent| goes_on(bed, agent, &[])));
    all.extend(Case::each("clock/goes-on-privately", |bed| goes_on(bed, true, &["--pids", "private"])));
    all.extend(Case::each("clock/of-new-pids", new_pids));
    all.extend(Case::each("clock/of-this-boot", this_boot));
    if Who::all().contains(&Who::Root) {
        all.push(Case::new("clock/another-for-children", Who::Root, for_children));
    }
    all
}

/// Its clocks as the program sees them: monotonic, boottime.
fn clocks(target: &Target) -> Result<[i64; 2]> {
    request(target, "ask", "answer")?;
    let text = fs::read_to_string(target.dir.join("answer"))?;
    let mut words = text.split_whitespace().map(str::parse);
    let mut next = || words.next().context("the answer is short")?.context("the answer is no number");
    Ok([next()?, next()?])
}

fn request(target: &Target, ask: &str, answer: &str) -> Result<()> {
    let (ask, answer) = (target.dir.join(ask), target.dir.join(answer));
    let _ = fs::remove_file(&answer);
    fs::write(&ask, "")?;
    run::until("an answer", SOON, || Ok(answer.exists()))
}

/// Those of this machine.
fn here() -> Result<[i64; 2]> {
    let ns = |id| -> Result<i64> {
        let t = nix::time::clock_gettime(id)?;
        Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
    };
    Ok([ns(nix::time::ClockId::CLOCK_MONOTONIC)?, ns(nix::time::ClockId::CLOCK_BOOTTIME)?])
}

/// Leaves a checkpoint of it as it would have been made on a machine that has run for longer, and nothing else.
fn from_another_machine(bed: &mut Bed, target: &mut Target) -> Result<()> {
    target.checkpoint(bed)?;
    // Not everyone may enter the folder that the tool was built in.
    let tool = bed.dir.join("reimage");
    fs::copy(env!("CARGO_BIN_EXE_reimage"), &tool)?;
    let mut c = bed.command(&tool);
    c.arg(bed.state()).arg(&target.session).arg("--later");
    bed.run(&mut c)?.expect(0)?;
    bed.ctl(&["kill", &target.session])?.expect(0)?;
    target.gone(bed)
}

fn goes_on(bed: &mut Bed, agent: bool, options: &[&str]) -> Result<()> {
    let mut target = Start::program("clock").by_agent(agent).ready(bed)?;
    let mut seen = clocks(&target)?;
    from_another_machine(bed, &mut target)?;
    let said = bed.ctl_json(&["check", &target.session])?;
    ensure!(said.to_string().contains("runs in a time namespace"), "check does not say it: {said}");
    seen = [seen[0] + AHEAD[0], seen[1] + AHEAD[1]];
    for cycle in 0..3 {
        let said = target.restore_with(bed, options)?;
        ensure!(said["notes"].to_string().contains("runs in a time namespace"), "nothing is said of it: {said}");
        let now = clocks(&target)?;
        let most = here()?;
        for i in [0, 1] {
            let range = seen[i]..=most[i] + AHEAD[i];
            ensure!(range.contains(&now[i]), "cycle {cycle}: clock {i} is {}, not in {range:?}", now[i]);
        }
        seen = now;
        ours_alone(&said)?;
        same_sessions(bed, &target)?;
        if cycle == 0 {
            request(&target, "again", "armed")?;
            // it runs on in its namespace
            target.checkpoint(bed)?;
        }
        if cycle < 2 {
            // by one door, and by the other
            target.agent = agent && cycle == 0;
            target.kill(bed)?;
        }
    }
    target.prove(bed).map(drop)
}

/// What it runs sees the same sessions as we do, though start times are others for it.
fn same_sessions(bed: &mut Bed, target: &Target) -> Result<()> {
    if bed.who == Who::User || proc::status(target.pid).is_none_or(|s| s.ns_pids.len() > 1) {
        return Ok(());
    }
    let ours = bed.ctl_json(&["list"])?;
    let ctl = bed.ctl_command(&["list", "--json"]);
    let mut c = bed.command("nsenter");
    c.arg(format!("--time=/proc/{}/ns/time", target.pid)).arg(ctl.get_program()).args(ctl.get_args());
    let theirs = bed.run(&mut c)?.expect(0)?.json()?;
    let state = |list: &serde_json::Value| list["sessions"][0]["state"].clone();
    ensure!(state(&ours) == "live" && state(&ours) == state(&theirs), "we see {ours}, it sees {theirs}");
    Ok(())
}

/// Whoever has restored it is in its own time namespace, and so are the children that it will have.
fn ours_alone(said: &serde_json::Value) -> Result<()> {
    let pid = said["supervisor"].as_i64().context("no supervisor is told")? as i32;
    let of = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let own = of(std::process::id() as i32, "time")?;
    for kind in ["time", "time_for_children"] {
        ensure!(of(pid, kind)? == own, "the supervisor (PID {pid}) has another {kind}");
    }
    Ok(())
}

/// With new PIDs an ordinary user gets no namespace, and is told.
fn new_pids(bed: &mut Bed) -> Result<()> {
    if bed.who == Who::Root {
        return goes_on(bed, true, &["--pids", "fresh"]);
    }
    let mut target = Start::program("clock").ready(bed)?;
    from_another_machine(bed, &mut target)?;
    let said = target.restore_with(bed, &["--pids", "fresh"])?.to_string();
    let parts = ["CLOCK_MONOTONIC is 9999", " s behind what the program has seen", "use --pids private"];
    ensure!(parts.iter().all(|p| said.contains(p)), "this is not said: {said}");
    let (now, most) = (clocks(&target)?, here()?);
    ensure!(now[0] <= most[0], "it has a clock of its own: {now:?}, here {most:?}");
    target.end(bed)
}

/// Where no clock is behind there is no namespace.
fn this_boot(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("clock").ready(bed)?;
    target.kill(bed)?;
    let said = target.restore_with(bed, &[])?;
    ensure!(!said.to_string().contains("time namespace"), "it is said to be in one: {said}");
    let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/time"));
    ensure!(proc::alive(target.pid) && of(target.pid)? == of(std::process::id() as i32)?, "it is in another one");
    target.prove(bed).map(drop)
}

/// A program whose children would have other clocks is refused, and runs on.
fn for_children(bed: &mut Bed) -> Result<()> {
    let mut c = bed.command("python3");
    c.args(["-c", "import ctypes, time; ctypes.CDLL(None).unshare(0x80); time.sleep(60)"]);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    let pid = child.id() as i32;
    let of = |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    run::until("a time namespace", SOON, || Ok(of("time_for_children") != of("time")))?;
    let why = ["cannot checkpoint", "time namespace", "it has made another one for its children", "unshare --time"];
    bed.ctl(&["checkpoint", "--pid", &pid.to_string(), "--name", "c"])?.refused(3, &why)?;
    ensure!(proc::alive(pid), "it has ended");
    child.kill()?;
    run::end(&mut child, "python3", SOON)?;
    bed.let_go(&child);
    Ok(())
}
