//! The ptrace calls themselves (ptrace(2)), each a site of fault injection.
use crate::seccomp::Filter;
use crate::sigframe::Regs;
use crate::{fault, Error, Result};
use std::io;
use std::sync::OnceLock;

const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const SETOPTIONS: u32 = 0x4200;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const O_TRACESYSGOOD: u64 = 1;
const O_EXITKILL: u64 = 0x10_0000;
const O_SUSPEND_SECCOMP: u64 = 0x20_0000;
const NT_PRSTATUS: u64 = 1;
const NT_X86_XSTATE: u64 = 0x202;
/// Largest extended state of today's CPUs, AMX included, with room to spare.
const XSTATE_MAX: usize = 16 << 10;

/// Where and how a thread's rseq area is registered (rseq(2)); `addr` 0: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rseq {
    /// Address of the area.
    pub addr: u64,
    /// Bytes registered.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
    /// Flags.
    pub flags: u32,
}

/// One ptrace call.
fn call(name: &str, request: u32, tid: i32, addr: u64, data: u64) -> Result<i64> {
    fault::point("ptrace").map_err(|e| Error::call(name, tid, e))?;
    // SAFETY: every caller in this file passes `data` as an integer, or as the address of a live buffer of the size
    // that the request is documented to use.
    let r = unsafe { libc::syscall(libc::SYS_ptrace, request as u64, tid as u64, addr, data) };
    if r < 0 {
        return Err(Error::call(name, tid, io::Error::last_os_error()));
    }
    Ok(r)
}

/// Attaches without stopping; system call stops will be marked (TRACESYSGOOD).
pub fn seize(tid: i32) -> Result<()> {
    call("PTRACE_SEIZE", SEIZE, tid, 0, O_TRACESYSGOOD).map(drop)
}

/// The same, and the thread is killed if this tracer ends (EXITKILL): for a process that is not yet whole.
pub fn seize_or_die(tid: i32) -> Result<()> {
    call("PTRACE_SEIZE", SEIZE, tid, 0, O_TRACESYSGOOD | O_EXITKILL).map(drop)
}

/// A stopped thread that was seized by [`seize_or_die`] is not killed any more if this tracer ends.
pub fn outlive_tracer(tid: i32) -> Result<()> {
    call("PTRACE_SETOPTIONS", SETOPTIONS, tid, 0, O_TRACESYSGOOD).map(drop)
}

/// Asks the thread to stop.
pub fn interrupt(tid: i32) -> Result<()> {
    call("PTRACE_INTERRUPT", INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets it go on, with a signal or 0.
pub fn cont(tid: i32, sig: i32) -> Result<()> {
    call("PTRACE_CONT", 7, tid, 0, sig as u64).map(drop)
}

/// Lets it go on until the next entry or exit of a system call.
pub fn to_syscall(tid: i32) -> Result<()> {
    call("PTRACE_SYSCALL", 24, tid, 0, 0).map(drop)
}

/// Lets go of it, with a signal or 0.
pub fn detach(tid: i32, sig: i32) -> Result<()> {
    call("PTRACE_DETACH", 17, tid, 0, sig as u64).map(drop)
}

/// General registers.
pub fn regs(tid: i32) -> Result<Regs> {
    let mut w = [0u64; 27];
    let iov = libc::iovec { iov_base: w.as_mut_ptr().cast(), iov_len: size_of_val(&w) };
    call("PTRACE_GETREGSET", GETREGSET, tid, NT_PRSTATUS, &raw const iov as u64)?;
    Regs::from_words(&w).ok_or_else(|| Error::Unfit { what: "registers of another machine".into() })
}

/// Sets the general registers, all at once.
pub fn set_regs(tid: i32, r: &Regs) -> Result<()> {
    let w = r.words();
    let iov = libc::iovec { iov_base: w.as_ptr().cast_mut().cast(), iov_len: size_of_val(&w) };
    call("PTRACE_SETREGSET", SETREGSET, tid, NT_PRSTATUS, &raw const iov as u64).map(drop)
}

/// Extended state (x87, SSE, AVX, ...) in the standard format. Its size is the machine's, the same for every thread: the
/// first call finds it, the others need not clear room for the largest.
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    static SIZE: OnceLock<usize> = OnceLock::new();
    let mut b = vec![0u8; SIZE.get().copied().unwrap_or(XSTATE_MAX)];
    let mut iov = libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    call("PTRACE_GETREGSET(XSTATE)", GETREGSET, tid, NT_X86_XSTATE, &raw mut iov as u64)?;
    b.truncate(*SIZE.get_or_init(|| iov.iov_len));
    Ok(b)
}

/// Sets the extended state.
pub fn set_xstate(tid: i32, b: &[u8]) -> Result<()> {
    let iov = libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() };
    call("PTRACE_SETREGSET(XSTATE)", SETREGSET, tid, NT_X86_XSTATE, &raw const iov as u64).map(drop)
}

/// Signal mask (the one to come back to, also inside ppoll and its kin).
pub fn sigmask(tid: i32) -> Result<u64> {
    let mut m = 0u64;
    call("PTRACE_GETSIGMASK", GETSIGMASK, tid, 8, &raw mut m as u64)?;
    Ok(m)
}

/// Sets the signal mask.
pub fn set_sigmask(tid: i32, m: u64) -> Result<()> {
    call("PTRACE_SETSIGMASK", SETSIGMASK, tid, 8, &raw const m as u64).map(drop)
}

