//! Ending a session: everything in it, politely first.
use crate::errors::failed;
use crate::procfs::descendants;
use crate::{registry, Killed, Live, ProcId, Result, StateDir};
use engine::{Error, Kind};
use image::SessionName;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;

/// How long SIGTERM may take.
const POLITE: Duration = Duration::from_secs(5);
/// How long SIGKILL may take (a process in a system call that cannot be interrupted), and the supervisor after it.
const FORCED: Duration = Duration::from_secs(5);

/// Ends everything in a session: SIGTERM (with SIGCONT, as a stopped process would not notice), after five seconds
/// SIGKILL. Checkpoints stay. This process itself is spared if it is in the session.
pub fn kill_session(state: &StateDir, name: &SessionName) -> Result<Killed> {
    let attempted = format!("kill {name}");
    let begun = Instant::now();
    let Some(live) = registry::live(state, name)? else {
        // NoSuch if there is no session of that name at all.
        let known = registry::status(state, name).is_ok();
        let remedy = format!("ctl rm {name} removes its checkpoints");
        return Err(match known {
            true => Error::new(Kind::Refused, attempted, format!("session {name}"), "nothing of it runs", remedy),
            false => registry::no_such(name, &attempted),
        });
    };
    let supervisor = live.supervisor.as_ref().filter(|s| s.lives()).and_then(|s| PidFd::open(s.pid).ok());
    let mut known = HashMap::new();
    let polite = sweep(&live, &mut known, POLITE, &[libc::SIGTERM, libc::SIGCONT], &attempted)?;
    let forced = polite.len();
    let left = if forced > 0 { sweep(&live, &mut known, FORCED, &[libc::SIGKILL], &attempted)? } else { polite };
    if let Some(stuck) = left.first() {
        let why = format!("it does not end, even by SIGKILL (state {})", stuck.state().unwrap_or('?'));
        let remedy = "it waits for a device or a file system; try again when that answers";
        return Err(Error::new(Kind::PutBack, attempted, format!("process {}", stuck.pid), why, remedy));
    }
    match supervisor {
        // It unregisters the session when it has reaped all.
        Some(s) if !s.wait_end(FORCED.as_millis() as i32) => {
            let why = "it did not end after its session had";
            return Err(Error::new(Kind::Bug, attempted, "supervisor", why, "end it with SIGKILL, and report this"));
        }
        Some(_) => {}
        None => registry::unregister(state, name, "killed by ctl kill"),
    }
    Ok(Killed { processes: known.len(), forced, took: begun.elapsed() })
}

/// Everything of a session that runs now, but the supervisor and us. A namespace's init comes last: SIGTERM does not end
/// it, and it ends by itself after the others.
fn members(live: &Live) -> Vec<ProcId> {
    let mut all: Vec<ProcId> = Vec::new();
    let roots = [live.supervisor.as_ref(), live.init.as_ref(), Some(&live.program)];
    for root in roots.into_iter().flatten().filter(|r| r.lives()) {
        all.extend(descendants(root.pid));
    }
    all.extend(live.init.iter().chain([&live.program]).filter(|p| p.lives()).cloned());
    all.sort_by_key(|p| (Some(p) == live.init.as_ref(), p.pid));
    all.dedup();
    let me = std::process::id() as i32;
    all.retain(|p| p.pid != me && live.supervisor.as_ref() != Some(p));
    all
}

/// Sends the signals to each member once and waits for their ends; gives those that are left when the time is up.
fn sweep(
    live: &Live,
    known: &mut HashMap<i32, ProcId>,
    limit: Duration,
    signals: &[i32],
    attempted: &str,
) -> Result<Vec<ProcId>> {
    let until = Instant::now() + limit;
    let mut told: HashMap<i32, ProcId> = HashMap::new();
    loop {
        let members = members(live);
        let mut handles = Vec::new();
        for member in &members {
            // Checked after the handle is there: from then on it is this process or nothing.
            let Some(handle) = PidFd::open(member.pid).ok().filter(|_| member.lives()) else { continue };
            if told.get(&member.pid) != Some(member) {
                for sig in signals {
                    match handle.kill(*sig) {
                        Err(e) if e.errno() == Some(libc::EPERM) => {
                            return Err(failed(attempted, &format!("process {}", member.pid), e));
                        }
                        // It ended meanwhile.
                        _ => {}
                    }
                }
                told.insert(member.pid, member.clone());
                known.insert(member.pid, member.clone());
            }
            handles.push(handle);
        }
        if handles.is_empty() {
            return Ok(Vec::new());
        }
        // One that is told may start another before it ends: look again after each end.
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() || !handles[0].wait_end(rest.as_millis() as i32 + 1) {
            return Ok(self::members(live));
        }
    }
}
