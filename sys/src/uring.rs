//! Rings of io_uring(7): what they tell of themselves in fdinfo (io_uring/fdinfo.c), by calls that change nothing, and in their memory; and how a new one is
//! brought where an old one was.
use crate::program::{Arg::Imm, CallId, Program, Reply};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

mod told;
pub use told::{told, Told};

/// Bytes of an entry of the submission queue, and of the completion queue.
pub const SQE: usize = 64;
/// See [`SQE`].
pub const CQE: usize = 16;
/// IORING_SETUP_CQSIZE: the completion queue's entries are given.
pub const SETUP_CQSIZE: u32 = 1 << 3;
/// IORING_SETUP_SUBMIT_ALL: an entry that makes no sense does not end the submission of those after it.
pub const SETUP_SUBMIT_ALL: u32 = 1 << 7;
/// IORING_SETUP_SQPOLL: a thread of the kernel's submits, with the credentials of who set it up.
pub const SETUP_SQPOLL: u32 = 1 << 1;
/// IORING_SETUP_SQ_AFF: that thread stays on one CPU.
pub const SETUP_SQ_AFF: u32 = 1 << 2;
/// IORING_SETUP_TASKRUN_FLAG: a flag of the submission queue tells that something waits to be done by a call.
pub const SETUP_TASKRUN_FLAG: u32 = 1 << 9;
/// IORING_SETUP_SINGLE_ISSUER: one thread submits, who set it up or enabled it; from others io_uring_register(2) and io_uring_enter(2) with
/// requests fail with EEXIST, also when that thread has ended.
pub const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
/// IORING_SETUP_DEFER_TASKRUN: completions come only when that thread asks for them; from others, asking fails with EEXIST.
pub const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
/// IORING_SETUP_NO_SQARRAY: the submission queue has no indices.
pub const SETUP_NO_SQARRAY: u32 = 1 << 16;
/// IORING_OFF_SQES
const OFF_SQES: libc::off_t = 0x1000_0000;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const SYS_SETUP: libc::c_long = 425;
const SYS_ENTER: libc::c_long = 426;
const SYS_REGISTER: libc::c_long = 427;
/// IORING_REGISTER_FILES: descriptors, -1 for an empty place.
pub const REGISTER_FILES: u32 = 2;
const REGISTER_EVENTFD: u32 = 4;
const REGISTER_PROBE: u32 = 8;
const REGISTER_PBUF_STATUS: u32 = 26;
const REGISTER_NAPI: u32 = 27;

/// What calls tell that change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Only the thread that it belongs to may use it (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN).
    pub single_issuer: bool,
    /// It takes some kinds of request only (IORING_REGISTER_RESTRICTIONS).
    pub restricted: bool,
    /// It was not enabled yet (IORING_SETUP_R_DISABLED).
    pub disabled: bool,
    /// The thread of the kernel's that submitted for it has ended (IORING_SETUP_SQPOLL).
    pub left: bool,
    /// It polls for completions (IORING_SETUP_IOPOLL).
    pub polls: bool,
    /// An eventfd is registered.
    pub eventfd: bool,
    /// A group of provided buffers.
    pub buffers: Option<u16>,
    /// Whether it has any such, or polls for completions, this kernel does not tell (before 6.9).
    pub untold: bool,
}

fn check(r: libc::c_long) -> io::Result<i32> {
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(r as i32)
}

/// Whether asking for completions is for another thread than the caller only; gives those that had no room that room.
pub fn defers(ring: &impl AsFd) -> bool {
    // SAFETY: to submit nothing and wait for no completion takes integers and a null pointer.
    let r =
        unsafe { libc::syscall(SYS_ENTER, ring.as_fd().as_raw_fd(), 0, 0, ENTER_GETEVENTS, std::ptr::null::<u8>(), 0) };
    check(r).is_err_and(|e| e.raw_os_error() == Some(libc::EEXIST))
}

/// Asks, inside, whether a ring of one thread is the thread's that runs the program: [`is_owner`] says what the answer means.
pub fn ask_owner(p: &mut Program, fd: i32) -> CallId {
    // told before it is seen that nothing is asked
    p.may(SYS_REGISTER, &[fd.into(), Imm(REGISTER_PROBE.into()), Imm(0), Imm(0)])
}

/// Of [`ask_owner`].
pub fn is_owner(r: &Reply, c: CallId) -> bool {
    r.raw(c) != -i64::from(libc::EEXIST) && r.raw(c) != i64::MIN
}

