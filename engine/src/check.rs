//! Check: the image against this machine. Every obstacle at once, each with its remedy; nothing is changed.
use crate::restore::files::{map_path, remaker, Checker};
use crate::restore::pids::{decide, Rights};
use crate::restore::{family, vdso, Image, Tree};
use crate::{Error, Kind, Pids, Reason, RestoreOptions, Result};
use image::v1::memory::{MappedFile, BACKING_FILE_PRIVATE, BACKING_FILE_SHARED};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use sys::procfs::cgroup::Membership;
use sys::procfs::limits::Limits;

/// What the check of a restorable image found.
#[derive(Debug)]
pub struct Checked {
    /// PIDs that it will get.
    pub pids: Pids,
    /// What changes, a line each.
    pub notes: Vec<String>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What can be seen, for the restore that follows at once and tries the rest itself.
    Look,
    /// Also by making namespaces in a child, for `ctl check`. This process must have one thread.
    Try,
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
const CAP_SYS_CHROOT: u32 = 18;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const RLIMIT_NOFILE: usize = 7;
/// IDs of POSIX timers that can be reached by making and deleting others, on kernels before 6.16.
const LOW_TIMERS: i32 = 4096;

/// Names of the extended state's parts, by XCR0 bit (Intel SDM volume 1, 13.1).
const XFEATURES: &[(u32, &str)] = &[
    (2, "AVX"),
    (3, "MPX"),
    (4, "MPX"),
    (5, "AVX-512"),
    (6, "AVX-512"),
    (7, "AVX-512"),
    (9, "protection keys"),
    (17, "AMX"),
    (18, "AMX"),
    (19, "APX"),
];

/// Names of the limits, in the kernel's order, and the option of the shell's `ulimit` that sets it.
pub const RLIMITS: [(&str, &str); 16] = [
    ("CPU time", "-t"),
    ("file size", "-f"),
    ("data", "-d"),
    ("stack", "-s"),
    ("core file size", "-c"),
    ("resident set", "-m"),
    ("processes", "-u"),
    ("open files", "-n"),
    ("locked memory", "-l"),
    ("address space", "-v"),
    ("file locks", "-x"),
    ("pending signals", "-i"),
    ("message queues", "-q"),
    ("nice", "-e"),
    ("real-time priority", "-r"),
    ("real-time CPU time", "-R"),
];

/// RLIMIT_NPROC and RLIMIT_SIGPENDING: half of what the machine's memory allows in threads, where nobody set them (set_max_threads and
/// fork_init of kernel/fork.c). So a program that chose nothing has more than a machine with less memory gives to anybody.
const BY_MEMORY: [usize; 2] = [6, 11];

/// Checks everything.
pub fn tree(tree: &Tree<'_>, o: &RestoreOptions<'_>, depth: Depth) -> Result<Checked> {
    let here = Here::look();
    let rights = &here.rights;
    let mut reasons = family::check(tree);
    let mut all = Checked { pids: o.pids, notes: Vec::new() };
    match decide(tree, o.pids, rights) {
        Ok((pids, note)) => {
            all.notes.extend(note);
            all.pids = pids;
        }
        Err(more) => reasons.extend(more),
    }
    for (i, image) in tree.all.iter().enumerate() {
        let foresee = depth == Depth::Try;
        let owner = &tree.all[tree.memory_of(i)];
        let mut c = Check { image, owner, o, here: &here, foresee, reasons: Vec::new(), notes: Vec::new() };
        c.process(all.pids, if i == 0 { depth } else { Depth::Look });
        // what stands in the way of several is said once, of the first
        let Check { reasons: own, notes, .. } = c;
        let new: Vec<Reason> = own.into_iter().filter(|r| !reasons.contains(r)).collect();
        let named = |r: Reason| match r {
            r if i == 0 => r,
            r => Reason::new(format!("{}: {}", family::name(image), r.object), r.why, r.remedy),
        };
        reasons.extend(new.into_iter().map(named));
        let new: Vec<String> = notes.into_iter().filter(|n| !all.notes.contains(n)).collect();
        all.notes.extend(new.into_iter().map(|n| if i == 0 { n } else { format!("{}: {n}", family::name(image)) }));
    }
    reasons.extend(crate::restore::sysvipc::check(&tree.ipc, rights));
    reasons.extend(crate::restore::hugetlb::check(tree));
    reasons.extend(crate::objects::uring_owners(tree));
    match reasons.is_empty() {
        true => Ok(all),
        false => Err(Error { kind: Kind::Refused, attempted: format!("restore {}", o.what), reasons }),
    }
}

/// What is asked of this process and machine, once for all that are to be restored.
struct Here {
    rights: Rights,
    limits: Option<Limits>,
    /// None: it cannot be seen.
    groups: Option<Vec<Membership>>,
    pid_max: Option<i32>,
}

impl Here {
    fn look() -> Here {
        let own = std::process::id() as i32;
        let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        Here {
            rights: Rights::own(),
            limits: sys::procfs::limits::read(own).ok(),
            groups: sys::procfs::cgroup::read(own).ok(),
            pid_max: pid_max.and_then(|t| t.trim().parse().ok()),
        }
    }
}

struct Check<'a> {
    image: &'a Image<'a>,
    /// The process that has its memory: itself, if that is its own.
    owner: &'a Image<'a>,
    o: &'a RestoreOptions<'a>,
    here: &'a Here,
    /// Also what a restore says when it has tried it.
    foresee: bool,
    reasons: Vec<Reason>,
    notes: Vec<String>,
}

