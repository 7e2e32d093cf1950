//! The serve loop and the parked threads' loop: frames in, programs of system calls run, frames out.
use crate::arch::{copy, fill, leave, syscall6};
use core::mem::size_of;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use wire::agent::{VisitAnswer, VisitHeader, OP_VISIT};
use wire::*;

const SYS_CLOSE: u64 = 3;
const SYS_SENDTO: u64 = 44;
const SYS_RECVFROM: u64 = 45;
const SYS_SOCKET: u64 = 41;
const SYS_CONNECT: u64 = 42;
const SYS_EXIT: u64 = 60;
const SYS_FUTEX: u64 = 202;
const SYS_EXIT_GROUP: u64 = 231;
const MSG_NOSIGNAL: u64 = 0x4000;
const MSG_MORE: u64 = 0x8000;
const FUTEX_WAIT_PRIVATE: u64 = 128;
const FUTEX_WAKE_PRIVATE: u64 = 129;
const EINTR: i64 = -4;
const EINVAL: i64 = -22;
const E2BIG: i64 = -7;

/// A result slot that was not reached.
pub const NOT_RUN: i64 = i64::MIN;

/// System call with up to three arguments.
///
/// # Safety
/// As [`syscall6`].
#[inline(always)]
pub unsafe fn sys3(nr: u64, a: u64, b: u64, c: u64) -> i64 {
    // SAFETY: the caller's.
    unsafe { syscall6(nr, [a, b, c, 0, 0, 0]) }
}

/// Connects to the recorder; the socket or -errno. `Params::sock` says at every instant which descriptor is ours, so that
/// the tracer can close it too.
///
/// # Safety
/// `p` is the host's [`Params`].
pub unsafe fn connect(p: *mut Params) -> i64 {
    // SAFETY: socket and connect only read `addr`, which lies in the mapping.
    unsafe {
        let s = sys3(SYS_SOCKET, 1, 1 | 0o2000000, 0);
        if s < 0 {
            return s;
        }
        set_sock(p, s as i32);
        let r = sys3(SYS_CONNECT, s as u64, &raw const (*p).addr as u64, (*p).addr_len as u64);
        if r < 0 {
            disconnect(p);
            return r;
        }
        s
    }
}

/// Notes the connection, for whoever leaves to close.
///
/// # Safety
/// As [`converse`].
pub unsafe fn set_sock(p: *mut Params, s: i32) {
    // SAFETY: `p` is the host's.
    unsafe { (*(&raw const (*p).sock as *const AtomicI32)).store(s, SeqCst) }
}

/// Closes the connection.
///
/// # Safety
/// As [`converse`].
pub unsafe fn disconnect(p: *mut Params) {
    // SAFETY: the descriptor is ours.
    unsafe {
        sys3(SYS_CLOSE, (*p).sock as u64, 0, 0);
        set_sock(p, -1);
    }
}

/// Entry of the serving thread. Never returns: leaves through the frame, or ends the process (restore).
///
/// # Safety
/// Called once by the entry stub, with the host's [`Params`].
pub unsafe extern "C" fn serve(p: *mut Params) -> ! {
    // SAFETY: `p` points into the mapping that the host prepared and that nobody else uses.
    unsafe {
        let left = if (*p).version != WIRE_VERSION as u32 {
            LEFT_BAD_FRAME
        } else if (*p).addr_len != 0 {
            let s = connect(p);
            if s < 0 {
                -s as i32
            } else {
                let why = converse(p);
                disconnect(p);
                why
            }
        } else {
            converse(p)
        };
        (*(&raw const (*p).left as *const AtomicI32)).store(left, SeqCst);
        release_all(p, (*p).nslots);
        if (*p).frame != 0 {
            leave((*p).frame)
        }
        loop {
            sys3(SYS_EXIT_GROUP, 1, 0, 0);
        }
    }
}

/// Sends the threads parked in the first `n` slots away.
///
/// # Safety
/// As [`converse`]; `n <= nslots`.
pub unsafe fn release_all(p: *mut Params, n: u64) {
    // SAFETY: slots lie in the mapping.
    unsafe {
        (*(&raw const (*p).release as *const AtomicU32)).store(1, SeqCst);
        let mut i = 0;
        while i < n {
            state(slot(p, i)).store(SLOT_LEAVE, SeqCst);
            i += 1;
        }
        next_turn(p);
    }
}

