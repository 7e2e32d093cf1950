//! The first process of a restore: a child of ours that runs nothing but the blob from its first instruction on.
//!
//! The blob's mapping is made in this process, at an address that is free here and in the image, so that the child has it
//! by the fork itself; here it is unmapped again at once. No code of ours runs in the child, and no std.
use crate::inject::Layout;
use crate::{Error, Result};
use std::io;

/// New user namespace.
pub const NEW_USER: u64 = 0x1000_0000;
/// New PID namespace.
pub const NEW_PID: u64 = 0x2000_0000;
/// New mount namespace.
pub const NEW_MOUNTS: u64 = 0x0002_0000;
/// clone3 flag: handlers become the default action.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// `struct clone_args`, 88 bytes (linux/sched.h).
const CLONE_ARGS: usize = 11;
/// Signature of glibc's rseq registrations on x86 (sys/rseq.h, RSEQ_SIG).
const RSEQ_SIGNATURE: u32 = 0x5305_3053;

/// Memory that this process shares with the children that it has from now on; unmapped in this one when dropped.
#[derive(Debug)]
pub struct Shared {
    at: u64,
    len: u64,
}

impl Shared {
    /// Maps `len` bytes at `at`, where nothing may be.
    pub fn map(at: u64, len: u64) -> Result<Shared> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: with MAP_FIXED_NOREPLACE a new mapping replaces nothing.
        let got = unsafe { libc::mmap(at as *mut libc::c_void, len as usize, prot, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(call("mmap of shared memory", io::Error::last_os_error()));
        }
        // a kernel before 4.17 takes the flag for a hint
        let shared = Shared { at: got as u64, len };
        match shared.at == at {
            true => Ok(shared),
            false => Err(call("mmap of shared memory", io::Error::from_raw_os_error(libc::EEXIST))),
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` made, and nothing of this process points into it.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.len as usize) };
    }
}

/// The blob's mapping in this process; unmapped when dropped.
struct Copy<'a>(&'a Layout);

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` made, and nothing of this process points into it.
        unsafe { libc::munmap(self.0.base as *mut libc::c_void, self.0.len as usize) };
    }
}

fn call(doing: &str, e: io::Error) -> Error {
    Error::Call { doing: doing.into(), pid: std::process::id() as i32, source: e }
}

/// Maps and fills the blob at `l.base`, which must be free.
fn map<'a>(l: &'a Layout, sock: i32) -> Result<Copy<'a>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: with MAP_FIXED_NOREPLACE a new mapping replaces nothing.
    let at = unsafe {
        libc::mmap(l.base as *mut libc::c_void, l.len as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(call("mmap of the blob", io::Error::last_os_error()));
    }
    let copy = Copy(l);
    if at as u64 != l.base {
        // a kernel before 4.17 takes the flag for a hint
        // SAFETY: the mapping was just made and holds nothing.
        unsafe { libc::munmap(at, l.len as usize) };
        std::mem::forget(copy);
        return Err(call("mmap of the blob", io::Error::from_raw_os_error(libc::EEXIST)));
    }
    let put = |addr: u64, b: &[u8]| {
        debug_assert!(addr >= l.base && addr + b.len() as u64 <= l.base + l.len);
        // SAFETY: the layout keeps all its parts inside the mapping, which is writable and which nobody else uses.
        unsafe { std::ptr::copy_nonoverlapping(b.as_ptr(), addr as *mut u8, b.len()) };
    };
    l.content(sock).iter().for_each(|(at, bytes)| put(*at, bytes));
    // SAFETY: the code part of the same mapping.
    if unsafe { libc::mprotect(l.base as *mut libc::c_void, l.code as usize, libc::PROT_READ | libc::PROT_EXEC) } < 0 {
        return Err(call("mprotect of the blob", io::Error::last_os_error()));
    }
    Ok(copy)
}

