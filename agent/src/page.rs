//! The agent's page: what it says of itself, and the little that it has to remember. It is at a fixed address, so that a recorder finds it.
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use parasite::serve::sys3;
use wire::agent::{AgentPage, AGENT_DISPATCHED, AGENT_FILTERS_LOST, AGENT_PAGE, AGENT_SIGNAL, TRIGGERS};

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

fn number(at: *const i32) -> i32 {
    // SAFETY: as `state`; a field of the page.
    unsafe { &*(at as *const AtomicI32) }.load(SeqCst)
}

/// The trigger at this place; 0: none.
pub fn trigger(i: usize) -> i32 {
    // SAFETY: a field of the page, whose address alone is taken.
    number(unsafe { (&raw const (*at()).triggers as *const i32).add(i % TRIGGERS) })
}

/// The parent to whom triggers are passed on.
pub fn parent() -> i32 {
    // SAFETY: as `trigger`.
    number(unsafe { &raw const (*at()).parent })
}

/// The program has set a seccomp filter, or is about to: no call is made that the program did not make itself and its recorder did not judge.
pub fn filtered() -> bool {
    let setting = filters_begun().load(SeqCst) != filters_ended().load(SeqCst);
    setting || filters_used().load(SeqCst) != 0 || flags().load(SeqCst) & AGENT_FILTERS_LOST != 0
}

/// No call is made but the program's own: there is a seccomp filter, or a thread that may have its calls dispatched to itself.
pub fn must_not_call() -> bool {
    filtered() || flags().load(SeqCst) & AGENT_DISPATCHED != 0
}

/// Whether this process is the session's program. One that must not call cannot ask, and is taken for it if its parent was.
pub fn is_program() -> bool {
    // SAFETY: as `trigger`; the call takes no argument.
    unsafe {
        let program = number(&raw const (*at()).program);
        program != 0 && (must_not_call() || program as i64 == sys3(SYS_GETPID, 0, 0, 0))
    }
}

/// What the program has set for a trigger: as [`action`].
pub fn kept(i: usize) -> &'static [AtomicU64; 3] {
    // SAFETY: as `state`.
    unsafe { &*((&raw const (*at()).kept as *const [AtomicU64; 3]).add(i % TRIGGERS)) }
}

/// What is kept for a signal that is ours in this process: the agent's, or a trigger of the program's session.
pub fn ours(signal: i32) -> Option<&'static [AtomicU64; 3]> {
    if !ready() {
        return None;
    }
    if signal == AGENT_SIGNAL {
        return Some(action());
    }
    (0..TRIGGERS).find(|i| signal != 0 && trigger(*i) == signal && is_program()).map(kept)
}

/// Of these signals (bit n-1 for signal n) those that are ours.
pub fn ours_of(set: u64) -> u64 {
    let mut all = 1 << (AGENT_SIGNAL - 1);
    let mut i = 0;
    while i < TRIGGERS {
        let bit = match trigger(i) {
            0 => 0,
            n => 1u64 << ((n - 1) & 63),
        };
        // asked only if it matters
        if set & bit != 0 && is_program() {
            all |= bit;
        }
        i += 1;
    }
    set & all
}

/// What the program has set for the agent's signal: handler, flags, mask.
pub fn action() -> &'static [AtomicU64; 3] {
    // SAFETY: as `state`.
    unsafe { &*(&raw const (*at()).action as *const [AtomicU64; 3]) }
}