/// The questions of [`ask`] to a ring of one thread, as calls of that thread's.
pub struct Questions {
    general: CallId,
    napi: CallId,
    eventfd: CallId,
}

impl Questions {
    /// Asks them of descriptor `fd`.
    pub fn ask(p: &mut Program, fd: i32) -> Questions {
        let mut register = |what: u32, arg, n| p.may(SYS_REGISTER, &[fd.into(), Imm(what.into()), arg, Imm(n)]);
        let napi = register(REGISTER_NAPI, Imm(1), 1);
        let (none, probe) = (p.bytes(&(-1i32).to_ne_bytes()), p.bytes(&[0; 16]));
        let mut register = |what: u32, arg, n| p.may(SYS_REGISTER, &[fd.into(), Imm(what.into()), arg, Imm(n)]);
        Questions { general: register(REGISTER_PROBE, probe, 0), napi, eventfd: register(REGISTER_EVENTFD, none, 1) }
    }

    /// What they tell; provided buffers are asked for by [`ask_groups`].
    pub fn answers(&self, r: &Reply) -> Asked {
        let is = |c: CallId, e: i32| r.raw(c) == -i64::from(e);
        Asked {
            single_issuer: is(self.general, libc::EEXIST),
            restricted: is(self.general, libc::EACCES),
            polls: r.raw(self.general) == 0 && tells() && is(self.napi, libc::EINVAL),
            eventfd: is(self.eventfd, libc::EBUSY),
            untold: !tells(),
            ..Asked::default()
        }
    }
}

/// Asks, inside, for groups of provided buffers: -ENOENT: there is no such group.
pub fn ask_groups(p: &mut Program, fd: i32, groups: std::ops::Range<u32>) -> Vec<CallId> {
    let one = |group: u32| {
        let mut status = [0; STATUS];
        status[..4].copy_from_slice(&group.to_ne_bytes());
        let status = p.bytes(&status);
        p.may(SYS_REGISTER, &[fd.into(), Imm(REGISTER_PBUF_STATUS.into()), status, Imm(1)])
    };
    groups.map(one).collect()
}

/// Bytes of struct io_uring_buf_status.
const STATUS: usize = 40;

/// The errno of a call of which nothing but that is wanted; 0: it succeeded.
fn errno_of_register(ring: &impl AsFd, what: u32, arg: *mut libc::c_void, n: u32) -> i32 {
    // SAFETY: the callers' arguments are null, an address that is never mapped, or memory of the size that the operation has, exclusively borrowed.
    let r = check(unsafe { libc::syscall(SYS_REGISTER, ring.as_fd().as_raw_fd(), what, arg, n) });
    r.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

/// Asks a ring by calls that fail, or change nothing.
pub fn ask(ring: &impl AsFd) -> Asked {
    // struct io_uring_probe without operations
    let mut probe = [0u8; 16];
    let mut none: i32 = -1;
    // SAFETY: to submit nothing and wait for nothing takes integers and a null pointer.
    let entered =
        check(unsafe { libc::syscall(SYS_ENTER, ring.as_fd().as_raw_fd(), 0, 0, 0, std::ptr::null::<u8>(), 0) });
    let error = entered.err().and_then(|e| e.raw_os_error());
    let (disabled, left) = (error == Some(libc::EBADFD), error == Some(libc::EOWNERDEAD));
    let general = errno_of_register(ring, REGISTER_PROBE, probe.as_mut_ptr().cast(), 0);
    // one that is registered is told of before the new one is looked at, which there is none of
    let eventfd = errno_of_register(ring, REGISTER_EVENTFD, (&raw mut none).cast(), 1);
    let untold = !tells();
    let ours = general == 0 && !untold;
    Asked {
        single_issuer: general == libc::EEXIST,
        restricted: general == libc::EACCES,
        disabled,
        left,
        polls: ours && napi(ring) == libc::EINVAL,
        eventfd: eventfd == libc::EBUSY,
        buffers: (0..=u16::MAX).find(|group| ours && provided(ring, *group) != libc::ENOENT),
        untold,
    }
}

/// A ring that polls is told of before the argument is read, which nobody has there.
fn napi(ring: &impl AsFd) -> i32 {
    errno_of_register(ring, REGISTER_NAPI, std::ptr::without_provenance_mut(1), 1)
}

/// ENOENT: there is no such group of provided buffers.
fn provided(ring: &impl AsFd, group: u16) -> i32 {
    let mut status = [0u32; STATUS / 4];
    status[0] = group.into();
    errno_of_register(ring, REGISTER_PBUF_STATUS, status.as_mut_ptr().cast(), 1)
}

/// Whether this kernel has these two operations: of a new ring.
fn tells() -> bool {
    setup(1, 1, 0).is_ok_and(|(ring, _)| napi(&ring) == libc::EFAULT && provided(&ring, 0) == libc::ENOENT)
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    rest: [u32; 7],
    sq: [u32; 10],
    cq: [u32; 10],
}

/// Bytes of `struct io_uring_params`.
pub const PARAMS: usize = size_of::<Params>();

/// `struct io_uring_params` for a ring of so many entries; `cpu`: with [`SETUP_SQ_AFF`].
pub fn params(sq: u32, cq: u32, flags: u32, cpu: u32) -> Vec<u8> {
    let words = [sq, cq, flags | SETUP_CQSIZE, cpu];
    let mut b: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    b.resize(PARAMS, 0);
    b
}

/// Whether a ring of this process takes so many places for registered files.
pub fn has_places(ring: &impl AsFd, n: usize) -> io::Result<()> {
    let mut none = vec![-1i32; n];
    match errno_of_register(ring, REGISTER_FILES, none.as_mut_ptr().cast(), n as u32) {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e)),
    }
}

