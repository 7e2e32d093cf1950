//! The C library behind us: its own versions of what we interpose, and errno.
//!
//! They are found as the agent starts: dlsym(3) takes the loader's lock, which another thread may hold for as long as a library's constructor runs.
//! A call that the program makes must not have to wait for that, as it would not without us.
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

    /// Its address if it was found before, else 0.
    pub fn known(&self) -> usize {
        self.at.load(SeqCst)
    }

    /// Its address, or 0: the one that comes after ours. Looked for only if it is wanted before the agent has started, or was not there then (what is
    /// loaded later may have it).
    pub fn get(&self) -> usize {
        match self.known() {
            0 => {
                let at = self.find();
                arch::forget_error();
                at
            }
            at => at,
        }
    }

    fn find(&self) -> usize {
        let at = arch::next(self.name);
        self.at.store(at, SeqCst);
        at
    }
}

macro_rules! reals {
    ($($name:ident)*) => {
        /// Those that are wanted.
        #[allow(non_upper_case_globals)]
        pub mod real {
            use super::Real;
            $(
                /// The C library's.
                pub static $name: Real = Real::new(concat!(stringify!($name), "\0").as_bytes());
            )*

            /// Finds all of them.
            pub fn find() {
                $($name.find();)*
                crate::arch::forget_error();
            }
        }
    };
}

reals! {
    sigprocmask pthread_sigmask sigsuspend sigwait sigwaitinfo sigtimedwait signalfd sigaction signal
    ppoll __ppoll_chk pselect epoll_wait epoll_pwait epoll_pwait2 semtimedop
    execve execv execvp execvpe fexecve execveat
    clock_gettime prctl syscall sigaltstack
    pthread_create pthread_key_create pthread_setspecific pthread_getspecific
}

/// What a wrapper of the C library returns for a raw result: -1 with errno set, or the result.
pub fn result(raw: i64) -> i64 {
    if (-4095..0).contains(&raw) {
        arch::set_errno(-raw as i32);
        return -1;
    }
    raw
}
