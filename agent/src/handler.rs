//! The signal handler: a thread parks, or serves its recorder, and goes on as if nothing had been.
use crate::arch;
use crate::context::Context;
use crate::deadline::{self, Stay};
use crate::interpose::foreign;
use crate::page::{self, state};
use crate::start::{map, unmap};
use core::mem::{size_of, MaybeUninit};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use parasite::arch::{copy, syscall6};
use parasite::serve::{connect, converse, disconnect, release_all, send_all, slot, sys3, visit, work};
use wire::agent::*;
use wire::interrupted::{Onward, RESTART_SYSCALL};
use wire::*;

const SYS_RT_SIGACTION: u64 = 13;
const SYS_RT_SIGPROCMASK: u64 = 14;
const SIG_SETMASK: u64 = 2;
const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
/// The last one that is no real-time signal.
const LAST_OF_OLD: u64 = 31;
/// SIGCHLD, SIGURG, SIGWINCH (signal(7)).
const IGNORED_BY_DEFAULT: u64 = 1 << 16 | 1 << 22 | 1 << 27;
const SYS_GETPID: u64 = 39;
const SYS_GETEUID: u64 = 107;
const SYS_GETTID: u64 = 186;
const SYS_TGKILL: u64 = 234;
const SYS_RT_SIGPENDING: u64 = 127;
const SYS_SIGALTSTACK: u64 = 131;
const SYS_PRCTL: u64 = 157;
const SYS_ARCH_PRCTL: u64 = 158;
const SYS_FUTEX: u64 = 202;
const SYS_GETSOCKOPT: u64 = 55;
const SYS_PROCESS_VM_READV: u64 = 310;
const SYS_RSEQ: u64 = 334;
const SA_RESTART: u64 = 0x1000_0000;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
const FUTEX_WAIT_PRIVATE: u64 = 128;
const FUTEX_WAKE_PRIVATE: u64 = 129;
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const SOL_SOCKET: u64 = 1;
const SO_PEERCRED: u64 = 17;
const EBUSY: i64 = -16;
const RSEQ_SIG: u32 = 0x5305_3053;
const RSEQ_LEN: u32 = 32;
const PAGE: u64 = 4096;
const LOW: u64 = 0xffff_ffff;

/// The handler. All signals are blocked while it runs; in the serving thread all but those that the program ignores ([`drop_ignored`]).
///
/// # Safety
/// Called by the kernel.
pub unsafe extern "C" fn on_signal(_: i32, info: *const AgentInfo, context: *mut Context) {
    // SAFETY: both are the kernel's, on this thread's stack, for as long as the handler runs.
    unsafe {
        let (i, c) = (&*info, &mut *context);
        let call = c.interrupted(i);
        if is_recorders(i.code) && page::filters_begun().load(SeqCst) != i.filters & !NO_VM_READV {
            // no call may be made: there is a filter that its recorder has not judged. That sees it too, and nobody come
            return c.again_if(call);
        }
        let reads = i.filters & NO_VM_READV == 0;
        let stay = Stay::begin(call, reads);
        if i.code == code_serve() || i.code == code_open() {
            serve(i, c, call);
        } else if i.code == code_park() {
            park(i, c, call);
        } else if !is_recorders(i.code) {
            if foreign(info as u64, context as u64) {
                die();
            }
            return; // its EINTR is the program's
        }
        go_on(i, c, call, reads, stay);
    }
}

/// Goes on as if there had been no signal. `reads`: process_vm_readv may be called. `stay`: how long there was one.
///
/// # Safety
/// As [`on_signal`], with the context's interrupted call.
pub unsafe fn go_on(i: &AgentInfo, c: &mut Context, call: Option<i64>, reads: bool, stay: Stay) {
    // SAFETY: the caller's.
    unsafe {
        let ended = waiting(c, call, reads);
        match (c.onward(call), call) {
            // the program's own signal came meanwhile: it has a handler, which ends such calls
            (_, Some(_)) if ended != Ends::Not => {}
            (_, None) if ended == Ends::All && c.restarted(i) => c.end(),
            (Onward::Again, Some(nr)) => {
                stay.over(c, nr);
                c.again(nr)
            }
            (Onward::AgainWhole, Some(nr)) => {
                if reads {
                    deadline::correct(c, nr);
                }
                c.again(nr)
            }
            (Onward::Resume, Some(_)) => {
                c.again(RESTART_SYSCALL);
                resume(c)
            }
            _ if c.resuming() => resume(c),
            _ => {}
        }
    }
}