/// Where things lie in a ring's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// `struct io_sqring_offsets`: head, tail, mask, entries, flags, dropped, array.
    pub sq: [u32; 7],
    /// `struct io_cqring_offsets`: head, tail, mask, entries, overflow, entries of the queue, flags.
    pub cq: [u32; 7],
}

impl Offsets {
    /// As an image has them.
    pub fn words(&self) -> Vec<u32> {
        self.sq.iter().chain(&self.cq).copied().collect()
    }
}

/// A ring of this process, and where things lie in it; none has a thread of the kernel's.
pub fn setup(sq: u32, cq: u32, flags: u32) -> io::Result<(OwnedFd, Offsets)> {
    let flags = (flags | SETUP_CQSIZE) & !(SETUP_SQPOLL | SETUP_SQ_AFF);
    let mut p = Params { cq_entries: cq, flags, ..Params::default() };
    // SAFETY: the call reads and writes one Params.
    let fd = check(unsafe { libc::syscall(SYS_SETUP, sq, &raw mut p) })?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if (p.sq_entries, p.cq_entries) != (sq, cq) {
        return Err(io::Error::other(format!("it would have {} and {} entries", p.sq_entries, p.cq_entries)));
    }
    let first = |w: [u32; 10]| [w[0], w[1], w[2], w[3], w[4], w[5], w[6]];
    Ok((fd, Offsets { sq: first(p.sq), cq: first(p.cq) }))
}

/// A part of a ring's memory, in this process.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn new(ring: &impl AsFd, len: usize, offset: libc::off_t) -> io::Result<Map> {
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, ring.as_fd().as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice overlaps no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { at: at.cast(), len })
    }

    fn range(&self, at: u32, len: usize) -> io::Result<*mut u8> {
        let end = (at as usize).checked_add(len).filter(|end| *end <= self.len);
        end.ok_or_else(|| io::Error::other("beyond the ring's memory"))?;
        Ok(self.at.wrapping_add(at as usize))
    }

    fn read(&self, at: u32, len: usize) -> io::Result<Vec<u8>> {
        let from = self.range(at, len)?;
        let mut out = vec![0; len];
        // SAFETY: `from` has `len` bytes of the mapping, which lives; the kernel and others may write there, and bytes of theirs are all values.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), len) };
        Ok(out)
    }

    fn write(&self, at: u32, b: &[u8]) -> io::Result<()> {
        let to = self.range(at, b.len())?;
        // SAFETY: `to` has room for all of `b` in the mapping, which lives, is no memory of Rust's and may be written.
        unsafe { std::ptr::copy_nonoverlapping(b.as_ptr(), to, b.len()) };
        Ok(())
    }

    fn word(&self, at: u32) -> io::Result<u32> {
        Ok(self.read(at, 4)?.try_into().map_or(0, u32::from_ne_bytes))
    }

    fn set(&self, at: u32, word: u32) -> io::Result<()> {
        self.write(at, &word.to_ne_bytes())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nobody has a reference into it.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// The memory of a ring of anybody's, shared with it.
pub struct Memory {
    rings: Map,
    sqes: Map,
    o: Offsets,
    entries: (u32, u32),
    array: bool,
}

/// What is in a ring's memory, but for what follows from its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Head and tail of the submission queue.
    pub sq: (u32, u32),
    /// Head and tail of the completion queue.
    pub cq: (u32, u32),
    /// Flags of both.
    pub flags: (u32, u32),
    /// Requests whose index made no sense.
    pub dropped: u32,
    /// Completions that were lost.
    pub overflow: u32,
    /// Indices; empty where there are none.
    pub array: Vec<u8>,
    /// Entries of the submission queue.
    pub sqes: Vec<u8>,
    /// Entries of the completion queue.
    pub cqes: Vec<u8>,
}

