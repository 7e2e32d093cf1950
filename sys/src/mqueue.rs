//! POSIX message queues (mq_overview(7)), as far as somebody beside their user can see.
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct mq_attr` of uapi/linux/mqueue.h.
#[repr(C)]
#[derive(Default)]
struct Attr {
    flags: i64,
    most: i64,
    size: i64,
    waiting: i64,
    reserved: [i64; 4],
}

/// What a queue is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Most messages.
    pub most: i64,
    /// Most bytes of one.
    pub size: i64,
    /// Messages that wait.
    pub waiting: i64,
}

/// What an open queue is like; an error if it is none.
pub fn queue(fd: &impl AsFd) -> io::Result<Queue> {
    let mut a = Attr::default();
    // SAFETY: without new attributes the call writes one mq_attr.
    let r = unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd.as_fd().as_raw_fd(), std::ptr::null::<Attr>(), &mut a) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Queue { most: a.most, size: a.size, waiting: a.waiting })
}

/// Opens a queue by its name, without the slash, for reading, writing or both (O_ constants).
pub fn open(name: &[u8], mode: i32) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    // SAFETY: the name ends in NUL; without O_CREAT there are no other arguments.
    let fd = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), mode & libc::O_ACCMODE | libc::O_CLOEXEC, 0, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
