//! Door 1, the agent, on the recorder's side: without ptrace. A signal calls every thread into the preloaded agent's handler, where all park
//! but one, which serves. What ptrace would have told is told by the threads themselves as they come in.
mod copies;
mod look;
mod quiesce;
mod state;
mod visit;

/// How the names of the agent's files begin; then its identity in hex, and ".so".
pub const FILE: &str = "dormouse-agent-";

/// The agent that this build carries, and its identity.
pub fn carried() -> (&'static [u8], u64) {
    (payload::AGENT, payload::agent_id())
}

/// Name of its memory in a restored program.
pub const NAME: &[u8] = b"agent.dormouse";

/// Whether a mapped file is an agent.
pub fn is_file(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    name.starts_with(FILE.as_bytes()) && name.ends_with(b".so")
}

pub use copies::{same_open_file, Copies};
pub(crate) use look::stack;
pub use look::{check, has_region, is_leaving, may_open, Absent};
pub use quiesce::{freeze, open, Quiesced, Shut};
pub use visit::{Visit, Visited};

/// The line of the environment that tells a launched program's agent which signals are its session's triggers, and who its parent, the supervisor, is:
/// name and value.
pub fn triggers(signals: &[i32], supervisor: i32) -> (String, String) {
    let name = String::from_utf8_lossy(wire::agent::TRIGGERS_LINE).trim_end_matches('=').to_owned();
    let one = |i: usize| signals.get(i).copied().unwrap_or(0);
    (name, format!("{},{},{supervisor},{:0width$}", one(0), one(1), 0, width = wire::agent::TRIGGERS_PID))
}
