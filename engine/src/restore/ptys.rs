//! Pseudo terminals of which both ends are in the image. They are made before any process, with all that waits in them: whoever is born into a session has
//! its controlling terminal from the one that bears it, so the session's leader must have it before.
use super::nursery::Nursery;
use super::{family, files, Fault, Step, Tree};
use ::image::v1::objects::Kind;
use ::image::v1::pty::Master;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use sys::program::{Arg::Imm, Program};
use sys::pty::{Stopped, Waiting};

const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const TIOCNOTTY: u64 = 0x5422;

/// A pair; both ends are descriptors that all processes inherit.
pub struct Pty {
    image: Master,
    master: OwnedFd,
    /// None: it was never opened, and to open it would be seen.
    slave: Option<OwnedFd>,
}

/// Device number of /dev/pts/N as [`::image::v1::process::Process::tty`] has it (new_encode_dev).
pub fn device(number: u32) -> u64 {
    u64::from(number & 0xff | sys::pty::SLAVE_MAJOR << 8 | (number & !0xff) << 12)
}

/// Makes those of an image, their descriptors from `above` on.
pub fn make(tree: &Tree<'_>, above: i32, notes: &mut Vec<String>) -> Step<Vec<Pty>> {
    let Some(first) = tree.all.first() else { return Ok(Vec::new()) };
    let mut images = BTreeMap::new();
    for f in first.files.open.iter().filter(|f| f.kind == Kind::PtyMaster as u32) {
        let m: Master = files::decode(f)?;
        images.insert(m.number, m);
    }
    let numbers: Vec<u32> = images.keys().copied().collect();
    let made = sys::pty::masters(&numbers).map_err(|e| Fault::Io("making a pseudo terminal".into(), e))?;
    let mut all = Vec::new();
    for (number, master) in made {
        let Some(image) = images.remove(&number) else { continue };
        let failed = |e| Fault::Io(format!("making pseudo terminal /dev/pts/{number} again"), e);
        all.push(one(image, master, above, notes).map_err(failed)?);
    }
    Ok(all)
}

/// How many descriptors they need.
pub fn descriptors(tree: &Tree<'_>) -> u64 {
    let all = tree.all.first().map_or(&[][..], |i| &i.files.open);
    2 * all.iter().filter(|f| f.kind == Kind::PtyMaster as u32).count() as u64
}

fn one(image: Master, master: OwnedFd, above: i32, notes: &mut Vec<String>) -> std::io::Result<Pty> {
    let up = |fd: OwnedFd| sys::nest::dup_above(fd.as_raw_fd(), above).map_err(std::io::Error::other);
    let here = sys::pty::number(&master)?;
    if here != image.number {
        notes.push(format!("terminal /dev/pts/{} is /dev/pts/{here} now: its number is taken here", image.number));
    }
    let master = up(master)?;
    sys::pty::lock(&master, false)?;
    sys::tty::set_termios(&master, &image.termios)?;
    sys::tty::set_winsize(&master, image.winsize)?;
    owner(&image, here, notes);
    let slave = if image.opened { Some(up(sys::pty::open_slave(&master)?)?) } else { None };
    if let Some(slave) = &slave {
        let stopped = match image.stopped {
            0 => Stopped::No,
            1 => Stopped::ByKey,
            _ => Stopped::ByProgram,
        };
        let lines = image.lines.iter().map(|l| l.to_vec()).collect();
        let w = Waiting { output: image.output.to_vec(), lines, rest: image.rest.to_vec(), stopped };
        sys::pty::put(&master, slave, &w)?;
    }
    if image.packets {
        sys::pty::set_packets(&master, true)?;
    }
    Ok(Pty { image, master, slave })
}

/// Owner, group and mode, as far as they are permitted.
fn owner(image: &Master, here: u32, notes: &mut Vec<String>) {
    let (Some((uid, gid, mode)), path) = (image.owner, format!("/dev/pts/{here}")) else { return };
    let Ok(now) = std::fs::metadata(&path) else { return };
    let mut set = Ok(());
    if (now.uid(), now.gid()) != (uid, gid) {
        set = std::os::unix::fs::chown(&path, Some(uid), Some(gid));
    }
    if now.mode() & 0o7777 != mode {
        set = set.and(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)));
    }
    if let Err(e) = set {
        notes.push(format!("terminal {path}: its owner and mode are not {uid}:{gid} and {mode:o} as they were: {e}"));
    }
}