impl Check<'_> {
    fn refuse(&mut self, object: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.reasons.push(Reason::new(object, why, remedy));
    }

    /// One process.
    fn process(&mut self, pids: Pids, depth: Depth) {
        self.who(pids);
        self.places();
        self.executable();
        self.mapped_files();
        self.segments();
        self.open_files();
        self.locks();
        self.limits();
        self.cpu();
        self.kernel(pids);
        self.reasons.extend(crate::restore::seccomp::check(self.image, self.here.rights.has(CAP_SYS_ADMIN)));
        if let Some(own) = &self.here.groups {
            self.notes.extend(crate::restore::cgroup::notes(self.image, own, self.foresee));
        }
        if depth == Depth::Try {
            self.namespaces(pids);
            // a restore says what came of it
            self.notes.extend(crate::restore::clock::foresee(&self.image.meta, pids, &self.here.rights));
        }
    }

    /// User, group and capabilities of the program against ours.
    fn who(&mut self, pids: Pids) {
        let own_users = pids == Pids::Private && !self.here.rights.may_make_namespaces();
        self.reasons.extend(crate::restore::users::check(self.image, &self.here.rights, own_users, pids));
        self.notes.extend(crate::restore::users::notes(self.image, own_users));
        // in a user namespace of its own it has all that there are
        let within = own_users || self.image.users.is_some();
        let may_inherit = if within { u64::MAX } else { self.may_inherit() };
        for p in crate::restore::creds::wanted(self.image) {
            self.who_of(&p, own_users);
            self.groups_of(&p, own_users);
            let lacking = p.caps[0] & !may_inherit;
            if lacking != 0 {
                let (who, why) = (self.named(p.tid), "has inheritable capabilities that you cannot give it");
                let remedy = "restore it as root, with these in the bounding set (setpriv, capsh)";
                self.refuse("capabilities", format!("{who} {why} ({lacking:#x})"), remedy);
            }
            let narrower = p.caps[3]
                & crate::restore::creds::all_caps()
                & !if within { u64::MAX } else { self.here.rights.bounding };
            if narrower != 0 {
                let (who, what) = (self.named(p.tid), "which yours lacks: nothing that it executes can get them");
                self.notes.push(format!("{who} had capabilities in its bounding set ({narrower:#x}) {what}"));
            }
        }
        self.notes.extend(crate::restore::seccomp::notes(self.image));
    }

    /// Capabilities that can be made inheritable here, capabilities(7).
    fn may_inherit(&self) -> u64 {
        let own = &self.here.rights;
        let by_permitted = if own.has(CAP_SETPCAP) { u64::MAX } else { own.permitted };
        own.inheritable | own.bounding & by_permitted
    }

    fn named(&self, tid: i32) -> String {
        match tid == self.image.process.pid {
            true => "the program".to_owned(),
            false => format!("its thread {tid}"),
        }
    }

    /// Supplementary groups of a thread that are not its process's: the caller's instead would give it what it has given up.
    fn groups_of(&mut self, p: &image::v1::rights::Rights, own_users: bool) {
        let sorted = |groups: &[u32]| {
            let mut all = groups.to_vec();
            all.sort_unstable();
            all
        };
        let (own, process) = (sorted(&p.groups), sorted(&self.image.process.groups));
        if own != process && (own_users || !self.here.rights.has(CAP_SETGID)) {
            let who = self.named(p.tid);
            let why =
                format!("{who} has {own:?} and the program {process:?}, and you may not choose them (CAP_SETGID)");
            self.refuse("supplementary groups", why, "restore it as root, with CAP_SETGID");
        }
    }

    /// The same of one of its threads.
    fn who_of(&mut self, p: &image::v1::rights::Rights, own_users: bool) {
        let who = self.named(p.tid);
        let other_user = p.uid != [self.here.rights.uid; 4];
        let other_group = p.gid != [self.here.rights.gid; 4];
        if other_user && (own_users || !self.here.rights.has(CAP_SETUID)) {
            let why = format!("{who} runs as user {}, and you are user {}", p.uid[1], self.here.rights.uid);
            self.refuse("user", why, format!("restore it as user {} or as root", p.uid[1]));
        }
        if other_group && (own_users || !self.here.rights.has(CAP_SETGID)) {
            let why = format!("{who} runs with group {}, and you have group {}", p.gid[1], self.here.rights.gid);
            self.refuse("group", why, format!("restore it with group {} (newgrp, sg) or as root", p.gid[1]));
        }
        let permitted = p.caps[1];
        if self.image.users.is_some() {
        } else if own_users && permitted != 0 {
            let note = "its capabilities hold only within its own user namespace".to_owned();
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        } else if permitted & !self.here.rights.permitted != 0 {
            let lacking = permitted & !self.here.rights.permitted;
            let why = format!("{who} has capabilities that you have not ({lacking:#x})");
            self.refuse("capabilities", why, "restore it as root");
        }
    }

    fn here(&self, path: &[u8]) -> PathBuf {
        std::ffi::OsString::from_vec(map_path(path, self.o)).into()
    }

    fn places(&mut self) {
        let p = &self.image.process;
        for (what, path) in [("working directory", &p.cwd), ("root directory", &p.root)] {
            if what == "working directory" && p.cwd_deleted {
                continue;
            }
            let path = self.here(path);
            let shown = path.display();
            let create = format!("create it or pass --map-path {shown}=DIR");
            let (why, remedy) = match std::fs::metadata(&path) {
                Ok(m) if m.is_dir() && may(&path, nix::unistd::AccessFlags::X_OK) => continue,
                Ok(m) if m.is_dir() => ("you may not enter it".to_string(), RIGHT.to_string()),
                Ok(_) => ("is not a directory".to_string(), create),
                Err(e) => (in_words(&path, &e), remedy(&e, &create)),
            };
            self.refuse(format!("{what} {shown}"), why, remedy);
        }
        if &p.root[..] != b"/" && !p.root.is_empty() && !self.here.rights.has(CAP_SYS_CHROOT) {
            let why = "entering a root directory needs CAP_SYS_CHROOT";
            self.refuse(format!("root directory {}", p.root.escape_ascii()), why, "restore it as root");
        }
    }

    fn executable(&mut self) {
        let path = self.here(&self.image.process.exe);
        let mapped = self.owner.memory.files.iter().any(|f| f.path == self.image.process.exe);
        if mapped || self.image.process.exe.is_empty() {
            return;
        }
        if let Err(e) = std::fs::metadata(&path) {
            self.notes.push(format!("/proc/PID/exe will not lead to {}: {}", path.display(), in_words(&path, &e)));
        }
    }

    /// Files that it has mapped: the same as at the checkpoint, or pages would be mixed.
    fn mapped_files(&mut self) {
        let vmas = &self.image.memory.vmas;
        for (i, f) in self.image.memory.files.iter().enumerate() {
            let of = |backing: u32| vmas.iter().filter(move |v| v.backing == backing && v.file as usize == i);
            let private = of(BACKING_FILE_PRIVATE).count() > 0;
            let end = of(BACKING_FILE_SHARED).map(|v| v.offset + (v.end - v.start)).max();
            if !private && end.is_none() {
                continue;
            }
            let path = self.here(&f.path);
            if let Some((why, remedy)) = mapped_file(f, &path, private, end) {
                self.refuse(format!("mapped file {}", path.display()), why, remedy);
            }
        }
    }

    /// System V shared memory that is the kernel's: still there, and the same.
    fn segments(&mut self) {
        let reasons = crate::restore::segments_missing(&self.image.memory);
        self.reasons.extend(reasons);
    }

    fn open_files(&mut self) {
        for (id, f) in self.image.own_files() {
            let c = Checker { image: self.image, o: self.o, id };
            match remaker(f.kind) {
                Some(k) => {
                    self.reasons.extend(k.check(&c, f));
                    self.notes.extend(k.notes(&c, f));
                    self.reasons.extend(crate::objects::locks::check(&c, f, &f.locks));
                }
                None => {
                    let why = format!("this build does not know its kind {}", f.kind);
                    self.refuse(c.describe(f), why, "use the version that made the image");
                }
            }
        }
    }

    /// Locks that a relative holds through files of another.
    fn locks(&mut self) {
        for (id, l) in &self.image.files.locks {
            let (c, f) = (Checker { image: self.image, o: self.o, id: *id }, &self.image.files.open[*id as usize]);
            self.reasons.extend(crate::objects::locks::check(&c, f, std::slice::from_ref(l)));
        }
    }

    /// Limits: a soft limit of the program that our hard limit does not allow.
    fn limits(&mut self) {
        let may_raise = self.here.rights.has(CAP_SYS_RESOURCE);
        let Some(own) = self.here.limits else { return };
        let by_memory = |hard: u64| sys::procfs::limits::threads_max().is_some_and(|n| hard >= n / 2);
        for (i, ((soft, hard), own)) in self.image.process.rlimits.iter().zip(own).enumerate() {
            let (name, option) = RLIMITS[i.min(15)];
            if may_raise || *hard <= own.hard {
                continue;
            }
            if *soft > own.hard && BY_MEMORY.contains(&i) && by_memory(own.hard) {
                let (was, is) = (limit(*soft), limit(own.hard));
                self.notes.push(format!(
                    "its limit of {name} is {is} instead of {was}: this machine's, which follows its memory"
                ));
            } else if *soft > own.hard {
                let why = format!("the program has {} and your hard limit is {}", limit(*soft), limit(own.hard));
                let remedy = format!("raise it first: ulimit -H {option} {}", limit(*soft));
                self.refuse(format!("limit of {name}"), why, remedy);
            } else {
                let (was, is) = (limit(*hard), limit(own.hard));
                self.notes.push(format!("its hard limit of {name} is {is} instead of {was}: you may not raise it"));
            }
        }
        // none at all: -1
        let need = (self.image.highest_fd() + 1) as u64;
        let have = own[RLIMIT_NOFILE].hard;
        if need + crate::restore::SPARE_FDS > have {
            let why = format!("{} descriptors are needed while restoring and your hard limit is {have}", need + 64);
            self.refuse("limit of open files", why, format!("raise it first: ulimit -Hn {}", need + 64));
        }
    }

    fn cpu(&mut self) {
        let mut missing = self.image.meta.xfeatures & !sys::nest::xcr0();
        // in use they are in every program of a CPU that has them, by the kernel's default; without a key they say nothing
        if self.image.keys.is_none() {
            missing &= !(1 << sys::pkru::COMPONENT);
        }
        let mut names: Vec<&str> = XFEATURES.iter().filter(|(bit, _)| missing >> bit & 1 != 0).map(|f| f.1).collect();
        names.dedup();
        if missing != 0 {
            let why = format!("registers of {} are in use, which this CPU does not have", names.join(", "));
            self.refuse("CPU", why, "restore it on a CPU that has them");
        }
    }

    fn kernel(&mut self, pids: Pids) {
        if let Ok(own) = vdso::own() {
            if let Err(r) = vdso::fits(own, self.owner, &self.image.threads) {
                self.reasons.push(r);
            }
        }
        self.reasons.extend(crate::restore::aio::check(self.image));
        self.reasons.extend(crate::restore::place::check(self.image));
        self.reasons.extend(crate::restore::sealed::check(self.image));
        let highest = self.image.process.timers.iter().map(|t| t.id).max().unwrap_or(0);
        if highest >= LOW_TIMERS && sys::probe::timer_ids().is_err() {
            let why = "its ID cannot be chosen on kernels before 6.16, and is too high to be reached by counting";
            self.refuse(format!("POSIX timer {highest}"), why, "restore it under kernel 6.16 or later");
        }
        let highest = self.image.threads.iter().map(|t| t.tid).max().unwrap_or(0);
        if let Some(max) = self.here.pid_max.filter(|m| highest >= *m && pids != Pids::Fresh) {
            let why = format!("this kernel's PIDs end at {max}");
            self.refuse(format!("PID {highest}"), why, format!("sysctl -w kernel.pid_max={}", highest + 1));
        }
    }

    /// Whether the namespaces of a private restore can be made here.
    fn namespaces(&mut self, pids: Pids) {
        if pids != Pids::Private {
            return;
        }
        let n = sys::probe::namespaces(!self.here.rights.may_make_namespaces());
        let doctor = "`ctl doctor` says what forbids it; or restore as root with --pids keep";
        if let Err(e) = n.made {
            self.refuse("private PID namespace", format!("it cannot be made here: {e}"), doctor);
        } else if let Some(Err(e)) = n.proc {
            let why = format!("it cannot be mounted in a private PID namespace here: {e}");
            self.refuse("/proc", why, "run the container with an unmasked /proc, or restore as root with --pids keep");
        } else if let Some(Err(e)) = n.set_tid {
            self.refuse("PIDs", format!("they cannot be chosen in a private PID namespace here: {e}"), doctor);
        }
    }
}

