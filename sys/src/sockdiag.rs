//! NETLINK_SOCK_DIAG: what the kernel tells about sockets it does not tell through a descriptor
//! (sock_diag(7), net/ipv4/inet_diag.c, net/unix/diag.c). It sees the network namespace in which its own
//! socket was made: for a target in another one see [`SockDiag::open_in_netns_of`].

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{setns, CloneFlags};
use nix::sys::socket::{recv, send, socket, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use crate::procfs::{Dev, Pid};

mod message;

use message::{
    inet_request, message, u16_at, u32_at, unix_request, HEADER, NLMSG_DONE, NLMSG_ERROR, NLM_F_DUMP, NLM_F_DUMP_INTR,
    NLM_F_REQUEST, SOCK_DIAG_BY_FAMILY,
};
pub use message::{parse_inet, parse_unix};

/// How often a dump that changed under way is asked for again.
const ATTEMPTS: usize = 8;

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// The netlink socket did not work.
    #[error("cannot {op} the sock_diag socket: {source}")]
    Io {
        /// What was done: `open`, `ask`, `read`.
        op: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused the query: ENOENT is no such socket, or a family it cannot report on.
    #[error("sock_diag query for {what} refused: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An answer that is cut short.
    #[error("sock_diag answer for {what} is malformed")]
    Malformed {
        /// What was asked for.
        what: &'static str,
    },
}

impl SockDiagError {
    /// The errno, if it came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            SockDiagError::Io { source, .. } | SockDiagError::Refused { source, .. } => source.raw_os_error(),
            SockDiagError::Malformed { .. } => None,
        }
    }
}

/// The result of a query.
pub type Result<T> = std::result::Result<T, SockDiagError>;

/// Address family of an inet query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// AF_INET
    V4,
    /// AF_INET6
    V6,
}

/// Protocol of an inet query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// IPPROTO_TCP
    Tcp,
    /// IPPROTO_UDP
    Udp,
    /// IPPROTO_UDPLITE (gone from 7.1)
    UdpLite,
    /// IPPROTO_RAW: needs CONFIG_INET_RAW_DIAG
    Raw,
}

/// A socket of TCP, UDP or raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetSock {
    /// Its family: a V6 socket that took a v4-mapped peer stays V6.
    pub family: Family,
    /// TCP_ESTABLISHED (1) .. TCP_LISTEN (10) of include/net/tcp_states.h. TCP_CLOSE (7) is a TCP socket
    /// that is bound and no more (6.8+; not shown before). UDP has 1 connected, 7 not.
    pub state: u8,
    /// Local address.
    pub local: SocketAddr,
    /// Remote address; unspecified if not connected.
    pub remote: SocketAddr,
    /// Interface bound to, or of the peer's link-local address; 0 for none.
    pub ifindex: u32,
    /// Never the same for two sockets of one boot.
    pub cookie: u64,
    /// Bytes to read; of a listener, connections not yet accepted.
    pub rqueue: u32,
    /// Bytes not yet acknowledged; of a listener, its backlog.
    pub wqueue: u32,
    /// Owner.
    pub uid: u32,
    /// Inode; 0 if no descriptor holds it (TIME_WAIT, SYN_RECV, orphans).
    pub inode: u32,
    /// Which timer runs: 0 none, 1 retransmit, 2 keepalive, 3 TIME_WAIT, 4 zero window probe.
    pub timer: u8,
    /// Unanswered retransmissions or probes.
    pub retransmits: u8,
    /// Time until the timer, in milliseconds.
    pub expires_ms: u32,
    /// V6, listening or closed: it takes no IPv4. A bind to one address sets it, IPV6_V6ONLY or not.
    pub v6only: Option<bool>,
    /// Shut down: 1 receiving, 2 sending, 3 both.
    pub shutdown: Option<u8>,
    /// IP_TOS.
    pub tos: Option<u8>,
    /// IPV6_TCLASS.
    pub tclass: Option<u8>,
    /// SO_MARK (to a reader with CAP_NET_ADMIN).
    pub mark: Option<u32>,
    /// Congestion control (TCP).
    pub congestion: Option<Vec<u8>>,
    /// Memory and limits.
    pub memory: Option<Memory>,
    /// struct tcp_info, in the kernel's layout and length.
    pub tcp_info: Option<Vec<u8>>,
}