/// The way out that is not rt_sigreturn.
///
/// # Safety
/// As [`on_signal`]; nothing of the handler is used any more.
unsafe fn resume(c: &Context) -> ! {
    // SAFETY: the caller's.
    unsafe {
        if let Some(stack) = c.disarmed() {
            // a handler of the program's would begin at the top of that stack, where this frame may lie
            let all = !0u64;
            syscall6(SYS_RT_SIGPROCMASK, [SIG_SETMASK, &raw const all as u64, 0, 8, 0, 0]);
            sys3(SYS_SIGALTSTACK, stack as u64, 0, 0);
        }
        arch::resume(c)
    }
}

/// The signal's own effect, as soon as it is unblocked.
///
/// # Safety
/// The program has no handler for it.
unsafe fn die() {
    let default = [0u64; 4];
    // SAFETY: the kernel reads an action (four words).
    unsafe {
        syscall6(SYS_RT_SIGACTION, [AGENT_SIGNAL as u64, default.as_ptr() as u64, 0, 8, 0, 0]);
        let (pid, tid) = (sys3(SYS_GETPID, 0, 0, 0) as u64, sys3(SYS_GETTID, 0, 0, 0) as u64);
        sys3(SYS_TGKILL, pid, tid, AGENT_SIGNAL as u64);
    }
}

/// Which calls the handler of a signal ends that waits for the thread to be let go.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// None: there is no such signal.
    Not,
    /// Those that SA_RESTART does not help.
    Some,
    /// All that a signal can end.
    All,
}

/// Looks for signals of the program's own that have a handler and will be delivered as the thread leaves: the lowest comes first. `may_read`: the
/// call's own mask can be read; else all that is pending counts.
///
/// # Safety
/// As [`on_signal`].
unsafe fn waiting(c: &Context, call: Option<i64>, may_read: bool) -> Ends {
    let mut pending = 0u64;
    // SAFETY: the kernel writes a signal set, and an action (four words); it reads the call's mask itself.
    unsafe {
        sys3(SYS_RT_SIGPENDING, &raw mut pending as u64, 8, 0);
        pending &= !c.mask();
        pending &= !page::ours_of(pending);
        if pending == 0 {
            return Ends::Not;
        }
        if let Some((at, indirect)) = call.and_then(|nr| c.mask_of_call(nr)).filter(|_| may_read) {
            let at = if indirect { word(at) } else { at };
            pending &= !word(at);
        }
        while pending != 0 {
            let signal = pending.trailing_zeros() as u64 + 1;
            let mut action = [0u64; 4];
            syscall6(SYS_RT_SIGACTION, [signal, 0, action.as_mut_ptr() as u64, 8, 0, 0]);
            if action[0] > 1 {
                return if action[1] & SA_RESTART != 0 { Ends::Some } else { Ends::All };
            }
            pending &= pending - 1;
        }
    }
    Ends::Not
}

/// A word of this process's memory, 0 if it cannot be read (another thread may have unmapped it).
///
/// # Safety
/// None: process_vm_readv checks the address.
unsafe fn word(at: u64) -> u64 {
    let mut value = 0u64;
    let (to, from) = ([&raw mut value as u64, 8], [at, 8]);
    // SAFETY: the kernel writes one word.
    unsafe {
        let me = sys3(SYS_GETPID, 0, 0, 0) as u64;
        syscall6(SYS_PROCESS_VM_READV, [me, to.as_ptr() as u64, 1, from.as_ptr() as u64, 1, 0]);
    }
    value
}

/// The session of a nonce, in the high half.
fn session(nonce: u64) -> u64 {
    (nonce | 1) << 32
}

fn up(n: u64) -> u64 {
    (n + PAGE - 1) & !(PAGE - 1)
}

/// Serves the recorder until it is gone; then releases all.
///
/// # Safety
/// As [`on_signal`].
unsafe fn serve(info: &AgentInfo, c: &Context, call: Option<i64>) {
    let slots = info.number.clamp(0, 1 << 20) as u64;
    let slots_at = HOME + PAGE;
    let request = up(slots_at + slots * size_of::<Slot>() as u64);
    let buffer = request + REQUEST + up(slots * VISIT);
    let len = buffer + BUFFER - HOME;
    let mut opened = false;
    // SAFETY: the region is new and ours. Others touch it only between their entry in the state and their leaving it, for which is waited.
    unsafe {
        if !map(HOME, len, MAPPING_NAME) {
            return; // somebody is still in there
        }
        let p = HOME as *mut Params;
        drop_ignored(c.mask());
        (*p).version = WIRE_VERSION as u32;
        (*p).sock = -1;
        (*p).request = request;
        (*p).request_len = buffer - request;
        (*p).buf = buffer;
        (*p).buf_len = BUFFER;
        (*p).slots = slots_at;
        (*p).nslots = slots;
        let name = recorder_name(info.nonce);
        (*p).addr[0] = 1;
        copy(&raw mut (*p).addr as u64 + 3, name.as_ptr() as u64, name.len() as u64);
        (*p).addr_len = 3 + name.len() as u32;
        if connect(p) >= 0 {
            if is_ours((*p).sock) {
                opened = info.code == code_open() && open();
                state().store(session(info.nonce), SeqCst);
                let flags = if opened { ARRIVED_OPENED } else { 0 };
                if arrive(p, (0, -1, flags), len, c, call) {
                    (*p).left = converse(p);
                }
                state().fetch_and(LOW, SeqCst);
            }
            disconnect(p);
            release_all(p, ((*p).taken as u64).min(slots));
            wait_for_others();
        }
        unmap(HOME, len);
        if opened {
            // last, for its recorder looks whether the region is gone
            sys3(SYS_PRCTL, PR_SET_DUMPABLE, 0, 0);
        }
    }
}

