//! Hooks: their order, a veto, one that takes too long, a program that is stopped.
use super::*;

/// Their order, in the helper thread; for ctl's checkpoints as for its own; after a restore; and after a failure.
pub(super) fn hooks(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "threads", "2")?;
    bed.ctl(&["checkpoint", &name])?.expect(0)?;
    order(&api, &["before b", "before a", "after a: made 1", "after b: made 1"])?;
    api.says(bed, "checkpoint", "continued (checkpoint 2 is complete), generation 0")?;
    order(&api, &["before b", "before a", "after a: made 2", "after b: made 2"])?;
    api.kill(bed)?;
    api.restore(bed, &[])?;
    ensure_has(&api.answer("3")?, "restored (restored from checkpoint 2, generation 1)")?;
    order(&api, &["restored a: 1", "restored b: 1"])?;
    api.says(bed, "threads", "2")?;
    bed.ctl(&["checkpoint", &name, "--kill"])?.expect(0)?;
    order(&api, &["before b", "before a"])?;
    api.gone(bed)?;
    api.restore(bed, &[])?;
    api.line("restored b: 2")?;
    order(&api, &["restored a: 2", "restored b: 2"])?;
    api.says(bed, "unhook 2", "0")?;
    bed.ctl_fault("publish:1:fail", &["checkpoint", &name])?.expect(9)?;
    let last = api.log();
    ensure!(last.lines().last().is_some_and(|l| l.starts_with("after a: cannot checkpoint")), "the log ends\n{last}");
    api.end(bed)
}

/// With new PIDs, five times, by both doors: the library knows its process and its hook thread again each time.
pub(super) fn new_pids(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", "agent"], None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    for n in 1..=5 {
        let before = api.pid;
        let door = if n % 2 == 0 { "attach" } else { "agent" };
        bed.ctl(&["checkpoint", &name, "--kill", "--door", door])?.expect(0)?;
        api.gone(bed)?;
        api.restore(bed, &["--pids", "fresh"])?;
        ensure!(api.pid != before, "PID {before} is as it was");
        api.line(&format!("restored b: {n}"))?;
        order(&api, &[&format!("restored a: {n}"), &format!("restored b: {n}")])?;
    }
    api.says(bed, "threads", "2")?;
    api.says(bed, "name", &name)?;
    api.says(bed, "checkpoint", "continued (checkpoint 6 is complete), generation 5")?;
    order(&api, &["before b", "before a", "after a: made 6", "after b: made 6"])?;
    api.end(bed)
}

/// The last lines of hooks in its log.
pub(super) fn order(api: &Api, expected: &[&str]) -> Result<()> {
    let hook = |l: &&str| ["before", "after", "restored"].iter().any(|w| l.starts_with(w));
    let log = api.log();
    let lines: Vec<&str> = log.lines().filter(hook).collect();
    ensure!(lines.ends_with(expected), "the hooks should end with {expected:?}:\n{log}");
    Ok(())
}

/// A veto is a refusal that names the hook and the reason; those that ran get their `after`.
pub(super) fn veto(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "veto 1", "")?;
    bed.ctl(&["checkpoint", &name])?.refused(3, &["its hook a vetoed the checkpoint: a transaction is open"])?;
    api.line("after b: hook a vetoed the checkpoint: a transaction is open")?;
    ensure!(!api.log().contains("after a"), "the hook that vetoed has nothing to undo:\n{}", api.log());
    let said = api.tell(bed, "checkpoint")?;
    ensure_has(&said, "error -3 (cannot checkpoint")?;
    ensure_has(&said, "its hook a vetoed the checkpoint: a transaction is open; try again")?;
    store::holds(bed, &name, &[])?;
    api.says(bed, "veto 0", "")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.end(bed)
}

/// A hook that takes too long: refused, naming it; afterwards everything works.
pub(super) fn hook_time_out(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "timeout 200", "")?;
    api.says(bed, "slow 1", "")?;
    bed.ctl(&["checkpoint", &name])?
        .refused(3, &["its hook a has not returned within 0.2 s", "dormouse_hook_timeout"])?;
    bed.ctl(&["checkpoint", &name])?
        .refused(3, &["did not answer within 0.2 s: a hook of an earlier checkpoint may still run"])?;
    api.says(bed, "slow 0", "")?;
    api.line("after b: the recorder")?;
    api.says(bed, "timeout 10000", "")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.end(bed)
}

/// Its hooks cannot run: refused at once, and it stays stopped.
pub(super) fn hooks_stopped(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    let pid = nix::unistd::Pid::from_raw(api.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    let stopped = || Ok(proc::status(api.pid).is_some_and(|s| s.state == 'T'));
    run::until("it is stopped", SOON, stopped)?;
    bed.ctl(&["checkpoint", &name])?.refused(3, &["it is stopped, so its hooks cannot run", "kill -CONT"])?;
    ensure!(stopped()?, "it should still be stopped");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    bed.ctl(&["checkpoint", &name, "--stop"])?.expect(0)?;
    run::until("it is stopped", SOON, stopped)?;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    api.line("after b: made 1")?;
    // what is to be stopped is left to ptrace
    api.door = "attach";
    api.end(bed)
}
