//! Memory protection keys, pkeys(7): set when the memory has its content. The leader then may do with each what it wants, until it is given its own PKRU with
//! the rest of its extended state; its threads are born later, and as it.
use super::puppet::Puppet;
use super::{cannot, Image, Step};
use ::image::v1::keys::Keys;
use ::image::v1::memory::{Vma, BACKING_URING, BACKING_VDSO, BACKING_VVAR};
use sys::program::{Arg::Imm, Program};

/// The highest key of any kernel.
const HIGHEST: u32 = 15;

/// What the image says of them makes no sense.
pub fn nonsense(k: &Keys) -> bool {
    let numbers = k.on.iter().map(|o| o.key).chain([k.execute_only, 31 - (k.allocated | 1).leading_zeros()]);
    numbers.max().is_some_and(|n| n > HIGHEST) || k.allocated >> k.execute_only & 1 != 0
}

/// Protection with which a mapping is made: to memory that may only be executed the kernel would give a key at once, the lowest.
pub fn at_first(prot: u32) -> u32 {
    if prot == libc::PROT_EXEC as u32 {
        libc::PROT_NONE as u32
    } else {
        prot
    }
}

/// Allocates all up to the highest, in their order: before anything may only be executed.
pub fn allocate(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let Some(k) = &image.keys else { return Ok(()) };
    let (mut prog, mut wanted) = (Program::new(), Vec::new());
    for key in 1..=highest(k) {
        wanted.push((key, prog.call(libc::SYS_pkey_alloc, &[Imm(0), Imm(0)])));
    }
    let r = p.run(&prog)?;
    for (key, c) in wanted {
        let got = r.get(c)?;
        if got != i64::from(key) {
            let why = format!("the kernel gives it as key {got}");
            return Err(cannot(
                format!("memory protection key {key}"),
                why,
                "restore it on the machine it was made on",
            ));
        }
    }
    Ok(())
}

/// Gives the mappings their keys, and those back that were not allocated. The kernel's own is taken when all others are: memory may have it that had it when it was the
/// program's, and to such nobody can give it afterwards.
pub fn set(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let (mut prog, mut later) = (Program::new(), Vec::new());
    let kernels = image.keys.as_ref().map_or(0, |k| k.execute_only);
    // the kernel's own come later, and have none
    let ours = |v: &&Vma| !matches!(v.backing, BACKING_VDSO | BACKING_VVAR | BACKING_URING);
    for v in image.memory.vmas.iter().filter(ours) {
        let range = [Imm(v.start), Imm(v.end - v.start), Imm(v.prot as u64)];
        let only_executed = v.prot == libc::PROT_EXEC as u32;
        match key(image, v) {
            // the kernel sees to it
            key if only_executed && (image.keys.is_none() || key != 0 && key == kernels) => {
                later.push((v, range));
                continue;
            }
            0 if !only_executed => continue,
            key => {
                let [start, len, prot] = range;
                prog.call(libc::SYS_pkey_mprotect, &[start, len, prot, Imm(key.into())]);
            }
        }
        prog.named(format!("the protection of {:x}-{:x}", v.start, v.end));
        p.run_if_full(&mut prog)?;
    }
    if kernels != 0 {
        prog.call(libc::SYS_pkey_free, &[Imm(kernels.into())]);
        // it gets the lowest that is free
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let (len, prot) = (Imm(::image::PAGE_SIZE as u64), Imm(libc::PROT_EXEC as u64));
        let page = prog.call(libc::SYS_mmap, &[Imm(0), len, prot, Imm(flags as u64), Imm(u64::MAX), Imm(0)]);
        prog.call(libc::SYS_munmap, &[page.arg(), len]);
    }
    for (v, range) in later {
        prog.call(libc::SYS_mprotect, &range);
        prog.named(format!("the protection of {:x}-{:x}", v.start, v.end));
        p.run_if_full(&mut prog)?;
    }
    if let Some(k) = &image.keys {
        for key in (1..=highest(k)).filter(|key| *key != k.execute_only && k.allocated >> key & 1 == 0) {
            prog.call(libc::SYS_pkey_free, &[Imm(key.into())]);
        }
    }
    p.run(&prog).map(drop)
}

/// The key of a mapping.
fn key(image: &Image<'_>, v: &Vma) -> u32 {
    let on = image.keys.as_ref().map_or(&[][..], |k| &k.on);
    on.iter().find(|o| o.start == v.start).map_or(0, |o| o.key)
}

fn highest(k: &Keys) -> u32 {
    let allocated = 31 - (k.allocated | 1).leading_zeros();
    k.on.iter().map(|o| o.key).chain([k.execute_only, allocated]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::v1::keys::On;

    #[test]
    fn the_highest_key_counts_wherever_it_is() {
        let on = vec![On { start: 0x1000, key: 7 }];
        assert_eq!(highest(&Keys { allocated: 0b1100, ..Keys::default() }), 3);
        assert_eq!(highest(&Keys { allocated: 0b1100, execute_only: 5, ..Keys::default() }), 5);
        assert_eq!(highest(&Keys { allocated: 0b1100, execute_only: 5, on, ..Keys::default() }), 7);
        assert_eq!(highest(&Keys::default()), 0);
    }

    #[test]
    fn no_key_is_above_fifteen_or_the_programs_and_the_kernels() {
        let sense = |allocated, execute_only| !nonsense(&Keys { allocated, execute_only, ..Keys::default() });
        assert!(sense(0xfffe, 0) && sense(0b100, 1) && sense(0, 15));
        assert!(!sense(1 << 16, 0) && !sense(0b100, 2) && !sense(0, 16));
    }
}
