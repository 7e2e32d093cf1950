//! What the agent does when it is loaded: a page that says that it is there, and its signal handler.
use crate::libc::real;
use crate::{arch, handler, page, stacks, triggers};
use parasite::arch::syscall6;
use wire::agent::{AGENT_FILTERS, AGENT_FILTERS_LEN, AGENT_MAGIC, AGENT_NAME, AGENT_PAGE, AGENT_SIGNAL};

const SYS_MMAP: u64 = 9;
const SYS_MUNMAP: u64 = 11;
const SYS_RT_SIGACTION: u64 = 13;
const SYS_RT_SIGPROCMASK: u64 = 14;
const SIG_BLOCK: u64 = 0;
const SIG_UNBLOCK: u64 = 1;
const SYS_PRCTL: u64 = 157;
/// PROT_READ | PROT_WRITE
pub const READ_WRITE: u64 = 3;
/// MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
pub const THERE: u64 = 0x2 | 0x20 | 0x4000 | MAP_FIXED_NOREPLACE;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const PR_SET_VMA: u64 = 0x5356_4d41;
/// The page, the first thread's alternate stack, and room for filters.
const LEN: u64 = AGENT_FILTERS + AGENT_FILTERS_LEN - AGENT_PAGE;
/// SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_RESTORER
const FLAGS: u64 = 4 | 0x0800_0000 | 0x1000_0000 | 0x0400_0000;

/// Maps private memory exactly at `at`, with a name; false if something is there.
///
/// # Safety
/// Nobody else has designs on the range.
pub unsafe fn map(at: u64, len: u64, name: &[u8]) -> bool {
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing; a kernel that does not know it may put it elsewhere, and then it goes again.
    unsafe {
        let r = syscall6(SYS_MMAP, [at, len, READ_WRITE, THERE, u64::MAX, 0]);
        if r as u64 != at {
            if r > 0 {
                unmap(r as u64, len);
            }
            return false;
        }
        syscall6(SYS_PRCTL, [PR_SET_VMA, 0, at, len, name.as_ptr() as u64, 0]);
        true
    }
}

/// Maps private memory somewhere.
pub fn map_anywhere(len: u64) -> Option<u64> {
    // SAFETY: without MAP_FIXED nothing is replaced.
    let r = unsafe { syscall6(SYS_MMAP, [0, len, READ_WRITE, THERE & !MAP_FIXED_NOREPLACE, u64::MAX, 0]) };
    (r > 0).then_some(r as u64)
}

/// Takes a mapping of ours away.
///
/// # Safety
/// It is ours, and nobody uses it.
pub unsafe fn unmap(at: u64, len: u64) {
    // SAFETY: the caller's.
    unsafe {
        syscall6(SYS_MUNMAP, [at, len, 0, 0, 0, 0]);
    }
}

/// Makes the agent ready. Where anything fails it is not there, and the program runs all the same.
///
/// # Safety
/// Called once, while the process has one thread.
pub unsafe fn start() {
    real::find();
    // SAFETY: the page is new and ours; the handler is one.
    unsafe {
        if !map(AGENT_PAGE, LEN, AGENT_NAME) {
            return;
        }
        let entry = handler::on_signal as *const () as u64;
        // what came while the program before this one became this one is not for this one: to ignore a signal takes away what waits of it
        triggers::ignore(AGENT_SIGNAL);
        if !handle(AGENT_SIGNAL, entry) {
            return unmap(AGENT_PAGE, LEN);
        }
        unblock(OWN);
        stacks::install(stacks::first());
        let page = page::at();
        (*page).version = wire::WIRE_VERSION as u32;
        (*page).signal = AGENT_SIGNAL as u32;
        (*page).handler = entry;
        (*page).magic = AGENT_MAGIC;
        page::set_ready();
        triggers::start();
    }
}

/// Blocks the agent's signal in this thread; whether it was not blocked before. None: it is not blocked, for no call but the program's own may be made.
pub fn block_for_good() -> Option<bool> {
    block(|| OWN).map(|were| were != 0)
}

/// Blocks the agent's signal and the triggers in this thread; gives those that were not. None: as above.
pub fn block_all_for_good() -> Option<u64> {
    // a child of the program's has their handlers, too
    block(|| OWN | triggers::handled())
}

fn block(signals: impl FnOnce() -> u64) -> Option<u64> {
    (page::ready() && !page::must_not_call()).then(|| {
        let signals = signals();
        signals & !mask(SIG_BLOCK, signals)
    })
}

/// Lets these signals come to this thread.
pub fn unblock(signals: u64) {
    mask(SIG_UNBLOCK, signals);
}

/// The agent's signal in a mask.
pub const OWN: u64 = 1 << (AGENT_SIGNAL - 1);

/// Blocks signals, or does not any more; gives the mask as it was.
fn mask(how: u64, signals: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: the kernel reads a mask and writes one (a word each).
    unsafe { syscall6(SYS_RT_SIGPROCMASK, [how, &raw const signals as u64, &raw mut old as u64, 8, 0, 0]) };
    old
}

/// Sets a handler of ours; all signals are blocked while it runs.
///
/// # Safety
/// `entry` is one.
pub unsafe fn handle(signal: i32, entry: u64) -> bool {
    let action = [entry, FLAGS, arch::restorer(), u64::MAX];
    // SAFETY: the kernel reads the action (handler, flags, restorer, mask).
    unsafe { syscall6(SYS_RT_SIGACTION, [signal as u64, action.as_ptr() as u64, 0, 8, 0, 0]) == 0 }
}
