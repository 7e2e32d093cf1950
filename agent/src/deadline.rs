//! When the time of a call is over that a signal ends and the kernel does not resume: epoll_wait and its kin, sigtimedwait, semtimedop. Issued again
//! with its whole time at each checkpoint, a wait of a minute would never end under `--every 30s`. So what is interposed notes it: in a [`Timed`] on the
//! caller's stack, where the handler finds it, and makes the time left the call's. What the kernel resumes with the time that was left when the signal
//! came (select and its kin) needs no record: what went by in the handler is taken off ([`Stay`]).
use crate::context::Context;
use crate::libc::real;
use crate::page;
use core::sync::atomic::{compiler_fence, Ordering::SeqCst};
use parasite::arch::syscall6;

const SYS_CLOCK_GETTIME: u64 = 228;
/// Of the program's.
const SELECT: i64 = 23;
const PSELECT6: i64 = 270;
const PPOLL: i64 = 271;
const SYS_GETPID: u64 = 39;
const SYS_PROCESS_VM_READV: u64 = 310;
const CLOCK_MONOTONIC: u64 = 1;
const SEC: i64 = 1_000_000_000;
const MS: i64 = 1_000_000;
/// Marks a record, with its own address.
const TAG: u64 = 0x6465_6164_6c69_6e65;
/// Words above the stack pointer among which the record is looked for: a C library's function has hardly more of its own.
const NEAR: usize = 64;
const WORDS: usize = size_of::<Timed>() / 8;
/// Of `tag`, in words.
const AT_TAG: usize = 2;

/// A call's time, while it waits.
#[repr(C)]
pub struct Timed {
    /// A timespec: what is given to the C library in place of the caller's.
    time: [i64; 2],
    /// [`TAG`] and the record's address, while the call is on.
    tag: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    deadline: i64,
    /// A time-out in milliseconds as the call has it now, and its first three arguments.
    ms: i64,
    args: [u64; 3],
}

impl Timed {
    /// Nothing noted yet.
    pub fn none() -> Timed {
        Timed { time: [0; 2], tag: 0, deadline: 0, ms: 0, args: [0; 3] }
    }

    /// A call that takes a timespec begins: what to give it. One that does not wait, or not for a time, is given what the caller gave.
    ///
    /// # Safety
    /// `time` is a timespec, or null.
    pub unsafe fn until(&mut self, time: u64) -> u64 {
        if time == 0 || !page::ready() {
            return time;
        }
        // SAFETY: the caller's timespec.
        let [sec, ns] = unsafe { *(time as *const [i64; 2]) };
        let sensible = (0..SEC).contains(&ns) && (0..i64::MAX / SEC / 2).contains(&sec) && (sec | ns) != 0;
        if !sensible || !self.begin(sec * SEC + ns) {
            return time;
        }
        self.time = [sec, ns];
        compiler_fence(SeqCst);
        self as *mut Timed as u64
    }

    /// A call that takes milliseconds begins.
    pub fn within(&mut self, args: [u64; 3], ms: i32) {
        if ms > 0 && page::ready() {
            self.args = args;
            self.ms = ms.into();
            self.begin(i64::from(ms) * MS);
        }
    }

    fn begin(&mut self, ns: i64) -> bool {
        let f = real::clock_gettime.get();
        // where there is no vDSO it is a call, which a filter might not let through
        if f == 0 || page::must_not_call() {
            return false;
        }
        let mut now = [0i64; 2];
        // SAFETY: the C library's own function (which asks the vDSO), as it is declared.
        unsafe {
            let f: unsafe extern "C" fn(i32, *mut i64) -> i32 = core::mem::transmute(f);
            f(CLOCK_MONOTONIC as i32, now.as_mut_ptr());
        }
        self.deadline = now[0] * SEC + now[1] + ns;
        let tag = TAG ^ self as *mut Timed as u64;
        // SAFETY: our own field. Volatile: the handler reads it, and nothing else.
        unsafe { (&raw mut self.tag).write_volatile(tag) };
        compiler_fence(SeqCst);
        true
    }

    /// The call is over.
    pub fn over(&mut self) {
        compiler_fence(SeqCst);
        // SAFETY: as in `begin`.
        unsafe { (&raw mut self.tag).write_volatile(0) };
    }
}

/// Makes the time left the time-out of the call, if it has one that was noted. It is never made longer: a record may come from an image.
///
/// # Safety
/// In the handler; the thread was interrupted in call `nr`, and will issue it again.
pub unsafe fn correct(c: &mut Context, nr: i64) {
    let args = c.arguments();
    // SAFETY: what is not there is not read; what is written is a record of ours on this thread's stack, marked with its own address.
    unsafe {
        match nr {
            // epoll_wait, epoll_pwait
            232 | 281 if args[3] as i32 > 0 => {
                if let Some((at, r)) = find(c.sp(), &args) {
                    // rounded up: a call may end late, not early
                    let ms = ((left(r.deadline) + MS - 1) / MS).min(r.ms);
                    (&raw mut (*at).ms).write_volatile(ms);
                    c.set_fourth(ms as u64);
                }
            }
            // epoll_pwait2, semtimedop; rt_sigtimedwait
            441 | 220 => shorten(args[3]),
            128 => shorten(args[2]),
            _ => {}
        }
    }
}

