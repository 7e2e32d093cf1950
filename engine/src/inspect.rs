//! What a checkpoint holds, for people and scripts.
use crate::restore::{explain, Tree};
use crate::sharing::{FILES, FS, SIGHAND, VM};
use crate::Result;
use image::v1::memory::*;
use image::v1::objects::Kind;
use image::CheckpointHandle;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// A checkpoint in summary; the keys are a contract (`ctl inspect --json`).
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Number in its session.
    pub n: u64,
    /// Identity: BLAKE3 of the manifest, hex.
    pub identity: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Version that wrote it.
    pub writer: String,
    /// Host and kernel.
    pub host: String,
    /// `uname -r` there.
    pub kernel: String,
    /// Door by which each process was reached.
    pub door: String,
    /// Pause, milliseconds.
    pub pause_ms: f64,
    /// Command line of the session, where it was launched.
    pub labels: BTreeMap<String, String>,
    /// PID as the program knows it.
    pub pid: i32,
    /// Executable.
    pub exe: String,
    /// Working directory.
    pub cwd: String,
    /// Real UID and GID.
    pub uid: u32,
    /// Real GID.
    pub gid: u32,
    /// Threads: TID and name.
    pub threads: Vec<(i32, String)>,
    /// All processes, this one first, each after its parent.
    pub processes: Vec<Process>,
    /// Threads in a call whose time-out starts again as a whole: TID and name of the call.
    pub whole_time_again: Vec<(i32, String)>,
    /// Seccomp filters, of the thread that has the most.
    pub seccomp_filters: usize,
    /// Threads in strict seccomp mode, of all processes.
    pub strict_seccomp: usize,
    /// Mappings.
    pub mappings: usize,
    /// Bytes of address space.
    pub mapped_bytes: u64,
    /// Bytes of pages recorded; zero pages are counted, but take no room.
    pub recorded_bytes: u64,
    /// Bytes on disk.
    pub stored_bytes: u64,
    /// Files that must be there at restore.
    pub files: Vec<String>,
    /// Descriptors: number, kind, what it is.
    pub descriptors: Vec<Descriptor>,
    /// What is not kept, each with what is lost.
    pub reported: Vec<String>,
}

/// A process in summary.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// PID as the program knows it.
    pub pid: i32,
    /// Its parent's; 0: outside the checkpoint.
    pub parent: i32,
    /// Door by which it was reached; None: it had ended.
    pub door: Option<String>,
    /// Name.
    pub name: String,
    /// How many threads it has.
    pub threads: usize,
    /// Wait status with which its first thread has ended, while others run.
    pub first_ended: Option<i32>,
    /// PID of the first process with which it shares its working directory and umask; None: with none before it.
    pub shares_fs: Option<i32>,
    /// The same of its descriptors, which are listed there.
    pub shares_files: Option<i32>,
    /// The same of its signal handlers.
    pub shares_handlers: Option<i32>,
    /// The same of its memory, which is described there.
    pub shares_memory: Option<i32>,
    /// Wait status, as wait4(2) gives it, of one that had ended.
    pub ended: Option<i32>,
}

/// A descriptor in summary.
#[derive(Clone, Debug, Serialize)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// Kind, a word.
    pub kind: &'static str,
    /// Path, "pipe:[123]", ...
    pub what: String,
}

/// Name of a kind's number.
pub(crate) fn kind_name(k: u32) -> &'static str {
    const NAMES: &[(Kind, &str)] = &[
        (Kind::Regular, "file"),
        (Kind::Directory, "directory"),
        (Kind::Device, "device"),
        (Kind::External, "external"),
        (Kind::Terminal, "terminal"),
        (Kind::Deleted, "deleted file"),
        (Kind::Pipe, "pipe"),
        (Kind::EventFd, "eventfd"),
        (Kind::Epoll, "epoll"),
        (Kind::TimerFd, "timerfd"),
        (Kind::SignalFd, "signalfd"),
        (Kind::TcpListen, "tcp"),
        (Kind::Udp, "udp"),
        (Kind::UnixListen, "unix"),
        (Kind::UnixPair, "unix pair"),
        (Kind::Path, "path"),
        (Kind::Memfd, "memfd"),
        (Kind::HugeMemfd, "memfd"),
        (Kind::Socket, "socket"),
        (Kind::Inotify, "inotify"),
        (Kind::Fanotify, "fanotify"),
        (Kind::PidFd, "pidfd"),
        (Kind::Fifo, "FIFO"),
        (Kind::Mqueue, "message queue"),
        (Kind::Proc, "file of /proc or /sys"),
        (Kind::Handle, "pidfd"),
        (Kind::PtyMaster, "pty master"),
        (Kind::PtySlave, "pty"),
        (Kind::Uring, "io_uring"),
    ];
    NAMES.iter().find(|n| n.0 as u32 == k).map_or("unknown", |n| n.1)
}

