//! Door 1: the library that `launcher` preloads. It does nothing until a recorder calls a thread into its signal handler; there the thread
//! parks, or serves the recorder with the parasite's serve loop. It holds no descriptor and starts no thread.
//!
//! Rules for everything in here, beyond those of the parasite:
//! - raw system calls only: another thread may hold any lock of libc's when all are parked;
//! - errno and all of the thread's TLS stay untouched; the extended state comes back from the kernel's frame;
//! - recorder gone: everyone is released. Whatever does not fit, the handler returns, as if the signal had not come.
#![no_std]

pub mod arch;
mod context;
mod deadline;
mod dispatch;
mod filters;
mod handler;
pub mod interpose;
mod libc;
mod page;
mod stacks;
mod start;
pub mod triggers;

pub use start::start;
