//! Another thread is in the middle of something, and is known to be (tests/programs/api_states.h): it holds the lock of malloc's arena or of the
//! loader, is inside fork, pthread_create, a handler, an exit. The checkpoint is made, and what that thread was in the middle of goes on, here and
//! restored.
use super::*;

/// Another thread is in it for as long as it is told to.
const STATES: [&str; 9] =
    ["malloc", "malloc-main", "dlopen", "fork", "fork-parent", "handler", "handler-altstack", "create", "exit"];
/// Other threads come by it, again and again: what a thread that is held cannot show, as when libc has blocked all signals.
const OFTEN: [&str; 2] = ["malloc-often", "create-often"];
const DOORS: [&str; 2] = ["agent", "attach"];

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for door in DOORS {
        for what in STATES.into_iter().chain(OFTEN) {
            all.extend(Case::each(&format!("api/beside-{what}-{door}"), move |bed| beside(bed, what, door)));
        }
        all.extend(Case::each(&format!("api/beside-fork-locked-{door}"), move |bed| fork_locked(bed, door)));
        all.extend(Case::each(&format!("api/beside-exit-of-all-{door}"), move |bed| exit_of_all(bed, door)));
        all.extend(Case::each(&format!("api/beside-malloc-with-hooks-{door}"), move |bed| with_hooks(bed, door)));
        all.extend(Case::each(&format!("api/beside-dlopen-first-calls-{door}"), move |bed| first_calls(bed, door)));
    }
    all.extend(Case::each("api/hook-waits-for-malloc", hook_waits_for_malloc));
    all.extend(Case::each("api/in-a-handler", in_a_handler));
    all
}

/// Restored by itself after it was killed, and as it was when it had been given `k` commands: later ones are taken back.
fn again(api: &mut Api, bed: &mut Bed, k: usize) -> Result<()> {
    api.kill(bed)?;
    back_to(api, k)?;
    api.restore(bed, &[])
}

fn back_to(api: &mut Api, k: usize) -> Result<()> {
    for later in k + 1..=api.k {
        fs::remove_file(api.dir.join(format!("do.{later}")))?;
    }
    api.k = k;
    Ok(())
}

fn beside(bed: &mut Bed, what: &str, door: &str) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    // where the arena of the main thread is locked, it cannot call
    let aside = what == "malloc-main";
    if aside {
        api.says(bed, "aside", "")?;
    }
    let checkpoint = if aside { "checkpoint-aside" } else { "checkpoint" };
    // one that has all signals blocked and gets no CPU for 100 ms is left to ptrace
    let by = |api: &Api, bed: &mut Bed| match OFTEN.contains(&what) {
        true => api.door(bed).or_else(|_| store::made_by(bed, &api.session, "attach")),
        false => api.door(bed),
    };
    api.says(bed, &format!("busy {what}"), "held")?;
    api.says(bed, checkpoint, "continued (checkpoint 1 is complete), generation 0")?;
    by(&api, bed)?;
    let k = api.k;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    if !OFTEN.contains(&what) {
        ensure_has(&api.tell(bed, "held")?, "not held: inside 2")?;
    }
    again(&mut api, bed, k)?;
    ensure_has(&api.answer(&k.to_string())?, "restored (restored from checkpoint 1, generation 1)")?;
    api.says(bed, "held", "held")?;
    api.says(bed, checkpoint, "continued (checkpoint 2 is complete), generation 1")?;
    by(&api, bed)?;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    api.says(bed, "checkpoint", "continued (checkpoint 3 is complete), generation 1")?;
    api.end(bed)
}

/// About to make the process, fork has locked all of malloc's arenas: a call of the program's own would wait for that, like any malloc, but ctl's
/// checkpoint needs none.
fn fork_locked(bed: &mut Bed, door: &str) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    let name = api.session.clone();
    // the first call of any: from here on the program is known to its session, and counts
    api.says(bed, "generation", "0")?;
    api.says(bed, "busy fork-locked", "held")?;
    bed.ctl(&["checkpoint", &name, "--door", door])?.expect(0)?;
    api.door(bed)?;
    unharmed::entirely(api.pid)?;
    let k = api.k;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    again(&mut api, bed, k)?;
    api.says(bed, "held", "held")?;
    bed.ctl(&["checkpoint", &name, "--door", door])?.expect(0)?;
    api.door(bed)?;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    api.says(bed, "checkpoint", "continued (checkpoint 3 is complete), generation 1")?;
    api.end(bed)
}

