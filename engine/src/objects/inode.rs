//! Names of inodes of which the kernel tells the number only: what inotify and fanotify watch, and files that were deleted under the name by which they
//! were opened.
//!
//! With CAP_DAC_READ_SEARCH the kernel is asked (open_by_handle_at(2)). An ordinary user can only look: at the working directory, what is open,
//! what the command line names, and what is above all those; then below them, and then through the file system, as far as [`MOST`] entries go.
use crate::capture::FileView;
use crate::restore::files::{Checker, Maker};
use crate::{check, Reason};
use image::v1::files::OpenFile;
use std::collections::{HashSet, VecDeque};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use sys::handle::Handle;
use sys::procfs::{self, mountinfo::Mount, Dev};
use sys::program::{Arg, Program};

/// Most entries of directories that are looked through for one inode.
const MOST: usize = 20_000;
/// Of those, below one directory: the next may be the right one.
const EACH: usize = 2_000;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// File system.
    pub dev: Dev,
    /// Its number there.
    pub ino: u64,
    /// Its file handle, if the file system has such.
    pub handle: Option<Handle>,
}

impl Inode {
    /// From what fdinfo says of a watch.
    pub fn watched(dev: Dev, ino: u64, kind: u32, bytes: &[u8]) -> Inode {
        let handle = (!bytes.is_empty()).then(|| Handle { kind: kind as i32, bytes: bytes.to_vec() });
        Inode { dev, ino, handle }
    }
}

/// What was found before, by this process, or not: the search before the freeze serves the one in it. A name is believed only as long as it leads there.
static FOUND: Mutex<Vec<(Inode, Option<PathBuf>)>> = Mutex::new(Vec::new());

/// A name that leads to the inode; `pid`: whose it is.
pub fn name(inode: &Inode, pid: i32) -> Option<PathBuf> {
    let mounts = procfs::mountinfo::read(std::process::id() as i32).ok()?;
    let s = Search { inode, mounts: &mounts };
    // one that the frozen program may have to answer for is never asked
    s.mounts.iter().find(|m| m.dev == inode.dev).filter(|m| !m.fs_type.starts_with(b"fuse"))?;
    let known = FOUND.lock().ok()?.iter().find(|(i, _)| i == inode).map(|(_, p)| p.clone());
    match known {
        Some(Some(path)) if s.is_at(&path) => return Some(path),
        Some(None) => return None,
        _ => {}
    }
    let path = s.by_handle().or_else(|| s.by_looking(pid));
    let mut found = FOUND.lock().ok()?;
    found.retain(|(i, _)| i != inode);
    found.push((inode.clone(), path.clone()));
    path
}

/// How an inode that is watched comes back: by a name, or by what a descriptor of the target has open without one.
#[derive(Default)]
pub(super) struct Place {
    /// A name, without symbolic links.
    pub path: Vec<u8>,
    /// Its type and mode.
    pub mode: u32,
    /// It has no name: it is what this descriptor has open.
    pub fd: Option<i32>,
}

/// Looks for that; `all` are the open files of `pid`.
pub(super) fn place(inode: &Inode, all: &[FileView], pid: i32) -> Option<Place> {
    let open =
        |f: &&FileView| f.pid == pid && f.stat.as_ref().is_some_and(|s| s.ino == inode.ino && s.dev == inode.dev);
    if let Some(f) = all.iter().filter(|f| f.deleted).find(open) {
        return Some(Place { fd: Some(f.first_fd()), ..Place::default() });
    }
    let path = name(inode, pid)?;
    let mode = std::fs::symlink_metadata(&path).ok()?.mode();
    Some(Place { path: path.into_os_string().into_vec(), mode, fd: None })
}

/// The reason against a watch of what has no name. `which`: "its watch 1".
pub(super) fn nameless(f: &FileView, which: &str, inode: &Inode) -> Reason {
    let (ino, major, minor) = (inode.ino, inode.dev.major, inode.dev.minor);
    let why = format!("what {which} is about (inode {ino} of device {major}:{minor}) has no name that could be found");
    let remedy =
        "run ctl as root, who may ask the kernel; start the program in that directory; or close the descriptor";
    Reason::new(f.describe(), why, remedy)
}

