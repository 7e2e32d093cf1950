//! Terminals inside a tree, beyond what the matrix does with `tty_pair` and `tree_pty`: what is refused, their numbers, and real programs that make some.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::pty::Pty;
use dormouse_tests::target::Start;
use dormouse_tests::{proc, run, unharmed, Bed, Case};
use std::process::Command;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (what, why) in [
        ("status", "a status waits in it, in packet mode, that the program has not read yet; let the program read it"),
        ("discipline", "it has line discipline 27, and only the ordinary one is kept; end what has set it"),
        ("flood", "bytes of input wait in it, which is more than can be put in again (4000); let the program read"),
        ("many-lines", "more lines wait in it than can be put in again (2000 bytes); let the program read"),
        ("async", "it tells by a signal when there is something to read (O_ASYNC), and would do so as it is looked at; clear O_ASYNC"),
        ("written", "it has been written to and its other end was never open"),
    ] {
        let body = move |bed: &mut Bed, agent| refused(bed, agent, what, why);
        all.extend(Case::by_both_doors(&format!("ptys/{what}"), body));
    }
    // of a session it would belong to that
    let held = "(tty_pair) holds it too, and would be cut off from a restored program; close it, or end that process";
    all.extend(Case::each("ptys/held", move |bed| refused(bed, false, "held", held)));
    all.extend(Case::each("ptys/number", number));
    all.extend(Case::each("ptys/script", script));
    all.extend(Case::each("ptys/python", python));
    all
}

/// By its descriptor, and it stays as it is.
fn refused(bed: &mut Bed, agent: bool, what: &str, why: &str) -> Result<()> {
    let mut target = Start::program("tty_pair").args(["--what", what]).by_agent(agent).ready(bed)?;
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &["descriptor", why])?;
        // by the agent it may be just about to let go of the last one
        unharmed::entirely(target.pid)?;
    }
    // to know this one takes a descriptor that nobody opens
    if !matches!(what, "written" | "many-lines") {
        bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &["descriptor", why])?;
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// A terminal has its number again, or what says that it has not.
fn number(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("tty_pair").ready(bed)?;
    let link = |pid: i32| {
        let mut all = proc::descriptors(pid).into_iter();
        all.find_map(|(_, l)| l.strip_prefix("/dev/pts/")?.parse::<u32>().ok()).context("it has no terminal")
    };
    let was = link(target.pid)?;
    target.kill(bed)?;
    let restored = target.restore_with(bed, &[])?;
    let is = link(target.pid)?;
    let said = restored["notes"].to_string();
    let note = format!("terminal /dev/pts/{was} is /dev/pts/");
    ensure!((was == is) != said.contains(&note), "/dev/pts/{was} is {is} now, and said is {said}");
    target.prove(bed).map(drop)
}

/// A shell under a program that has the master of its terminal: what it knows is there after a restore onto another terminal, and so is the way to it.
fn session_of(bed: &mut Bed, command: &[&str]) -> Result<()> {
    let mut pty = Pty::new((24, 80))?;
    let mut launched = bed.launcher_command(&["--name", "job", "--"]);
    launched.args(command).env("TERM", "dumb").env("PS1", "PROMPT> ");
    let mut child = pty.spawn(bed, &mut launched)?;
    drop(launched);
    // what is typed before it has taken the terminal over, it throws away
    let prompts = ["# ", "$ ", "> "];
    run::until("a prompt", LIMIT, || Ok(prompts.iter().any(|p| pty.said().ends_with(p))))?;
    pty.type_in("known=abc; echo ready-$((6*7))\n")?;
    pty.wait_for("ready-42")?;
    for round in 1..3 {
        bed.ctl(&["checkpoint", "job"])?.expect(0)?;
        // some of it is still on its way
        pty.type_in("echo on-$((6*7))\n")?;
        bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
        run::end(&mut child, "the first one", LIMIT)?;
        bed.let_go(&child);
        pty = Pty::new((24, 80))?;
        let mut restore: Command = bed.ctl_command(&["restore", "job"]);
        child = pty.spawn(bed, &mut restore)?;
        drop(restore);
        let live = bed.state().join("sessions/job/live.json");
        run::until("the session live again", SOON, || Ok(live.exists()))?;
        pty.type_in(&format!("echo $known-$((42+{round})) $(tty)\n"))?;
        pty.wait_for(&format!("abc-{} /dev/pts/", 42 + round))?;
        // job control is that of the inner terminal
        pty.type_in("sleep 1000\n")?;
        let sleeps = |bed: &mut Bed| -> Result<bool> {
            let pid = bed.ctl_json(&["list"])?["sessions"][0]["pid"].as_i64().context("no pid")? as i32;
            let comm = |p: i32| std::fs::read_to_string(format!("/proc/{p}/comm")).unwrap_or_default();
            Ok(proc::descendants(pid).into_iter().any(|p| comm(p) == "sleep\n"))
        };
        run::until("the job", SOON, || sleeps(bed))?;
        pty.type_in("\x03")?;
        run::until("its end", SOON, || sleeps(bed).map(|s| !s))?;
    }
    pty.type_in("exit\n")?;
    run::end(&mut child, "the last one", LIMIT)?;
    bed.let_go(&child);
    Ok(())
}

fn script(bed: &mut Bed) -> Result<()> {
    session_of(bed, &["script", "-q", "-c", "bash --norc --noprofile -i", "/dev/null"])
}

fn python(bed: &mut Bed) -> Result<()> {
    session_of(bed, &["python3", "-c", "import pty; pty.spawn(['bash', '--norc', '--noprofile', '-i'])"])
}
