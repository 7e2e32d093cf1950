//! System V semaphores and message queues: what others use, too, what is gone, and what is in use where it would be put back.
use anyhow::{ensure, Context, Result};
use dormouse_tests::case::Skip;
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{store, unharmed, Bed, Case, Who};

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("tree_sem/shared", shared);
    all.extend(Case::by_both_doors("tree_sem/others", others));
    all.extend(Case::by_both_doors("tree_sem/before", before));
    all.extend(Case::each("tree_sem/in-use", in_use));
    for program in ["tree_sem", "tree_msg"] {
        all.extend(Case::each(&format!("{program}/removed"), move |bed| removed(bed, program)));
    }
    all.extend(Case::each("tree_msg/client", client));
    all
}

/// Not a session's process: that one would be the program's, too.
fn start(bed: &mut Bed, what: &str, agent: bool) -> Result<Target> {
    let start = Start::program("tree_sem").args(["--what", what]);
    if agent { start.preloaded(bed)? } else { start }.ready(bed)
}

/// What is to be given back to a set that another process uses, too, is refused; only the freeze knows it.
fn shared(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "shared", agent)?;
    let words =
        ["semaphore set ", "the program is to give back to it when it ends (SEM_UNDO), and PID ", " uses it, too"];
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &words)?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &target.session.clone(), &[])?;
    target.prove(bed).map(|_| ())
}

/// A set that another process uses, too, stays as it is, and is missed where it is gone.
fn others(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = start(bed, "others", agent)?;
    let args = target.checkpoint_args(&["--json", "--kill"]);
    let said = bed.ctl(&args)?.expect(0)?.json()?["reported"].to_string();
    ensure!(said.contains(" uses it, too: it stays as it is"), "reported: {said}");
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed)?;
    let words = ["semaphore set ", "it is not there any more", "what was in it others used, too"];
    bed.ctl(&["restore", &target.session, "--as", "again", "--detach"])?.refused(3, &words).map(drop)
}

/// A set that nobody has used since a process began is not asked what that is to give back to it, which would leave a trace in it.
fn before(bed: &mut Bed, agent: bool) -> Result<()> {
    // this thread's children only, where no other case's program may have been asked about it
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC)
        .map_err(|e| Skip(format!("an IPC namespace for the test needs root: {e}")))?;
    let mut target = start(bed, "before", agent)?;
    for _ in 0..2 {
        target.checkpoint(bed)?;
    }
    target.prove(bed).map(|_| ())
}

/// Beside the original, whose they are.
fn in_use(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("tree_sem").ready(bed)?;
    target.checkpoint(bed)?;
    let words =
        ["semaphore set ", "it would be put back to what it was at the checkpoint, and PID ", "end that process"];
    bed.ctl(&["restore", &target.session, "--as", "beside", "--detach", "--pids", "private"])?.refused(3, &words)?;
    target.prove(bed).map(|_| ())
}

/// The numbers of the program's objects.
fn numbers(of: &Target) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(of.dir.join("objects")).context("its objects")?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Removes objects; whether the first of them was there.
fn remove(bed: &Bed, option: &str, ids: &[String]) -> Result<bool> {
    let mut first = None;
    for id in ids {
        let there = bed.command("ipcrm").args([option, id]).stderr(std::process::Stdio::null()).status()?.success();
        first.get_or_insert(there);
    }
    Ok(first == Some(true))
}

/// What was removed meanwhile is made again under its number, by who may choose one; else it is missed.
fn removed(bed: &mut Bed, program: &str) -> Result<()> {
    let mut target = Start::program(program).ready(bed)?;
    let (option, name) = if program == "tree_sem" { ("-s", "semaphore set") } else { ("-q", "message queue") };
    let ids = numbers(&target)?;
    let id = ids.first().context("no object")?;
    target.kill(bed)?;
    ensure!(remove(bed, option, &ids[..1])?, "ipcrm");
    if bed.who == Who::Root {
        let said = target.restore_with(bed, &[])?.to_string();
        ensure!(said.contains(&format!("{name} {id} (key ")), "said: {said}");
        ensure!(said.contains("it was gone, and is made again"), "said: {said}");
        return target.prove(bed).map(|_| ());
    }
    let words = [
        format!("{name} {id} (key "),
        "it is not there any more".into(),
        "to make it again under its number needs a right that you have not; restore it as root".into(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    bed.ctl(&["check", &target.session])?.refused(3, &words)?;
    bed.ctl(&["restore", &target.session, "--detach"])?.refused(3, &words)?;
    remove(bed, option, &ids[1..]).map(drop)
}

/// What a client has put in, which has ended, stays as it is if it is there; root makes a queue that is gone again, with it.
fn client(bed: &mut Bed) -> Result<()> {
    for gone in [false, true] {
        // nobody else may choose its number
        if gone && bed.who != Who::Root {
            continue;
        }
        let mut target = Start::program("tree_msg").args(["--what", "client"]).ready(bed)?;
        target.kill(bed)?;
        ensure!(!gone || remove(bed, "-q", &numbers(&target)?[..1])?, "ipcrm");
        target.restore(bed)?;
        target.prove(bed)?;
    }
    Ok(())
}
