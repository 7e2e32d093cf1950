//! `ctl doctor`: what this machine and this user permit, and what that means. Found out by doing it where that is possible.
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use engine::Error;
use serde::Serialize;
use sys::probe::{self, Namespaces, Tracee};

use crate::out::{self, Out};
use crate::Done;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// All of it works.
    Ok,
    /// Something is given up without it.
    Limited,
    /// It does not work at all.
    Missing,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    /// Stable name.
    id: &'static str,
    status: Status,
    /// The main job does not work without it.
    essential: bool,
    /// What was found.
    found: String,
    /// What that means.
    means: String,
    /// What to do about it; null where nothing is to be done.
    remedy: Option<String>,
}

impl Line {
    fn ok(id: &'static str, found: impl Into<String>, means: impl Into<String>) -> Line {
        Line { id, status: Status::Ok, essential: false, found: found.into(), means: means.into(), remedy: None }
    }

    /// Not `ok`: what it means then, and what to do.
    fn short_of(
        id: &'static str,
        status: Status,
        found: impl Into<String>,
        means: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Line {
        let remedy = Some(remedy.into());
        Line { id, status, essential: false, found: found.into(), means: means.into(), remedy }
    }

    fn essential(self) -> Line {
        Line { essential: true, ..self }
    }
}

/// Whether a probe worked, as a line.
fn from_probe(
    id: &'static str,
    probe: probe::Probe,
    (found, means): (&str, &str),
    otherwise: Status,
    (means_otherwise, remedy): (&str, &str),
) -> Line {
    match probe {
        Ok(()) => Line::ok(id, found, means),
        Err(e) => Line::short_of(id, otherwise, e.to_string(), means_otherwise, remedy),
    }
}

/// Runs the verb: exit code 0 if the main job works here, 3 if not.
pub fn run(out: &Out, state_dir: &Path) -> Result<Done, Error> {
    let me = Me::new();
    let mut lines = vec![kernel(), checkpoint_restore(&me)];
    lines.extend(tracing(&me));
    lines.extend(pids(&me));
    lines.extend(features(&me));
    lines.extend([capabilities(&me), seccomp(&me), cpu(), processes(&me), memory()]);
    lines.extend(state(state_dir, &me));
    let works = lines.iter().all(|l| !(l.essential && l.status == Status::Missing));
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        uid: u32,
        root: bool,
        state_dir: &'a Path,
        lines: &'a [Line],
    }
    let root = me.uid == 0;
    out.answer(Report { ok: works, uid: me.uid, root, state_dir, lines: &lines }, || text(&lines, works, me.uid))?;
    Ok(Done::Code(if works { 0 } else { engine::Kind::Refused.exit_code() }))
}

fn text(lines: &[Line], works: bool, uid: u32) -> String {
    let mut s = String::new();
    let width = lines.iter().map(|l| l.id.len()).max().unwrap_or(0);
    for l in lines {
        let status = match l.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        let _ = writeln!(s, "{status:7}  {:width$}  {}: {}", l.id, l.found, l.means);
        if let Some(remedy) = &l.remedy {
            let _ = writeln!(s, "{:7}  {:width$}  to change it: {remedy}", "", "");
        }
    }
    let user = if uid == 0 { "root".into() } else { format!("user {uid}") };
    s.push('\n');
    if works {
        let _ = writeln!(s, "Programs can be checkpointed and restored here by {user}.");
    } else {
        let missing: Vec<&str> =
            lines.iter().filter(|l| l.essential && l.status == Status::Missing).map(|l| l.id).collect();
        let _ =
            writeln!(s, "Programs cannot be checkpointed and restored here by {user}: missing {}.", missing.join(", "));
    }
    s
}

/// What /proc says of this process.
struct Me {
    uid: u32,
    cap_eff: u64,
    seccomp: u32,
    cap_names: Vec<&'static str>,
}

