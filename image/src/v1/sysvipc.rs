//! System V semaphores and message queues that belong to the program: what no descriptor or mapping leads to.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The last to use it were the program's processes, or it waits in a call on it: it is put back to what it was, or made again.
pub const USE_OWN: u32 = 0;
/// Others use it, too: it stays as it is, and its content is not stored.
pub const USE_SHARED: u32 = 1;
/// Of a queue: the program uses it, and so did a process that has ended and may have been another's. It stays as it is if it is there, and is made again
/// if not.
pub const USE_VISITED: u32 = 2;

/// Objects of an IPC namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SysvIpc {
    /// Sets of semaphores.
    pub sets: Vec<SemaphoreSet>,
    /// Message queues.
    pub queues: Vec<MessageQueue>,
}

/// What both kinds have: `struct ipc_perm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Perm {
    /// Its number: semid, msqid.
    pub id: i32,
    /// Key; 0: IPC_PRIVATE.
    pub key: i32,
    /// Permissions.
    pub mode: u32,
    /// Owner: user and group.
    pub owner: (u32, u32),
    /// Who made it: user and group.
    pub creator: (u32, u32),
    /// One of the `USE_` constants.
    pub used: u32,
}

/// A set of semaphores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SemaphoreSet {
    /// Number, key, permissions.
    pub perm: Perm,
    /// Value of each semaphore.
    pub values: Vec<u16>,
    /// PID in the innermost namespace of who used each last (GETPID); 0: nobody of the program's.
    pub last: Vec<i32>,
    /// What is to be given back when a process ends (SEM_UNDO).
    pub undo: Vec<Undo>,
}

/// Adjustments of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Undo {
    /// Its PID in the innermost namespace.
    pub pid: i32,
    /// Number of the semaphore in its set, and what is added to its value (semadj).
    pub adjust: Vec<(u16, i32)>,
}

/// A message queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageQueue {
    /// Number, key, permissions.
    pub perm: Perm,
    /// Most bytes in it (msg_qbytes).
    pub most: u64,
    /// PID in the innermost namespace of who sent the last message; 0: nobody of the program's.
    pub sender: i32,
    /// The same of who received the last one.
    pub receiver: i32,
    /// Its messages, the first one first.
    pub messages: Vec<QueuedMessage>,
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuedMessage {
    /// Its type, above 0.
    pub kind: i64,
    /// Its content.
    pub data: ByteBuf,
}
