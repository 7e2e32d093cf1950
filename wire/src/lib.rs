//! The in-target contract: what a recorder (or a restorer) and the code inside a process say to each other.
//!
//! **The rule for changing this file:** every change to a struct, a constant's value or the meaning of a field
//! raises [`WIRE_VERSION`]. Data only: no dependency, no allocation, no unsafe, nothing that runs (but for the questions in
//! [`interrupted`]). The blob (`parasite`), the agent and the host (`sys`, `engine`) compile this very file.
//!
//! A conversation is a stream of frames over a socket: a [`FrameHeader`], then `len` bytes. The blob answers each
//! request with exactly one frame of the same `op` and `seq`. A frame that it does not understand is answered with
//! [`OP_ERROR`]; the end of the stream means that the recorder is gone, and everyone inside is released.
//!
//! The main request is [`OP_BATCH`]: a program of system calls. Its payload is a [`BatchHeader`], then `ncalls`
//! [`Call`]s, then `nrelocs` [`Reloc`]s, then `data_len` bytes of initial data. The blob copies the data into its
//! buffer (`buf_len` bytes, the rest zeroed), applies the relocations and runs the calls in order. Its answer is
//! a [`BatchReply`], then `done` results (i64, the raw kernel value), then the bytes `ret_off..ret_off + ret_len`
//! of the buffer.
#![no_std]
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod interrupted;

/// Version of everything in this file. A peer of another version is not talked to.
pub const WIRE_VERSION: u16 = 8;

/// A recorder's abstract name for a key, behind the family and the NUL: "dormouse-" and sixteen letters, 'a' to 'p', of the key's half bytes, the
/// lowest first.
pub const fn recorder_name(key: u64) -> [u8; 25] {
    let mut name = *b"dormouse-................";
    let mut i = 0;
    while i < 16 && 9 + i < name.len() {
        name[9 + i] = b'a' + (key >> (i * 4) & 15) as u8;
        i += 1;
    }
    name
}

/// First field of every frame: "DMse" in memory.
pub const FRAME_MAGIC: u32 = 0x6573_4d44;

/// A program of system calls, run by the serving thread.
pub const OP_BATCH: u16 = 1;
/// Make the snapshot child, which connects and serves too. Payload: [`ForkRequest`]; answer: [`ForkReply`].
pub const OP_FORK: u16 = 2;
/// Run programs on many parked threads at once. Payload: [`BatchHeader`] (whose `ncalls` counts all calls), then
/// [`ThreadProgram`]s (their count in `nthreads`), calls, relocations, data. Answer as for [`OP_BATCH`], results
/// in the order of the calls.
pub const OP_THREADS: u16 = 3;
/// Start threads (restore). Payload: `n` [`StartThread`]s. Answer: one i64 a thread (TID or -errno).
pub const OP_START: u16 = 4;
/// Ask who is there: answer is a [`Hello`].
pub const OP_HELLO: u16 = 5;
/// Become the init of a PID namespace: wait for children until `Reap::child` has ended and none is left. Payload:
/// [`Reap`]. There is no answer: the conversation ends, and each wait status (stops and continues too) goes to `status_fd` as an i32, and so
/// does each signal of `Reap::signals` that the child sends to it, as [`REAP_SIGNAL`] and its number.
pub const OP_REAP: u16 = 6;
/// Not a wait status (those have 16 bits) but a signal: its number is in the low byte.
pub const REAP_SIGNAL: i32 = 1 << 24;
/// Make a child process that serves on another socket (restore). Payload: [`SpawnRequest`]; answer: one i64 (its
/// PID, seen from the caller, or -errno).
pub const OP_SPAWN: u16 = 7;
/// Make one call in a child that shares the memory and has a user namespace of its own, and ends with it (restore): for what the kernel asks a
/// right of that its caller has there. Payload: [`AsideCall`], with data behind it; answer: one i64 (the call's result, if it is small or an error).
pub const OP_ASIDE: u16 = 9;
/// Answer to a request that was not understood. Payload: one i64, a -errno.
pub const OP_ERROR: u16 = 0xffff;

/// Largest payload of one frame, in bytes.
pub const MAX_PAYLOAD: u32 = 4 << 20;

/// Head of every frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// [`FRAME_MAGIC`].
    pub magic: u32,
    /// [`WIRE_VERSION`].
    pub version: u16,
    /// One of the `OP_` constants.
    pub op: u16,
    /// Bytes that follow this header; at most [`MAX_PAYLOAD`].
    pub len: u32,
    /// Chosen by the asker, repeated in the answer.
    pub seq: u32,
}

/// Argument is the value itself.
pub const ARG_IMM: u8 = 0;
/// Argument is an offset into the buffer; the call gets the address.
pub const ARG_BUF: u8 = 1;
/// Argument is the index of an earlier call of this program; the call gets its result.
pub const ARG_RET: u8 = 2;

/// A negative result ends the program (its result is the last one returned).
pub const CALL_MUST: u8 = 0;
/// Whatever the result, go on.
pub const CALL_MAY: u8 = 1;

