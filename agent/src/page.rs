//! The agent's page: what it says of itself, and the little that it has to remember. It is at a fixed address, so that a recorder finds it.
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use parasite::serve::sys3;
use wire::agent::{AgentPage, AGENT_PAGE};

const SYS_GETPID: u64 = 39;

/// The page is there.
static READY: AtomicBool = AtomicBool::new(false);

/// Whether the agent works in this process.
pub fn ready() -> bool {
    READY.load(SeqCst)
}

/// From here on it does.
pub fn set_ready() {
    READY.store(true, SeqCst)
}

/// The page.
pub fn at() -> *mut AgentPage {
    AGENT_PAGE as *mut AgentPage
}

/// Who is inside.
pub fn state() -> &'static AtomicU64 {
    // SAFETY: asked for only where the page is there; nobody takes it away.
    unsafe { &*(&raw const (*at()).state as *const AtomicU64) }
}

/// `AGENT_` bits.
pub fn flags() -> &'static AtomicU32 {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).flags as *const AtomicU32) }
}

/// How often the program has begun to set a seccomp filter.
pub fn filters_begun() -> &'static AtomicU32 {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).filters_begun as *const AtomicU32) }
}

/// How often it has done so, or failed.
pub fn filters_ended() -> &'static AtomicU32 {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).filters_ended as *const AtomicU32) }
}

/// Bytes in which filters are kept.
pub fn filters_used() -> &'static AtomicU32 {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).filters_used as *const AtomicU32) }
}

/// How many threads beside the first have an alternate stack from us.
pub fn covered() -> &'static AtomicU32 {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).covered as *const AtomicU32) }
}

/// Counts anew in a process for which was not counted yet: before its first thread is made, so that nobody else counts meanwhile.
pub fn count_for_this_process() {
    // SAFETY: as `state`; the call takes no argument.
    let (counted_for, me) =
        unsafe { (&*(&raw const (*at()).pid as *const AtomicI32), sys3(SYS_GETPID, 0, 0, 0) as i32) };
    if counted_for.load(SeqCst) != me {
        covered().store(0, SeqCst);
        counted_for.store(me, SeqCst);
    }
}

/// What the program has set for the agent's signal: handler, flags, mask.
pub fn action() -> &'static [AtomicU64; 3] {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).action as *const [AtomicU64; 3]) }
}
