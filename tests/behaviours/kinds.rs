//! What is said of kinds of open files that cannot be kept, or only in part: by name, by both doors, and the program is none the worse for it.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::target::{Door, Start, Target};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case, Who};

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("inotify/hidden", hidden);
    all.extend(Case::by_both_doors("inotify/unread", unread));
    all.extend(Case::by_both_doors("fanotify/hidden", fanotify_hidden));
    all.extend(Case::by_both_doors("fanotify/unread", fanotify_unread));
    all.extend(Case::by_both_doors("fanotify/perm", |bed, agent| {
        if bed.who != Who::Root {
            return Ok(());
        }
        let mut target = Start::program("fanotify").args(["--what", "perm"]).by_agent(agent).ready(bed)?;
        let why = "its marks let others wait for the program's answer (FAN_OPEN_PERM";
        refused(bed, &mut target, &["descriptor ", why, "let it remove those marks before the checkpoint"])
    }));
    all.extend(Case::by_both_doors("fifo/outside", fifo_outside));
    all.extend(Case::by_both_doors("memfd/secret", |bed, agent| {
        let mut target = Start::program("mem_memfd").args(["--what", "secret"]).by_agent(agent).ready(bed)?;
        refused(bed, &mut target, &["secret memory (memfd_secret)"])
    }));
    for (program, what, why) in [
        ("sysv_shm", "shared", "is marked to go, and other processes are attached to it"),
        ("fd_proc", "other", "which may be another one at a restore; let the program close it"),
        ("fd_proc", "thread", "it is about a thread, descriptor or mapping"),
        ("fd_mqueue", "unlinked", "it is a message queue that was unlinked"),
        ("fd_mqueue", "notified", "the program is to be notified of a message (mq_notify)"),
    ] {
        all.extend(Case::by_both_doors(&format!("{program}/{what}"), move |bed, agent| {
            let start = Start::program(program).args(["--what", what]);
            let start = if what == "shared" && agent {
                start.preloaded(bed)?
            } else {
                start.by_agent(agent && what != "shared")
            };
            let mut target = start.ready(bed)?;
            refused(bed, &mut target, &[why])
        }));
    }
    for (what, why) in [
        ("nobody", "is not kept: nobody has it open"),
        ("joined", "with other bytes around, and with which they come cannot be seen"),
        ("gone", "whose sender has gone, and with which bytes they come cannot be seen"),
    ] {
        all.extend(Case::by_both_doors(&format!("tree_rights/{what}"), move |bed, agent| {
            let mut target = Start::program("tree_rights").args(["--what", what]).by_agent(agent).ready(bed)?;
            refused_in_the_freeze(bed, &mut target, &["descriptor ", "in flight in its queue", why])
        }));
    }
    all.extend(Case::by_both_doors("tree_shares/apart", shared_apart));
    all.extend(Case::each("tree_shares/ends", a_sharer_ends));
    all.extend(Case::each("tree_shares/by-attach", sharers_by_attach));
    all.extend(Case::each("tree_shares/outside", a_sharer_outside));
    for (what, why) in [
        ("eventfd", "an eventfd is registered (IORING_REGISTER_EVENTFD)"),
        ("poll", "1 requests are in flight, and wait for a descriptor"),
        ("timeout", "it has had 2 requests and 1 completions"),
        ("submitted", "1 requests wait to be submitted"),
        ("buffers", "buffers are provided to it (group 777)"),
        ("registered", "its descriptor is registered (IORING_REGISTER_RING_FDS)"),
        ("worker", "it has had 2 requests and 1 completions: some are in flight"),
    ] {
        all.extend(Case::by_both_doors(&format!("uring/{what}"), move |bed, agent| {
            let mut target = Start::program("uring").args(["--what", what]).by_agent(agent).ready(bed)?;
            refused_in_the_freeze(bed, &mut target, &["descriptor ", why])
        }));
    }
    for (what, why) in [
        ("pipe", "is registered at place 3, and of all files but sockets the kernel tells only the path"),
        ("closed", "is registered at place 3, of which the process has no descriptor"),
    ] {
        all.extend(Case::by_both_doors(&format!("uring_files/{what}"), move |bed, agent| {
            let mut target = Start::program("uring_files").args(["--what", what]).by_agent(agent).ready(bed)?;
            refused(bed, &mut target, &["descriptor ", why, "IORING_UNREGISTER_FILES"])
        }));
    }
    for (what, why) in [
        ("epoll", "(IORING_SETUP_SQPOLL), and it is in an epoll set, which together is not kept yet"),
        (
            "limited",
            "(IORING_SETUP_SQPOLL), and the process has a limit of its address space (RLIMIT_AS), which together",
        ),
        ("attached", "submits the requests of several rings (IORING_SETUP_SQPOLL with IORING_SETUP_ATTACH_WQ)"),
    ] {
        all.extend(Case::by_both_doors(&format!("uring_sqpoll/{what}"), move |bed, agent| {
            let mut target = Start::program("uring_sqpoll").args(["--what", what]).by_agent(agent).ready(bed)?;
            refused_in_the_freeze(bed, &mut target, &["descriptor ", why])
        }));
    }
    all.extend(Case::by_both_doors("uring_owner/ended", |bed, agent| {
        let mut target = Start::program("uring_owner").args(["--what", "ended"]).by_agent(agent).ready(bed)?;
        let why = "it belongs to one thread (IORING_SETUP_SINGLE_ISSUER), which is none of the program's, or has ended";
        refused_in_the_freeze(bed, &mut target, &["descriptor ", why])
    }));
    all.extend(Case::by_both_doors("mem_mlock/in-the-window", locked_in_the_window));
    all.extend(Case::each("sysv_shm/removed", segment_removed));
    all.extend(Case::each("fd_mqueue/gone", queue_gone));
    all.extend(Case::by_both_doors("pidfd/stranger", stranger));
    all.extend(Case::by_both_doors("pidfd/given-up", given_up));
    all
}