/// Why a mapped file is not the one that it was.
fn mapped_file(f: &MappedFile, path: &Path, private: bool, shared_end: Option<u64>) -> Option<(String, String)> {
    let back = || "put that version of the file back, or pass --map-path OLD=NEW".to_string();
    let meta = match std::fs::metadata(path) {
        Ok(m) if m.is_file() => m,
        Ok(_) => return Some(("it is not a regular file any more".into(), back())),
        Err(e) => return Some((in_words(path, &e), remedy(&e, PUT_BACK))),
    };
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(shared_end.is_some() && f.writable).open(path) {
        return Some((in_words(path, &e), RIGHT.into()));
    }
    if let Some(end) = shared_end.filter(|end| meta.size() < *end && meta.size() < f.size) {
        return Some((format!("it has only {} bytes, and is mapped up to byte {end}", meta.size()), back()));
    }
    let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    let same = meta.size() == f.size && mtime == f.mtime_ns;
    if !private || f.writable || same {
        return None;
    }
    // a copy of the same build, installed at another time
    if !f.build_id.is_empty() && crate::capture::build_id(path).as_deref() == Some(&f.build_id) {
        return None;
    }
    let why = if meta.size() != f.size {
        format!("it has changed: {} bytes, at the checkpoint {}", meta.size(), f.size)
    } else {
        "it has changed since the checkpoint (time of modification)".into()
    };
    Some((why, back()))
}

