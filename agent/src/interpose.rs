//! What programs find here before they find it in the C library, so that the agent's signal is not blocked, taken or replaced by accident, and a
//! seccomp filter is kept (filters.rs), and Syscall User Dispatch is known of (dispatch.rs). Whatever is a cancellation point stays one: the real function is called, with another mask.
use crate::deadline::Timed;
use crate::dispatch;
use crate::filters::{self, SYS_PRCTL};
use crate::libc::{real, result, Real};
pub use crate::stacks::{pthread_create, sigaltstack};
use crate::{page, start, triggers};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::SeqCst;
use parasite::arch::copy;
use wire::agent::{AGENT_SIGNAL, TRIGGERS};

/// sigset_t of the C libraries, of which the kernel uses the first word.
type Set = [u64; 16];
const ENOSYS: i64 = -38;
const SA_SIGINFO: i32 = 4;
const SA_ONSTACK: i32 = 0x0800_0000;

/// Whether none of the agent's signals is in a set.
///
/// # Safety
/// `set` is a set, or null.
unsafe fn as_it_is(set: *const Set) -> bool {
    // SAFETY: the caller's set.
    set.is_null() || !page::ready() || page::ours_of(unsafe { (*set)[0] }) == 0
}

/// A set without the agent's signals: the caller's own if they are not in it, else a copy in `room`. Its address, or 0 if there is no set.
///
/// # Safety
/// `set` is a set, or null.
unsafe fn without(set: *const Set, room: &mut MaybeUninit<Set>) -> u64 {
    if set.is_null() || !page::ready() {
        return set as u64;
    }
    // SAFETY: the caller's set; the room is as large.
    unsafe {
        let first = (*set)[0];
        match page::ours_of(first) {
            0 => set as u64,
            // the other words are room for more signals than there are: the C libraries may copy them, nobody looks at them
            ours => {
                (room.as_mut_ptr() as *mut u64).write(first & !ours);
                room.as_ptr() as u64
            }
        }
    }
}

/// Takes the agent's signals out of a set.
///
/// # Safety
/// It is the first word of one.
unsafe fn take_out(set: *mut u64) {
    if page::ready() {
        // SAFETY: the caller's.
        unsafe { *set &= !page::ours_of(*set) }
    }
}

/// Calls the real function, or answers ENOSYS where the C library has none.
macro_rules! real {
    ($name:ident, ($($arg:expr),*)) => {{
        match real::$name.get() {
            0 => result(ENOSYS) as i32,
            f => real!(@call f, ($($arg),*)),
        }
    }};
    (@call $f:expr, ($($arg:expr),*)) => {
        // SAFETY: the C library's function of that name takes these, all of which are words, and gives an int.
        unsafe {
            let f: unsafe extern "C" fn($(real!(@word $arg)),*) -> i32 = core::mem::transmute($f);
            f($($arg as u64),*)
        }
    };
    (@word $arg:expr) => { u64 };
}

/// sigprocmask(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigprocmask(how: i32, set: *const Set, old: *mut Set) -> i32 {
    // SAFETY: the caller's sets.
    unsafe { mask(&real::sigprocmask, how, set, old) }
}

/// pthread_sigmask(3).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn pthread_sigmask(how: i32, set: *const Set, old: *mut Set) -> i32 {
    // SAFETY: the caller's sets.
    unsafe { mask(&real::pthread_sigmask, how, set, old) }
}

/// Called often: mostly there is nothing to do, and then this is a jump to the C library.
///
/// # Safety
/// As that function's.
#[inline(always)]
unsafe fn mask(real: &Real, how: i32, set: *const Set, old: *mut Set) -> i32 {
    match real.known() {
        // SAFETY: the caller's set.
        f if f != 0 && unsafe { as_it_is(set) } => real!(@call f, (how, set, old)),
        // SAFETY: the caller's sets.
        _ => unsafe { mask_without(real, how, set, old) },
    }
}

/// # Safety
/// As [`mask`].
#[inline(never)]
unsafe fn mask_without(real: &Real, how: i32, set: *const Set, old: *mut Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    match real.get() {
        0 => result(ENOSYS) as i32,
        f => real!(@call f, (how, set, old)),
    }
}

/// sigsuspend(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigsuspend(set: *const Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(sigsuspend, (set))
}

/// sigwait(3).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigwait(set: *const Set, signal: u64) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(sigwait, (set, signal))
}

/// sigwaitinfo(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigwaitinfo(set: *const Set, info: u64) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(sigwaitinfo, (set, info))
}

