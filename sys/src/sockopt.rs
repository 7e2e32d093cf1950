//! Raw socket options and addresses (getsockopt(2), getsockname(2)), peeking, and fresh sockets to compare with.
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An option's value as the kernel gives it, at most `max` bytes.
pub fn get(fd: &impl AsFd, level: i32, name: i32, max: usize) -> io::Result<Vec<u8>> {
    let mut b = vec![0u8; max];
    let mut len = max as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let r = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, b.as_mut_ptr().cast(), &mut len) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    b.truncate(len as usize);
    Ok(b)
}

/// An option whose value is also its question, as long as `value`.
pub fn get_into(fd: &impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes.
    let r = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a filter (SO_ATTACH_FILTER, SO_ATTACH_BPF) decides what the socket receives. Only its length is asked for; the kernel
/// answers EACCES for one that is no classic filter (net/core/filter.c, sk_get_filter).
pub fn has_filter(fd: &impl AsFd) -> bool {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 nothing but that length is written.
    let r = unsafe {
        let fd = fd.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, std::ptr::null_mut(), &mut len)
    };
    len > 0 || r < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EACCES)
}

/// An option that is an int.
pub fn get_int(fd: &impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let b = get(fd, level, name, 4)?;
    Ok(b.try_into().map_or(0, i32::from_ne_bytes))
}

/// Sets an option.
pub fn set(fd: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes.
    let r = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The socket's own address (`peer` false) or its peer's, as a sockaddr's bytes.
pub fn address(fd: &impl AsFd, peer: bool) -> io::Result<Vec<u8>> {
    let mut b = vec![0u8; 128];
    let mut len = b.len() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes.
    let r = unsafe {
        if peer {
            libc::getpeername(fd, b.as_mut_ptr().cast(), &mut len)
        } else {
            libc::getsockname(fd, b.as_mut_ptr().cast(), &mut len)
        }
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    b.truncate(len as usize);
    Ok(b)
}

/// A new socket.
pub fn fresh(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes integers.
    let r = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(r) })
}

/// A message that was looked at.
#[derive(Debug, Default)]
pub struct Peeked {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Sender's sockaddr.
    pub from: Vec<u8>,
    /// Copies of the descriptors that come with it (SCM_RIGHTS).
    pub rights: Vec<OwnedFd>,
}

/// One message without taking it out (MSG_PEEK | MSG_DONTWAIT). With SO_PEEK_OFF set, each call sees the next.
pub fn peek(fd: &impl AsFd, max: usize) -> io::Result<Peeked> {
    let mut data = vec![0u8; max];
    let mut from = vec![0u8; 128];
    // 253 descriptors are the most (SCM_MAX_FD), and credentials may come with them; words, as headers are aligned to them
    let mut control = [0u64; 256];
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: msghdr is plain data for which all zeros is valid.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_name = from.as_mut_ptr().cast();
    m.msg_namelen = from.len() as libc::socklen_t;
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in `m` is to a live buffer of the length beside it.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut m, flags) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    data.truncate(n as usize);
    from.truncate(m.msg_namelen as usize);
    let mut rights = Vec::new();
    // SAFETY: the kernel has filled `msg_controllen` bytes of `control`, which these walk and stay within.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&m) };
    while !at.is_null() {
        // SAFETY: a header that the walk gave.
        let head = unsafe { &*at };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let count = (head.cmsg_len - size_of::<libc::cmsghdr>()) / size_of::<i32>();
            for i in 0..count {
                // SAFETY: behind such a header are descriptors, new in this process, which nobody else owns.
                let fd = unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(at).cast::<i32>().add(i).read_unaligned()) };
                rights.push(fd);
            }
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&m, at) };
    }
    if m.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other(
            "not all descriptors that come with a message could be copied (limit of open files)",
        ));
    }
    Ok(Peeked { data, from, rights })
}
