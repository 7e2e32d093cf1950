//! Open files when their phase is over: what takes more of the process than that has. Owners are threads and groups, a position in /proc reads what
//! lies before it, a ring of io_uring may go by credentials.
use super::{describe, Begun, Maker, SETTABLE};
use crate::objects;
use crate::restore::process::Soft;
use crate::restore::puppet::Puppet;
use crate::restore::{Image, Step};
use crate::RestoreOptions;
use ::image::v1::objects::Kind;
use sys::program::{Arg::Imm, Program};

const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const F_OWNER_PGRP: i32 = 2;

/// F_SETOWN, F_SETSIG and O_ASYNC, when there are a group and threads that can be owners.
pub fn owners(p: &mut Puppet, image: &Image<'_>, open: &[u32], notes: &mut Vec<String>) -> Step<()> {
    let (mut prog, mut soft, mut groups) = (Program::new(), Soft::new(), Vec::new());
    for (id, f) in open.iter().filter_map(|id| Some((*id, image.files.open.get(*id as usize)?))) {
        let Some(fd) = image.fds_of(id).next().filter(|_| f.owner.1 != 0 || f.sig != 0) else { continue };
        if f.owner.1 != 0 {
            let o = prog.bytes(&[f.owner.0.to_le_bytes(), p.ids.of(f.owner.1).to_le_bytes()].concat());
            if f.owner == (F_OWNER_PGRP, image.process.pgid) {
                // its own, which may be another by now
                groups.push((prog.call(libc::SYS_getpgid, &[Imm(0)]), id, f));
                prog.store(o, 4);
            }
            let c = prog.may(libc::SYS_fcntl, &[fd.into(), Imm(F_SETOWN_EX), o]);
            let who = ["thread", "process", "process group"].get(f.owner.0 as usize).unwrap_or(&"owner");
            soft.add(
                c,
                format!("{}: its signals do not go to {who} {} as they did", describe(image, id, f), f.owner.1),
            );
        }
        if f.sig != 0 {
            prog.may(libc::SYS_fcntl, &[fd.into(), Imm(F_SETSIG), Imm(f.sig as u64)]);
        }
        if f.flags & libc::O_ASYNC as u32 != 0 {
            prog.may(libc::SYS_fcntl, &[fd.into(), Imm(libc::F_SETFL as u64), Imm((f.flags & SETTABLE) as u64)]);
        }
    }
    let r = p.run(&prog)?;
    soft.note(&r, notes);
    for (_, id, f) in groups.into_iter().filter(|(c, ..)| r.raw(*c) == 0) {
        let why = "its signals do not go to its process group as they did: that is outside its PID namespace";
        notes.push(format!("{}: {why}", describe(image, id, f)));
    }
    Ok(())
}

/// Positions in files of /proc, when all is as the program knew it: what lies behind a position is read as that is set.
pub fn positions(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let mut prog = Program::new();
    for (id, f) in image.own_files().filter(|(_, f)| f.kind == Kind::Proc as u32 && f.pos != 0) {
        for fd in image.fds_of(id).take(1) {
            prog.call(libc::SYS_lseek, &[fd.into(), Imm(f.pos as u64), Imm(libc::SEEK_SET as u64)]);
            prog.named(format!("setting the position of {}", describe(image, id, f)));
        }
    }
    p.run(&prog).map(drop)
}

/// Rings of io_uring whose requests a thread of the kernel's submits: it has the credentials of who makes the ring.
pub fn polled(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    objects::polled_rings(&mut Maker::early(p, image, o, notes, &mut Begun::default()))
}
