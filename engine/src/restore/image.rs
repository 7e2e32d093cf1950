//! What is to be made: the sections of a checkpoint, read and checked for sense. A tree of processes is an [`Image`] for each.
use super::{Fault, Step};
use crate::sharing::{Births, Groups, Kin, Parted, FILES, FS, SIGHAND, VM};
use crate::{Error, Kind};
use ::image::v1::cgroup::{Cgroup, Cgroups};
use ::image::v1::ended::First;
use ::image::v1::files::{Content, Fd, Files, Lock, OpenFile};
use ::image::v1::keys::Keys;
use ::image::v1::rights::Rights;
use ::image::v1::seccomp::{Apart, Filter, Strict};
use ::image::v1::shares::{Memory as SharedMemory, Shares};
use ::image::v1::sysvipc::SysvIpc;
use ::image::v1::tree::{Member, Tree as Section, Zombie};
use ::image::v1::users::Users;
use ::image::v1::{self, memory::Memory, meta::Meta, objects, process::Process, process::Thread};
use ::image::{CheckpointHandle, PAGE_SIZE};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use sys::seccomp::INSTRUCTION;

/// A checkpoint in memory; its pages are still in the packs.
pub struct Tree<'a> {
    /// Its processes: the program first, each after its parent.
    pub all: Vec<Image<'a>>,
    /// Processes that had ended, and whose parents had yet to wait for them.
    pub zombies: Vec<Zombie>,
    /// System V semaphores and message queues.
    pub ipc: SysvIpc,
    /// What they share that are no threads of each other.
    pub shared: Groups,
    /// User namespaces that some are in.
    pub users: Vec<Users>,
}

/// What a process has open.
#[derive(Debug, Default)]
pub struct Opened {
    /// Open files of all processes; an index in here is a file's ID.
    pub open: Arc<Vec<OpenFile>>,
    /// Its descriptors by number.
    pub fds: Vec<Fd>,
    /// Contents of files that have no name any more.
    pub contents: Arc<Vec<Content>>,
    /// Record locks that it holds through open files which are an earlier process's, too.
    pub locks: Vec<(u32, Lock)>,
    /// Of its open files, those that an earlier process has too: which, and under what number.
    pub earlier: BTreeMap<u32, (usize, i32)>,
}

/// A process of a checkpoint.
pub struct Image<'a> {
    /// Where the pages come from.
    pub handle: &'a CheckpointHandle,
    /// About the checkpoint.
    pub meta: Arc<Meta>,
    /// PID of its parent, if that is in the image; else 0.
    pub parent: i32,
    /// How it was reached.
    pub door: String,
    /// The process.
    pub process: Process,
    /// Its threads, the leader first.
    pub threads: Vec<Thread>,
    /// The leader has ended while the others run, with this wait status.
    pub ended: Option<i32>,
    /// Credentials of threads that have others than the process, by TID.
    pub rights: BTreeMap<i32, Rights>,
    /// Its address space.
    pub memory: Memory,
    /// Its open files.
    pub files: Opened,
    /// Its seccomp filters, the oldest first.
    pub filters: Vec<Filter>,
    /// Those of threads that have others, by TID.
    pub apart: BTreeMap<i32, Vec<Filter>>,
    /// Its threads in strict seccomp mode, by TID.
    pub strict: BTreeSet<i32>,
    /// Its memory protection keys.
    pub keys: Option<Keys>,
    /// The control groups that it was in; none: the root of each hierarchy.
    pub cgroups: Vec<Cgroup>,
    /// The user namespace that it is in, if that is not the one around the program.
    pub users: Option<Users>,
    /// It has working directory, root and umask from an earlier process, which shares them with it (CLONE_FS).
    pub shares_fs: bool,
    /// Its descriptors are those of an earlier process, which shares its table with it (CLONE_FILES).
    pub shares_files: bool,
    /// Its memory is that of an earlier process, which shares it with it (CLONE_VM): [`Image::memory`] is empty.
    pub shares_memory: bool,
    /// Its signal handlers are those of an earlier process (CLONE_SIGHAND).
    pub shares_handlers: bool,
}

/// Bytes of a siginfo.
const SIGINFO: usize = 128;

fn damaged(what: String) -> Fault {
    let advice = "run `ctl verify`; restore an earlier checkpoint";
    Fault::Ours(Error::new(Kind::Damaged, "restore", "image", what, advice))
}

