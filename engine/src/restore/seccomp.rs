//! Seccomp filters: set last of all, by the tracer, when nothing is called any more but what unmaps the blob: those that all threads have in common by the leader for
//! all, which so share them as before, then by each thread what it has beyond. So the filters have to let through what sets the next, and the leader's that;
//! or they are suspended meanwhile, which takes CAP_SYS_ADMIN. A thread in strict mode, which can have no filters, comes into it by the last call that is made in it.
use super::puppet::Puppet;
use super::{Image, Step};
use crate::Reason;
use ::image::v1::rights::Rights;
use ::image::v1::seccomp::Filter;
use std::collections::{BTreeMap, BTreeSet};
use sys::seccomp::{verdict, Verdict, FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_TSYNC};
use sys::tracer::{SetFilter, SetFilters};

const SECCOMP_SET_MODE_FILTER: u64 = 1;
const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_STRICT: u64 = 1;
const SECCOMP_MODE_FILTER: u64 = 2;
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// The call that brings a thread into strict mode.
const STRICT: SetFilter = (libc::SYS_prctl, [PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0]);
/// Bytes of struct sock_fprog.
const FPROG: usize = 16;

/// How the filters of a thread are set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Call and arguments but for the address of the program, the third.
    calls: Vec<(i64, [u64; 2])>,
    /// They have to be suspended.
    pub suspend: bool,
}

/// Decides that, for a thread that has the first `common` of its filters with all others. Speculation is not the filters' business: each thread has its own control
/// of it back (threads.rs).
fn setting(filters: &[Filter], common: usize) -> Setting {
    let known = known(filters);
    let mut s = Setting::default();
    for (i, f) in filters.iter().enumerate() {
        let all = if i < common { FLAG_TSYNC } else { 0 };
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
    s
}

/// The same for the leader, whose filters are all set by itself, and which then unmaps the blob.
fn leaders(filters: &[Filter], common: usize) -> Setting {
    let mut s = setting(filters, common);
    s.suspend |= verdict(&known(filters), libc::SYS_munmap, &[None; 6]) != Verdict::Allowed;
    s
}

/// How a process gets its filters.
struct Plan<'i> {
    leader: Setting,
    /// How many of the leader's are set in all threads by it.
    common: usize,
    /// Of each other thread that has more, what it has and sets itself.
    own: BTreeMap<usize, (&'i [Filter], Setting)>,
    /// The leader could not end under them, though they could be set.
    ends: bool,
}

impl<'i> Plan<'i> {
    fn new(image: &'i Image<'_>) -> Plan<'i> {
        let running: Vec<usize> = (usize::from(image.ended.is_some())..image.threads.len()).collect();
        let of = |i: usize| image.filters_of(image.threads[i].tid);
        let common = match (image.threads.len(), image.apart.is_empty()) {
            (1, _) => 0,
            (_, true) => image.filters.len(),
            // by the leader they would bring its no_new_privs along
            _ if spreads(image).next().is_some() => 0,
            _ => running.iter().map(|i| in_common(&image.filters, of(*i))).min().unwrap_or(0),
        };
        let mut own = BTreeMap::new();
        for i in running.into_iter().filter(|i| *i > 0 && of(*i).len() > common) {
            let mut s = setting(of(i), 0);
            // what the leader sets for it has been judged there
            s.suspend = setting(of(i), common).suspend;
            s.calls.drain(..common);
            own.insert(i, (&of(i)[common..], s));
        }
        let ends =
            image.ended.is_some() && verdict(&known(&image.filters), libc::SYS_exit, &[None; 6]) != Verdict::Allowed;
        Plan { leader: leaders(&image.filters, common), common, own, ends }
    }

    fn suspends(&self) -> bool {
        self.leader.suspend || self.own.values().any(|(_, s)| s.suspend)
    }

    /// Threads that set some themselves.
    fn sets<'p>(&'p self, image: &'p Image<'_>) -> impl Iterator<Item = Rights> + 'p {
        let tid = |i: usize| image.threads[i].tid;
        let leader = (!self.leader.calls.is_empty()).then_some(image.process.pid);
        leader.into_iter().chain(self.own.keys().map(move |i| tid(*i))).map(|tid| rights(image, tid))
    }
}

