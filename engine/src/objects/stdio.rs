//! External ends: at 0, 1, 2 and their dups, and terminals wherever they are, they are reconnected at restore to the standard
//! streams of the restoring command. Elsewhere the caller decides, or they are refused.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::Result;
use image::v1::objects::{External, Kind};
use std::os::unix::ffi::OsStrExt;

/// An external end: a standard stream of the restoring command, or what the caller says, takes its place.
pub struct Stdio;

/// What to do about an external end, for refusals.
pub fn remedy(f: &FileView, first: &str) -> String {
    let fd = f.first_fd();
    format!("{first}, or give it up: --external close, --external {fd}=close or {fd}=PATH")
}

/// Whether its other end is outside the process.
pub fn is_external(f: &FileView) -> bool {
    let unix = |s: &crate::capture::SocketView| {
        let peer = s.remote.is_some() || s.unix.as_ref().is_some_and(|u| u.peer.is_some_and(|p| p != 0));
        s.domain == libc::AF_UNIX && !s.listening && !s.own_peer && peer
    };
    f.ours
        || f.held.is_some()
        || f.is_pipe() && !f.both_ends
        || super::tcp::is_connected(f)
        || f.socket.as_ref().is_some_and(unix)
}

impl Object for Stdio {
    fn kind(&self) -> Kind {
        Kind::External
    }

    fn claims(&self, f: &FileView) -> bool {
        // a file or /dev/null keeps being itself
        f.is_terminal() || (f.stdio() >= 0 || f.decided.is_some()) && is_external(f)
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let socket = f.socket.as_ref().map_or((0, 0, 0), |s| (s.domain, s.kind, s.protocol));
        let pipe = f.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFIFO);
        let mut e = External { stdio: f.stdio(), ours: f.ours, socket, pipe, ..External::default() };
        match &f.decided {
            Some(crate::External::Close) => e.close = true,
            Some(crate::External::Path(p)) => e.path = p.as_os_str().as_bytes().to_vec().into(),
            None => {}
        }
        if f.is_terminal() {
            // a terminal that is not a standard stream: the first standard stream that is one stands for it
            if e.stdio < 0 {
                e.stdio = o.terminal_stdio();
                if f.decided.is_none() && !is_its_own(f, o) {
                    let then = match e.stdio {
                        -1 => "a restore has to be told what takes its place (--external)".into(),
                        n => format!("after a restore it is the restoring command's descriptor {n}"),
                    };
                    o.reported.push(format!(
                        "{}: a terminal from outside that is not the program's own: {then}",
                        f.describe()
                    ));
                }
            }
            if let Ok(t) = sys::tty::get(&o.descriptor(f.first_fd())?) {
                e.termios = t.termios.into();
                e.winsize = t.winsize;
            }
        } else if !f.ours && (f.decided.is_some() || f.socket.is_some()) {
            let instead = match &f.decided {
                Some(crate::External::Close) if crate::restore::ended::can_end(&e) => {
                    "it has ended, as if its other end had closed it".into()
                }
                Some(crate::External::Close) => "it is closed".into(),
                Some(crate::External::Path(p)) => format!("it is {}", p.display()),
                None => format!("it is the restoring command's descriptor {}", e.stdio),
            };
            let why = f.held.as_ref().map_or("its other end is outside".into(), |h| format!("{h} holds it too"));
            o.noted.push(format!("{}{}: {why}; after a restore {instead}", f.describe(), addresses(f)));
        }
        if !f.info.locks.is_empty() {
            let lost = format!("{}: the lock held on it is not kept", f.describe());
            if f.decided.is_some() { &mut o.noted } else { &mut o.reported }.push(lost);
        }
        Ok(encode(&e))
    }
}

/// Whether a terminal is the one that the program is on: its controlling terminal, by that or another name, or one of its standard streams.
fn is_its_own(f: &FileView, o: &Observer<'_>) -> bool {
    let device = |f: &FileView| f.stat.as_ref().map(|s| s.rdev);
    let named = device(f).is_some_and(|d| (d.major, d.minor) == (5, 0));
    let controlling = o.survey.stat.tty().is_some_and(|tty| device(f) == Some(tty));
    named || controlling || o.files().iter().any(|g| g.is_terminal() && g.stdio() >= 0 && device(g) == device(f))
}

/// " 127.0.0.1:80 -> 127.0.0.1:4711" of a connection.
pub fn addresses(f: &FileView) -> String {
    let of = |s: &crate::capture::SocketView| {
        let (local, remote) = (super::sock::ip(&s.local)?, super::sock::ip(s.remote.as_deref()?)?);
        Some(format!(": TCP connection {local} -> {remote}"))
    };
    f.socket.as_ref().filter(|s| s.tcp.is_some()).and_then(of).unwrap_or_default()
}
