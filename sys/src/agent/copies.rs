//! Copies of the target's descriptors, which it passes over itself (SCM_RIGHTS, unix(7)) on connections of their own: where pidfd_getfd is not permitted.
use crate::channel::{Channel, Listener};
use crate::program::{Arg, CallId, Program};
use crate::{Error, Result};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Descriptors in one message (SCM_MAX_FD is 253).
const AT_ONCE: usize = 200;

/// The copies, by number.
#[derive(Debug, Default)]
pub struct Copies(BTreeMap<i32, OwnedFd>);

impl Copies {
    /// Fetches all of `fds` from the process that serves `channel`, of user `uid`.
    pub fn fetch(channel: &mut Channel, l: &Listener, uid: u32, fds: &[i32]) -> Result<Copies> {
        // what is in flight is counted by user, against the limit of the one that sends (unix(7), ETOOMANYREFS): one message at a time
        static IN_FLIGHT: Mutex<()> = Mutex::new(());
        let mut all = BTreeMap::new();
        for some in fds.chunks(AT_ONCE) {
            let _one = IN_FLIGHT.lock().unwrap_or_else(PoisonError::into_inner);
            let (p, connect) = passing(l, some);
            let connected = channel.run_all(&p)?;
            connected.get(connect).map_err(|e| Error::call("connect of descriptors' way", channel.pid(), e))?;
            let (sock, _) = l.accept(channel.pid(), uid, None)?;
            let got = receive(&sock)?;
            if got.len() != some.len() {
                let what = format!("{} descriptors were passed over, {} came", some.len(), got.len());
                return Err(Error::Peer { peer: "agent", what });
            }
            all.extend(some.iter().copied().zip(got));
        }
        Ok(Copies(all))
    }

    /// The copy of a descriptor.
    pub fn get(&self, fd: i32) -> Option<BorrowedFd<'_>> {
        self.0.get(&fd).map(|f| f.as_fd())
    }

    /// Whether two descriptors are one open file.
    pub fn same_file(&self, a: i32, b: i32) -> std::io::Result<bool> {
        let none = || std::io::Error::from_raw_os_error(libc::EBADF);
        same_open_file(self.get(a).ok_or_else(none)?, self.get(b).ok_or_else(none)?)
    }
}

/// Whether two descriptors of this process are one open file: fcntl(F_DUPFD_QUERY) of kernel 6.10, else kcmp.
pub fn same_open_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> std::io::Result<bool> {
    const F_DUPFD_QUERY: i32 = 1027;
    let (a, b) = (a.as_raw_fd(), b.as_raw_fd());
    // SAFETY: takes integers and changes nothing.
    match unsafe { libc::fcntl(a, F_DUPFD_QUERY, b) } {
        -1 => {
            let me = std::process::id() as i32;
            crate::kcmp::same_file((me, a), (me, b))
        }
        same => Ok(same == 1),
    }
}

/// Connects, passes the descriptors over, and closes.
///
/// Whatever fails, it closes: should the recorder have died, nobody is there to be connected to.
fn passing(l: &Listener, fds: &[i32]) -> (Program, CallId) {
    let mut p = Program::new();
    let addr = p.bytes(l.addr());
    let byte = p.bytes(&[0]);
    // struct iovec
    let iov = p.bytes(&[0u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    p.pointer(iov, 0, byte);
    // struct cmsghdr: length, level, type; the descriptors
    let mut control = (16 + fds.len() as u64 * 4).to_le_bytes().to_vec();
    control.extend_from_slice(&libc::SOL_SOCKET.to_le_bytes());
    control.extend_from_slice(&libc::SCM_RIGHTS.to_le_bytes());
    fds.iter().for_each(|fd| control.extend_from_slice(&fd.to_le_bytes()));
    let control_len = control.len() as u64;
    let control = p.bytes(&control);
    // struct msghdr: name, its length, iov, its number, control, its length, flags
    let words = [0, 0, 0, 1, 0, control_len, 0u64];
    let msg = p.bytes(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    p.pointer(msg, 16, iov);
    p.pointer(msg, 32, control);
    let sock =
        p.call(libc::SYS_socket, &[libc::AF_UNIX.into(), (libc::SOCK_STREAM | libc::SOCK_CLOEXEC).into(), 0.into()]);
    let connect = p.may(libc::SYS_connect, &[sock.arg(), addr, Arg::Imm(l.addr().len() as u64)]);
    p.may(libc::SYS_sendmsg, &[sock.arg(), msg, libc::MSG_NOSIGNAL.into()]);
    p.call(libc::SYS_close, &[sock.arg()]);
    (p, connect)
}

fn receive(sock: &impl AsRawFd) -> Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([i32; AT_ONCE]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let err = |e: nix::Error| Error::Call { doing: "recvmsg".into(), pid: std::process::id() as i32, source: e.into() };
    let m = recvmsg::<()>(sock.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).map_err(err)?;
    let mut all = Vec::new();
    for c in m.cmsgs().map_err(err)? {
        if let ControlMessageOwned::ScmRights(fds) = c {
            // SAFETY: the kernel has just made them, and nobody else owns them.
            all.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(all)
}