impl<'a> Tree<'a> {
    /// Reads all sections. An unknown required one, or one of a later version, is refused by name.
    pub fn read(handle: &'a CheckpointHandle) -> Step<Tree<'a>> {
        known(handle)?;
        let meta: Arc<Meta> = Arc::new(section(handle, v1::SECTION_META, "about the checkpoint")?);
        let files: Files = section(handle, v1::SECTION_FILES, "of the open files")?;
        let Files { open, fds, contents } = files;
        let rest: Section = handle.manifest().read_section(v1::SECTION_TREE)?.unwrap_or_default();
        let first = Member {
            parent: 0,
            door: meta.door.clone(),
            process: section(handle, v1::SECTION_PROCESS, "of the process")?,
            threads: section(handle, v1::SECTION_THREADS, "of the threads")?,
            memory: section(handle, v1::SECTION_MEMORY, "of the memory")?,
            fds,
            locks: Vec::new(),
            filters: handle.manifest().read_section(v1::SECTION_SECCOMP)?.unwrap_or_default(),
        };
        let (open, contents) = (Arc::new(open), Arc::new(contents));
        let ipc = handle.manifest().read_section(v1::SECTION_SYSVIPC)?.unwrap_or_default();
        let keys: Vec<Keys> = handle.manifest().read_section(v1::SECTION_KEYS)?.unwrap_or_default();
        let ended: Vec<First> = handle.manifest().read_section(v1::SECTION_ENDED)?.unwrap_or_default();
        let rights: Vec<Rights> = handle.manifest().read_section(v1::SECTION_RIGHTS)?.unwrap_or_default();
        let shares: Vec<Shares> = handle.manifest().read_section(v1::SECTION_SHARES)?.unwrap_or_default();
        let together: Vec<SharedMemory> =
            handle.manifest().read_section(v1::SECTION_SHARED_MEMORY)?.unwrap_or_default();
        let mut rights: BTreeMap<i32, Rights> = rights.into_iter().map(|r| (r.tid, r)).collect();
        let apart: Apart = handle.manifest().read_section(v1::SECTION_APART)?.unwrap_or_default();
        let mut apart = chains(&apart).map_err(damaged)?;
        let strict: Strict = handle.manifest().read_section(v1::SECTION_STRICT)?.unwrap_or_default();
        let mut strict: BTreeSet<i32> = strict.threads.into_iter().collect();
        let cgroups: Vec<Cgroups> = handle.manifest().read_section(v1::SECTION_CGROUPS)?.unwrap_or_default();
        let users: Vec<Users> = handle.manifest().read_section(v1::SECTION_USERS)?.unwrap_or_default();
        let mut tree = Tree { all: Vec::new(), zombies: rest.zombies, ipc, shared: Groups::default(), users };
        for mut m in std::iter::once(first).chain(rest.members) {
            stop_in_the_end(&mut m.process, &mut m.threads);
            let (open, contents, fds, locks) = (open.clone(), contents.clone(), m.fds, m.locks);
            let ended = ended.iter().find(|e| e.pid == m.process.pid).map(|e| e.status);
            let own = m.threads.iter().filter_map(|t| Some((t.tid, rights.remove(&t.tid)?)));
            let filters = m.threads.iter().filter_map(|t| Some((t.tid, apart.remove(&t.tid)?)));
            let modes = m.threads.iter().map(|t| t.tid).filter(|tid| strict.remove(tid));
            tree.all.push(Image {
                handle,
                strict: modes.collect(),
                ended,
                rights: own.collect(),
                apart: filters.collect(),
                cgroups: cgroups.iter().find(|c| c.pid == m.process.pid).map_or_else(Vec::new, |c| c.groups.clone()),
                users: tree.users.iter().find(|u| u.members.contains(&m.process.pid)).cloned(),
                meta: meta.clone(),
                parent: m.parent,
                door: m.door,
                keys: keys.iter().find(|k| k.pid == m.process.pid).cloned(),
                shares_fs: shares.iter().any(|s| s.pid == m.process.pid && s.fs != 0),
                shares_files: shares.iter().any(|s| s.pid == m.process.pid && s.files != 0),
                shares_memory: together.iter().any(|s| s.pid == m.process.pid),
                shares_handlers: together.iter().any(|s| s.pid == m.process.pid && s.sighand != 0),
                process: m.process,
                threads: m.threads,
                memory: m.memory,
                files: Opened { open, fds, contents, locks, earlier: BTreeMap::new() },
                filters: m.filters,
            });
        }
        if let Some(tid) = rights.keys().next() {
            return Err(damaged(format!("credentials of thread {tid}, which is not in it, make no sense")));
        }
        if let Some(tid) = apart.keys().next() {
            return Err(damaged(format!("seccomp filters of thread {tid}, which is not in it, make no sense")));
        }
        if let Some(tid) = strict.first() {
            return Err(damaged(format!("strict seccomp mode of thread {tid}, which is not in it, makes no sense")));
        }
        for image in &mut tree.all {
            let pid = image.process.pid;
            let Some(leader) = image.threads.iter().position(|t| t.tid == pid) else {
                return Err(damaged(format!("it has no leading thread of PID {pid}")));
            };
            image.threads.swap(0, leader);
            if image.ended.is_some_and(|s| s & 0x7f != 0) || image.ended.is_some() && image.threads.len() < 2 {
                return Err(damaged(format!("the end of the first thread of process {pid} makes no sense")));
            }
            for filters in std::iter::once(&image.filters).chain(image.apart.values()) {
                programs(filters).map_err(damaged)?;
            }
            if image.apart.contains_key(&pid) {
                return Err(damaged(format!("other seccomp filters of process {pid} than its own make no sense")));
            }
            if let Some(tid) = image.strict.iter().find(|tid| !image.filters_of(**tid).is_empty()) {
                return Err(damaged(format!("seccomp filters and strict mode of thread {tid} make no sense together")));
            }
            sense(&image.process, &image.threads, &image.memory, &image.files).map_err(damaged)?;
        }
        if keys.iter().any(super::keys::nonsense) {
            return Err(damaged("a memory protection key makes no sense".into()));
        }
        related(&tree).map_err(damaged)?;
        super::sysvipc::sense(&tree.ipc).map_err(damaged)?;
        super::users::sense(&tree).map_err(damaged)?;
        tree.shared = shared(&tree, &shares, &together).map_err(damaged)?;
        tree.join();
        Ok(tree)
    }

    /// Finds out which open files have descriptors in several processes.
    pub fn join(&mut self) {
        let mut holders: BTreeMap<u32, (usize, i32)> = BTreeMap::new();
        for (n, image) in self.all.iter_mut().enumerate() {
            let files = &mut image.files;
            files.earlier = files.fds.iter().filter_map(|d| Some((d.open, *holders.get(&d.open)?))).collect();
            for d in &files.fds {
                holders.entry(d.open).or_insert((n, d.fd));
            }
        }
    }

    /// Which of the processes has this PID.
    pub fn index(&self, pid: i32) -> Option<usize> {
        self.all.iter().position(|i| i.process.pid == pid)
    }

    /// How all are born, so that they share what they did; or who cannot be.
    pub fn births(&self) -> std::result::Result<Births, Vec<Parted>> {
        let kin = |i: &Image<'_>| Kin { pid: i.process.pid, parent: i.parent, sid: i.process.sid };
        let kin: Vec<Kin> = self.all.iter().map(kin).collect();
        crate::sharing::plan(&kin, &self.shared)
    }

    /// Which has the memory of process `i`: itself, if that is its own.
    pub fn memory_of(&self, i: usize) -> usize {
        self.shared[VM][i]
    }

    /// Those whose parent is this one, and for None those whose parent is not in the image, but for the program.
    pub fn children(&self, of: Option<usize>) -> Vec<usize> {
        let parent = of.map_or(0, |i| self.all[i].process.pid);
        (1..self.all.len()).filter(|i| self.all[*i].parent == parent).collect()
    }

    /// Shared anonymous memory that more than one process has mapped: its number, and bytes up to the last one mapped.
    pub fn shares(&self) -> BTreeMap<u64, u64> {
        let mut found: BTreeMap<u64, (BTreeSet<usize>, u64)> = BTreeMap::new();
        for (i, image) in self.all.iter().enumerate() {
            for v in image.memory.vmas.iter().filter(|v| v.backing == v1::memory::BACKING_SHARED_ANON) {
                let of = found.entry(v.share).or_default();
                of.0.insert(i);
                of.1 = of.1.max(v.offset.saturating_add(v.end - v.start));
            }
        }
        found.into_iter().filter(|(_, (who, _))| who.len() > 1).map(|(share, (_, len))| (share, len)).collect()
    }
}

/// A SIGSTOP that was on its way when the process was frozen: no thread can block it, so it would stop the process while it is being made. It stops it in the end.
fn stop_in_the_end(process: &mut Process, threads: &mut [Thread]) {
    let all = std::iter::once(&mut process.pending).chain(threads.iter_mut().map(|t| &mut t.pending));
    let mut stops = false;
    for pending in all {
        pending.retain(|info| {
            let stop = info.get(..4).is_some_and(|n| n == libc::SIGSTOP.to_le_bytes());
            stops |= stop;
            !stop
        });
    }
    process.stopped |= stops;
}

/// Each process comes once, and after its parent.
fn related(tree: &Tree<'_>) -> std::result::Result<(), String> {
    let mut known = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let tids = tree.all.iter().flat_map(|i| &i.threads).map(|t| t.tid);
    let mut odd = tids.chain(tree.zombies.iter().map(|z| z.pid)).filter(|n| *n <= 0 || !numbers.insert(*n));
    if let Some(n) = odd.next() {
        return Err(format!("number {n} of a thread or process makes no sense, or comes twice"));
    }
    if tree.shares().values().any(|len| *len > sys::nest::task_size()) {
        return Err("shared memory of its makes no sense".into());
    }
    for (i, image) in tree.all.iter().enumerate() {
        let (pid, parent) = (image.process.pid, image.parent);
        if parent != 0 && (i == 0 || !known.contains(&parent)) {
            return Err(format!("the parent {parent} of process {pid} makes no sense"));
        }
        if !known.insert(pid) {
            return Err(format!("process {pid} is in it twice"));
        }
    }
    for z in &tree.zombies {
        if !known.contains(&z.parent) {
            return Err(format!("the parent {} of ended process {} makes no sense", z.parent, z.pid));
        }
    }
    if let Some(pid) = handles(tree).find(|pid| !numbers.contains(pid)) {
        return Err(format!("a handle of process or thread {pid}, which is not in it, makes no sense"));
    }
    let open = tree.all.first().map_or(0, |i| i.files.open.len() as u32);
    let mut locks = tree.all.iter().flat_map(|i| &i.files.locks);
    match locks.find(|(id, l)| *id >= open || l.start > l.end) {
        Some((id, _)) => Err(format!("a lock on open file {id} makes no sense")),
        None => Ok(()),
    }
}

/// Of each process, with which it shares what: with an earlier one that shares with none before it.
fn shared(tree: &Tree<'_>, all: &[Shares], together: &[SharedMemory]) -> std::result::Result<Groups, String> {
    let mut groups: Groups = std::array::from_fn(|_| (0..tree.all.len()).collect());
    let said = all.iter().flat_map(|s| [(s.pid, FS, s.fs), (s.pid, FILES, s.files)]);
    let said = said.chain(together.iter().flat_map(|m| [(m.pid, SIGHAND, m.sighand), (m.pid, VM, m.vm)]));
    for (pid, kind, with) in said.filter(|(_, kind, with)| *with != 0 || *kind == VM) {
        let odd = || format!("what process {pid} shares with process {with} makes no sense");
        let (i, first) = tree.index(pid).zip(tree.index(with)).ok_or_else(odd)?;
        if first >= i || groups[kind][first] != first || groups[kind][i] != i {
            return Err(odd());
        }
        groups[kind][i] = first;
    }
    // who has another's handlers has its memory (clone(2))
    let apart = (0..tree.all.len()).find(|i| groups[VM][*i] != groups[VM][groups[SIGHAND][*i]]);
    if let Some(i) = apart {
        return Err(format!("the signal handlers of process {} make no sense", tree.all[i].process.pid));
    }
    let own = |i: &&Image<'_>| i.shares_memory && (i.memory != Memory::default() || i.keys.is_some());
    if let Some(i) = tree.all.iter().find(own) {
        return Err(format!("memory of process {}, which has another's, makes no sense", i.process.pid));
    }
    let own = |i: &&Image<'_>| i.shares_files && !(i.files.fds.is_empty() && i.files.locks.is_empty());
    if let Some(i) = tree.all.iter().find(own) {
        return Err(format!("descriptors of process {}, whose table is another's, make no sense", i.process.pid));
    }
    // one that comes first may be in a later line of its own
    let chained = groups.iter().find_map(|of| of.iter().find(|first| of[**first] != **first));
    match chained {
        Some(first) => Err(format!("what process {} shares makes no sense", tree.all[*first].process.pid)),
        None => Ok(groups),
    }
}

/// Whose handles there are; one whose record cannot be understood is met when it is made.
fn handles<'t>(tree: &'t Tree<'_>) -> impl Iterator<Item = i32> + 't {
    let open = tree.all.first().into_iter().flat_map(|i| i.files.open.iter());
    let of = |f: &OpenFile| rmp_serde::from_slice::<v1::anon::Handle>(&f.data).ok().map(|h| h.pid);
    open.filter(|f| f.kind == objects::Kind::Handle as u32).filter_map(of)
}

impl Image<'_> {
    /// Highest descriptor; -1: none.
    pub fn highest_fd(&self) -> i32 {
        self.files.fds.iter().map(|f| f.fd).max().unwrap_or(-1)
    }

