//! What stands in the place of an external end that was given up: something of its kind whose other end is gone. A thread that still uses
//! the number is told so (end of file, EPIPE, EPOLLHUP), as it would be by the kernel, and does not meet what is opened next.
use super::files::{Made, Maker};
use super::Step;
use ::image::v1::objects::External;
use sys::program::{Arg::Imm, Program};

/// Whether it is of a kind that can end: a pipe or a connection. What cannot is closed (an eventfd), and so is what an older image tells nothing of.
pub fn can_end(e: &External) -> bool {
    let (domain, kind, protocol) = e.socket;
    let tcp =
        matches!(domain, libc::AF_INET | libc::AF_INET6) && kind == libc::SOCK_STREAM && protocol == libc::IPPROTO_TCP;
    !e.ours && (e.pipe || tcp || domain == libc::AF_UNIX)
}

/// Makes it, with the open file's `flags`. See [`can_end`].
pub fn make(m: &mut Maker<'_>, e: &External, flags: u32) -> Step<Made> {
    let (domain, kind, protocol) = e.socket;
    let nonblock = flags & libc::O_NONBLOCK as u32;
    let mut p = Program::new();
    if domain == libc::AF_INET || domain == libc::AF_INET6 {
        let kind = kind | (nonblock | libc::O_CLOEXEC as u32) as i32;
        let fd = p.call(libc::SYS_socket, &[domain.into(), kind.into(), protocol.into()]);
        // says ENOTCONN, and does it (inet_shutdown in net/ipv4/af_inet.c)
        p.may(libc::SYS_shutdown, &[fd.arg(), libc::SHUT_RDWR.into()]);
        let r = m.run(&p)?;
        return m.take(r.get(fd));
    }
    let both = p.out(8);
    if domain == libc::AF_UNIX {
        let kind = kind | (nonblock | libc::O_CLOEXEC as u32) as i32;
        p.call(libc::SYS_socketpair, &[domain.into(), kind.into(), Imm(0), both.arg()]);
    } else {
        let flags = nonblock | flags & libc::O_DIRECT as u32 | libc::O_CLOEXEC as u32;
        p.call(libc::SYS_pipe2, &[both.arg(), Imm(flags.into())]);
    }
    let r = m.run(&p)?;
    // A FIFO that was open for both reads as ended, too.
    let writes = e.pipe && flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    let (kept, gone) = if writes { (4, 0) } else { (0, 4) };
    let mut p = Program::new();
    p.call(libc::SYS_close, &[(r.u32(both, gone) as i32).into()]);
    m.run(&p)?;
    Ok(Made::At(r.u32(both, kept) as i32))
}
