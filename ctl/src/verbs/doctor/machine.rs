//! This user and this machine: rights, filters, CPU, room for processes, memory and checkpoints.
use super::{read, Line, Me, Status, CAPS};
use crate::out;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use sys::probe;

/// The user's rights, and what the machine is like.
pub fn lines(me: &Me) -> [Line; 5] {
    [capabilities(me), seccomp(me), cpu(), processes(me), memory()]
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
pub fn state(dir: &Path, me: &Me) -> Vec<Line> {
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
