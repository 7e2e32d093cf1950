//! The kernel's own mappings: [vdso], [vvar] and, from 6.13, [vvar_vclock]. The new process has ours; they wait in a free
//! place while its memory is built, and are then moved to where the program knows them.
//!
//! Where this kernel's vDSO is laid out in another way, the program keeps the old one's bytes as ordinary memory, each of
//! whose entries jumps to the entry of that name in ours, which comes to lie near it. At the next checkpoint the old one
//! is such memory and ours is the vDSO; nothing needs to be recognised.
use super::puppet::Puppet;
use super::{cannot, Fault, Image, Step};
use crate::Reason;
use ::image::v1::memory::{Vma, BACKING_VDSO, BACKING_VVAR};
use ::image::v1::process::Thread;
use ::image::{PageSource, PAGE_SIZE};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use sys::procfs::maps::VmaKind;
use sys::program::{Arg::Imm, Program};

/// Bytes kept free for them; all versions so far need less than 64 KiB.
pub const PARK_LEN: u64 = 1 << 20;
/// How far ours may lie from the program's for a jump of 32 bits to reach it.
const REACH: u64 = 1 << 30;
const SHT_DYNSYM: u32 = 11;
/// jmp rel32
const JUMP: u8 = 0xe9;
const JUMP_LEN: u64 = 5;

/// One of the kernel's mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// "[vdso]", "[vvar]", ...
    pub name: Vec<u8>,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// How ours stands in for the program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Ours takes its place.
    Same,
    /// The old one's entries jump to ours.
    Forward,
}

/// Those of this process, by address. Looked at once, however many processes are restored: they stay where they are.
pub fn own() -> Step<&'static [Part]> {
    static OWN: OnceLock<Vec<Part>> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let maps = sys::procfs::maps::read(std::process::id() as i32)?;
    let ours = maps.iter().filter(|v| matches!(v.kind(), VmaKind::Vdso | VmaKind::Vvar | VmaKind::VvarVclock));
    Ok(OWN.get_or_init(|| ours.map(|v| Part { name: v.path.clone(), start: v.start, len: v.len() }).collect()))
}

/// Those of the image, by address.
fn of_image(image: &Image<'_>) -> Vec<Part> {
    let kernels = image.memory.vmas.iter().filter(|v| matches!(v.backing, BACKING_VDSO | BACKING_VVAR));
    kernels.map(|v| Part { name: v.name.to_vec(), start: v.start, len: v.end - v.start }).collect()
}

/// The vDSO itself among the parts.
fn vdso(parts: &[Part]) -> Option<&Part> {
    parts.iter().find(|p| p.name == b"[vdso]")
}

/// Whether the parts are the same, in the same order and at the same distances.
fn same_parts(own: &[Part], image: &[Part]) -> bool {
    let at = |parts: &[Part], i: usize| parts[i].start.wrapping_sub(parts[0].start);
    own.len() == image.len()
        && (0..own.len())
            .all(|i| own[i].name == image[i].name && own[i].len == image[i].len && at(own, i) == at(image, i))
}

