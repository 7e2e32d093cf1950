//! What would make a checkpoint fail, by looking only.
use super::find;
use super::shared::Others;
use super::{explain, shares, strict, tree};
use crate::{Door, Result};

/// Looks at a process and all below it; gives what is not kept.
pub(super) fn preflight(pid: i32, external: &crate::Externals, strictly: bool, risk: bool) -> Result<Vec<String>> {
    let attempted = format!("checkpoint PID {pid}");
    let mut all = Vec::new();
    let living = tree::living(&[pid]).map_err(|e| explain(e.into(), &attempted, "find", false))?;
    let living: Vec<i32> = living.into_iter().map(|f| f.pid).collect();
    let tables = shares::seen_together(&living);
    for of in if living.is_empty() { vec![pid] } else { living } {
        let called = !tables.contains(&of) && sys::agent::check(of).is_ok();
        let door = if called { Door::Agent } else { Door::Attach };
        let look = |door| find::survey(of, attempted.clone(), (external, risk), door, Vec::new());
        let s = match look(door) {
            Ok(s) if door == Door::Agent && s.shut_to_agent().is_some() => look(Door::Attach),
            s => s,
        };
        match s {
            Err(_) if of != pid && sys::procfs::is_ending(of) => {}
            s => all.push(s?),
        }
    }
    shares::with_others(&mut all);
    shares::too_many(&mut all);
    find::together(&mut all, &mut Others::default())?;
    find::refuse(&all, true)?;
    for s in all.iter().filter(|s| s.door == Door::Attach) {
        super::way_in(s, &[0; 8])?;
    }
    let reported = strict::surveys(&all);
    if strictly {
        strict::refuse(&attempted, reported.clone())?;
    }
    Ok(reported)
}
