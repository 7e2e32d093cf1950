//! External ends: connected to the standard streams of the restoring command, or to what the caller says.
use super::files::{decode, Checker, Made, Maker, Remake};
use super::{ended, Step, Tree};
use crate::{check, objects, External as Wish, Reason, RestoreOptions};
use ::image::v1::files::{Fd, OpenFile};
use ::image::v1::objects::{External, Kind, Named};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::program::{Arg::Imm, Program};

const TCSETS2: u64 = 0x402c_542b;

/// An end whose other end is outside.
pub struct Stdio;

/// What is to become of it: as this command says, else as the checkpoint's did. None: a standard stream takes its place, or
/// nobody has decided.
fn wish(fds: &[i32], e: &External, o: &RestoreOptions<'_>) -> Option<Wish> {
    let path = || Wish::Path(Path::new(OsStr::from_bytes(&e.path)).into());
    if e.ours {
        return Some(path());
    }
    let named = fds.iter().find_map(|fd| o.external.get(fd)).cloned();
    let all = || (o.external_close && e.stdio < 0).then_some(Wish::Close);
    let decided = || if e.close { Some(Wish::Close) } else { (!e.path.is_empty()).then(path) };
    named.or_else(all).or_else(decided)
}

/// What writes to the log of the session becomes an external end: descriptor 2 (and what is only its dup) stderr, all else stdout. Gives
/// a line that says so.
pub fn log_to_here(tree: &mut Tree<'_>, o: &RestoreOptions<'_>) -> Option<String> {
    let log = o.log.as_ref()?.as_os_str().as_bytes();
    let mut open = Vec::clone(&tree.all.first()?.files.open);
    let mut moved = std::collections::BTreeSet::new();
    for id in 0..open.len() {
        let f = &open[id];
        let writes = f.kind == Kind::Regular as u32 && f.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        // a lock can only be held on a file
        if !writes || !f.locks.is_empty() || !decode::<Named>(f).is_ok_and(|n| n.path[..] == *log) {
            continue;
        }
        let end = |stdio| {
            let data = objects::encode(&External { stdio, ..External::default() }).into();
            OpenFile { kind: Kind::External as u32, data, locks: Vec::new(), ..f.clone() }
        };
        let (out, err) = (end(1), end(2));
        let mut fds: Vec<&mut Fd> =
            tree.all.iter_mut().flat_map(|i| &mut i.files.fds).filter(|d| d.open as usize == id).collect();
        moved.extend(fds.iter().map(|d| d.fd));
        let has = |n: i32| fds.iter().any(|d| d.fd == n);
        let both = has(2) && has(1);
        open[id] = if has(2) && !both { err.clone() } else { out };
        if both {
            let apart = open.len() as u32;
            open.push(err);
            fds.iter_mut().filter(|d| d.fd == 2).for_each(|d| d.open = apart);
        }
    }
    let open = std::sync::Arc::new(open);
    tree.all.iter_mut().for_each(|i| i.files.open = open.clone());
    tree.join();
    let numbers: Vec<String> = moved.iter().map(i32::to_string).collect();
    let s = if moved.len() == 1 { "" } else { "s" };
    let said = || {
        format!(
            "descriptor{s} {} wrote to its session's log ({}), and now to here",
            numbers.join(", "),
            log.escape_ascii()
        )
    };
    (!moved.is_empty()).then(said)
}

impl Remake for Stdio {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let fds: Vec<i32> = c.image.fds_of(c.id).collect();
        let e = decode::<External>(f).unwrap_or_default();
        match wish(&fds, &e, c.o) {
            None if e.stdio >= 0 => Vec::new(),
            None => {
                let remedy = format!("pass --external close, or --external {}=PATH", fds.first().unwrap_or(&0));
                vec![Reason::new(c.describe(f), "its other end is outside", remedy)]
            }
            Some(Wish::Close) => Vec::new(),
            Some(Wish::Path(p)) => {
                let Err(e) = std::fs::metadata(&p) else { return Vec::new() };
                let remedy = format!("name an existing file: --external {}=PATH", fds.first().unwrap_or(&0));
                let colon = if e.kind() == std::io::ErrorKind::NotFound { "" } else { ":" };
                let why = format!("{}{colon} {}", p.display(), check::in_words(&p, &e));
                vec![Reason::new(c.describe(f), why, check::remedy(&e, &remedy))]
            }
        }
    }

    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let e: External = decode(f)?;
        let fds = m.fds(id);
        let mut p = Program::new();
        match wish(&fds, &e, m.o) {
            None if e.stdio >= 0 => {}
            None | Some(Wish::Close) if ended::can_end(&e) => {
                m.notes.push(format!("{} has ended now, as if its other end had closed it", m.describe(id, f)));
                return ended::make(m, &e, f.flags);
            }
            None | Some(Wish::Close) => {
                m.notes.push(format!("{} is closed now", m.describe(id, f)));
                return Ok(Made::Closed);
            }
            Some(Wish::Path(path)) => {
                if !e.ours {
                    m.notes.push(format!("{} is {} now", m.describe(id, f), path.display()));
                }
                return open(m, p, path.as_os_str().as_bytes(), f.flags);
            }
        }
        let Some(ours) = m.stdio(e.stdio as usize) else { return open(m, p, b"/dev/null", f.flags) };
        let fd = p.call(libc::SYS_dup, &[ours.into()]);
        if f.flags & libc::O_NONBLOCK as u32 != 0 {
            let now = p.call(libc::SYS_fcntl, &[fd.arg(), Imm(libc::F_GETFL as u64)]);
            let r = m.run(&p)?;
            let (fd, now) = (r.get(fd).unwrap_or(-1) as i32, r.get(now).unwrap_or(0) as u64);
            let mut p = Program::new();
            p.may(libc::SYS_fcntl, &[fd.into(), Imm(libc::F_SETFL as u64), Imm(now | libc::O_NONBLOCK as u64)]);
            m.run(&p)?;
            return Ok(Made::At(fd));
        }
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    fn common(&self) -> bool {
        false
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let e: External = decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        // the terminal is set as the program had it, if it is the one that the terminal is for
        if e.termios.is_empty() || !m.image.process.foreground {
            return Ok(());
        }
        let mut p = Program::new();
        let t = p.bytes(&e.termios);
        p.may(libc::SYS_ioctl, &[fd.into(), Imm(TCSETS2), t]);
        m.run(&p).map(drop)
    }
}

fn open(m: &mut Maker<'_>, mut p: Program, path: &[u8], flags: u32) -> Step<Made> {
    let name = p.cstr(path);
    let mode = flags & (libc::O_ACCMODE | libc::O_APPEND) as u32 | (libc::O_NOCTTY | libc::O_CLOEXEC) as u32;
    let fd = p.call(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, Imm(mode as u64)]);
    let r = m.run(&p)?;
    m.take(r.get(fd))
}
