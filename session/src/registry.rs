//! What is live under which name. One file per session, written whole; what it says is believed only as far as the
//! processes that it names are those that they were (PID, start time, boot).
use crate::errors::storage;
use crate::lock::Lock;
use crate::state::write_atomically;
use crate::{store_calls, Listed, Mode, ProcId, Result, State, StateDir, Triggers};
use engine::{Error, Kind};
use image::{SessionName, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// What runs under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The session.
    pub name: String,
    /// How it came to be.
    pub mode: Mode,
    /// The program.
    pub program: ProcId,
    /// PID 1 of the private PID namespace it was restored into.
    #[serde(default)]
    pub init: Option<ProcId>,
    /// Its supervisor; none of an attached session.
    #[serde(default)]
    pub supervisor: Option<ProcId>,
    /// The way in that it was started for: "attach", or "agent" where that was preloaded.
    pub door: String,
    /// Its command line, for people.
    pub command: String,
    /// The checkpoint it was restored from.
    #[serde(default)]
    pub from: Option<u64>,
    /// When it was registered, in seconds since 1970.
    pub created: u64,
    /// What makes checkpoints of it by itself.
    #[serde(default, skip_serializing_if = "Triggers::is_empty")]
    pub triggers: Triggers,
}

impl Live {
    /// True while anything of it runs.
    pub fn lives(&self) -> bool {
        self.program.lives() || self.init.as_ref().is_some_and(ProcId::lives) || self.supervised()
    }

    /// True while its supervisor is there.
    pub fn supervised(&self) -> bool {
        self.supervisor.as_ref().is_some_and(ProcId::lives)
    }

    /// What it is doing, if it is live.
    pub fn state(&self) -> Option<State> {
        match self.program.state() {
            Some('T') => Some(State::Stopped),
            _ if self.lives() => Some(State::Live),
            _ => None,
        }
    }
}

/// How a session ended last.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Last {
    how: String,
    ended: u64,
}

const LIVE: &str = "live.json";
const LAST: &str = "last.json";

/// What runs under `name`; None if nothing does, whatever an old file says.
pub fn live(state: &StateDir, name: &SessionName) -> Result<Option<Live>> {
    let path = state.session(name).join(LIVE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(storage(format!("look up session {name}"), &path, &e)),
    };
    match serde_json::from_slice::<Live>(&bytes) {
        Ok(live) => Ok(live.lives().then_some(live)),
        Err(e) => Err(Error::new(
            Kind::Storage,
            format!("look up session {name}"),
            path.display().to_string(),
            format!("it cannot be read ({e})"),
            "remove this file if nothing of the session runs",
        )),
    }
}

/// Registers what runs under a name.
pub(crate) fn register(state: &StateDir, name: &SessionName, live: &Live) -> Result<()> {
    let path = state.make_session(name)?.join(LIVE);
    let doing = || format!("register session {name}");
    let bytes = serde_json::to_vec_pretty(live).map_err(|e| crate::errors::failed(doing(), "serde_json", e))?;
    write_atomically(&path, &bytes).map_err(|e| storage(doing(), &path, &e))
}

/// Takes a registration back: what was registered did not come to run. The lock is held.
pub(crate) fn withdraw(state: &StateDir, name: &SessionName) {
    // One that stays is not believed, as its process is gone.
    let _ = fs::remove_file(state.session(name).join(LIVE));
}

/// Nothing runs under the name any more; `how` it ended is kept if anything else of the session is.
pub(crate) fn unregister(state: &StateDir, name: &SessionName, how: &str) {
    let dir = state.session(name);
    // All of this is housekeeping after the end: the processes are gone, and a stale record is not believed.
    let _ = fs::remove_file(dir.join("control"));
    let checkpoints = state.store().and_then(|s| store_calls::numbers(&s, name));
    let kept = checkpoints.map_or(true, |n| !n.is_empty()) || dir.join("log").exists();
    if kept {
        let last = Last { how: how.into(), ended: now() };
        let _ = serde_json::to_vec_pretty(&last).map(|b| write_atomically(&dir.join(LAST), &b));
    }
    // Last: from here on the name can be started or restored again.
    let _ = fs::remove_file(dir.join(LIVE));
    if !kept {
        forget(state, name);
    }
}

/// What there was of a session before a restore that may fail.
pub(crate) struct Before {
    folder: bool,
    log: bool,
}

impl Before {
    pub(crate) fn of(state: &StateDir, name: &SessionName) -> Before {
        Before { folder: state.session(name).exists(), log: state.log(name).exists() }
    }

    /// It failed: takes away what was made for it, unless somebody else is at the session meanwhile.
    pub(crate) fn again(&self, state: &StateDir, name: &SessionName) {
        if !self.log && state.log(name).exists() {
            let Ok(_lock) = Lock::take(state, name, "tidy up") else { return };
            let empty = fs::metadata(state.log(name)).is_ok_and(|m| m.len() == 0);
            if empty && matches!(live(state, name), Ok(None)) {
                // One that stays is listed as a session that has ended.
                let _ = fs::remove_file(state.log(name));
            }
        }
        if !self.folder && state.session(name).exists() {
            forget(state, name);
        }
    }
}

/// Removes the folder of a session of which nothing is left, unless somebody is at it or anything else lies in it.
pub(crate) fn forget(state: &StateDir, name: &SessionName) {
    let Ok(_lock) = Lock::take(state, name, "tidy up") else { return };
    if !matches!(live(state, name), Ok(None)) {
        return;
    }
    let dir = state.session(name);
    for file in [LIVE, LAST, "control", "lock"] {
        // Whatever cannot be removed keeps the folder, which is then the sign of it.
        let _ = fs::remove_file(dir.join(file));
    }
    let _ = fs::remove_dir(&dir);
}