    /// Its threads that have not ended.
    pub fn running(&self) -> impl Iterator<Item = &Thread> {
        self.threads.iter().skip(usize::from(self.ended.is_some()))
    }

    /// The seccomp filters of a thread, the oldest first.
    pub fn filters_of(&self, tid: i32) -> &[Filter] {
        self.apart.get(&tid).unwrap_or(&self.filters)
    }

    /// Descriptors of an open file.
    pub fn fds_of(&self, open: u32) -> impl Iterator<Item = i32> + '_ {
        self.files.fds.iter().filter(move |f| f.open == open).map(|f| f.fd)
    }

    /// The open files that it has before any other process of the tree, by ID.
    pub fn own_files(&self) -> impl Iterator<Item = (u32, &OpenFile)> + '_ {
        let ids: BTreeSet<u32> = self.files.fds.iter().map(|f| f.open).collect();
        let own = ids.into_iter().filter(|id| !self.files.earlier.contains_key(id));
        own.filter_map(|id| Some((id, self.files.open.get(id as usize)?)))
    }
}

/// The seccomp filters of threads that have others than their process.
fn chains(apart: &Apart) -> std::result::Result<BTreeMap<i32, Vec<Filter>>, String> {
    let nonsense = |tid: i32| format!("the seccomp filters of thread {tid} make no sense");
    let mut all = BTreeMap::new();
    for chain in &apart.threads {
        let filters = apart.of(chain).ok_or_else(|| nonsense(chain.tid))?;
        if all.insert(chain.tid, filters).is_some() {
            return Err(nonsense(chain.tid));
        }
    }
    Ok(all)
}

