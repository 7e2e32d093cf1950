//! POSIX message queues.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// An open queue. The messages are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mqueue {
    /// Name, without the slash.
    pub name: ByteBuf,
    /// Most messages.
    pub most: i64,
    /// Most bytes of one.
    pub size: i64,
    /// Messages that waited.
    pub waiting: i64,
    /// Type and mode.
    pub mode: u32,
}
