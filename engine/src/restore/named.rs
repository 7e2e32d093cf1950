//! Open files with a name: opened again.
use super::files::{decode, Checker, Made, Maker, Remake};
use super::Step;
use crate::{check, Reason};
use ::image::v1::files::OpenFile;
use ::image::v1::objects::Named;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use sys::program::{Arg::Imm, Program};

/// A regular file.
pub struct Regular;
/// A directory, or whatever was opened with O_PATH.
pub struct Name;
/// A character device without state.
pub struct Device;

/// Flags of open(2) that say how to open, and are not set later: access mode, O_DIRECTORY, O_PATH, O_NOFOLLOW, O_DSYNC,
/// O_SYNC, O_LARGEFILE. Never O_CREAT, O_EXCL or O_TRUNC.
const HOW: u32 =
    (libc::O_ACCMODE | libc::O_DIRECTORY | libc::O_PATH | libc::O_NOFOLLOW | libc::O_SYNC | libc::O_DSYNC) as u32;

fn open(m: &mut Maker<'_>, f: &OpenFile) -> Step<Made> {
    let n: Named = decode(f)?;
    let mut p = Program::new();
    let path = m.path(&mut p, &n.path);
    // a FIFO or device must not make us wait
    let flags = f.flags & HOW | (libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC) as u32;
    let fd = p.call(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), path, Imm(flags as u64)]);
    let r = m.run(&p)?;
    m.take(r.get(fd))
}

impl Remake for Regular {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(n) = decode::<Named>(f) else { return vec![unreadable(c, f)] };
        let path = c.path(&n.path);
        let meta = match std::fs::metadata(&path) {
            Ok(m) => m,
            Err(e) => return vec![missing(c, f, &path, e)],
        };
        if !meta.is_file() {
            return vec![Reason::new(
                c.describe(f),
                format!("{} is not a regular file any more", path.display()),
                "put the file back, or pass --map-path OLD=NEW",
            )];
        }
        let mode = f.flags & libc::O_ACCMODE as u32;
        let mut want = nix::unistd::AccessFlags::empty();
        want.set(nix::unistd::AccessFlags::R_OK, mode != libc::O_WRONLY as u32);
        want.set(nix::unistd::AccessFlags::W_OK, mode != libc::O_RDONLY as u32);
        if nix::unistd::access(&path, want).is_err() {
            let why = format!("you may not open {}", path.display());
            return vec![Reason::new(
                c.describe(f),
                why,
                "change its owner or mode, restore as its owner, or pass --map-path OLD=NEW",
            )];
        }
        let read_only = f.flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        if read_only && (meta.size() != n.size || mtime != n.mtime_ns) && meta.size() < n.size {
            let why = format!("{} has {} bytes, at the checkpoint it had {}", path.display(), meta.size(), n.size);
            return vec![Reason::new(
                c.describe(f),
                why,
                "put that version of the file back, or pass --map-path OLD=NEW",
            )];
        }
        Vec::new()
    }

    /// Others may have written to it since: a shell of which the program inherited it, or the program itself after the checkpoint.
    fn notes(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<String> {
        let Ok(n) = decode::<Named>(f) else { return Vec::new() };
        let path = c.path(&n.path);
        let now = std::fs::metadata(&path).map_or(0, |m| m.size());
        let appends = f.flags & (libc::O_APPEND | libc::O_ACCMODE) as u32;
        if appends & libc::O_APPEND as u32 != 0
            || appends == libc::O_RDONLY as u32
            || now <= n.size
            || now as i64 <= f.pos
        {
            return Vec::new();
        }
        let (what, path) = (c.describe(f), path.display());
        vec![format!(
            "{what}: the file has grown from {} to {now} bytes since the checkpoint, and the program writes on at byte {}, over what came \
             since; to keep both, restore with --map-path {path}=COPY-OF-IT, or start the program with its output appended (>>)",
            n.size, f.pos
        )]
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        open(m, f)
    }
}

impl Remake for Name {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(n) = decode::<Named>(f) else { return vec![unreadable(c, f)] };
        let path = c.path(&n.path);
        std::fs::symlink_metadata(&path).err().map(|e| missing(c, f, &path, e)).into_iter().collect()
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        open(m, f)
    }
}

impl Remake for Device {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(n) = decode::<Named>(f) else { return vec![unreadable(c, f)] };
        let path = c.path(&n.path);
        match std::fs::metadata(&path) {
            Ok(m) if m.file_type().is_char_device() && m.rdev() == n.rdev => Vec::new(),
            Ok(_) => vec![Reason::new(
                c.describe(f),
                format!("{} is another device here", path.display()),
                "pass --map-path OLD=NEW",
            )],
            Err(e) => vec![missing(c, f, &path, e)],
        }
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        open(m, f)
    }

    fn common(&self) -> bool {
        false
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        // no position, but O_NONBLOCK was needed to open it
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        let mut p = Program::new();
        let flags = f.flags & (libc::O_NONBLOCK | libc::O_APPEND) as u32;
        p.may(libc::SYS_fcntl, &[fd.into(), Imm(libc::F_SETFL as u64), Imm(flags as u64)]);
        m.run(&p).map(drop)
    }
}

fn missing(c: &Checker<'_>, f: &OpenFile, path: &std::path::Path, e: std::io::Error) -> Reason {
    Reason::new(
        c.describe(f),
        format!("{}: {}", path.display(), check::in_words(path, &e)),
        check::remedy(&e, check::PUT_BACK),
    )
}

fn unreadable(c: &Checker<'_>, f: &OpenFile) -> Reason {
    Reason::new(c.describe(f), "its record cannot be understood", "run `ctl verify`; restore an earlier checkpoint")
}
