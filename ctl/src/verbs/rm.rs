//! `ctl rm NAME@N`: removes one checkpoint. `ctl rm NAME`: removes a session that does not run, with everything of it.
use std::fs;
use std::path::Path;

use engine::{Error, Kind};
use serde_json::json;
use session::lock::Lock;
use session::{image_error, StateDir};

use crate::cli::OneCheckpoint;
use crate::out::{self, Out};
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &OneCheckpoint) -> Result<Done, Error> {
    let spec = name::spec("remove", &args.what)?;
    let attempted = format!("remove {spec}");
    let store = state.store()?;
    // Asked before the lock is taken, which makes the session's folder.
    let have = store.numbers(&spec.name).map_err(|e| image_error(&attempted, e))?;
    let lock = Lock::take(state, &spec.name, &attempted)?;
    let folder = store.session_dir(&spec.name);
    let before = size(&folder);
    let removed = match spec.n {
        Some(n) => {
            store.remove(&spec.name, n).map_err(|e| image_error(&attempted, e))?;
            vec![n]
        }
        None => {
            if let Some(pid) = session::registry::live(state, &spec.name)?.map(|l| l.program.pid) {
                return Err(Error::new(
                    Kind::Refused,
                    attempted,
                    format!("session {}", spec.name),
                    format!("its program runs, as PID {pid}"),
                    format!(
                        "end it first with ctl kill {0}, or remove single checkpoints with ctl rm {0}@N",
                        spec.name
                    ),
                ));
            }
            store.remove_session(&spec.name).map_err(|e| image_error(&attempted, e))?;
            have
        }
    };
    drop(lock);
    let freed = before.saturating_sub(size(&folder));
    let result =
        json!({"name": spec.name.as_str(), "removed": removed, "session": spec.n.is_none(), "freed_bytes": freed});
    out.done(result, || match spec.n {
        Some(_) => format!("removed {spec}, {} freed", out::bytes(freed)),
        None => format!("removed {spec} and its {} checkpoints, {} freed", removed.len(), out::bytes(freed)),
    })?;
    Ok(Done::Code(0))
}

/// Bytes of all files below a folder; 0 if it is gone.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}