/// A thread has called exit(), whose handlers take their time: what is left of them runs once, what was written is written once, and the status is
/// what it is.
fn exit_of_all(bed: &mut Bed, door: &str) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    let name = api.session.clone();
    let buffered = api.dir.join("buffered");
    api.says(bed, "busy exit-of-all", "held")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.door(bed)?;
    let k = api.k;
    api.says(bed, "held", "held")?;
    let written = || Ok::<_, anyhow::Error>(fs::read_to_string(&buffered)?);
    ensure!(written()?.is_empty(), "written before the end: {}", written()?);
    api.says(bed, "let", "")?;
    api.gone(bed)?;
    api.line("the last handler, 2")?;
    ensure!(written()? == "written as all ends\n", "it has written {:?}", written()?);
    fs::write(&buffered, "")?;
    back_to(&mut api, k)?;
    fs::remove_file(api.dir.join("log"))?;
    let mut restore = bed.ctl_command(&["restore", &name]);
    dormouse_tests::sys::own_session(&mut restore);
    let (mut child, _, err) = bed.spawn(&mut restore)?;
    ensure_has(&api.answer(&k.to_string())?, "restored (restored from checkpoint 1, generation 1)")?;
    let live = proc::descendants(child.id() as i32);
    let pid = live.into_iter().find(|p| proc::status(*p).is_some_and(|s| s.comm == "api")).context("no api")?;
    bed.who.assert_is("the restored api", pid)?;
    api.says(bed, "held", "held")?;
    ensure!(written()?.is_empty(), "written before the end: {}", written()?);
    api.says(bed, "let", "")?;
    let ended = run::end(&mut child, "ctl restore in the foreground", LIMIT)?;
    bed.let_go(&child);
    let (code, said) = (run::code(ended), fs::read_to_string(&err)?);
    ensure!(code == 7, "ctl restore should end with 7, it ended with {code}: {said}");
    api.line("the last handler, 2")?;
    ensure!(written()? == "written as all ends\n", "restored it has written {:?}", written()?);
    Ok(())
}

/// The hook thread has an arena of its own.
fn with_hooks(bed: &mut Bed, door: &str) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "busy malloc", "held")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.door(bed)?;
    order(&api, &["before b", "before a", "after a: made 1", "after b: made 1"])?;
    let k = api.k;
    api.says(bed, "held", "held")?;
    again(&mut api, bed, k)?;
    ensure_has(&api.answer(&k.to_string())?, "restored (restored from checkpoint 1, generation 1)")?;
    order(&api, &["restored a: 1", "restored b: 1"])?;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    api.end(bed)
}

/// In a constructor the loader's lock is held: what the agent interposes is called by another thread for the first time, and does not wait for it, as
/// the C library's own would not.
fn first_calls(bed: &mut Bed, door: &str) -> Result<()> {
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    api.says(bed, "busy dlopen", "held")?;
    api.says(bed, "first-calls", "wrong 0")?;
    api.says(bed, "held", "held")?;
    api.says(bed, "free", "wrong 0")?;
    api.end(bed)
}

/// A hook that needs memory of an arena that another thread has locked takes as long as that one: the checkpoint is refused, naming the hook; and
/// so is the next one. When the lock is free, hooks run and checkpoints are made.
fn hook_waits_for_malloc(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    api.says(bed, "timeout 500", "")?;
    api.says(bed, "hungry", "")?;
    let said = ["its hook a has not returned within 0.5 s", "look at what it waits for", "dormouse_hook_timeout"];
    bed.ctl(&["checkpoint", &name])?.refused(3, &said)?;
    api.says(bed, "held", "held")?;
    bed.ctl(&["checkpoint", &name])?
        .refused(3, &["did not answer within 0.5 s: a hook of an earlier checkpoint may still run"])?;
    unharmed::entirely(api.pid)?;
    store::holds(bed, &name, &[])?;
    api.says(bed, "free", "wrong 0")?;
    api.line("after b: ")?;
    api.says(bed, "timeout 10000", "")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.door(bed)?;
    order(&api, &["before b", "before a", "after a: made 1", "after b: made 1"])?;
    api.end(bed)
}

/// A handler that is known to interrupt nothing but raise() may call: what is not permitted is to interrupt malloc and the like.
fn in_a_handler(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    api.says(bed, "checkpoint-in-handler", "0, generation 0")?;
    api.door(bed)?;
    let k = api.k;
    again(&mut api, bed, k)?;
    ensure!(api.answer(&k.to_string())? == "1, generation 1", "restored it said {}", api.log());
    api.says(bed, "checkpoint-in-handler", "0, generation 1")?;
    api.end(bed)
}