/// Makes a child that serves on `sock` (its own copy of that descriptor of ours), with PID `pid` (0: any) and the new
/// namespaces `spaces` (`NEW_` constants). It keeps the descriptors `kept` (first and last) and closes all others before
/// anything else, so that what we hold is at an end when we are. All signals are blocked in it, no handler of ours is set.
///
/// This process must have one thread. Gives the child's PID as seen from here.
pub fn first_child(l: &Layout, sock: i32, kept: (i32, i32), pid: i32, spaces: u64) -> Result<i32> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| Error::File { path: "/proc/self/task".into(), source })?;
    if threads.count() != 1 {
        return Err(Error::Unfit { what: "a process with several threads cannot restore".into() });
    }
    let _copy = map(l, sock)?;
    let mut args = [0u64; CLONE_ARGS];
    args[0] = spaces | CLEAR_SIGHAND;
    args[4] = libc::SIGCHLD as u64;
    if pid != 0 {
        args[8] = &raw const pid as u64;
        args[9] = 1;
    }
    let old = nix::sys::signal::SigSet::all()
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
        .map_err(|e| call("sigprocmask", e.into()))?;
    let r = clone_into(l, &args, kept);
    let _ = old.thread_set_mask();
    if r < 0 {
        return Err(call("clone3", io::Error::from_raw_os_error(-r as i32)));
    }
    Ok(r as i32)
}

/// clone3 whose child closes what it does not keep and jumps into the blob. The blob's mapping has to be there.
fn clone_into(l: &Layout, args: &[u64; CLONE_ARGS], kept: (i32, i32)) -> i64 {
    let ret: i64;
    let entry = [l.stack(), l.params(), l.serve_entry(), kept.0 as u64 - 1, kept.1 as u64 + 1];
    // SAFETY: without CLONE_VM the child has its own copy of the memory; it reads `entry`, leaves this stack for the one in
    // the blob's mapping and never comes back. The parent only loses rcx and r11. `args` and the PID it points to live.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor edx, edx",
            "mov esi, [r12 + 24]",
            "xor edi, edi",
            "mov eax, 436", // close_range
            "syscall",
            "mov edi, [r12 + 32]",
            "mov esi, -1",
            "mov eax, 436",
            "syscall",
            "mov rsp, [r12]",
            "mov rdi, [r12 + 8]",
            "xor ebp, ebp",
            "cld",
            "jmp [r12 + 16]",
            "2:",
            inlateout("rax") libc::SYS_clone3 => ret, in("rdi") args.as_ptr(), in("rsi") size_of_val(args),
            in("r12") entry.as_ptr(), lateout("rcx") _, lateout("r11") _,
        );
    }
    ret
}

/// Where and with which length and signature the C library has registered rseq for this thread, which a child inherits.
pub fn own_rseq() -> Option<(u64, u32, u32)> {
    // SAFETY: dlsym only looks the name up among what is loaded.
    let sym = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    if sym.is_null() {
        return None;
    }
    // SAFETY: glibc documents `__rseq_offset` as a constant ptrdiff_t.
    let offset = unsafe { *(sym as *const isize) };
    let tp: u64;
    // SAFETY: the x86-64 TLS ABI keeps the thread pointer's own address at fs:0.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) tp, options(nostack, readonly)) };
    let area = tp.wrapping_add(offset as u64);
    // SAFETY: getauxval reads the vector; AT_RSEQ_FEATURE_SIZE is 27.
    let feature = unsafe { libc::getauxval(27) } as u32;
    let sizes = [32, feature, feature.div_ceil(32) * 32, 64];
    // the right length is the one that the kernel calls busy; another is invalid
    let right = sizes.into_iter().filter(|s| *s >= 32).find(|size| {
        // SAFETY: registering again what is registered, or something invalid, changes nothing.
        let r = unsafe { libc::syscall(libc::SYS_rseq, area, *size, 0, RSEQ_SIGNATURE) };
        r == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY)
    });
    right.map(|size| (area, size, RSEQ_SIGNATURE))
}

/// End of the address space that this CPU and kernel give to programs.
pub fn task_size() -> u64 {
    0x7fff_ffff_f000
}

/// A copy of descriptor `fd` of this process at `min` or above.
pub fn dup_above(fd: i32, min: i32) -> Result<std::os::fd::OwnedFd> {
    // SAFETY: fcntl takes three integers and touches no memory.
    let r = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, min) };
    if r < 0 {
        return Err(call(&format!("duplicating descriptor {fd} above {min}"), io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(r) })
}

/// Features of the extended state that this CPU and kernel keep (XCR0); x87 and SSE where there is no XSAVE.
pub fn xcr0() -> u64 {
    // CPUID leaf 1 is there on every x86-64 CPU
    let osxsave = std::arch::x86_64::__cpuid(1).ecx & 1 << 27 != 0;
    if !osxsave {
        return 3;
    }
    let (lo, hi): (u32, u32);
    // SAFETY: xgetbv with ecx 0 reads XCR0; OSXSAVE says that it may.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags));
    }
    u64::from(hi) << 32 | u64::from(lo)
}