/// Why what was watched under a name cannot be again; `mode` is what it had.
pub(super) fn unlike(c: &Checker<'_>, f: &OpenFile, which: &str, (path, mode): (&[u8], u32)) -> Option<Reason> {
    let path = c.path(path);
    let reason = |why, remedy: &str| Some(Reason::new(c.describe(f), why, remedy));
    let said = format!("{which} is about {}", path.display());
    match std::fs::symlink_metadata(&path) {
        Err(e) => reason(format!("{said}: {}", check::in_words(&path, &e)), &check::remedy(&e, check::PUT_BACK)),
        Ok(m) if (m.mode() ^ mode) & libc::S_IFMT != 0 => {
            reason(format!("{said}, which is something else now"), "put it back, or pass --map-path OLD=NEW")
        }
        Ok(m) if !m.is_symlink() && nix::unistd::access(&path, nix::unistd::AccessFlags::R_OK).is_err() => {
            reason(format!("{said}, which you may not read"), "change its owner or mode")
        }
        Ok(_) => None,
    }
}

/// What names it to the process under restore: its path there, and whether that is a symbolic link itself.
pub(super) fn named(m: &Maker<'_>, p: &mut Program, (path, mode, fd): (&[u8], u32, Option<i32>)) -> (Arg, bool) {
    match fd {
        Some(n) => (p.cstr(format!("/proc/self/fd/{n}").as_bytes()), false),
        None => (m.path(p, path), mode & libc::S_IFMT == libc::S_IFLNK),
    }
}

struct Search<'a> {
    inode: &'a Inode,
    mounts: &'a [Mount],
}

impl Search<'_> {
    /// Whether a path leads to it.
    fn is_at(&self, path: &Path) -> bool {
        let here = |mount| self.mounts.iter().any(|m| m.id == mount && m.dev == self.inode.dev);
        match &self.inode.handle {
            Some(h) => Handle::of_path(path).is_ok_and(|(found, mount)| found == *h && here(mount)),
            None => std::fs::symlink_metadata(path)
                .is_ok_and(|m| m.ino() == self.inode.ino && Dev::from_stat(m.dev()) == self.inode.dev),
        }
    }

    fn by_handle(&self) -> Option<PathBuf> {
        let handle = self.inode.handle.as_ref()?;
        for m in self.mounts.iter().filter(|m| m.dev == self.inode.dev) {
            let mut how = std::fs::OpenOptions::new();
            let root = how.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path(&m.mount_point));
            let Ok(file) = root.and_then(|root| handle.open(&root)) else { continue };
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            if let Some(path) = std::fs::read_link(link).ok().filter(|p| self.is_at(p)) {
                return Some(path);
            }
        }
        None
    }

    fn by_looking(&self, pid: i32) -> Option<PathBuf> {
        let near = self.near(pid);
        if let Some(path) = near.iter().find(|p| self.is_at(p)) {
            return Some(path.clone());
        }
        let remote: [&[u8]; 6] = [b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"ceph"];
        let mine = || self.mounts.iter().filter(|m| m.dev == self.inode.dev && !remote.contains(&m.fs_type.as_slice()));
        mine().next()?;
        let cwd = procfs::cwd(pid).map(|l| l.path).unwrap_or_default();
        let named = std::fs::read(procfs::path(pid, "cmdline")).unwrap_or_default();
        let named = named.split(|b| *b == 0).skip(1).filter(|w| !w.is_empty()).map(|w| cwd.join(path(w)));
        let first: Vec<PathBuf> = named.chain([cwd.clone()]).filter(|p| near.contains(p)).collect();
        self.below(first.into_iter().chain(near).chain(mine().map(|m| path(&m.mount_point).to_path_buf())))
    }

    /// What the program has to do with, and all that is above, as far as it lies in the inode's file system.
    fn near(&self, pid: i32) -> Vec<PathBuf> {
        let cwd = procfs::cwd(pid).map(|l| l.path).unwrap_or_default();
        let named = std::fs::read(procfs::path(pid, "cmdline")).unwrap_or_default();
        let named = named.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| cwd.join(path(w)));
        let open = procfs::fd::links(pid).unwrap_or_default().into_iter().map(|(_, l)| path(&l).to_path_buf());
        let mapped = procfs::maps::read(pid).unwrap_or_default().into_iter().map(|v| path(&v.path).to_path_buf());
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        let named: Vec<PathBuf> = named.filter(|p| self.is_plain(p)).collect();
        for path in std::iter::once(cwd.clone()).chain(open).chain(named).chain(mapped).filter(|p| p.is_absolute()) {
            for p in path.ancestors().take_while(|p| seen.insert(p.to_path_buf())) {
                if self.mount_of(p).is_some_and(|m| m.dev == self.inode.dev) {
                    all.push(p.to_path_buf());
                }
            }
        }
        all
    }

    /// No component of it is a symbolic link, which could lead to a file system that does not answer.
    fn is_plain(&self, path: &Path) -> bool {
        let parts: Vec<&Path> = path.ancestors().collect();
        let usual = |p: &&Path| self.mount_of(p).is_some_and(|m| !m.fs_type.starts_with(b"fuse"));
        parts.iter().rev().all(|p| usual(p) && std::fs::symlink_metadata(p).is_ok_and(|m| !m.is_symlink()))
    }

    /// The mount that a path without symbolic links lies in.
    fn mount_of(&self, path_: &Path) -> Option<&Mount> {
        let around = self.mounts.iter().filter(|m| path_.starts_with(path(&m.mount_point)));
        // of those at the same point the last lies on top
        around.max_by_key(|m| m.mount_point.len())
    }

    /// Looks through directories, those that are given first.
    fn below(&self, from: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
        let (mut seen, mut entries) = (HashSet::new(), 0);
        // where the number that a directory gives is not the inode's, each has to be asked
        let ask_all = self.mounts.iter().any(|m| m.dev == self.inode.dev && m.fs_type == b"overlay");
        let mut rest = VecDeque::new();
        for root in from {
            let (mut left, end) = (VecDeque::from([root]), (entries + EACH).min(MOST));
            let found = self.among(&mut left, ask_all, &mut seen, (&mut entries, end));
            if found.is_some() {
                return found;
            }
            rest.append(&mut left);
        }
        self.among(&mut rest, ask_all, &mut seen, (&mut entries, MOST))
    }

    /// The same below those that are left, until `entries` have become too many.
    fn among(
        &self,
        left: &mut VecDeque<PathBuf>,
        ask_all: bool,
        seen: &mut HashSet<PathBuf>,
        (entries, end): (&mut usize, usize),
    ) -> Option<PathBuf> {
        while let Some(dir) = left.pop_front() {
            let here = self.mount_of(&dir).is_some_and(|m| m.dev == self.inode.dev);
            if !here || !seen.insert(dir.clone()) {
                continue;
            }
            for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if (ask_all || e.ino() == self.inode.ino) && self.is_at(&e.path()) {
                    return Some(e.path());
                }
                *entries += 1;
                if *entries > end {
                    return None;
                }
                if e.file_type().is_ok_and(|t| t.is_dir()) {
                    left.push_back(e.path());
                }
            }
        }
        None
    }
}

