//! Seccomp filters: set last of all, by the tracer, in the leader and with it in all threads, when nothing is called any more but what unmaps the blob. So
//! the filters have to let through that, and each what sets the next; or they are suspended meanwhile, which takes CAP_SYS_ADMIN.
use super::puppet::Puppet;
use super::{Image, Step};
use crate::Reason;
use ::image::v1::seccomp::Filter;
use sys::seccomp::{verdict, Verdict, FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_TSYNC};
use sys::tracer::SetFilters;

const SECCOMP_SET_MODE_FILTER: u64 = 1;
const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_FILTER: u64 = 2;
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Bytes of struct sock_fprog.
const FPROG: usize = 16;

/// How the filters are set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Call and arguments but for the address of the program, the third.
    calls: Vec<(i64, [u64; 2])>,
    /// They have to be suspended.
    pub suspend: bool,
}

/// Decides that. Speculation is not the filters' business: each thread has its own control of it back (threads.rs).
pub fn setting(filters: &[Filter], threads: usize) -> Setting {
    let known = known(filters);
    let mut s = Setting::default();
    for (i, f) in filters.iter().enumerate() {
        let all = if threads > 1 { FLAG_TSYNC } else { 0 };
        let flags = f.flags & FLAG_LOG | FLAG_SPEC_ALLOW | all;
        let may = |nr, [a, b]: [u64; 2]| {
            verdict(&known[..i], nr, &[Some(a), Some(b), None, None, None, None]) == Verdict::Allowed
        };
        let by_seccomp = (libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER, flags as u64]);
        let by_prctl = (libc::SYS_prctl, [PR_SET_SECCOMP, SECCOMP_MODE_FILTER]);
        let plain = all == 0 && f.flags & FLAG_LOG == 0;
        let may_seccomp = may(by_seccomp.0, by_seccomp.1);
        let by = if !may_seccomp && plain && may(by_prctl.0, by_prctl.1) { by_prctl } else { by_seccomp };
        s.suspend |= by == by_seccomp && !may_seccomp;
        s.calls.push(by);
    }
    s.suspend |= verdict(&known, libc::SYS_munmap, &[None; 6]) != Verdict::Allowed;
    s
}

/// Decides it for a process, whose leader may yet have to end under them.
fn of(image: &Image<'_>) -> Setting {
    let mut s = setting(&image.filters, image.threads.len());
    s.suspend |=
        image.ended.is_some() && verdict(&known(&image.filters), libc::SYS_exit, &[None; 6]) != Verdict::Allowed;
    s
}

fn known(filters: &[Filter]) -> Vec<sys::seccomp::Filter> {
    filters.iter().map(|f| sys::seccomp::Filter { code: f.code.to_vec(), flags: f.flags }).collect()
}

/// Whether they can be set again here. `may`: with CAP_SYS_ADMIN.
pub fn check(image: &Image<'_>, may: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if image.filters.is_empty() {
        return reasons;
    }
    if !may && of(image).suspend {
        // where its filters would do, what they do not let through is what the leader ends with
        let what = match setting(&image.filters, image.threads.len()).suspend {
            true => "what sets them (munmap, seccomp)",
            false => "what ends its first thread, which has ended before (exit)",
        };
        let why = format!("they do not let through {what}, so they would have to be suspended for a moment");
        reasons.push(Reason::new("seccomp filters", why, "restore it as root"));
    }
    if !image.process.no_new_privs && image.process.caps[2] & CAP_SYS_ADMIN == 0 {
        let why = "the program has neither no_new_privs nor CAP_SYS_ADMIN, without which no filter can be set";
        reasons.push(Reason::new("seccomp filters", why, "restore an earlier checkpoint"));
    }
    reasons
}

/// What changes by the way they are set.
pub fn notes(image: &Image<'_>) -> Option<String> {
    let spreads = !image.filters.is_empty() && image.process.no_new_privs;
    let without: Vec<i32> = image.rights.values().filter(|r| spreads && !r.no_new_privs).map(|r| r.tid).collect();
    let why = "the seccomp filters of all are set by the first thread, which has it";
    (!without.is_empty()).then(|| format!("its threads {without:?} get no_new_privs, which they had not: {why}"))
}

/// Puts the programs into the blob's buffer; the calls that set them.
pub fn prepare(p: &Puppet, image: &Image<'_>) -> Step<SetFilters> {
    let setting = of(image);
    let (mut at, mut bytes, mut calls) = (p.layout.buffer(), Vec::new(), Vec::new());
    for (f, (nr, [a, b])) in image.filters.iter().zip(&setting.calls) {
        calls.push((*nr, [*a, *b, at]));
        bytes.extend_from_slice(&(f.code.len() as u64 / sys::seccomp::INSTRUCTION as u64).to_le_bytes());
        bytes.extend_from_slice(&(at + FPROG as u64).to_le_bytes());
        bytes.extend_from_slice(&f.code);
        at += (FPROG + f.code.len()) as u64;
    }
    if !bytes.is_empty() {
        p.mem.write(p.layout.buffer(), &bytes)?;
    }
    Ok(SetFilters { calls, suspend: setting.suspend })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter that answers ERRNO to this call.
    fn denying(nr: i64) -> Filter {
        let code = [(0x20u16, 0u8, 0u32), (0x15, 1, nr as u32), (0x06, 0, 0x7fff_0000), (0x06, 0, 0x0005_0001)];
        let bytes = |(c, jt, k): &(u16, u8, u32)| [&c.to_le_bytes()[..], &[*jt, 0], &k.to_le_bytes()[..]].concat();
        Filter { code: code.iter().flat_map(bytes).collect::<Vec<u8>>().into(), flags: 0 }
    }

    fn calls(filters: &[Filter], threads: usize) -> (Vec<i64>, bool) {
        let s = setting(filters, threads);
        (s.calls.iter().map(|c| c.0).collect(), s.suspend)
    }

    #[test]
    fn each_is_set_by_what_those_before_it_let_through() {
        let (seccomp, prctl, munmap) = (libc::SYS_seccomp, libc::SYS_prctl, libc::SYS_munmap);
        assert_eq!(calls(&[], 1), (vec![], false));
        assert_eq!(calls(&[denying(83), denying(84)], 3), (vec![seccomp, seccomp], false));
        assert_eq!(calls(&[denying(seccomp), denying(83)], 1), (vec![seccomp, prctl], false));
        // the other threads are reached by seccomp(2) only
        assert_eq!(calls(&[denying(seccomp), denying(83)], 2), (vec![seccomp, seccomp], true));
        assert!(calls(&[denying(seccomp), denying(prctl), denying(83)], 1).1);
        assert_eq!(calls(&[denying(83), denying(munmap)], 1), (vec![seccomp, seccomp], true));
    }
}