/// Unblocks the signals that the program ignores, and does not block itself. The kernel drops such a one only where the thread that it is sent to (mostly the first one, which serves)
/// does not block it; else it wakes another thread for it, whose call may end with EINTR (kernel/signal.c, sig_ignored and complete_signal). A thread that is not in yet could set a
/// handler for one meanwhile, which would run above this frame: ARCHITECTURE.md says what follows.
///
/// # Safety
/// As [`on_signal`].
unsafe fn drop_ignored(blocked: u64) {
    let mut ignored = 0u64;
    for signal in 1..=LAST_OF_OLD {
        let mut action = [0u64; 4];
        // SAFETY: the kernel writes an action (four words).
        unsafe { syscall6(SYS_RT_SIGACTION, [signal, 0, action.as_mut_ptr() as u64, 8, 0, 0]) };
        let bit = 1 << (signal - 1);
        if action[0] == SIG_IGN || action[0] == SIG_DFL && IGNORED_BY_DEFAULT & bit != 0 {
            ignored |= bit;
        }
    }
    let mask = !(ignored & !blocked);
    // SAFETY: the kernel reads a signal set.
    unsafe { syscall6(SYS_RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as u64, 0, 8, 0, 0]) };
}

/// Makes the process dumpable, if it is not and can be made so again: its user may look at it then.
///
/// # Safety
/// The recorder is of our user, or root.
unsafe fn open() -> bool {
    // SAFETY: takes integers.
    unsafe { sys3(SYS_PRCTL, PR_GET_DUMPABLE, 0, 0) == 0 && sys3(SYS_PRCTL, PR_SET_DUMPABLE, 1, 0) == 0 }
}

/// Whether the recorder is of our user, or root.
///
/// # Safety
/// `sock` is our connection.
unsafe fn is_ours(sock: i32) -> bool {
    let (mut cred, mut len) = ([0u32; 3], 12u32);
    // SAFETY: the kernel writes a ucred (pid, uid, gid) and its length.
    unsafe {
        let (at, n) = (cred.as_mut_ptr() as u64, &raw mut len as u64);
        let r = syscall6(SYS_GETSOCKOPT, [sock as u64, SOL_SOCKET, SO_PEERCRED, at, n, 0]);
        r == 0 && (cred[1] == 0 || cred[1] as i64 == sys3(SYS_GETEUID, 0, 0, 0))
    }
}

/// Waits until nobody is inside any more.
fn wait_for_others() {
    let s = state();
    loop {
        let inside = s.load(SeqCst) & LOW;
        if inside == 0 {
            return;
        }
        // SAFETY: the low half of the state is a futex in our own page.
        unsafe {
            syscall6(SYS_FUTEX, [s.as_ptr() as u64, FUTEX_WAIT_PRIVATE, inside, 0, 0, 0]);
        }
    }
}

/// Parks until the session is over. Nothing of the session is touched if it is over already.
///
/// # Safety
/// As [`on_signal`].
unsafe fn park(info: &AgentInfo, c: &Context, call: Option<i64>) {
    let (s, mine) = (state(), session(info.nonce));
    // a call that changes nothing: one that has gone into strict seccomp mode in this instant ends here, and not when it has been counted, or all would wait for it for ever
    // SAFETY: nobody waits at this place on our own stack.
    unsafe { syscall6(SYS_FUTEX, [&raw const mine as u64, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]) };
    let mut now = s.load(SeqCst);
    loop {
        if now & !LOW != mine {
            return;
        }
        match s.compare_exchange(now, now + 1, SeqCst, SeqCst) {
            Ok(_) => break,
            Err(n) => now = n,
        }
    }
    // SAFETY: the serving thread keeps the region until the state says that nobody is inside.
    unsafe {
        let p = HOME as *mut Params;
        let n = (*(&raw const (*p).taken as *const AtomicU32)).fetch_add(1, SeqCst);
        if (n as u64) < (*p).nslots {
            let slot = slot(p, n as u64);
            (*slot).params = p as u64;
            (*slot).tid = info.number;
            let flags = if visit(p, n as u64) { ARRIVED_VISITED } else { 0 };
            arrive(p, (info.number, n as i32, flags), 0, c, call);
            work(slot);
        }
        if s.fetch_sub(1, SeqCst) - 1 == 0 {
            sys3(SYS_FUTEX, s.as_ptr() as u64, FUTEX_WAKE_PRIVATE, 1);
        }
    }
}

