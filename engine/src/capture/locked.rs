//! mlockall(MCL_FUTURE): nothing tells whether it is in force but a mapping that is made. Ours was: it is asked of that, by the program
//! itself, as a snapshot child forgets it.
use sys::inject::Layout;
use sys::program::{CallId, Out, Program, Reply};

const PAGE: u64 = image::PAGE_SIZE as u64;

/// The questions.
pub(super) struct Locked {
    sync: CallId,
    pages: Out,
}

impl Locked {
    /// msync(2) refuses to invalidate what is locked; mincore(2) tells whether all of it was populated at once.
    pub fn ask(p: &mut Program, ours: &Layout) -> Locked {
        let sync = p.may(libc::SYS_msync, &[ours.base.into(), PAGE.into(), libc::MS_INVALIDATE.into()]);
        let pages = p.out((ours.len / PAGE) as usize);
        p.may(libc::SYS_mincore, &[ours.base.into(), ours.len.into(), pages.arg()]);
        Locked { sync, pages }
    }

    /// MCL_ flags in force.
    pub fn flags(&self, r: &Reply) -> u32 {
        if r.raw(self.sync) != -i64::from(libc::EBUSY) {
            return 0;
        }
        let all = r.bytes(self.pages).iter().all(|b| b & 1 != 0);
        (libc::MCL_FUTURE | if all { 0 } else { libc::MCL_ONFAULT }) as u32
    }
}

/// How much memory a process has locked, KiB.
pub(super) fn amount(s: &sys::procfs::status::Status) -> u64 {
    s.vm.map_or(0, |v| v.lck)
}
