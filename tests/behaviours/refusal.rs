//! A program that cannot be captured is refused with all the reasons at once, and is none the worse for it.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{run, store, unharmed, Bed, Case, Who};

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("six/refused", six);
    all.extend(Case::by_both_doors("restricted/landlock", |bed, agent| {
        restricted(bed, agent, "--landlock", &["PID", "Landlock", "; start it without"])
    }));
    all.extend(Case::by_both_doors("mem_guards/no-child", |bed, agent| {
        let words = [
            "shared memory ",
            "guards (MADV_GUARD_INSTALL) hide what it holds there, and no child can be made",
            "; remove them",
        ];
        let mut target = Start::program("mem_guards").args(["--no-child"]).by_agent(agent).ready(bed)?;
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
        unharmed::family(target.pid)?;
        bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &words)?;
        unharmed::family(target.pid)?;
        target.prove(bed).map(|_| ())
    }));
    all.extend(Case::by_both_doors("restricted/keys", keys));
    all.extend(Case::each("fd_locks/taken", taken));
    all.extend(Case::each("aio/unread", unread));
    all.extend(Case::each("odd-thread/code32", |bed| code32(bed, &[])));
    all.extend(Case::each("odd-thread/code32-pause", |bed| code32(bed, &["--pause"])));
    all.extend(Case::each("odd-thread/code32-by-agent", |bed| code32_by_agent(bed, &[])));
    all.extend(Case::each("odd-thread/code32-pause-by-agent", |bed| code32_by_agent(bed, &["--pause"])));
    all.extend(Case::each("odd-thread/leaves", leaves));
    all.extend(Case::each("thr_pkru-by-agent", keyed_by_agent));
    all.extend(Case::each("odd-thread/not-dumpable-by-agent", dispatched_not_dumpable));
    all.extend(Case::each("mem_lockall/tight", tight));
    for (what, why) in [("filter", "a filter decides what it receives"), ("in-flight", "descriptors are in flight")] {
        all.extend(Case::by_both_doors(&format!("odd-socket/{what}"), move |bed, agent| {
            odd_socket(bed, agent, what, why)
        }));
    }
    for (left, why) in [
        ("unread", "has ended, with 5 bytes that the program has not read yet; checkpoint when it has read them"),
        ("error", "has ended with an error that the program has not been told yet; checkpoint when it has used"),
    ] {
        all.extend(Case::each(&format!("tcp_ended/{left}"), move |bed| ended(bed, left, why)));
    }
    for (what, why) in ODD {
        all.extend(Case::by_both_doors(&format!("odd-thread/{what}"), move |bed, agent| {
            odd_thread(bed, agent, what, why)
        }));
    }
    for what in ["dispatch", "block"] {
        all.extend(Case::each(&format!("odd-thread/{what}"), move |bed| odd_thread(bed, false, what, DISPATCHED)));
        all.extend(Case::each(&format!("odd-thread/{what}-by-agent"), move |bed| dispatched(bed, what)));
    }
    all
}

/// What a thread may have of its own, and what the refusal says.
const ODD: [(&str, &str); 2] = [
    ("seccomp", "it is in strict seccomp mode: the first foreign system call would kill it"),
    ("files", "it has descriptors, or a working directory and umask, of its own"),
];
/// What ptrace says of a thread with Syscall User Dispatch.
const DISPATCHED: &str = "has its system calls dispatched to itself";

/// A thread that differs from the leader in what a restore could not give back: refused by its TID, and it lives on.
fn odd_thread(bed: &mut Bed, agent: bool, what: &str, why: &str) -> Result<()> {
    let mut target = Start::program("thr_odd").args(["--what", what]).by_agent(agent).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["thread ", why, "; "])?;
    if why != DISPATCHED {
        bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &["thread ", why])?;
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// A thread whose frame lies in what an earlier checkpoint left has that kept.
fn leaves(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_odd").args(["--what", "leaves"]).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?
        .refused(3, &["a thread is just leaving an earlier checkpoint", "try again"])?;
    unharmed::but_for_the_documented(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// Not even a signal of ours may come to that thread: the agent has said that it must not be called, ptrace looks, and both are named.
fn dispatched(bed: &mut Bed, what: &str) -> Result<()> {
    let mut target = Start::program("thr_odd").args(["--what", what]).by_agent(true).ready(bed)?;
    let (name, agents) =
        (target.session.clone(), "its system calls are dispatched to itself (prctl PR_SET_SYSCALL_USER_DISPATCH)");
    for options in [&[][..], &["--kill"]] {
        let args = [&["checkpoint", &name], options].concat();
        bed.ctl(&args)?.refused(3, &["thread ", DISPATCHED, "cannot be called either", agents])?;
        unharmed::entirely(target.pid)?;
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &[agents, "leave out --door agent"])?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &name, &[])?;
    target.prove(bed).map(|_| ())
}

/// Nor if only the agent could look at it: then it is seen that its signal is caught no more.
fn dispatched_not_dumpable(bed: &mut Bed) -> Result<()> {
    for what in ["dispatch", "block"] {
        let start = Start::program("thr_odd").args(["--what", what, "--no-dump"]);
        let mut target = start.by_agent(true).ready(bed)?;
        let (name, pid) = (target.session.clone(), target.pid);
        let user = bed.who == Who::User && bed.who.uid() != 0;
        let why = if user { "its agent's signal (63) has no handler any more" } else { DISPATCHED };
        bed.ctl(&["checkpoint", &name])?.refused(3, &[why])?;
        unharmed::entirely(pid)?;
        let why = if user { why } else { "its system calls are dispatched to itself" };
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &[why, "leave out --door agent"])?;
        unharmed::entirely(pid)?;
        store::holds(bed, &name, &[])?;
        target.prove(bed)?;
    }
    Ok(())
}

