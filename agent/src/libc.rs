//! The C library behind us: its own versions of what we interpose, found when they are first wanted (never in the handler), and errno.
use crate::arch;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A function of the C library.
pub struct Real {
    name: &'static [u8],
    at: AtomicUsize,
}

impl Real {
    /// By its name, with a NUL.
    pub const fn new(name: &'static [u8]) -> Real {
        Real { name, at: AtomicUsize::new(0) }
    }

    /// Its address if it was wanted before, else 0.
    pub fn known(&self) -> usize {
        self.at.load(SeqCst)
    }

    /// Its address, or 0: the one that comes after ours.
    pub fn get(&self) -> usize {
        let at = self.at.load(SeqCst);
        if at != 0 {
            return at;
        }
        let found = arch::next(self.name);
        self.at.store(found, SeqCst);
        found
    }
}

/// What a wrapper of the C library returns for a raw result: -1 with errno set, or the result.
pub fn result(raw: i64) -> i64 {
    if (-4095..0).contains(&raw) {
        arch::set_errno(-raw as i32);
        return -1;
    }
    raw
}
