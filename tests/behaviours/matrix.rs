//! Every program of tests/programs through every mode, as everyone; and sabotaged, when its proof must fail. A new program is
//! found by itself.
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::programs::{self, Variant};
use dormouse_tests::stage::Stage;
use dormouse_tests::target::{Door, Target};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case, Who};

/// What is done to a program between `ready` and `gate`.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// A checkpoint; it runs on.
    RunOn,
    /// A checkpoint; it runs on, and is killed by hand; restored from what its snapshot child had of it.
    RunOnRestored,
    /// A checkpoint that kills it; restored.
    Restore,
    /// That, five times in a row.
    Cycles,
    /// By the agent: a checkpoint that kills it; restored; another, after which it runs on, and is killed by hand; restored from that.
    Agent,
    /// Killed and restored with new PIDs, and again, by both doors.
    Fresh,
}

impl Mode {
    const ALL: [Mode; 6] = [Mode::RunOn, Mode::RunOnRestored, Mode::Restore, Mode::Cycles, Mode::Agent, Mode::Fresh];

    fn name(self) -> &'static str {
        match self {
            Mode::RunOn => "run-on",
            Mode::RunOnRestored => "run-on-restored",
            Mode::Restore => "restore",
            Mode::Cycles => "cycles",
            Mode::Agent => "agent",
            Mode::Fresh => "fresh",
        }
    }

    /// By the launcher's name and by PID: both ways are gone with every program.
    fn door(self) -> Door {
        match self {
            Mode::RunOn | Mode::Cycles | Mode::Agent | Mode::Fresh => Door::Launched,
            Mode::Restore | Mode::RunOnRestored => Door::Leader,
        }
    }

    /// Longer than what is done takes, if all goes well.
    fn timeout_ms(self) -> u32 {
        match self {
            Mode::RunOn => 1500,
            Mode::Restore | Mode::RunOnRestored => 2000,
            Mode::Cycles | Mode::Agent | Mode::Fresh => 4000,
        }
    }
}

/// They count on in a file, which, when they have run on, is further than the image.
const COUNTS_ON: &[&str] = &["counter"];

/// All cases of the matrix.
pub fn cases(stage: &Stage) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for v in programs::variants(stage)? {
        for mode in Mode::ALL {
            if mode == Mode::Agent && !v.agent() {
                continue;
            }
            if mode == Mode::RunOnRestored && COUNTS_ON.contains(&v.program.as_str()) {
                continue;
            }
            for who in Who::all() {
                let case = case(v.clone(), mode, *who, false);
                // of many calls one is enough here: registers are not what a snapshot child lacks
                all.push(if v.alike && matches!(mode, Mode::RunOnRestored | Mode::Fresh) { case.full() } else { case });
            }
        }
        // Once each: as root where it runs on, as the ordinary user where it is restored.
        let (first, last) = (Who::all()[0], Who::all()[Who::all().len() - 1]);
        for (mode, who) in [(Mode::RunOn, first), (Mode::Restore, last)] {
            let case = case(v.clone(), mode, who, true);
            all.push(if v.alike { case.full() } else { case });
        }
    }
    Ok(all)
}

fn case(v: Variant, mode: Mode, who: Who, sabotage: bool) -> Case {
    let name = format!("{}/{}{}", v.name, mode.name(), if sabotage { "-sabotage" } else { "" });
    Case::new(name, who, move |bed| run(bed, &v, mode, sabotage))
}

fn run(bed: &mut Bed, v: &Variant, mode: Mode, sabotage: bool) -> Result<()> {
    let mut start = v.start(mode.door(), mode.timeout_ms());
    if mode == Mode::Agent || mode == Mode::Fresh && v.agent() {
        start = start.agent();
    }
    if mode == Mode::Fresh {
        start = start.env("DORMOUSE_TEST_FRESH_PIDS", "1");
    }
    if sabotage {
        start = start.args(["--sabotage"]);
    }
    let mut target = start.ready(bed)?;
    if !(v.refusable && refused(bed, &target)?) {
        go_through(bed, mode, &mut target, v)?;
    }
    if sabotage {
        return target.fail(bed);
    }
    target.prove(bed).map(|_| ())
}