/// sigtimedwait(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigtimedwait(set: *const Set, info: u64, time: u64) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    let mut timed = Timed::none();
    // SAFETY: the caller's time, or null.
    let time = unsafe { timed.until(time) };
    let r = real!(sigtimedwait, (set, info, time));
    timed.over();
    r
}

/// signalfd(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn signalfd(fd: i32, set: *const Set, flags: i32) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(signalfd, (fd, set, flags))
}

/// ppoll(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn ppoll(fds: u64, n: u64, time: u64, set: *const Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(ppoll, (fds, n, time, set))
}

/// ppoll(2) as glibc's headers call it in checked builds.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn __ppoll_chk(fds: u64, n: u64, time: u64, set: *const Set, len: u64) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(__ppoll_chk, (fds, n, time, set, len))
}

/// pselect(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn pselect(n: i32, r: u64, w: u64, e: u64, time: u64, set: *const Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    real!(pselect, (n, r, w, e, time, set))
}

/// epoll_wait(2): when its time is over is noted.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn epoll_wait(fd: i32, events: u64, n: i32, time: i32) -> i32 {
    match real::epoll_wait.known() {
        f if f != 0 && time <= 0 => real!(@call f, (fd, events, n, time)),
        _ => epoll_wait_timed(fd, events, n, time),
    }
}

#[inline(never)]
fn epoll_wait_timed(fd: i32, events: u64, n: i32, time: i32) -> i32 {
    let mut timed = Timed::none();
    timed.within([fd as u64, events, n as u64], time);
    let r = real!(epoll_wait, (fd, events, n, time));
    timed.over();
    r
}

/// semtimedop(2): when its time is over is noted.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn semtimedop(id: i32, ops: u64, n: u64, time: u64) -> i32 {
    let mut timed = Timed::none();
    // SAFETY: the caller's time, or null.
    let time = unsafe { timed.until(time) };
    let r = real!(semtimedop, (id, ops, n, time));
    timed.over();
    r
}

/// epoll_pwait(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn epoll_pwait(fd: i32, events: u64, n: i32, time: i32, set: *const Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    let mut timed = Timed::none();
    timed.within([fd as u64, events, n as u64], time);
    let r = real!(epoll_pwait, (fd, events, n, time, set));
    timed.over();
    r
}

/// epoll_pwait2(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn epoll_pwait2(fd: i32, events: u64, n: i32, time: u64, set: *const Set) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's set.
    let set = unsafe { without(set, &mut room) };
    let mut timed = Timed::none();
    // SAFETY: the caller's time, or null.
    let time = unsafe { timed.until(time) };
    let r = real!(epoll_pwait2, (fd, events, n, time, set));
    timed.over();
    r
}

/// struct sigaction of the C libraries.
#[repr(C)]
pub struct Action {
    handler: u64,
    mask: Set,
    flags: i32,
    restorer: u64,
}

/// sigaction(2): what is set for the agent's signal is kept, and answered, but the handler stays ours. It is called for a signal that is not from a recorder.
/// So it is for a trigger in the session's program, whose handler is never called; a forked child has handlers of its own.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigaction(signal: i32, new: *const Action, old: *mut Action) -> i32 {
    let Some([handler, flags, mask]) = page::ours(signal) else {
        let mut room = MaybeUninit::<Action>::uninit();
        let at = room.as_mut_ptr();
        // what the handler blocks, too, has no signal of ours in it; but on an alternate stack there may not be room for another frame
        let new = if new.is_null() {
            0
        } else {
            // SAFETY: the caller's action; the room is as large.
            unsafe {
                copy(at as u64, new as u64, size_of::<Action>() as u64);
                if (*at).flags & SA_ONSTACK == 0 {
                    take_out(&raw mut (*at).mask as *mut u64);
                }
            }
            at as u64
        };
        let r = real!(sigaction, (signal, new, old));
        // SAFETY: the caller's; it was written.
        unsafe { hide(signal, if r == 0 { old } else { core::ptr::null_mut() }) };
        return r;
    };
    // SAFETY: the caller's actions.
    unsafe {
        let was = (handler.load(SeqCst), flags.load(SeqCst), mask.load(SeqCst));
        if !new.is_null() {
            flags.store((*new).flags as u64, SeqCst);
            mask.store((*new).mask[0], SeqCst);
            handler.store((*new).handler, SeqCst);
        }
        if !old.is_null() {
            (&raw mut (*old).handler).write(was.0);
            (&raw mut (*old).flags).write(was.1 as i32);
            (&raw mut (*old).mask as *mut u64).write(was.2);
        }
    }
    0
}

