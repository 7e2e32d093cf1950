//! Under musl: programs that musl-gcc has built, launched without a word about doors. The agent is there and makes their checkpoints without ptrace, five
//! times over; what is linked statically is taken by ptrace.
use crate::doors::{by_itself, ended, launched};
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, sys, unharmed, Bed, Case};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Cycles of checkpoint, kill and restore.
const CYCLES: usize = 5;
/// Programs that are gone through them; of threads and signals above all, for that is where the libraries differ.
const PROGRAMS: [&str; 11] = [
    "thr_sync",
    "thr_join",
    "thr_tid",
    "thr_tid_use",
    "cancel",
    "sig_handlers",
    "sig_altstack",
    "sig_pending",
    "timer_fires",
    "cpu_tls",
    "epoll",
];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for program in PROGRAMS {
        all.extend(Case::each(&format!("musl/{program}"), move |bed| cycles(bed, program, false)));
    }
    all.extend(Case::each("musl/thr_join-sabotage", |bed| cycles(bed, "thr_join", true)));
    all.extend(Case::each("musl/cancel-sabotage", |bed| cycles(bed, "cancel", true)));
    all.extend(Case::each("musl/blocked", blocked));
    for program in ["thr_join", "thr_tid_use"] {
        all.extend(Case::each(&format!("musl/{program}-new-pids"), move |bed| new_pids(bed, program)));
    }
    all.extend(Case::each("musl/static", linked_statically));
    all.extend(Case::each("musl/static-without-handlers", no_way_in));
    all.into_iter().map(|c| c.limit(120)).collect()
}

/// Launched, ready, and known to run with musl: its PID and its folder.
fn start(bed: &mut Bed, name: &str, program: &str, args: &[&str]) -> Result<(i32, PathBuf)> {
    let dir = bed.folder()?;
    let path = bed.stage.program(program).display().to_string();
    let shown = dir.display().to_string();
    let pid = launched(bed, name, &[&[path.as_str(), "--dir", &shown], args].concat())?;
    run::until("it ready", LIMIT, || Ok(dir.join("ready").exists() || dir.join("result").exists()))?;
    ensure!(dir.join("ready").exists(), "it did not get ready: {}", fs::read_to_string(dir.join("result"))?);
    bed.who.assert_is(program, pid)?;
    Ok((pid, dir))
}

/// By the agent, by a ctl that may not use ptrace.
fn without_ptrace(bed: &mut Bed, name: &str, options: &[&str]) -> Result<()> {
    let mut c = bed.ctl_command(&[&["--json", "checkpoint", name], options].concat());
    sys::deny(&mut c, &sys::TRACING);
    let said = bed.run(&mut c)?.expect(0)?.json()?;
    ensure!(said["door"] == "agent" && said["notes"] == serde_json::json!([]), "by the agent, without a note: {said}");
    let inspected = bed.ctl_json(&["inspect", name])?["summary"]["door"].clone();
    ensure!(inspected == "agent", "ctl inspect should say agent, it says {inspected}");
    Ok(())
}

fn restored(bed: &mut Bed, name: &str) -> Result<i32> {
    let pid = bed.ctl_json(&["restore", name, "--detach"])?["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored program", pid)?;
    Ok(pid)
}

/// Opens the gate: what it says of itself.
fn result(bed: &mut Bed, dir: &Path, pid: i32) -> Result<String> {
    fs::write(dir.join("gate"), "")?;
    run::until("its result", LIMIT, || Ok(dir.join("result").exists() || !proc::alive(pid)))?;
    let said = fs::read_to_string(dir.join("result")).context("it ended without a result")?;
    ended(bed, pid)?;
    Ok(said)
}

