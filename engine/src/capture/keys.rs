//! Memory protection keys, pkeys(7): which are allocated, which mappings have which, and which one the kernel took for itself.
//!
//! No call tells whether a key is allocated, but pkey_mprotect(2) looks at that first, and only then for a mapping: at an address where there
//! can be none it fails with ENOMEM for a key that is allocated, and with EINVAL for one that is not. The kernel's own, for memory that may only be
//! executed, is neither allocated nor to be had: a snapshot child tries to allocate all.
use super::record::Recorder;
use crate::capture::Step;
use image::v1::keys::{Keys, On};
use image::v1::memory::Vma;
use sys::channel::Channel;
use sys::program::{Arg::Imm, CallId, Program};

/// Keys but for 0, which all memory has.
pub(super) const KEYS: u32 = 15;
/// PKRU's bit in XCR0 (Intel SDM volume 1, 13.1).
const PKRU: u64 = 1 << 9;
const PAGE: u64 = image::PAGE_SIZE as u64;

/// What a process says of its keys; bit n for key n.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// None: it could not be asked.
    allocated: Option<u32>,
    /// Neither allocated nor to be had; None: nobody tried.
    kernels: Option<u32>,
}

/// Whether this CPU and kernel have keys at all.
pub(super) fn there_are() -> bool {
    sys::nest::xcr0() & PKRU != 0
}

/// Where nothing can be mapped, with page tables of five levels, too.
const NOWHERE: u64 = 1 << 56;

/// Asks a process; `child`: it is a snapshot child, so that keys may be taken.
pub(super) fn ask(channel: &mut Channel, child: bool) -> sys::Result<Asked> {
    let mut p = Program::new();
    let nowhere = [Imm(NOWHERE), Imm(PAGE), Imm(0)];
    let probes: Vec<CallId> = (1..=KEYS)
        .map(|key| p.may(libc::SYS_pkey_mprotect, &[nowhere[0], nowhere[1], nowhere[2], Imm(key.into())]))
        .collect();
    let tries = if child { KEYS } else { 0 };
    let taken: Vec<CallId> = (0..tries).map(|_| p.may(libc::SYS_pkey_alloc, &[Imm(0), Imm(0)])).collect();
    let r = channel.run(&p)?;
    let is_allocated = |c: &CallId| r.raw(*c) == -i64::from(libc::ENOMEM);
    let allocated = (1..=KEYS).zip(&probes).filter(|(_, c)| is_allocated(c)).fold(0, |all, (key, _)| all | 1 << key);
    let had = taken.iter().map(|c| r.raw(*c)).filter(|key| (1..=KEYS.into()).contains(key));
    let free = had.fold(0, |all, key| all | 1 << key);
    let all = (1 << (KEYS + 1)) - 2;
    Ok(Asked { allocated: Some(allocated), kernels: child.then_some(all & !allocated & !free) })
}

impl Asked {
    /// With what is on mappings, in the image's words.
    pub fn keys(self, pid: i32, on: Vec<On>, vmas: &[Vma]) -> Keys {
        let only_executed = |o: &On| {
            let v = vmas.iter().find(|v| v.start == o.start);
            v.is_some_and(|v| v.prot == libc::PROT_EXEC as u32)
        };
        // that of memory which may only be executed, unless it was allocated
        let seen = on.iter().filter(|o| only_executed(o) && self.allocated.unwrap_or(0) >> o.key & 1 == 0);
        let kernels = self.kernels.unwrap_or_else(|| seen.fold(0, |all, o| all | 1 << o.key));
        let execute_only = if kernels == 0 { 0 } else { kernels.trailing_zeros() };
        let in_use = || on.iter().map(|o| o.key).filter(|key| *key != execute_only).fold(0, |all, key| all | 1 << key);
        Keys { pid, allocated: self.allocated.unwrap_or_else(in_use), execute_only, on }
    }
}

/// Of all that have any.
pub(super) fn of_all(all: &[Recorder]) -> Vec<Keys> {
    let any = |k: &Keys| k.allocated != 0 || k.execute_only != 0 || !k.on.is_empty();
    all.iter().filter(|r| r.has_own_memory()).map(Recorder::keys).filter(any).collect()
}

/// A thread that is not to be sent a signal.
pub(super) fn no_place_for_signals(s: &super::Survey) -> Option<i32> {
    let has_key = |m: &&sys::procfs::smaps::Smap| m.vma.perms.write && m.protection_key.is_some_and(|k| k != 0);
    let keyed: Vec<(u64, u64)> = s.smaps.iter().filter(has_key).map(|m| (m.vma.start, m.vma.end)).collect();
    let tids = if keyed.is_empty() { Vec::new() } else { sys::procfs::tasks(s.pid).unwrap_or_default() };
    tids.into_iter().find(|tid| sys::pkru::is_no_place_for_signals(s.pid, *tid, &keyed))
}

impl super::Observer<'_> {
    /// Asks the process itself, which stands still: nothing is changed. (That it has no child to be asked is said.)
    pub(super) fn keys_by_itself(&mut self) -> Step<()> {
        if there_are() {
            self.keys = match ask(&mut self.channel, false) {
                Err(sys::Error::Filtered { calls, .. }) => {
                    return self.unseen_filtered("memory protection keys", &calls)
                }
                keys => keys?,
            };
        }
        Ok(())
    }
}
