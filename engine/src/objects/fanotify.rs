//! fanotify(7): groups and what they mark. As with inotify nobody can look at events that wait without taking them, or put any in: a restored
//! group has none, which is said.
//!
//! Two dangers are its own. A group whose marks ask for a permission (FAN_OPEN_PERM and kin) holds up everybody who opens such a file until the program answers,
//! which it does not while it is frozen: us among them, who could then not thaw it. So it is refused, before the freeze, and in it before
//! anything but /proc is looked at ([`decides`]). And marks of a mount or file system see what a restore does: they are set when that has nothing more to
//! open in it, by this process, since a process in a private PID namespace has mounts of its own.
use super::inode::{self, Inode};
use super::{encode, io, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::{cannot, creds, pids::Rights, Step};
use crate::{Reason, Result};
use image::v1::fanotify as v1;
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::procfs::fdinfo::{FanotifyMark, Marked};
use sys::procfs::mountinfo::{self, Mount};
use sys::program::{Arg::Imm, Program};

/// A fanotify group.
pub struct Fanotify;

/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, and FAN_PRE_ACCESS (6.14): linux/fanotify.h.
const ASKING: u32 = 0x17_0000;
/// FAN_REPORT_FID, FAN_REPORT_DIR_FID: one of them whoever has no privilege must ask for.
const REPORT_FID: u32 = 0x600;
/// What takes CAP_SYS_ADMIN: FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT, FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS, FAN_ENABLE_AUDIT, FAN_REPORT_PIDFD,
/// FAN_REPORT_TID, FAN_REPORT_FD_ERROR (FANOTIFY_ADMIN_INIT_FLAGS of the kernel).
const PRIVILEGED: u32 = 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x2000;
const CAP_SYS_ADMIN: u32 = 21;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAP_VERSION: u32 = 0x2008_0522;

const MARK_ADD: u32 = 0x1;
const MARK_REMOVE: u32 = 0x2;
const MARK_DONT_FOLLOW: u32 = 0x4;
const MARK_IGNORED_MASK: u32 = 0x20;
const MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
const MARK_EVICTABLE: u32 = 0x200;
const MARK_IGNORE: u32 = 0x400;
/// FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM, by [`v1::Mark::on`].
const MARK_ON: [u32; 3] = [0, 0x10, 0x100];
/// FAN_OPEN: any event, to be ignored for a moment.
const OPEN: u32 = 0x20;

/// Why it may not be frozen: others would wait for its answers.
pub(crate) fn decides(f: &FileView) -> Option<Reason> {
    let asks = f.info.fanotify.as_ref()?.marks.iter().any(|m| m.mask & ASKING != 0);
    let why = "its marks let others wait for the program's answer (FAN_OPEN_PERM, FAN_ACCESS_PERM and the like), which would not come while it is frozen";
    asks.then(|| Reason::new(f.describe(), why, "let it remove those marks before the checkpoint (FAN_MARK_REMOVE)"))
}

fn path(b: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(b))
}

fn own_mounts() -> Vec<Mount> {
    mountinfo::read(std::process::id() as i32).unwrap_or_default()
}

/// A mount that a path leads to, of those that are right.
fn in_sight(mounts: &[Mount], right: impl Fn(&Mount) -> bool) -> Option<&Mount> {
    mounts
        .iter()
        .filter(|m| right(m))
        .find(|m| mountinfo::of(mounts, path(&m.mount_point)).is_some_and(|o| o.id == m.id))
}

fn inode(on: &Marked) -> Option<Inode> {
    let Marked::Inode { ino, sdev, handle_type, handle } = on else { return None };
    Some(Inode::watched(*sdev, *ino, *handle_type, handle))
}

/// How a mark comes back, or the reason why it does not.
fn way(m: &FanotifyMark, f: &FileView, all: &[FileView], pid: i32) -> std::result::Result<v1::Mark, Reason> {
    let mut out = v1::Mark { mask: m.mask, ignored: m.ignored, flags: m.flags, ..Default::default() };
    if let Some(inode) = inode(&m.on) {
        let place = inode::place(&inode, all, pid).ok_or_else(|| inode::nameless(f, "its mark", &inode))?;
        (out.path, out.mode, out.fd) = (place.path.into(), place.mode, place.fd);
        return Ok(out);
    }
    let mounts = own_mounts();
    let (found, what) = match &m.on {
        Marked::Mount(id) => (in_sight(&mounts, |m| m.id == *id), format!("mount {id}")),
        Marked::FileSystem(dev) => {
            let what = format!("the file system of device {}:{}", dev.major, dev.minor);
            (in_sight(&mounts, |m| m.dev == *dev), what)
        }
        Marked::Inode { .. } | Marked::Other(_) => (None, "something else than an inode, mount or file system".into()),
    };
    let unknown = || {
        let why = format!("its mark is about {what}, to which no path leads here");
        Reason::new(
            f.describe(),
            why,
            "run ctl in its mount namespace; or let the program remove the mark before the checkpoint",
        )
    };
    let mount = found.ok_or_else(unknown)?;
    out.on = if matches!(m.on, Marked::Mount(_)) { v1::ON_MOUNT } else { v1::ON_FILE_SYSTEM };
    out.path = mount.mount_point.clone().into();
    out.fs_type = mount.fs_type.clone().into();
    out.root = mount.root.clone().into();
    Ok(out)
}