/// SO_MEMINFO, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Receive memory in use.
    pub rmem: u32,
    /// SO_RCVBUF, as the kernel doubled it.
    pub rcvbuf: u32,
    /// Send memory in use.
    pub wmem: u32,
    /// SO_SNDBUF, as the kernel doubled it.
    pub sndbuf: u32,
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSock {
    /// SOCK_STREAM (1), SOCK_DGRAM (2), SOCK_SEQPACKET (5).
    pub kind: u8,
    /// TCP_ESTABLISHED (1), TCP_SYN_SENT (2), TCP_CLOSE (7), TCP_LISTEN (10); a connected datagram
    /// socket has 1 too.
    pub state: u8,
    /// Inode.
    pub inode: u32,
    /// Never the same for two sockets of one boot.
    pub cookie: u64,
    /// sun_path as bound, a path without its final NUL, an abstract name with its leading NUL.
    /// None if unbound; relative paths stay relative.
    pub name: Option<Vec<u8>>,
    /// Inode and device of the file bound to, if it is a path.
    pub vfs: Option<(u32, Dev)>,
    /// Inode of the peer; 0 if no process holds that one: not yet accepted, or closed (then `shutdown`
    /// is 3). None if there never was a peer.
    pub peer: Option<u32>,
    /// Of a listener: inodes of the clients whose connections wait for accept, in their order.
    pub pending: Vec<u32>,
    /// Bytes to read; of a listener, connections that wait; of datagrams, those of the first one.
    pub rqueue: u32,
    /// Bytes sent and not yet read by the peer; of a listener, its backlog.
    pub wqueue: u32,
    /// Memory and limits.
    pub memory: Option<Memory>,
    /// Shut down: 1 receiving, 2 sending, 3 both.
    pub shutdown: u8,
    /// Owner.
    pub uid: Option<u32>,
}

