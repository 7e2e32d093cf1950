//! Programs under seccomp filters: kept by both doors with what the agent knows, by root with what the kernel tells, and refused where a filter would not
//! let us in or out again.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::{Door, Start, Target};
use dormouse_tests::{run, unharmed, Bed, Case, Who};

/// What is let through, whatever the door.
const KEPT: [&str; 4] = ["errno", "two", "threads", "kill"];
/// Threads with different filters, how many their agent has seen, and how many a thread has at most.
const APART: [(&str, u32, u32); 3] = [("nested", 2, 2), ("first", 2, 2), ("beside", 5, 2)];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for what in KEPT {
        all.extend(kept("seccomp", what));
    }
    for (what, seen, most) in APART {
        all.extend(Case::each(&format!("thr_seccomp/{what}"), move |bed| apart(bed, what, seen, most)));
    }
    all.push(Case::new("thr_seccomp/fresh", Who::Root, |bed| fresh(bed, "nested")));
    all.push(Case::new("thr_seccomp/sabotage", Who::Root, |bed| sabotage(bed, "thr_seccomp", "nested")));
    for what in ["errno", "threads", "raw", "no-socket", "no-munmap"] {
        let case = move |bed: &mut Bed| by_root(bed, "seccomp", what);
        all.push(Case::new(format!("seccomp/{what}-told-by-the-kernel"), Who::Root, case));
    }
    for what in ["nested", "beside", "first", "many"] {
        let case = move |bed: &mut Bed| by_root(bed, "thr_seccomp", what);
        all.push(Case::new(format!("thr_seccomp/{what}-told-by-the-kernel"), Who::Root, case));
    }
    all.extend(Case::each("thr_seccomp/deadly", deadly_apart));
    all.extend(Case::each("seccomp/not-let-through", not_let_through));
    all.extend(Case::each("seccomp/deadly", deadly));
    all.extend(Case::each("seccomp/set-in-between", set_in_between));
    all.push(Case::new("seccomp/not-known", Who::User, not_known));
    all
}

fn kept(program: &'static str, what: &'static str) -> Vec<Case> {
    let mut all = Vec::new();
    for (door, agent) in [("agent", true), ("attach", false)] {
        let case = move |bed: &mut Bed| cycles(bed, program, what, agent);
        all.extend(Case::each(&format!("{program}/{what}-{door}"), case));
    }
    all.extend(Case::each(&format!("{program}/{what}-run-on-restored"), move |bed| {
        run_on_restored(bed, program, what)
    }));
    all.extend(Case::each(&format!("{program}/{what}-sabotage"), move |bed| sabotage(bed, program, what)));
    all
}

fn start(bed: &mut Bed, what: &str) -> Result<Target> {
    start_of(bed, "seccomp", what)
}

fn start_of(bed: &mut Bed, program: &str, what: &str) -> Result<Target> {
    Start::program(program).args(["--what", what]).door(Door::Launched).agent().ready(bed)
}

/// How many filters each thread has, in the order of the threads.
fn counts(pid: i32) -> Result<Vec<String>> {
    let mut tids: Vec<i32> = std::fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|e| e.ok().and_then(|e| e.file_name().to_str()?.parse().ok()).context("a thread without a number"))
        .collect::<Result<_>>()?;
    tids.sort_unstable();
    let of = |tid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))?;
        let line = status.lines().find(|l| l.starts_with("Seccomp_filters:"));
        Ok(line.context("the kernel does not tell filters")?.to_owned())
    };
    tids.into_iter().map(of).collect()
}

/// Five times in a row, and once more, after which it runs on. With `agent` by its agent, else by ptrace.
fn cycles(bed: &mut Bed, program: &str, what: &str, agent: bool) -> Result<()> {
    let mut target = start_of(bed, program, what)?;
    target.agent = agent;
    let before = counts(target.pid)?;
    for _ in 0..5 {
        target.kill(bed)?;
        target.restore(bed)?;
        let now = counts(target.pid)?;
        ensure!(now == before, "filters of its threads: {before:?}, restored {now:?}");
    }
    target.checkpoint(bed)?;
    target.by_the_door(bed)?;
    let said = bed.ctl_json(&["inspect", &target.session.clone()])?["summary"]["seccomp_filters"].as_u64();
    let filters = if what == "errno" { 1 } else { 2 };
    ensure!(said == Some(filters), "inspect should tell of {filters} filters, not {said:?}");
    target.prove(bed).map(drop)
}

/// With new PIDs.
fn fresh(bed: &mut Bed, what: &str) -> Result<()> {
    let start = Start::program("thr_seccomp").args(["--what", what]).env("DORMOUSE_TEST_FRESH_PIDS", "1");
    let mut target = start.door(Door::Launched).agent().ready(bed)?;
    target.agent = false;
    target.kill(bed)?;
    target.restore_fresh(bed)?;
    target.prove(bed).map(drop)
}

