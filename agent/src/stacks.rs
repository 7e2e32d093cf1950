//! An alternate signal stack for every thread, so that the handler also has a place to run in one that stands on a small stack or on none.
//!
//! The first thread's lies behind the agent's page; pthread_create gives one to each other thread and takes it back as the thread ends. A stack
//! that the program sets itself comes before ours; where it sets none, it is answered that there is none.
use crate::libc::{real, result};
use crate::start::{map_anywhere, unmap};
use crate::{arch, dispatch, page};
use core::sync::atomic::{AtomicI32, Ordering::SeqCst};
use parasite::serve::sys3;
use wire::agent::{AGENT_PAGE, AGENT_SMALL_STACK, AGENT_STACK};

const SYS_SIGALTSTACK: u64 = 131;
const SYS_GETPID: u64 = 39;
const SYS_GETTID: u64 = 186;
const SS_DISABLE: u32 = 2;
/// Less than this has hardly room for the kernel's frame (some 3 KiB) and the handler (some 2).
const SMALL: u64 = 6 << 10;
const PAGE: u64 = 4096;
const EAGAIN: i32 = 11;

/// stack_t, sigaltstack(2).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stack {
    at: u64,
    flags: u32,
    reserved: u32,
    size: u64,
}

/// At the end of a thread's block, behind its stack.
#[repr(C)]
struct Tail {
    start: u64,
    arg: u64,
}

/// Bytes of stack: not a size that anybody else has.
const SIZE: u64 = AGENT_STACK - size_of::<Tail>() as u64;

/// pthread_key_t of the threads' blocks, plus 1; 0: not yet, -1: being made, -2: there is none.
static KEY: AtomicI32 = AtomicI32::new(0);

/// Makes the block at `at` this thread's alternate stack.
///
/// # Safety
/// Nobody else uses it.
pub unsafe fn install(at: u64) -> bool {
    let stack = Stack { at, flags: 0, reserved: 0, size: SIZE };
    // SAFETY: the kernel reads the struct.
    unsafe { sys3(SYS_SIGALTSTACK, &raw const stack as u64, 0, 0) == 0 }
}

/// The first thread's block.
pub fn first() -> u64 {
    AGENT_PAGE + PAGE
}

fn current() -> Stack {
    let mut now = Stack { at: 0, flags: SS_DISABLE, reserved: 0, size: 0 };
    // SAFETY: the kernel writes the struct.
    unsafe { sys3(SYS_SIGALTSTACK, 0, &raw mut now as u64, 0) };
    now
}

fn is_ours(s: &Stack) -> bool {
    s.flags & SS_DISABLE == 0 && s.size == SIZE && s.at.is_multiple_of(PAGE)
}

/// sigaltstack(2) as the program knows it.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn sigaltstack(new: *const Stack, old: *mut Stack) -> i32 {
    let real = real::sigaltstack.known();
    if real != 0 && dispatch::begun() {
        // SAFETY: libc's own, with the caller's pointers.
        return unsafe { without_us(real, new, old) };
    }
    // SAFETY: the caller's pointers; the kernel checks the new one.
    unsafe {
        let now = current();
        let ours = page::ready() && is_ours(&now);
        if !new.is_null() {
            // while a handler runs on ours, the program believes to be on its own stack, and may set one
            let off = ours && (*new).flags & SS_DISABLE != 0;
            let r = match own_block().filter(|_| (*new).flags & SS_DISABLE != 0 && !ours) {
                _ if off => 0,
                Some(block) => -i64::from(!install(block)),
                None => sys3(SYS_SIGALTSTACK, new as u64, 0, 0),
            };
            if r < 0 {
                return result(r) as i32;
            }
            if page::ready() && (*new).flags & SS_DISABLE == 0 && (*new).size < SMALL {
                page::flags().fetch_or(AGENT_SMALL_STACK, SeqCst);
            }
        }
        if !old.is_null() {
            (&raw mut (*old).at).write(if ours { 0 } else { now.at });
            (&raw mut (*old).flags).write(if ours { SS_DISABLE } else { now.flags });
            (&raw mut (*old).size).write(if ours { 0 } else { now.size });
        }
    }
    0
}

/// The same by the C library's own function: the agent is not called any more.
///
/// # Safety
/// `real` is that function; the others are its arguments.
unsafe fn without_us(real: usize, new: *const Stack, old: *mut Stack) -> i32 {
    // SAFETY: the caller's.
    unsafe {
        let real: unsafe extern "C" fn(*const Stack, *mut Stack) -> i32 = core::mem::transmute(real);
        let r = real(new, old);
        if r == 0 && !old.is_null() && is_ours(&*old) {
            old.write(Stack { at: 0, flags: SS_DISABLE, reserved: 0, size: 0 });
        }
        r
    }
}