fn cycles(bed: &mut Bed, program: &str, sabotage: bool) -> Result<()> {
    let args: &[&str] = if sabotage { &["--sabotage"] } else { &[] };
    let (mut pid, dir) = start(bed, "m", &format!("musl_{program}"), args)?;
    let maps = proc::maps(pid);
    ensure!(!maps.iter().any(|m| m.name.contains("/libc.so.6")), "glibc is in it: {maps:x?}");
    ensure!(maps.iter().any(|m| m.name.contains("musl")), "musl is not in it: {maps:x?}");
    // the other door is shut to the ctl that makes them
    let mut c = bed.ctl_command(&["checkpoint", "m", "--door", "attach"]);
    sys::deny(&mut c, &sys::TRACING);
    bed.run(&mut c)?.refused(3, &["Operation not permitted"])?;
    for _ in 0..CYCLES {
        without_ptrace(bed, "m", &[])?;
        unharmed::entirely(pid)?;
        without_ptrace(bed, "m", &["--kill"])?;
        ended(bed, pid)?;
        pid = restored(bed, "m")?;
    }
    without_ptrace(bed, "m", &[])?;
    unharmed::entirely(pid)?;
    let said = result(bed, &dir, pid)?;
    let as_meant =
        if sabotage { said.starts_with("FAIL: ") && !said.contains("not a proof") } else { said.starts_with("OK") };
    ensure!(as_meant, "its proof says {said}");
    Ok(())
}

/// A thread in each of the calls in turn, while checkpoints are made by the agent: it never returns because of one.
fn blocked(bed: &mut Bed) -> Result<()> {
    let list = Command::new(bed.stage.program("musl_blocked")).arg("--list-long").output()?;
    let list = String::from_utf8(list.stdout)?;
    let mut calls = 0;
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [call, timed, "-"] = words[..] else { continue };
        let args: &[&str] = if timed == "timed" { &["--call", call, "--timeout", "60000"] } else { &["--call", call] };
        let (pid, dir) = start(bed, call, "musl_blocked", args).with_context(|| format!("in {call}"))?;
        for _ in 0..CYCLES {
            without_ptrace(bed, call, &[]).with_context(|| format!("in {call}"))?;
        }
        unharmed::entirely(pid)?;
        if timed == "timed" {
            // its time is longer than anybody waits here; it would have ended at once if the call had returned
            let state = fs::read_to_string(dir.join("result")).unwrap_or_default();
            ensure!(state.is_empty() && proc::alive(pid), "{call} has returned: {state}");
            bed.ctl(&["kill", call])?.expect(0)?;
            ended(bed, pid)?;
        } else {
            let said = result(bed, &dir, pid)?;
            ensure!(said.starts_with("OK"), "{call}: its proof says {said}");
        }
        bed.log.clear();
        calls += 1;
    }
    ensure!(calls > 20, "musl_blocked --list-long names only {calls} calls:\n{list}");
    Ok(())
}

/// musl's copies of the TIDs are set right.
fn new_pids(bed: &mut Bed, program: &str) -> Result<()> {
    let start = Start::program(&format!("musl_{program}")).door(Door::Launched).agent();
    let mut target = start.env("DORMOUSE_TEST_FRESH_PIDS", "1").ready(bed)?;
    for agent in [true, false, true] {
        target.agent = agent;
        target.kill(bed)?;
        target.restore_fresh(bed)?;
    }
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

/// No loader, no agent: ptrace, here and restored.
fn linked_statically(bed: &mut Bed) -> Result<()> {
    let (mut pid, dir) = start(bed, "m", "musl_static_thr_join", &[])?;
    for _ in 0..CYCLES {
        by_itself(bed, &["m"], "attach", "")?;
        unharmed::entirely(pid)?;
        by_itself(bed, &["m", "--kill"], "attach", "")?;
        ended(bed, pid)?;
        pid = restored(bed, "m")?;
    }
    by_itself(bed, &["m"], "attach", "")?;
    unharmed::entirely(pid)?;
    let said = result(bed, &dir, pid)?;
    ensure!(said.starts_with("OK"), "its proof says {said}");
    Ok(())
}

/// Of a static program that sets no handler the linker leaves out the code by which handlers return, which is part of a way in: refused by name.
fn no_way_in(bed: &mut Bed) -> Result<()> {
    let (pid, dir) = start(bed, "m", "musl_static_mem_anon", &[])?;
    bed.ctl(&["checkpoint", "m"])?
        .refused(3, &["no code of its own has an rt_sigreturn stub", "nothing was touched"])?;
    unharmed::entirely(pid)?;
    let said = result(bed, &dir, pid)?;
    ensure!(said.starts_with("OK"), "its proof says {said}");
    Ok(())
}