/// A thread in a 32-bit code segment, in which the blob could not run: found out in the freeze, named by its TID, and it goes on there.
fn code32(bed: &mut Bed, args: &[&str]) -> Result<()> {
    let mut target = Start::program("thr_code32").args(args.iter().copied()).ready(bed)?;
    let tid = second_thread(target.pid)?;
    let words = [&format!("thread {tid} runs 32-bit code at the moment"), "; "].map(|w| w.to_string());
    for options in [&[][..], &["--kill"], &["--stop"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &[&words[0], &words[1]])?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &target.session, &[])?;
    target.prove(bed).map(|_| ())
}

/// The same where the agent is called first: the thread that comes in from such code, or waits in a call of it, is named by both doors.
fn code32_by_agent(bed: &mut Bed, args: &[&str]) -> Result<()> {
    let mut target = Start::program("thr_code32_dynamic").args(args.iter().copied()).by_agent(true).ready(bed)?;
    let (name, what) =
        (target.session.clone(), format!("thread {} runs 32-bit code at the moment", second_thread(target.pid)?));
    for options in [&[][..], &["--kill"]] {
        let args = [&["checkpoint", &name], options].concat();
        let said = bed.ctl(&args)?.refused(3, &["cannot be called either"])?;
        ensure!(said.err.matches(&what).count() == 2, "both doors should say {what:?}: {}", said.err);
        unharmed::entirely(target.pid)?;
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &[&what, "leave out --door agent"])?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &name, &[])?;
    target.prove(bed).map(|_| ())
}

/// A signal could be the end of a thread whose stack has a memory protection key: its agent is not called, ptrace comes in.
fn keyed_by_agent(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_pkru").by_agent(true).ready(bed)?;
    let (name, thread) = (target.session.clone(), format!("thread {}", second_thread(target.pid)?));
    let words = [thread.as_str(), "has a memory protection key, and could not be used in a signal"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &[words[0], words[1], "leave out --door agent"])?;
    unharmed::entirely(target.pid)?;
    let made = bed.ctl(&["checkpoint", &name])?.expect(0)?;
    let said = [made.out, made.err].concat();
    ensure!(words.iter().all(|w| said.contains(w)), "it should say why it was made by attach: {said}");
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

fn second_thread(pid: i32) -> Result<String> {
    let tids = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let mut tids = tids.filter_map(|t| t.ok()?.file_name().into_string().ok());
    tids.find(|t| *t != pid.to_string()).context("it has a second thread")
}

/// Only in the freeze is it found out, whatever is to become of the program; then it runs on, with what it has.
fn restricted(bed: &mut Bed, agent: bool, what: &str, said: &[&str]) -> Result<()> {
    let mut target = Start::program("restricted").args([what]).by_agent(agent).ready(bed)?;
    let all = [&[][..], &["--kill"], &["--stop"]];
    // the agent cannot leave it stopped
    for options in &all[..if agent { 2 } else { 3 }] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, said)?;
        unharmed::entirely(target.pid)?;
    }
    store::holds(bed, &target.session, &[])?;
    target.prove(bed).map(|_| ())
}

