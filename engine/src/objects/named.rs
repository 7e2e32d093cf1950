//! Files with a name: regular files, directories, devices without state, and whatever was opened with O_PATH.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::{Reason, Result};
use image::v1::objects::{Kind, Named};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

const S_IFMT: u32 = libc::S_IFMT;

/// A regular file that still has its name.
pub struct Regular;
/// A directory.
pub struct Directory;
/// A character device that keeps no state per open file.
pub struct Device;
/// Opened with O_PATH: a name only.
pub struct OPath;

/// Major 1 of character devices (Documentation/admin-guide/devices.txt) whose open files have no state: null, zero,
/// full, random, urandom.
const STATELESS_MINORS: &[u32] = &[3, 5, 7, 8, 9];

fn format_of(f: &FileView) -> u32 {
    f.stat.as_ref().map_or(0, |s| s.mode & S_IFMT)
}

fn named(f: &FileView) -> Named {
    let s = f.stat.as_ref();
    let meta = std::fs::symlink_metadata(f.path()).ok();
    Named {
        path: f.link.clone().into(),
        size: s.map_or(0, |s| s.size as u64),
        mtime_ns: meta.map_or(0, |m| m.mtime() * 1_000_000_000 + m.mtime_nsec()),
        mode: s.map_or(0, |s| s.mode),
        rdev: s.map_or(0, |s| libc::makedev(s.rdev.major, s.rdev.minor)),
    }
}

/// The name still leads to the file that is open.
pub(super) fn check_name(f: &FileView) -> Vec<Reason> {
    // what /proc/PID/fd says of an open file has no symbolic link in it but the one that was opened with O_PATH itself
    let meta = std::fs::symlink_metadata(f.path());
    if let Some(e) = meta.as_ref().err().filter(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
        let why = format!("a restore could not open it: {}", crate::check::in_words(f.path(), e));
        return vec![Reason::new(
            f.describe(),
            why,
            "give yourself the right (chmod, chown), or let the program close it",
        )];
    }
    let same = |s: &sys::procfs::fd::FdStat, m: &std::fs::Metadata| {
        s.ino == m.ino() && libc::makedev(s.dev.major, s.dev.minor) == m.dev()
    };
    if meta.is_ok_and(|m| f.stat.as_ref().is_some_and(|s| same(s, &m))) {
        return Vec::new();
    }
    vec![Reason::new(
        f.describe(),
        "its name leads to another file now, or to none",
        "put the file back under that name",
    )]
}

impl Object for Regular {
    fn kind(&self) -> Kind {
        Kind::Regular
    }

    fn claims(&self, f: &FileView) -> bool {
        format_of(f) == libc::S_IFREG && f.link.starts_with(b"/") && f.has_name()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        check_name(f)
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        Ok(encode(&named(f)))
    }
}

impl Object for Directory {
    fn kind(&self) -> Kind {
        Kind::Directory
    }

    fn claims(&self, f: &FileView) -> bool {
        format_of(f) == libc::S_IFDIR && f.has_name()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        check_name(f)
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        Ok(encode(&named(f)))
    }
}

impl Object for Device {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn claims(&self, f: &FileView) -> bool {
        let stateless = |s: &sys::procfs::fd::FdStat| s.rdev.major == 1 && STATELESS_MINORS.contains(&s.rdev.minor);
        format_of(f) == libc::S_IFCHR && f.stat.as_ref().is_some_and(stateless)
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        Ok(encode(&named(f)))
    }
}

impl Object for OPath {
    fn kind(&self) -> Kind {
        Kind::Path
    }

    fn claims(&self, f: &FileView) -> bool {
        f.info.flags & libc::O_PATH as u32 != 0 && f.has_name()
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        check_name(f)
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        Ok(encode(&named(f)))
    }
}

impl FileView {
    /// Its name as a path.
    pub fn path(&self) -> &std::path::Path {
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.link))
    }
}
