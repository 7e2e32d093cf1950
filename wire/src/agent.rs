//! Door 1: what the preloaded agent and its recorder have agreed on beyond the conversation itself.
//!
//! A recorder sends [`AGENT_SIGNAL`] to each thread (rt_tgsigqueueinfo), with an [`AgentInfo`] as its siginfo. The thread that gets
//! [`code_serve`] maps a region at [`crate::HOME`], connects to the recorder's abstract socket (its name follows from the nonce)
//! and serves; the others get [`code_park`], and park. Each says so with an [`OP_ARRIVED`] frame over the server's connection, which nobody has asked
//! for: the recorder takes these before its first request. When the stream ends, all are released.
use crate::FrameHeader;

/// The real-time signal by which threads are called into the agent (SIGRTMAX - 1).
pub const AGENT_SIGNAL: i32 = 63;
/// Where the agent's page is: "DOR" and zeros, below [`crate::HOME`] and everything that grows from there.
pub const AGENT_PAGE: u64 = 0x444f_5200_0000;
/// First bytes of the page.
pub const AGENT_MAGIC: [u8; 8] = *b"DORMAGNT";
/// Name of the page's mapping (PR_SET_VMA_ANON_NAME). It is the program's, and stored with it.
pub const AGENT_NAME: &[u8] = b"agent.dormouse\0";

/// A thread has come in. Payload: [`Arrived`]. Sent by the agent, not an answer.
pub const OP_ARRIVED: u16 = 8;

/// The calls that each thread is to make as it comes in, before it says so: to be sent before the others are called. Payload: a [`VisitHeader`],
/// then the calls, whose places in the buffer are in the thread's own part of it. Answer: a [`VisitAnswer`].
pub const OP_VISIT: u16 = 10;

/// Before the calls of an [`OP_VISIT`] frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisitHeader {
    /// Number of calls.
    pub ncalls: u32,
    /// Bytes of buffer for each thread.
    pub buf: u32,
}

/// Where the answers will be, until the next request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisitAnswer {
    /// Address of slot 0's results, an i64 a call; the other slots' follow.
    pub results: u64,
    /// Address of slot 0's part of the buffer; the other slots' follow.
    pub buf: u64,
}

/// siginfo code that calls a thread to serve.
pub const fn code_serve() -> i32 {
    -(0x4400 + crate::WIRE_VERSION as i32)
}

/// siginfo code that calls a thread to serve a recorder that may not look at the process: should that not be dumpable, it is while it is served.
pub const fn code_open() -> i32 {
    -(0x4580 + crate::WIRE_VERSION as i32)
}

/// siginfo code that calls a thread to park.
pub const fn code_park() -> i32 {
    -(0x4500 + crate::WIRE_VERSION as i32)
}

/// Whether a siginfo code is a recorder's, of this version or another.
pub const fn is_recorders(code: i32) -> bool {
    -code >= 0x4400 && -code < 0x4600
}

/// What is at [`AGENT_PAGE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentPage {
    /// [`AGENT_MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::WIRE_VERSION`].
    pub version: u32,
    /// [`AGENT_SIGNAL`].
    pub signal: u32,
    /// Address of the handler.
    pub handler: u64,
    /// High half: the session that parks threads at the moment (never 0), or 0. Low half: threads inside for it, a futex.
    pub state: u64,
    /// `AGENT_` bits.
    pub flags: u32,
    /// The PID for which `covered` counts: a forked process counts anew.
    pub pid: i32,
    /// Threads, beside the first, that have an alternate signal stack of the agent's.
    pub covered: u32,
    /// How often the program has begun to set a seccomp filter, by a function of libc. The handler makes no call if these are others than its recorder knows.
    /// Strict mode counts only where the thread could not block the signal before.
    pub filters_begun: u32,
    /// What the program has set for the signal: handler, flags, mask.
    pub action: [u64; 3],
    /// Signals that are triggers of the session whose program this is; 0: none.
    pub triggers: [i32; TRIGGERS],
    /// To whom they are passed on: the program's parent, as it sees it.
    pub parent: i32,
    /// The program's PID, as it sees it: a process that it forks is another.
    pub program: i32,
    /// What the program has set for each of them, as `action`.
    pub kept: [[u64; 3]; TRIGGERS],
    /// How often it has set one, or failed to; not yet `filters_begun`: it is in the middle of it.
    pub filters_ended: u32,
    /// Bytes from [`AGENT_FILTERS`] on in which filters are kept: instructions (u32), flags (u32), the instructions (8 bytes each); the oldest first.
    pub filters_used: u32,
}

