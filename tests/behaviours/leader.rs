//! First threads that have ended while others run, beyond what the matrix does with `thr_leader` and `tree_leader`.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::Start;
use dormouse_tests::{proc, run, sys, unharmed, Bed, Case, Who};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;
use std::process::Stdio;

pub fn cases() -> Vec<Case> {
    let mut all = Case::by_both_doors("leader/signal", signal);
    all.extend(Case::by_both_doors("leader/private", private));
    all.extend(Case::by_both_doors("leader/inspect", inspect));
    all.extend(Case::by_both_doors("leader/stopped", stopped));
    if Who::all().contains(&Who::Root) {
        all.push(Case::new("leader/ends-in-the-window", Who::Root, ends_in_the_window));
    }
    all
}

/// Stopped: what the kernel then says of the process is how it was stopped, not how its first thread ended.
fn stopped(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("thr_leader").args(["--what", "raw"]).by_agent(agent).ready(bed)?;
    // its agent is reached by a signal
    target.agent = false;
    kill(Pid::from_raw(target.pid), Signal::SIGSTOP)?;
    target.kill(bed)?;
    target.restore(bed)?;
    kill(Pid::from_raw(target.pid), Signal::SIGCONT)?;
    target.prove(bed).map(drop)
}

const ENDS: &str = "
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
def become(): assert libc.syscall(117, 65533, 65533, 65533) == 0 # setresuid, of this thread only
def wait(name):
    while not os.path.exists(name): time.sleep(0.002)
def root():
    wait('told')
    open('ready', 'w').close()
    while open('/proc/self/task/%d/stat' % os.getpid()).read().split(')')[1].split()[0] != 'Z': time.sleep(0.002)
    open('acted', 'w').close()
    wait('gate')
    os._exit(5)
def user():
    open('told.new', 'w').write(str(threading.get_native_id()))
    os.rename('told.new', 'told')
    become()
    while True: time.sleep(1)
for f in root, user: threading.Thread(target=f).start()
wait('ready')
wait('act')
become()
libc.syscall(60, 0) # exit, of this thread only
";

/// The first thread ends between survey and freeze, and the process is looked at by another, which has other users: each thread keeps its own.
fn ends_in_the_window(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut c = bed.command("python3");
    c.args(["-c", ENDS]).current_dir(&dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    let there = |name: &str| run::until(name, LIMIT, || Ok(dir.join(name).exists()));
    there("ready")?;
    let tid: i32 = fs::read_to_string(dir.join("told"))?.parse()?;
    let users = || Ok::<_, anyhow::Error>(proc::status(tid).context("the thread is gone")?.uids);
    run::until("its users", LIMIT, || Ok(users()? == [65533; 4]))?;
    let pid = child.id().to_string();
    let act = |_| {
        fs::write(dir.join("act"), "")?;
        there("acted")
    };
    bed.ctl_stopped("freeze", &["checkpoint", "--pid", &pid, "--name", "window", "--kill"], act)?.expect(0)?;
    run::end(&mut child, "python", LIMIT)?;
    bed.let_go(&child);
    bed.ctl(&["restore", "window", "--detach", "--pids", "keep"])?.expect(0)?;
    ensure!(users()? == [65533; 4], "the thread's users are {:?}", users()?);
    fs::write(dir.join("gate"), "")?;
    run::until("its end", LIMIT, || Ok(proc::status(tid).is_none()))
}

/// A child that would get a signal as its parent's first thread ends again.
fn signal(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("tree_leader").args(["--signal"]).by_agent(agent).ready(bed)?;
    let why = "it wants a signal when its parent ends (PR_SET_PDEATHSIG), and the first thread of that, PID ";
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&target.checkpoint_args(options))?.refused(3, &[why, "let the parent's first thread wait"])?;
        unharmed::family(target.pid)?;
    }
    target.prove(bed).map(drop)
}

/// In a namespace of its own, and once more from there.
fn private(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("thr_leader").args(["--what", "raw"]).by_agent(agent).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        target.restore_with(bed, &["--pids", "private"])?;
    }
    target.prove(bed).map(drop)
}

/// It is said, also after it has ended again.
fn inspect(bed: &mut Bed, agent: bool) -> Result<()> {
    let mut target = Start::program("thr_leader").args(["--what", "raw"]).by_agent(agent).ready(bed)?;
    for _ in 0..2 {
        target.kill(bed)?;
        let said = bed.ctl(&["inspect", &target.session])?.expect(0)?.said();
        ensure!(said.contains("has ended    the first thread of PID "), "inspect says {said}");
        ensure!(said.contains(", wait status 0x300"), "inspect says {said}");
        target.restore(bed)?;
    }
    target.prove(bed).map(drop)
}