/// True if the name is not in use and never was in this state directory.
pub(crate) fn unused(state: &StateDir, store: &Store, name: &SessionName) -> Result<bool> {
    Ok(!state.session(name).exists() && store_calls::numbers(store, name)?.is_empty())
}

/// Makes the session's folder; false if another was faster.
pub(crate) fn claim(state: &StateDir, name: &SessionName) -> Result<bool> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = state.session(name);
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(storage("make the folder of a session", &dir, &e)),
    }
}

/// Refuses if something runs under the name.
pub(crate) fn require_not_live(state: &StateDir, name: &SessionName, attempted: &str, remedy: &str) -> Result<()> {
    match live(state, name)? {
        None => Ok(()),
        Some(l) => Err(Error::new(
            Kind::Refused,
            attempted,
            format!("session {name}"),
            format!("it is live as PID {}", l.program.pid),
            remedy,
        )),
    }
}

/// All sessions that are there, by name.
pub fn list(state: &StateDir) -> Result<Vec<Listed>> {
    let store = state.store()?;
    let mut names = BTreeSet::new();
    let dir = state.sessions();
    for entry in fs::read_dir(&dir).map_err(|e| storage("list sessions", &dir, &e))? {
        let entry = entry.map_err(|e| storage("list sessions", &dir, &e))?;
        if let Some(name) = entry.file_name().to_str().and_then(|n| SessionName::new(n).ok()) {
            names.insert(name);
        }
    }
    let mut all = Vec::new();
    for name in names {
        all.extend(look(state, &store, &name)?);
    }
    Ok(all)
}

/// One session, as `list` shows it; [`Kind::NoSuch`] if there is none of that name.
pub fn status(state: &StateDir, name: &SessionName) -> Result<Listed> {
    look(state, &state.store()?, name)?.ok_or_else(|| no_such(name, &format!("look at {name}")))
}

pub(crate) fn no_such(name: &SessionName, attempted: &str) -> Error {
    Error::new(
        Kind::NoSuch,
        attempted,
        format!("session {name}"),
        "there is none of that name",
        "ctl list shows those there are",
    )
}

fn look(state: &StateDir, store: &Store, name: &SessionName) -> Result<Option<Listed>> {
    let dir = state.session(name);
    let live = live(state, name)?;
    let checkpoints = store_calls::numbers(store, name)?;
    let log = Some(dir.join("log")).filter(|p| p.exists());
    let last: Option<Last> = fs::read(dir.join(LAST)).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let doing = match live.as_ref().and_then(Live::state) {
        Some(state) => state,
        None if !checkpoints.is_empty() => State::Dead,
        None if log.is_some() || last.is_some() => State::Ended,
        None => return Ok(None),
    };
    Ok(Some(Listed { name: name.to_string(), state: doing, live, checkpoints, last: last.map(|l| l.how), log }))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(program: ProcId) -> Live {
        Live {
            name: "web".into(),
            mode: Mode::Attached,
            program,
            init: None,
            supervisor: None,
            door: "attach".into(),
            command: "sleep 1".into(),
            from: None,
            created: now(),
            triggers: Triggers::default(),
        }
    }

    fn state() -> (tempfile::TempDir, StateDir, SessionName) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        (dir, state, SessionName::new("web").unwrap())
    }

    #[test]
    fn a_reused_pid_or_another_boot_is_not_taken_for_a_live_session() {
        let (_dir, state, web) = state();
        let me = ProcId::me().unwrap();
        register(&state, &web, &record(me.clone())).unwrap();
        assert_eq!(live(&state, &web).unwrap(), Some(record(me.clone())));
        let e = require_not_live(&state, &web, "restore web@3", "use --as NEW or ctl kill web").unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        let said =
            format!("cannot restore web@3: session web: it is live as PID {}; use --as NEW or ctl kill web", me.pid);
        assert_eq!(e.to_string(), said);
        register(&state, &web, &record(ProcId { start: me.start - 1, ..me.clone() })).unwrap();
        assert_eq!(live(&state, &web).unwrap(), None);
        register(&state, &web, &record(ProcId { boot: "the boot before".into(), ..me })).unwrap();
        assert_eq!(live(&state, &web).unwrap(), None);
        assert!(list(&state).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_named() {
        let (_dir, state, web) = state();
        state.make_session(&web).unwrap();
        fs::write(state.session(&web).join(LIVE), "{").unwrap();
        let e = live(&state, &web).unwrap_err();
        assert_eq!(e.kind, Kind::Storage);
        assert!(e.to_string().contains("live.json: it cannot be read"), "{e}");
    }

    #[test]
    fn an_ended_session_without_checkpoints_leaves_its_log_or_nothing() {
        let (_dir, state, web) = state();
        register(&state, &web, &record(ProcId::me().unwrap())).unwrap();
        unregister(&state, &web, "exited with 0");
        assert!(!state.session(&web).exists());
        register(&state, &web, &record(ProcId::me().unwrap())).unwrap();
        fs::write(state.log(&web), "x").unwrap();
        unregister(&state, &web, "exited with 3");
        let l = status(&state, &web).unwrap();
        assert_eq!((l.state, l.last.as_deref()), (State::Ended, Some("exited with 3")));
    }
}
