//! Processes and threads.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// PID in its innermost PID namespace.
    pub pid: i32,
    /// Process group, likewise; 0: outside the namespace.
    pub pgid: i32,
    /// Session, likewise; 0: outside the namespace.
    pub sid: i32,
    /// What its parent is sent when it ends (clone(2)): a signal, or 0: nothing. None: SIGCHLD.
    pub exit_signal: Option<i32>,
    /// Foreground process group of its controlling terminal was its own.
    pub foreground: bool,
    /// Device of the controlling terminal; 0: none.
    pub tty: u64,
    /// Real, effective, saved, file-system UID.
    pub uid: [u32; 4],
    /// The same of the GID.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub caps: [u64; 5],
    /// Secure bits, prctl(2).
    pub securebits: u32,
    /// no_new_privs.
    pub no_new_privs: bool,
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// umask.
    pub umask: u32,
    /// Working directory.
    pub cwd: ByteBuf,
    /// That was deleted.
    pub cwd_deleted: bool,
    /// Root directory.
    pub root: ByteBuf,
    /// Executable.
    pub exe: ByteBuf,
    /// Personality, personality(2).
    pub personality: u32,
    /// Soft and hard limits in the kernel's order; unlimited is all ones.
    pub rlimits: Vec<(u64, u64)>,
    /// oom_score_adj.
    pub oom_score_adj: i32,
    /// coredump_filter.
    pub coredump_filter: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: bool,
    /// PR_GET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// PR_GET_MDWE: PR_MDWE_ bits.
    pub mdwe: u32,
    /// MCL_FUTURE, and MCL_ONFAULT, of mlockall(2): what it maps from here on is locked.
    pub mlockall: u32,
    /// struct prctl_mm_map's addresses: start_code, end_code, start_data, end_data, start_brk, brk, start_stack,
    /// arg_start, arg_end, env_start, env_end.
    pub mm: [u64; 11],
    /// The auxiliary vector as /proc/PID/auxv gives it.
    pub auxv: ByteBuf,
    /// `struct kernel_sigaction` of signals 1 to 64, 32 bytes each.
    pub sigactions: ByteBuf,
    /// Signals pending for the process: siginfo, 128 bytes each, in order.
    pub pending: Vec<ByteBuf>,
    /// ITIMER_REAL, VIRTUAL, PROF: interval and value in microseconds.
    pub itimers: Vec<(u64, u64)>,
    /// membarrier(2) registrations: the register commands, or'ed.
    pub membarrier: u32,
    /// POSIX timers by ID.
    pub timers: Vec<PosixTimer>,
    /// It was stopped (SIGSTOP and kin), and is again after a restore.
    pub stopped: bool,
}

/// A POSIX timer, timer_create(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixTimer {
    /// ID as the program knows it.
    pub id: i32,
    /// Clock.
    pub clock: i32,
    /// SIGEV_ constant.
    pub notify: i32,
    /// Signal.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread for SIGEV_THREAD_ID, in its innermost PID namespace.
    pub tid: i32,
    /// Interval, nanoseconds.
    pub interval_ns: u64,
    /// Time left, nanoseconds; 0: disarmed.
    pub value_ns: u64,
}

/// A thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thread {
    /// TID in its innermost PID namespace.
    pub tid: i32,
    /// `struct user_regs_struct`, 27 words; an interrupted system call is already set to be issued again.
    pub regs: Vec<u64>,
    /// Extended state, standard format.
    pub xstate: ByteBuf,
    /// Signal mask.
    pub sigmask: u64,
    /// ss_sp, ss_flags, ss_size of the alternate signal stack.
    pub altstack: (u64, u32, u64),
    /// clear_child_tid.
    pub clear_child_tid: u64,
    /// Robust list: head and length.
    pub robust: (u64, u64),
    /// rseq: address, size, signature, flags.
    pub rseq: (u64, u32, u32, u32),
    /// Name.
    pub comm: ByteBuf,
    /// CPU mask, lowest CPU first.
    pub affinity: ByteBuf,
    /// Policy, priority, nice.
    pub sched: (u32, u32, i32),
    /// Timer slack, nanoseconds.
    pub timerslack: u64,
    /// PR_GET_PDEATHSIG.
    pub pdeathsig: i32,
    /// PR_GET_TSC is PR_TSC_SIGSEGV.
    pub no_tsc: bool,
    /// arch_prctl(2), ARCH_GET_CPUID is 0: the instruction is a fault.
    pub no_cpuid: bool,
    /// PR_GET_SPECULATION_CTRL of PR_SPEC_STORE_BYPASS, INDIRECT_BRANCH and L1D_FLUSH; 0: not known, or not affected.
    pub speculation: [u32; 3],
    /// PR_GET_IO_FLUSHER.
    pub io_flusher: bool,
    /// PR_MCE_KILL_GET: PR_MCE_KILL_LATE or PR_MCE_KILL_EARLY; None: the default.
    pub mce_kill: Option<u32>,
    /// I/O priority, ioprio_get(2).
    pub ioprio: u32,
    /// NUMA policy (MPOL_ constant with its flags) and nodes, bit n for node n; 0: the default.
    pub mempolicy: (u32, u64),
    /// Signals pending for the thread: siginfo, 128 bytes each, in order.
    pub pending: Vec<ByteBuf>,
    /// Which call it was in, if its time-out starts again as a whole: number, else -1.
    pub restarted_call: i64,
}