/// A netlink socket for queries, not to be shared between threads that ask at the same time.
#[derive(Debug)]
pub struct SockDiag {
    fd: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    /// Opens one in the calling thread's network namespace. No privilege is needed.
    pub fn open() -> Result<SockDiag> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
            .map_err(|e| SockDiagError::Io { op: "open", source: e.into() })?;
        Ok(SockDiag::from_fd(fd))
    }

    /// Opens one in the network namespace of another process: in a thread that enters it and ends. Needs
    /// CAP_SYS_ADMIN in the caller's and in that namespace's user namespace.
    pub fn open_in_netns_of(pid: Pid) -> Result<SockDiag> {
        let io = |source| SockDiagError::Io { op: "enter a network namespace for", source };
        let netns = File::open(format!("/proc/{pid}/ns/net")).map_err(io)?;
        let enter_and_open = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| io(e.into()))?;
            SockDiag::open()
        };
        let thread = std::thread::Builder::new().spawn(enter_and_open).map_err(io)?;
        thread.join().unwrap_or_else(|_| Err(io(io::Error::other("the thread panicked"))))
    }

    /// Uses a NETLINK_SOCK_DIAG socket that was made in another network namespace.
    pub fn from_fd(fd: OwnedFd) -> SockDiag {
        SockDiag { fd, sequence: 0 }
    }

    /// All sockets of one family and protocol whose state is among `states` (bit n for state n of [`InetSock::state`]). Listeners alone
    /// are found without a walk over the table of connections.
    pub fn inet(&mut self, family: Family, protocol: Protocol, states: u32) -> Result<Vec<InetSock>> {
        let request = inet_request(family, protocol, states);
        self.dump(&request, what(family, protocol), parse_inet)
    }

    /// All unix sockets, in every state.
    pub fn unix(&mut self) -> Result<Vec<UnixSock>> {
        self.dump(&unix_request(0), "unix sockets", parse_unix)
    }

    /// One unix socket; None if there is none of this inode. It costs the same however many there are.
    pub fn unix_by_inode(&mut self, inode: u32) -> Result<Option<UnixSock>> {
        if inode == 0 {
            return Ok(None);
        }
        let answer = self.query(&unix_request(inode), NLM_F_REQUEST, "a unix socket", parse_unix);
        match answer {
            Ok((mut socks, _)) => Ok(socks.pop()),
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A dump, again if the table changed under way; after several attempts the last one is given.
    fn dump<T>(&mut self, request: &[u8], what: &'static str, parse: fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut last = Vec::new();
        for _ in 0..ATTEMPTS {
            let (found, whole) = self.query(request, flags, what, parse)?;
            last = found;
            if whole {
                break;
            }
        }
        Ok(last)
    }

    /// Asks and reads to the end: what was found, and whether the table stayed as it was meanwhile.
    fn query<T>(
        &mut self,
        request: &[u8],
        flags: u16,
        what: &'static str,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<(Vec<T>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(request, flags, self.sequence);
        let io = |op, e: nix::Error| SockDiagError::Io { op, source: e.into() };
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty()).map_err(|e| io("ask", e))?;
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut buffer = vec![0u8; 64 << 10];
        let mut answer = Answer { found: Vec::new(), whole: true, done: false };
        while !answer.done {
            let got = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(|e| io("read", e))?,
            };
            if got == 0 {
                return Err(SockDiagError::Malformed { what });
            }
            answer.take(&buffer[..got], self.sequence, dump, what, parse)?;
        }
        Ok((answer.found, answer.whole))
    }
}

struct Answer<T> {
    found: Vec<T>,
    whole: bool,
    done: bool,
}

impl<T> Answer<T> {
    /// Takes one datagram of netlink messages. Those of an earlier question are passed over.
    fn take(
        &mut self,
        mut data: &[u8],
        sequence: u32,
        dump: bool,
        what: &'static str,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<()> {
        let malformed = || SockDiagError::Malformed { what };
        while !data.is_empty() {
            let length = u32_at(data, 0).ok_or_else(malformed)? as usize;
            let body = data.get(HEADER..length).ok_or_else(malformed)?;
            let kind = u16_at(data, 4).ok_or_else(malformed)?;
            let flags = u16_at(data, 6).ok_or_else(malformed)?;
            let ours = u32_at(data, 8) == Some(sequence);
            data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
            if !ours {
                continue;
            }
            self.whole &= flags & NLM_F_DUMP_INTR == 0;
            match kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    // Both carry an errno; DONE's is absent on old kernels, and negative if a dump failed.
                    let errno = (u32_at(body, 0).unwrap_or(0) as i32).wrapping_neg();
                    if errno > 0 {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(SockDiagError::Refused { what, source });
                    }
                    self.done = true;
                }
                SOCK_DIAG_BY_FAMILY => {
                    self.found.push(parse(body).ok_or_else(malformed)?);
                    self.done |= !dump;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn what(family: Family, protocol: Protocol) -> &'static str {
    match (protocol, family) {
        (Protocol::Tcp, Family::V4) => "TCP sockets",
        (Protocol::Tcp, Family::V6) => "TCP sockets of IPv6",
        (Protocol::Udp, Family::V4) => "UDP sockets",
        (Protocol::Udp, Family::V6) => "UDP sockets of IPv6",
        (Protocol::UdpLite, _) => "UDP-Lite sockets",
        (Protocol::Raw, _) => "raw sockets",
    }
}

#[cfg(test)]
mod tests;
