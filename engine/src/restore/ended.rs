//! What stands in the place of an external end that was given up: something of its kind whose other end is gone. A thread that still uses
//! the number is told so, as it would be by the kernel (end of file, EPIPE; poll and epoll say it), and does not meet what is opened next.
use super::files::{Made, Maker};
use super::Step;
use ::image::v1::objects::External;
use sys::program::{Arg::Imm, Program};

/// Whether it is of a kind that can end: a pipe or a connection. What cannot is closed (an eventfd), and so is what an older image tells nothing of.
pub fn can_end(e: &External) -> bool {
    !e.ours && (e.pipe || is_tcp(e) || e.socket.0 == libc::AF_UNIX)
}

fn is_tcp(e: &External) -> bool {
    let (domain, kind, protocol) = e.socket;
    matches!(domain, libc::AF_INET | libc::AF_INET6) && kind == libc::SOCK_STREAM && protocol == libc::IPPROTO_TCP
}

/// Makes it, with the open file's `flags`. See [`can_end`].
pub fn make(m: &mut Maker<'_>, e: &External, flags: u32) -> Step<Made> {
    if e.pipe {
        return pipe(m, flags);
    }
    let nonblock = (flags & libc::O_NONBLOCK as u32 | libc::O_CLOEXEC as u32) as i32;
    let (domain, kind, protocol) = e.socket;
    if is_tcp(e) {
        let mut p = Program::new();
        let fd = p.may(libc::SYS_socket, &[domain.into(), (kind | nonblock).into(), protocol.into()]);
        // says ENOTCONN, and does it (inet_shutdown in net/ipv4/af_inet.c)
        p.may(libc::SYS_shutdown, &[fd.arg(), libc::SHUT_RDWR.into()]);
        if let Ok(fd) = m.run(&p)?.get(fd) {
            return Ok(Made::At(fd as i32));
        }
        // a kernel without IPv6: nobody wants to connect it
    }
    let kind = if is_tcp(e) { libc::SOCK_STREAM } else { kind };
    let mut p = Program::new();
    let both = p.out(8);
    p.call(libc::SYS_socketpair, &[libc::AF_UNIX.into(), (kind | nonblock).into(), Imm(0), both.arg()]);
    let r = m.run(&p)?;
    let (kept, gone) = (r.u32(both, 0) as i32, r.u32(both, 4) as i32);
    let mut p = Program::new();
    p.call(libc::SYS_close, &[gone.into()]);
    if kind == libc::SOCK_DGRAM && flags & libc::O_NONBLOCK as u32 == 0 {
        // one whose peer is gone would be waited on for ever (and a shut one that does not block is readable for ever)
        p.call(libc::SYS_shutdown, &[kept.into(), libc::SHUT_RDWR.into()]);
    }
    m.run(&p)?;
    Ok(Made::At(kept))
}

/// The end of a pipe. In the place of a FIFO that was open for both there is one to read from.
fn pipe(m: &mut Maker<'_>, flags: u32) -> Step<Made> {
    let mut p = Program::new();
    let both = p.out(8);
    let how = flags & (libc::O_NONBLOCK | libc::O_DIRECT) as u32 | libc::O_CLOEXEC as u32;
    p.call(libc::SYS_pipe2, &[both.arg(), Imm(how.into())]);
    let r = m.run(&p)?;
    let (read, write) = (r.u32(both, 0) as i32, r.u32(both, 4) as i32);
    let writes = flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    let (kept, gone) = if writes { (write, read) } else { (read, write) };
    let mut p = Program::new();
    p.call(libc::SYS_close, &[gone.into()]);
    m.run(&p)?;
    Ok(Made::At(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_end() {
        let of = |socket, pipe, ours| can_end(&External { socket, pipe, ours, ..External::default() });
        // what an older image says: nothing
        assert!(!can_end(&External::default()));
        assert!(of((0, 0, 0), true, false) && !of((0, 0, 0), true, true));
        assert!(of((libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP), false, false));
        assert!(of((libc::AF_UNIX, libc::SOCK_SEQPACKET, 0), false, false));
        assert!(!of((libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP), false, false));
        assert!(!of((libc::AF_INET, libc::SOCK_STREAM, 132), false, false), "SCTP");
    }
}