/// Summarises a checkpoint. Reads the manifest, not the pages.
pub fn inspect(handle: &CheckpointHandle) -> Result<Summary> {
    let tree = Tree::read(handle).map_err(|f| explain(f, "inspect", "read", false))?;
    let image = &tree.all[0];
    let text = |b: &[u8]| b.escape_ascii().to_string();
    let page = ::image::PAGE_SIZE as u64;
    let vmas = &image.memory.vmas;
    let descriptor = |d: &::image::v1::files::Fd| {
        let f = &image.files.open[d.open as usize];
        Descriptor { fd: d.fd, kind: kind_name(f.kind), what: text(&f.label) }
    };
    let mapped = |v: &&Vma| v.backing != BACKING_VDSO && v.backing != BACKING_VVAR;
    Ok(Summary {
        n: handle.n(),
        identity: handle.manifest().identity().to_string(),
        created: image.meta.created,
        writer: image.meta.writer.clone(),
        host: image.meta.host.clone(),
        kernel: image.meta.kernel.clone(),
        door: image.meta.door.clone(),
        pause_ms: image.meta.pause_ns as f64 / 1e6,
        labels: image.meta.labels.clone(),
        pid: image.process.pid,
        exe: text(&image.process.exe),
        cwd: text(&image.process.cwd),
        uid: image.process.uid[0],
        gid: image.process.gid[0],
        threads: image.threads.iter().map(|t| (t.tid, text(&t.comm))).collect(),
        processes: processes(&tree),
        whole_time_again: image
            .threads
            .iter()
            .filter(|t| t.restarted_call >= 0)
            .map(|t| (t.tid, sys::syscalls::name(t.restarted_call)))
            .collect(),
        seccomp_filters: image.threads.iter().map(|t| image.filters_of(t.tid).len()).max().unwrap_or(0),
        strict_seccomp: tree.all.iter().map(|i| i.strict.len()).sum(),
        mappings: vmas.len(),
        mapped_bytes: vmas.iter().filter(mapped).map(|v| v.end - v.start).sum(),
        recorded_bytes: image.memory.pages.iter().map(|r| r.pages * page).sum(),
        stored_bytes: handle.bytes(),
        files: image.memory.files.iter().map(|f| text(&f.path)).collect(),
        descriptors: image.files.fds.iter().map(descriptor).collect(),
        reported: image.meta.reported.clone(),
    })
}

fn processes(tree: &Tree<'_>) -> Vec<Process> {
    let text = |b: &[u8]| b.escape_ascii().to_string();
    let first = |of: &[usize], i: usize| of.get(i).filter(|f| **f != i).map(|f| tree.all[*f].process.pid);
    let living = tree.all.iter().enumerate().map(|(n, i)| Process {
        shares_fs: first(&tree.shared[FS], n),
        shares_files: first(&tree.shared[FILES], n),
        shares_handlers: first(&tree.shared[SIGHAND], n),
        shares_memory: first(&tree.shared[VM], n),
        pid: i.process.pid,
        parent: i.parent,
        door: Some(i.door.clone()),
        name: i.threads.first().map_or(String::new(), |t| text(&t.comm)),
        threads: i.threads.len(),
        first_ended: i.ended,
        ended: None,
    });
    let zombies = tree.zombies.iter().map(|z| Process {
        pid: z.pid,
        parent: z.parent,
        door: None,
        name: text(&z.comm),
        threads: 0,
        first_ended: None,
        shares_fs: None,
        shares_files: None,
        shares_handlers: None,
        shares_memory: None,
        ended: Some(z.status),
    });
    living.chain(zombies).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |b: u64| b as f64 / (1 << 20) as f64;
        writeln!(f, "checkpoint   {} ({})", self.n, self.identity)?;
        writeln!(f, "made by      {} on {} (Linux {}), door {}", self.writer, self.host, self.kernel, self.door)?;
        writeln!(f, "pause        {:.1} ms", self.pause_ms)?;
        writeln!(f, "process      PID {} of user {}:{}, {}", self.pid, self.uid, self.gid, self.exe)?;
        writeln!(f, "directory    {}", self.cwd)?;
        for p in self.processes.iter().skip(1) {
            let how = match (&p.door, p.ended) {
                (Some(door), _) => format!("door {door}, {} threads", p.threads),
                (None, status) => format!("has ended, wait status {:#x}", status.unwrap_or(0)),
            };
            writeln!(f, "process      PID {} below {} ({}), {how}", p.pid, p.parent, p.name)?;
        }
        writeln!(f, "threads      {}", self.threads.len())?;
        for p in &self.processes {
            if let Some(status) = p.first_ended {
                writeln!(f, "has ended    the first thread of PID {}, wait status {status:#x}", p.pid)?;
            }
        }
        for p in &self.processes {
            let all = [
                ("working directory and umask", p.shares_fs),
                ("descriptors", p.shares_files),
                ("signal handlers", p.shares_handlers),
                ("memory", p.shares_memory),
            ];
            for (what, with) in all {
                if let Some(with) = with {
                    writeln!(f, "shares       PID {} has its {what} together with PID {with}", p.pid)?;
                }
            }
        }
        writeln!(
            f,
            "memory       {} mappings, {:.1} MiB; {:.1} MiB recorded, {:.1} MiB on disk",
            self.mappings,
            mib(self.mapped_bytes),
            mib(self.recorded_bytes),
            mib(self.stored_bytes)
        )?;
        if self.seccomp_filters > 0 {
            writeln!(f, "seccomp      {} filters", self.seccomp_filters)?;
        }
        if self.strict_seccomp > 0 {
            writeln!(f, "seccomp      {} threads in strict mode", self.strict_seccomp)?;
        }
        for (tid, call) in &self.whole_time_again {
            writeln!(f, "in a call    thread {tid}: {call}, whose whole time starts again")?;
        }
        for d in &self.descriptors {
            writeln!(f, "descriptor   {:<4} {:<12} {}", d.fd, d.kind, d.what)?;
        }
        for p in &self.files {
            writeln!(f, "maps         {p}")?;
        }
        for r in &self.reported {
            writeln!(f, "not kept     {r}")?;
        }
        Ok(())
    }
}