fn path(b: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the rights of who runs this: the ways of looking are called by themselves.
    #[test]
    fn a_name_is_found_by_looking() {
        let dir = std::env::temp_dir().canonicalize().unwrap().join(format!("dormouse-inode-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        let file = dir.join("a/b/file");
        std::fs::write(&file, "").unwrap();
        let meta = std::fs::metadata(&file).unwrap();
        let (handle, mount) = Handle::of_path(&file).unwrap();
        let mounts = procfs::mountinfo::read(std::process::id() as i32).unwrap();
        let dev = mounts.iter().find(|m| m.id == mount).unwrap().dev;
        let mut inode = Inode { dev, ino: meta.ino(), handle: Some(handle) };
        let s = Search { inode: &inode, mounts: &mounts };
        assert!(s.is_at(&file) && !s.is_at(&dir));
        assert_eq!(s.below([dir.clone()].into_iter()), Some(file.clone()));
        assert_eq!(s.below([dir.join("none")].into_iter()), None);
        // open, it is near
        let open = std::fs::File::open(&file).unwrap();
        let near = s.near(std::process::id() as i32);
        assert!(near.contains(&file) && near.contains(&dir), "{near:?}");
        drop(open);
        assert_eq!(name(&inode, std::process::id() as i32).as_ref().map(|p| s.is_at(p)), Some(true));
        // what was found is believed only as long as it is there
        std::fs::rename(&file, dir.join("a/moved")).unwrap();
        assert_eq!(s.below([dir.clone()].into_iter()), Some(dir.join("a/moved")));
        std::fs::remove_dir_all(&dir).unwrap();
        inode.ino = u64::MAX;
        assert_eq!(Search { inode: &inode, mounts: &mounts }.below([dir].into_iter()), None);
    }
}