/// Has all parked threads look at their slots: one call, for a thousand would take longer than all the threads' ways out.
///
/// # Safety
/// As [`converse`].
unsafe fn next_turn(p: *mut Params) {
    // SAFETY: `turn` lies in the mapping.
    unsafe {
        (*(&raw const (*p).turn as *const AtomicU32)).fetch_add(1, SeqCst);
        sys3(SYS_FUTEX, &raw const (*p).turn as u64, FUTEX_WAKE_PRIVATE, i32::MAX as u64);
    }
}

/// A slot's state.
///
/// # Safety
/// `s` lies in the mapping, for as long as the reference is used.
unsafe fn state<'a>(s: *mut Slot) -> &'a AtomicU32 {
    // SAFETY: the caller's.
    unsafe { &*(&raw const (*s).state as *const AtomicU32) }
}

/// Address of slot `i`.
///
/// # Safety
/// `i < nslots`.
pub unsafe fn slot(p: *mut Params, i: u64) -> *mut Slot {
    // SAFETY: the caller's bound.
    unsafe { ((*p).slots + i * size_of::<Slot>() as u64) as *mut Slot }
}

/// Reads exactly `n` bytes; false at the end of the stream.
///
/// # Safety
/// `n` bytes at `at` are the caller's.
unsafe fn recv_all(sock: i32, mut at: u64, mut n: u64) -> bool {
    while n > 0 {
        // SAFETY: `at..at+n` lies in the mapping, checked by the caller.
        let r = unsafe { syscall6(SYS_RECVFROM, [sock as u64, at, n, 0, 0, 0]) };
        if r == EINTR {
            continue;
        }
        if r <= 0 {
            return false;
        }
        at += r as u64;
        n -= r as u64;
    }
    true
}

/// Sends exactly `n` bytes; false if nobody takes them.
///
/// # Safety
/// `n` bytes at `at` are the caller's.
pub unsafe fn send_all(sock: i32, mut at: u64, mut n: u64, more: bool) -> bool {
    let flags = MSG_NOSIGNAL | if more { MSG_MORE } else { 0 };
    while n > 0 {
        // SAFETY: `at..at+n` lies in the mapping or on this stack.
        let r = unsafe { syscall6(SYS_SENDTO, [sock as u64, at, n, flags, 0, 0]) };
        if r == EINTR {
            continue;
        }
        if r <= 0 {
            return false;
        }
        at += r as u64;
        n -= r as u64;
    }
    true
}

/// Answers with a head and one value.
///
/// # Safety
/// `value` is readable for `len` bytes.
pub unsafe fn answer(p: *mut Params, h: &FrameHeader, op: u16, value: u64, len: u32) -> bool {
    let head = FrameHeader { magic: FRAME_MAGIC, version: WIRE_VERSION, op, len, seq: h.seq };
    // SAFETY: both lie on the stack or in the mapping.
    unsafe {
        send_all((*p).sock, &raw const head as u64, size_of::<FrameHeader>() as u64, len > 0)
            && send_all((*p).sock, value, len as u64, false)
    }
}

/// Answers with an errno.
///
/// # Safety
/// As [`converse`].
pub unsafe fn answer_error(p: *mut Params, h: &FrameHeader, errno: i64) -> bool {
    // SAFETY: `errno` lives until the call has returned.
    unsafe { answer(p, h, OP_ERROR, &raw const errno as u64, 8) }
}