/// Seccomp filters have programs, not larger than the kernel's (BPF_MAXINSNS, and MAX_INSNS_PER_PATH for all together).
fn programs(filters: &[Filter]) -> std::result::Result<(), String> {
    const MOST: usize = 4096 * INSTRUCTION;
    const ALL: usize = 8 * MOST;
    let size = |f: &Filter| f.code.len();
    let odd = |n: usize| n == 0 || !n.is_multiple_of(INSTRUCTION) || n > MOST;
    match filters.iter().map(size).find(|n| odd(*n)) {
        Some(n) => Err(format!("a seccomp filter of {n} bytes makes no sense")),
        None if filters.iter().map(size).sum::<usize>() > ALL => Err("its seccomp filters are too long".into()),
        None => Ok(()),
    }
}

/// What the rest relies on, so that a nonsensical image cannot make us do nonsense.
fn sense(process: &Process, threads: &[Thread], memory: &Memory, files: &Opened) -> std::result::Result<(), String> {
    let page = PAGE_SIZE as u64;
    let mut last = 0;
    for v in &memory.vmas {
        if v.start < last
            || v.end <= v.start
            || v.start % page != 0
            || v.end % page != 0
            || v.end > sys::nest::task_size()
        {
            return Err(format!("its mapping {:x}-{:x} makes no sense", v.start, v.end));
        }
        let has_file = matches!(
            v.backing,
            v1::memory::BACKING_FILE_PRIVATE | v1::memory::BACKING_FILE_SHARED | v1::memory::BACKING_FILE_GONE
        );
        if has_file && v.file as usize >= memory.files.len() {
            return Err(format!("its mapping {:x}-{:x} names a file that it does not list", v.start, v.end));
        }
        if v.backing == v1::memory::BACKING_UNNAMED && v.file as usize >= files.contents.len() {
            return Err(format!("its mapping {:x}-{:x} is of a content that it does not list", v.start, v.end));
        }
        if v.backing == v1::memory::BACKING_SYSV && v.file as usize >= memory.segments.len() {
            return Err(format!("its mapping {:x}-{:x} is of a segment that it does not list", v.start, v.end));
        }
        if super::hugetlb::nonsense(v) {
            return Err(format!("the huge pages of its mapping {:x}-{:x} make no sense", v.start, v.end));
        }
        if v.offset.checked_add(v.end - v.start).is_none() {
            return Err(format!("its mapping {:x}-{:x} ends beyond any file", v.start, v.end));
        }
        last = v.end;
    }
    let odd = |s: &&v1::memory::Segment| {
        s.size >> 47 != 0 || s.page_kb >> 30 != 0 || s.page_kb != 0 && (s.page_kb <= 4 || !s.page_kb.is_power_of_two())
    };
    if let Some(s) = memory.segments.iter().find(odd) {
        return Err(format!("its segment {} of System V shared memory makes no sense", s.id));
    }
    for v in memory.vmas.iter().filter(|v| v.backing == v1::memory::BACKING_SYSV) {
        let Some(s) = memory.segments.get(v.file as usize) else { continue };
        let bytes = (u64::from(s.page_kb) << 10).max(page);
        let aligned = [v.start, v.end, v.offset].iter().all(|at| at.is_multiple_of(bytes));
        if !aligned || v.offset + (v.end - v.start) > s.size.next_multiple_of(bytes) {
            return Err(format!("its mapping {:x}-{:x} is of a part that its segment has not", v.start, v.end));
        }
    }
    if let Some(g) = memory.guards.iter().find(|g| g.1 <= g.0 || g.0 % page != 0 || g.1 % page != 0) {
        return Err(format!("its guard {:x}-{:x} makes no sense", g.0, g.1));
    }
    let mut signals = threads.iter().flat_map(|t| &t.pending).chain(&process.pending);
    if signals.any(|info| info.len() != SIGINFO) {
        return Err(format!("a pending signal has not {SIGINFO} bytes"));
    }
    let locks = files.open.iter().flat_map(|f| f.locks.iter().map(move |l| (f, l)));
    if let Some((f, l)) = locks.into_iter().find(|(_, l)| l.start > l.end) {
        let label = f.label.escape_ascii();
        return Err(format!("a lock on {label} ends before it starts ({}, {})", l.start, l.end));
    }
    if files.open.iter().any(super::hugetlb::odd_memfd) {
        return Err("the huge pages of a file without a name make no sense".into());
    }
    if let Some(t) = threads.iter().find(|t| t.regs.len() != 27) {
        return Err(format!("thread {} has {} registers instead of 27", t.tid, t.regs.len()));
    }
    if let Some(fd) = files.fds.iter().find(|f| f.open as usize >= files.open.len() || f.fd < 0) {
        return Err(format!("descriptor {} is of no open file that it lists", fd.fd));
    }
    Ok(())
}

