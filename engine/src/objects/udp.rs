//! UDP sockets, bound or not, connected or not.
use super::{encode, sock, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use image::v1::sockets::{Message, Socket};
use sys::program::{Arg::Imm, Program};
use sys::sockdiag::Protocol;

/// A UDP socket.
pub struct Udp;

impl Object for Udp {
    fn kind(&self) -> Kind {
        Kind::Udp
    }

    fn claims(&self, f: &FileView) -> bool {
        let udp = |s: &crate::capture::SocketView| {
            matches!(s.domain, libc::AF_INET | libc::AF_INET6)
                && s.kind == libc::SOCK_DGRAM
                && s.protocol == libc::IPPROTO_UDP
        };
        f.socket.as_ref().is_some_and(udp)
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, fd) = sock::common(f, o)?;
        let failed = |e| o.explain(crate::capture::Fault::from(e));
        for m in sys::multicast::memberships(&fd, s.domain).map_err(failed)? {
            s.options.extend(m.options().into_iter().map(|(level, name, value)| (level, name, value.into())));
        }
        if sys::fdstate::is_readable(&fd).map_err(failed)? {
            s.queue = sock::messages(sock::queue(&fd, &s).map_err(failed)?);
            let n = s.queue.len();
            o.reported.push(format!("{}: {n} datagrams that wait to be read: a restore from this checkpoint starts without those whose sender cannot be stood in for, and without empty ones that an earlier checkpoint has looked at", f.describe()));
        }
        Ok(encode(&s))
    }
}

impl Remake for Udp {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(s) = files::decode::<Socket>(f) else { return Vec::new() };
        let reuse = s.options.iter().any(|o| o.0 == libc::SOL_SOCKET && o.1 == libc::SO_REUSEADDR);
        let taken = if s.local.is_empty() || reuse { None } else { sock::taken(&s, Protocol::Udp) };
        let reason = |why: String| Reason::new(c.describe(f), why, "end that program, or make it use another port");
        taken.map(reason).into_iter().collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let s: Socket = files::decode(f)?;
        let mut p = Program::new();
        let fd = sock::begin(&mut p, &s);
        sock::bind(&mut p, fd.arg(), &s);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    /// Queued datagrams are sent again, by the image's own socket of that address or by one that stands in for it; then
    /// the socket is connected, since a connected one takes only its peer's.
    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let s: Socket = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        let lost = s.queue.iter().filter(|q| !resend(m, q, &s).unwrap_or(false)).count();
        if lost > 0 {
            m.notes.push(format!("{}: {lost} datagrams that waited to be read are lost", m.describe(id, f)));
        }
        if s.remote.is_empty() {
            return Ok(());
        }
        let mut p = Program::new();
        let addr = p.bytes(&s.remote);
        p.call(libc::SYS_connect, &[fd.into(), addr, Imm(s.remote.len() as u64)]);
        m.run(&p).map(drop)
    }
}

/// Sends a datagram to the socket from where it came; false if nobody can stand in for the sender.
fn resend(m: &mut Maker<'_>, q: &Message, to: &Socket) -> Step<bool> {
    let mut dest = to.local.to_vec();
    // a wildcard address is reached as loopback
    match sock::ip(&dest) {
        Some(a) if a.is_ipv4() && a.ip().is_unspecified() => dest[4..8].copy_from_slice(&[127, 0, 0, 1]),
        Some(a) if a.ip().is_unspecified() => dest[8..24].copy_from_slice(&std::net::Ipv6Addr::LOCALHOST.octets()),
        _ => {}
    }
    let Some(from) = sock::ip(&q.from) else { return Ok(false) };
    let mut own = None;
    for (i, o) in m.image.files.open.iter().enumerate().filter(|(_, o)| o.kind == Kind::Udp as u32) {
        let s: Socket = files::decode(o)?;
        if sock::ip(&s.local)
            .is_some_and(|a| a.port() == from.port() && (a.ip() == from.ip() || a.ip().is_unspecified()))
        {
            own = m.fds(i as u32).first().copied();
        }
    }
    let mut p = Program::new();
    let fd = match own {
        Some(fd) => fd.into(),
        None => {
            let fd = p.call(libc::SYS_socket, &[to.domain.into(), (to.kind | libc::SOCK_CLOEXEC).into(), Imm(0)]);
            let addr = p.bytes(&q.from);
            p.call(libc::SYS_bind, &[fd.arg(), addr, Imm(q.from.len() as u64)]);
            fd.arg()
        }
    };
    let (data, addr) = (p.bytes(&q.data), p.bytes(&dest));
    let flags = Imm((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64);
    let n = p.call(libc::SYS_sendto, &[fd, data, Imm(q.data.len() as u64), flags, addr, Imm(dest.len() as u64)]);
    if own.is_none() {
        p.call(libc::SYS_close, &[fd]);
    }
    Ok(m.run(&p).is_ok_and(|r| r.get(n).is_ok_and(|n| n as usize == q.data.len())))
}
