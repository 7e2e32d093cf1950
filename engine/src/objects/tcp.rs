//! TCP sockets: listening ones, and ones that are not connected yet, or not any more.
use super::{encode, sock, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use image::v1::sockets::Socket;
use sys::program::Program;
use sys::sockdiag::Protocol;

/// A TCP socket that listens, does nothing yet, or has had its connection.
pub struct Tcp;

/// RCV_SHUTDOWN | SEND_SHUTDOWN: of a connection that has ended.
const ENDED: u8 = 3;

fn is_tcp(f: &FileView) -> bool {
    let tcp = |s: &crate::capture::SocketView| {
        matches!(s.domain, libc::AF_INET | libc::AF_INET6)
            && s.kind == libc::SOCK_STREAM
            && s.protocol == libc::IPPROTO_TCP
    };
    f.socket.as_ref().is_some_and(tcp)
}

/// Connected, or on the way to it or from it.
pub(super) fn is_connected(f: &FileView) -> bool {
    let Some(s) = f.socket.as_ref().filter(|_| is_tcp(f)) else { return false };
    // TCP_LISTEN 10, TCP_CLOSE 7 (include/net/tcp_states.h)
    let state = s.tcp.map_or(if s.listening { 10 } else { 7 }, |t| t.state);
    !(s.listening || state == 7 && s.remote.is_none())
}

impl Object for Tcp {
    fn kind(&self) -> Kind {
        Kind::TcpListen
    }

    fn claims(&self, f: &FileView) -> bool {
        is_tcp(f)
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        if !is_connected(f) {
            return f.socket.as_ref().and_then(|s| s.ended).and_then(|e| left(f, e)).into_iter().collect();
        }
        vec![Reason::new(
            format!("{}{}", f.describe(), super::stdio::addresses(f)),
            "an established TCP connection is not kept yet",
            super::stdio::remedy(f, "checkpoint when it has ended"),
        )]
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let (mut s, _fd) = sock::common(f, o)?;
        s.remote.clear();
        if let Some(v) = f.socket.as_ref().filter(|v| v.listening) {
            let (waiting, backlog) = v.tcp.map_or((0, libc::SOMAXCONN as u32), |t| (t.waiting, t.backlog));
            s.backlog = backlog as i32;
            if waiting > 0 {
                o.reported.push(format!("{}: {waiting} connections that wait to be accepted: a restore from this checkpoint starts without them", f.describe()));
            }
        }
        if f.socket.as_ref().is_some_and(|v| v.ended.is_some()) {
            // its address is that of the listener it came from, and may not be bound twice
            s.local.clear();
            s.shutdown = ENDED;
            let what = "its connection has ended; a restored program finds it so, but not its addresses";
            o.reported.push(format!("{}: {what}", f.describe()));
        }
        Ok(encode(&s))
    }
}

/// Why an ended connection cannot be kept: there is something left of it that the program has not seen.
fn left(f: &FileView, e: sys::fdstate::Ended) -> Option<Reason> {
    let (why, remedy) = if e.failed {
        let remedy = "checkpoint when it has used that descriptor, or let it close it";
        ("its TCP connection has ended with an error that the program has not been told yet".into(), remedy)
    } else if e.unread > 0 {
        let remedy = "checkpoint when it has read them, or let it close it";
        (format!("its TCP connection has ended, with {} bytes that the program has not read yet", e.unread), remedy)
    } else {
        return None;
    };
    Some(Reason::new(f.describe(), why, remedy))
}

impl Remake for Tcp {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(s) = files::decode::<Socket>(f) else { return Vec::new() };
        let taken = if s.local.is_empty() { None } else { sock::taken(&s, Protocol::Tcp) };
        let reason = |why: String| Reason::new(c.describe(f), why, "end that program, or make it use another port");
        taken.map(reason).into_iter().collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let s: Socket = files::decode(f)?;
        let mut p = Program::new();
        let fd = sock::begin(&mut p, &s);
        sock::bind(&mut p, fd.arg(), &s);
        if s.backlog >= 0 {
            p.call(libc::SYS_listen, &[fd.arg(), s.backlog.into()]);
            p.named("listening");
        }
        if s.shutdown == ENDED {
            // says ENOTCONN, and does it (inet_shutdown in net/ipv4/af_inet.c)
            p.may(libc::SYS_shutdown, &[fd.arg(), libc::SHUT_RDWR.into()]);
        }
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }
}
