//! Sockets.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What every socket has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Socket {
    /// AF_ constant.
    pub domain: i32,
    /// SOCK_ constant.
    pub kind: i32,
    /// Protocol number.
    pub protocol: i32,
    /// Inode: identity within the image.
    pub ino: u64,
    /// Own address, a sockaddr; empty: unbound.
    pub local: ByteBuf,
    /// Peer's address, a sockaddr; empty: not connected.
    pub remote: ByteBuf,
    /// Options that differ from a fresh socket's: level, name, value.
    pub options: Vec<(i32, i32, ByteBuf)>,
    /// Backlog of a listening socket; -1: it does not listen.
    pub backlog: i32,
    /// Peer's inode, for unix sockets connected within the image; 0: none.
    pub peer: u64,
    /// What is queued to be read: one entry a message (a stream: one entry in all).
    pub queue: Vec<Message>,
    /// RCV_SHUTDOWN 1 | SEND_SHUTDOWN 2. Of TCP: 3 if it had a connection that has ended.
    pub shutdown: u8,
    /// Mode of a unix socket's file.
    pub file_mode: u32,
}

/// A queued message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Sender's sockaddr.
    pub from: ByteBuf,
    /// Content.
    pub data: ByteBuf,
    /// Descriptors that come with it (SCM_RIGHTS): indices in `Files::open`.
    pub rights: Vec<u32>,
}
