//! Door 1, the agent, on the recorder's side: without ptrace. A signal calls every thread into the preloaded agent's handler, where all park
//! but one, which serves. What ptrace would have told is told by the threads themselves as they come in.
mod copies;
mod look;
mod quiesce;
mod state;

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

pub use copies::Copies;
pub use look::{is_leaving, may_open, present, Absent};
pub use quiesce::{freeze, open, Quiesced, Shut};