/// rseq registration; EINVAL from kernels before 5.13 counts as none.
pub fn rseq(tid: i32) -> Result<Rseq> {
    let mut b = [0u64; 4];
    match call("PTRACE_GET_RSEQ_CONFIGURATION", GET_RSEQ_CONFIGURATION, tid, 24, b.as_mut_ptr() as u64) {
        Ok(_) => Ok(Rseq { addr: b[0], size: b[1] as u32, signature: (b[1] >> 32) as u32, flags: b[2] as u32 }),
        Err(e) if e.errno() == Some(libc::EINVAL) || e.errno() == Some(libc::EIO) => Ok(Rseq::default()),
        Err(e) => Err(e),
    }
}

/// Whether Syscall User Dispatch is on; kernels before 6.4 do not tell.
pub fn dispatches_system_calls(tid: i32) -> Result<bool> {
    const GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
    let mut b = [0u64; 4]; // struct ptrace_sud_config: mode, selector, offset, len
    let size = size_of_val(&b) as u64;
    let b_at = b.as_mut_ptr() as u64;
    match call("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, b_at) {
        Ok(_) => Ok(b[0] != 0),
        Err(e) if e.errno() == Some(libc::EINVAL) || e.errno() == Some(libc::EIO) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Pending signals of the thread, or (`shared`) of its process: the raw siginfo, 128 bytes each.
pub fn pending(tid: i32, shared: bool) -> Result<Vec<Vec<u8>>> {
    // few at a time: a thread hardly ever has one, and each place has to be cleared
    const AT_ONCE: usize = 4;
    let mut all = Vec::new();
    loop {
        let mut buf = [[0u8; 128]; AT_ONCE];
        // struct ptrace_peeksiginfo_args { u64 off; u32 flags; s32 nr; }
        let args = [all.len() as u64, shared as u64 | (AT_ONCE as u64) << 32];
        let n = call("PTRACE_PEEKSIGINFO", PEEKSIGINFO, tid, args.as_ptr() as u64, buf.as_mut_ptr() as u64)? as usize;
        all.extend(buf[..n].iter().map(|b| b.to_vec()));
        if n < AT_ONCE {
            return Ok(all);
        }
    }
}

/// The seccomp filters of a stopped thread, the oldest first; none where it is in no such mode. Only for who has CAP_SYS_ADMIN, and is under no filter itself.
pub fn seccomp_filters(tid: i32) -> Result<Vec<Filter>> {
    let mut all = Vec::new();
    loop {
        let n = all.len() as u64;
        let len = match call("PTRACE_SECCOMP_GET_FILTER", SECCOMP_GET_FILTER, tid, n, 0) {
            Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(all),
            Err(e) if n == 0 && e.errno() == Some(libc::EINVAL) => return Ok(all),
            len => len? as usize,
        };
        let mut code = vec![0u64; len];
        call("PTRACE_SECCOMP_GET_FILTER", SECCOMP_GET_FILTER, tid, n, code.as_mut_ptr() as u64)?;
        let mut metadata = [n, 0]; // struct seccomp_metadata: filter_off, flags
        let size = size_of_val(&metadata) as u64;
        let at = metadata.as_mut_ptr() as u64;
        call("PTRACE_SECCOMP_GET_METADATA", SECCOMP_GET_METADATA, tid, size, at)?;
        all.push(Filter { code: code.iter().flat_map(|i| i.to_le_bytes()).collect(), flags: metadata[1] as u32 });
    }
}

/// Keeps the filters of a stopped thread off as long as it is traced. `or_die`: it was seized by [`seize_or_die`].
pub fn suspend_seccomp(tid: i32, or_die: bool) -> Result<()> {
    let options = O_TRACESYSGOOD | O_SUSPEND_SECCOMP | if or_die { O_EXITKILL } else { 0 };
    call("PTRACE_SETOPTIONS(SUSPEND_SECCOMP)", SETOPTIONS, tid, 0, options).map(drop)
}

/// What wait4 says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// PTRACE_EVENT_STOP: interrupted, or (with a stop signal) in a group stop.
    Stop(i32),
    /// At a system call's entry or exit.
    Syscall,
    /// About to get a signal.
    Signal(i32),
    /// Ended.
    Gone,
}

/// Takes the ends of all traced threads of a process that was killed: only then are its descriptors closed and its parent told.
pub fn reap_killed() {
    loop {
        // SAFETY: no status and no rusage are asked for.
        let r = unsafe { libc::syscall(libc::SYS_wait4, -1, 0, libc::__WALL, 0) };
        if r < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

/// The next event of a traced thread (-1: of any), without waiting. Asking for any of n threads takes the kernel a walk
/// over all of them, asking for one does not.
pub fn poll_event(of: i32) -> Option<(i32, Event)> {
    let mut st = 0i32;
    // SAFETY: `st` is a valid int; no rusage is asked for. (nix's waitpid loses real-time signal stops.)
    let tid = unsafe { libc::syscall(libc::SYS_wait4, of, &raw mut st, libc::WNOHANG | libc::__WALL, 0) } as i32;
    if tid <= 0 {
        return None;
    }
    let e = if st & 0xff != 0x7f {
        Event::Gone
    } else {
        match ((st >> 8) & 0xff, st >> 16) {
            (sig, 128) => Event::Stop(sig),
            (sig, 0) if sig == libc::SIGTRAP | 0x80 => Event::Syscall,
            (sig, _) => Event::Signal(sig),
        }
    };
    Some((tid, e))
}