/// Frames until the stream ends; why it ended.
///
/// # Safety
/// `p` is the host's [`Params`], and connected.
pub unsafe fn converse(p: *mut Params) -> i32 {
    let mut h = FrameHeader { magic: 0, version: 0, op: 0, len: 0, seq: 0 };
    loop {
        // SAFETY: the request buffer lies in the mapping and its length is checked before anything is read into it.
        let ok = unsafe {
            if !recv_all((*p).sock, &raw mut h as u64, size_of::<FrameHeader>() as u64) {
                return LEFT_EOF;
            }
            if h.magic != FRAME_MAGIC || h.version != WIRE_VERSION {
                answer_error(p, &h, EINVAL);
                return LEFT_BAD_FRAME;
            }
            if h.len as u64 > (*p).request_len {
                answer_error(p, &h, E2BIG);
                return LEFT_BAD_FRAME;
            }
            // a visit's calls lie where this request comes to be
            (*p).visit_calls = 0;
            if !recv_all((*p).sock, (*p).request, h.len as u64) {
                return LEFT_EOF;
            }
            match h.op {
                OP_BATCH => batch(p, &h, false),
                OP_THREADS => batch(p, &h, true),
                OP_VISIT => keep_visit(p, &h),
                OP_FORK => crate::snapshot::fork(p, &h),
                OP_START => crate::place::start(p, &h),
                OP_SPAWN => crate::place::spawn(p, &h),
                OP_REAP => crate::place::reap(p, &h),
                OP_ASIDE => crate::place::aside(p, &h),
                OP_HELLO => {
                    let hello = Hello {
                        version: WIRE_VERSION as u32,
                        buf_size: (*p).buf_len as u32,
                        slots: (*p).nslots as u32,
                        pid: sys3(39, 0, 0, 0) as i32,
                    };
                    answer(p, &h, OP_HELLO, &raw const hello as u64, size_of::<Hello>() as u32)
                }
                _ => answer_error(p, &h, EINVAL),
            }
        };
        if !ok {
            return LEFT_EOF;
        }
    }
}

/// Runs a program (or, with `threads`, many at once) and answers with its results.
///
/// # Safety
/// As [`converse`].
unsafe fn batch(p: *mut Params, h: &FrameHeader, threads: bool) -> bool {
    // SAFETY: every offset is checked against the payload's and the buffer's length before it is used.
    unsafe {
        let req = (*p).request;
        let len = h.len as u64;
        if len < size_of::<BatchHeader>() as u64 {
            return answer_error(p, h, EINVAL);
        }
        let b = core::ptr::read_unaligned(req as *const BatchHeader);
        let progs = req + size_of::<BatchHeader>() as u64;
        let nthreads = if threads { b.nthreads as u64 } else { 0 };
        let calls = progs + nthreads * size_of::<ThreadProgram>() as u64;
        let relocs = calls + b.ncalls as u64 * size_of::<Call>() as u64;
        let data = relocs + b.nrelocs as u64 * size_of::<Reloc>() as u64;
        let end = data + b.data_len as u64;
        // the results follow the payload, aligned
        let results = (end + 7) & !7;
        let bad = end != req + len
            || results + b.ncalls as u64 * 8 > req + (*p).request_len
            || b.buf_len as u64 > (*p).buf_len
            || b.data_len > b.buf_len
            || b.ret_off as u64 + b.ret_len as u64 > b.buf_len as u64;
        if bad {
            return answer_error(p, h, EINVAL);
        }
        let buf = (*p).buf;
        copy(buf, data, b.data_len as u64);
        fill(buf + b.data_len as u64, 0, (b.buf_len - b.data_len) as u64);
        let mut i = 0;
        while i < b.nrelocs as u64 {
            let r = core::ptr::read_unaligned((relocs + i * 8) as *const Reloc);
            if r.at as u64 + 8 > b.buf_len as u64 || r.target > b.buf_len {
                return answer_error(p, h, EINVAL);
            }
            core::ptr::write_unaligned((buf + r.at as u64) as *mut u64, buf + r.target as u64);
            i += 1;
        }
        let mut i = 0;
        while i < b.ncalls as u64 {
            core::ptr::write((results + i * 8) as *mut i64, NOT_RUN);
            i += 1;
        }
        let mut done = b.ncalls;
        if threads {
            if !run_threads(p, progs, nthreads, calls, results, b.ncalls as u64) {
                return answer_error(p, h, EINVAL);
            }
        } else {
            done = run(buf, calls, results, b.ncalls as u64, b.buf_len as u64) as u32;
        }
        let reply = BatchReply { done, ret_len: b.ret_len };
        let total = size_of::<BatchReply>() as u32 + done * 8 + b.ret_len;
        let head = FrameHeader { magic: FRAME_MAGIC, version: WIRE_VERSION, op: h.op, len: total, seq: h.seq };
        let s = (*p).sock;
        send_all(s, &raw const head as u64, size_of::<FrameHeader>() as u64, true)
            && send_all(s, &raw const reply as u64, size_of::<BatchReply>() as u64, done > 0 || b.ret_len > 0)
            && send_all(s, results, done as u64 * 8, b.ret_len > 0)
            && send_all(s, buf + b.ret_off as u64, b.ret_len as u64, false)
    }
}

