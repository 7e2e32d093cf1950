//! A signal that is a trigger of the session (`launcher --signal`, `--signal-exit`) and comes to the program itself: it is passed on to the supervisor,
//! which makes the checkpoint, and the program goes on as if nothing had come.
//!
//! launcher says in the environment which signals those are, and who the supervisor is. Where a process is not the session's program they are
//! ignored, as they were in the program from its start: one to the whole process group is not meant for it.
use crate::context::Context;
use crate::deadline::Stay;
use crate::handler::go_on;
use crate::start::handle;
use crate::{arch, page};
use core::sync::atomic::Ordering::SeqCst;
use parasite::arch::syscall6;
use parasite::serve::sys3;
use wire::agent::{AgentInfo, TRIGGERS, TRIGGERS_LINE, TRIGGERS_PID};

const SYS_RT_SIGACTION: u64 = 13;
const SYS_GETPID: u64 = 39;
const SYS_KILL: u64 = 62;
const SYS_GETPPID: u64 = 110;
const SIG_IGN: u64 = 1;
const SA_RESTORER: u64 = 0x0400_0000;
/// si_code of a terminal's signals: they go to a whole process group, of which launcher is a member, too.
const SI_KERNEL: i32 = 0x80;

/// Sets the handlers, if there are triggers, and this is the program.
///
/// # Safety
/// Called once, as the agent starts.
pub unsafe fn start() {
    // SAFETY: the environment is the loader's, and nobody else runs yet.
    unsafe {
        let Some(line) = line() else { return };
        let mut at = line;
        let mut signals = [0i32; TRIGGERS];
        for signal in signals.iter_mut() {
            *signal = number(&mut at) as i32;
        }
        let parent = number(&mut at);
        let digits = at;
        let said = number(&mut at);
        let me = sys3(SYS_GETPID, 0, 0, 0);
        let child = sys3(SYS_GETPPID, 0, 0, 0) == parent as i64;
        let is_program = child && (said == 0 || said as i64 == me) && at as usize - digits as usize == TRIGGERS_PID;
        let page = page::at();
        (*page).triggers = signals;
        if is_program {
            note(digits as *mut u8, me as u64);
            (*page).parent = parent as i32;
            (*page).program = me as i32;
        }
        for (i, signal) in signals.iter().enumerate().filter(|s| *s.1 > 0) {
            if is_program {
                page::kept(i)[0].store(SIG_IGN, SeqCst);
                handle(*signal, entry());
            } else if handler_of(*signal) == 0 {
                ignore(*signal);
            }
        }
    }
}

/// Address of the handler.
pub fn entry() -> u64 {
    on_trigger as *const () as u64
}

/// What is behind the name in the environment.
///
/// # Safety
/// Nobody changes the environment meanwhile.
unsafe fn line() -> Option<*const u8> {
    // SAFETY: the C library's array of strings, which ends with a null pointer; each ends with a NUL.
    unsafe {
        let mut next = arch::environment();
        while !next.is_null() && !(*next).is_null() {
            let (text, mut i) = (*next, 0);
            while i < TRIGGERS_LINE.len() && *text.add(i) == TRIGGERS_LINE[i] {
                i += 1;
            }
            if i == TRIGGERS_LINE.len() {
                return Some(text.add(i));
            }
            next = next.add(1);
        }
        None
    }
}

/// A number, and the comma behind it.
///
/// # Safety
/// `at` is in a text that ends with a NUL.
unsafe fn number(at: &mut *const u8) -> u64 {
    let mut n = 0u64;
    // SAFETY: the caller's.
    unsafe {
        while (**at).is_ascii_digit() {
            n = n.wrapping_mul(10).wrapping_add((**at - b'0') as u64);
            *at = at.add(1);
        }
        if **at == b',' {
            *at = at.add(1);
        }
    }
    n
}

/// Notes the program's PID.
///
/// # Safety
/// [`TRIGGERS_PID`] digits can be written at `at`.
unsafe fn note(at: *mut u8, mut n: u64) {
    let mut i = TRIGGERS_PID;
    while i > 0 {
        i -= 1;
        // SAFETY: the caller's.
        unsafe { at.add(i).write_volatile(b'0' + (n % 10) as u8) };
        n /= 10;
    }
}

fn handler_of(signal: i32) -> u64 {
    let mut old = [0u64; 4];
    // SAFETY: the kernel writes an action (four words).
    unsafe { syscall6(SYS_RT_SIGACTION, [signal as u64, 0, old.as_mut_ptr() as u64, 8, 0, 0]) };
    old[0]
}

/// The triggers that have our handler in this process (bit n-1 for signal n), be it the program or a child of it.
pub fn handled() -> u64 {
    let ours = |i| Some(page::trigger(i)).filter(|signal| *signal > 0 && handler_of(*signal) == entry());
    (0..TRIGGERS).filter_map(ours).fold(0, |all, signal| all | 1 << ((signal - 1) & 63))
}

/// Nothing happens at this signal any more; what waits of it is gone.
pub fn ignore(signal: i32) {
    // with the way back that handlers have: after a restore the program's own takes it from here (engine/src/restore/agent.rs)
    let action = [SIG_IGN, SA_RESTORER, crate::arch::restorer(), 0u64];
    // SAFETY: the kernel reads an action (four words).
    unsafe { syscall6(SYS_RT_SIGACTION, [signal as u64, action.as_ptr() as u64, 0, 8, 0, 0]) };
}

/// This process is about to become another program, in which no handler would be left: the triggers are ignored. Gives those that were not.
pub fn before_exec() -> [bool; TRIGGERS] {
    match page::ready() && !page::must_not_call() {
        true => ignore_all(),
        false => [false; TRIGGERS],
    }
}

/// Ignores the triggers; gives those that were not.
pub fn ignore_all() -> [bool; TRIGGERS] {
    let mut were = [false; TRIGGERS];
    for (i, was) in were.iter_mut().enumerate() {
        let signal = page::trigger(i);
        *was = signal > 0 && handler_of(signal) == entry();
        if *was {
            ignore(signal);
        }
    }
    were
}

/// It did not become one.
pub fn no_exec(were: [bool; TRIGGERS]) {
    if page::must_not_call() {
        return; // since then
    }
    for (i, was) in were.iter().enumerate() {
        if *was {
            // SAFETY: the handler is ours.
            unsafe { handle(page::trigger(i), entry()) };
        }
    }
}

/// The handler. All signals are blocked while it runs.
///
/// # Safety
/// Called by the kernel.
unsafe extern "C" fn on_trigger(signal: i32, info: *const AgentInfo, context: *mut Context) {
    // SAFETY: both are the kernel's, on this thread's stack, for as long as the handler runs.
    unsafe {
        let nothing = AgentInfo { call: -1, ..*info };
        let c = &mut *context;
        let call = c.interrupted(&nothing);
        if page::must_not_call() {
            // no call may be made, for nobody has judged whether its filters let them through
            return c.again_if(call);
        }
        let stay = Stay::begin(call, true);
        if (*info).code != SI_KERNEL && page::is_program() {
            let parent = page::parent();
            if parent > 0 && sys3(SYS_GETPPID, 0, 0, 0) == parent as i64 {
                sys3(SYS_KILL, parent as u64, signal as u64, 0);
            }
        }
        go_on(&nothing, c, call, true, stay);
    }
}
