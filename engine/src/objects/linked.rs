//! Files that were deleted under the name by which they were opened, and have another (a hard link): kept by that, as any named file is.
use super::inode::{self, Inode};
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::{Reason, Result};
use image::v1::objects::{Kind, Named};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use sys::handle::Handle;

/// A regular file that has lost its name, and has another.
pub struct Linked;

/// The name that it has.
fn name(f: &FileView, pid: i32) -> Option<PathBuf> {
    let s = f.stat.as_ref()?;
    let path = sys::procfs::path(pid, &format!("fd/{}", f.first_fd()));
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    let mounts = sys::procfs::mountinfo::read(std::process::id() as i32).ok()?;
    let handle = Handle::of_file(&file).ok();
    // the device of the file system, which that of the file need not be
    let dev = handle.as_ref().and_then(|(_, mount)| mounts.iter().find(|m| m.id == *mount)).map_or(s.dev, |m| m.dev);
    inode::name(&Inode { dev, ino: s.ino, handle: handle.map(|h| h.0) }, pid)
}

impl Object for Linked {
    fn kind(&self) -> Kind {
        Kind::Regular
    }

    fn claims(&self, f: &FileView) -> bool {
        f.deleted && f.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFREG && s.nlink > 0)
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], pid: i32) -> Vec<Reason> {
        if name(f, pid).is_some() {
            return Vec::new();
        }
        let why = "it was deleted under this name but lives on under another, which was not found";
        vec![Reason::new(
            f.describe(),
            why,
            "run ctl as root, who may ask the kernel; or let the program open it by the name that it has",
        )]
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let path = name(f, o.survey.pid).unwrap_or_default();
        let meta = std::fs::symlink_metadata(&path).ok();
        let mtime_ns = meta.map_or(0, |m| m.mtime() * 1_000_000_000 + m.mtime_nsec());
        let (size, mode) = f.stat.as_ref().map_or((0, 0), |s| (s.size as u64, s.mode));
        Ok(encode(&Named { path: path.into_os_string().into_vec().into(), size, mtime_ns, mode, rdev: 0 }))
    }
}
