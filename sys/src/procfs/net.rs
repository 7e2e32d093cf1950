//! `/proc/PID/net/*`: the sockets of a process's network namespace, found by inode (proc_pid_net(5)).
//!
//! For one socket sock_diag (the room beside this one) is exact and faster. These files need no netlink
//! and no netns change: PID's own namespace is what they show.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::bytes::{dec, dec32, hex, hex32, int32, lines, split_at_byte, Words};
use super::{path_of, read_with, ParseError, Pid, Result};

/// Which inet table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum InetTable {
    Tcp,
    Tcp6,
    Udp,
    Udp6,
    Udplite,
    Udplite6,
    Raw,
    Raw6,
    Icmp,
    Icmp6,
}

impl InetTable {
    /// The name below `/proc/PID`.
    pub fn file(self) -> &'static str {
        match self {
            InetTable::Tcp => "net/tcp",
            InetTable::Tcp6 => "net/tcp6",
            InetTable::Udp => "net/udp",
            InetTable::Udp6 => "net/udp6",
            InetTable::Udplite => "net/udplite",
            InetTable::Udplite6 => "net/udplite6",
            InetTable::Raw => "net/raw",
            InetTable::Raw6 => "net/raw6",
            InetTable::Icmp => "net/icmp",
            InetTable::Icmp6 => "net/icmp6",
        }
    }
}

/// A row of tcp, udp or raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetRow {
    /// Local address; for raw the port is the protocol number.
    pub local: SocketAddr,
    /// Remote address; unspecified if not connected.
    pub remote: SocketAddr,
    /// TCP_ESTABLISHED (1) .. (include/net/tcp_states.h); udp has 1 connected, 7 not.
    pub state: u8,
    /// Bytes not yet acknowledged (tcp) or sent; a listener's is 0.
    pub tx_queue: u32,
    /// Bytes not yet read; of a listener, connections not yet accepted.
    pub rx_queue: u32,
    /// Owner.
    pub uid: u32,
    /// Inode; 0 for TIME_WAIT and others that no descriptor holds.
    pub inode: u64,
}

/// A row of unix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixRow {
    /// Reference count.
    pub ref_count: u32,
    /// SO_ACCEPTCON (0x10000) for a listener.
    pub flags: u32,
    /// SOCK_STREAM (1), SOCK_DGRAM (2), SOCK_SEQPACKET (5).
    pub kind: u16,
    /// SS_UNCONNECTED (1), SS_CONNECTING (2), SS_CONNECTED (3), SS_DISCONNECTING (4).
    pub state: u8,
    /// Inode.
    pub inode: u64,
    /// None if unbound. An abstract name begins with `@`, and every NUL in it shows as `@`: ask
    /// sock_diag for the true bytes. A newline in a name makes two lines; they are put together, but a
    /// name that imitates a row is taken for one.
    pub path: Option<Vec<u8>>,
}

impl UnixRow {
    /// It listens.
    pub fn listening(&self) -> bool {
        self.flags & 0x1_0000 != 0
    }
}

/// A row of packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRow {
    /// SOCK_RAW (3) or SOCK_DGRAM (2).
    pub kind: u16,
    /// ETH_P_*.
    pub protocol: u16,
    /// Interface index; 0 for all.
    pub ifindex: i32,
    /// It receives.
    pub running: bool,
    /// Bytes queued.
    pub rmem: u32,
    /// Owner.
    pub uid: u32,
    /// Inode.
    pub inode: u64,
}

/// A row of netlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkRow {
    /// NETLINK_*.
    pub protocol: u32,
    /// Port id.
    pub port: u32,
    /// First 32 multicast groups.
    pub groups: u32,
    /// Bytes queued.
    pub rmem: u32,
    /// Bytes being sent.
    pub wmem: u32,
    /// Inode.
    pub inode: u64,
}

