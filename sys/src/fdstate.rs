//! What an open file tells of itself only when asked through a descriptor.
use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn int_ioctl(fd: &impl AsFd, request: libc::c_ulong) -> io::Result<i32> {
    let mut n = 0i32;
    // SAFETY: the callers' requests write one int.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &mut n) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n)
}

/// Bytes that can be read (FIONREAD, ioctl_tty(2), pipe(7)).
pub fn readable(fd: &impl AsFd) -> io::Result<i32> {
    int_ioctl(fd, libc::FIONREAD)
}

/// Whether something waits to be read, be it empty (poll(2)).
pub fn is_readable(fd: &impl AsFd) -> io::Result<bool> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    let mut p = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut p, PollTimeout::ZERO)?;
    Ok(p[0].revents().is_some_and(|r| r.contains(PollFlags::POLLIN)))
}

/// What a TCP socket says of itself (TCP_INFO, tcp(7)). Asked through the descriptor it costs the same however many connections there are;
/// sock_diag walks a table of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// TCP_ESTABLISHED (1) .. TCP_LISTEN (10) of include/net/tcp_states.h. TCP_CLOSE (7) is one that was made, or bound, or has ended.
    pub state: u8,
    /// Of a listener: connections not yet accepted (tcp_get_info in net/ipv4/tcp.c).
    pub waiting: u32,
    /// Of a listener: most of those, as listen(2) was told.
    pub backlog: u32,
}

/// What a TCP socket says of itself.
pub fn tcp(fd: &impl AsFd) -> io::Result<Tcp> {
    use std::mem::offset_of;
    let b = crate::sockopt::get(fd, libc::IPPROTO_TCP, libc::TCP_INFO, size_of::<libc::tcp_info>())?;
    let word = |at: usize| b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let state = *b.first().ok_or(io::ErrorKind::UnexpectedEof)?;
    let (waiting, backlog) = (offset_of!(libc::tcp_info, tcpi_unacked), offset_of!(libc::tcp_info, tcpi_sacked));
    Ok(Tcp { state, waiting: word(waiting), backlog: word(backlog) })
}

/// How a connection has ended (tcp_poll in net/ipv4/tcp.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Bytes that were not read yet.
    pub unread: i32,
    /// With an error that was not asked for yet.
    pub failed: bool,
}

/// Whether a TCP socket in state CLOSE had a connection, which has ended: both directions are shut down. One that was only made, or bound,
/// hangs up as well, but there is nothing to read.
pub fn ended(fd: &impl AsFd) -> io::Result<Option<Ended>> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    let mut p = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut p, PollTimeout::ZERO)?;
    let is = |f| p[0].revents().is_some_and(|r| r.contains(f));
    if !is(PollFlags::POLLHUP | PollFlags::POLLIN) {
        return Ok(None);
    }
    Ok(Some(Ended { unread: readable(fd)?, failed: is(PollFlags::POLLERR) }))
}

/// Bytes of buffer that what was sent and is not yet read takes (SIOCOUTQ, unix(7)).
pub fn unsent(fd: &impl AsFd) -> io::Result<i32> {
    int_ioctl(fd, libc::TIOCOUTQ)
}

/// Time left and interval of a timerfd, nanoseconds (timerfd_gettime(2)). Of a periodic timer whose ticks were not read, the
/// time to the next one: fdinfo shows 0 for it.
pub fn timerfd(fd: &impl AsFd) -> io::Result<(u64, u64)> {
    // SAFETY: itimerspec is plain data for which all zeros is valid.
    let mut t: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one itimerspec.
    if unsafe { libc::timerfd_gettime(fd.as_fd().as_raw_fd(), &mut t) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let ns = |t: libc::timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    Ok((ns(t.it_value), ns(t.it_interval)))
}