/// Whether it can only have been made with CAP_SYS_ADMIN.
fn is_privileged(flags: u32, marks: &[v1::Mark]) -> bool {
    flags & REPORT_FID == 0 || flags & PRIVILEGED != 0 || marks.iter().any(|m| m.on != v1::ON_INODE)
}

impl Object for Fanotify {
    fn kind(&self) -> Kind {
        Kind::Fanotify
    }

    fn claims(&self, f: &FileView) -> bool {
        f.link == b"anon_inode:[fanotify]"
    }

    fn inspect(&self, f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
        let Some(group) = &f.info.fanotify else {
            let why = "the kernel does not tell its marks (fanotify)";
            return vec![Reason::new(f.describe(), why, "close it before the checkpoint")];
        };
        if let Some(why) = decides(f) {
            return vec![why];
        }
        group.marks.iter().filter_map(|m| way(m, f, all, pid).err()).collect()
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let Some(group) = f.info.fanotify.as_ref() else { return Ok(encode(&v1::Fanotify::default())) };
        let way = |m| way(m, f, o.files(), o.survey.pid).ok();
        let mut marks: Vec<v1::Mark> = group.marks.iter().filter_map(way).collect();
        let waits = sys::fdstate::is_readable(&o.descriptor(f.first_fd())?).unwrap_or(false);
        if waits {
            let wide = marks.iter().any(|m| m.on != v1::ON_INODE);
            let some = if wide { ", perhaps of what this checkpoint has opened" } else { "" };
            let what = format!("events that the program has not read yet{some}");
            o.reported.push(format!("{}: {what}: after a restore they are lost", f.describe()));
        }
        // one that ignored a file until it was changed, as it was
        let idle = |m: &v1::Mark| m.mask == 0 && m.ignored == 0;
        for m in marks.iter().filter(|m| idle(m)) {
            let what = format!("its mark of {} is about no event any more", m.path.escape_ascii());
            o.reported.push(format!("{}: {what}: after a restore it is not there", f.describe()));
        }
        marks.retain(|m| !idle(m));
        let effective = o.survey.status.cap_effective;
        let plain = !is_privileged(group.flags, &marks) && effective >> CAP_SYS_ADMIN & 1 == 0;
        Ok(encode(&v1::Fanotify { flags: group.flags, event_flags: group.event_flags, plain, marks }))
    }
}

