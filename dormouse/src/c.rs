//! The C interface: dormouse.h says what each call does. Results are plain numbers; what there is to say is kept for each thread.
#![allow(unsafe_code)]
use crate::{Ended, Error, Hook, HookId, Outcome};
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

const CONTINUED: c_int = 0;
const RESTORED: c_int = 1;
const ALONE: c_int = 2;

/// Text that C may read until this thread's next call. No destructor: registering one would take the loader's lock, which another thread may hold.
struct Text<const N: usize>(UnsafeCell<[u8; N]>);

thread_local! {
    static MESSAGE: Text<2048> = const { Text(UnsafeCell::new([0; 2048])) };
    static NAME: Text<256> = const { Text(UnsafeCell::new([0; 256])) };
}

impl<const N: usize> Text<N> {
    /// Keeps as much of it as there is room for; gives it to C.
    fn set(&self, text: &str) -> *const c_char {
        let mut end = text.len().min(N - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // SAFETY: it is this thread's own, and no reference to it outlives a call of ours.
        let room = unsafe { &mut *self.0.get() };
        for (to, from) in room.iter_mut().zip(text.as_bytes()[..end].iter().chain([&0])) {
            *to = if *from == 0 { b' ' } else { *from };
        }
        room[end] = 0;
        self.get()
    }

    fn get(&self) -> *const c_char {
        self.0.get() as *const c_char
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

fn say(text: &str) {
    MESSAGE.with(|m| m.set(text));
}

/// A failure as C sees it: the message kept, the code negative.
fn failed(e: &Error) -> c_int {
    say(&e.message);
    -c_int::from(e.code)
}

/// Runs `f`; no panic of ours reaches C.
fn guarded(f: impl FnOnce() -> Result<c_int, Error>) -> c_int {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(n)) => n,
        Ok(Err(e)) => failed(&e),
        Err(_) => failed(&Error::new(1, "libdormouse panicked: report this")),
    }
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_checkpoint() -> c_int {
    guarded(|| {
        Ok(match crate::checkpoint()? {
            Outcome::Continued { number } => {
                say(&format!("checkpoint {number} is complete"));
                CONTINUED
            }
            Outcome::Restored { generation, number } => {
                say(&format!("restored from checkpoint {number}, generation {generation}"));
                RESTORED
            }
            Outcome::Alone { why } => {
                say(&format!("no checkpoint was made: {why}"));
                ALONE
            }
        })
    })
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_message() -> *const c_char {
    MESSAGE.with(|m| m.get())
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_generation() -> u64 {
    crate::generation()
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_name() -> *const c_char {
    match catch_unwind(crate::name).unwrap_or_default() {
        None => std::ptr::null(),
        Some(name) => NAME.with(|n| n.set(&name)),
    }
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_disable() {
    crate::disable();
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_enable() -> c_int {
    guarded(|| crate::enable().map(|()| 0))
}

/// See dormouse.h.
///
/// # Safety
/// As [`crate::drop_memory`].
#[no_mangle]
pub unsafe extern "C" fn dormouse_drop(begin: *const c_void, len: usize) -> isize {
    // SAFETY: the caller's promise.
    match unsafe { crate::drop_memory(begin.cast(), len) } {
        Ok(n) => n as isize,
        Err(e) => failed(&e) as isize,
    }
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_keep(begin: *const c_void, len: usize) -> c_int {
    guarded(|| crate::keep_memory(begin.cast(), len).map(|()| 0))
}

/// `struct dormouse_hook`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CHook {
    name: *const c_char,
    before: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> c_int>,
    after: Option<unsafe extern "C" fn(*mut c_void, u64, *const c_char)>,
    restored: Option<unsafe extern "C" fn(*mut c_void, u64)>,
    data: *mut c_void,
}

/// The part of it that hooks use.
struct Calls(CHook);

// SAFETY: dormouse.h says that the functions are called in another thread, with `data`; what that means for it is the caller's to see to.
unsafe impl Send for Calls {}
// SAFETY: likewise; and there is one hook thread, so they are never called twice at once.
unsafe impl Sync for Calls {}

/// Room for the reason of a veto.
const REASON: usize = 512;

impl Calls {
    fn before(&self) -> Result<(), String> {
        let Some(f) = self.0.before else { return Ok(()) };
        let mut reason = [0u8; REASON];
        // SAFETY: the function that dormouse.h describes, with the room that it is told of.
        if unsafe { f(self.0.data, reason.as_mut_ptr().cast(), REASON) } == 0 {
            return Ok(());
        }
        let text = reason.split(|b| *b == 0).next().unwrap_or_default();
        Err(if text.is_empty() { "it gave no reason".into() } else { String::from_utf8_lossy(text).into_owned() })
    }

    fn after(&self, ended: &Ended) {
        let Some(f) = self.0.after else { return };
        let (n, why) = match ended {
            Ended::Made(n) => (*n, None),
            Ended::Failed(why) => (0, Some(c_string(why))),
        };
        // SAFETY: the function that dormouse.h describes; the text lives until it returns.
        unsafe { f(self.0.data, n, why.as_ref().map_or(std::ptr::null(), |w| w.as_ptr())) }
    }

    fn restored(&self, generation: u64) {
        if let Some(f) = self.0.restored {
            // SAFETY: the function that dormouse.h describes.
            unsafe { f(self.0.data, generation) }
        }
    }
}

/// See dormouse.h.
///
/// # Safety
/// `hook` points to a `struct dormouse_hook` whose name is a string; its functions and data stay good until it is removed.
#[no_mangle]
pub unsafe extern "C" fn dormouse_add_hook(hook: *const CHook) -> c_int {
    if hook.is_null() {
        return failed(&Error::new(2, "cannot register a hook: none was given"));
    }
    // SAFETY: the caller's promise.
    let (hook, name) = unsafe {
        let hook = *hook;
        let name = if hook.name.is_null() {
            "unnamed".into()
        } else {
            CStr::from_ptr(hook.name).to_string_lossy().into_owned()
        };
        (hook, name)
    };
    guarded(|| {
        let calls = std::sync::Arc::new(Calls(hook));
        let (a, b, c) = (calls.clone(), calls.clone(), calls);
        let hook =
            Hook::new(&name).before(move || a.before()).after(move |e| b.after(e)).restored(move |g| c.restored(g));
        hook.register().map(|id| id.0 as c_int)
    })
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_remove_hook(id: c_int) -> c_int {
    guarded(|| HookId(id as u32).unregister().map(|()| 0))
}

/// See dormouse.h.
#[no_mangle]
pub extern "C" fn dormouse_hook_timeout(milliseconds: c_uint) {
    crate::set_hook_timeout(Duration::from_millis(u64::from(milliseconds)));
}

/// See dormouse.h.
///
/// # Safety
/// `name` is a string.
#[no_mangle]
pub unsafe extern "C" fn dormouse_session(name: *const c_char) -> c_int {
    if name.is_null() {
        return failed(&Error::new(2, "cannot be a session: it has no name"));
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    guarded(|| crate::session(&name).map(|()| 0))
}