fn go_through(bed: &mut Bed, mode: Mode, target: &mut Target, v: &Variant) -> Result<()> {
    let program = v.program.as_str();
    match mode {
        Mode::RunOn => target.checkpoint(bed),
        Mode::RunOnRestored => {
            target.checkpoint(bed)?;
            checkpoint_again(bed, target, program)?;
            for pid in std::iter::once(target.pid).chain(proc::descendants(target.pid)) {
                let pid = nix::unistd::Pid::from_raw(pid);
                // a child may have ended with its parent
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
            }
            target.gone(bed)?;
            if v.door == Some(Door::Launched) {
                // what it has left behind ends a moment later
                let live = store::session_dir(bed, &target.session.clone()).join("live.json");
                run::until("the end of its session", LIMIT, || Ok(!live.exists()))?;
            }
            target.restore(bed)
        }
        Mode::Agent => {
            target.kill(bed)?;
            target.restore(bed)?;
            target.checkpoint(bed)?;
            if COUNTS_ON.contains(&program) {
                return Ok(());
            }
            target.end(bed)?;
            target.restore(bed)
        }
        Mode::Restore => {
            target.kill(bed)?;
            target.restore(bed)
        }
        Mode::Fresh => fresh(bed, target, v),
        Mode::Cycles => {
            for _ in 0..5 {
                target.kill(bed)?;
                target.restore(bed)?;
            }
            one_level(target.pid)
        }
    }
}

/// A second checkpoint finds what the first has left: calls that the kernel goes on with, queues that were looked at. Where an empty message
/// waits among others, that look hides it, and it is refused.
fn checkpoint_again(bed: &mut Bed, target: &mut Target, program: &str) -> Result<()> {
    match program {
        "unix_pairs" => {}
        // an empty one waits among them; of UDP that cannot be seen, and README says so
        "udp_queue" => return Ok(()),
        _ => return target.checkpoint(bed),
    }
    let why = "1 empty messages wait in it among others, and where cannot be seen: an earlier checkpoint has looked, or they are its last; checkpoint when";
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", why]).map(drop)
}

/// Programs that cannot have new PIDs, and why.
const NOT_FRESH: &[(&str, &str)] = &[
    ("go_runtime", "where its C library keeps its TID is not known: it is neither glibc nor musl"),
    ("thr_sync", "it holds a robust mutex, which names it by its TID"),
    ("tree", "its processes know each other by their PIDs"),
    ("tree_dontfork", "its processes know each other by their PIDs"),
    ("tree_leader", "its processes know each other by their PIDs"),
    ("tree_pidfd", "its processes know each other by their PIDs"),
    ("tree_msg", "its processes know each other by their PIDs"),
    ("tree_rights", "its processes know each other by their PIDs"),
    ("tree_pty", "its processes know each other by their PIDs"),
    ("tree_pkeys", "its processes know each other by their PIDs"),
    ("tree_seal", "its processes know each other by their PIDs"),
    ("tree_sem", "its processes know each other by their PIDs"),
    ("tree_shares", "its processes know each other by their PIDs"),
    ("tree_shm", "its processes know each other by their PIDs"),
    ("tree_vm", "its processes know each other by their PIDs"),
    ("tree_unnamed", "its processes know each other by their PIDs"),
    ("userns.tree", "its processes know each other by their PIDs"),
    ("userns.parent", "its processes know each other by their PIDs"),
];

/// Twice, by one door and by the other, if it has an agent.
fn fresh(bed: &mut Bed, target: &mut Target, v: &Variant) -> Result<()> {
    let agent = target.agent;
    target.agent = false;
    target.kill(bed)?;
    if let Some((_, why)) = NOT_FRESH.iter().find(|n| n.0 == v.program || n.0 == v.name) {
        let args = ["restore", &target.session.clone(), "--detach", "--pids", "fresh"];
        bed.ctl(&args)?.refused(3, &["cannot restore", why, "use --pids private"])?;
        return target.restore(bed);
    }
    target.restore_fresh(bed)?;
    target.agent = agent;
    target.kill(bed)?;
    target.restore_fresh(bed)
}

/// Not one namespace in another, five times.
fn one_level(pid: i32) -> Result<()> {
    let Some(status) = proc::status(pid) else { return Ok(()) };
    ensure!(status.ns_pids.len() <= 2, "after five cycles it has the PIDs {:?}", status.ns_pids);
    Ok(())
}

/// True if this program may be refused and is: by `check` and by `checkpoint`, with the same message, unharmed.
fn refused(bed: &mut Bed, target: &Target) -> Result<bool> {
    let checked = bed.ctl(&["check", "--pid", &target.pid.to_string()])?;
    if checked.code() == 0 {
        return Ok(false);
    }
    let checked = checked.refused(3, &["cannot checkpoint", ";"])?;
    let tried = bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint"])?;
    let why = |said: &str| said.split_once(": ").map(|(_, why)| why.to_owned()).unwrap_or_default();
    ensure!(why(&checked.err) == why(&tried.err), "check and checkpoint disagree:\n{}{}", checked.err, tried.err);
    unharmed::entirely(target.pid)?;
    Ok(true)
}
