//! System V shared memory: segments that are the kernel's are attached again; those that were to go with the program are made anew, under another
//! number, and are to go again. The first process that has one makes it, and the others attach it: Linux lets them, though it is marked to go (shmat(2)).
use super::puppet::Puppet;
use super::{place::has_flag, vdso, Image, Step};
use crate::Reason;
use ::image::v1::memory::{Memory, Segment, Vma, BACKING_SYSV};
use sys::procfs::sysvipc;
use sys::program::{Arg, Arg::Imm, Program};

/// Permission of its owner to read and write.
const WRITABLE: u32 = 0o600;
/// `struct shmid64_ds` of x86-64, which begins with `struct ipc64_perm`.
const SHMID_DS: usize = 112;

/// Segments of the kernel's that are not there any more, or are others.
pub(crate) fn missing(memory: &Memory) -> Vec<Reason> {
    let here = if memory.segments.is_empty() { Vec::new() } else { sysvipc::shm().unwrap_or_default() };
    let one = |s: &&Segment| {
        let same = |h: &sysvipc::Shm| h.id == s.id && h.key == s.key && h.size == s.size && !h.ends;
        let object = format!("System V shared memory {} (key {:#010x}, {} bytes)", s.id, s.key, s.size);
        let why = "it is not there any more: it was removed (ipcrm), or this is another machine or another boot";
        let remedy = "restore a checkpoint of a program that makes its segment itself";
        (!here.iter().any(same)).then(|| Reason::new(object, why, remedy))
    };
    memory.segments.iter().filter(|s| !s.ends).filter_map(|s| one(&s)).collect()
}

/// Attaches each as a whole, and shows it at each place (an mremap of length 0 duplicates a shared mapping).
pub fn place(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    for (i, s) in image.memory.segments.iter().enumerate() {
        let of = |v: &&Vma| v.backing == BACKING_SYSV && v.file as usize == i;
        let vmas: Vec<&Vma> = image.memory.vmas.iter().filter(of).collect();
        let known = p.segments.get(&s.id).copied();
        let id = match (s.ends, known) {
            (true, Some(known)) => known,
            (true, None) => make(p, s)?,
            (false, _) => s.id,
        };
        let shown = show(p, s, id, &vmas);
        if s.ends && known.is_none() {
            // it stays as long as somebody is attached
            sys::sysv::remove_segment(id);
            p.segments.insert(s.id, id);
        }
        shown?;
    }
    Ok(())
}

/// Makes one, which may be written to, as it gets its content through its mappings.
fn make(p: &mut Puppet, s: &Segment) -> Step<i32> {
    let mut prog = Program::new();
    let how = libc::IPC_CREAT | (s.mode | WRITABLE) as i32 | super::hugetlb::segment_flags(s.page_kb);
    let id = prog.call(libc::SYS_shmget, &[libc::IPC_PRIVATE.into(), Imm(s.size), how.into()]);
    prog.named("making System V shared memory");
    Ok(p.run(&prog)?.get(id)? as i32)
}

fn show(p: &mut Puppet, s: &Segment, id: i32, vmas: &[&Vma]) -> Step<()> {
    let mut prog = Program::new();
    let locked = s.ends && s.mode & WRITABLE != WRITABLE;
    if locked {
        set_mode(&mut prog, id, s.mode | WRITABLE);
    }
    // one that can never become writable is attached for reading
    for writes in [true, false] {
        let some: Vec<&Vma> = vmas.iter().copied().filter(|v| has_flag(&v.flags, "mw") == writes).collect();
        if !some.is_empty() {
            let place = (p.park + vdso::PARK_LEN).next_multiple_of(pages(s));
            attach(&mut prog, (place, s), id.into(), writes || s.ends, &some);
        }
    }
    if locked {
        set_mode(&mut prog, id, s.mode);
    }
    p.run(&prog).map(drop)
}

/// Gives one of ours these permissions.
fn set_mode(prog: &mut Program, id: i32, mode: u32) {
    let mut ds = [0; SHMID_DS];
    ds[4..8].copy_from_slice(&nix::unistd::geteuid().as_raw().to_ne_bytes());
    ds[8..12].copy_from_slice(&nix::unistd::getegid().as_raw().to_ne_bytes());
    ds[20..24].copy_from_slice(&mode.to_ne_bytes());
    let ds = prog.bytes(&ds);
    prog.call(libc::SYS_shmctl, &[id.into(), libc::IPC_SET.into(), ds]);
    prog.named("the permissions of System V shared memory");
}

/// Bytes of its pages.
fn pages(s: &Segment) -> u64 {
    (u64::from(s.page_kb) << 10).max(::image::PAGE_SIZE as u64)
}

/// Bytes that it needs to be attached as a whole, wherever that begins.
pub fn room(s: &Segment) -> u64 {
    s.size.next_multiple_of(pages(s)).saturating_add(pages(s))
}

fn attach(prog: &mut Program, (at, s): (u64, &Segment), id: Arg, writes: bool, vmas: &[&Vma]) {
    // without SHM_EXEC, which asks for more than mprotect does
    let how = if writes { 0 } else { libc::SHM_RDONLY };
    let attach = |prog: &mut Program| {
        prog.call(libc::SYS_shmat, &[id, Imm(at), how.into()]);
        prog.named("attaching System V shared memory");
    };
    if s.page_kb == 0 {
        attach(prog);
    }
    for v in vmas {
        let (flags, len) = ((libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64, v.end - v.start);
        // what is of huge pages cannot be duplicated: each time it is attached, and moved
        if s.page_kb > 0 {
            attach(prog);
        }
        let from = if s.page_kb > 0 { len } else { 0 };
        prog.call(libc::SYS_mremap, &[Imm(at + v.offset), Imm(from), Imm(len), Imm(flags), Imm(v.start)]);
        prog.named(format!("mapping {:x}-{:x} (System V shared memory)", v.start, v.end));
        if s.page_kb > 0 {
            prog.call(libc::SYS_munmap, &[Imm(at), Imm(s.size.next_multiple_of(pages(s)))]);
        }
    }
    if s.page_kb == 0 {
        prog.call(libc::SYS_shmdt, &[Imm(at)]);
    }
}
