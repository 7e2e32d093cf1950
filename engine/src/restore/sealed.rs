//! Memory that the program has sealed (mseal(2)): last of all, when every process of the tree is there and nothing is moved, protected or
//! given back any more. A child has its parent's seals by its birth otherwise, and could not make way for what it is to have.
use super::place::has_flag;
use super::puppet::Puppet;
use super::vdso::Fit;
use super::{Image, Step};
use crate::Reason;
use ::image::v1::memory::{Vma, BACKING_VVAR};
use sys::procfs::smaps::VmFlag;
use sys::program::{Arg::Imm, Program};

fn sealed<'a>(image: &'a Image<'_>) -> impl Iterator<Item = &'a Vma> {
    image.memory.vmas.iter().filter(|v| has_flag(&v.flags, "sl"))
}

/// Seals it again.
pub fn seal(p: &mut Puppet, image: &Image<'_>) -> Step<()> {
    let mut prog = Program::new();
    // what only belongs to the old vDSO is not there if ours stands in for it
    let is_there = |v: &&Vma| v.backing != BACKING_VVAR || p.fit == Fit::Same;
    for v in sealed(image).filter(is_there).map(|v| (v.start, v.end)).collect::<Vec<_>>() {
        prog.call(libc::SYS_mseal, &[Imm(v.0), Imm(v.1 - v.0), Imm(0)]);
        prog.named(format!("sealing {:x}-{:x}", v.0, v.1));
        p.run_if_full(&mut prog)?;
    }
    p.run(&prog).map(drop)
}

/// Why it could not be sealed here, or why nothing can be restored: a kernel that seals what it maps by itself.
pub fn check(image: &Image<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Some(v) = sealed(image).next() {
        if let Err(e) = sys::probe::mseal() {
            let why = format!("it is sealed, which cannot be done here: {e}");
            let object = format!("mapping {:x}-{:x}", v.start, v.end);
            reasons.push(Reason::new(object, why, "restore it under kernel 6.10 or later"));
        }
    }
    if own_vdso_is_sealed() {
        let why = "this kernel seals it in every process (CONFIG_MSEAL_SYSTEM_MAPPINGS), so that it cannot be moved to where the program knows it";
        reasons.push(Reason::new("vDSO", why, "restore it under a kernel without that option"));
    }
    reasons
}

/// Looked at once, however many processes are restored: it does not change.
fn own_vdso_is_sealed() -> bool {
    static SEALED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *SEALED.get_or_init(|| {
        let own = sys::procfs::smaps::read(std::process::id() as i32).unwrap_or_default();
        own.iter().any(|m| m.vma.path == b"[vdso]" && m.flags.has(VmFlag::SEALED))
    })
}