/// A lock that somebody else has taken meanwhile: `check` and `restore` say whose it is; restored once it is free.
fn taken(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("fd_locks").ready(bed)?;
    target.kill(bed)?;
    let mut script = bed.command("python3");
    let path = target.dir.join("ranges");
    let text = "import fcntl,signal,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX,1,29)\nopen(sys.argv[1]+'.taken','w')\nsignal.pause()";
    script.args(["-c", text]).arg(&path);
    let (mut holder, _, _) = bed.spawn(&mut script)?;
    let mark = target.dir.join("ranges.taken");
    run::until("the other program's lock", SOON, || Ok(mark.exists()))?;
    let words = [&format!("held by PID {} (python3)", holder.id()), "POSIX write lock of bytes 10 to 29", "; end that"];
    let words = words.map(|w| w.to_string());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    bed.ctl(&["check", &target.session])?.refused(3, &words)?;
    bed.ctl(&["restore", &target.session, "--detach"])?.refused(3, &words)?;
    holder.kill()?;
    holder.wait()?;
    bed.let_go(&holder);
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

/// A completion of asynchronous I/O that nobody has read yet is not lost: it is refused.
fn unread(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("aio").args(["--unread"]).ready(bed)?;
    let words = ["mapping ", "completed asynchronous I/O", "; let the program read it"];
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &words)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// Where all that is mapped is locked and no more may be, there is no way in: refused, with the limit that would do, and it does.
/// (Root's is no limit.)
fn tight(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_lockall").args(["--tight"]).ready(bed)?;
    let tried = bed.ctl(&target.checkpoint_args(&[]))?;
    if tried.code() != 0 {
        tried.refused(3, &["mlockall(MCL_FUTURE)", "limit of locked memory", "prlimit --pid", "--memlock="])?;
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// Keys are not kept, and that is said, of each keyring once; a program without any hears nothing of it.
fn keys(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut plain = Start::program("restricted").by_agent(agent).ready(bed)?;
    let mut target = Start::program("restricted").args(["--keys"]).by_agent(agent).ready(bed)?;
    let mut said = |t: &Target, options: &[&str]| -> Result<String> {
        let args = t.checkpoint_args(&[&["--json"], options].concat());
        Ok(bed.ctl(&args)?.expect(0)?.json()?["reported"].to_string())
    };
    ensure!(said(&plain, &[])? == "[]", "a program without keys should have nothing reported: {}", said(&plain, &[])?);
    for options in [&[][..], &["--kill"]] {
        let said = said(&target, options)?;
        for keyring in ["process keyring: ", "keyring of thread ", "session keyring of-a-test: "] {
            ensure!(said.matches(keyring).count() == 1, "{keyring:?} should be reported once: {said}");
        }
    }
    let session = target.session.clone();
    target.by_the_door(bed)?;
    target.gone(bed)?;
    let inspected = bed.ctl(&["inspect", &session])?.expect(0)?;
    ensure!(inspected.out.contains("not kept     session keyring of-a-test"), "inspect: {}", inspected.out);
    plain.prove(bed).map(|_| ())
}

/// Six objects, six lines; `check` and `checkpoint` say the same, in text and in JSON.
fn six(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("six").by_agent(agent).ready(bed)?;
    let pid = target.pid.to_string();
    let objects = std::fs::read_to_string(target.dir.join("objects"))?;
    let checked = bed.ctl(&["check", "--pid", &pid])?.refused(3, &["cannot checkpoint"])?;
    let tried = bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint"])?;
    let killed = bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &["cannot checkpoint"])?;
    for words in [
        "it handles faults of the program's memory (userfaultfd), which is not kept; let the program unregister its memory (UFFDIO_UNREGISTER) and close it",
        "userfaultfd watches it, which is not kept; let the program unregister it (UFFDIO_UNREGISTER) before the checkpoint",
        "(anon_inode:[perf_event]): this kind of kernel object is not kept yet; close it before the checkpoint",
    ] {
        ensure!(checked.err.contains(words), "it should say {words:?}: {}", checked.err);
    }
    let lines = |said: &str| {
        said.lines().filter(|l| l.contains("descriptor ") || l.contains("mapping")).map(reason).collect::<Vec<_>>()
    };
    let said = lines(&checked.err);
    ensure!(said.len() == 6, "six objects should be refused in six lines, not {}:\n{}", said.len(), checked.err);
    ensure!(
        said == lines(&tried.err) && said == lines(&killed.err),
        "check and checkpoint disagree:\n{}\n{}",
        checked.err,
        tried.err
    );
    for object in objects.lines() {
        let (kind, which) = object.rsplit_once(' ').context("DIR/objects")?;
        let which = which.trim_start_matches("0x");
        let named = said.iter().filter(|line| {
            line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word.trim_start_matches("0x") == which)
        });
        ensure!(named.count() == 1, "one line should name {kind} {which}:\n{}", checked.err);
    }
    ensure!(said.iter().all(|line| line.contains("; ")), "each line should say what can be done:\n{}", checked.err);
    let json = bed.ctl(&["--json", "check", "--pid", &pid])?.expect(3)?.json()?;
    let reasons = json["error"]["reasons"].as_array().map_or(0, Vec::len);
    ensure!(reasons == 6, "--json should give six reasons, it gives {reasons}: {json}");
    unharmed::entirely(target.pid)?;
    store::holds(bed, &target.session, &[])?;
    target.prove(bed).map(|_| ())
}

/// The reason without what was attempted, which may be said before it on the same line.
fn reason(line: &str) -> String {
    let from = line.find("descriptor ").or(line.find("mapping")).unwrap_or(0);
    line[from..].trim().to_owned()
}

/// A socket with what cannot be kept: refused by its descriptor, and it stays as it is.
fn odd_socket(bed: &mut Bed, agent: bool, what: &str, why: &str) -> Result<()> {
    let mut target = Start::program("sock_odd").args(["--what", what]).by_agent(agent).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["descriptor ", why, "let the program "])?;
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &["descriptor ", why])?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// A connection that has ended with something that the program has not seen: refused, and it sees it.
fn ended(bed: &mut Bed, left: &str, why: &str) -> Result<()> {
    let mut target = Start::program("tcp_ended").args(["--left", left]).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["descriptor ", "its TCP connection ", why])?;
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &["descriptor ", why])?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}
