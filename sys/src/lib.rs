//! The host crate whose business is unsafe: ptrace, remote memory, procfs bytes, injection, spawning.
//! Everything that it offers is safe to call; each unsafe block says why that call holds.

pub mod agent;
pub mod api;
pub mod channel;
pub mod clock;
pub mod error;
pub mod fanotify;
pub mod fault;
pub mod fdstate;
pub mod handle;
pub mod inject;
pub mod kcmp;
pub mod mem;
pub mod mqueue;
pub mod multicast;
pub mod nest;
pub mod own;
pub mod pidfd;
pub mod pkru;
pub mod probe;
pub mod procfs;
pub mod program;
pub mod pty;
pub mod restart;
pub mod rlimit;
pub mod sched;
pub mod seccomp;
pub mod sigframe;
pub mod sockdiag;
pub mod sockopt;
pub mod spawn;
pub mod syscalls;
pub mod sysv;
pub mod tracer;
pub mod tty;
pub mod uring;
pub mod userns;

pub use error::{Error, Result};