/// A child that the program has forked finds what the program had set, in the place of the handler that it has inherited.
///
/// # Safety
/// `old` is an action, or null.
unsafe fn hide(signal: i32, old: *mut Action) {
    // SAFETY: the caller's.
    unsafe {
        if old.is_null() || !page::ready() || (*old).handler != triggers::entry() {
            return;
        }
        if let Some(i) = (0..TRIGGERS).find(|i| page::trigger(*i) == signal) {
            let [handler, flags, mask] = page::kept(i);
            (*old).handler = handler.load(SeqCst);
            (*old).flags = flags.load(SeqCst) as i32;
            (*old).mask[0] = mask.load(SeqCst);
        }
    }
}

/// signal(2).
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn signal(signal: i32, handler: u64) -> u64 {
    if let Some([was, flags, mask]) = page::ours(signal) {
        flags.store(0, SeqCst);
        mask.store(0, SeqCst);
        return was.swap(handler, SeqCst);
    }
    match real::signal.get() {
        0 => u64::MAX,
        // SAFETY: libc's own, with the caller's arguments.
        f => unsafe {
            let f: unsafe extern "C" fn(i32, u64) -> u64 = core::mem::transmute(f);
            f(signal, handler)
        },
    }
}

/// A signal that is the agent's but was not sent by a recorder: what the program has set for it happens. True if it is to be killed by it.
///
/// # Safety
/// In the handler, with the kernel's arguments.
pub unsafe fn foreign(info: u64, context: u64) -> bool {
    let [handler, flags, _] = page::action();
    match handler.load(SeqCst) {
        0 => return true,
        1 => {}
        // SAFETY: the program's own handler.
        f => unsafe {
            if flags.load(SeqCst) as i32 & SA_SIGINFO != 0 {
                let f: unsafe extern "C" fn(i32, u64, u64) = core::mem::transmute(f);
                f(AGENT_SIGNAL, info, context)
            } else {
                let f: unsafe extern "C" fn(i32) = core::mem::transmute(f);
                f(AGENT_SIGNAL)
            }
        },
    }
    false
}

/// prctl(2): seccomp filters are kept, and Syscall User Dispatch is prepared for.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> i32 {
    if dispatch::begun() && real::prctl.known() != 0 {
        return real!(prctl, (option, a, b, c, d));
    }
    // SAFETY: the caller's arguments; the kernel checks them.
    result(unsafe { filters::call(SYS_PRCTL, option as i64 as u64, a, b, c, d) }) as i32
}

/// Before a program becomes another one its triggers are ignored, and the agent's own signal is blocked: until the agent is there again, one would end it.
/// A block goes on over an execve (signal(7)), and what comes meanwhile is nothing to the agent that starts then (start.rs).
macro_rules! exec {
    ($($name:ident($($arg:ident),*);)*) => {
        $(
            /// exec(3).
            ///
            /// # Safety
            /// As libc's.
            pub unsafe extern "C" fn $name($($arg: u64),*) -> i32 {
                let were = triggers::before_exec();
                let blocked = start::block_for_good() == Some(true);
                let r = match real::$name.get() {
                    0 => result(ENOSYS) as i32,
                    // SAFETY: the C library's function of that name, with the caller's arguments.
                    f => unsafe {
                        let f: unsafe extern "C" fn($(exec!(@word $arg)),*) -> i32 = core::mem::transmute(f);
                        f($($arg),*)
                    },
                };
                if blocked && !page::must_not_call() {
                    start::unblock(start::OWN);
                }
                triggers::no_exec(were);
                r
            }
        )*
    };
    (@word $arg:ident) => { u64 };
}

exec! {
    execve(path, argv, envp);
    execv(path, argv);
    execvp(file, argv);
    execvpe(file, argv, envp);
    fexecve(fd, argv, envp);
    execveat(dir, path, argv, envp, flags);
}

/// execl(3), its arguments made an array by the code that calls this.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn execl(path: u64, argv: *const u64) -> i32 {
    // SAFETY: the caller's.
    unsafe { execv(path, argv as u64) }
}

/// execlp(3), likewise.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn execlp(file: u64, argv: *const u64) -> i32 {
    // SAFETY: the caller's.
    unsafe { execvp(file, argv as u64) }
}

/// execle(3), likewise: the environment comes after the null pointer that ends the arguments.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn execle(path: u64, argv: *const u64) -> i32 {
    // SAFETY: the caller's array, with its null pointer and the word behind it.
    unsafe {
        let mut end = argv;
        while *end != 0 {
            end = end.add(1);
        }
        execve(path, argv as u64, *end.add(1))
    }
}