/// A frame as it is sent.
#[repr(C)]
struct Arrival {
    head: FrameHeader,
    body: Arrived,
}

/// Tells the recorder that this thread is in: its TID, slot and `ARRIVED_` bits.
///
/// # Safety
/// The connection is open.
#[inline(never)]
unsafe fn arrive(
    p: *mut Params,
    (tid, slot, flags): (i32, i32, u32),
    len: u64,
    c: &Context,
    call: Option<i64>,
) -> bool {
    let (mut fs_base, mut gs_base) = (0u64, 0u64);
    // SAFETY: each call writes one word.
    unsafe {
        sys3(SYS_ARCH_PRCTL, ARCH_GET_FS, &raw mut fs_base as u64, 0);
        sys3(SYS_ARCH_PRCTL, ARCH_GET_GS, &raw mut gs_base as u64, 0);
    }
    let (rseq, known) = registered(fs_base);
    // piece by piece: of a whole one the compiler would make a call to memset or memcpy
    let mut frame = MaybeUninit::<Arrival>::uninit();
    let head = FrameHeader {
        magic: FRAME_MAGIC,
        version: WIRE_VERSION,
        op: OP_ARRIVED,
        len: size_of::<Arrived>() as u32,
        seq: 0,
    };
    // SAFETY: all fields are written before the frame, which lies on this stack, is read; `p` is the region's.
    unsafe {
        let f = frame.as_mut_ptr();
        (&raw mut (*f).head).write(head);
        let a = &raw mut (*f).body;
        (&raw mut (*a).tid).write(tid);
        (&raw mut (*a).slot).write(slot);
        (&raw mut (*a).sock).write(if slot < 0 { (*p).sock } else { -1 });
        (&raw mut (*a).flags).write(if known { flags } else { flags | ARRIVED_RSEQ_UNKNOWN });
        (&raw mut (*a).fs_base).write(fs_base);
        (&raw mut (*a).gs_base).write(gs_base);
        (&raw mut (*a).segments).write(arch::segments());
        (&raw mut (*a).rseq).write(rseq);
        (&raw mut (*a).rseq_len).write(if rseq == 0 { 0 } else { RSEQ_LEN });
        (&raw mut (*a).rseq_sig).write(if rseq == 0 { 0 } else { RSEQ_SIG });
        (&raw mut (*a).call).write(call.unwrap_or(-1));
        (&raw mut (*a).base).write(HOME);
        (&raw mut (*a).len).write(len);
        copy(&raw mut (*a).context as u64, c.words().as_ptr() as u64, UCONTEXT as u64);
        send_all((*p).sock, f as u64, size_of::<Arrival>() as u64, false)
    }
}

/// The thread's rseq area (0: none), and whether that is known: asked by registering it, which is refused with EBUSY if exactly that is registered,
/// and undone at once if none is.
fn registered(fs_base: u64) -> (u64, bool) {
    let area = match arch::rseq_symbols() {
        Some((offset, size)) if size != 0 => fs_base.wrapping_add(offset as u64),
        _ => 0,
    };
    #[repr(C, align(32))]
    struct Own([u64; 4]);
    let mut own = Own([0; 4]);
    let at = if area != 0 { area } else { own.0.as_mut_ptr() as u64 };
    // SAFETY: the area is glibc's for this thread, or our own on this stack; it is not registered longer than these two calls.
    unsafe {
        let r = syscall6(SYS_RSEQ, [at, RSEQ_LEN as u64, 0, RSEQ_SIG as u64, 0, 0]);
        if r == 0 {
            syscall6(SYS_RSEQ, [at, RSEQ_LEN as u64, 1, RSEQ_SIG as u64, 0, 0]);
        }
        match r {
            EBUSY if area != 0 => (area, true),
            // registered and taken back, or a kernel without it
            0 | -38 => (0, true),
            _ => (0, false),
        }
    }
}