/// `0100007F:1F90`, each 32-bit word in the kernel's byte order.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let (host, port) = split_at_byte(text, b':')?;
    let port = u16::try_from(hex(port)?).ok()?;
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(hex32(host)?.to_ne_bytes())),
        32 => {
            let mut octets = [0; 16];
            for (out, word) in octets.chunks_exact_mut(4).zip(host.chunks_exact(8)) {
                out.copy_from_slice(&hex32(word)?.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn inet_row(line: &[u8]) -> Option<InetRow> {
    let mut words = Words::new(line).skip(1); // sl
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let state = u8::try_from(hex(words.next()?)?).ok()?;
    let (tx, rx) = split_at_byte(words.next()?, b':')?;
    let mut words = words.skip(2); // tr:when, retrnsmt
    let uid = dec32(words.next()?)?;
    let inode = words.nth(1)?; // after timeout
    Some(InetRow { local, remote, state, tx_queue: hex32(tx)?, rx_queue: hex32(rx)?, uid, inode: dec(inode)? })
}

fn unix_row(line: &[u8]) -> Option<UnixRow> {
    let mut words = Words::new(line);
    words.next()?.strip_suffix(b":").and_then(hex)?;
    let ref_count = hex32(words.next()?)?;
    words.next()?; // protocol, always 0
    let flags = hex32(words.next()?)?;
    let kind = u16::try_from(hex(words.next()?)?).ok()?;
    let state = u8::try_from(hex(words.next()?)?).ok()?;
    let inode = dec(words.next()?)?;
    // One blank, then the name with whatever blanks it has.
    let path = words.raw_rest().strip_prefix(b" ").map(<[u8]>::to_vec);
    Some(UnixRow { ref_count, flags, kind, state, inode, path })
}

fn packet_row(line: &[u8]) -> Option<PacketRow> {
    let mut words = Words::new(line).skip(2); // sk, RefCnt
    Some(PacketRow {
        kind: u16::try_from(dec(words.next()?)?).ok()?,
        protocol: u16::try_from(hex(words.next()?)?).ok()?,
        ifindex: int32(words.next()?)?,
        running: dec(words.next()?)? != 0,
        rmem: dec32(words.next()?)?,
        uid: dec32(words.next()?)?,
        inode: dec(words.next()?)?,
    })
}

fn netlink_row(line: &[u8]) -> Option<NetlinkRow> {
    let mut words = Words::new(line).skip(1); // sk
    Some(NetlinkRow {
        protocol: dec32(words.next()?)?,
        port: dec32(words.next()?)?,
        groups: hex32(words.next()?)?,
        rmem: dec32(words.next()?)?,
        wmem: dec32(words.next()?)?,
        inode: dec(words.nth(3)?)?, // after Dump, Locks, Drops
    })
}

fn rows<T>(file: &'static str, text: &[u8], row: fn(&[u8]) -> Option<T>) -> std::result::Result<Vec<T>, ParseError> {
    let parse = |(number, line)| row(line).ok_or_else(|| ParseError::new(file, number, "unexpected row", line));
    lines(text).skip(1).map(parse).collect() // the first line is the heading
}

/// Parses one of the inet tables.
pub fn parse_inet(table: InetTable, text: &[u8]) -> std::result::Result<Vec<InetRow>, ParseError> {
    rows(table.file(), text, inet_row)
}

/// Parses `net/unix`.
pub fn parse_unix(text: &[u8]) -> std::result::Result<Vec<UnixRow>, ParseError> {
    let mut found: Vec<UnixRow> = Vec::new();
    for (number, line) in lines(text).skip(1) {
        if let Some(row) = unix_row(line) {
            found.push(row);
            continue;
        }
        // The rest of a name with a newline in it.
        let path = found.last_mut().and_then(|row| row.path.as_mut());
        let fail = || ParseError::new("net/unix", number, "unexpected row", line);
        let path = path.ok_or_else(fail)?;
        path.push(b'\n');
        path.extend_from_slice(line);
    }
    Ok(found)
}

/// Parses `net/packet`.
pub fn parse_packet(text: &[u8]) -> std::result::Result<Vec<PacketRow>, ParseError> {
    rows("net/packet", text, packet_row)
}

/// Parses `net/netlink`.
pub fn parse_netlink(text: &[u8]) -> std::result::Result<Vec<NetlinkRow>, ParseError> {
    rows("net/netlink", text, netlink_row)
}

/// Reads one of the inet tables; ENOENT if the kernel lacks the protocol.
pub fn read_inet(pid: Pid, table: InetTable) -> Result<Vec<InetRow>> {
    read_with(&path_of(pid, table.file()), |text| parse_inet(table, text))
}

/// Reads `/proc/PID/net/unix`.
pub fn read_unix(pid: Pid) -> Result<Vec<UnixRow>> {
    read_with(&path_of(pid, "net/unix"), parse_unix)
}

/// Reads `/proc/PID/net/packet`.
pub fn read_packet(pid: Pid) -> Result<Vec<PacketRow>> {
    read_with(&path_of(pid, "net/packet"), parse_packet)
}

/// Reads `/proc/PID/net/netlink`.
pub fn read_netlink(pid: Pid) -> Result<Vec<NetlinkRow>> {
    read_with(&path_of(pid, "net/netlink"), parse_netlink)
}
