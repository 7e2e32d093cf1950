//! ONE FILE PER KIND OF KERNEL OBJECT: how it is captured, checked and made again.
//!
//! The capture side of each is an [`Object`], listed in [`ALL`]; the first that claims an open file has it. The restore side
//! is a `crate::restore::files::Remake` on the same unit struct. What nobody claims is refused by name.

mod anon;
pub(crate) mod content;
mod deleted;
mod fanotify;
mod fifo;
mod in_flight;
mod inode;
mod inotify;
mod linked;
pub(crate) mod locks;
mod memfd;
mod mqueue;
mod named;
mod pidfd;
mod pipe;
mod polled;
mod proc;
mod pty;
mod sock;
mod stdio;
mod tcp;
mod udp;
mod unix;
mod uring;

use crate::capture::{FileView, Observer};
use crate::{Reason, Result};
use image::v1::objects::Kind;

pub use anon::{Epoll, EventFd, SignalFd, TimerFd};
pub(crate) use deleted::whole as deleted_whole;
pub use deleted::Deleted;
pub(crate) use fanotify::{decides, Fanotify};
pub use fifo::{is_without_writer, Fifo};
pub use inotify::Inotify;
pub use linked::Linked;
pub use memfd::Memfd;
pub(crate) use memfd::{huge_kb, is as is_memfd, seal as memfd_seal, whole as memfd_whole};
pub use mqueue::Mqueue;
pub use named::{Device, Directory, OPath, Regular};
pub use pidfd::{Handle, PidFd};
pub use pipe::Pipe;
pub(crate) use polled::{any as polled, make_all as polled_rings};
pub use proc::ProcFile;
pub use pty::{PtyMaster, PtySlave};
pub use stdio::Stdio;
pub use tcp::Tcp;
pub use udp::Udp;
pub use unix::{UnixListen, UnixPair};
pub use uring::Uring;
pub(crate) use uring::{check_owners as uring_owners, most_places as uring_places, strays as uring_strays, RING};

/// How a kind of open file is captured.
pub trait Object: Sync {
    /// Its number in the image.
    fn kind(&self) -> Kind;

    /// Whether this open file is of this kind.
    fn claims(&self, f: &FileView) -> bool;

    /// What would make its capture or its restore fail; `all` are the open files of process `pid` at the same time. Runs before
    /// the freeze and again in it, and `ctl check --pid` runs just this.
    fn inspect(&self, _f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        Vec::new()
    }

    /// Reads its state, in the freeze. Gives the kind's struct as a msgpack named map ([`encode`]).
    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>>;
}

/// All kinds; the order matters where two could claim the same file.
pub static ALL: &[&dyn Object] = &[
    &OPath,
    &UnixPair,
    &Pipe,
    &Fifo,
    &Udp,
    &PtyMaster,
    &PtySlave,
    &Stdio,
    &Tcp,
    &UnixListen,
    &EventFd,
    &TimerFd,
    &SignalFd,
    &Epoll,
    &Inotify,
    &Fanotify,
    &Handle,
    &PidFd,
    &Uring,
    &Device,
    &Mqueue,
    &ProcFile,
    &Regular,
    &Memfd::Huge,
    &Memfd::Plain,
    &Linked,
    &Deleted,
    &Directory,
];

/// The kind that claims a file.
pub fn of(f: &FileView) -> Option<&'static dyn Object> {
    if f.ours {
        return Some(&Stdio);
    }
    ALL.iter().copied().find(|k| k.claims(f))
}

/// The refusal of what nobody claims.
pub fn refusal(f: &FileView) -> Reason {
    let link = f.link.as_slice();
    let close = "close it before the checkpoint";
    if stdio::is_external(f) {
        let what = if f.socket.is_some() { "socket" } else { "pipe" };
        if let Some(holder) = &f.held {
            let why = format!("{holder} holds it too, and would be cut off from a restored program");
            return Reason::new(f.describe(), why, stdio::remedy(f, "close it, or end that process"));
        }
        let why = format!("the other end of this {what} is outside the process");
        return Reason::new(f.describe(), why, stdio::remedy(f, "connect it to descriptor 0, 1 or 2, close it"));
    }
    let (why, remedy) = if link.starts_with(b"socket:") {
        ("this kind of socket is not kept yet", close)
    } else if link == b"anon_inode:[userfaultfd]" {
        let let_go = "let the program unregister its memory (UFFDIO_UNREGISTER) and close it before the checkpoint";
        ("it handles faults of the program's memory (userfaultfd), which is not kept", let_go)
    } else if link.starts_with(b"anon_inode:") {
        ("this kind of kernel object is not kept yet", close)
    } else if f.deleted {
        ("the file was deleted, and files without a name are not kept yet", close)
    } else {
        ("this kind of file is not kept yet", close)
    };
    Reason::new(f.describe(), why, remedy)
}

/// Every reason against an open file: its kind's, and what is held on it.
pub fn inspect(f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
    let kinds = of(f).map_or_else(|| vec![refusal(f)], |k| k.inspect(f, all, pid));
    let filter = f.socket.as_ref().filter(|s| s.filtered && !stdio::is_external(f)).map(|_| {
        let why = "a filter decides what it receives (SO_ATTACH_FILTER), which is not kept yet";
        Reason::new(f.describe(), why, "let the program take it off first (SO_DETACH_FILTER)")
    });
    kinds.into_iter().chain(locks::refusal(f)).chain(filter).collect()
}

/// A failed step of a restore.
fn io(doing: &str, e: std::io::Error) -> crate::restore::Fault {
    crate::restore::Fault::Io(doing.into(), e)
}

/// A kind's struct as bytes for the image.
pub fn encode<T: serde::Serialize>(t: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(t).expect("structs of the image hold nothing that msgpack cannot")
}