/// Whether we have this right to a path, by our effective IDs.
fn may(path: &Path, flags: nix::unistd::AccessFlags) -> bool {
    nix::unistd::faccessat(nix::fcntl::AT_FDCWD, path, flags, nix::fcntl::AtFlags::AT_EACCESS).is_ok()
}

/// The usual answers of the system about a path in words that fit behind its name.
pub fn in_words(path: &Path, e: &std::io::Error) -> String {
    let closed = || path.ancestors().skip(1).filter(|dir| !may(dir, nix::unistd::AccessFlags::X_OK)).last();
    match e.kind() {
        std::io::ErrorKind::NotFound => "does not exist".into(),
        std::io::ErrorKind::PermissionDenied => match closed() {
            Some(dir) => format!("permission denied: {} may not be searched", dir.display()),
            None => "permission denied: you may not open it".into(),
        },
        _ => e.to_string(),
    }
}

/// What to do about a missing file.
pub const PUT_BACK: &str = "put it back, or pass --map-path OLD=NEW";
/// What to do about a file that may not be opened.
const RIGHT: &str =
    "give yourself the right (chmod, chown), restore as its owner or as root, or pass --map-path OLD=NEW";

/// What to do about such an answer; `missing` if nothing is there.
pub fn remedy(e: &std::io::Error, missing: &str) -> String {
    if e.kind() == std::io::ErrorKind::PermissionDenied { RIGHT } else { missing }.into()
}

fn limit(n: u64) -> String {
    if n == u64::MAX {
        "unlimited".into()
    } else {
        n.to_string()
    }
}