/// Keeps the calls that threads of the agent's make as they come in.
///
/// # Safety
/// As [`converse`].
unsafe fn keep_visit(p: *mut Params, h: &FrameHeader) -> bool {
    // SAFETY: the payload is as long as is said; that all slots' results and parts of the buffer have room is checked.
    unsafe {
        let req = (*p).request;
        if (h.len as usize) < size_of::<VisitHeader>() {
            return answer_error(p, h, EINVAL);
        }
        let v = core::ptr::read_unaligned(req as *const VisitHeader);
        let at = req + size_of::<VisitHeader>() as u64;
        let results = at + v.ncalls as u64 * size_of::<Call>() as u64;
        if results != req + h.len as u64
            || results + (*p).nslots * v.ncalls as u64 * 8 > req + (*p).request_len
            || (*p).nslots * v.buf as u64 > (*p).buf_len
        {
            return answer_error(p, h, E2BIG);
        }
        (*p).visit = at;
        (*p).visit_buf = v.buf;
        (*p).visit_calls = v.ncalls;
        let a = VisitAnswer { results, buf: (*p).buf };
        answer(p, h, OP_VISIT, &raw const a as u64, size_of::<VisitAnswer>() as u32)
    }
}

/// Makes the visit's calls for slot `i`, if there are any; whether there are.
///
/// # Safety
/// `i < nslots`, and the slot is this thread's. The recorder makes no other request meanwhile.
pub unsafe fn visit(p: *mut Params, i: u64) -> bool {
    // SAFETY: `keep_visit` has seen that there is room for this slot.
    unsafe {
        let (calls, n, len) = ((*p).visit, (*p).visit_calls as u64, (*p).visit_buf as u64);
        let results = calls + n * size_of::<Call>() as u64 + i * n * 8;
        n != 0 && run((*p).buf + i * len, calls, results, n, len) == n
    }
}

/// Runs `n` calls; how many were run. Parked threads run it too, so it is written such that no vector register is needed: field
/// by field, no array filled in memory (payload/build.rs looks at what became of it). `buf` is where their buffer is.
///
/// # Safety
/// As [`converse`].
unsafe fn run(buf: u64, calls: u64, results: u64, n: u64, buf_len: u64) -> u64 {
    let mut i = 0;
    while i < n {
        // SAFETY: `calls` and `results` hold `n` entries (checked by the caller); what the calls themselves do is
        // the recorder's business, and the kernel checks the addresses.
        unsafe {
            let c = (calls + i * size_of::<Call>() as u64) as *const Call;
            let mut bad = false;
            let mut arg = |k: usize| {
                let v = core::ptr::read_unaligned((&raw const (*c).args).cast::<u64>().add(k));
                match *(&raw const (*c).kinds).cast::<u8>().add(k) {
                    ARG_IMM => v,
                    ARG_BUF if v <= buf_len => buf + v,
                    ARG_RET if v < i => core::ptr::read((results + v * 8) as *const u64),
                    _ => {
                        bad = true;
                        0
                    }
                }
            };
            let a = [arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)];
            let nr = core::ptr::read_unaligned(&raw const (*c).nr);
            let r = if bad { EINVAL } else { syscall6(nr as u64, a) };
            core::ptr::write((results + i * 8) as *mut i64, r);
            let store = core::ptr::read_unaligned(&raw const (*c).store);
            if store != NO_STORE && store as u64 + 4 <= buf_len {
                core::ptr::write_unaligned((buf + store as u64) as *mut u32, r as u32);
            }
            i += 1;
            if (*c).on_error == CALL_MUST && (-4095..0).contains(&r) {
                return i;
            }
        }
    }
    n
}