/// Numbers of their descriptors.
pub fn numbers(all: &[Pty]) -> impl Iterator<Item = i32> + '_ {
    all.iter().flat_map(|p| std::iter::once(p.master.as_raw_fd()).chain(p.slave.as_ref().map(AsRawFd::as_raw_fd)))
}

/// The same, by the numbers that they have in the image: master, and slave.
pub fn by_number(all: &[Pty]) -> BTreeMap<u32, (i32, Option<i32>)> {
    let ends = |p: &Pty| (p.master.as_raw_fd(), p.slave.as_ref().map(AsRawFd::as_raw_fd));
    all.iter().map(|p| (p.image.number, ends(p))).collect()
}

impl Nursery<'_, '_> {
    fn pty(&self, tty: u64) -> Option<(u32, i32)> {
        let p = self.ptys.iter().find(|p| device(p.image.number) == tty)?;
        Some((p.image.number, p.slave.as_ref()?.as_raw_fd()))
    }
}

/// A process has begun a session: it gets its controlling terminal, before it bears those who have it, too.
pub fn control(n: &mut Nursery<'_, '_>, i: usize) -> Step<()> {
    let tty = n.tree.all[i].process.tty;
    let mut p = Program::new();
    let Some((number, slave)) = n.pty(tty) else {
        if i == 0 {
            // what it is given in the place of its own
            for fd in n.stdio().into_iter().filter(|_| tty != 0) {
                p.may(libc::SYS_ioctl, &[fd.into(), Imm(TIOCSCTTY), Imm(0)]);
            }
            return n.run(i, &p);
        }
        if tty != 0 {
            let why = "it has no controlling terminal now: that was of outside";
            n.note(format!("{}: {why}", family::name(&n.tree.all[i])));
        }
        return Ok(());
    };
    p.call(libc::SYS_ioctl, &[slave.into(), Imm(TIOCSCTTY), Imm(0)]);
    p.named(format!("making /dev/pts/{number} its controlling terminal"));
    n.run(i, &p)
}

/// All are born, and all groups are there: each terminal gets its foreground group, and who had none lets go of what it has by its birth.
pub fn settle(n: &mut Nursery<'_, '_>, leads: impl Fn(usize) -> bool) -> Step<()> {
    for i in 0..n.tree.all.len() {
        let p = &n.tree.all[i].process;
        let Some(leader) = n.tree.index(p.sid) else { continue };
        let Some((number, slave)) = n.pty(n.tree.all[leader].process.tty).filter(|_| leads(leader)) else { continue };
        if leader != i && p.tty == 0 {
            let mut prog = Program::new();
            prog.call(libc::SYS_ioctl, &[slave.into(), Imm(TIOCNOTTY)]);
            n.run(i, &prog)?;
        }
        let group = n.ptys.iter().find(|t| t.image.number == number).map_or(0, |t| t.image.foreground);
        // it is its leader's as that begins
        if leader != i || group == n.tree.all[leader].process.pgid {
            continue;
        }
        let lives =
            n.tree.all.iter().any(|o| o.process.pgid == group) || n.tree.zombies.iter().any(|z| z.pgid == group);
        if !lives {
            n.note(format!("terminal /dev/pts/{number}: its foreground process group {group} has ended, it is that of its session's leader now"));
            continue;
        }
        let mut prog = Program::new();
        let to = prog.bytes(&group.to_le_bytes());
        prog.call(libc::SYS_ioctl, &[slave.into(), Imm(TIOCSPGRP), to]);
        prog.named(format!("making process group {group} the foreground of /dev/pts/{number}"));
        n.run(i, &prog)?;
    }
    lost(n, leads);
    Ok(())
}

/// Sessions that are not led any more have no terminal.
fn lost(n: &mut Nursery<'_, '_>, leads: impl Fn(usize) -> bool) {
    let lost: Vec<(u32, i32)> = (n.ptys.iter())
        .filter(|t| t.image.session != 0 && !n.tree.index(t.image.session).is_some_and(&leads))
        .map(|t| (t.image.number, t.image.session))
        .collect();
    for (number, session) in lost {
        n.note(format!("terminal /dev/pts/{number} is not the controlling terminal of session {session} as it was: nobody leads that here"));
    }
}