/// Signals that can be triggers at once.
pub const TRIGGERS: usize = 2;
/// Beginning of the line in the environment by which launcher tells the agent of triggers. Behind it are numbers with commas between: [`TRIGGERS`] signals,
/// the supervisor's PID, and [`TRIGGERS_PID`] digits in which the first agent that finds itself its child notes its own PID, so that no process below is
/// taken for the program.
pub const TRIGGERS_LINE: &[u8] = b"DORMOUSE_TRIGGERS=";
/// Digits of the program's PID.
pub const TRIGGERS_PID: usize = 10;

/// [`AgentPage::flags`]: a filter could not be kept, or not in its order.
pub const AGENT_FILTERS_LOST: u32 = 1;
/// [`AgentPage::flags`]: the program has set an alternate stack that is small.
pub const AGENT_SMALL_STACK: u32 = 2;
/// [`AgentPage::flags`]: a thread has begun to have its system calls dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH), by a function of libc: no call of
/// ours may be made there. An agent of version 5 does not say it.
pub const AGENT_DISPATCHED: u32 = 4;
/// Bytes of a thread's alternate stack; the first thread's lies behind the page.
pub const AGENT_STACK: u64 = 64 << 10;
/// Where filters are kept: behind that stack.
pub const AGENT_FILTERS: u64 = AGENT_PAGE + 4096 + AGENT_STACK;
/// Room for as many as the kernel takes of a thread (MAX_INSNS_PER_PATH instructions of 8 bytes, in which each filter counts four more).
pub const AGENT_FILTERS_LEN: u64 = 256 << 10;

/// The first 48 bytes of the siginfo.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// [`AGENT_SIGNAL`].
    pub signo: i32,
    /// To serve: how many slots for others; to park: the thread's TID as its recorder sees it.
    pub number: i32,
    /// [`code_serve`], [`code_open`] or [`code_park`].
    pub code: i32,
    /// [`AgentPage::filters_begun`] as its recorder knows it, and [`NO_VM_READV`].
    pub filters: u32,
    /// Sender.
    pub pid: i32,
    /// Sender.
    pub uid: u32,
    /// Names the recorder's socket.
    pub nonce: u64,
    /// The system call that the thread was seen in, or -1.
    pub call: i32,
    /// Low half of its instruction pointer there.
    pub pc: u32,
    /// [`crate::interrupted::fingerprint`] of its stack pointer and arguments there.
    pub print: u64,
}

/// [`AgentInfo::filters`]: process_vm_readv(2) is not let through.
pub const NO_VM_READV: u32 = 1 << 31;

/// Bytes of `ucontext` up to and with the signal mask.
pub const UCONTEXT: usize = 304;

/// What a thread says of itself as it comes in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// [`AgentInfo::number`] of a parked thread; of the serving one 0.
    pub tid: i32,
    /// Its slot; -1: it serves.
    pub slot: i32,
    /// The serving thread's connection; else -1.
    pub sock: i32,
    /// `ARRIVED_` bits.
    pub flags: u32,
    /// TLS base.
    pub fs_base: u64,
    /// The other base.
    pub gs_base: u64,
    /// ds, es, fs, gs in 16 bits each, ascending.
    pub segments: u64,
    /// rseq registration: address, or 0.
    pub rseq: u64,
    /// Its bytes.
    pub rseq_len: u32,
    /// Its signature.
    pub rseq_sig: u32,
    /// The interrupted call, or -1: it was in none that is not simply issued again.
    pub call: i64,
    /// The region: start and bytes (the serving thread says it).
    pub base: u64,
    /// See `base`.
    pub len: u64,
    /// The beginning of its `ucontext`, as the kernel put it.
    pub context: [u64; UCONTEXT / 8],
}

/// [`Arrived::flags`]: an rseq area is registered, and it is none that is known.
pub const ARRIVED_RSEQ_UNKNOWN: u32 = 1;

/// [`Arrived::flags`]: it has made the calls of [`OP_VISIT`].
pub const ARRIVED_VISITED: u32 = 4;
/// [`Arrived::flags`]: the process is not dumpable (PR_SET_DUMPABLE 0), and is so only now, until its agent has let everybody go.
pub const ARRIVED_OPENED: u32 = 2;

/// Bytes of an [`OP_ARRIVED`] frame.
pub const ARRIVAL: usize = size_of::<FrameHeader>() + size_of::<Arrived>();