/// How our vDSO can stand in for the program's, or why it cannot. `threads`: of who has the memory of `image`.
pub fn fits(own: &[Part], image: &Image<'_>, threads: &[Thread]) -> Result<Fit, Reason> {
    let theirs = of_image(image);
    let refuse = |why: &str| {
        let remedy = "restore an earlier checkpoint, or under the kernel that it was checkpointed on";
        Err(Reason::new("vDSO", why, remedy))
    };
    let Some(place) = vdso(&theirs) else { return refuse("the program has none, which is not supported yet") };
    let Ok(ours) = own_text() else { return refuse("this kernel gives none to this process (vdso=0)") };
    let old = stored_text(image);
    let parts = same_parts(own, &theirs);
    match old {
        None if parts => return Ok(Fit::Same),
        None => return refuse("this kernel's has another layout, and the image does not hold the program's"),
        Some(old) if parts && old == ours => return Ok(Fit::Same),
        Some(old) => {
            let inside = |rip: u64| (place.start..place.start + place.len).contains(&rip);
            if threads.iter().any(|t| inside(t.regs[16])) {
                return refuse("this kernel's is another one, and a thread was stopped inside the program's");
            }
            if parts && symbols(&old) == symbols(ours) {
                return Ok(Fit::Same);
            }
            if symbols(&old).is_empty() || symbols(ours).is_empty() {
                return refuse("this kernel's has another layout, and its symbols cannot be read");
            }
            if let Some(entry) = too_small(&old, &symbols(ours)) {
                return refuse(&format!(
                    "this kernel's is another one, and the program's {entry} has no room for a jump to it"
                ));
            }
        }
    }
    Ok(Fit::Forward)
}

/// Bytes of the program's vDSO, where the image holds all of them.
fn stored_text(image: &Image<'_>) -> Option<Vec<u8>> {
    let v = image.memory.vmas.iter().find(|v| v.backing == BACKING_VDSO)?;
    let mut text = vec![0; (v.end - v.start) as usize];
    let mut pages = 0;
    for run in image.memory.pages.iter().filter(|r| v.start <= r.addr && r.addr < v.end) {
        let at = (run.addr - v.start) as usize;
        let out = text.get_mut(at..at + run.pages as usize * PAGE_SIZE)?;
        if let PageSource::Pack { pack, place } = run.source {
            image.handle.packs().get(pack as usize)?.read_pages(place, out).ok()?;
        }
        pages += run.pages;
    }
    (pages * PAGE_SIZE as u64 == v.end - v.start).then_some(text)
}

/// Bytes of our own vDSO. Read once, too.
fn own_text() -> Step<&'static [u8]> {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(text) = TEXT.get() {
        return Ok(text);
    }
    let Some(v) = vdso(own()?) else {
        return Err(cannot("vDSO", "this kernel gives none to this process", "start it without vdso=0"));
    };
    let mut text = vec![0; v.len as usize];
    std::fs::File::open("/proc/self/mem")
        .and_then(|f| f.read_exact_at(&mut text, v.start))
        .map_err(|e| Fault::Io("reading our vDSO".into(), e))?;
    Ok(TEXT.get_or_init(|| text))
}

/// A defined symbol: name, offset, size.
type Symbol = (Vec<u8>, u64, u64);

/// The dynamic symbols of an ELF image, by name; none if it cannot be understood.
fn symbols(elf: &[u8]) -> Vec<Symbol> {
    read_symbols(elf).unwrap_or_default()
}

