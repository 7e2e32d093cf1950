//! Phase place: the address space. What was there goes, the image's mappings come, each with its final protection at
//! once (writing through /proc/PID/mem asks for none), but for those that may only be executed (keys.rs).
use super::puppet::Puppet;
use super::{cannot, files, vdso, Image, Step};
use crate::{Reason, RestoreOptions};
use ::image::v1::memory::*;
use std::collections::BTreeMap;
use sys::nest;
use sys::program::{Arg, Arg::Imm, Program};

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const RLIMIT_MEMLOCK: usize = 8;
/// Kernel 6.11, uapi/linux/mman.h: a type of its own, in the place of MAP_PRIVATE.
const MAP_DROPPABLE: i32 = 8;
/// Most mappings of one file that are added to a program at once.
const MAPS_AT_ONCE: usize = 2000;

/// Flags of smaps that madvise(2) brings back.
const ADVICE: &[(&str, i32)] = &[
    ("hg", libc::MADV_HUGEPAGE),
    ("nh", libc::MADV_NOHUGEPAGE),
    ("dd", libc::MADV_DONTDUMP),
    ("dc", libc::MADV_DONTFORK),
    ("wf", libc::MADV_WIPEONFORK),
    ("mg", libc::MADV_MERGEABLE),
    ("sr", libc::MADV_SEQUENTIAL),
    ("rr", libc::MADV_RANDOM),
];

/// How a file is mapped. A shared mapping of a file that was opened for reading can never become writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Private,
    SharedRead,
    SharedWrite,
}

impl How {
    fn shared(v: &Vma) -> How {
        if has_flag(&v.flags, "mw") {
            How::SharedWrite
        } else {
            How::SharedRead
        }
    }
}

/// Whether the two-letter flags of a mapping hold this one.
pub fn has_flag(flags: &str, flag: &str) -> bool {
    flags.as_bytes().chunks(2).any(|f| f == flag.as_bytes())
}

/// Unmaps everything but these ranges, which are ascending.
pub fn unmap_all_but(p: &mut Program, kept: &[(u64, u64)]) {
    let mut from = 0;
    for (start, end) in kept.iter().copied().chain([(nest::task_size(), 0)]) {
        if start > from {
            p.call(libc::SYS_munmap, &[Imm(from), Imm(start - from)]);
            p.named("unmapping what was there");
        }
        from = end;
    }
}

/// A mapping that a process has by its birth, as it is to be.
pub struct Kept {
    /// First byte, and byte after the last.
    pub range: (u64, u64),
    /// A `BACKING_` number.
    pub backing: u32,
}

/// The mappings of a process that the one that bears it has, too: they stay, so that what both have not written since is there once.
pub fn inherited(image: &Image<'_>, from: &Image<'_>) -> Vec<Kept> {
    const BY_BIRTH: [u32; 5] =
        [BACKING_ANON, BACKING_FILE_GONE, BACKING_FILE_PRIVATE, BACKING_FILE_SHARED, BACKING_SHARED_ANON];
    let theirs = &from.memory.vmas;
    let has_file = |v: &Vma| matches!(v.backing, BACKING_FILE_PRIVATE | BACKING_FILE_SHARED);
    let file = |i: &Image<'_>, v: &Vma| i.memory.files.get(v.file as usize).filter(|_| has_file(v)).cloned();
    let same = |v: &&Vma| {
        let i = theirs.partition_point(|t| t.start < v.start);
        let Some(t) = theirs.get(i) else { return false };
        let as_it_is = Vma { file: v.file, ..t.clone() } == **v && file(image, v) == file(from, t);
        as_it_is && BY_BIRTH.contains(&v.backing) && !has_flag(&v.flags, "dc") && !has_flag(&v.flags, "wf")
    };
    let kept = image.memory.vmas.iter().filter(same);
    kept.map(|v| Kept { range: (v.start, v.end), backing: v.backing }).collect()
}

/// Droppable memory, where this kernel has none.
pub fn check(image: &Image<'_>) -> Option<Reason> {
    let v = image.memory.vmas.iter().find(|v| has_flag(&v.flags, "dp"))?;
    let e = sys::probe::droppable().err()?;
    let (object, why) = (format!("mapping {:x}-{:x}", v.start, v.end), format!("it is droppable (MAP_DROPPABLE): {e}"));
    Some(Reason::new(object, why, "restore it under kernel 6.11 or later"))
}

