//! Memory protection keys, pkeys(7). What a thread may do with them is in its extended state (PKRU).
use serde::{Deserialize, Serialize};

/// Those of a process that has any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// Whose: PID in the innermost namespace.
    pub pid: i32,
    /// Bit n: key n is allocated (pkey_alloc). That of key 0, which always is, is not set.
    pub allocated: u32,
    /// The kernel's own, for memory that may only be executed; 0: none.
    pub execute_only: u32,
    /// Mappings that have another key than 0, by address. It may have been freed since.
    pub on: Vec<On>,
}

/// A mapping with a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct On {
    /// First address.
    pub start: u64,
    /// Its key.
    pub key: u32,
}
