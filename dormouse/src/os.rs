//! The system calls of this library that std does not have, each as a safe function. The only file with `unsafe`, beside the C interface.
#![allow(unsafe_code)]
use crate::block::Block;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use wire::api::{BLOCK_AT, BLOCK_LEN, BLOCK_MAGIC, WAKE_SIGNAL};

/// The block's memory; true if it was made now, zeroed.
pub(crate) fn block_memory() -> Option<(&'static Block, bool)> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = BLOCK_AT as *mut libc::c_void;
    // SAFETY: a new mapping that replaces none, by MAP_FIXED_NOREPLACE.
    let got = unsafe { libc::mmap(at, BLOCK_LEN as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if got != at {
        if got != libc::MAP_FAILED {
            // SAFETY: an older kernel, which took the address for a wish: the mapping was made a moment ago, and is unused.
            unsafe { libc::munmap(got, BLOCK_LEN as usize) };
            return None;
        }
        // Something is there. Read as a file, in case it may not be read; it is ours if it begins as ours does.
        let mut magic = [0; 8];
        File::open("/proc/self/mem").ok()?.read_exact_at(&mut magic, BLOCK_AT).ok()?;
        if u64::from_le_bytes(magic) != BLOCK_MAGIC {
            return None;
        }
    }
    // SAFETY: BLOCK_LEN bytes of readable and writable memory are there, which nobody unmaps; every field of Block is an atomic (or padding),
    // of which all values are valid, and page alignment is enough for it.
    Some((unsafe { &*(BLOCK_AT as *const Block) }, got == at))
}

/// TID of this thread.
pub(crate) fn tid() -> u32 {
    // SAFETY: gettid takes nothing and touches no memory.
    unsafe { libc::gettid() as u32 }
}

/// This process's effective user.
pub(crate) fn euid() -> u32 {
    // SAFETY: geteuid takes nothing and touches no memory.
    unsafe { libc::geteuid() }
}

/// Runs `f` with all signals blocked, so that a thread that it starts has them blocked.
pub(crate) fn all_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: a sigset_t is plain data; zeros are a valid one.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both point to sigset_t of ours.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
    }
    let r = f();
    // SAFETY: `old` was filled in by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    r
}

/// Waits for the signal that a recorder sends to this thread; gives its value. None: it was something else.
pub(crate) fn wait_for_wake() -> Option<u64> {
    // SAFETY: plain data; zeros are valid.
    let (mut set, mut info): (libc::sigset_t, libc::siginfo_t) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: `set` and `info` are ours and of the right types.
    let got = unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, WAKE_SIGNAL);
        libc::sigwaitinfo(&set, &mut info)
    };
    if got != WAKE_SIGNAL || info.si_code != libc::SI_QUEUE {
        return None;
    }
    // SAFETY: with SI_QUEUE the value is the field that holds.
    Some(unsafe { info.si_value() }.sival_ptr as usize as u64)
}

/// A unix stream socket, close-on-exec and never 0, 1 or 2.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made and nobody else owns it.
    above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A connected pair of them.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two integers into `fds`.
    if unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made and nobody else owns them.
    let (a, b) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    Ok((above_stdio(a)?, above_stdio(b)?))
}

/// A program that has closed its standard streams must not get ours in their place.
fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: takes integers.
    let dup = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if dup < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(dup) })
}

/// Connects to an address: `path` in the file system, or, if it begins with NUL, abstract.
pub(crate) fn connect(fd: &OwnedFd, path: &[u8]) -> io::Result<()> {
    // SAFETY: plain data; zeros are valid.
    let mut a: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    a.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= a.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in a.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    // An abstract name ends where the length says, a path with its NUL.
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len() + usize::from(path.first() != Some(&0));
    loop {
        // SAFETY: `a` holds at least `len` bytes of an address.
        let r = unsafe { libc::connect(fd.as_raw_fd(), (&raw const a).cast(), len as libc::socklen_t) };
        match io::Error::last_os_error() {
            _ if r == 0 => return Ok(()),
            e if e.kind() == io::ErrorKind::Interrupted => {}
            // interrupted, and connected meanwhile
            e if e.raw_os_error() == Some(libc::EISCONN) => return Ok(()),
            e => return Err(e),
        }
    }
}

/// The peer's effective user when it connected or listened.
pub(crate) fn peer_uid(fd: &OwnedFd) -> io::Result<u32> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `cred`.
    let r = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &mut len)
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cred.uid)
}

/// Sends without raising SIGPIPE.
pub(crate) fn send(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads `bytes`.
        let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        bytes = &bytes[n as usize..];
    }
    Ok(())
}

/// read(2), once: 0 at the end. It works on a socket and on the /dev/null that a restored program has in its place.
pub(crate) fn read(fd: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the kernel writes at most `into.len()` bytes into it.
        let n = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}
