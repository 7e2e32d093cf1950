//! What all kinds of socket share: options, addresses, queues.
use crate::capture::{FileView, Observer, SocketView};
use crate::restore::files::Maker;
use crate::restore::{cannot, Step};
use crate::Result;
use image::v1::sockets::{Message, Socket};
use serde_bytes::ByteBuf;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use sys::program::{Arg, Arg::Imm, CallId, Program};
use sys::sockdiag::Protocol;

const SOL_SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
/// include/net/tcp_states.h
const TCP_LISTEN: u32 = 10;

/// Options that are kept where they differ from a fresh socket's: level, name, bytes (socket(7), ip(7), ipv6(7), tcp(7)).
const OPTIONS: &[(i32, i32, usize)] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR, 4),
    (SOL_SOCKET, libc::SO_REUSEPORT, 4),
    (SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    (SOL_SOCKET, libc::SO_BROADCAST, 4),
    (SOL_SOCKET, libc::SO_OOBINLINE, 4),
    (SOL_SOCKET, libc::SO_DONTROUTE, 4),
    (SOL_SOCKET, libc::SO_LINGER, 8),
    (SOL_SOCKET, libc::SO_SNDBUF, 4),
    (SOL_SOCKET, libc::SO_RCVBUF, 4),
    (SOL_SOCKET, libc::SO_RCVTIMEO, 16),
    (SOL_SOCKET, libc::SO_SNDTIMEO, 16),
    (SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    (SOL_SOCKET, libc::SO_PRIORITY, 4),
    (SOL_SOCKET, libc::SO_MARK, 4),
    (SOL_SOCKET, libc::SO_PASSCRED, 4),
    (SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS, 4),
    (SOL_SOCKET, libc::SO_RXQ_OVFL, 4),
    (SOL_SOCKET, libc::SO_NO_CHECK, 4),
    (SOL_SOCKET, libc::SO_BINDTODEVICE, 16),
    (IP, libc::IP_TOS, 4),
    (IP, libc::IP_TTL, 4),
    (IP, libc::IP_FREEBIND, 4),
    (IP, libc::IP_TRANSPARENT, 4),
    (IP, libc::IP_PKTINFO, 4),
    (IP, libc::IP_RECVTTL, 4),
    (IP, libc::IP_RECVTOS, 4),
    (IP, libc::IP_RECVERR, 4),
    (IP, libc::IP_MTU_DISCOVER, 4),
    (IP, libc::IP_MULTICAST_TTL, 4),
    (IP, libc::IP_MULTICAST_LOOP, 4),
    (IP, libc::IP_MULTICAST_ALL, 4),
    (IPV6, libc::IPV6_V6ONLY, 4),
    (IPV6, libc::IPV6_UNICAST_HOPS, 4),
    (IPV6, libc::IPV6_RECVPKTINFO, 4),
    (IPV6, libc::IPV6_TCLASS, 4),
    (IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    (IPV6, libc::IPV6_MULTICAST_ALL, 4),
    (IPV6, libc::IPV6_MULTICAST_LOOP, 4),
    (IPV6, libc::IPV6_RECVHOPLIMIT, 4),
    (IPV6, libc::IPV6_RECVTCLASS, 4),
    (IPV6, libc::IPV6_MTU_DISCOVER, 4),
    (TCP, libc::TCP_NODELAY, 4),
    (TCP, libc::TCP_CORK, 4),
    (TCP, libc::TCP_KEEPIDLE, 4),
    (TCP, libc::TCP_KEEPINTVL, 4),
    (TCP, libc::TCP_KEEPCNT, 4),
    (TCP, libc::TCP_SYNCNT, 4),
    (TCP, libc::TCP_LINGER2, 4),
    (TCP, libc::TCP_DEFER_ACCEPT, 4),
    (TCP, libc::TCP_USER_TIMEOUT, 4),
    (TCP, libc::TCP_FASTOPEN, 4),
    (TCP, libc::TCP_CONGESTION, 16),
    (TCP, libc::TCP_NOTSENT_LOWAT, 4),
];

/// Options that differ from those of a fresh socket of the same kind.
fn options(fd: &OwnedFd, s: &SocketView) -> Vec<(i32, i32, ByteBuf)> {
    let fresh = sys::sockopt::fresh(s.domain, s.kind, s.protocol).ok();
    let mut out = Vec::new();
    for &(level, name, max) in OPTIONS {
        let applies = match level {
            IP => s.domain == libc::AF_INET || s.domain == libc::AF_INET6,
            IPV6 => s.domain == libc::AF_INET6,
            TCP => s.protocol == TCP,
            _ => true,
        };
        if !applies {
            continue;
        }
        let Ok(v) = sys::sockopt::get(fd, level, name, max) else { continue };
        let default = fresh.as_ref().and_then(|f| sys::sockopt::get(f, level, name, max).ok());
        if default.as_ref() != Some(&v) {
            out.push((level, name, v.into()));
        }
    }
    out
}

/// What every socket has; queue, backlog and the like are the kind's.
pub(super) fn common(f: &FileView, o: &Observer<'_>) -> Result<(Socket, OwnedFd)> {
    let s = f.socket.clone().unwrap_or_default();
    let fd = o.descriptor(f.first_fd())?;
    let bound = match s.domain {
        // an unbound unix socket's address is its family alone
        libc::AF_UNIX => s.local.len() > 2,
        // an unbound internet socket has port 0
        _ => s.local.get(2..4).is_some_and(|p| p != [0, 0]),
    };
    let out = Socket {
        domain: s.domain,
        kind: s.kind,
        protocol: s.protocol,
        ino: f.stat.as_ref().map_or(0, |s| s.ino),
        local: if bound { s.local.clone().into() } else { ByteBuf::new() },
        remote: s.remote.clone().unwrap_or_default().into(),
        options: options(&fd, &s),
        backlog: -1,
        peer: s.unix.as_ref().and_then(|u| u.peer).map_or(0, |p| p as u64),
        queue: Vec::new(),
        shutdown: s.unix.as_ref().map_or(0, |u| u.shutdown),
        file_mode: 0,
    };
    Ok((out, fd))
}

/// Of [`Socket::shutdown`].
const RCV_SHUTDOWN: u8 = 1;
/// A buffer of the largest size that a machine's default lets set holds some hundreds; somebody may have raised that.
const MOST_MESSAGES: usize = 1 << 16;

/// Everything queued to be read, left where it is.
///
/// SO_PEEK_OFF (socket(7)) makes each peek see what follows; it is put back. `s`: kind and shutdown of the socket.
pub(super) fn queue(fd: &OwnedFd, s: &Socket) -> std::io::Result<Vec<Waiting>> {
    let before = sys::sockopt::get(fd, SOL_SOCKET, libc::SO_PEEK_OFF, 4)?;
    sys::sockopt::set(fd, SOL_SOCKET, libc::SO_PEEK_OFF, &0i32.to_ne_bytes())?;
    let r = peek_all(fd, s);
    sys::sockopt::set(fd, SOL_SOCKET, libc::SO_PEEK_OFF, &before)?;
    r
}

/// A message that waits, with copies of the descriptors that come with it.
pub(super) type Waiting = (Message, Vec<OwnedFd>);

/// Without descriptors.
pub(super) fn messages(all: Vec<Waiting>) -> Vec<Message> {
    all.into_iter().map(|(m, _)| m).collect()
}

fn peek_all(fd: &OwnedFd, s: &Socket) -> std::io::Result<Vec<Waiting>> {
    const LARGEST: usize = 1 << 20;
    let stream = s.kind == libc::SOCK_STREAM;
    // The end of packets looks like an empty one, for ever (__unix_dgram_recvmsg in net/unix/af_unix.c), to the program too: it is where all bytes were seen.
    let ends = s.kind == libc::SOCK_SEQPACKET && s.shutdown & RCV_SHUTDOWN != 0;
    let mut left = if ends { sys::fdstate::readable(fd)? as i64 } else { i64::MAX };
    let mut out: Vec<Waiting> = Vec::new();
    loop {
        if left <= 0 {
            return Ok(out);
        }
        if out.len() > MOST_MESSAGES {
            return Err(std::io::Error::other("no end is found of what waits in a socket to be read"));
        }
        match sys::sockopt::peek(fd, LARGEST) {
            Ok(m) if stream && m.data.is_empty() => return Ok(out),
            // credentials (SO_PASSCRED) come with every message and are made anew
            Ok(m) => {
                left -= m.data.len() as i64;
                out.push(waiting(m.data, m.from, m.rights));
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(out),
            Err(e) => return Err(e),
        }
    }
}

fn waiting(mut data: Vec<u8>, mut from: Vec<u8>, rights: Vec<OwnedFd>) -> Waiting {
    data.shrink_to_fit();
    from.shrink_to_fit();
    (Message { from: from.into(), data: data.into(), rights: Vec::new() }, rights)
}

/// What messages take of the sender's buffer if each was sent at once. None: they do not fit there. Tried out on a pair of our own, since only the
/// kernel knows.
pub(super) fn in_one_piece_each(all: &[Message]) -> Option<i32> {
    let (a, _b) = std::os::unix::net::UnixStream::pair().ok()?;
    a.set_nonblocking(true).ok()?;
    for m in all {
        std::io::Write::write(&mut &a, &m.data).ok().filter(|n| *n == m.data.len())?;
    }
    sys::fdstate::unsent(&a).ok()
}

/// How many empty messages wait in a queue beside those that were seen in it, by what all take of the sender's buffer (`taken`). An empty one that was
/// peeked at once is passed over by every later look with an offset (__skb_try_recv_from_queue in net/core/datagram.c). None if that cannot
/// be told.
pub(super) fn unseen(kind: i32, seen: &[Message], taken: i32) -> Option<usize> {
    use nix::sys::socket::{send, socketpair, AddressFamily, MsgFlags, SockFlag, SockType};
    // tried out on pairs of our own, since only the kernel knows
    let cost = |data: &[u8]| -> Option<i32> {
        let kind = if kind == libc::SOCK_SEQPACKET { SockType::SeqPacket } else { SockType::Datagram };
        let (a, _b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).ok()?;
        send(std::os::fd::AsRawFd::as_raw_fd(&a), data, MsgFlags::MSG_DONTWAIT).ok()?;
        sys::fdstate::unsent(&a).ok()
    };
    let known = seen.iter().map(|m| cost(&m.data)).sum::<Option<i32>>()?;
    let (more, each) = (taken - known, cost(&[])?);
    (more >= 0 && each > 0 && more % each == 0).then_some((more / each) as usize)
}

/// How many bytes of a stream to send at once, so that `total` bytes take as much of the sender's buffer as they did
/// (`taken`): a full socket has to be full again. Tried out on a pair of our own, since only the kernel knows.
pub(super) fn chunk(total: usize, taken: i32) -> usize {
    let cost = |c: usize| -> Option<usize> {
        let (a, _b) = std::os::unix::net::UnixStream::pair().ok()?;
        a.set_nonblocking(true).ok()?;
        std::io::Write::write(&mut &a, &vec![0; c]).ok().filter(|n| *n == c)?;
        Some(sys::fdstate::unsent(&a).ok()? as usize * total.div_ceil(c))
    };
    let (mut low, mut high) = (1, total.clamp(1, 32 << 10));
    while low < high {
        let middle = (low + high) / 2;
        if cost(middle).is_none_or(|c| c > taken.max(0) as usize) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The program's beginning for every kind: the socket, its options. REUSEADDR is on until after the bind, so that connections of
/// the former process that are in TIME_WAIT are no obstacle.
pub(super) fn begin(p: &mut Program, s: &Socket) -> CallId {
    let fd = p.call(libc::SYS_socket, &[s.domain.into(), (s.kind | libc::SOCK_CLOEXEC).into(), s.protocol.into()]);
    for o in s.options.iter().filter(|o| !(o.0 == SOL_SOCKET && o.1 == libc::SO_REUSEADDR)) {
        set(p, fd.arg(), o);
    }
    fd
}

/// Sets one option; one that needs a right we lack, or that has a bound here, is left at the nearest value.
pub(super) fn set(p: &mut Program, fd: Arg, (level, name, value): &(i32, i32, ByteBuf)) {
    let (mut name, mut value) = (*name, value.to_vec());
    if *level == SOL_SOCKET && (name == libc::SO_SNDBUF || name == libc::SO_RCVBUF) {
        // the kernel doubles what it is given (socket(7))
        let v = value.get(..4).and_then(|v| v.try_into().ok()).map_or(0, i32::from_ne_bytes) / 2;
        value = v.to_ne_bytes().to_vec();
        let force = if name == libc::SO_SNDBUF { libc::SO_SNDBUFFORCE } else { libc::SO_RCVBUFFORCE };
        let data = p.bytes(&value);
        p.may(libc::SYS_setsockopt, &[fd, (*level).into(), name.into(), data, Imm(4)]);
        name = force;
    }
    let data = p.bytes(&value);
    let args = [fd, (*level).into(), name.into(), data, Imm(value.len() as u64)];
    if sys::multicast::is_join(*level, name) {
        p.call(libc::SYS_setsockopt, &args);
        p.named("joining its multicast group");
    } else {
        p.may(libc::SYS_setsockopt, &args);
    }
}

/// Binds an internet socket.
pub(super) fn bind(p: &mut Program, fd: Arg, s: &Socket) {
    let int = |p: &mut Program, v: i32| {
        let data = p.bytes(&v.to_ne_bytes());
        p.may(libc::SYS_setsockopt, &[fd, SOL_SOCKET.into(), libc::SO_REUSEADDR.into(), data, Imm(4)]);
    };
    let wanted =
        s.options.iter().any(|o| o.0 == SOL_SOCKET && o.1 == libc::SO_REUSEADDR && o.2.iter().any(|b| *b != 0));
    if !s.local.is_empty() {
        int(p, 1);
        let addr = p.bytes(&s.local);
        p.call(libc::SYS_bind, &[fd, addr, Imm(s.local.len() as u64)]);
        p.named("binding to its address");
    }
    int(p, wanted as i32);
}

/// `struct msghdr` of x86-64.
const MSGHDR: usize = 56;
/// SCM_MAX_FD
pub(super) const MOST_RIGHTS: usize = 253;

/// Sends a message with descriptors.
fn send_with(p: &mut Program, fd: i32, data: &[u8], rights: &[i32], flags: Arg) -> CallId {
    let bytes = p.bytes(data);
    let iov = p.bytes(&[0u64.to_ne_bytes(), (data.len() as u64).to_ne_bytes()].concat());
    p.pointer(iov, 0, bytes);
    // struct cmsghdr: length, level, type
    let mut control = (16 + 4 * rights.len() as u64).to_ne_bytes().to_vec();
    for word in [SOL_SOCKET, libc::SCM_RIGHTS].iter().chain(rights) {
        control.extend_from_slice(&word.to_ne_bytes());
    }
    let len = control.len() as u64;
    let control = p.bytes(&control);
    let mut head = [0u8; MSGHDR];
    head[24..32].copy_from_slice(&1u64.to_ne_bytes());
    head[40..48].copy_from_slice(&len.to_ne_bytes());
    let head = p.bytes(&head);
    p.pointer(head, 16, iov);
    p.pointer(head, 32, control);
    p.call(libc::SYS_sendmsg, &[fd.into(), head, flags])
}

/// Sends queued messages through `fd` (the other end of a pair, or a socket that is connected).
pub(super) fn refill(m: &mut Maker<'_>, fd: i32, queue: &[Message], stream: bool) -> Step<()> {
    const CHUNK: usize = 512 << 10;
    let flags = Imm((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64);
    for message in queue {
        let size = if stream { CHUNK } else { message.data.len().max(1) };
        let mut parts: Vec<&[u8]> = message.data.chunks(size).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let mut rights = message.rights.iter().map(|id| m.passable(*id)).collect::<Step<Vec<i32>>>()?;
        for part in parts {
            let mut p = Program::new();
            let n = if rights.is_empty() {
                let data = p.bytes(part);
                p.call(libc::SYS_sendto, &[fd.into(), data, Imm(part.len() as u64), flags])
            } else {
                send_with(&mut p, fd, part, &std::mem::take(&mut rights), flags)
            };
            p.named("filling its queue");
            let r = m.run(&p)?;
            if r.get(n)? as usize != part.len() {
                return Err(cannot("socket", "its queue does not fit here", "raise /proc/sys/net/core/wmem_max"));
            }
        }
    }
    Ok(())
}

/// Who has an inode open: "PID 12 (nginx)".
pub(super) fn holder(ino: u64) -> String {
    let link = format!("socket:[{ino}]");
    for pid in sys::procfs::pids().unwrap_or_default() {
        let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        if dir.flatten().any(|e| std::fs::read_link(e.path()).is_ok_and(|l| l.as_os_str() == link.as_str())) {
            let name = sys::procfs::comm(pid).map(|c| c.escape_ascii().to_string()).unwrap_or_default();
            return format!("PID {pid} ({name})");
        }
    }
    // what a ring of io_uring had registered it lets go of a moment after its process has ended
    "another user's process, or by one that has just ended (then try again)".into()
}

/// IP address and port of a sockaddr.
pub(super) fn ip(addr: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*addr.get(2)?, *addr.get(3)?]);
    match i32::from(u16::from_ne_bytes([*addr.first()?, *addr.get(1)?])) {
        libc::AF_INET => {
            let a: [u8; 4] = addr.get(4..8)?.try_into().ok()?;
            Some((std::net::Ipv4Addr::from(a), port).into())
        }
        libc::AF_INET6 => {
            let a: [u8; 16] = addr.get(8..24)?.try_into().ok()?;
            Some((std::net::Ipv6Addr::from(a), port).into())
        }
        _ => None,
    }
}

/// What else is bound to the address of an internet socket and would make its bind fail.
pub(super) fn taken(s: &Socket, protocol: Protocol) -> Option<String> {
    let want = ip(&s.local)?;
    let reuse = s.options.iter().any(|o| o.0 == SOL_SOCKET && o.1 == libc::SO_REUSEPORT && o.2.iter().any(|b| *b != 0));
    let mut diag = sys::sockdiag::SockDiag::open().ok()?;
    // of TCP only a listener is in the way: the bind is done with REUSEADDR. Asking for it alone spares the kernel a walk over the
    // table of connections, which is large
    let in_the_way = if protocol == Protocol::Tcp { 1 << TCP_LISTEN } else { u32::MAX };
    let mut all = Vec::new();
    for family in [sys::sockdiag::Family::V4, sys::sockdiag::Family::V6] {
        all.extend(diag.inet(family, protocol, in_the_way).unwrap_or_default());
    }
    let v6only = |i: &sys::sockdiag::InetSock| i.v6only == Some(true);
    let clash = |i: &&sys::sockdiag::InetSock| {
        let a = i.local;
        let state = protocol == Protocol::Tcp || i.remote.port() == 0;
        let overlap = a.ip() == want.ip()
            || a.ip().is_unspecified() && (a.is_ipv4() == want.is_ipv4() || !v6only(i))
            || want.ip().is_unspecified();
        let families = a.is_ipv4() == want.is_ipv4() || a.ip().is_unspecified() || want.ip().is_unspecified();
        state && a.port() == want.port() && overlap && families
    };
    if reuse {
        return None;
    }
    let found = all.iter().find(clash)?;
    Some(format!("{want} is in use by {}", holder(found.inode as u64)))
}
