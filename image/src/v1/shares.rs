//! What processes share that are no threads of each other, as clone(2) lets them.
use serde::{Deserialize, Serialize};

/// What a process shares with one that comes before it in the image. PIDs are of the innermost PID namespace, 0: with none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shares {
    /// Whose sharing this is.
    pub pid: i32,
    /// The first of those with which it shares working directory, root and umask (CLONE_FS). Its own record has them, too.
    pub fs: i32,
    /// The first of those with which it shares the descriptor table (CLONE_FILES): that one's record has the descriptors and locks, its own has none.
    pub files: i32,
}

/// What a process shares with one that comes before it in the image, and could not leave: memory. PIDs are of the innermost PID namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Whose sharing this is.
    pub pid: i32,
    /// The first of those with which it shares its memory (CLONE_VM): that one's record has it, its own has none.
    pub vm: i32,
    /// The first of those with which it shares its signal handlers (CLONE_SIGHAND); 0: with none.
    pub sighand: i32,
}