/// What is locked between the look and the freeze is locked after a restore.
fn locked_in_the_window(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("mem_mlock").args(["--what", "late"]).by_agent(agent).ready(bed)?;
    let args = target.checkpoint_args(&["--kill"]);
    let dir = target.dir.clone();
    let made = bed.ctl_stopped("freeze", &args, |_| {
        std::fs::write(dir.join("act"), "")?;
        dormouse_tests::run::until("the lock", std::time::Duration::from_secs(10), || Ok(dir.join("acted").exists()))
    })?;
    made.expect(0)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// Two that share, while the leader of their session, who has borne both, has ended.
fn shared_apart(bed: &mut Bed, agent: bool) -> Result<()> {
    let start = Start::program("tree_shares").args(["--what", "apart"]).door(Door::Launched);
    let mut target = if agent { start.agent() } else { start }.ready(bed)?;
    let why = "it shares its working directory and umask (CLONE_FS) with process ";
    let words = ["cannot checkpoint", ": process ", why, "cannot be born to that again", "unshare(2)"];
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &words)?;
        unharmed::family(target.pid)?;
    }
    store::holds(bed, &target.session.clone(), &[])?;
    target.prove(bed).map(drop)
}

/// Those who have one descriptor table are taken by ptrace, whose agents they are: one would connect while another runs.
fn sharers_by_attach(bed: &mut Bed) -> Result<()> {
    let start = Start::program("tree_shares").args(["--what", "files"]).door(Door::Launched);
    let mut target = start.agent().ready(bed)?;
    let why = "another process has its descriptors or memory, too (CLONE_FILES, CLONE_VM)";
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", why, "leave out --door agent"])?;
    unharmed::family(target.pid)?;
    target.agent = false;
    let said = bed.ctl(&["checkpoint", &target.session.clone()])?.expect(0)?;
    ensure!(said.err.contains("made by attach (ptrace), not by its agent") && said.err.contains(why), "{}", said.err);
    unharmed::family(target.pid)?;
    target.prove(bed).map(drop)
}