/// Value of [`Call::store`] that stores nothing.
pub const NO_STORE: u32 = u32::MAX;

/// One system call of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// System call number (x86_64).
    pub nr: u32,
    /// Where to store the result's low 32 bits in the buffer (an offset), or [`NO_STORE`].
    pub store: u32,
    /// How each argument is meant: one of the `ARG_` constants.
    pub kinds: [u8; 6],
    /// What a failure means: one of the `CALL_` constants.
    pub on_error: u8,
    /// Zero.
    pub reserved: u8,
    /// The arguments.
    pub args: [u64; 6],
}

/// A pointer inside the buffer: the address of `target` is written at `at`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Offset of the pointer.
    pub at: u32,
    /// Offset of what it points to.
    pub target: u32,
}

/// Head of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// Number of calls.
    pub ncalls: u32,
    /// Number of relocations.
    pub nrelocs: u32,
    /// Bytes of initial data.
    pub data_len: u32,
    /// Bytes of buffer in use, at least `data_len`.
    pub buf_len: u32,
    /// Part of the buffer to return: offset.
    pub ret_off: u32,
    /// Part of the buffer to return: bytes.
    pub ret_len: u32,
    /// Number of [`ThreadProgram`]s ([`OP_THREADS`] only).
    pub nthreads: u32,
    /// Zero.
    pub reserved: u32,
}

/// Which calls of an [`OP_THREADS`] frame a parked thread runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadProgram {
    /// Index of the thread's slot.
    pub slot: u32,
    /// Index of its first call.
    pub first: u32,
    /// Number of its calls.
    pub ncalls: u32,
    /// Zero.
    pub reserved: u32,
}

/// Head of the answer to a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchReply {
    /// How many results follow. Fewer than asked: the last one is the failure.
    pub done: u32,
    /// Bytes of buffer that follow the results.
    pub ret_len: u32,
}

/// How to make the snapshot child.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkRequest {
    /// 1: the target is a child subreaper (PR_SET_CHILD_SUBREAPER) without children. It is none for the moment of the fork, or the
    /// child would be reparented to the target itself and not to the nearest subreaper above it. See [`SUBREAPER_ASIDE`].
    pub subreaper: u32,
    /// Zero.
    pub reserved: u32,
}

/// What making the snapshot child gave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkReply {
    /// The child's PID in the target's PID namespace, or -errno. The child then connects to [`Params::addr`]: the
    /// recorder learns from SO_PEERCRED which process it is in its own PID namespace, and closing that connection
    /// ends the child.
    pub pid: i64,
}

/// A thread to start (restore).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartThread {
    /// Slot to park in.
    pub slot: u32,
    /// TID to ask for in the innermost PID namespace; 0: any.
    pub tid: i32,
}

/// Arguments of [`OP_REAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reap {
    /// PID of the child whose status is reported.
    pub child: i32,
    /// Where its wait status goes.
    pub status_fd: i32,
    /// Signals that are passed on, bit n-1 for signal n. All signals are blocked.
    pub signals: u64,
}

/// Arguments of [`OP_SPAWN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnRequest {
    /// PID to ask for in the innermost PID namespace; 0: any.
    pub pid: i32,
    /// Descriptor on which the child serves. The parent's copy stays open.
    pub sock: i32,
    /// Exit signal of the child, normally SIGCHLD.
    pub exit_signal: i32,
    /// What it shares with the caller (`CLONE_` flags of clone(2)).
    pub shares: u32,
    /// With CLONE_VM: the [`Params`] with which the child serves, in a region of its own, whose socket is in there; else 0.
    pub params: u64,
    /// With CLONE_VM: top of the child's stack.
    pub stack: u64,
    /// With CLONE_VM: where it begins, the serving entry of its own copy of the blob.
    pub entry: u64,
}

/// Arguments of [`OP_ASIDE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsideCall {
    /// System call number.
    pub nr: u64,
    /// Its arguments; those of the kernel's fourth on are r10 and r8.
    pub args: [u64; 5],
}

/// Answer to [`OP_HELLO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the blob.
    pub version: u32,
    /// Bytes of buffer that programs may use.
    pub buf_size: u32,
    /// Thread slots.
    pub slots: u32,
    /// PID of the process, seen by itself.
    pub pid: i32,
}

/// Slot states: the value of [`Slot::futex`]. Parked, nothing to do.
pub const SLOT_IDLE: u32 = 0;
/// A program waits to be run.
pub const SLOT_RUN: u32 = 1;
/// The thread must leave through its frame.
pub const SLOT_LEAVE: u32 = 2;

/// Where a parked thread gets its work. Lives in the mapping, host and blob both write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// One of the `SLOT_` constants.
    pub state: u32,
    /// Number of calls.
    pub ncalls: u32,
    /// Address of the calls.
    pub calls: u64,
    /// Address of the results.
    pub results: u64,
    /// Address of the prepared `rt_sigframe` through which the thread leaves; 0: it exits instead.
    pub frame: u64,
    /// Address of the [`Params`].
    pub params: u64,
    /// Top of the thread's stack.
    pub stack: u64,
    /// TID, for the host's use.
    pub tid: i32,
    /// Zero.
    pub reserved: u32,
}

