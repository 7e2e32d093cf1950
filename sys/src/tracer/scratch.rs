//! Where the signal frame of a foreign call goes. If the tracer is killed in such a call, some of the frame stays there: so it must
//! be memory that nothing lives in, and what was there is given back in any case.
//!
//! 1. Below the red zone of a thread that stands on the main stack: what the kernel itself overwrites when it delivers a signal,
//!    and by the same rule grows if it has to.
//! 2. A thread on another stack (a coroutine's may be small, and other things lie below it): the lowest bytes of the main stack, if
//!    they were never written.
//! 3. If they were, below its red zone, where its mapping has the room; else that of another thread, which then serves.
use super::tasks::{Task, Tasks};
use crate::mem::RemoteMem;
use crate::procfs::vma_at;
use crate::{Error, Result};

/// Bytes below the stack pointer that belong to the program (System V ABI for x86-64).
const RED_ZONE: u64 = 128;
/// Frames begin at multiples of this.
const ALIGN: u64 = 64;
/// Bytes of the main stack's lowest for each process that has it: more than a frame with all of today's extended state (AMX: 11 KiB).
const LOWEST: u64 = 16 << 10;
/// How many threads are looked at for room.
const MAX_TRIED: usize = 64;

/// A place that is in use, and what was there.
#[derive(Debug)]
pub struct Borrowed {
    /// The thread whose frame it is.
    pub tid: i32,
    /// Where.
    pub at: u64,
    /// What it held.
    pub was: Vec<u8>,
}

/// Picks a thread, `first` if it can be, and a place of `len` bytes for its frame. `stack`: the main stack when it was last seen; `nth`: how many processes with
/// the same memory may have frames there at the same time (all are cured at once when their recorder dies).
pub fn pick(
    tasks: &Tasks,
    mem: &RemoteMem,
    first: i32,
    (stack, nth): (Option<(u64, u64)>, u64),
    len: u64,
) -> Result<(i32, u64)> {
    let main = stack.and_then(|s| mapping(tasks.pid, s.1 - 1));
    if let Some(at) = for_first(tasks, mem, first, (main, nth), len) {
        return Ok((first, at));
    }
    let strict = tasks.all.get(&first).is_some_and(|t| t.strict);
    let is_other = |(tid, t): &(&i32, &Task)| **tid != first && t.stopped && t.strict == strict;
    let others = tasks.all.iter().filter(is_other).map(|(tid, _)| *tid);
    let found = others.take(MAX_TRIED).find_map(|tid| Some((tid, below(tasks, mem, tid, len, None)?)));
    found.ok_or_else(|| Error::Unfit {
        what:
            "there is no room for a signal frame: no thread has it below its stack pointer, and the main stack is full"
                .into(),
    })
}

fn for_first(
    tasks: &Tasks,
    mem: &RemoteMem,
    tid: i32,
    (main, nth): (Option<(u64, u64)>, u64),
    len: u64,
) -> Option<u64> {
    let rsp = tasks.all.get(&tid)?.regs.rsp;
    match main {
        Some(m) if m.0 < rsp && rsp <= m.1 => below(tasks, mem, tid, len, main),
        Some((start, end)) => {
            let at = start + nth * LOWEST;
            let fits = len <= LOWEST && never_written(mem, (at, end), len) && is_free(tasks, 0, at, len);
            if fits {
                Some(at)
            } else {
                below(tasks, mem, tid, len, None)
            }
        }
        None => below(tasks, mem, tid, len, None),
    }
}

/// Below a thread's red zone, in private and writable memory. `grows`: the main stack, if that is what it stands on.
fn below(tasks: &Tasks, mem: &RemoteMem, tid: i32, len: u64, grows: Option<(u64, u64)>) -> Option<u64> {
    let rsp = tasks.all.get(&tid)?.regs.rsp;
    let at = rsp.checked_sub(RED_ZONE + len)? & !(ALIGN - 1);
    let (start, _) = grows.or_else(|| mapping(tasks.pid, rsp.checked_sub(1)?))?;
    // access to /proc/PID/mem lets a stack grow as the program's own would
    let room = at >= start || grows.is_some() && mem.read(at, &mut vec![0; len as usize]).is_ok();
    (room && is_free(tasks, tid, at, len)).then_some(at)
}

/// Start and end of the mapping at an address, if it is private and writable.
fn mapping(pid: i32, addr: u64) -> Option<(u64, u64)> {
    let (start, end, p) = vma_at::read(pid, addr).ok().flatten()?;
    (p.read && p.write && !p.shared).then_some((start, end))
}

fn never_written(mem: &RemoteMem, main: (u64, u64), len: u64) -> bool {
    let mut b = vec![1; len as usize];
    main.1.saturating_sub(main.0) >= len && mem.read(main.0, &mut b).is_ok() && b.iter().all(|b| *b == 0)
}

/// No other thread than `but` stands there.
fn is_free(tasks: &Tasks, but: i32, at: u64, len: u64) -> bool {
    !tasks.all.iter().any(|(tid, t)| *tid != but && (at..at + len + RED_ZONE).contains(&t.regs.rsp))
}
