//! Door 2, attach: a small tracer process of its own seizes every thread, brings the blob in and takes it out again.
//!
//! ptrace lives in that process and nowhere else: the recorder can be killed at any instant, the tracer sees the end of
//! its socket and cures the target. The tracer can be killed too: see [`enter`].
mod enter;
mod leader;
mod plan;
mod proto;
mod raw;
mod scratch;
mod server;
mod stops;
mod strict;
mod tasks;
mod wake;

pub use plan::{prepare, EntryPlan, Visit};
pub use proto::{After, Entered, Frozen, LastCalls, SetFilter, SetFilters, Snapshot, ThreadState, Tracer};
pub use raw::Rseq;

use crate::inject::Layout;

/// Bytes of buffer that each visited thread's program may use.
pub const VISIT_BUF: u64 = 72;
/// Where the visits' calls begin in the request buffer: behind what the serving thread's first requests take.
const VISIT_CALLS: u64 = 64 << 10;

/// Where a visited thread's things lie.
#[derive(Clone, Copy, Debug)]
pub struct VisitPlace {
    /// Its calls.
    pub calls: u64,
    /// Its results, an i64 a call.
    pub results: u64,
    /// Its [`VISIT_BUF`] bytes of buffer.
    pub buf: u64,
}

/// Place of visited thread `i` of `n`, each with `ncalls` calls.
pub fn visit_place(l: &Layout, n: u64, ncalls: u64, i: u64) -> VisitPlace {
    let calls = l.request() + VISIT_CALLS;
    let size = ncalls * size_of::<wire::Call>() as u64;
    VisitPlace { calls: calls + i * size, results: calls + n * size + i * ncalls * 8, buf: l.buffer() + i * VISIT_BUF }
}
