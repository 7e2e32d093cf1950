//! What must hold of a program that a checkpoint has let go: nothing of ours is in it or with it.
use crate::bed::SOON;
use crate::{proc, run};
use anyhow::{bail, Result};

/// It runs, with nothing of ours left.
pub fn entirely(pid: i32) -> Result<()> {
    soon(pid, false)
}

/// The same at a moment in which `quiet` is true before and after the look: of one that is checkpointed again and again.
pub fn entirely_between(pid: i32, quiet: impl Fn() -> bool) -> Result<()> {
    let mut wrong = String::new();
    let settled = run::until("", SOON, || {
        let before = quiet();
        wrong = look(pid, false);
        Ok(wrong.is_empty() && before && quiet())
    });
    if settled.is_err() {
        bail!("PID {pid} is not as it was {SOON:?} after: {wrong}");
    }
    Ok(())
}

/// The same of a process and all below it, none of which we have made.
pub fn family(pid: i32) -> Result<()> {
    soon_all(pid, false)
}

/// The same; after an emergency exit the one documented mapping may be in each.
pub fn family_but_for_the_documented(pid: i32) -> Result<()> {
    soon_all(pid, true)
}

fn soon_all(pid: i32, emergency: bool) -> Result<()> {
    let mut wrong = String::new();
    let settled = run::until("", SOON, || {
        let ended = |pid: &i32| proc::status(*pid).is_none_or(|s| s.state == 'Z');
        let all = std::iter::once(pid).chain(proc::descendants(pid).into_iter().filter(|p| !ended(p)));
        let one = |of: i32| match look_at(of, emergency) {
            // a child may have ended meanwhile
            w if w.is_empty() || of != pid && ended(&of) => String::new(),
            w => format!("{of}: {w}"),
        };
        wrong = all.map(one).collect();
        Ok(wrong.is_empty())
    });
    if settled.is_err() {
        bail!("the tree of PID {pid} is not as it was {SOON:?} after: {wrong}");
    }
    Ok(())
}

/// It runs; after an emergency exit the one documented mapping may be in it, and one zombie be its child, until the next
/// checkpoint.
pub fn but_for_the_documented(pid: i32) -> Result<()> {
    soon(pid, true)
}

/// A tracer whose recorder was killed needs a moment to cure.
fn soon(pid: i32, emergency: bool) -> Result<()> {
    let mut wrong = String::new();
    let settled = run::until("", SOON, || {
        wrong = look(pid, emergency);
        Ok(wrong.is_empty())
    });
    if settled.is_err() {
        bail!("PID {pid} is not as it was {SOON:?} after: {wrong}");
    }
    Ok(())
}

fn look(pid: i32, emergency: bool) -> String {
    let Some(status) = proc::status(pid) else { return "it is gone".into() };
    if !matches!(status.state, 'R' | 'S' | 'D') {
        return format!("its state is {}", status.state);
    }
    if status.tracer != 0 {
        return format!("it is traced by PID {}", status.tracer);
    }
    let children: Vec<_> = proc::children(pid).into_iter().filter_map(|c| Some((c, proc::status(c)?))).collect();
    let zombies = children.iter().filter(|(_, s)| s.state == 'Z').count();
    if children.len() > zombies || zombies > emergency as usize {
        let list: Vec<String> = children.iter().map(|(c, s)| format!("{c} ({}, {})", s.comm, s.state)).collect();
        return format!("it has children: {}", list.join(", "));
    }
    left(pid, emergency)
}

/// What is left in it of ours, whatever children it has.
fn look_at(pid: i32, emergency: bool) -> String {
    let Some(status) = proc::status(pid) else { return "it is gone".into() };
    match status.tracer {
        0 if status.state == 'T' => String::new(),
        0 => left(pid, emergency),
        t => format!("it is traced by PID {t}"),
    }
}

fn left(pid: i32, emergency: bool) -> String {
    let ours = proc::ours(pid);
    let one_block = ours.windows(2).all(|w| w[0].end == w[1].start);
    let permitted = ours.is_empty() || (emergency && one_block);
    if !permitted {
        return format!("it has mappings of ours: {ours:x?}");
    }
    if stopped_threads(pid) > 0 {
        return "some of its threads are stopped".into();
    }
    String::new()
}

fn stopped_threads(pid: i32) -> usize {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let tids = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok());
    // The status of a thread is read like that of a process.
    tids.filter(|t| proc::status(*t).is_some_and(|s| matches!(s.state, 'T' | 't') || s.tracer != 0)).count()
}
