//! Files of /proc and /sys: they have no content of their own, and are opened again. Of /proc/PID only the program's own.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{check, Reason, Result};
use image::v1::files::OpenFile;
use image::v1::objects::{Kind, Named};
use sys::program::{Arg::Imm, Program};

/// A file of /proc or /sys.
pub struct ProcFile;

/// What of /proc/PID/... a path is about: the number, and the rest behind it.
fn of_process(path: &[u8]) -> Option<(i32, &[u8])> {
    let rest = path.strip_prefix(b"/proc/")?;
    let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
    let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((number, &rest[end..]))
}

/// The path by which the process itself has it, whatever its number: "/proc/self/...".
fn as_own(path: &[u8], pid: i32) -> Option<Vec<u8>> {
    let (number, rest) = of_process(path)?;
    (number == pid).then(|| [b"/proc/self", rest].concat())
}

impl Object for ProcFile {
    fn kind(&self) -> Kind {
        Kind::Proc
    }

    fn claims(&self, f: &FileView) -> bool {
        let regular = f.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFREG);
        let there = f.link.starts_with(b"/proc/") || f.link.starts_with(b"/sys/");
        regular && there && !f.deleted && f.info.flags & libc::O_PATH as u32 == 0
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], pid: i32) -> Vec<Reason> {
        let Some((number, rest)) = of_process(&f.link) else { return Vec::new() };
        // the number that the program knows
        let inner = sys::procfs::status::read(pid).ok().and_then(|s| s.ns_tgid.last().copied());
        let why = if inner != Some(number) {
            format!("it is about process {number}, which may be another one at a restore")
        } else if [&b"/task/"[..], b"/fdinfo/", b"/map_files/"].iter().any(|p| rest.starts_with(p)) {
            "it is about a thread, descriptor or mapping, which is not there yet when a restore opens it".into()
        } else {
            return Vec::new();
        };
        vec![Reason::new(f.describe(), why, "let the program close it before the checkpoint")]
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let mode = f.stat.as_ref().map_or(0, |s| s.mode);
        Ok(encode(&Named { path: f.link.clone().into(), mode, ..Named::default() }))
    }
}

impl Remake for ProcFile {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(n) = files::decode::<Named>(f) else { return Vec::new() };
        let path = match as_own(&n.path, c.image.process.pid) {
            Some(own) => std::path::PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(&own).into_owned())),
            None => c.path(&n.path),
        };
        let Err(e) = std::fs::metadata(&path) else { return Vec::new() };
        let why = format!("{}: {}", path.display(), check::in_words(&path, &e));
        vec![Reason::new(c.describe(f), why, check::remedy(&e, "this kernel lacks it; pass --map-path OLD=NEW"))]
    }

    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let n: Named = files::decode(f)?;
        let mut p = Program::new();
        let path = match as_own(&n.path, m.image.process.pid) {
            Some(own) => p.cstr(&own),
            None => m.path(&mut p, &n.path),
        };
        let how = f.flags & libc::O_ACCMODE as u32 | (libc::O_NONBLOCK | libc::O_CLOEXEC) as u32;
        let fd = p.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, Imm(how as u64)]);
        p.named(format!("opening {}", n.path.escape_ascii()));
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    /// Its position is set late (`positions` in restore/files/late.rs).
    fn common(&self) -> bool {
        false
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        let mut p = Program::new();
        let flags = f.flags & (libc::O_NONBLOCK | libc::O_APPEND) as u32;
        p.may(libc::SYS_fcntl, &[fd.into(), Imm(libc::F_SETFL as u64), Imm(flags as u64)]);
        m.run(&p).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_process() {
        assert_eq!(of_process(b"/proc/12/status"), Some((12, &b"/status"[..])));
        assert_eq!(of_process(b"/proc/12"), Some((12, &b""[..])));
        assert_eq!(of_process(b"/proc/meminfo"), None);
        assert_eq!(of_process(b"/sys/12/x"), None);
        assert_eq!(as_own(b"/proc/12/maps", 12).unwrap(), b"/proc/self/maps");
        assert_eq!(as_own(b"/proc/13/maps", 12), None);
    }
}