/// What the caller of the checkpoint noted under a name. Reads that section only.
pub fn label(handle: &CheckpointHandle, name: &str) -> Step<Option<String>> {
    known(handle)?;
    let meta: Meta = section(handle, v1::SECTION_META, "about the checkpoint")?;
    Ok(meta.labels.get(name).cloned())
}

/// Whether one of 0, 1, 2 was a terminal. Reads the open files only.
pub fn wants_terminal(handle: &CheckpointHandle) -> Step<bool> {
    known(handle)?;
    let files: Files = section(handle, v1::SECTION_FILES, "of the open files")?;
    let kinds = [objects::Kind::External as u32, objects::Kind::Terminal as u32];
    let standard = |open: usize| files.fds.iter().any(|f| f.open as usize == open && f.fd <= 2);
    Ok(files.open.iter().enumerate().any(|(i, f)| kinds.contains(&f.kind) && standard(i) && terminal(f)))
}

/// Refuses an unknown required section, or one of a later version, by name.
fn known(handle: &CheckpointHandle) -> Step<()> {
    let known: Vec<(u32, u16)> = v1::KNOWN.iter().map(|k| (*k, v1::VERSION)).collect();
    Ok(handle.manifest().check_versions(&known)?)
}

fn terminal(f: &v1::files::OpenFile) -> bool {
    rmp_serde::from_slice::<objects::External>(&f.data).is_ok_and(|e| !e.termios.is_empty())
}