/// The capabilities that make a difference, with their bits.
const CAPS: [(&str, u32); 4] =
    [("CAP_CHECKPOINT_RESTORE", 40), ("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19)];

impl Me {
    fn new() -> Me {
        let status = read("/proc/self/status");
        let field = |key: &str| {
            status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(str::trim)).unwrap_or_default()
        };
        let cap_eff = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
        Me {
            // Real, effective, saved, file system.
            uid: field("Uid").split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(u32::MAX),
            cap_eff,
            seccomp: field("Seccomp").parse().unwrap_or(0),
            cap_names: CAPS.iter().filter(|(_, bit)| cap_eff >> bit & 1 == 1).map(|(name, _)| *name).collect(),
        }
    }

    /// Runs a probe. A filter may kill who tries: then a child finds that out.
    fn probe(&self, f: fn() -> probe::Probe) -> probe::Probe {
        if self.survives(|| drop(f())) {
            f()
        } else {
            Err(killed())
        }
    }

    fn survives(&self, f: impl FnOnce()) -> bool {
        self.seccomp == 0 || probe::survives(f)
    }

    fn has(&self, cap: &str) -> bool {
        self.cap_names.contains(&cap)
    }
}

fn killed() -> probe::Failed {
    probe::Failed {
        step: "a seccomp filter killed the probe",
        error: Some(std::io::ErrorKind::PermissionDenied.into()),
    }
}

/// What a private PID namespace is good for; see [`Me::probe`].
fn namespaces(me: &Me, user: bool) -> Namespaces {
    if me.survives(|| drop(probe::namespaces(user))) {
        probe::namespaces(user)
    } else {
        Namespaces { made: Err(killed()), proc: None, set_tid: None }
    }
}

/// A file's text; empty where it cannot be read, which is then what it says.
fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

fn kernel() -> Line {
    let release = probe::kernel_release();
    let arch = std::env::consts::ARCH;
    let found = format!("Linux {}, {arch}", release.trim());
    if arch != "x86_64" {
        let means = "only x86_64 is supported";
        return Line::short_of("kernel", Status::Missing, found, means, "use an x86_64 machine").essential();
    }
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version < (5, 9) {
        let means = "5.9 is the oldest that has the calls needed (clone3 with set_tid, pidfd_getfd, close_range)";
        return Line::short_of("kernel", Status::Missing, found, means, "use a newer kernel").essential();
    }
    Line::ok("kernel", found, "new enough").essential()
}

fn checkpoint_restore(me: &Me) -> Line {
    from_probe(
        "checkpoint-restore",
        me.probe(probe::set_mm_map),
        ("prctl(PR_SET_MM_MAP)", "argument areas, heap end and vDSO are put back where they were"),
        Status::Missing,
        (
            "the kernel cannot put a process's memory layout back: nothing can be restored",
            "use a kernel built with CONFIG_CHECKPOINT_RESTORE=y",
        ),
    )
    .essential()
}

fn tracing(me: &Me) -> Vec<Line> {
    let scope = read("/proc/sys/kernel/yama/ptrace_scope").trim().to_owned();
    let yama = if scope.is_empty() { "no Yama".into() } else { format!("Yama ptrace_scope {scope}") };
    let line = match (me.probe(|| probe::ptrace(Tracee::Stranger)), me.probe(|| probe::ptrace(Tracee::Child))) {
        (Ok(()), _) => {
            let whose = if me.has("CAP_SYS_PTRACE") { "processes of every user" } else { "this user's own processes" };
            Line::ok("ptrace", format!("attached to a process ({yama})"), format!("{whose} can be checkpointed"))
        }
        (Err(e), child) => {
            let means = match child {
                Ok(()) => "only one's own children may be attached to: no session and no PID can be checkpointed",
                Err(_) => "no process may be attached to: nothing can be checkpointed",
            };
            let remedy = match scope.as_str() {
                "" | "0" => {
                    "allow ptrace: a seccomp filter or security module forbids it (docker run --cap-add SYS_PTRACE)"
                }
                "3" => "boot with kernel.yama.ptrace_scope below 3: it cannot be lowered while the system runs",
                "2" => "run ctl as root, or: sysctl kernel.yama.ptrace_scope=0",
                _ => "sysctl kernel.yama.ptrace_scope=0, or give ctl CAP_SYS_PTRACE, or run it as root",
            };
            Line::short_of("ptrace", Status::Missing, format!("{e} ({yama})"), means, remedy)
        }
    };
    let getfd = from_probe(
        "pidfd-getfd",
        me.probe(probe::pidfd_getfd),
        ("fetched a descriptor of another process", "open files can be captured"),
        Status::Missing,
        (
            "the descriptors of a process cannot be fetched: nothing can be checkpointed",
            "allow pidfd_getfd: a seccomp filter or security module forbids it",
        ),
    );
    let kcmp = from_probe(
        "kcmp",
        me.probe(probe::kcmp),
        ("tells shared open files apart", "descriptors that share one file position still share it after a restore"),
        Status::Limited,
        (
            "descriptors that share an open file cannot be told from those that don't",
            "use a kernel built with CONFIG_KCMP=y, and allow kcmp in seccomp filters",
        ),
    );
    vec![line.essential(), getfd.essential(), kcmp]
}

fn pids(me: &Me) -> Vec<Line> {
    let mut lines = Vec::new();
    let keep = me.probe(probe::set_tid_here);
    let kept = keep.is_ok();
    lines.push(from_probe(
        "pids-keep",
        keep,
        ("a PID can be chosen", "a restored program gets its old PIDs here, where they are free"),
        Status::Limited,
        (
            "a restored program cannot have its old PIDs here: it gets a private PID namespace, or new PIDs with --pids fresh",
            "run ctl as root, or: setcap cap_checkpoint_restore+eip CTL",
        ),
    ));
    // Without CAP_SYS_ADMIN, a user namespace is what gives the right.
    let with_user = !me.has("CAP_SYS_ADMIN");
    let private = namespaces(me, with_user);
    let essential = |l: Line| if kept { l } else { l.essential() };
    let status = if kept { Status::Limited } else { Status::Missing };
    let user_namespaces = match &private.made {
        Err(e) if with_user => Err(e.to_string()),
        Ok(()) if with_user => Ok(()),
        _ => namespaces(me, true).made.map_err(|e| e.to_string()),
    };
    lines.push(match &user_namespaces {
        Ok(()) => {
            let means = if with_user {
                "they give this user the right to a private PID namespace"
            } else {
                "ordinary users get private PID namespaces too"
            };
            Line::ok("user-namespaces", "made one", means)
        }
        Err(e) if with_user => {
            let means = if kept {
                "no private PID namespace: restores must keep their PIDs"
            } else {
                "this user can restore nothing"
            };
            essential(Line::short_of("user-namespaces", status, e, means, namespace_remedy()))
        }
        Err(e) => {
            let means = "ordinary users cannot restore; root can";
            Line::short_of("user-namespaces", Status::Limited, e, means, namespace_remedy())
        }
    });
    if let Err(e) = &private.made {
        if !with_user {
            let remedy = "allow unshare and clone of namespaces: a seccomp filter forbids it, or use a kernel with CONFIG_PID_NS=y";
            let means = "no private PID namespace: restores must keep their PIDs";
            lines.push(essential(Line::short_of("pids-private", status, e.to_string(), means, remedy)));
        }
        return lines;
    }
    lines.push(essential(match private.set_tid {
        Some(Ok(())) => {
            let means =
                "a restored program gets a private PID namespace with its old PIDs where it cannot have them here";
            Line::ok("pids-private", "made a namespace and chose a PID in it", means)
        }
        other => {
            let found = other.and_then(Result::err).map_or("the probe was killed".into(), |e| e.to_string());
            let means = "a private PID namespace cannot have the old PIDs in it";
            let remedy = "allow clone3: a seccomp filter or security module forbids it";
            Line::short_of("pids-private", status, found, means, remedy)
        }
    }));
    lines.push(essential(match private.proc {
        Some(Ok(())) => Line::ok("proc-mount", "mounted a /proc", "a private PID namespace has its own /proc"),
        other => {
            let found = other.and_then(Result::err).map_or("the probe was killed".into(), |e| e.to_string());
            let means = "parts of /proc here are covered by other mounts (containers do this), so a private PID namespace cannot have its own /proc";
            let remedy = "run the container with an unmasked /proc (docker run --security-opt systempaths=unconfined)";
            Line::short_of("proc-mount", status, found, means, remedy)
        }
    }));
    lines.push(from_probe(
        "pid-translation",
        me.probe(probe::pid_from_pidns),
        ("ioctl(NS_GET_PID_FROM_PIDNS)", "PIDs in private namespaces are translated by the kernel"),
        Status::Limited,
        ("PIDs in private namespaces are looked up in /proc, one by one", "none needed; Linux 6.11 has it"),
    ));
    lines.push(from_probe(
        "time-namespaces",
        me.probe(if with_user { || probe::time_namespace(true) } else { || probe::time_namespace(false) }),
        ("made one", "a monotonic clock could go on from its old value after a reboot"),
        Status::Limited,
        (
            "a monotonic clock cannot go on from its old value after a reboot",
            "use a kernel built with CONFIG_TIME_NS=y; allow user namespaces",
        ),
    ));
    lines
}

/// Which of the many switches forbids user namespaces.
fn namespace_remedy() -> String {
    let on = |path: &str| read(path).trim().to_owned();
    if on("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run ctl as root".into()
    } else if on("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "sysctl kernel.unprivileged_userns_clone=1, or run ctl as root".into()
    } else if on("/proc/sys/user/max_user_namespaces") == "0" {
        "sysctl user.max_user_namespaces=10000, or run ctl as root".into()
    } else {
        "allow user namespaces: a seccomp filter or security module forbids them (containers do this); or run ctl as root".into()
    }
}

fn features(me: &Me) -> Vec<Line> {
    vec![
        from_probe(
            "pagemap-scan",
            me.probe(probe::pagemap_scan),
            ("ioctl(PAGEMAP_SCAN)", "written pages are found fast"),
            Status::Limited,
            ("written pages are found one by one, which is slower", "use Linux 6.7 or newer"),
        ),
        from_probe(
            "dirty-tracking",
            me.probe(probe::dirty_tracking),
            (
                "userfaultfd, asynchronous write protection",
                "pages written since a checkpoint can be told from the rest",
            ),
            Status::Limited,
            (
                "every checkpoint looks at all of the memory",
                "use Linux 6.7 or newer, and allow userfaultfd in seccomp filters",
            ),
        ),
        from_probe(
            "timer-ids",
            me.probe(probe::timer_ids),
            ("prctl(PR_TIMER_CREATE_RESTORE_IDS)", "POSIX timers get their ids back directly"),
            Status::Limited,
            (
                "POSIX timers get their ids back by making and deleting others: slow where ids are large",
                "use Linux 6.16 or newer",
            ),
        ),
    ]
}

fn capabilities(me: &Me) -> Line {
    let found = if me.cap_eff == 0 { "none".into() } else { format!("CapEff {:x}", me.cap_eff) };
    let lacks: Vec<String> = CAPS
        .iter()
        .filter(|(name, _)| !me.has(name))
        .map(|(name, _)| {
            let what = match *name {
                "CAP_CHECKPOINT_RESTORE" => "old PIDs outside a private namespace",
                "CAP_SYS_ADMIN" => "programs under a seccomp filter",
                "CAP_NET_ADMIN" => "the state of TCP connections",
                _ => "processes of other users",
            };
            format!("{name} ({what})")
        })
        .collect();
    if lacks.is_empty() {
        return Line::ok("capabilities", found, "everything that needs a privilege is permitted");
    }
    let means = format!("not permitted for want of {}", lacks.join(", "));
    Line::short_of("capabilities", Status::Limited, found, means, "run ctl as root where one of these is needed")
}

fn seccomp(me: &Me) -> Line {
    match me.seccomp {
        0 => Line::ok("seccomp", "no filter on ctl", "nothing is forbidden that way"),
        mode => {
            let means = "what it forbids shows in the other lines; programs started here are under it as well, and attach needs CAP_SYS_ADMIN for those";
            let remedy =
                "run outside the container or sandbox that sets it (docker run --security-opt seccomp=unconfined)";
            let status = if me.has("CAP_SYS_ADMIN") { Status::Limited } else { Status::Missing };
            Line::short_of("seccomp", status, format!("ctl is under a filter (mode {mode})"), means, remedy).essential()
        }
    }
}

fn cpu() -> Line {
    let info = read("/proc/cpuinfo");
    let flags = info.lines().find_map(|l| l.strip_prefix("flags")?.split_once(':')).map_or("", |(_, f)| f);
    let has = |f: &str| flags.split_whitespace().any(|g| g == f);
    let known = ["avx", "avx2", "avx512f", "amx_tile", "pku", "xsavec", "xsaves", "user_shstk"];
    let features: Vec<&str> = known.into_iter().filter(|f| has(f)).collect();
    let features = if features.is_empty() { "no AVX".into() } else { features.join(" ") };
    match probe::xsave_bytes() {
        Some(n) => Line::ok(
            "cpu",
            format!("{features}; {n} bytes of register state"),
            "a checkpoint made here needs a CPU with the same features where the program uses them",
        ),
        None => Line::short_of(
            "cpu",
            Status::Missing,
            format!("{features}; no xsave"),
            "register state cannot be saved",
            "use a CPU (or a virtual machine's CPU model) that has xsave",
        )
        .essential(),
    }
}

fn processes(me: &Me) -> Line {
    let mut found = Vec::new();
    let mut tight = false;
    let limits = read("/proc/self/limits");
    let soft = limits.lines().find_map(|l| l.strip_prefix("Max processes")?.split_whitespace().next());
    // The kernel does not hold root to it.
    if let Some(limit) = soft.and_then(|s| s.parse::<u64>().ok()).filter(|_| me.uid != 0) {
        let used = threads_of(me.uid);
        found.push(format!("{used} of {limit} (ulimit -u)"));
        tight |= used + 64 > limit;
    }
    for dir in cgroups() {
        let number = |file: &str| read(dir.join(file)).trim().parse::<u64>().ok();
        if let (Some(max), Some(used)) = (number("pids.max"), number("pids.current")) {
            found.push(format!("{used} of {max} (pids.max of {})", dir.display()));
            tight |= used + 64 > max;
        }
    }
    let found = if found.is_empty() { "no limit".into() } else { found.join(", ") };
    if tight {
        let means = "close to the limit: a checkpoint needs a process or two of its own, else memory is copied while the program waits; a restore needs all of the program's";
        Line::short_of(
            "processes",
            Status::Limited,
            found,
            means,
            "raise the limit (ulimit -u, or pids.max of the control group)",
        )
    } else {
        Line::ok("processes", found, "room for snapshot children and restored programs")
    }
}

/// Threads of a user: what RLIMIT_NPROC counts.
fn threads_of(uid: u32) -> u64 {
    let Ok(proc) = fs::read_dir("/proc") else { return 0 };
    proc.flatten()
        .filter(|e| e.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter(|e| e.metadata().is_ok_and(|m| m.uid() == uid))
        .filter_map(|e| {
            read(e.path().join("status")).lines().find_map(|l| l.strip_prefix("Threads:")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Folders of the control groups that hold this process, the innermost first.
fn cgroups() -> Vec<PathBuf> {
    let text = read("/proc/self/cgroup");
    let Some(path) = text.lines().find_map(|l| l.strip_prefix("0::/")) else { return Vec::new() };
    let root = Path::new("/sys/fs/cgroup");
    let inner = root.join(path);
    inner.ancestors().take_while(|d| d.starts_with(root)).map(Path::to_owned).collect()
}

fn memory() -> Line {
    let mode = read("/proc/sys/vm/overcommit_memory");
    match mode.trim() {
        "2" => Line::short_of(
            "memory",
            Status::Limited,
            "overcommit is off (vm.overcommit_memory=2)",
            "the snapshot of a large program may be refused: then memory is copied while the program waits, and large reservations may not be restored",
            "sysctl vm.overcommit_memory=0",
        ),
        m => Line::ok("memory", format!("vm.overcommit_memory={m}"), "large programs can be snapshotted"),
    }
}

/// Below this, a checkpoint of anything but a small program will not fit.
const LITTLE: u64 = 256 << 20;

/// The state directory: written to for real, and where it is.
fn state(dir: &Path, me: &Me) -> Vec<Line> {
    let shown = dir.display().to_string();
    let remedy = "choose another folder with --state-dir or DORMOUSE_STATE_DIR";
    // What is not there yet would be made in the nearest folder above that is.
    let there = dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/"));
    let mut lines = Vec::new();
    if there == dir {
        if let Ok(m) = fs::metadata(dir) {
            if m.uid() != me.uid {
                let means = format!("it belongs to user {}: the store is refused", m.uid());
                return vec![Line::short_of("state-dir", Status::Missing, shown, means, remedy).essential()];
            }
            if m.permissions().mode() & 0o077 != 0 {
                let means = "other users may enter it, and images hold secrets: it is refused";
                let remedy = format!("chmod 700 {shown}, or {remedy}");
                return vec![Line::short_of("state-dir", Status::Missing, shown, means, remedy).essential()];
            }
        }
    }
    lines.push(match try_write(there) {
        Ok(()) if there == dir => Line::ok("state-dir", shown.as_str(), "checkpoints can be written").essential(),
        Ok(()) => Line::ok("state-dir", shown.as_str(), "not there yet: it will be made").essential(),
        Err(e) => {
            let means = format!("cannot write in {}: {e}: no checkpoint can be kept", there.display());
            Line::short_of("state-dir", Status::Missing, shown.as_str(), means, remedy).essential()
        }
    });
    lines.push(match probe::file_system(there) {
        Err(e) => Line::short_of("storage", Status::Limited, e.to_string(), "free space is unknown", remedy),
        Ok(fs) => {
            let found = format!("{}, {} free of {}", fs.name(), out::bytes(fs.free), out::bytes(fs.total));
            if fs.free < LITTLE {
                let means = "little space: checkpoints may not fit";
                Line::short_of("storage", Status::Limited, found, means, format!("free some (ctl rm), or {remedy}"))
            } else if fs.is_memory() {
                let means = "memory, not a disk: checkpoints are gone after a reboot";
                Line::short_of("storage", Status::Limited, found, means, remedy)
            } else {
                Line::ok("storage", found, "checkpoints survive a reboot")
            }
        }
    });
    lines
}

/// Makes a folder and a file in it, flushes it, and takes both away again.
fn try_write(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".dormouse-doctor-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&probe)?;
    let file = probe.join("probe");
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).and_then(|mut f| {
        std::io::Write::write_all(&mut f, b"dormouse")?;
        f.sync_all()
    });
    let _ = fs::remove_file(&file);
    let _ = fs::remove_dir(&probe);
    written
}
