//! What this machine and this user permit, found out by doing it: each probe tries the thing itself in a child of its
//! own and looks at what came of it. A switch in /proc or an errno says what was meant; the effect says what is.
//!
//! Only probes that need `unsafe` live here; what can be read from a file is read by whoever asks. Every probe leaves
//! nothing behind: children are reaped, mappings undone, and a child dies with its parent.
//!
//! A probing child is a fork of a process that may have threads: it makes system calls and touches its own stack, and
//! nothing else (no allocation, no lock, no unwinding).
use std::ffi::CStr;
use std::io::Error;
use std::mem::zeroed;

mod access;
pub(crate) mod child;
mod machine;
mod memory;
mod namespaces;

pub use access::{kcmp, pid_from_pidns, pidfd_getfd, ptrace, set_mm_map, timer_ids, Tracee};
pub(crate) use child::{fork, Child};
use child::{in_child, no_effect, ok, pipe, read_i32, write_i32, NO_EFFECT};
pub use machine::{file_system, xsave_bytes, FileSystem};
pub use memory::{dirty_tracking, droppable, mseal, pagemap_scan};
pub use namespaces::{namespaces, set_tid_here, time_namespace, Namespaces};

/// What came of a probe: nothing, or the error of the step that failed.
pub type Probe = Result<(), Failed>;

/// A step that did not work.
#[derive(Debug)]
pub struct Failed {
    /// What was tried: "clone(CLONE_NEWUSER)".
    pub step: &'static str,
    /// What the kernel answered; None where it said yes and did nothing.
    pub error: Option<Error>,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            Some(e) => write!(f, "{}: {e}", self.step),
            None => write!(f, "{}: accepted without effect", self.step),
        }
    }
}

impl std::error::Error for Failed {}

/// False if something (a seccomp filter) kills who does `f`: found out in a child that does it first. For a process with
/// one thread.
pub fn survives(f: impl FnOnce()) -> bool {
    let child = fork(|| {
        f();
        0
    });
    child.and_then(Child::wait).is_ok_and(|s| libc::WIFEXITED(s))
}

/// The kernel's release, as uname tells it: also where /proc/sys is covered.
pub fn kernel_release() -> String {
    // SAFETY: zero is a value of this struct of bytes, which the call fills with C strings.
    unsafe {
        let mut u: libc::utsname = zeroed();
        if libc::uname(&mut u) < 0 {
            return String::new();
        }
        CStr::from_ptr(u.release.as_ptr()).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn children() -> usize {
        std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default().split_whitespace().count()
    }

    /// Whatever a probe answers here, it answers, and leaves no child.
    #[test]
    fn every_probe_answers_and_leaves_nothing() {
        namespaces(true);
        namespaces(false);
        let _ = (set_tid_here(), time_namespace(true), time_namespace(false));
        let _ = (ptrace(Tracee::Child), ptrace(Tracee::Stranger), pidfd_getfd(), kcmp(), set_mm_map());
        let _ = (timer_ids(), pid_from_pidns(), pagemap_scan(), dirty_tracking(), xsave_bytes());
        assert_eq!(children(), 0);
    }

    /// The machines this is developed on permit all of it (KERNEL.md).
    #[test]
    fn a_child_can_be_traced() {
        ptrace(Tracee::Child).unwrap();
        pidfd_getfd().unwrap();
        kcmp().unwrap();
    }

    #[test]
    fn a_step_that_fails_says_which() {
        let e = in_child("close(-1)", || {
            // SAFETY: no such descriptor: it only fails.
            unsafe { libc::close(-1) as _ }
        });
        assert_eq!(e.unwrap_err().to_string(), "close(-1): Bad file descriptor (os error 9)");
        assert!(in_child("getpid", || 1).is_ok());
        assert!(matches!(in_child("nothing", || NO_EFFECT), Err(Failed { error: None, .. })));
    }

    #[test]
    fn the_file_system_of_proc_has_no_space() {
        let fs = file_system(Path::new("/")).unwrap();
        assert!(fs.total >= fs.free);
        assert!(file_system(Path::new("/no/such/place")).is_err());
    }
}
