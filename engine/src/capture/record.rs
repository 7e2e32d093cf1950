//! Phases record and publish: maps and memory from the snapshot child (or from the frozen target), then the manifest.
use super::dropped;
use super::memory::{self, Mapped};
use super::observe::Common;
use super::observe::{lock, Observer, Seen};
use super::tree::Kinship;
use super::{cgroup, inherited, rights, strict, threads, Step, Survey};
use crate::{CaptureOptions, Captured, Door, Progress};
use image::store::NewCheckpoint;
use image::v1::cgroup::Cgroups;
use image::v1::ended::First;
use image::v1::files::Files;
use image::v1::keys::{Keys, On};
use image::v1::process::Thread;
use image::v1::rights::Rights;
use image::v1::seccomp::{Apart, Filter, Strict};
use image::v1::sysvipc::SysvIpc;
use image::v1::tree::{Member, Tree};
use image::v1::{self, memory::Memory, meta::Meta};
use image::{ManifestWriter, PackRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::clock::Clocks;
use sys::mem::RemoteMem;
use sys::procfs::pagemap::{Categories, Pagemap};
use sys::procfs::{self, smaps::VmFlag, smaps::VmFlags};
use sys::seccomp::FLAG_LOG;
use sys::tracer::Snapshot;

/// sched(7)
const SCHED_DEADLINE: u32 = 6;
/// Bytes of memory whose recording takes long enough to be felt by a program that wants the CPUs.
const LONG: u64 = 64 << 20;
/// Offset of the feature bits in the extended state (XSAVE header).
const XSTATE_BV: usize = 512;

/// NUMA policies of mappings.
struct Policies {
    by_start: BTreeMap<u64, Option<procfs::numa::Policy>>,
    /// The serving thread's, with which mappings that have none are shown.
    threads: procfs::numa::Policy,
}

impl Policies {
    fn new(from: i32, target: i32, seen: &Seen, before: &[procfs::smaps::Smap]) -> Step<Policies> {
        // a snapshot child lacks some mappings
        let lacks = from != target && before.iter().any(|m| m.flags.has(procfs::smaps::VmFlag::DONTFORK));
        let mut all = match &seen.policies {
            Some(known) => known.clone(),
            None if lacks => procfs::numa::read(target)?,
            None => Vec::new(),
        };
        all.extend(procfs::numa::read(from)?);
        let threads = seen.told.last().map_or((0, 0), |t| t.mempolicy());
        Ok(Policies { by_start: all.into_iter().map(|m| (m.start, m.policy)).collect(), threads })
    }

    /// A mapping's own, if it has one.
    fn of(&self, v: &procfs::maps::Vma, reported: &mut Vec<String>) -> (u32, u64) {
        match self.by_start.get(&v.start) {
            None => (0, 0),
            Some(Some(p)) if *p == self.threads => (0, 0),
            Some(Some(p)) => *p,
            Some(None) => {
                let what = "it is of a kind that is not kept, or its nodes have numbers above 63";
                reported.push(format!("NUMA policy of {}: {what}", super::mappings::describe(v)));
                (0, 0)
            }
        }
    }
}

pub(super) struct Recorder {
    seen: Seen,
    threads: Vec<Thread>,
    common: Arc<Common>,
    early: Vec<image::PageRun>,
    /// Not the target's: mappings of blobs.
    ours: Vec<(u64, u64)>,
    /// Its memory is no earlier process's.
    has_own_memory: bool,
    before: Vec<procfs::smaps::Smap>,
    /// Not worth keeping.
    dropped: Vec<(u64, u64)>,
    reported: Vec<String>,
    /// What is said beside it.
    noted: Vec<String>,
    pause: Duration,
    memory: Memory,
    attempted: String,
    pid: i32,
    /// Its first thread's wait status, if that has ended.
    ended: Option<i32>,
    /// Credentials of threads that have others than it.
    rights: Vec<Rights>,
    door: Door,
    filters: Vec<Filter>,
    /// Those of threads that have others.
    apart: Vec<(i32, Vec<Filter>)>,
    /// Its threads in strict mode.
    strict: Vec<i32>,
    keys: super::keys::Asked,
    /// Its mappings with memory protection keys.
    keyed: Vec<On>,
    /// Held open while a frozen target is read: when it closes, the blob lets everyone go.
    pub talk: Option<sys::channel::Channel>,
}

impl Recorder {
    pub fn new(obs: Observer<'_>, mut seen: Seen, mut snapshot: Snapshot, pause: Duration) -> Recorder {
        if let Some(p) = seen.pending.take() {
            (snapshot.shared_pending, snapshot.thread_pending) = (p.shared, p.threads);
        }
        let (mut threads, pending) = threads::all(&seen, &snapshot, &obs.survey.threads);
        let strict: BTreeSet<i32> = obs.survey.threads.values().filter(|f| f.strict).map(|f| f.inner_tid).collect();
        let strict = threads.iter().map(|t| t.tid).filter(|tid| strict.contains(tid)).collect();
        if obs.survey.ended.is_some() {
            threads.insert(0, threads::ended(seen.process.pid, obs.survey.threads.get(&obs.survey.pid)));
        }
        let rights = rights::all(&seen, &obs.survey.threads);
        let (filters, apart) = filters(obs.survey);
        seen.process.pending = pending;
        seen.process.stopped = snapshot.stopped;
        let door = obs.door();
        let dropped = obs.dropped();
        let mut reported = obs.reported;
        let deadline = threads.iter().filter(|t| t.sched.0 == SCHED_DEADLINE).count();
        if deadline > 0 {
            reported.push(format!("SCHED_DEADLINE of {deadline} threads: after a restore they run under SCHED_OTHER"));
        }
        Recorder {
            seen,
            threads,
            early: obs.early,
            common: obs.common,
            ours: obs.ours,
            has_own_memory: obs.has_own_memory,
            door,
            filters,
            apart,
            strict,
            keys: obs.keys,
            keyed: Vec::new(),
            before: obs.smaps.into_owned(),
            dropped,
            reported,
            noted: obs.noted,
            pause,
            memory: Memory { segments: obs.segments, guards: obs.guards, ..Memory::default() },
            attempted: obs.survey.attempted.clone(),
            pid: obs.survey.pid,
            ended: obs.survey.ended,
            rights,
            talk: Some(obs.channel),
        }
    }

    /// The copying happened in the freeze.
    pub fn note_frozen(&mut self, d: Duration) {
        self.pause += d;
    }

    /// Records the memory of `from`: the snapshot child, or the frozen target.
    pub fn memory(&mut self, from: i32, progress: Option<&dyn Fn(Progress)>) -> Step<()> {
        inherited::read(&mut self.seen.process, from)?;
        if !self.has_own_memory {
            return Ok(());
        }
        // each walks all page tables
        let (smaps, policies) = std::thread::scope(|s| {
            let smaps = s.spawn(|| procfs::smaps::read(from));
            let policies = Policies::new(from, self.pid, &self.seen, &self.before);
            (smaps.join(), policies)
        });
        let (smaps, policies) = (smaps.map_err(panicked)??, policies?);
        let (mem, pagemap) = (RemoteMem::open(from)?, Pagemap::open(from)?);
        let mut mapped = Mapped::with(self.common.unnamed(), std::mem::take(&mut self.memory.segments));
        // what takes long leaves one CPU to the program, if that runs
        let known: u64 = smaps.iter().map(|m| (m.anonymous_kb + m.swap_kb) << 10).sum();
        let long = from != self.pid && known > LONG;
        let last = procfs::stat::read(self.pid).ok().filter(|_| long);
        let _off = last.and_then(|s| sys::sched::KeepOff::cpu(usize::try_from(s.processor).ok()?));
        let mut refused = Vec::new();
        let (mut done, mut buf) = (0, Vec::new());
        for v in &self.seen.maps {
            if self.ours.iter().any(|o| v.start < o.1 && o.0 < v.end) {
                continue;
            }
            // flags from the child; what it lacks (MADV_DONTFORK) from before the freeze
            let entry = |l: &[procfs::smaps::Smap]| -> Option<procfs::smaps::Smap> {
                let i = l.partition_point(|m| m.vma.end <= v.start);
                l.get(i).filter(|m| m.vma.start < v.end).map(|m| procfs::smaps::Smap { vma: v.clone(), ..m.clone() })
            };
            let (now, was) = (entry(&smaps), entry(&self.before));
            // it may be younger than the survey
            let unsupported = now.as_ref().or(was.as_ref()).and_then(super::mappings::unsupported);
            refused.extend(unsupported.map(|(w, r)| crate::Reason::new(super::mappings::describe(v), w, r)));
            let page_kb = now.as_ref().or(was.as_ref()).map_or(0, |m| m.kernel_page_kb);
            let key = now.as_ref().or(was.as_ref()).and_then(|m| m.protection_key).unwrap_or(0);
            let (now, was) = (now.map(|m| m.flags), was.map(|m| m.flags));
            let mut flags = now.clone().or_else(|| was.clone()).unwrap_or_default();
            // a fork takes the locks off, but not off the program
            for lock in [VmFlag::LOCKED, VmFlag::LOCKONFAULT] {
                if !flags.has(lock) && was.as_ref().is_some_and(|w| w.has(lock)) {
                    flags.add(lock);
                }
            }
            let Some(mut t) = memory::translate(v, &flags, &mut mapped) else { continue };
            t.mempolicy = policies.of(v, &mut self.reported);
            if t.backing == v1::memory::BACKING_HUGETLB {
                t.page_kb = page_kb as u32;
            }
            // judged as in the freeze, so that nothing falls between the two
            let early = memory::is_unforkable(v, was.as_ref().unwrap_or(&VmFlags::default()));
            if !early && memory::is_unforkable(v, &flags) || now.is_none() && was.is_none() {
                return Err(self.changed(v).into());
            }
            if !early {
                let gone = t.backing == v1::memory::BACKING_FILE_GONE;
                let (guards, pages): (Vec<_>, Vec<_>) = memory::stored_regions(&t, &pagemap)?
                    .into_iter()
                    .partition(|r| r.categories.has(Categories::GUARD));
                self.memory.guards.extend(guards.iter().map(|g| (g.start, g.end)));
                let pages = dropped::without(pages, &dropped::of(&self.dropped, v));
                // copied at once: what compresses them works while the next mapping is looked at
                for r in pages.iter().filter(|_| refused.is_empty()) {
                    self.common.sink(|sink| {
                        memory::copy(&mem, r, gone, sink, &mut buf, &mut |n| {
                            done += n;
                            if let Some(f) = progress {
                                f(Progress { phase: "record", done, total: known.max(done) });
                            }
                        })
                    })?;
                }
            }
            if key != 0 {
                self.keyed.push(On { start: t.start, key });
            }
            self.memory.vmas.push(t);
        }
        if !refused.is_empty() {
            let (kind, attempted) = (crate::Kind::Refused, self.attempted.clone());
            return Err(crate::Error { kind, attempted, reasons: refused }.into());
        }
        self.memory.guards.sort_unstable();
        self.memory.files = mapped.files;
        self.memory.segments = mapped.segments;
        let mut pages = std::mem::take(&mut self.early);
        pages.extend(self.common.sink(|sink| Ok(sink.take_runs()))?);
        pages.sort_by_key(|r| r.addr);
        self.memory.pages = pages;
        Ok(())
    }

    /// Whether its memory is no earlier process's.
    pub fn has_own_memory(&self) -> bool {
        self.has_own_memory
    }

    /// Its memory protection keys.
    pub fn keys(&self) -> Keys {
        self.keys.keys(self.seen.process.pid, self.keyed.clone(), &self.memory.vmas)
    }

    fn changed(&self, v: &procfs::maps::Vma) -> crate::Error {
        crate::Error::new(
            crate::Kind::PutBack,
            self.attempted.clone(),
            super::mappings::describe(v),
            "it became MADV_DONTFORK or MADV_WIPEONFORK in the instant before the freeze",
            "the target runs on as before; try again",
        )
    }

    /// As one of several. `parent`: PID of its parent in the innermost namespace.
    fn member(self, parent: i32) -> Member {
        Member {
            parent,
            door: self.door.name().into(),
            process: self.seen.process,
            threads: self.threads,
            memory: self.memory,
            fds: self.seen.fds,
            locks: self.seen.locks,
            filters: self.filters,
        }
    }
}

/// Features of the extended state that any of these threads uses.
fn xfeatures(threads: &[Thread]) -> u64 {
    let bits = threads.iter().filter_map(|t| t.xstate.get(XSTATE_BV..XSTATE_BV + 8));
    bits.fold(0, |a, b| a | u64::from_le_bytes(b.try_into().unwrap_or_default()))
}

/// Writes the manifest of all processes, the first of which is the program, and makes the checkpoint exist. `opened`: all open files.
pub(super) fn publish(
    all: Vec<Recorder>,
    (mut opened, kinship): (Files, Kinship),
    mut incoming: NewCheckpoint,
    o: &CaptureOptions<'_>,
    began: Instant,
) -> Step<Captured> {
    let none = || sys::Error::Unfit { what: "nothing was recorded".into() };
    let common = all.first().map(|r| r.common.clone()).ok_or_else(none)?;
    let (_, pack, on_its_way) = lock(&common.sink).take().ok_or_else(none)?.close()?;
    let packs = [PackRef::from(&pack)];
    let features = all.iter().fold(0, |f, r| f | xfeatures(&r.threads));
    let threads = all.iter().map(|r| r.threads.len()).sum();
    let processes = all.len();
    let latest = |of: fn(&Clocks) -> u64| all.iter().map(|r| of(&r.seen.clocks)).max().unwrap_or_default();
    let (monotonic_ns, boottime_ns) = (latest(|c| c.monotonic), latest(|c| c.boottime));
    let pause = all.iter().map(|r| r.pause).max().unwrap_or_default();
    let said = |of: fn(&Recorder) -> &[String]| -> Vec<String> {
        all.iter().enumerate().flat_map(|(i, r)| strict::named(of(r), r.pid, i > 0)).collect()
    };
    let (mut reported, noted) = (said(|r| &r.reported), said(|r| &r.noted));
    let ended = ended(&all, &kinship)?;
    let rights: Vec<Rights> = all.iter().flat_map(|r| r.rights.clone()).collect();
    // of all, if of any: one in the root would come back into its parent's
    let cgroups: Vec<Cgroups> = match all.iter().all(|r| cgroup::is_root(&r.seen.cgroups)) {
        true => Vec::new(),
        false => all.iter().map(|r| cgroup::kept(r.seen.process.pid, &r.seen.cgroups)).collect(),
    };
    let users = super::users::kept(all.iter().map(|r| (r.seen.process.pid, r.seen.users.as_ref())));
    for r in &all {
        let of = users.iter().find(|u| u.members.contains(&r.seen.process.pid));
        let reasons = of.map_or_else(Vec::new, |u| crate::restore::users::ids(&r.seen.process, &r.rights, u));
        if !reasons.is_empty() {
            return Err(crate::Error { kind: crate::Kind::Refused, attempted: r.attempted.clone(), reasons }.into());
        }
    }
    let mut apart = Apart::default();
    all.iter().flat_map(|r| &r.apart).for_each(|(tid, chain)| apart.add(*tid, chain));
    let strict_mode = Strict { threads: all.iter().flat_map(|r| r.strict.clone()).collect() };
    let states = all.iter().flat_map(|r| &r.threads);
    let ipc = super::sysvipc::kept(&common, states, &all[0].attempted, &mut reported)?;
    strict::check(o, &all[0].attempted, || reported.clone())?;
    reported.extend(noted);
    if ipc != SysvIpc::default() {
        super::users::refuse_objects(&all[0].attempted, all.iter().map(|r| (r.seen.users.is_some(), r.threads.len())))?;
    }
    let keys = super::keys::of_all(&all);
    let mut members = all.into_iter().zip(&kinship.parents);
    let (first, _) = members.next().ok_or_else(none)?;
    opened.fds = first.seen.fds;
    let meta = Meta {
        created: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        writer: concat!("dormouse ", env!("CARGO_PKG_VERSION")).into(),
        kernel: proc_line("/proc/sys/kernel/osrelease"),
        host: proc_line("/proc/sys/kernel/hostname"),
        boot_id: procfs::boot_id().unwrap_or_default(),
        door: first.door.name().into(),
        pause_ns: pause.as_nanos() as u64,
        xfeatures: features,
        monotonic_ns,
        boottime_ns,
        labels: o.labels.clone(),
        reported: reported.clone(),
    };
    let mut m = ManifestWriter::new();
    m.write_packs(&packs)?;
    m.write_section(v1::SECTION_META, v1::VERSION, true, &meta)?;
    m.write_section(v1::SECTION_PROCESS, v1::VERSION, true, &first.seen.process)?;
    m.write_section(v1::SECTION_THREADS, v1::VERSION, true, &first.threads)?;
    m.write_section(v1::SECTION_MEMORY, v1::VERSION, true, &first.memory)?;
    m.write_section(v1::SECTION_FILES, v1::VERSION, true, &opened)?;
    if !first.filters.is_empty() {
        m.write_section(v1::SECTION_SECCOMP, v1::VERSION, true, &first.filters)?;
    }
    let tree = Tree { members: members.map(|(r, parent)| r.member(*parent)).collect(), zombies: kinship.zombies };
    if tree != Tree::default() {
        m.write_section(v1::SECTION_TREE, v1::VERSION, true, &tree)?;
    }
    if ipc != SysvIpc::default() {
        m.write_section(v1::SECTION_SYSVIPC, v1::VERSION, true, &ipc)?;
    }
    if !keys.is_empty() {
        m.write_section(v1::SECTION_KEYS, v1::VERSION, true, &keys)?;
    }
    if !ended.is_empty() {
        m.write_section(v1::SECTION_ENDED, v1::VERSION, true, &ended)?;
    }
    if !rights.is_empty() {
        m.write_section(v1::SECTION_RIGHTS, v1::VERSION, true, &rights)?;
    }
    if !apart.threads.is_empty() {
        m.write_section(v1::SECTION_APART, v1::VERSION, true, &apart)?;
    }
    if !strict_mode.threads.is_empty() {
        m.write_section(v1::SECTION_STRICT, v1::VERSION, true, &strict_mode)?;
    }
    if !cgroups.is_empty() {
        // a build that does not know it leaves each in the restoring command's, as it would without
        m.write_section(v1::SECTION_CGROUPS, v1::VERSION, false, &cgroups)?;
    }
    if !users.is_empty() {
        m.write_section(v1::SECTION_USERS, v1::VERSION, true, &users)?;
    }
    if !kinship.memory.is_empty() {
        m.write_section(v1::SECTION_SHARED_MEMORY, v1::VERSION, true, &kinship.memory)?;
    }
    if !kinship.shares.is_empty() {
        m.write_section(v1::SECTION_SHARES, v1::VERSION, true, &kinship.shares)?;
    }
    let (bytes, _) = m.finish();
    incoming.write_manifest(&bytes)?;
    on_its_way.wait()?;
    let n = incoming.publish()?;
    Ok(Captured {
        n,
        door: first.door,
        pause,
        took: began.elapsed(),
        bytes: pack.stored_bytes + bytes.len() as u64,
        threads,
        processes,
        reported,
        notes: Vec::new(),
    })
}

/// First threads that have ended. Refuses where the end of such a thread, which a restore repeats, would signal its children: in a restored tree it is
/// the parent of them all.
fn ended(all: &[Recorder], kinship: &Kinship) -> Step<Vec<First>> {
    let gone: Vec<First> =
        all.iter().filter_map(|r| Some(First { pid: r.seen.process.pid, status: r.ended? })).collect();
    for (r, parent) in all.iter().zip(&kinship.parents).filter(|(_, p)| gone.iter().any(|g| g.pid == **p)) {
        if let Some(t) = r.threads.iter().find(|t| t.pdeathsig != 0) {
            let object = format!("thread {} of PID {}", t.tid, r.pid);
            let why = format!("it wants a signal when its parent ends (PR_SET_PDEATHSIG), and the first thread of that, PID {parent}, has ended while others run, which is not kept yet together");
            let remedy = "let the parent's first thread wait for the others, or the child do without the signal";
            return Err(crate::Error::new(crate::Kind::Refused, r.attempted.clone(), object, why, remedy).into());
        }
    }
    Ok(gone)
}

/// Seccomp filters in the image's words: the process's, which are its first thread's, and of the threads that have others theirs.
fn filters(s: &Survey) -> (Vec<Filter>, Vec<(i32, Vec<Filter>)>) {
    let one = |f: &sys::seccomp::Filter| Filter { code: f.code.clone().into(), flags: f.flags & FLAG_LOG };
    let of = |tid: i32| s.chains.of(tid).iter().map(one).collect::<Vec<_>>();
    let process = s.chains.of(procfs::first::by(s.pid));
    // a first thread that has ended has none
    let runs = |tid: &i32| s.ended.is_none() || *tid != s.pid;
    let others =
        s.threads.iter().filter(|(tid, _)| runs(tid) && s.chains.knows(**tid) && s.chains.of(**tid) != process);
    (process.iter().map(one).collect(), others.map(|(tid, f)| (f.inner_tid, of(*tid))).collect())
}

/// Of the thread that reads smaps.
pub(super) fn panicked(_: Box<dyn std::any::Any + Send>) -> std::io::Error {
    std::io::Error::other("a thread that reads smaps panicked")
}

fn proc_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}
