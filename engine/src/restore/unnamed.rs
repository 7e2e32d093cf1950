//! Shared mappings of files without a name: each file is made with its content and mapped; its open files find it here when they are made.
use super::files::Maker;
use super::puppet::Puppet;
use super::{cannot, place, Image, Step};
use crate::{objects, RestoreOptions};
use ::image::v1::files::OpenFile;
use ::image::v1::memory::{Vma, BACKING_UNNAMED};
use ::image::v1::objects::{Kind, Memfd, Unnamed};
use std::collections::BTreeMap;
use sys::program::{Arg::Imm, Program};

/// The content that an open file is of, if it is one without a name.
fn content(f: &OpenFile) -> Option<u32> {
    match f.kind {
        k if k == Kind::Memfd as u32 => super::files::decode::<Memfd>(f).ok().map(|m| m.content),
        k if k == Kind::Deleted as u32 => super::files::decode::<Unnamed>(f).ok().map(|d| d.content),
        _ => None,
    }
}

/// Makes them and maps them.
pub fn place(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut by_content: BTreeMap<u32, Vec<&Vma>> = BTreeMap::new();
    for v in image.memory.vmas.iter().filter(|v| v.backing == BACKING_UNNAMED) {
        by_content.entry(v.file).or_default().push(v);
    }
    for (of, vmas) in by_content {
        let found = image.files.open.iter().enumerate().find(|(_, f)| content(f) == Some(of));
        let Some((id, f)) = found else {
            let why = "it is of a file that the image does not list";
            return Err(cannot(format!("mapping {:x}-{:x}", vmas[0].start, vmas[0].end), why, "run `ctl verify`"));
        };
        let mut m = Maker::new(p, image, o, notes);
        let is_memfd = f.kind == Kind::Memfd as u32;
        let whole = if is_memfd { objects::memfd_whole } else { objects::deleted_whole };
        let fd = whole(&mut m, id as u32, f)?;
        let mut prog = Program::new();
        // one that can never become writable is mapped by a descriptor that cannot write
        let name = prog.cstr(format!("/proc/self/fd/{fd}").as_bytes());
        let how = Imm((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
        let read_only = prog.call(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, how]);
        for v in &vmas {
            let by = if place::has_flag(&v.flags, "mw") { Imm(fd as u64) } else { read_only.arg() };
            place::map(&mut prog, v, libc::MAP_SHARED, v.prot, Some(by));
        }
        prog.call(libc::SYS_close, &[read_only.arg()]);
        m.run(&prog)?;
        if is_memfd {
            objects::memfd_seal(&mut m, fd, f)?;
        }
        p.mapped.insert(of, fd);
    }
    Ok(())
}