impl Memory {
    /// Maps it. `entries`: of both queues; `array`: the submission queue has indices.
    pub fn map(ring: &impl AsFd, entries: (u32, u32), o: Offsets, array: bool) -> io::Result<Memory> {
        let cqes = o.cq[5] as usize + entries.1 as usize * CQE;
        let indices = if array { o.sq[6] as usize + entries.0 as usize * 4 } else { 0 };
        let rings = Map::new(ring, cqes.max(indices), 0)?;
        Ok(Memory { rings, sqes: Map::new(ring, entries.0 as usize * SQE, OFF_SQES)?, o, entries, array })
    }

    /// Reads all of it.
    pub fn read(&self) -> io::Result<Content> {
        let (r, o) = (&self.rings, &self.o);
        let bytes = if self.array { self.entries.0 as usize * 4 } else { 0 };
        Ok(Content {
            sq: (r.word(o.sq[0])?, r.word(o.sq[1])?),
            cq: (r.word(o.cq[0])?, r.word(o.cq[1])?),
            flags: (r.word(o.sq[4])?, r.word(o.cq[6])?),
            dropped: r.word(o.sq[5])?,
            overflow: r.word(o.cq[4])?,
            array: if self.array { r.read(o.sq[6], bytes)? } else { Vec::new() },
            sqes: self.sqes.read(0, self.entries.0 as usize * SQE)?,
            cqes: r.read(o.cq[5], self.entries.1 as usize * CQE)?,
        })
    }

    /// Writes all of it but what is the kernel's: head and flags of the submission queue, tail of the completion queue.
    pub fn write(&self, c: &Content) -> io::Result<()> {
        let (r, o) = (&self.rings, &self.o);
        self.sqes.write(0, &c.sqes)?;
        if self.array {
            r.write(o.sq[6], &c.array)?;
        }
        r.write(o.cq[5], &c.cqes)?;
        for (at, word) in
            [(o.sq[5], c.dropped), (o.cq[4], c.overflow), (o.cq[6], c.flags.1), (o.cq[0], c.cq.0), (o.sq[1], c.sq.1)]
        {
            r.set(at, word)?;
        }
        Ok(())
    }

    /// What fdinfo (`told`) shows of the `n` entries before the head of the submission queue, which is set back for that: of an idle ring. It is the program's to
    /// read only, and the kernel writes it with the next request: should this process die in between, the program finds the queue a little fuller.
    pub fn look_back<T>(&self, n: u32, told: impl FnOnce() -> T) -> io::Result<T> {
        let head = self.rings.word(self.o.sq[0])?;
        self.rings.set(self.o.sq[0], head.wrapping_sub(n))?;
        let said = told();
        self.rings.set(self.o.sq[0], head)?;
        Ok(said)
    }

    /// Lets a new ring have `n` requests that do nothing, so that its counters are those of one that has had as many.
    pub fn advance(&self, ring: &impl AsFd, n: u32) -> io::Result<()> {
        self.prepare(n)?;
        let mut done = 0;
        while done < n {
            let some = self.at_once().min(n - done);
            // SAFETY: to submit requests without waiting takes integers and a null pointer; those in the queue do nothing (IORING_OP_NOP).
            let r =
                unsafe { libc::syscall(SYS_ENTER, ring.as_fd().as_raw_fd(), some, 0, 0, std::ptr::null::<u8>(), 0) };
            if check(r)? as u32 != some {
                return Err(io::Error::other("it does not take requests"));
            }
            done += some;
            self.rings.set(self.o.cq[0], done)?;
        }
        self.has_had(n)
    }

    /// As many requests as both queues have room for: a power of two.
    fn at_once(&self) -> u32 {
        self.entries.0.min(self.entries.1)
    }