/// Makes all mappings but those that it has by its birth, still without content.
pub fn place(
    p: &mut Puppet,
    image: &Image<'_>,
    kept: &[Kept],
    o: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
) -> Step<()> {
    let mut prog = clear(p, kept)?;
    let mut by_file: BTreeMap<(u32, How), Vec<&Vma>> = BTreeMap::new();
    let mut by_share: BTreeMap<u64, Vec<&Vma>> = BTreeMap::new();
    let is_there = |v: &Vma| {
        let i = kept.partition_point(|k| k.range.0 < v.start);
        kept.get(i).is_some_and(|k| k.range.0 == v.start)
    };
    for v in image.memory.vmas.iter().filter(|v| !is_there(v)) {
        match v.backing {
            BACKING_ANON => map(&mut prog, v, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, v.prot, None),
            // not every kernel lets huge pages be written by force
            BACKING_HUGETLB => {
                map(&mut prog, v, super::hugetlb::flags(v), (libc::PROT_READ | libc::PROT_WRITE) as u32, None)
            }
            BACKING_FILE_GONE => {
                // the agent is carried in the image, and has a name
                if v.name.is_empty() {
                    let what = "is anonymous now: its file no longer exists";
                    notes.push(format!("mapping {:x}-{:x} ({}) {what}", v.start, v.end, of(image, v)));
                }
                map(&mut prog, v, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, v.prot, None);
            }
            BACKING_FILE_PRIVATE => by_file.entry((v.file, How::Private)).or_default().push(v),
            BACKING_FILE_SHARED => by_file.entry((v.file, How::shared(v))).or_default().push(v),
            BACKING_SHARED_ANON => by_share.entry(v.share).or_default().push(v),
            // the old one stays as ordinary memory if ours cannot take its place
            BACKING_VDSO if p.fit == vdso::Fit::Forward => {
                map(&mut prog, v, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, v.prot, None);
            }
            BACKING_VDSO | BACKING_VVAR | BACKING_AIO | BACKING_UNNAMED | BACKING_SYSV | BACKING_URING => {}
            other => {
                return Err(cannot(
                    format!("mapping {:x}-{:x}", v.start, v.end),
                    format!("this build does not know its kind {other}"),
                    "use the version that made the image",
                ))
            }
        }
        p.run_if_full(&mut prog)?;
    }
    for ((file, how), vmas) in by_file {
        for some in vmas.chunks(MAPS_AT_ONCE) {
            map_file(&mut prog, &image.memory.files[file as usize], how, some, o);
            p.run_if_full(&mut prog)?;
        }
    }
    p.run(&prog)?;
    for (number, vmas) in &by_share {
        share(p, p.shares.get(number).copied(), vmas)?;
    }
    super::unnamed::place(p, image, o, notes)?;
    super::sysv::place(p, image)?;
    policies(p, image, notes)?;
    super::aio::make(p, image, notes)
}

/// Whether nobody else's memory is made of what this process is to have in its own, nor the other way round, but by birth.
pub fn stands_alone(image: &Image<'_>) -> bool {
    let of_others = |v: &Vma| matches!(v.backing, BACKING_UNNAMED | BACKING_SYSV);
    image.memory.segments.is_empty() && !image.memory.vmas.iter().any(of_others)
}

/// NUMA policies, before there are pages that would lie on the wrong node.
fn policies(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut prog = Program::new();
    let mut soft = super::process::Soft::new();
    for v in image.memory.vmas.iter().filter(|v| v.mempolicy.0 != 0) {
        let nodes = prog.bytes(&v.mempolicy.1.to_le_bytes());
        let (mode, bits) = (Imm(v.mempolicy.0 as u64), Imm(super::threads::NODE_BITS));
        let c = prog.may(libc::SYS_mbind, &[Imm(v.start), Imm(v.end - v.start), mode, nodes, bits, Imm(0)]);
        soft.add(c, format!("the NUMA policy of mapping {:x}-{:x} is not as it was", v.start, v.end));
        if prog.size() > 256 << 10 {
            soft.note(&p.run(&prog)?, notes);
            prog = Program::new();
        }
    }
    if !prog.is_empty() {
        soft.note(&p.run(&prog)?, notes);
    }
    Ok(())
}

fn of(image: &Image<'_>, v: &Vma) -> String {
    image.memory.files.get(v.file as usize).map_or(String::new(), |f| String::from_utf8_lossy(&f.path).into_owned())
}

