//! Critical sections: a checkpoint waits for their end, or says which one it waited for in vain.
use super::*;

/// Two threads are each twice in a critical section: a checkpoint waits until the last has left it.
pub(super) fn critical_nested(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    let k = api.begin(bed, "nested")?;
    api.answer(&k)?;
    api.line("first: entered")?;
    api.line("second: entered")?;
    let (mut ctl, _, err) = bed.spawn(&mut bed.ctl_command(&["checkpoint", &name]))?;
    // It waits, if it is seen to have said so in the program's block.
    run::until("ctl waits for the critical sections", SOON, || {
        ensure!(ctl.try_wait()?.is_none(), "ctl did not wait: {}", fs::read_to_string(&err)?);
        Ok(proc::word(api.pid, WAITER)? != 0)
    })?;
    store::holds(bed, &name, &[])?;
    fs::write(api.dir.join("leave"), "")?;
    let status = run::end(&mut ctl, "ctl checkpoint", LIMIT)?;
    bed.let_go(&ctl);
    ensure!(status.success(), "ctl checkpoint: {}", fs::read_to_string(&err)?);
    api.line("both left")?;
    store::holds(bed, &name, &[1])?;
    ensure!(proc::word(api.pid, WAITER)? == 0, "the block still names a waiter");
    api.end(bed)
}

/// Where the block has the key of who waits for a critical section's end (wire/src/api.rs).
pub(super) const WAITER: u64 = 0x444f_524c_0000 + 48;

/// One that is not left: busy, which names it; its own checkpoint too.
pub(super) fn critical_too_long(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "disable", "")?;
    api.says(bed, "disable", "")?;
    bed.ctl(&["checkpoint", &name])?
        .refused(6, &["it is in a critical section (dormouse_disable, 2 deep), for 10 s", "dormouse_enable"])?;
    ensure!(proc::word(api.pid, WAITER)? == 0, "the block still names a waiter");
    let said = api.tell(bed, "checkpoint")?;
    ensure_has(&said, "error -6 (cannot checkpoint")?;
    api.says(bed, "enable", "0")?;
    api.says(bed, "enable", "0")?;
    api.says(bed, "enable", "-2")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.end(bed)
}

/// A checkpoint by the clock that a critical section keeps from being made is said, and the next one is made.
pub(super) fn critical_tick(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--every", "300ms"], None)?;
    let name = api.session.clone();
    api.says(bed, "disable", "")?;
    let log = bed.state().join("sessions").join(&name).join("log");
    let said = || {
        Ok(fs::read_to_string(&log)
            .is_ok_and(|l| l.contains("it is in a critical section (dormouse_disable, 1 deep), for 10 s")))
    };
    run::until("the refusal in the session's log", LIMIT, said)?;
    let before = store::numbers(bed, &name).len();
    api.says(bed, "enable", "0")?;
    run::until("the next checkpoint", LIMIT, || Ok(store::numbers(bed, &name).len() > before))?;
    api.end(bed)
}