/// Hands programs to parked threads and waits until `pending` is zero. False, and none is handed over, if one is for a slot in which nobody is, or two
/// are for the same: for those would be waited for ever.
///
/// # Safety
/// As [`converse`].
unsafe fn run_threads(p: *mut Params, progs: u64, n: u64, calls: u64, results: u64, ncalls: u64) -> bool {
    // SAFETY: slot and call indexes are checked against their counts.
    unsafe {
        let pending = &*(&raw const (*p).pending as *const AtomicU32);
        let mut i = 0;
        while i < n {
            let t = core::ptr::read_unaligned((progs + i * 16) as *const ThreadProgram);
            if t.slot as u64 >= (*p).nslots || t.first as u64 + t.ncalls as u64 > ncalls {
                return false;
            }
            let s = slot(p, t.slot as u64);
            if (*s).params == 0 {
                return false;
            }
            (*s).ncalls = i as u32;
            i += 1;
        }
        let mut i = 0;
        while i < n {
            let t = core::ptr::read_unaligned((progs + i * 16) as *const ThreadProgram);
            if (*slot(p, t.slot as u64)).ncalls != i as u32 {
                return false;
            }
            i += 1;
        }
        pending.fetch_add(n as u32, SeqCst);
        let mut i = 0;
        while i < n {
            let t = core::ptr::read_unaligned((progs + i * 16) as *const ThreadProgram);
            let s = slot(p, t.slot as u64);
            (*s).ncalls = t.ncalls;
            (*s).calls = calls + t.first as u64 * size_of::<Call>() as u64;
            (*s).results = results + t.first as u64 * 8;
            state(s).store(SLOT_RUN, SeqCst);
            i += 1;
        }
        next_turn(p);
        wait_pending(p);
        true
    }
}

/// Waits until every thread that has a program has run it.
///
/// # Safety
/// As [`converse`].
unsafe fn wait_pending(p: *mut Params) {
    // SAFETY: `pending` lies in the mapping.
    unsafe {
        let pending = &*(&raw const (*p).pending as *const AtomicU32);
        loop {
            let v = pending.load(SeqCst);
            if v == 0 {
                return;
            }
            syscall6(SYS_FUTEX, [&raw const (*p).pending as u64, FUTEX_WAIT_PRIVATE, v as u64, 0, 0, 0]);
        }
    }
}

/// What a parked thread does: runs programs until it is sent away.
///
/// # Safety
/// `s` is the thread's own [`Slot`], and `Slot::params` is set.
#[inline(always)]
pub unsafe fn work(s: *mut Slot) {
    // SAFETY: the slot and what it points to lie in the mapping; host and serving thread hand it over by its state.
    unsafe {
        let state = state(s);
        let p = (*s).params as *mut Params;
        let turn = &*(&raw const (*p).turn as *const AtomicU32);
        loop {
            // before the slot: what changes after that ends the wait
            let now = turn.load(SeqCst);
            match state.load(SeqCst) {
                SLOT_RUN => {
                    run((*p).buf, (*s).calls, (*s).results, (*s).ncalls as u64, (*p).buf_len);
                    // a release may have come meanwhile: only RUN becomes IDLE
                    let _ = state.compare_exchange(SLOT_RUN, SLOT_IDLE, SeqCst, SeqCst);
                    let pending = &*(&raw const (*p).pending as *const AtomicU32);
                    if pending.fetch_sub(1, SeqCst) == 1 {
                        sys3(SYS_FUTEX, &raw const (*p).pending as u64, FUTEX_WAKE_PRIVATE, 1);
                    }
                }
                SLOT_LEAVE => return,
                // it came so late that its slot was not counted when all were sent away
                _ if (*(&raw const (*p).release as *const AtomicU32)).load(SeqCst) != 0 => return,
                _ => {
                    syscall6(SYS_FUTEX, [turn.as_ptr() as u64, FUTEX_WAIT_PRIVATE, now as u64, 0, 0, 0]);
                }
            }
        }
    }
}

/// Loop of a parked thread, and its way out.
///
/// # Safety
/// Called by the entry stub with the thread's own [`Slot`].
pub unsafe extern "C" fn thread(s: *mut Slot) -> ! {
    // SAFETY: as `work`; the frame was prepared by the host.
    unsafe {
        work(s);
        if (*s).frame != 0 {
            leave((*s).frame)
        }
        loop {
            sys3(SYS_EXIT, 0, 0, 0);
        }
    }
}
