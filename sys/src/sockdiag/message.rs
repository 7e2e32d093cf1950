//! The bytes of sock_diag messages: requests made, answers parsed. No socket here.
//!
//! struct inet_diag_* are of include/uapi/linux/inet_diag.h, unix_diag_* of unix_diag.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Family, InetSock, Memory, Protocol, UnixSock};
use crate::procfs::Dev;

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const HEADER: usize = 16;

/// struct nlmsghdr and the request.
pub(super) fn message(request: &[u8], flags: u16, sequence: u32) -> Vec<u8> {
    let length = (HEADER + request.len()) as u32;
    let mut out = Vec::with_capacity(length as usize);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes()); // the kernel's port
    out.extend_from_slice(request);
    out
}

/// struct inet_diag_req_v2: everything of those in these states.
pub(super) fn inet_request(family: Family, protocol: Protocol, states: u32) -> Vec<u8> {
    let family = match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    let protocol = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
        Protocol::UdpLite => libc::IPPROTO_UDPLITE as u8,
        Protocol::Raw => libc::IPPROTO_RAW as u8,
    };
    let wanted = [INET_DIAG_INFO, INET_DIAG_CONG, INET_DIAG_TOS, INET_DIAG_TCLASS];
    let ext = wanted.iter().chain(&[INET_DIAG_SKMEMINFO, INET_DIAG_SHUTDOWN]);
    let ext = ext.fold(0u8, |bits, attr| bits | 1 << (attr - 1));
    let mut out = vec![family, protocol, ext, 0];
    out.extend_from_slice(&states.to_ne_bytes()); // idiag_states
    out.resize(8 + 40, 0); // ports, addresses, interface
    out.extend_from_slice(&[0xff; 8]); // INET_DIAG_NOCOOKIE
    out
}

/// struct unix_diag_req.
pub(super) fn unix_request(inode: u32) -> Vec<u8> {
    const SHOW_ALL: u32 = 0x7f; // NAME, VFS, PEER, ICONS, RQLEN, MEMINFO, UID
    let mut out = vec![libc::AF_UNIX as u8, 0, 0, 0];
    out.extend_from_slice(&u32::MAX.to_ne_bytes()); // udiag_states
    out.extend_from_slice(&inode.to_ne_bytes());
    out.extend_from_slice(&SHOW_ALL.to_ne_bytes());
    out.extend_from_slice(&[0xff; 8]); // no cookie
    out
}

const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CONG: u16 = 4;
const INET_DIAG_TOS: u16 = 5;
const INET_DIAG_TCLASS: u16 = 6;
const INET_DIAG_SKMEMINFO: u16 = 7;
const INET_DIAG_SHUTDOWN: u16 = 8;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_MARK: u16 = 15;

const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_MEMINFO: u16 = 5;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
const UNIX_DIAG_UID: u16 = 7;

pub(super) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

/// The attributes (struct rtattr) after a fixed part; a cut one ends the list.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(data, 0)?);
        let kind = u16_at(data, 2)? & 0x3fff; // without NLA_F_NESTED and byte order
        let value = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn memory(value: &[u8]) -> Option<Memory> {
    let word = |index: usize| u32_at(value, index * 4);
    Some(Memory { rmem: word(0)?, rcvbuf: word(1)?, wmem: word(2)?, sndbuf: word(3)? })
}

fn inet_address(family: Family, address: &[u8], port: &[u8]) -> Option<SocketAddr> {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*address.first_chunk::<16>()?)),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port.first_chunk()?)))
}

/// Parses struct inet_diag_msg and its attributes; None if cut short or of a family that is not inet.
pub fn parse_inet(data: &[u8]) -> Option<InetSock> {
    let fixed = data.first_chunk::<72>()?;
    let family = match i32::from(fixed[0]) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let mut sock = InetSock {
        family,
        state: fixed[1],
        timer: fixed[2],
        retransmits: fixed[3],
        local: inet_address(family, &fixed[8..24], &fixed[4..6])?,
        remote: inet_address(family, &fixed[24..40], &fixed[6..8])?,
        ifindex: u32_at(fixed, 40)?,
        cookie: u64_at(fixed, 44)?,
        expires_ms: u32_at(fixed, 52)?,
        rqueue: u32_at(fixed, 56)?,
        wqueue: u32_at(fixed, 60)?,
        uid: u32_at(fixed, 64)?,
        inode: u32_at(fixed, 68)?,
        v6only: None,
        shutdown: None,
        tos: None,
        tclass: None,
        mark: None,
        congestion: None,
        memory: None,
        tcp_info: None,
    };
    for (kind, value) in attributes(&data[72..]) {
        match kind {
            INET_DIAG_INFO if !value.is_empty() => sock.tcp_info = Some(value.to_vec()),
            INET_DIAG_CONG => sock.congestion = Some(without_nul(value).to_vec()),
            INET_DIAG_TOS => sock.tos = value.first().copied(),
            INET_DIAG_TCLASS => sock.tclass = value.first().copied(),
            INET_DIAG_SKMEMINFO => sock.memory = memory(value),
            INET_DIAG_SHUTDOWN => sock.shutdown = value.first().copied(),
            INET_DIAG_SKV6ONLY => sock.v6only = value.first().map(|v| *v != 0),
            INET_DIAG_MARK => sock.mark = u32_at(value, 0),
            _ => {}
        }
    }
    Some(sock)
}

fn without_nul(value: &[u8]) -> &[u8] {
    value.strip_suffix(b"\0").unwrap_or(value)
}

/// Parses struct unix_diag_msg and its attributes; None if cut short.
pub fn parse_unix(data: &[u8]) -> Option<UnixSock> {
    let fixed = data.first_chunk::<16>()?;
    let mut sock = UnixSock {
        kind: fixed[1],
        state: fixed[2],
        inode: u32_at(fixed, 4)?,
        cookie: u64_at(fixed, 8)?,
        name: None,
        vfs: None,
        peer: None,
        pending: Vec::new(),
        rqueue: 0,
        wqueue: 0,
        memory: None,
        shutdown: 0,
        uid: None,
    };
    for (kind, value) in attributes(&data[16..]) {
        match kind {
            // A path comes with its NUL; in an abstract name every byte counts.
            UNIX_DIAG_NAME if value.first() == Some(&0) => sock.name = Some(value.to_vec()),
            UNIX_DIAG_NAME => sock.name = Some(without_nul(value).to_vec()),
            UNIX_DIAG_VFS => {
                let pair = u32_at(value, 0).zip(u32_at(value, 4));
                sock.vfs = pair.map(|(inode, dev)| (inode, Dev::from_kernel(dev)));
            }
            UNIX_DIAG_PEER => sock.peer = u32_at(value, 0),
            UNIX_DIAG_ICONS => {
                sock.pending = value.chunks_exact(4).filter_map(|word| u32_at(word, 0)).collect();
            }
            UNIX_DIAG_RQLEN => {
                sock.rqueue = u32_at(value, 0).unwrap_or(0);
                sock.wqueue = u32_at(value, 4).unwrap_or(0);
            }
            UNIX_DIAG_MEMINFO => sock.memory = memory(value),
            UNIX_DIAG_SHUTDOWN => sock.shutdown = value.first().copied().unwrap_or(0),
            UNIX_DIAG_UID => sock.uid = u32_at(value, 0),
            _ => {}
        }
    }
    Some(sock)
}