/// The first that it does: the kernel's mappings step aside, everything else but the blob and what is kept goes.
fn clear(p: &Puppet, kept: &[Kept]) -> Step<Program> {
    let own = vdso::own()?;
    let mut prog = p.first_calls();
    let mut at = p.park;
    for part in own {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let a = [Imm(part.start), Imm(part.len), Imm(part.len), Imm(flags as u64), Imm(at)];
        // who has memory by its birth has them aside by its birth, too
        if p.heir {
            at += part.len;
            continue;
        }
        prog.call(libc::SYS_mremap, &a);
        prog.named(format!("moving {} aside", String::from_utf8_lossy(&part.name)));
        at += part.len;
    }
    let shares = p.shares.values().map(|(at, len)| (*at, at + len));
    let ours = [(p.layout.base, p.layout.base + p.layout.len), (p.park, at)];
    let mut all: Vec<_> = ours.into_iter().chain(shares).collect();
    all.extend(kept.iter().map(|k| k.range));
    all.sort_unstable();
    unmap_all_but(&mut prog, &all);
    if at > p.park + vdso::PARK_LEN {
        return Err(cannot("vDSO", "it is larger than any known one", "report this kernel"));
    }
    Ok(prog)
}

/// One mapping and its advice.
pub(super) fn map(prog: &mut Program, v: &Vma, flags: i32, prot: u32, fd: Option<Arg>) {
    let mut flags = flags | libc::MAP_FIXED;
    if has_flag(&v.flags, "dp") {
        flags = flags & !libc::MAP_PRIVATE | MAP_DROPPABLE;
    }
    if has_flag(&v.flags, "gd") {
        flags |= libc::MAP_GROWSDOWN;
    }
    if has_flag(&v.flags, "nr") {
        flags |= libc::MAP_NORESERVE;
    }
    let offset = if fd.is_some() { v.offset } else { 0 };
    let fd = fd.unwrap_or(Imm(u64::MAX));
    let prot = super::keys::at_first(prot);
    let a = [Imm(v.start), Imm(v.end - v.start), Imm(prot as u64), Imm(flags as u64), fd, Imm(offset)];
    prog.call(libc::SYS_mmap, &a);
    prog.named(format!("mapping {:x}-{:x}", v.start, v.end));
    for (_, advice) in ADVICE.iter().filter(|(f, _)| v.backing != BACKING_VDSO && has_flag(&v.flags, f)) {
        prog.may(libc::SYS_madvise, &[Imm(v.start), Imm(v.end - v.start), Imm(*advice as u64)]);
    }
}

/// Mappings of one file, which is opened once for them.
fn map_file(prog: &mut Program, f: &MappedFile, how: How, vmas: &[&Vma], o: &RestoreOptions<'_>) {
    let mode = if how == How::SharedWrite { libc::O_RDWR } else { libc::O_RDONLY };
    let path = files::map_path(&f.path, o);
    let name = prog.cstr(&path);
    let fd = prog.call(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, Imm((mode | libc::O_CLOEXEC) as u64)]);
    prog.named(format!("opening {}, which it has mapped,", path.escape_ascii()));
    let flags = if how == How::Private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
    for v in vmas {
        map(prog, v, flags, v.prot, Some(fd.arg()));
    }
    prog.call(libc::SYS_close, &[fd.arg()]);
}

/// Bytes of shared memory up to the last one that is mapped.
fn whole<'a>(vmas: impl Iterator<Item = &'a Vma>) -> u64 {
    vmas.map(|v| v.offset.saturating_add(v.end - v.start)).max().unwrap_or(0)
}

/// Bytes of address space that shared memory needs for a while, behind the place of the parked vDSO.
pub fn staging(image: &Image<'_>) -> u64 {
    let anon = whole(image.memory.vmas.iter().filter(|v| v.backing == BACKING_SHARED_ANON));
    image.memory.segments.iter().map(super::sysv::room).fold(anon, u64::max)
}

/// Mappings of the same shared anonymous memory: made once as a whole, then shown at each place (an mremap of length 0
/// duplicates a shared mapping). `common`: where it lies already, if other processes share it.
fn share(p: &mut Puppet, common: Option<(u64, u64)>, vmas: &[&Vma]) -> Step<()> {
    let mut prog = Program::new();
    let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let whole = whole(vmas.iter().copied());
    if let Some((at, _)) = common {
        return show(p, at, vmas);
    }
    let make = prog.call(
        libc::SYS_mmap,
        &[Imm(p.park + vdso::PARK_LEN), Imm(whole), Imm(rw), Imm(flags as u64), Imm(u64::MAX), Imm(0)],
    );
    prog.named("making shared memory");
    let at = p.run(&prog)?.get(make).unwrap_or_default() as u64;
    show(p, at, vmas)?;
    let mut prog = Program::new();
    prog.call(libc::SYS_munmap, &[Imm(at), Imm(whole)]);
    p.run(&prog).map(drop)
}

