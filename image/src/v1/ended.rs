//! First threads that have ended while others of their process run.
use serde::{Deserialize, Serialize};

/// The first thread of a process, whose record among the threads has its number and name, and no state to go on with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct First {
    /// PID of the process in the innermost PID namespace.
    pub pid: i32,
    /// How it has ended, as a wait status: what the process will have ended with, if its other threads end as this did.
    pub status: i32,
}
