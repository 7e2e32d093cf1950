//! Somebody dies during a checkpoint: the tracer, the recorder or the target, after every single ptrace call and every single
//! wire message, one after the other until the fault comes too late to happen.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::target::{Door, Start, Target};
use dormouse_tests::{proc, run, store, Bed, Case, Who};

/// Who dies, and what is left for ctl to say.
#[derive(Clone, Copy)]
struct Kill {
    /// DORMOUSE_FAULT is `SITE:N:ACTION`.
    site: &'static str,
    action: &'static str,
    victim: Victim,
}

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Tracer,
    Recorder,
    Target,
}

const KILLS: [Kill; 5] = [
    Kill { site: "ptrace", action: "kill-self", victim: Victim::Tracer },
    Kill { site: "ptrace", action: "kill-parent", victim: Victim::Recorder },
    Kill { site: "ptrace", action: "kill-target", victim: Victim::Target },
    Kill { site: "wire", action: "kill-self", victim: Victim::Recorder },
    Kill { site: "wire", action: "kill-target", victim: Victim::Target },
];

/// A call that any stop interrupts (where the tracer dies, one that the kernel takes up again by itself: what the other returns
/// between the stop and its repair is EINTR, and nobody is left to change that); registers and FPU held by threads that spin and sleep; threads asleep in futexes; a
/// subreaper; a tree of processes, and two whose processes share their descriptors, or memory; signals that only a call's own mask blocks; those whose main stack is full, while they stand on another or on this one, and one that stands on none. The second takes all processors, so `make test` tries every fifth point of it.
const TARGETS: [(&str, &[&str], u32); 11] = [
    ("blocked", &["--call", "epoll_wait"], 1),
    ("cpu_regs", &[], 5),
    ("thr_sync", &[], 5),
    ("proc_prctl", &[], 3),
    ("sig_masked", &["--call", "ppoll"], 3),
    ("stack_left", &[], 1),
    ("stack_left", &["--deep"], 1),
    ("stack_none", &[], 3),
    ("tree", &["--what", "family"], 11),
    ("tree_shares", &["--what", "files"], 7),
    ("tree_vm", &[], 7),
];

/// By the agent there is no tracer: `agent` is each signal that calls a thread in, and each thread that comes.
const BY_THE_AGENT: [Kill; 4] = [
    Kill { site: "agent", action: "kill-self", victim: Victim::Recorder },
    Kill { site: "agent", action: "kill-target", victim: Victim::Target },
    Kill { site: "wire", action: "kill-self", victim: Victim::Recorder },
    Kill { site: "wire", action: "kill-target", victim: Victim::Target },
];