    /// Fills the queue with requests that do nothing, of which the first `n` are submitted. The kernel takes no more at once than it has entries, wherever the tail is.
    fn prepare(&self, n: u32) -> io::Result<()> {
        self.sqes.write(0, &vec![0; self.entries.0 as usize * SQE])?;
        if self.array {
            let indices: Vec<u8> = (0..self.entries.0).flat_map(u32::to_ne_bytes).collect();
            self.rings.write(self.o.sq[6], &indices)?;
        }
        self.rings.set(self.o.sq[1], n)
    }

    /// That it counts `n` requests.
    fn has_had(&self, n: u32) -> io::Result<()> {
        let c = (self.rings.word(self.o.sq[0])?, self.rings.word(self.o.cq[1])?);
        if c != (n, n) {
            return Err(io::Error::other(format!("it counts {} requests and {} completions instead of {n}", c.0, c.1)));
        }
        Ok(())
    }

    /// The same for a ring that only one thread, or one of the kernel's, may submit to: `run` runs programs there, in which the ring is `fd`.
    pub fn advance_by<E: From<io::Error>>(
        &self,
        fd: i32,
        n: u32,
        mut run: impl FnMut(&Program) -> Result<Reply, E>,
    ) -> Result<(), E> {
        self.prepare(0)?;
        let mut p = Program::new();
        let (prot, len) = (libc::PROT_READ | libc::PROT_WRITE, Imm(self.rings.len as u64));
        let map = p.call(libc::SYS_mmap, &[Imm(0), len, prot.into(), libc::MAP_SHARED.into(), fd.into(), Imm(0)]);
        p.named("mapping a ring for a moment");
        let at = run(&p)?.get(map)? as u64;
        let (some, [tail, head]) = (self.at_once(), [self.o.sq[1], self.o.cq[0]].map(|o| Imm(at + u64::from(o))));
        // wakes nobody: it is the call that adds to a word of memory, a power of two
        let (wake, nobody) = (libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG, Imm(0));
        let add = |p: &mut Program, word, many: u32| {
            let what = (FUTEX_OP_ADD | FUTEX_OP_SHIFT) << 28 | many.trailing_zeros() << 12;
            p.call(libc::SYS_futex, &[word, wake.into(), nobody, nobody, word, Imm(what.into())]);
        };
        let mut left = n;
        while left > 0 {
            let mut p = Program::new();
            while left > 0 && p.len() < AT_ONCE {
                let now = some.min(1 << left.ilog2());
                add(&mut p, tail, now);
                // a thread of the kernel's that submits is woken, and waited for
                let (many, how) = (Imm(now.into()), Imm((ENTER_GETEVENTS | ENTER_SQ_WAKEUP).into()));
                p.call(SYS_ENTER, &[fd.into(), many, many, how, Imm(0), Imm(0)]);
                p.named("requests that do nothing");
                add(&mut p, head, now);
                left -= now;
            }
            run(&p)?;
        }
        let mut p = Program::new();
        p.call(libc::SYS_munmap, &[Imm(at), len]);
        run(&p)?;
        Ok(self.has_had(n)?)
    }
}

/// Calls of one program.
const AT_ONCE: usize = 4000;
/// linux/futex.h
const FUTEX_OP_ADD: u32 = 1;
/// The number to add is a power of two, of which the exponent is given.
const FUTEX_OP_SHIFT: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_brought_where_another_was() {
        let Ok((old, o)) = setup(8, 32, 0) else { return };
        let memory = Memory::map(&old, (8, 32), o, true).unwrap();
        memory.advance(&old, 1003).unwrap();
        let mut was = memory.read().unwrap();
        assert_eq!((was.sq, was.cq), ((1003, 1003), (1003, 1003)));
        was.cq.0 = 1000; // three that were not read
        was.cqes[1000 % 32 * CQE] = 7;
        let (new, _) = setup(8, 32, 0).unwrap();
        let memory = Memory::map(&new, (8, 32), o, true).unwrap();
        memory.advance(&new, 1003).unwrap();
        memory.write(&was).unwrap();
        assert_eq!(memory.read().unwrap(), was);
    }

    #[test]
    fn what_calls_tell() {
        let Ok((plain, _)) = setup(4, 8, 0) else { return };
        let usual = Asked { untold: ask(&plain).untold, ..Asked::default() };
        assert_eq!(ask(&plain), usual);
        let disabled = setup(4, 8, 1 << 6).unwrap().0;
        assert_eq!(ask(&disabled), Asked { disabled: true, ..usual });
        let single = setup(4, 8, 1 << 12).unwrap().0;
        // bound to the thread that asks here
        assert!(std::thread::scope(|s| s.spawn(|| ask(&single)).join().unwrap()).single_issuer);
    }
}
