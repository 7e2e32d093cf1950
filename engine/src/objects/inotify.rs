//! inotify(7): instances and what they watch, under the same numbers. Events that the program has not read stay in the running one's queue; the
//! kernel lets nobody look at them without taking them, or put any in, so a restored one has none, which is said.
use super::inode::{self, Inode};
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, Step};
use crate::{check, Reason, Result};
use image::v1::files::OpenFile;
use image::v1::inotify as v1;
use image::v1::objects::Kind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use sys::handle::Handle;
use sys::procfs::fdinfo::InotifyWatch;
use sys::program::{Arg::Imm, Program};

/// An inotify instance.
pub struct Inotify;

/// What may be asked for; the kernel shows bits of its own beside them.
const ASKED: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;
/// `_IOW('I', 0, __s32)`, INOTIFY_IOC_SETNEXTWD of linux/inotify.h: the number of the next watch.
const SET_NEXT: u64 = 0x4004_4900;

/// How a watch comes back: by a name, or by what a descriptor of the target has open without one.
fn way(w: &InotifyWatch, all: &[FileView], pid: i32) -> Option<v1::Watch> {
    let mut out = v1::Watch { wd: w.wd, mask: w.mask & ASKED, ..Default::default() };
    let open = |f: &&FileView| f.pid == pid && f.stat.as_ref().is_some_and(|s| s.ino == w.ino && s.dev == w.sdev);
    if let Some(f) = all.iter().filter(|f| f.deleted).find(open) {
        out.fd = Some(f.first_fd());
        return Some(out);
    }
    let handle = Handle { kind: w.handle_type as i32, bytes: w.handle.clone() };
    let inode = Inode { dev: w.sdev, ino: w.ino, handle: Some(handle).filter(|h| !h.bytes.is_empty()) };
    let path = inode::name(&inode, pid)?;
    out.mode = std::fs::symlink_metadata(&path).ok()?.mode();
    out.path = path.into_os_string().into_vec().into();
    Some(out)
}

impl Object for Inotify {
    fn kind(&self) -> Kind {
        Kind::Inotify
    }

    fn claims(&self, f: &FileView) -> bool {
        f.link == b"anon_inode:inotify"
    }

    fn inspect(&self, f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
        let unknown = |w: &InotifyWatch| {
            let why = format!(
                "what its watch {} is about (inode {} of device {}:{}) has no name that could be found",
                w.wd, w.ino, w.sdev.major, w.sdev.minor
            );
            let remedy =
                "run ctl as root, who may ask the kernel; start the program in that directory; or close the descriptor";
            Reason::new(f.describe(), why, remedy)
        };
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
        let one = |w: &v1::Watch| {
            let path = c.path(&w.path);
            let put_back = "put it back, or pass --map-path OLD=NEW";
            let reason = |why, remedy: &str| Some(Reason::new(c.describe(f), why, remedy));
            let said = format!("its watch {} is about {}", w.wd, path.display());
            match std::fs::symlink_metadata(&path) {
                Err(e) => {
                    reason(format!("{said}: {}", check::in_words(&path, &e)), &check::remedy(&e, check::PUT_BACK))
                }
                Ok(m) if (m.mode() ^ w.mode) & libc::S_IFMT != 0 => {
                    reason(format!("{said}, which is something else now"), put_back)
                }
                Ok(m) if !m.is_symlink() && nix::unistd::access(&path, nix::unistd::AccessFlags::R_OK).is_err() => {
                    reason(format!("{said}, which you may not read"), "change its owner or mode")
                }
                Ok(_) => None,
            }
        };
        i.watches.iter().filter(|w| w.fd.is_none()).filter_map(one).collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, _f: &OpenFile) -> Step<Made> {
        let mut p = Program::new();
        let fd = p.call(libc::SYS_inotify_init1, &[Imm(0)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    /// Its watches come last, so that they see nothing of what a restore does.
    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let i: v1::Inotify = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        for w in &i.watches {
            let mut p = Program::new();
            let (path, link) = match w.fd {
                Some(n) => (p.cstr(format!("/proc/self/fd/{n}").as_bytes()), 0),
                None if w.mode & libc::S_IFMT == libc::S_IFLNK => (m.path(&mut p, &w.path), libc::IN_DONT_FOLLOW),
                None => (m.path(&mut p, &w.path), 0),
            };
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