fn section<T: DeserializeOwned>(handle: &CheckpointHandle, kind: u32, what: &str) -> Step<T> {
    handle.manifest().read_section(kind)?.ok_or_else(|| damaged(format!("it has no section {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::v1::memory::Vma;

    type Parts = (Process, Vec<Thread>, Memory, Opened);

    fn whole() -> Parts {
        let vma = Vma { start: 0x1000, end: 0x3000, ..Vma::default() };
        let info = vec![0; SIGINFO].into();
        let thread = Thread { tid: 7, regs: vec![0; 27], pending: vec![info], ..Thread::default() };
        let open = OpenFile { locks: vec![Lock { start: 3, end: 4, ..Lock::default() }], ..OpenFile::default() };
        let memory = Memory { vmas: vec![vma], guards: vec![(0x1000, 0x2000)], ..Memory::default() };
        let files = Opened { open: Arc::new(vec![open]), fds: vec![Fd::default()], ..Opened::default() };
        (Process { pid: 7, ..Process::default() }, vec![thread], memory, files)
    }

    /// What is said of an image that is whole but for `spoil`.
    fn said(spoil: fn(&mut Parts)) -> String {
        let mut p = whole();
        spoil(&mut p);
        sense(&p.0, &p.1, &p.2, &p.3).err().unwrap_or_default()
    }

    #[test]
    fn a_pending_stop_comes_in_the_end() {
        let info = |n: i32| serde_bytes::ByteBuf::from([&n.to_le_bytes()[..], &[0; 124]].concat());
        let mut process = Process { pending: vec![info(libc::SIGUSR1), info(libc::SIGSTOP)], ..Process::default() };
        let mut threads = [Thread { pending: vec![info(libc::SIGSTOP)], ..Thread::default() }];
        stop_in_the_end(&mut process, &mut threads);
        assert_eq!((process.pending, process.stopped), (vec![info(libc::SIGUSR1)], true));
        assert!(threads[0].pending.is_empty());
        let mut other = Process { pending: vec![info(libc::SIGTSTP)], ..Process::default() };
        stop_in_the_end(&mut other, &mut []);
        assert_eq!((other.pending.len(), other.stopped), (1, false));
    }

    #[test]
    fn an_image_that_makes_sense_is_not_refused() {
        assert_eq!(said(|_| ()), "");
    }

    #[test]
    fn filters_that_the_kernel_could_not_have_are_named() {
        let said = |sizes: &[usize]| {
            let filters: Vec<_> = sizes.iter().map(|n| Filter { code: vec![0; *n].into(), flags: 0 }).collect();
            programs(&filters).err().unwrap_or_default()
        };
        assert_eq!((said(&[]), said(&[8, 32768])), (String::new(), String::new()));
        for odd in [0, 7, 32776] {
            assert_eq!(said(&[8, odd]), format!("a seccomp filter of {odd} bytes makes no sense"));
        }
        assert_eq!(said(&[32768; 9]), "its seccomp filters are too long");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(said(|p| p.2.vmas[0].end = 0x1000), "its mapping 1000-1000 makes no sense");
        assert_eq!(said(|p| p.2.vmas[0].offset = u64::MAX), "its mapping 1000-3000 ends beyond any file");
        assert_eq!(said(|p| p.2.guards[0] = (0x2000, 0x1000)), "its guard 2000-1000 makes no sense");
        assert_eq!(said(|p| p.1[0].regs.truncate(3)), "thread 7 has 3 registers instead of 27");
        assert_eq!(said(|p| p.1[0].pending[0].truncate(3)), "a pending signal has not 128 bytes");
        assert_eq!(said(|p| p.0.pending.push(Vec::new().into())), "a pending signal has not 128 bytes");
        assert_eq!(
            said(|p| Arc::make_mut(&mut p.3.open)[0].locks[0].end = 0),
            "a lock on  ends before it starts (3, 0)"
        );
        assert_eq!(said(|p| p.3.fds[0].open = 1), "descriptor 0 is of no open file that it lists");
    }
}