/// Program, arguments, options of the checkpoint, step. Calls that any signal interrupts, threads that spin and that wait, signals that wait;
/// one that opens itself to its recorder, and must not stay so.
type Agent = (&'static str, &'static [&'static str], &'static [&'static str], u32);
const AGENTS: [Agent; 9] = [
    ("blocked", &["--call", "epoll_wait"], &[], 1),
    ("cpu_regs", &[], &[], 3),
    ("thr_sync", &[], &[], 7),
    ("sig_pending", &[], &[], 1),
    ("thr_join", &[], &["--kill"], 3),
    ("proc_dumpable", &["--zero"], &[], 1),
    ("seccomp", &["--what", "threads"], &[], 3),
    ("tree", &["--what", "family"], &[], 7),
    ("tree_shares", &["--what", "fs"], &[], 5),
];

/// More points than any checkpoint of these passes.
const TOO_MANY: u32 = 2000;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kill in KILLS {
        for (program, mut args, step) in TARGETS {
            // of several processes it would be any
            if kill.victim == Victim::Target && program.starts_with("tree") {
                continue;
            }
            if kill.victim == Victim::Tracer && program == "blocked" {
                args = &["--call", "read_pipe"];
            }
            let more = if args == ["--deep"] { "-deep" } else { "" };
            let name = format!("{}-{}/{program}{more}", kill.site, kill.action);
            for who in Who::all() {
                all.push(
                    Case::new(&name, *who, move |bed| every_point(bed, kill, program, args, &[], step)).limit(240),
                );
                if step > 1 {
                    let every = Case::new(format!("{name}-every"), *who, move |bed| {
                        every_point(bed, kill, program, args, &[], 1)
                    });
                    all.push(every.limit(240).full());
                }
            }
        }
        // its filters are suspended, and are there again when the tracer dies
        let name = format!("{}-{}/seccomp", kill.site, kill.action);
        let body = move |bed: &mut Bed| every_point(bed, kill, "seccomp", &["--what", "threads"], &[], 1);
        all.push(Case::new(&name, Who::Root, body).limit(240));
        let name = format!("{}-{}/thr_seccomp", kill.site, kill.action);
        let body = move |bed: &mut Bed| every_point(bed, kill, "thr_seccomp", &["--what", "nested"], &[], 3);
        all.push(Case::new(&name, Who::Root, body).limit(240));
        // of strict threads only the death of our tracer can harm one, in the few instants that the option's name tells of
        for (what, step) in [("alone", 3), ("several", 5)] {
            let name = format!("{}-{}/seccomp_strict-{what}", kill.site, kill.action);
            let args: &'static [&str] = if what == "alone" { &["--what", "alone"] } else { &["--what", "several"] };
            let body = move |bed: &mut Bed, step: u32| match kill.victim {
                Victim::Tracer => strict(bed, kill, args, step),
                // of several processes it would be any
                Victim::Target if what == "alone" => Ok(()),
                _ => every_point(bed, kill, "seccomp_strict", args, &[], step),
            };
            all.push(Case::new(&name, Who::Root, move |bed| body(bed, step)).limit(240));
            all.push(Case::new(format!("{name}-every"), Who::Root, move |bed| body(bed, 1)).limit(240).full());
        }
        // A checkpoint that is to kill or stop takes another way from the record on.
        for option in ["--kill", "--stop"] {
            let name = format!("{}-{}/thr_join{option}", kill.site, kill.action);
            for who in Who::all() {
                all.push(
                    Case::new(&name, *who, move |bed| every_point(bed, kill, "thr_join", &[], &[option], 4)).limit(240),
                );
                let every = Case::new(format!("{name}-every"), *who, move |bed| {
                    every_point(bed, kill, "thr_join", &[], &[option], 1)
                });
                all.push(every.limit(240).full());
            }
        }
    }
    for kill in BY_THE_AGENT {
        for (program, args, options, step) in AGENTS {
            if kill.victim == Victim::Target && program.starts_with("tree") {
                continue;
            }
            let name = format!("agent-{}-{}/{program}{}", kill.site, kill.action, options.concat());
            for who in Who::all() {
                let body = move |bed: &mut Bed| every_point_of(bed, kill, (program, args, true), options, step);
                let case = Case::new(&name, *who, body).limit(240);
                all.push(case);
            }
        }
    }
    for call in ["pause", "poll", "epoll_wait", "read", "read--restart", "pause--small"] {
        for who in Who::all() {
            let name = format!("ptrace-kill-self/woken-{call}");
            all.push(Case::new(&name, *who, move |bed| woken(bed, call)).limit(240));
        }
    }
    all
}

/// The tracer dies at any point of a checkpoint of strict threads. Between its changing a call that such a thread has entered and the kernel's look at that the thread
/// is lost, which is documented: so many calls are made in one, and at no other point anything happens to it.
fn strict(bed: &mut Bed, kill: Kill, args: &[&str], step: u32) -> Result<()> {
    /// The calls of a visit, and the one that makes a thread for us.
    const CALLS: u32 = 20;
    // a child is looked for again when its tracer has died, and is entered by calls that are other ones then
    let (mut lost, threads, tries) = if args == ["--what", "several"] { (0, 2, 1) } else { (0, 1, 3) };
    for n in (1..TOO_MANY).step_by(step as usize) {
        let fault = format!("{}:{n}:{}", kill.site, kill.action);
        let mut target = Start::program("seccomp_strict").args(args.iter().copied()).ready(bed)?;
        let all = strict_threads(target.pid);
        ensure!(all == threads, "{all} strict threads, not {threads}");
        let ran = bed.ctl_fault(&fault, &target.checkpoint_args(&[]))?;
        bed.reap();
        // a child that is lost is not there when it is looked for again
        let child_lost = args == ["--what", "alone"] && strict_threads(target.pid) == 0;
        if ran.code() == 0 && !child_lost {
            ensure!(lost > 0 && lost <= CALLS * threads * tries / step + 1, "{lost} threads were lost in {n} points");
            println!("{} points, a thread was lost at {lost}", n - 1);
            return target.prove(bed).map(drop);
        }
        let code = ran.code();
        ensure!([0, 3, 8, 9].contains(&code), "{}: exit code {code}\n{}", ran.command, ran.said());
        if code != 0 {
            ran.refused(code, &["cannot checkpoint", "; "])?;
        }
        // one that was made for us ends as it finds itself alone
        let settled = || !is_traced(target.pid) && strict_threads(target.pid) <= threads;
        run::until("nobody is traced", SOON, || Ok(settled()))?;
        past_the_kernels_look(target.pid)?;
        match strict_threads(target.pid) {
            now if now == threads => {
                target.unharmed_but_for_the_documented()?;
                target.checkpoint(bed).context("the next checkpoint")?;
                target.prove(bed).map(drop)
            }
            now if now + 1 == threads => {
                lost += 1;
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(target.pid), nix::sys::signal::Signal::SIGKILL)?;
                target.gone(bed)
            }
            now => Err(anyhow::anyhow!("{now} strict threads are left")),
        }
        .with_context(|| format!("with DORMOUSE_FAULT={fault}"))?;
        bed.log.clear();
    }
    anyhow::bail!("{}:{TOO_MANY} still happens", kill.site)
}

/// The lines of /proc/PID/task/TID/status of all threads of a process and those below it.
fn statuses(pid: i32) -> Vec<String> {
    let of = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tasks = std::iter::once(pid).chain(proc::descendants(pid)).flat_map(of);
    tasks.filter_map(|e| std::fs::read_to_string(e.path().join("status")).ok()).collect()
}

fn strict_threads(pid: i32) -> u32 {
    let lives = |s: &&String| s.contains("Seccomp:\t1\n") && !s.contains("State:\tZ") && !s.contains("State:\tX");
    statuses(pid).iter().filter(lives).count() as u32
}

/// Waits until no thread is about to be looked at by the kernel, which is before it stops for a signal: all that stop live on.
fn past_the_kernels_look(pid: i32) -> Result<()> {
    use nix::sys::signal::{kill, Signal};
    let all: Vec<_> = std::iter::once(pid).chain(proc::descendants(pid)).map(nix::unistd::Pid::from_raw).collect();
    let send = |signal: Signal| all.iter().try_for_each(|pid| kill(*pid, signal));
    send(Signal::SIGSTOP)?;
    let stands = |s: &String| ["T", "Z", "X"].iter().any(|c| s.contains(&format!("State:\t{c}")));
    run::until("all threads are stopped", SOON, || Ok(statuses(pid).iter().all(stands)))?;
    Ok(send(Signal::SIGCONT)?)
}

fn is_traced(pid: i32) -> bool {
    statuses(pid).iter().any(|s| !s.contains("TracerPid:\t0\n"))
}

/// A signal with a handler waits for a stopped program, and the tracer dies at any point of a checkpoint: once the program is continued, the
/// call ends as the handler has it end.
fn woken(bed: &mut Bed, call: &str) -> Result<()> {
    use nix::sys::signal::{kill, Signal};
    let (call, more) = call.split_once("--").map_or((call, None), |(call, more)| (call, Some(format!("--{more}"))));
    for n in 1..TOO_MANY {
        let args = ["--call", call].into_iter().chain(more.as_deref());
        let mut target = Start::program("sig_woken").args(args).ready(bed)?;
        let pid = nix::unistd::Pid::from_raw(target.pid);
        kill(pid, Signal::SIGSTOP)?;
        let stopped = |pid| proc::status(pid).is_some_and(|s| s.state == 'T' && s.tracer == 0);
        run::until("it stopped", SOON, || Ok(stopped(target.pid)))?;
        kill(pid, Signal::SIGUSR1)?;
        let fault = format!("ptrace:{n}:kill-self");
        let args = target.checkpoint_args(&[]);
        let args: Vec<&str> = args.iter().map(|a| a.as_ref()).collect();
        let mut ctl = bed.ctl_command(&args);
        ctl.env("DORMOUSE_FAULT", &fault);
        let (mut recorder, _, _) = bed.spawn(&mut ctl)?;
        // the blob stands still with the program, and ctl must not wait for it
        let code = run::code(run::end(&mut recorder, "ctl checkpoint of a stopped program", SOON)?);
        bed.let_go(&recorder);
        run::until("it is stopped as before", SOON, || Ok(stopped(target.pid)))?;
        kill(pid, Signal::SIGCONT)?;
        target.prove(bed).with_context(|| format!("with DORMOUSE_FAULT={fault}"))?;
        if code == 0 {
            ensure!(n > 20, "{fault} did not happen: this site is hardly ever passed");
            return Ok(());
        }
        bed.log.clear();
    }
    anyhow::bail!("ptrace:{TOO_MANY} still happens")
}

fn every_point(bed: &mut Bed, kill: Kill, program: &str, args: &[&str], options: &[&str], step: u32) -> Result<()> {
    every_point_of(bed, kill, (program, args, false), options, step)
}

/// `agent`: launched with it, and reached by it.
fn every_point_of(
    bed: &mut Bed,
    kill: Kill,
    (program, args, agent): (&str, &[&str], bool),
    options: &[&str],
    step: u32,
) -> Result<()> {
    for n in (1..TOO_MANY).step_by(step as usize) {
        let fault = format!("{}:{n}:{}", kill.site, kill.action);
        let mut start = Start::program(program).args(args.iter().copied());
        if agent {
            start = start.door(Door::Launched).agent();
        }
        let mut target = start.ready(bed)?;
        let fired = one_point(bed, kill, &fault, &mut target, options, n % 10 == 1)
            .with_context(|| format!("with DORMOUSE_FAULT={fault}"))?;
        if !fired {
            ensure!(
                n > if kill.site == "agent" { 1 } else { 4 },
                "{fault} did not happen: this site is hardly ever passed"
            );
            println!("{} points", n - 1);
            return Ok(());
        }
        bed.log.clear();
    }
    anyhow::bail!("{}:{TOO_MANY} still happens", kill.site)
}

/// False if the fault came too late: the checkpoint was over. `thorough`: not only are the store's files as they were, ctl says
/// so too.
fn one_point(
    bed: &mut Bed,
    kill: Kill,
    fault: &str,
    target: &mut Target,
    options: &[&str],
    thorough: bool,
) -> Result<bool> {
    let session = target.session.clone();
    // What the store holds before.
    target.checkpoint(bed)?;
    let before = store::content(bed, &session);
    let args = target.checkpoint_args(options);
    let ran = bed.ctl_fault(fault, &args)?;
    bed.reap();
    // where memory is copied in the freeze the checkpoint is there before it is let go
    let before_thaw = !options.is_empty() || target.is_copied();
    if ran.code() != 0 && before_thaw && store::numbers(bed, &session) == [1, 2] {
        return complete(bed, target).map(|()| true);
    }
    if kill.victim == Victim::Target && (ran.code() == 8 || !proc::alive(target.pid)) {
        target.gone(bed)?;
        // Its death may come when nothing more is wanted of it: then the checkpoint is there, whole.
        return match ran.code() {
            0 => store::holds(bed, &session, &[1, 2]).map(|()| options != ["--kill"]),
            _ => {
                ran.refused(8, &["cannot checkpoint", "; "])?;
                store_is(bed, &session, &before).map(|()| true)
            }
        };
    }
    match (ran.code(), kill.victim) {
        (0, _) => {
            let late = too_late(bed, target, options);
            // it may have been killed at the very last point, and was about to end
            let killed = kill.victim == Victim::Target && !proc::alive(target.pid);
            if late.is_err() && killed && proc::ended_with(target.pid).is_none_or(|how| how == libc::SIGKILL) {
                target.gone(bed)?;
                return store::holds(bed, &session, &[1, 2]).map(|()| options != ["--kill"]);
            }
            return late.map(|()| false);
        }
        (137, Victim::Recorder) => {}
        (code @ (3 | 9), Victim::Tracer) => drop(ran.refused(code, &["cannot checkpoint", "; "])?),
        _ => anyhow::bail!("{}: exit code {} is not documented for this\n{}", ran.command, ran.code(), ran.said()),
    }
    target.unharmed_but_for_the_documented()?;
    // What a recorder that was killed had begun stays aside until the next begins.
    ensure!(store::content(bed, &session) == before, "the store's checkpoints changed");
    if thorough {
        store::holds(bed, &session, &[1])?;
    }
    again(bed, target, thorough)?;
    Ok(true)
}

/// The checkpoint was there already, and whether its kill or stop came about is open: then it did, or it runs on unharmed.
fn complete(bed: &mut Bed, target: &mut Target) -> Result<()> {
    store::holds(bed, &target.session.clone(), &[1, 2])?;
    if !proc::alive(target.pid) {
        return target.gone(bed);
    }
    // Where it is not stopped, this changes nothing.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(target.pid), nix::sys::signal::Signal::SIGCONT)?;
    target.unharmed_but_for_the_documented()?;
    target.prove(bed).map(|_| ())
}

/// The next checkpoint works and takes away what was left; the program proves itself.
fn again(bed: &mut Bed, target: &mut Target, thorough: bool) -> Result<()> {
    target.checkpoint(bed).context("the next checkpoint")?;
    let session = target.session.clone();
    let there = store::numbers(bed, &session);
    ensure!(there.len() == 2, "the next checkpoint should be the second, the store holds {there:?}");
    if thorough {
        store::holds(bed, &session, &there)?;
    }
    nothing_aside(bed, &session)?;
    target.prove(bed).map(|_| ())
}

fn store_is(
    bed: &mut Bed,
    session: &str,
    before: &std::collections::BTreeMap<std::path::PathBuf, (usize, u64)>,
) -> Result<()> {
    ensure!(store::content(bed, session) == *before, "the store's checkpoints changed");
    store::holds(bed, session, &[1])?;
    nothing_aside(bed, session)
}

/// No half-made checkpoint lies about.
fn nothing_aside(bed: &Bed, session: &str) -> Result<()> {
    let aside: Vec<String> = std::fs::read_dir(store::session_dir(bed, session))?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with('.') || name.ends_with(".tmp"))
        .collect();
    ensure!(aside.is_empty(), "the store keeps what is neither a checkpoint nor any more being made: {aside:?}");
    Ok(())
}

fn too_late(bed: &mut Bed, target: &mut Target, options: &[&str]) -> Result<()> {
    store::holds(bed, &target.session.clone(), &[1, 2])?;
    match options {
        ["--kill"] => return target.gone(bed),
        ["--stop"] => {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(target.pid), nix::sys::signal::Signal::SIGCONT)?;
        }
        _ => {}
    }
    target.unharmed_but_for_the_documented()?;
    target.prove(bed).map(|_| ())
}
