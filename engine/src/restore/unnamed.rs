//! Shared mappings of files without a name: each file is made with its content by the first process that maps it, and lent to all others that map it or
//! have it open; its open files find it when they are made.
use super::files::{self, Maker};
use super::puppet::Puppet;
use super::{cannot, place, Image, Step, Tree};
use crate::{objects, RestoreOptions};
use ::image::v1::files::OpenFile;
use ::image::v1::memory::{Vma, BACKING_UNNAMED};
use ::image::v1::objects::{Kind, Memfd, Unnamed};
use std::collections::{BTreeMap, BTreeSet};
use sys::program::{Arg::Imm, Program};

/// The content that an open file is of, if it is one without a name.
pub(super) fn content(f: &OpenFile) -> Option<u32> {
    match f.kind {
        _ if objects::is_memfd(f) => files::decode::<Memfd>(f).ok().map(|m| m.content),
        k if k == Kind::Deleted as u32 => files::decode::<Unnamed>(f).ok().map(|d| d.content),
        _ => None,
    }
}

/// An open file of this content.
fn open_file<'i>(image: &'i Image<'_>, of: u32) -> Option<(u32, &'i OpenFile)> {
    let (id, f) = image.files.open.iter().enumerate().find(|(_, f)| content(f) == Some(of))?;
    Some((id as u32, f))
}

fn mappings<'i>(image: &'i Image<'_>) -> impl Iterator<Item = &'i Vma> {
    image.memory.vmas.iter().filter(|v| v.backing == BACKING_UNNAMED)
}

/// Makes those that nobody has made yet, and maps them.
pub fn place(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut by_content: BTreeMap<u32, Vec<&Vma>> = BTreeMap::new();
    for v in mappings(image) {
        by_content.entry(v.file).or_default().push(v);
    }
    for (of, vmas) in by_content {
        let made = match p.mapped.get(&of) {
            Some(fd) => *fd,
            None => make(p, image, o, notes, (of, vmas[0]))?,
        };
        p.mapped.insert(of, made);
        let mut prog = Program::new();
        // one that can never become writable is mapped by a descriptor that cannot write
        let name = prog.cstr(format!("/proc/self/fd/{made}").as_bytes());
        let how = Imm((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
        let read_only = prog.call(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, how]);
        for v in &vmas {
            let by = if place::has_flag(&v.flags, "mw") { Imm(made as u64) } else { read_only.arg() };
            place::map(&mut prog, v, libc::MAP_SHARED, v.prot, Some(by));
        }
        prog.call(libc::SYS_close, &[read_only.arg()]);
        p.run(&prog)?;
    }
    Ok(())
}

fn make(
    p: &mut Puppet,
    image: &Image<'_>,
    o: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
    (of, v): (u32, &Vma),
) -> Step<i32> {
    let Some((id, f)) = open_file(image, of) else {
        let why = "it is of a file that the image does not list";
        return Err(cannot(format!("mapping {:x}-{:x}", v.start, v.end), why, "run `ctl verify`"));
    };
    let whole = if objects::is_memfd(f) { objects::memfd_whole } else { objects::deleted_whole };
    let mut none = Default::default();
    whole(&mut Maker::early(p, image, o, notes, &mut none), id, f)
}

/// Seals those that are mapped, when all processes have their mappings: a seal may forbid more of them.
pub fn seal(all: &mut [Puppet], tree: &Tree<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut sealed = BTreeSet::new();
    for (p, image) in all.iter_mut().zip(&tree.all) {
        for (of, fd) in p.mapped.clone() {
            let memfd = open_file(image, of).filter(|(_, f)| objects::is_memfd(f));
            if let Some((_, f)) = memfd.filter(|_| sealed.insert(of)) {
                let mut none = Default::default();
                objects::memfd_seal(&mut Maker::early(p, image, o, notes, &mut none), fd, f)?;
            }
        }
    }
    Ok(())
}

/// Before a process gets its memory: what another one has made of what it maps. `asks`: which may be asked.
pub fn lend(born: &mut [Option<Puppet>], asks: impl Fn(usize) -> bool, to: usize, image: &Image<'_>) -> Step<()> {
    let wanted: BTreeSet<u32> = mappings(image).map(|v| v.file).collect();
    for of in wanted {
        let mut askable = born.iter().enumerate().filter(|(k, _)| asks(*k)).filter_map(|(_, p)| p.as_ref());
        let lender = askable.find_map(|p| Some((p.inner, *p.mapped.get(&of)?)));
        if let (Some(lender), Some(p)) = (lender, born[to].as_mut()) {
            borrow(p, of, lender)?;
        }
    }
    Ok(())
}

/// Before a process makes its open files: what another one has made of those without a name, for a mapping or as an open file of its own.
pub fn lend_open(all: &mut [Puppet], to: usize, tree: &Tree<'_>) -> Step<()> {
    let wanted: BTreeSet<u32> = tree.all[to].own_files().filter_map(|(_, f)| content(f)).collect();
    for of in wanted {
        let made = all.iter().find_map(|p| Some((p.inner, *p.mapped.get(&of)?)));
        let open = |image: &Image<'_>| {
            let (id, _) = image.own_files().find(|(_, f)| content(f) == Some(of))?;
            image.fds_of(id).next()
        };
        let earlier = || tree.all[..to].iter().zip(&*all).find_map(|(image, p)| Some((p.inner, open(image)?)));
        if let Some(lender) = made.or_else(earlier) {
            borrow(&mut all[to], of, lender)?;
        }
    }
    Ok(())
}

/// Copies a descriptor of the file with this content from another process (pidfd_getfd(2)).
fn borrow(p: &mut Puppet, of: u32, (from, fd): (i32, i32)) -> Step<()> {
    if p.mapped.contains_key(&of) {
        return Ok(());
    }
    let mut prog = Program::new();
    let up = files::copied(&mut prog, "a file without a name", (from, fd), p.temp_base);
    let fd = p.run(&prog)?.get(up)? as i32;
    p.mapped.insert(of, fd);
    Ok(())
}