fn run_on_restored(bed: &mut Bed, program: &str, what: &str) -> Result<()> {
    let mut target = start_of(bed, program, what)?;
    for agent in [true, false] {
        target.agent = agent;
        target.checkpoint(bed)?;
        unharmed::entirely(target.pid)?;
    }
    bed.ctl(&["kill", &target.session.clone()])?.expect(0)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

fn sabotage(bed: &mut Bed, program: &str, what: &str) -> Result<()> {
    let start = Start::program(program).args(["--what", what, "--sabotage"]).door(Door::Launched).agent();
    let mut target = start.ready(bed)?;
    target.agent = program != "thr_seccomp";
    target.kill(bed)?;
    target.restore(bed)?;
    target.fail(bed)
}

/// Without any agent: the kernel tells root the filters, which are suspended in the freeze.
fn by_root(bed: &mut Bed, program: &str, what: &str) -> Result<()> {
    let mut target = Start::program(program).args(["--what", what]).ready(bed)?;
    let before = counts(target.pid)?;
    for _ in 0..3 {
        target.kill(bed)?;
        target.restore(bed)?;
        let now = counts(target.pid)?;
        ensure!(now == before, "filters of its threads: {before:?}, restored {now:?}");
    }
    target.checkpoint(bed)?;
    target.by_the_door(bed)?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// What a filter answers with an error is not called: the call is named, and root is told that he may.
fn not_let_through(bed: &mut Bed) -> Result<()> {
    let mut target = start(bed, "no-socket")?;
    let words = ["cannot checkpoint", "its seccomp filters do not let through what its agent calls: socket"];
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    target.agent = false;
    let words = ["cannot checkpoint", "do not let through calls that a checkpoint makes inside it (socket)", "root"];
    let pid = target.pid.to_string();
    match bed.who {
        Who::Root => {
            // without a door asked for, by the one that is open
            let said = bed.ctl(&["checkpoint", &target.session.clone()])?.expect(0)?;
            ensure!(
                said.err.contains("made by attach (ptrace), not by its agent: its seccomp filters"),
                "{}",
                said.err
            );
            target.checkpoint(bed)?
        }
        _ => {
            bed.ctl(&["check", "--pid", &pid])?.refused(3, &words)?;
            bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &words)?;
        }
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// What a filter kills for is not called, suspended or not.
fn deadly(bed: &mut Bed) -> Result<()> {
    let mut target = start(bed, "kill-socket")?;
    for agent in [true, false] {
        target.agent = agent;
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", "seccomp filters", "socket", "; "])?;
        unharmed::entirely(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// Threads that have different filters: only the kernel can tell whose are whose, and tells root.
fn apart(bed: &mut Bed, what: &str, seen: u32, most: u32) -> Result<()> {
    let mut target = start_of(bed, "thr_seccomp", what)?;
    let before = counts(target.pid)?;
    let why =
        format!("its agent has seen {seen} filters being set, and not all of its threads have them ({most} at most)");
    let why = why.as_str();
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", why, "leave out --door agent"])?;
    target.agent = false;
    match bed.who {
        Who::Root => {
            let said = bed.ctl(&["checkpoint", &target.session.clone(), "--kill"])?.expect(0)?;
            ensure!(said.err.contains("made by attach (ptrace), not by its agent: seccomp"), "{}", said.err);
            target.gone(bed)?;
            let notes = target.restore_with(bed, &[])?["notes"].to_string();
            let twice = notes.contains("equal seccomp filters, each its own now");
            ensure!(twice || what != "beside", "its notes: {notes}");
            let now = counts(target.pid)?;
            ensure!(now == before, "filters of its threads: {before:?}, restored {now:?}");
        }
        _ => {
            let words = ["cannot checkpoint", why, "run ctl as root, to whom the kernel tells its filters"];
            bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
            bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &words)?;
        }
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// One thread's filter kills for a call that every thread is to make: suspended or not, it is not made.
fn deadly_apart(bed: &mut Bed) -> Result<()> {
    let mut target = start_of(bed, "thr_seccomp", "deadly")?;
    for agent in [true, false] {
        target.agent = agent;
        // only who is told of them can judge them
        let told = !agent && bed.who == Who::Root;
        let why = if told { "sigaltstack" } else { "not all of its threads have them" };
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", why])?;
        unharmed::entirely(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// Sets a filter that kills for socket(2), when it is told to.
const SETS: &str = "
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
def wait(name):
    while not os.path.exists(name): time.sleep(0.001)
open('ready', 'w').close()
wait('act')
words = 0x20,0,0,0, 0x15,0,1,41, 6,0,0,0x80000000, 6,0,0,0x7fff0000
code = ctypes.create_string_buffer(struct.pack('<' + 'HBBI' * 4, *words))
program = ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', 4, ctypes.addressof(code)))
assert libc.prctl(22, 2, program, 0, 0) == 0
open('acted', 'w').close()
wait('gate')
open('over', 'w').close()
wait('never')
";

/// A filter that would kill for what the agent calls comes between its recorder's look and the signal: then the handler makes no call.
fn set_in_between(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", "sets", "--detach", "--json", "--door", "agent", "--"]);
    c.args(["python3", "-c", SETS]).current_dir(&dir);
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    let there = |name: &str| run::until(name, LIMIT, || Ok(dir.join(name).exists()));
    there("ready")?;
    let act = |_| {
        std::fs::write(dir.join("act"), "")?;
        there("acted")
    };
    bed.ctl_stopped("agent", &["checkpoint", "sets", "--door", "agent"], act)?.refused(3, &["agent"])?;
    unharmed::entirely(pid)?;
    std::fs::write(dir.join("gate"), "")?;
    there("over")?;
    // and now that it is known
    let words = ["its seccomp filters do not let through what its agent calls: socket"];
    bed.ctl(&["checkpoint", "sets", "--door", "agent"])?.refused(3, &words)?;
    bed.ctl(&["kill", "sets"])?.expect(0).map(drop)
}

/// Filters that no agent has seen, to an ordinary user.
fn not_known(bed: &mut Bed) -> Result<()> {
    for launched in [true, false] {
        let start = Start::program("seccomp").args(["--what", "raw"]);
        let mut target = if launched { start.door(Door::Launched).agent() } else { start }.ready(bed)?;
        target.agent = false;
        let why = if launched { "its agent has seen 0 being set" } else { "it has no agent" };
        let words = ["cannot checkpoint", "a seccomp filter restricts it", why, "run ctl as root"];
        bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
        bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
        unharmed::entirely(target.pid)?;
        target.prove(bed)?;
    }
    Ok(())
}
