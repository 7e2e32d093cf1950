//! The system calls of this library that std does not have, each as a safe function. The only file with `unsafe`, beside the C interface.
#![allow(unsafe_code)]
use crate::block::Block;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
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
    with_all_blocked(|_| f())
}

/// The same; `f` is given the mask of before.
fn with_all_blocked<T>(f: impl FnOnce(&libc::sigset_t) -> T) -> T {
    // SAFETY: a sigset_t is plain data; zeros are a valid one.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both point to sigset_t of ours.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
    }
    let r = f(&old);
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

/// What a program that is started by [`spawn_apart`] needs, where nothing can be allocated any more.
struct Job<'a> {
    argv: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    null: libc::c_int,
    out: libc::c_int,
    mask: libc::sigset_t,
    stack: *mut libc::c_void,
    failed: AtomicI32,
}

/// Bytes of stack for each of the two.
const STACK: usize = 64 << 10;

/// Starts a program (a path, then its arguments) that is no child of ours: nobody here sees it by wait or SIGCHLD. Its stdout is `out`, its other
/// standard streams are /dev/null, it has no other descriptor and a session of its own.
pub(crate) fn spawn_apart(argv: &[CString], out: &OwnedFd) -> io::Result<()> {
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(k, v)| CString::new([k.as_bytes(), b"=", v.as_bytes()].concat()).ok())
        .collect();
    let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (pointers(argv), pointers(&env));
    let null = above_stdio(File::options().read(true).write(true).open("/dev/null")?.into())?;
    let mut stacks = vec![0u128; 2 * STACK / 16];
    let middle = stacks[STACK / 16..].as_mut_ptr();
    // SAFETY: the end of the second half of `stacks`, of which it is a part.
    let top = unsafe { middle.add(STACK / 16) };
    // SAFETY: plain data; zeros are valid.
    let mask = unsafe { std::mem::zeroed() };
    let mut job = Job {
        argv: &argv,
        env: &env,
        null: null.as_raw_fd(),
        out: out.as_raw_fd(),
        mask,
        stack: middle.cast(),
        failed: AtomicI32::new(0),
    };
    with_all_blocked(|old| {
        job.mask = *old;
        let arg = (&raw mut job).cast();
        // SAFETY: a vfork: this thread stands still until `between` has ended, so that `job` and the stacks live as long as they are used. It runs on
        // a stack of its own, with all signals blocked, so that no handler runs in it. No exit signal: no SIGCHLD.
        let pid = unsafe { libc::clone(between, top.cast(), libc::CLONE_VM | libc::CLONE_VFORK, arg) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: waits for the child that was just made; that somebody else here reaped it is no harm.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
        match job.failed.load(SeqCst) {
            0 => Ok(()),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    })
}

/// The middle process: it ends at once, so that what it has started is adopted by somebody else than us.
extern "C" fn between(job: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the job of `spawn_apart`, which waits for us.
    let j = unsafe { &*job.cast::<Job>() };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as in `spawn_apart`; we stand still until the other has executed its program or ended.
    if unsafe { libc::clone(last, j.stack, flags, job) } < 0 {
        j.failed.store(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN), SeqCst);
    }
    0
}

/// Becomes the program. Only calls that are safe after vfork.
extern "C" fn last(job: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the job of `spawn_apart`, which waits for us.
    let j = unsafe { &*job.cast::<Job>() };
    // SAFETY: system calls on our own copy of the descriptors and handlers; every pointer is of `job`. Handlers go before the mask does: none of the
    // program's may run here, in its memory.
    unsafe {
        for sig in 1..=64 {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(sig, std::ptr::null(), &mut old) == 0 && old.sa_sigaction != libc::SIG_IGN {
                libc::signal(sig, libc::SIG_DFL);
            }
        }
        libc::setsid();
        libc::dup2(j.null, 0);
        libc::dup2(j.out, 1);
        libc::dup2(j.null, 2);
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        libc::pthread_sigmask(libc::SIG_SETMASK, &j.mask, std::ptr::null_mut());
        libc::execve(j.argv[0], j.argv.as_ptr(), j.env.as_ptr());
    }
    j.failed.store(io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOENT), SeqCst);
    127
}
