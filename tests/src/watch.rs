//! A run that is killed leaves nothing behind either. It is three processes: the one that cargo started ([`run`]), a watcher in a
//! session of its own ([`watch`]), which is the subreaper of all that follows, and the runner. When the first is gone (or its parent:
//! a killed cargo does not take it along), the watcher sees the end of a pipe, and ends all that descends from it. When the watcher is
//! gone, the runner does so. Kinship is all that is gone by: programs under test have no environment of ours to be known by.
use crate::stage::Stage;
use crate::{proc, run, sys};
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// First argument of the watcher, and of the runner that it starts.
pub const WATCH: &str = "--watch";
/// The runner's.
pub const WATCHED: &str = "--watched";

const TICK: Duration = Duration::from_millis(20);

/// In the process that cargo started: starts the watcher, and gives what the runner ended with.
pub fn run() -> Result<u8> {
    // Ours is open as long as we live.
    let (theirs, _ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut c = again(WATCH)?;
    c.stdin(theirs);
    sys::own_session(&mut c);
    let parent = nix::unistd::getppid();
    let mut watcher = c.spawn().context("cannot start the watcher")?;
    drop(c);
    loop {
        if let Some(status) = watcher.try_wait()? {
            return Ok(run::code(status) as u8);
        }
        if nix::unistd::getppid() != parent {
            return Ok(1);
        }
        std::thread::sleep(TICK);
    }
}

/// The watcher: starts the runner, and ends all that descends from it when it has ended or the pipe at stdin has.
pub fn watch() -> Result<u8> {
    nix::sys::prctl::set_child_subreaper(true)?;
    // Not to be met by a `pkill behaviours`.
    nix::sys::prctl::set_name(c"dormouse-watch")?;
    let mut runner = again(WATCHED)?.stdin(Stdio::null()).spawn().context("cannot start the runner")?;
    let over = Arc::new(AtomicBool::new(false));
    let seen = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        seen.store(true, Ordering::Relaxed);
    });
    let status = loop {
        if let Some(status) = runner.try_wait()? {
            break status;
        }
        if over.load(Ordering::Relaxed) {
            runner.kill()?;
        }
        std::thread::sleep(TICK);
    };
    end_all_below();
    // Killed, or broken off with nobody to print to, it did not get to this itself.
    Stage::of(runner.id()).remove();
    Ok(run::code(status) as u8)
}

/// Kills all that descends from this process, and reaps it, until nothing does.
pub fn end_all_below() {
    let me = std::process::id() as i32;
    for _ in 0..1000 {
        let left = proc::descendants(me);
        if left.is_empty() {
            return;
        }
        for pid in left {
            // What is gone already is just as well.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        proc::children(me).into_iter().for_each(sys::reap);
        std::thread::sleep(run::TICK);
    }
}

/// This program with its arguments, in another part.
fn again(part: &str) -> Result<Command> {
    let mut c = Command::new(std::env::current_exe()?);
    c.arg(part).args(std::env::args_os().skip(1).filter(|a| a != WATCH));
    Ok(c)
}
