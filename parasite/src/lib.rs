//! What runs inside a target: an interpreter of programs of system calls, and the few things that no program of
//! system calls can say (make the snapshot child, start threads, leave through a signal frame).
//!
//! Rules for everything in here, since each line is surgery on somebody else's program:
//! - no std, no allocation, no TLS, no lock, no panic path, no GOT, no relocation: the blob runs where it is put;
//! - memory is touched only inside the mapping that the host prepared ([`wire::Params`]), with checked bounds;
//! - it never sleeps, polls or waits with a time-out: that would reset the restart block of the interrupted call;
//! - every way out, the end of the socket's stream included, goes through the prepared signal frame.
//!
//! All assembly is in [`arch`]. The arrow is parasite -> wire.
#![no_std]

pub mod arch;
pub mod place;
pub mod serve;
pub mod snapshot;