/// What the entry points get in `rdi`: lives in the mapping, filled in by the host before entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// [`WIRE_VERSION`] of the host; the blob refuses another.
    pub version: u32,
    /// Where to connect: 0: `sock` is already connected (restore); else the length of `addr`.
    pub addr_len: u32,
    /// An abstract or path `sockaddr_un`.
    pub addr: [u8; 112],
    /// Connected socket, filled in by the blob when it connects itself.
    pub sock: i32,
    /// Why the blob left: 0 while it serves, else an errno or [`LEFT_EOF`].
    pub left: i32,
    /// Address of the frame through which the serving thread leaves; 0: exit_group instead (restore).
    pub frame: u64,
    /// Address of the request buffer (calls, relocations, results).
    pub request: u64,
    /// Its bytes.
    pub request_len: u64,
    /// Address of the programs' data buffer.
    pub buf: u64,
    /// Its bytes.
    pub buf_len: u64,
    /// Address of the [`Slot`]s.
    pub slots: u64,
    /// How many.
    pub nslots: u64,
    /// Threads that have not yet finished their program; a futex.
    pub pending: u32,
    /// Set when everyone must leave.
    pub release: u32,
    /// What is unfinished while the snapshot child is made: [`FORKING`] and [`SUBREAPER_ASIDE`]. Whoever takes the serving thread
    /// out of the blob then has to finish it.
    pub forking: u32,
    /// Of the agent: slots taken.
    pub taken: u32,
    /// Of the agent: address of the calls that a thread makes as it comes in; the results of slot `i` are behind them ([`agent::OP_VISIT`]).
    pub visit: u64,
    /// Their number; 0: none.
    pub visit_calls: u32,
    /// Bytes of `buf` that each slot's have, from `i * visit_buf`.
    pub visit_buf: u32,
    /// Changes whenever slots have; the futex on which all parked threads wait.
    pub turn: u32,
    /// Zero.
    pub reserved: u32,
}

impl Params {
    /// All zero.
    pub const ZERO: Params = Params {
        version: 0,
        addr_len: 0,
        addr: [0; 112],
        sock: 0,
        left: 0,
        frame: 0,
        request: 0,
        request_len: 0,
        buf: 0,
        buf_len: 0,
        slots: 0,
        nslots: 0,
        pending: 0,
        release: 0,
        forking: 0,
        taken: 0,
        visit: 0,
        visit_calls: 0,
        visit_buf: 0,
        turn: 0,
        reserved: 0,
    };
}

/// `Params::forking`: there may be a middle process, a child whose exit signal is none, to be waited for.
pub const FORKING: u32 = 1;
/// `Params::forking`: the target is made no subreaper for the moment, though it is one.
pub const SUBREAPER_ASIDE: u32 = 2;

/// Where the mapping of a checkpoint goes in a target: "DORM" in hex, far from where kernels and programs put anything, so that what an
/// emergency exit left there is recognised, whether or not the kernel keeps names of anonymous mappings.
pub const HOME: u64 = 0x444f_524d_0000;
/// Where several processes have the same memory (CLONE_VM), each has such a mapping: their places are so many bytes apart.
pub const HOMES_APART: u64 = 256 << 20;
/// Most processes with the same memory.
pub const HOMES: u64 = 64;
/// Name of that mapping (PR_SET_VMA_ANON_NAME), shown in maps as `[anon:dormouse]`.
pub const MAPPING_NAME: &[u8] = b"dormouse\0";
/// Bytes for a frame's payload and the results.
pub const REQUEST: u64 = 2 << 20;
/// Bytes of programs' data.
pub const BUFFER: u64 = 1 << 20;
/// Bytes more of request for each thread that is visited.
pub const VISIT: u64 = 512;

/// `Params::left`: the recorder closed the socket.
pub const LEFT_EOF: i32 = 1000;
/// `Params::left`: the frame could not be understood.
pub const LEFT_BAD_FRAME: i32 = 1001;

/// First bytes of the blob.
pub const BLOB_MAGIC: [u8; 8] = *b"DORMBLOB";

/// Head of the blob, at offset 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// [`BLOB_MAGIC`].
    pub magic: [u8; 8],
    /// Offset of the serving entry: `rdi` = [`Params`], `rsp` = top of a stack.
    pub serve: u32,
    /// Offset of a thread's entry: `rdi` = its [`Slot`], `rsp` = top of a stack.
    pub thread: u32,
    /// Offset of a `syscall` instruction that is followed by `ret`.
    pub syscall_ret: u32,
    /// Offset of the `rt_sigreturn` stub.
    pub sigreturn: u32,
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// Offset of code that leaves through the frame whose address is in rdi, without a stack.
    pub leave: u32,
}