/// Shows shared memory that lies at `at` at each of its places.
fn show(p: &mut Puppet, at: u64, vmas: &[&Vma]) -> Step<()> {
    let mut prog = Program::new();
    for v in vmas {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        prog.call(libc::SYS_mremap, &[Imm(at + v.offset), Imm(0), Imm(v.end - v.start), Imm(flags), Imm(v.start)]);
        prog.named(format!("mapping {:x}-{:x} (shared memory)", v.start, v.end));
        p.run_if_full(&mut prog)?;
    }
    p.run(&prog).map(drop)
}

/// After the content: what it would have been in the way of, and what wants to find it there.
pub fn finish(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut prog = Program::new();
    for (at, len) in p.shares.values() {
        prog.call(libc::SYS_munmap, &[Imm(*at), Imm(*len)]);
    }
    super::keys::allocate(p, image)?;
    let limit = image.process.rlimits.get(RLIMIT_MEMLOCK).copied();
    if let Some((soft, hard)) = limit {
        let l = prog.bytes(&[soft.to_le_bytes(), hard.to_le_bytes()].concat());
        prog.may(libc::SYS_prlimit64, &[Imm(0), Imm(RLIMIT_MEMLOCK as u64), l, Imm(0)]);
    }
    // before the locks: in locked memory there can be none put
    for (start, end) in &image.memory.guards {
        prog.call(libc::SYS_madvise, &[Imm(*start), Imm(end - start), Imm(MADV_GUARD_INSTALL)]);
        prog.named(format!("the guards at {start:x}-{end:x}"));
        p.run_if_full(&mut prog)?;
    }
    let mut locks = Vec::new();
    for v in &image.memory.vmas {
        let range = [Imm(v.start), Imm(v.end - v.start)];
        if matches!(v.backing, BACKING_SHARED_ANON | BACKING_SYSV | BACKING_HUGETLB) {
            prog.call(libc::SYS_mprotect, &[range[0], range[1], Imm(super::keys::at_first(v.prot).into())]);
            prog.named(format!("protecting {:x}-{:x}", v.start, v.end));
            for (_, advice) in ADVICE.iter().filter(|(f, _)| has_flag(&v.flags, f)) {
                prog.may(libc::SYS_madvise, &[range[0], range[1], Imm(*advice as u64)]);
            }
        }
        if v.backing == BACKING_ANON || v.backing == BACKING_SHARED_ANON {
            if let Some(name) = given_name(&v.name) {
                let name = prog.cstr(name);
                prog.may(libc::SYS_prctl, &[Imm(PR_SET_VMA), Imm(0), range[0], range[1], name]);
            }
        }
        if has_flag(&v.flags, "lo") {
            let on_fault = has_flag(&v.flags, "lf") as u64;
            let lock = prog.may(libc::SYS_mlock2, &[range[0], range[1], Imm(on_fault)]);
            let held = prog.may(libc::SYS_msync, &[range[0], range[1], Imm(libc::MS_INVALIDATE as u64)]);
            locks.push((v, lock, held));
        }
        if prog.size() > 256 << 10 {
            settle(p, &mut prog, &mut locks, notes)?;
        }
    }
    settle(p, &mut prog, &mut locks, notes)?;
    super::keys::set(p, image)?;
    vdso::settle(p, image)?;
    numbers(p, image, o, notes)
}

/// mlock, and an msync that what is locked refuses.
type Locks<'a> = Vec<(&'a Vma, sys::program::CallId, sys::program::CallId)>;

/// Kernel 6.13, uapi/asm-generic/mman-common.h.
const MADV_GUARD_INSTALL: u64 = 102;

/// Runs the program and reports locks that were refused.
fn settle(p: &mut Puppet, prog: &mut Program, locks: &mut Locks<'_>, notes: &mut Vec<String>) -> Step<()> {
    let r = p.run(prog)?;
    for (v, lock, held) in locks.drain(..) {
        // of memory without access mlock says ENOMEM, and locks it
        let locked = r.raw(held) == -i64::from(libc::EBUSY);
        if let Some(e) = r.get(lock).err().filter(|_| !locked) {
            notes.push(format!("mapping {:x}-{:x} is not locked in memory any more: {e}", v.start, v.end));
        }
    }
    *prog = Program::new();
    Ok(())
}

