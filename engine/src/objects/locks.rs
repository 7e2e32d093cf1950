//! Locks held through open files, whatever their kind: flock(2), POSIX and OFD record locks (fcntl_locking(2)), leases (F_SETLEASE). A thread that
//! waits for one holds nothing: its call is taken up again like any other.
use crate::capture::FileView;
use crate::restore::files::{describe, Checker, Maker};
use crate::restore::{cannot, Image, Step};
use crate::Reason;
use image::v1::files::{Lock, OpenFile, LOCK_FLOCK, LOCK_LEASE, LOCK_OFD, LOCK_POSIX};
use image::v1::objects::Kind;
use std::os::unix::fs::MetadataExt;
use sys::procfs::fdinfo::{Lock as Held, LockKind, LockMode};
use sys::program::Program;

/// A lock's number in the image; None: it is not known.
fn number(kind: LockKind) -> Option<u32> {
    match kind {
        LockKind::Flock => Some(LOCK_FLOCK),
        LockKind::Posix => Some(LOCK_POSIX),
        LockKind::Ofd => Some(LOCK_OFD),
        LockKind::Lease => Some(LOCK_LEASE),
        _ => None,
    }
}

/// What cannot be taken again.
pub fn refusal(f: &FileView) -> Option<Reason> {
    let breaking = |l: &&Held| l.kind == LockKind::Lease && l.class != b"ACTIVE";
    if f.info.locks.iter().any(|l| breaking(&l)) {
        let why = "somebody waits for the lease on it, which the program has yet to give up";
        return Some(Reason::new(f.describe(), why, "let it do so (fcntl F_SETLEASE F_UNLCK)"));
    }
    f.info.locks.iter().find(|l| number(l.kind).is_none())?;
    Some(Reason::new(f.describe(), "a lock of an unknown kind is held on it, which is not kept", "give it up first"))
}

/// The locks held through an open file.
pub fn held(f: &FileView) -> Vec<Lock> {
    let one = |l: &Held| {
        let write = l.mode == LockMode::Write;
        Some(Lock { kind: number(l.kind)?, write, start: l.start, end: l.end.unwrap_or(u64::MAX) })
    };
    f.info.locks.iter().filter_map(one).collect()
}

/// "POSIX write lock of bytes 0 to 9".
fn words(l: &Lock) -> String {
    let kind = match l.kind {
        LOCK_FLOCK => "flock",
        LOCK_POSIX => "POSIX",
        LOCK_LEASE => return format!("{} lease", if l.write { "write" } else { "read" }),
        _ => "OFD",
    };
    let mode = if l.write { "write" } else { "read" };
    match (l.kind, l.start, l.end) {
        (LOCK_FLOCK, ..) | (_, 0, u64::MAX) => format!("{kind} {mode} lock"),
        (_, start, u64::MAX) => format!("{kind} {mode} lock from byte {start} on"),
        (_, start, end) => format!("{kind} {mode} lock of bytes {start} to {end}"),
    }
}

/// Who has a lock that is in the way.
pub fn check(c: &Checker<'_>, f: &OpenFile, locks: &[Lock]) -> Vec<Reason> {
    if locks.is_empty() || [Kind::Deleted as u32, Kind::External as u32].contains(&f.kind) {
        return Vec::new();
    }
    let Ok(meta) = std::fs::metadata(c.path(&f.label)) else { return Vec::new() };
    let here = sys::procfs::Dev::from_stat(meta.dev());
    let all = sys::procfs::fdinfo::all_locks().unwrap_or_default();
    let reason = |l: &Lock| {
        let clash = |h: &&Held| {
            // flocks, leases and record locks do not see each other
            let world = |kind| if kind == LOCK_POSIX { LOCK_OFD } else { kind };
            let same_world = number(h.kind).is_some_and(|k| world(k) == world(l.kind));
            let overlap = l.kind == LOCK_FLOCK || h.start <= l.end && l.start <= h.end.unwrap_or(u64::MAX);
            h.ino == meta.ino() && h.dev == here && same_world && overlap && (l.write || h.mode == LockMode::Write)
        };
        let h = all.iter().find(clash)?;
        let who = match h.pid {
            p if p > 0 => {
                format!("PID {p} ({})", sys::procfs::comm(p).map(|c| c.escape_ascii().to_string()).unwrap_or_default())
            }
            _ => "another open file (an OFD lock; lsof tells whose)".into(),
        };
        let why = format!("its {} is held by {who} now", words(l));
        Some(Reason::new(c.describe(f), why, "end that program, or make it give up the lock"))
    };
    locks.iter().filter_map(reason).collect()
}

/// Takes all locks again. After everything else that concerns descriptors: closing any of a file gives up its POSIX locks.
pub fn take(m: &mut Maker<'_>, image: &Image<'_>) -> Step<()> {
    let own = image.own_files().flat_map(|(id, f)| f.locks.iter().map(move |l| (id, l)));
    let locks: Vec<(u32, &Lock)> = own.chain(image.files.locks.iter().map(|(id, l)| (*id, l))).collect();
    for (id, l) in locks {
        let Some(fd) = image.fds_of(id).next() else { continue };
        let f = &image.files.open[id as usize];
        // one whose other end is outside is another file now
        if f.kind != Kind::External as u32 {
            let mut p = Program::new();
            let c = match l.kind {
                LOCK_FLOCK => {
                    let how = libc::LOCK_NB | if l.write { libc::LOCK_EX } else { libc::LOCK_SH };
                    p.may(libc::SYS_flock, &[fd.into(), how.into()])
                }
                LOCK_LEASE => {
                    let how = if l.write { libc::F_WRLCK } else { libc::F_RDLCK };
                    p.may(libc::SYS_fcntl, &[fd.into(), libc::F_SETLEASE.into(), how.into()])
                }
                kind => {
                    let set = if kind == LOCK_OFD { libc::F_OFD_SETLK } else { libc::F_SETLK };
                    let a = p.bytes(&flock(l));
                    p.may(libc::SYS_fcntl, &[fd.into(), set.into(), a])
                }
            };
            if let Err(e) = m.run(&p)?.get(c) {
                let why = format!("its {} cannot be taken again: {e}", words(l));
                let remedy = match l.kind {
                    LOCK_LEASE => "end whoever has the file open (lsof tells); no process is left",
                    _ => "`ctl check` tells who has it; no process is left",
                };
                return Err(cannot(describe(image, id, f), why, remedy));
            }
        }
    }
    Ok(())
}

/// `struct flock` (fcntl.h, x86_64): type, whence, start, length (0: to the end), PID.
fn flock(l: &Lock) -> Vec<u8> {
    let kind = if l.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16;
    let len = if l.end == u64::MAX { 0 } else { l.end - l.start + 1 };
    let mut b = kind.to_le_bytes().to_vec();
    b.extend_from_slice(&(libc::SEEK_SET as i16).to_le_bytes());
    b.extend_from_slice(&[0; 4]);
    b.extend_from_slice(&l.start.to_le_bytes());
    b.extend_from_slice(&len.to_le_bytes());
    b.extend_from_slice(&[0; 8]);
    b
}