fn read_symbols(elf: &[u8]) -> Option<Vec<Symbol>> {
    let u = |at: usize, offset: usize, n: usize| -> Option<u64> {
        let at = at.checked_add(offset)?;
        elf.get(at..at.checked_add(n)?).map(|b| b.iter().rev().fold(0, |v, x| v << 8 | u64::from(*x)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (u(0, 0x28, 8)? as usize, u(0, 0x3a, 2)? as usize, u(0, 0x3c, 2)? as usize);
    let section = |i: usize| table.checked_add(i.checked_mul(size)?);
    let dynsym = (0..count).filter_map(section).find(|s| u(*s, 4, 4) == Some(u64::from(SHT_DYNSYM)))?;
    let (at, len, link) = (u(dynsym, 0x18, 8)? as usize, u(dynsym, 0x20, 8)? as usize, u(dynsym, 0x28, 4)? as usize);
    let names = u(section(link)?, 0x18, 8)? as usize;
    let mut all = Vec::new();
    for s in (at..at.checked_add(len)?).step_by(24).skip(1) {
        // st_name, st_info, st_other, st_shndx, st_value, st_size; function (2) and defined
        let (name, info, shndx) = (u(s, 0, 4)? as usize, u(s, 4, 1)?, u(s, 6, 2)?);
        if info & 15 != 2 || shndx == 0 {
            continue;
        }
        let name = elf.get(names.checked_add(name)?..)?.split(|b| *b == 0).next()?;
        all.push((name.to_vec(), u(s, 8, 8)?, u(s, 16, 8)?));
    }
    all.sort();
    Some(all)
}

/// What an entry becomes for which ours has no equal: the system call itself, or ENOSYS.
fn substitute(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"__vdso_").unwrap_or(name);
    let nr = match name {
        b"clock_gettime" => libc::SYS_clock_gettime,
        b"gettimeofday" => libc::SYS_gettimeofday,
        b"time" => libc::SYS_time,
        b"getcpu" => libc::SYS_getcpu,
        b"clock_getres" => libc::SYS_clock_getres,
        // mov eax, -ENOSYS; ret
        _ => return vec![0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3],
    };
    // mov eax, nr; syscall; ret
    let mut code = vec![0xb8];
    code.extend_from_slice(&(nr as u32).to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05, 0xc3]);
    code
}

/// An entry of the old one that cannot take what would lead to ours (or, where ours has no such entry, stand in for it).
fn too_small(old: &[u8], ours: &[Symbol]) -> Option<String> {
    let need = |name: &[u8]| if ours.iter().any(|o| o.0 == name) { JUMP_LEN } else { substitute(name).len() as u64 };
    let fits = |(name, at, size): &Symbol| *size >= need(name) && at + size <= old.len() as u64;
    symbols(old).iter().find(|s| !fits(s)).map(|s| String::from_utf8_lossy(&s.0).into_owned())
}

/// The old one's bytes, each of its entries sent to ours. `old_at` and `new_at` are where they lie.
fn forwarded(mut old: Vec<u8>, old_at: u64, ours: &[u8], new_at: u64) -> Vec<u8> {
    let targets = symbols(ours);
    for (name, at, _) in symbols(&old) {
        let code = match targets.iter().find(|t| t.0 == name) {
            Some((_, to, _)) => {
                let distance =
                    new_at.wrapping_add(*to).wrapping_sub(old_at.wrapping_add(at).wrapping_add(JUMP_LEN)) as u32;
                [&[JUMP], &distance.to_le_bytes()[..]].concat()
            }
            None => substitute(&name),
        };
        // it has the room: see `too_small`
        let end = at.saturating_add(code.len() as u64) as usize;
        if let Some(place) = old.get_mut(at as usize..end) {
            place.copy_from_slice(&code);
        }
    }
    old
}

/// Where ours comes to lie if it cannot take the program's place: near it, where nothing is mapped or will grow to, nor anything of
/// ours is (`area`).
fn near(place: &Part, vmas: &[Vma], area: (u64, u64), len: u64) -> Step<u64> {
    let from = place.start.saturating_sub(REACH).max(1 << 20);
    let mut used: Vec<(u64, u64)> = vmas.iter().map(super::build::taken).collect();
    used.push(area);
    used.sort_unstable();
    let at = super::build::free(&used, from, len)?;
    if at + len > place.start + REACH {
        return Err(cannot(
            "vDSO",
            "no free place near the program's can be found for this kernel's",
            "restore it under the kernel that it was checkpointed on",
        ));
    }
    Ok(at)
}

/// Moves ours to its place.
pub fn settle(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let (own, theirs) = (own()?, of_image(image));
    let Some(place) = vdso(&theirs) else { return Err(cannot("vDSO", "the program has none", "report this")) };
    let text = own_text()?;
    let len: u64 = own.iter().map(|x| x.len).sum();
    let targets: Vec<u64> = match p.fit {
        Fit::Same => theirs.iter().map(|t| t.start).collect(),
        Fit::Forward => {
            let base = near(place, &image.memory.vmas, p.area, len)?;
            own.iter()
                .scan(base, |at, x| {
                    let here = *at;
                    *at += x.len;
                    Some(here)
                })
                .collect()
        }
    };
    let mut prog = Program::new();
    let mut at = p.park;
    for (ours, to) in own.iter().zip(&targets) {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        prog.call(libc::SYS_mremap, &[Imm(at), Imm(ours.len), Imm(ours.len), Imm(flags), Imm(*to)]);
        prog.named(format!("moving {} to its place", String::from_utf8_lossy(&ours.name)));
        at += ours.len;
        if ours.name == b"[vdso]" {
            p.vdso_at = *to;
        }
    }
    p.run(&prog)?;
    if p.fit == Fit::Forward {
        let old =
            stored_text(image).ok_or_else(|| cannot("vDSO", "the image does not hold the program's", "report this"))?;
        p.mem.write(place.start, &forwarded(old, place.start, text, p.vdso_at))?;
    }
    Ok(())
}

/// Address of a `syscall` instruction in the vDSO, once it is settled.
pub fn syscall_instruction(p: &Puppet) -> Step<u64> {
    let text = own_text()?;
    let at = text.windows(2).position(|w| w == [0x0f, 0x05]);
    at.map(|i| p.vdso_at + i as u64)
        .ok_or_else(|| cannot("vDSO", "it has no `syscall` instruction", "report this kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_symbols_are_found() {
        let s = symbols(own_text().unwrap());
        assert!(s.iter().any(|s| s.0 == b"__vdso_clock_gettime" && s.1 > 0 && s.2 >= 5), "{s:?}");
    }

    #[test]
    fn nonsense_has_no_symbols() {
        assert!(symbols(b"").is_empty());
        let text = own_text().unwrap().to_vec();
        for cut in [10, 64, 100, 1000, 4000, 6000] {
            symbols(&text[..cut]);
        }
        let mut bad = text.clone();
        bad[0x28..0x30].fill(0xff);
        assert!(symbols(&bad).is_empty());
    }

    #[test]
    fn an_entry_without_room_for_a_jump_is_refused() {
        let text = own_text().unwrap().to_vec();
        let all = symbols(&text);
        assert_eq!(too_small(&text, &all), None);
        let table = text
            .windows(24)
            .position(|w| w[8..16] == all[0].1.to_le_bytes() && w[16..24] == all[0].2.to_le_bytes() && w[4] & 15 == 2);
        let mut small = text.clone();
        small[table.unwrap() + 16..][..8].copy_from_slice(&4u64.to_le_bytes());
        assert!(too_small(&small, &all).is_some());
    }

    #[test]
    fn ours_lies_where_nothing_grows_to() {
        let place = Part { name: b"[vdso]".to_vec(), start: 0x7fff_0000_0000, len: 0x2000 };
        let from = place.start - REACH;
        let stack =
            Vma { start: from + 0x10_0000, end: from + 0x20_0000, flags: "rdwrgd".into(), ..Default::default() };
        let blob = (from + 0x20_0000, from + 0x30_0000);
        assert_eq!(near(&place, std::slice::from_ref(&stack), blob, 0x8000).unwrap(), blob.1);
        let full = Vma { start: from, end: place.start + REACH, ..Default::default() };
        assert!(near(&place, &[full], blob, 0x8000).is_err());
    }

    #[test]
    fn an_entry_jumps_to_its_namesake() {
        let text = own_text().unwrap().to_vec();
        let new = forwarded(text.clone(), 0x7000_0000, &text, 0x7001_0000);
        let (_, at, _) = symbols(&text).into_iter().find(|s| s.0 == b"__vdso_time").unwrap();
        let at = at as usize;
        assert_eq!(new[at], JUMP);
        let distance = i32::from_le_bytes(new[at + 1..at + 5].try_into().unwrap());
        assert_eq!(distance, 0x1_0000 - 5);
    }
}