/// A thread's stay in the handler, if it interrupted a call that has the time left in a timespec or timeval of its caller's.
pub struct Stay(i64);

/// Bytes above the stack pointer in which a C library's function has its own copy of the time: stack that this thread is using, so that it can be written.
const FRAME: u64 = 1024;

impl Stay {
    /// It begins. `may`: the clock may be asked.
    pub fn begin(call: Option<i64>, may: bool) -> Stay {
        let kept = may && matches!(call, Some(SELECT | PSELECT6 | PPOLL));
        Stay(if kept { now() } else { 0 })
    }

    /// It is over, and the call is issued again: with so much less time. The kernel has written the time that was left when the signal came.
    ///
    /// # Safety
    /// As [`correct`].
    pub unsafe fn over(self, c: &Context, nr: i64) {
        let (at, unit) = match nr {
            PPOLL => (c.arguments()[2], 1),
            PSELECT6 => (c.fifth(), 1),
            SELECT => (c.fifth(), 1000),
            _ => return,
        };
        let mut time = [0; 2];
        // a time elsewhere may be of memory that only the kernel can try to write: that call ends later by its stay
        let near = at.wrapping_sub(c.sp()) < FRAME && at % 8 == 0;
        // SAFETY: read only if it is there; this thread's stack, in use.
        unsafe {
            if self.0 == 0 || !near || !read(at, &mut time) {
                return;
            }
            let [sec, part] = time.map(|w| w as i64);
            let sensible = (0..SEC / unit).contains(&part) && (0..i64::MAX / SEC / 2).contains(&sec);
            let left = (sec * SEC + part * unit - (now() - self.0).max(0)).max(0);
            // rounded up: a call may end late, not early
            let left = (left + unit - 1) / unit * unit;
            if sensible {
                (at as *mut [i64; 2]).write_volatile([left / SEC, left % SEC / unit]);
            }
        }
    }
}

/// # Safety
/// As [`correct`].
unsafe fn shorten(at: u64) {
    let mut words = [0u64; WORDS];
    // SAFETY: as `correct`.
    unsafe {
        if at == 0 || !read(at, &mut words) || words[AT_TAG] != TAG ^ at {
            return;
        }
        let r = at as *mut Timed;
        let was = (*r).time[0] * SEC + (*r).time[1];
        let ns = left((*r).deadline).min(was);
        (&raw mut (*r).time).write_volatile([ns / SEC, ns % SEC]);
    }
}

/// The record of a call with these arguments, above the stack pointer.
///
/// # Safety
/// As [`correct`].
unsafe fn find(sp: u64, args: &[u64; 4]) -> Option<(*mut Timed, Timed)> {
    for i in 0..NEAR as u64 {
        let at = sp + i * 8;
        let mut r = [0u64; WORDS];
        // word by word: above may be the end of the stack
        let mut tag = [0u64; 1];
        // SAFETY: as `correct`.
        unsafe {
            if !read(at + AT_TAG as u64 * 8, &mut tag) {
                return None;
            }
            if tag[0] != TAG ^ at || !read(at, &mut r) {
                continue;
            }
            let t: Timed = core::mem::transmute(r);
            let same = t.args[0] as i32 == args[0] as i32 && t.args[1] == args[1] && t.args[2] as i32 == args[2] as i32;
            if same && t.ms == i64::from(args[3] as i32) {
                return Some((at as *mut Timed, t));
            }
        }
    }
    None
}

/// Reads this process's memory, if it is there.
///
/// # Safety
/// None: process_vm_readv checks the address.
unsafe fn read<const N: usize>(at: u64, to: &mut [u64; N]) -> bool {
    let (local, remote) = ([to.as_mut_ptr() as u64, N as u64 * 8], [at, N as u64 * 8]);
    // SAFETY: the kernel writes N words.
    unsafe {
        let me = syscall6(SYS_GETPID, [0; 6]) as u64;
        let r = syscall6(SYS_PROCESS_VM_READV, [me, local.as_ptr() as u64, 1, remote.as_ptr() as u64, 1, 0]);
        r == N as i64 * 8
    }
}

/// Nanoseconds until then; 0 if it is over.
fn left(deadline: i64) -> i64 {
    (deadline - now()).max(0)
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> i64 {
    let mut now = [0i64; 2];
    // SAFETY: the kernel writes a timespec.
    unsafe { syscall6(SYS_CLOCK_GETTIME, [CLOCK_MONOTONIC, now.as_mut_ptr() as u64, 0, 0, 0, 0]) };
    now[0] * SEC + now[1]
}
