//! inotify(7): instances and what they watch, under the same numbers. Events that the program has not read stay in the running one's queue; the
//! kernel lets nobody look at them without taking them, or put any in, so a restored one has none, which is said.
use super::inode::{self, Inode};
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::inotify as v1;
use image::v1::objects::Kind;
use sys::procfs::fdinfo::InotifyWatch;
use sys::program::{Arg::Imm, Program};

/// An inotify instance.
pub struct Inotify;

/// What may be asked for; the kernel shows bits of its own beside them.
const ASKED: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;
/// `_IOW('I', 0, __s32)`, INOTIFY_IOC_SETNEXTWD of linux/inotify.h: the number of the next watch.
const SET_NEXT: u64 = 0x4004_4900;

fn inode(w: &InotifyWatch) -> Inode {
    Inode::watched(w.sdev, w.ino, w.handle_type, &w.handle)
}

/// How a watch comes back.
fn way(w: &InotifyWatch, all: &[FileView], pid: i32) -> Option<v1::Watch> {
    let place = inode::place(&inode(w), all, pid)?;
    let (wd, mask) = (w.wd, w.mask & ASKED);
    Some(v1::Watch { wd, mask, path: place.path.into(), mode: place.mode, fd: place.fd })
}

impl Object for Inotify {
    fn kind(&self) -> Kind {
        Kind::Inotify
    }

    fn claims(&self, f: &FileView) -> bool {
        f.link == b"anon_inode:inotify"
    }

    fn inspect(&self, f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
        let unknown = |w: &InotifyWatch| inode::nameless(f, &format!("its watch {}", w.wd), &inode(w));
        f.info.inotify.iter().filter(|w| way(w, all, pid).is_none()).map(unknown).collect()
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let unread = sys::fdstate::readable(&o.descriptor(f.first_fd())?).unwrap_or(0);
        if unread > 0 {
            let what = format!("{unread} bytes of events that the program has not read yet");
            o.reported.push(format!("{}: {what}: after a restore they are lost", f.describe()));
        }
        let mut watches = Vec::new();
        for w in &f.info.inotify {
            let known = way(w, o.files(), o.survey.pid);
            watches.extend(known);
        }
        watches.sort_by_key(|w| w.wd);
        Ok(encode(&v1::Inotify { watches }))
    }
}

impl Remake for Inotify {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(i) = files::decode::<v1::Inotify>(f) else { return Vec::new() };
        let one = |w: &v1::Watch| inode::unlike(c, f, &format!("its watch {}", w.wd), (&w.path, w.mode));
        i.watches.iter().filter(|w| w.fd.is_none()).filter_map(one).collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, _f: &OpenFile) -> Step<Made> {
        let mut p = Program::new();
        let fd = p.call(libc::SYS_inotify_init1, &[Imm(0)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    fn watches(&self) -> bool {
        true
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let i: v1::Inotify = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        for w in &i.watches {
            let mut p = Program::new();
            let (path, link) = inode::named(m, &mut p, (&w.path, w.mode, w.fd));
            let link = if link { libc::IN_DONT_FOLLOW } else { 0 };
            p.may(libc::SYS_ioctl, &[fd.into(), Imm(SET_NEXT), w.wd.into()]);
            let add = p.call(libc::SYS_inotify_add_watch, &[fd.into(), path, Imm((w.mask | link) as u64)]);
            p.named(format!("watching {}", w.path.escape_ascii()));
            let got = m.run(&p)?.get(add)? as i32;
            if got != w.wd {
                let why = format!("its watch {} cannot have that number (the kernel gave {got})", w.wd);
                let remedy =
                    "two watches of it lead to one file here, or the kernel lacks CONFIG_CHECKPOINT_RESTORE; no process is left";
                return Err(cannot(m.describe(id, f), why, remedy));
            }
        }
        Ok(())
    }
}