impl Remake for Fanotify {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(g) = files::decode::<v1::Fanotify>(f) else { return Vec::new() };
        let mut reasons = Vec::new();
        if is_privileged(g.flags, &g.marks) && !Rights::own().has(CAP_SYS_ADMIN) {
            let why = "it is one that takes CAP_SYS_ADMIN: it marks mounts or file systems, or tells more than an ordinary user may know";
            reasons.push(Reason::new(c.describe(f), why, "restore it as root"));
        }
        let mounts = own_mounts();
        for m in &g.marks {
            reasons.extend(match m.on {
                v1::ON_INODE if m.fd.is_some() => None,
                v1::ON_INODE => inode::unlike(c, f, "its mark", (&m.path, m.mode)),
                _ => not_mounted(c, f, m, &mounts),
            });
        }
        reasons
    }

    fn notes(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<String> {
        let Ok(g) = files::decode::<v1::Fanotify>(f) else { return Vec::new() };
        let note = "its events do not tell any more which process they are of, which takes CAP_SYS_ADMIN";
        let less = !g.plain && !is_privileged(g.flags, &g.marks) && !Rights::own().has(CAP_SYS_ADMIN);
        Vec::from_iter(less.then(|| format!("{}: {note}", c.describe(f))))
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let g: v1::Fanotify = files::decode(f)?;
        let held = if g.plain { Some(capabilities(m)?) } else { None };
        let mut p = Program::new();
        if let Some([effective, permitted, inheritable]) = held {
            creds::capset(&mut p, permitted, effective & !(1 << CAP_SYS_ADMIN), inheritable);
        }
        let fd = p.call(libc::SYS_fanotify_init, &[Imm(g.flags as u64), Imm(g.event_flags as u64)]);
        if let Some([effective, permitted, inheritable]) = held {
            creds::capset(&mut p, permitted, effective, inheritable);
        }
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    fn watches(&self) -> bool {
        true
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let g: v1::Fanotify = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        for mark in g.marks.iter().rev() {
            let said = format!("marking {}", mark.path.escape_ascii());
            if mark.on != v1::ON_INODE {
                let group = m.borrow_fd(fd)?;
                let at = files::map_path(&mark.path, m.o);
                for (flags, mask) in calls(mark) {
                    sys::fanotify::mark(&group, flags, mask.into(), path(&at)).map_err(|e| io(&said, e))?;
                }
                continue;
            }
            let mut p = Program::new();
            let (at, link) = inode::named(m, &mut p, (&mark.path, mark.mode, mark.fd));
            let link = if link { MARK_DONT_FOLLOW } else { 0 };
            for (flags, mask) in calls(mark) {
                let cwd = Imm(libc::AT_FDCWD as i64 as u64);
                p.call(libc::SYS_fanotify_mark, &[fd.into(), Imm((flags | link).into()), Imm(mask.into()), cwd, at]);
                p.named(&said);
            }
            m.run(&p)?;
        }
        // two that lead to one inode here would have become one mark
        if m.fdinfo(fd)?.fanotify.map_or(0, |g| g.marks.len()) != g.marks.len() {
            let remedy = "two marks of it lead to one file here: put the other back; no process is left";
            return Err(cannot(m.describe(id, f), "its marks could not all be set again", remedy));
        }
        Ok(())
    }
}

/// Its capabilities at this moment: effective, permitted, inheritable.
fn capabilities(m: &mut Maker<'_>) -> Step<[u64; 3]> {
    let mut p = Program::new();
    let head = p.bytes(&[CAP_VERSION.to_le_bytes(), [0; 4]].concat());
    let data = p.out(24);
    p.call(libc::SYS_capget, &[head, data.arg()]);
    let r = m.run(&p)?;
    Ok([0, 4, 8].map(|at| u64::from(r.u32(data, at)) | u64::from(r.u32(data, at + 12)) << 32))
}

/// The calls of fanotify_mark(2) that make a mark: flags and mask of each.
fn calls(m: &v1::Mark) -> Vec<(u32, u32)> {
    let on = MARK_ON.get(m.on as usize).copied().unwrap_or(0) | m.flags & MARK_EVICTABLE;
    let mut calls = Vec::new();
    if m.mask != 0 {
        calls.push((MARK_ADD | on, m.mask));
    }
    let how = if m.flags & MARK_IGNORE != 0 { MARK_IGNORE } else { MARK_IGNORED_MASK };
    let ignoring = on | how | m.flags & MARK_IGNORED_SURV_MODIFY;
    match m.ignored {
        0 if m.flags & (MARK_IGNORED_SURV_MODIFY | MARK_IGNORE) == 0 => {}
        // how it ignored stays when there is nothing that it ignores any more
        0 => calls.extend([(MARK_ADD | ignoring, OPEN), (MARK_REMOVE | ignoring & !MARK_EVICTABLE, OPEN)]),
        ignored => calls.push((MARK_ADD | ignoring, ignored)),
    }
    calls
}

/// Why a mount or file system cannot be marked again.
fn not_mounted(c: &Checker<'_>, f: &OpenFile, m: &v1::Mark, mounts: &[Mount]) -> Option<Reason> {
    let at = c.path(&m.path);
    let here = mountinfo::of(mounts, &at).filter(|here| path(&here.mount_point) == at);
    let right = |h: &&Mount| h.fs_type[..] == m.fs_type[..] && (m.on == v1::ON_FILE_SYSTEM || h.root[..] == m.root[..]);
    if here.filter(right).is_some() {
        return None;
    }
    let what = if m.on == v1::ON_MOUNT { "mount" } else { "file system" };
    let why = match here {
        None => format!("its mark is about the {what} at {}, and nothing is mounted there", at.display()),
        Some(_) => format!("its mark is about the {what} at {}, and something else is mounted there", at.display()),
    };
    Some(Reason::new(c.describe(f), why, "mount it again, or pass --map-path OLD=NEW"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_made_by_what_it_watches_and_what_it_ignores() {
        let mark = |on, mask, ignored, flags| v1::Mark { on, mask, ignored, flags, ..Default::default() };
        assert_eq!(calls(&mark(v1::ON_INODE, 0x38, 0, 0)), [(0x1, 0x38)]);
        assert_eq!(calls(&mark(v1::ON_MOUNT, 0x20, 0x8, 0x40)), [(0x11, 0x20), (0x71, 0x8)]);
        assert_eq!(calls(&mark(v1::ON_FILE_SYSTEM, 0, 0x20, 0)), [(0x121, 0x20)]);
        assert_eq!(calls(&mark(v1::ON_INODE, 0x1, 0x4000_0020, 0x640)), [(0x201, 0x1), (0x641, 0x4000_0020)]);
        assert_eq!(calls(&mark(v1::ON_INODE, 0x1, 0, 0x440)), [(0x1, 0x1), (0x441, 0x20), (0x442, 0x20)]);
    }
}