/// How many filters two threads have in common, from the oldest on.
fn in_common(a: &[Filter], b: &[Filter]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn rights(image: &Image<'_>, tid: i32) -> Rights {
    image.rights.get(&tid).cloned().unwrap_or(Rights { tid, ..Rights::of(&image.process) })
}

/// Threads that would get no_new_privs with a filter that the leader sets for all.
fn spreads<'i>(image: &'i Image<'_>) -> impl Iterator<Item = i32> + 'i {
    let has = image.process.no_new_privs;
    image.rights.values().filter(move |r| has && !r.no_new_privs).map(|r| r.tid)
}

fn known(filters: &[Filter]) -> Vec<sys::seccomp::Filter> {
    filters.iter().map(|f| sys::seccomp::Filter { code: f.code.to_vec(), flags: f.flags }).collect()
}

/// Whether they can be set again here. `may`: with CAP_SYS_ADMIN.
pub fn check(image: &Image<'_>, may: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if image.filters.is_empty() && image.apart.is_empty() {
        return reasons;
    }
    let plan = Plan::new(image);
    if !may && (plan.suspends() || plan.ends) {
        // where its filters would do, what they do not let through is what the leader ends with
        let what = match plan.suspends() {
            true => "what sets them (munmap, seccomp)",
            false => "what ends its first thread, which has ended before (exit)",
        };
        let why = format!("they do not let through {what}, so they would have to be suspended for a moment");
        reasons.push(Reason::new("seccomp filters", why, "restore it as root"));
    }
    for r in plan.sets(image).filter(|r| !r.no_new_privs && r.caps[2] & CAP_SYS_ADMIN == 0) {
        let who = if r.tid == image.process.pid { "the program".to_owned() } else { format!("its thread {}", r.tid) };
        let why = format!("{who} has neither no_new_privs nor CAP_SYS_ADMIN, without which no filter can be set");
        reasons.push(Reason::new("seccomp filters", why, "restore an earlier checkpoint"));
    }
    let programs: BTreeSet<&[u8]> = every(image).map(|f| &f.code[..]).collect();
    if programs.iter().map(|code| FPROG + code.len()).sum::<usize>() as u64 > sys::inject::BUFFER {
        let why = "those of all its threads are longer than a restore has room for";
        reasons.push(Reason::new(
            "seccomp filters",
            why,
            "let threads share them, as those do that are set before the threads are made",
        ));
    }
    reasons
}

/// What changes by the way they are set.
pub fn notes(image: &Image<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let without: Vec<i32> = spreads(image).collect();
    let plan = Plan::new(image);
    if plan.common > 0 && !without.is_empty() {
        let why = "the seccomp filters of all are set by the first thread, which has it";
        notes.push(format!("its threads {without:?} get no_new_privs, which they had not: {why}"));
    }
    let mut seen = BTreeSet::new();
    let mut beyond = image.running().filter_map(|t| image.filters_of(t.tid).get(plan.common));
    if beyond.any(|f| !seen.insert(&f.code[..])) {
        notes.push("some of its threads have equal seccomp filters, each its own now: to set one more for all threads at once (SECCOMP_FILTER_FLAG_TSYNC) fails if it did not before".into());
    }
    notes
}

/// Every filter of any of its threads.
fn every<'i>(image: &'i Image<'_>) -> impl Iterator<Item = &'i Filter> {
    image.filters.iter().chain(image.apart.values().flatten())
}

/// Puts the programs into the blob's buffer, each once; the calls that set them.
pub fn prepare(p: &Puppet, image: &Image<'_>) -> Step<SetFilters> {
    let plan = Plan::new(image);
    let (start, mut bytes, mut placed) = (p.layout.buffer(), Vec::new(), BTreeMap::new());
    for f in every(image) {
        placed.entry(&f.code[..]).or_insert_with(|| {
            let at = start + bytes.len() as u64;
            bytes.extend_from_slice(&(f.code.len() as u64 / sys::seccomp::INSTRUCTION as u64).to_le_bytes());
            bytes.extend_from_slice(&(at + FPROG as u64).to_le_bytes());
            bytes.extend_from_slice(&f.code);
            at
        });
    }
    let put = |filters: &[Filter], s: &Setting| -> Vec<SetFilter> {
        let one = |(f, (nr, [a, b])): (&Filter, &(i64, [u64; 2]))| Some((*nr, [*a, *b, *placed.get(&f.code[..])?]));
        filters.iter().zip(&s.calls).filter_map(one).collect()
    };
    let calls = put(&image.filters, &plan.leader);
    let mut threads: BTreeMap<usize, Vec<SetFilter>> =
        plan.own.iter().map(|(i, (filters, s))| (*i, put(filters, s))).collect();
    let is_strict = |i: usize| image.strict.contains(&image.threads[i].tid);
    for i in (1..image.threads.len()).filter(|i| is_strict(*i)) {
        threads.entry(i).or_default().push(STRICT);
    }
    let strict = (image.ended.is_none() && is_strict(0)).then_some(STRICT);
    if !bytes.is_empty() {
        p.mem.write(start, &bytes)?;
    }
    Ok(SetFilters { calls, common: plan.common, threads, suspend: plan.suspends() || plan.ends, strict })
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
        let s = leaders(filters, if threads > 1 { filters.len() } else { 0 });
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