/// What a program shares with a process that is not captured is not lost unsaid.
fn a_sharer_outside(bed: &mut Bed) -> Result<()> {
    for (what, object) in
        [("fs", "its working directory and umask (CLONE_FS)"), ("files", "its descriptors (CLONE_FILES)")]
    {
        let mut target = Start::program("tree_shares").args(["--what", what]).ready(bed)?;
        let a = proc::children(target.pid).first().context("no child")?.to_string();
        let words = ["cannot", object, &format!("with PID {}", target.pid), "checkpoint that process"];
        bed.ctl(&["check", "--pid", &a])?.refused(3, &words)?;
        bed.ctl(&["checkpoint", "--pid", &a, "--name", "apart"])?.refused(3, &words)?;
        unharmed::family(target.pid)?;
        target.end(bed)?;
    }
    Ok(())
}

/// One of those who have a descriptor table ends in the freeze: nothing of ours stays in it.
fn a_sharer_ends(bed: &mut Bed) -> Result<()> {
    for phase in ["fork", "thaw"] {
        let mut target = Start::program("tree_shares").args(["--what", "files"]).door(Door::Launched).ready(bed)?;
        let before = proc::descriptors(target.pid);
        let c = *proc::children(target.pid).get(1).context("C")?;
        let d = *proc::children(c).first().context("D")?;
        let kill = |_| Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(d), nix::sys::signal::SIGKILL)?);
        let ran = bed.ctl_stopped(phase, &target.checkpoint_args(&[]), kill)?;
        unharmed::family(target.pid).with_context(|| format!("{phase}: {}", ran.said()))?;
        let left = || Ok(proc::descriptors(target.pid) == before);
        run::until("all to have left the table", SOON, left).with_context(|| {
            format!("{:?} are open, {before:?} were; {}", proc::descriptors(target.pid), ran.said())
        })?;
        target.end(bed)?;
    }
    Ok(())
}

