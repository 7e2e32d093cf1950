//! What the kernel has: its version, the calls that a checkpoint and a restore need, and those that make them fast.
use super::{from_probe, read, Line, Me, Status};
use sys::probe::{self, Tracee};

pub fn version() -> Line {
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

pub fn checkpoint_restore(me: &Me) -> Line {
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

pub fn tracing(me: &Me) -> Vec<Line> {
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

pub fn features(me: &Me) -> Vec<Line> {
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