/// The name that the program gave to a mapping, out of what maps shows.
fn given_name(name: &[u8]) -> Option<&[u8]> {
    let inner =
        name.strip_prefix(b"[anon:").or_else(|| name.strip_prefix(b"[anon_shmem:")).and_then(|n| n.strip_suffix(b"]"));
    match inner {
        Some(n) => Some(n),
        None if name.is_empty() || name.starts_with(b"[") || name.starts_with(b"/") => None,
        None => Some(name),
    }
}

/// The kernel's numbers of the address space: code, data, brk, stack, arguments, environment, auxv, and the executable.
fn numbers(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>, notes: &mut Vec<String>) -> Step<()> {
    let mut prog = Program::new();
    let auxv = prog.bytes(&image.process.auxv);
    let mut map: Vec<u8> = image.process.mm.iter().flat_map(|v| v.to_le_bytes()).collect();
    let auxv_at = map.len() as u32;
    map.extend_from_slice(&[0; 8]);
    map.extend_from_slice(&(image.process.auxv.len() as u32).to_le_bytes());
    map.extend_from_slice(&u32::MAX.to_le_bytes());
    let (plain, with_exe) = (prog.bytes(&map), prog.bytes(&map));
    prog.pointer(plain, auxv_at, auxv);
    prog.pointer(with_exe, auxv_at, auxv);
    let a = |m: Arg| [Imm(PR_SET_MM), Imm(PR_SET_MM_MAP), m, Imm(map.len() as u64), Imm(0)];
    let set = prog.may(libc::SYS_prctl, &a(plain));
    let path = files::map_path(&image.process.exe, o);
    let name = prog.cstr(&path);
    let fd =
        prog.may(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, Imm((libc::O_RDONLY | libc::O_CLOEXEC) as u64)]);
    prog.store(with_exe, auxv_at + 12);
    let exe = prog.may(libc::SYS_prctl, &a(with_exe));
    prog.may(libc::SYS_close, &[fd.arg()]);
    let r = p.run(&prog)?;
    let mut no_exe = r.get(fd).and(r.get(exe)).err();
    if r.get(fd).is_ok() && no_exe.as_ref().is_some_and(|e| e.raw_os_error() == Some(libc::EPERM)) {
        no_exe = exe_aside(p, &path, map, &image.process.auxv)?.err();
    }
    if let Err(e) = r.get(set) {
        notes.push(format!(
            "ps and /proc/PID/cmdline do not show its command line: the kernel refused PR_SET_MM_MAP ({e})"
        ));
    } else if let Some(e) = no_exe {
        notes.push(format!("/proc/PID/exe does not lead to {}: {e}", path.escape_ascii()));
    }
    Ok(())
}

/// The executable, by a call that is only permitted in a user namespace of one's own: a child that shares the memory makes it there. `map`: what is
/// there already, without auxv and executable.
fn exe_aside(p: &mut Puppet, path: &[u8], mut map: Vec<u8>, auxv: &[u8]) -> Step<std::io::Result<()>> {
    let mut prog = Program::new();
    let name = prog.cstr(path);
    let flags = Imm((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
    let open = prog.may(libc::SYS_openat, &[Imm(libc::AT_FDCWD as u64), name, flags]);
    let fd = match p.run(&prog)?.get(open) {
        Ok(fd) => fd as i32,
        Err(e) => return Ok(Err(e)),
    };
    let at = p.layout.request() + size_of::<wire::AsideCall>() as u64;
    let (auxv_at, fd_at, len) = (map.len() - 16, map.len() - 4, map.len() as u64);
    map[auxv_at..auxv_at + 8].copy_from_slice(&(at + len).to_le_bytes());
    map[fd_at..].copy_from_slice(&fd.to_le_bytes());
    let call = [libc::SYS_prctl as u64, PR_SET_MM, PR_SET_MM_MAP, at, len, 0];
    let mut q: Vec<u8> = call.iter().flat_map(|w| w.to_le_bytes()).collect();
    q.extend_from_slice(&map);
    q.extend_from_slice(auxv);
    let a = p.channel.ask(wire::OP_ASIDE, &q)?;
    let mut prog = Program::new();
    prog.call(libc::SYS_close, &[fd.into()]);
    p.run(&prog)?;
    Ok(match a.get(..8).and_then(|b| b.try_into().ok()).map_or(-1, i64::from_le_bytes) {
        0 => Ok(()),
        r => Err(std::io::Error::from_raw_os_error(-r as i32)),
    })
}