/// A segment that was removed meanwhile is missed, by its number and size.
fn segment_removed(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("sysv_shm").ready(bed)?;
    target.kill(bed)?;
    let listed = std::fs::read_to_string("/proc/sysvipc/shm")?;
    let pid = target.pid.to_string();
    let mut ours = listed.lines().map(|l| l.split_ascii_whitespace().collect::<Vec<_>>());
    let ours = ours.find(|w| w.get(4) == Some(&pid.as_str())).context("its segment")?;
    let mut ipcrm = bed.command("ipcrm");
    ensure!(ipcrm.args(["-m", ours[1]]).status()?.success(), "ipcrm");
    let words =
        [format!("System V shared memory {} (key 0x00000000, 16394 bytes)", ours[1]), "not there any more".into()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    bed.ctl(&["check", &target.session])?.refused(3, &words)?;
    bed.ctl(&["restore", &target.session, "--detach"])?.refused(3, &words).map(drop)
}

/// A queue that is gone with messages in it is missed; one that was empty is made again.
fn queue_gone(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("fd_mqueue").ready(bed)?;
    target.kill(bed)?;
    let script =
        "import ctypes,sys\nlibc=ctypes.CDLL(None)\nfor n in sys.argv[1:]: assert libc.mq_unlink(n.encode())==0";
    let names = [0, 1].map(|i| format!("/dormouse-test-{}-{i}", target.pid));
    let mut unlink = bed.command("python3");
    ensure!(unlink.args(["-c", script]).args(&names).status()?.success(), "mq_unlink");
    let words = ["descriptor ", "the queue is not there any more, and 3 messages were in it"];
    let said = bed.ctl(&["check", &target.session])?.refused(3, &words)?;
    ensure!(!said.err.contains(&names[1]), "the empty queue is no obstacle: {}", said.err);
    bed.ctl(&["restore", &target.session, "--detach"])?.refused(3, &words).map(drop)
}

/// A FIFO that somebody else writes to is an external end.
fn fifo_outside(bed: &mut Bed, agent: bool) -> Result<()> {
    let path = bed.folder()?.join("outside");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    bed.give(&path)?;
    let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
    let start = Start::program("fd_fifo").args(["--outside".into(), path.display().to_string()]);
    let mut target = start.by_agent(agent).ready(bed)?;
    std::io::Write::write_all(&mut writer, b"here")?;
    refused(bed, &mut target, &["descriptor ", "the other end of this pipe is outside the process", "--external"])
}

/// A handle of its parent, which is no part of it.
fn stranger(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("fd_pidfd").args(["--what", "stranger"]).by_agent(agent).ready(bed)?;
    refused(
        bed,
        &mut target,
        &["descriptor ", "it is a handle of PID ", "which is not the program's own", "--external"],
    )
}

/// The same, given up: the restored one has a handle of a process that has ended.
fn given_up(bed: &mut Bed, agent: bool) -> Result<()> {
    let start = Start::program("fd_pidfd").args(["--what", "stranger", "--given-up"]);
    let mut target = start.by_agent(agent).ready(bed)?;
    let said = reported(bed, &target, &["--external", "close", "--kill"])?;
    ensure!(said.contains("after a restore of a process that has ended"), "reported: {said}");
    target.by_the_door(bed)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// A watch of what has no name that this user could find. Root asks the kernel.
fn hidden(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("inotify").args(["--hidden"]).by_agent(agent).ready(bed)?;
    if bed.who == Who::Root {
        target.checkpoint(bed)?;
        return target.prove(bed).map(|_| ());
    }
    refused(bed, &mut target, &["descriptor ", "what its watch 1 is about (inode ", "run ctl as root"])
}

/// Events that were not read are the running program's; a restored one has none of them, which is said.
fn unread(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("inotify").args(["--unread"]).by_agent(agent).ready(bed)?;
    let said = reported(bed, &target, &[])?;
    ensure!(said.contains("inotify): 32 bytes of events that the program has not read yet"), "reported: {said}");
    unharmed::entirely(target.pid)?;
    target.kill(bed)?;
    target.restore(bed)?;
    std::fs::write(target.dir.join("restored"), "")?;
    target.prove(bed)?;
    // and the one that runs on has it
    let mut target = Start::program("inotify").args(["--unread"]).by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(|_| ())
}

/// A mark of what has no name that this user could find. Root asks the kernel.
fn fanotify_hidden(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("fanotify").args(["--what", "hidden"]).by_agent(agent).ready(bed)?;
    if bed.who == Who::Root {
        target.checkpoint(bed)?;
        return target.prove(bed).map(|_| ());
    }
    refused(bed, &mut target, &["descriptor ", "what its mark is about (inode ", "run ctl as root"])
}

/// As with inotify.
fn fanotify_unread(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("fanotify").args(["--what", "unread"]).by_agent(agent).ready(bed)?;
    let said = reported(bed, &target, &[])?;
    ensure!(said.contains("fanotify]): events that the program has not read yet: after"), "reported: {said}");
    unharmed::entirely(target.pid)?;
    target.kill(bed)?;
    target.restore(bed)?;
    std::fs::write(target.dir.join("restored"), "")?;
    target.prove(bed)?;
    let mut target = Start::program("fanotify").args(["--what", "unread"]).by_agent(agent).ready(bed)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(|_| ())
}

/// What a checkpoint reports.
fn reported(bed: &mut Bed, target: &Target, options: &[&str]) -> Result<String> {
    let args = target.checkpoint_args(&[&["--json"], options].concat());
    Ok(bed.ctl(&args)?.expect(0)?.json()?["reported"].to_string())
}

/// Refused by `check` and by `checkpoint`, whatever is to become of it, in these words; nothing is stored, and it goes on.
fn refused(bed: &mut Bed, target: &mut Target, words: &[&str]) -> Result<()> {
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, words)?;
    refused_in_the_freeze(bed, target, words)
}

/// The same of what changes from one moment to the next, or is asked of an open file itself: a check does not know it.
fn refused_in_the_freeze(bed: &mut Bed, target: &mut Target, words: &[&str]) -> Result<()> {
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, words)?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &target.session.clone(), &[])?;
    target.prove(bed).map(|_| ())
}