/// This thread's block, if it has one.
fn own_block() -> Option<u64> {
    if !page::ready() || page::must_not_call() {
        return None;
    }
    // SAFETY: calls without arguments; pthread_getspecific of a key that exists.
    unsafe {
        if sys3(SYS_GETPID, 0, 0, 0) == sys3(SYS_GETTID, 0, 0, 0) {
            return Some(first());
        }
        let (key, get) = (KEY.load(SeqCst), real::pthread_getspecific.get());
        if key <= 0 || get == 0 {
            return None;
        }
        let get: unsafe extern "C" fn(u32) -> u64 = core::mem::transmute(get);
        Some(get(key as u32 - 1)).filter(|b| *b != 0)
    }
}

/// pthread_create(3): the thread starts with an alternate stack.
///
/// # Safety
/// As libc's.
pub unsafe extern "C" fn pthread_create(thread: u64, attr: u64, start: u64, arg: u64) -> i32 {
    type Create = unsafe extern "C" fn(u64, u64, u64, u64) -> i32;
    let create = real::pthread_create.get();
    if create == 0 {
        return EAGAIN;
    }
    // SAFETY: libc's own function, with the caller's arguments or with ours, which live in the block.
    unsafe {
        let create: Create = core::mem::transmute(create);
        let block =
            if page::ready() && !page::must_not_call() && make_key() { map_anywhere(AGENT_STACK) } else { None };
        let Some(block) = block else { return create(thread, attr, start, arg) };
        page::count_for_this_process();
        let tail = (block + SIZE) as *mut Tail;
        (*tail).start = start;
        (*tail).arg = arg;
        let r = create(thread, attr, arch::dormouse_begin as *const () as u64, block);
        if r != 0 {
            unmap(block, AGENT_STACK);
        }
        r
    }
}

/// In the new thread: its alternate stack; what it is to do, in rax and rdx.
///
/// # Safety
/// Called once, by the thread's first code, with its block.
pub unsafe extern "C" fn begin(block: u64) -> Begin {
    // SAFETY: the block is this thread's.
    unsafe {
        let tail = (block + SIZE) as *const Tail;
        let (start, arg) = ((*tail).start, (*tail).arg);
        let set = real::pthread_setspecific.get();
        if set != 0 && install(block) {
            let set: unsafe extern "C" fn(u32, u64) -> i32 = core::mem::transmute(set);
            if set(KEY.load(SeqCst) as u32 - 1, block) == 0 {
                page::covered().fetch_add(1, SeqCst);
                return Begin { start, arg };
            }
        }
        give_back(block);
        Begin { start, arg }
    }
}

/// What a thread begins with.
#[repr(C)]
pub struct Begin {
    start: u64,
    arg: u64,
}

/// The thread ends: pthread_key_create's destructor.
unsafe extern "C" fn end(block: u64) {
    // a thread that has forked is its child's first, which is not counted
    let _ = page::covered().fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
    if !page::must_not_call() {
        // SAFETY: nobody else uses the block.
        unsafe { give_back(block) }
    }
}

/// # Safety
/// Nobody else uses the block.
unsafe fn give_back(block: u64) {
    // SAFETY: off first, if it is this one.
    unsafe {
        if current().at == block {
            let off = Stack { at: 0, flags: SS_DISABLE, reserved: 0, size: 0 };
            sys3(SYS_SIGALTSTACK, &raw const off as u64, 0, 0);
        }
        unmap(block, AGENT_STACK);
    }
}

/// Makes the key if it is not there; false if there is none (yet: another thread makes it just now).
fn make_key() -> bool {
    match KEY.compare_exchange(0, -1, SeqCst, SeqCst) {
        Err(key) => key > 0,
        Ok(_) => {
            let make = real::pthread_key_create.get();
            let mut key = 0u32;
            // SAFETY: libc writes the key; the destructor is ours.
            let made = make != 0
                && unsafe {
                    let make: unsafe extern "C" fn(*mut u32, u64) -> i32 = core::mem::transmute(make);
                    make(&raw mut key, end as *const () as u64) == 0
                };
            KEY.store(if made { key as i32 + 1 } else { -2 }, SeqCst);
            made
        }
    }
}
