//! `ctl kill NAME`: ends a session's program and its descendants.
use engine::Error;
use serde_json::json;
use session::StateDir;

use crate::cli::OneSession;
use crate::out::{self, Out};
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &OneSession) -> Result<Done, Error> {
    let name = name::session("kill", &args.session)?;
    let killed = session::kill_session(state, &name)?;
    let took_ms = killed.took.as_micros() as f64 / 1000.0;
    let result = json!({
        "name": name.as_str(), "processes": killed.processes, "forced": killed.forced, "took_ms": took_ms,
    });
    out.done(result, || {
        let forced = if killed.forced > 0 { format!(", {} by SIGKILL", killed.forced) } else { String::new() };
        let processes =
            if killed.processes == 1 { "1 process".into() } else { format!("{} processes", killed.processes) };
        format!("killed {name}: {processes} ended{forced}, in {}", out::duration(killed.took))
    })?;
    Ok(Done::Code(0))
}
