//! Descriptors in flight: sent over a unix socket (SCM_RIGHTS) and not received yet. A look at the message gives copies of them, so each can be
//! told from all others; one whose open file somebody of the tree has open is kept as that.
use super::sock::{in_one_piece_each, Waiting, MOST_RIGHTS};
use super::stdio;
use crate::capture::{Fault, FileView, Observer};
use crate::{Error, Kind, Reason, Result};
use image::v1::sockets::Message;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Messages with their descriptors as indices of the open files.
pub(super) fn known(f: &FileView, o: &Observer<'_>, waiting: Vec<Waiting>) -> Result<Vec<Message>> {
    let seen: usize = waiting.iter().map(|(_, rights)| rights.len()).sum();
    let mut reasons = Vec::new();
    let mut refuse = |why: String, remedy: &str| reasons.push(Reason::new(f.describe(), why, remedy));
    if f.info.scm_fds.is_some_and(|n| n as usize != seen) {
        refuse("not all descriptors in flight in its queue can be seen".into(), "let the program receive them first");
    }
    let mut messages = Vec::with_capacity(waiting.len());
    for (mut m, rights) in waiting {
        debug_assert!(rights.len() <= MOST_RIGHTS);
        for fd in rights {
            match index(&fd, o)? {
                Some(id) if !stdio::is_external(&o.files()[id]) => m.rights.push(id as u32),
                found => {
                    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
                    let whose = if found.is_some() { "its other end is outside" } else { "nobody has it open" };
                    let why = format!("a descriptor in flight in its queue ({}) is not kept: {whose}", link.display());
                    refuse(why, "let the program receive it first, or keep it open where it was sent");
                }
            }
        }
        messages.push(m);
    }
    match reasons.is_empty() {
        true => Ok(messages),
        false => Err(Error { kind: Kind::Refused, attempted: o.survey.attempted.clone(), reasons }),
    }
}

/// Why it cannot be told with which bytes of a stream descriptors come. A look joins bytes without any and those behind them with some, whatever is asked for
/// (unix_stream_read_generic in net/unix/af_unix.c); but what all take of the sender's buffer (`taken`) is the least where each was sent at once.
pub(super) fn joined(f: &FileView, queue: &[Message], taken: Option<i32>) -> Option<Reason> {
    let why = match taken {
        Some(taken) if in_one_piece_each(queue) == Some(taken) => return None,
        Some(_) => "descriptors are in flight in its queue with other bytes around, and with which they come cannot be seen",
        None => "descriptors are in flight in its queue, whose sender has gone, and with which bytes they come cannot be seen",
    };
    Some(Reason::new(f.describe(), why, "checkpoint when the program has received them"))
}

/// Which open file it is.
fn index(fd: &OwnedFd, o: &Observer<'_>) -> Result<Option<usize>> {
    let failed = |e: std::io::Error| o.explain(Fault::from(e));
    let ino = nix::sys::stat::fstat(fd).map_err(|e| failed(e.into()))?.st_ino;
    for (i, v) in o.files().iter().enumerate() {
        if v.stat.as_ref().is_some_and(|s| s.ino == ino) {
            let theirs = o.descriptor_of(v)?;
            if sys::agent::same_open_file(fd.as_fd(), theirs.as_fd()).map_err(failed)? {
                return Ok(Some(i));
            }
        }
    }
    Ok(None)
}
