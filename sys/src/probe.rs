//! What this machine and this user permit, found out by doing it: each probe tries the thing itself in a child of its
//! own and looks at what came of it. A switch in /proc or an errno says what was meant; the effect says what is.
//!
//! Only probes that need `unsafe` live here; what can be read from a file is read by whoever asks. Every probe leaves
//! nothing behind: children are reaped, mappings undone, and a child dies with its parent.
//!
//! A probing child is a fork of a process that may have threads: it makes system calls and touches its own stack, and
//! nothing else (no allocation, no lock, no unwinding).
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Error};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{fence, Ordering};

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

fn failed<T>(step: &'static str) -> Result<T, Failed> {
    Err(Failed { step, error: Some(Error::last_os_error()) })
}

fn no_effect<T>(step: &'static str) -> Result<T, Failed> {
    Err(Failed { step, error: None })
}

/// -1 becomes the error of `step`.
fn ok(step: &'static str, r: libc::c_long) -> Result<libc::c_long, Failed> {
    if r < 0 {
        failed(step)
    } else {
        Ok(r)
    }
}

/// What a private PID namespace was good for. The first failure ends the row: what follows it was not tried.
#[derive(Debug)]
pub struct Namespaces {
    /// The namespaces could be made, and for an ordinary user their maps written.
    pub made: Probe,
    /// A /proc of its own could be mounted in them.
    pub proc: Option<Probe>,
    /// A process could be given a PID of our choice in them.
    pub set_tid: Option<Probe>,
}

/// The steps a child of [`namespaces`] reports, in order.
const STEPS: [&str; 4] = ["make the mounts private", "mount /proc", "clone3(set_tid)", "wait4"];

/// Makes PID and mount namespaces (and a user namespace, when `user`) the way a restore does, with a
/// /proc of its own and a process whose PID we choose.
pub fn namespaces(user: bool) -> Namespaces {
    let mut n = Namespaces { made: Ok(()), proc: None, set_tid: None };
    match namespaces_in(user, &mut n) {
        Ok(()) => {}
        Err(e) => n.made = Err(e),
    }
    n
}

fn namespaces_in(user: bool, n: &mut Namespaces) -> Probe {
    let (go_read, go_write) = pipe()?;
    let (say_read, say_write) = pipe()?;
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD;
    let step = if user {
        flags |= libc::CLONE_NEWUSER;
        "clone(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS)"
    } else {
        "clone(CLONE_NEWPID | CLONE_NEWNS)"
    };
    // SAFETY: no stack is given, so the child runs on a copy of this one, like fork; it keeps to `in_namespaces`.
    let pid = ok(step, unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? as i32;
    if pid == 0 {
        in_namespaces(go_read.as_raw_fd(), go_write.as_raw_fd(), say_write.as_raw_fd());
    }
    let _child = Child(pid);
    drop((go_read, say_write));
    if user {
        // SAFETY: they have no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let map = |file: &'static str, text: String| {
            std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|e| Failed { step: file, error: Some(e) })
        };
        map("setgroups", "deny".into())?;
        map("uid_map", format!("{uid} {uid} 1"))?;
        map("gid_map", format!("{gid} {gid} 1"))?;
    }
    write_i32(go_write.as_raw_fd(), 1);
    let mut errnos = [0i32; STEPS.len()];
    let mut got = 0;
    for e in &mut errnos {
        if read_i32(say_read.as_raw_fd(), e) != size_of::<i32>() as isize {
            break;
        }
        got += 1;
    }
    let step = |i: usize| -> Option<Probe> {
        (got > i).then(|| match errnos[i] {
            0 => Ok(()),
            e => Err(Failed { step: STEPS[i], error: Some(Error::from_raw_os_error(e)) }),
        })
    };
    n.proc = match (step(0), step(1)) {
        (Some(Ok(())), proc) => proc,
        (failed, _) => failed,
    };
    n.set_tid = match (step(2), step(3)) {
        (Some(Ok(())), wait) => wait,
        (failed, _) => failed,
    };
    Ok(())
}

/// PID 1 of the new namespaces: tries one step after the other and says each one's errno (0: it worked).
fn in_namespaces(go: i32, go_write: i32, say: i32) -> ! {
    let mut go_on = 0i32;
    let errno = |r: libc::c_long| if r < 0 { Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { 0 };
    // SAFETY: system calls on this child's own namespaces, with constant strings and memory on its own stack. The parent
    // writes to `go` once the user namespace's maps are written, and kills this child where they cannot be.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Without our own copy of the writing end, a parent that has died is the end of the file.
        libc::close(go_write);
        read_i32(go, &mut go_on);
        let private =
            errno(libc::mount(c"none".as_ptr(), c"/".as_ptr(), null(), libc::MS_REC | libc::MS_PRIVATE, null()) as _);
        write_i32(say, private);
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let proc = if private == 0 {
            errno(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), flags, null()) as _)
        } else {
            private
        };
        write_i32(say, proc);
        let child = clone3_set_tid(1234);
        if child == 0 {
            libc::_exit(0);
        }
        write_i32(say, errno(child));
        if child > 0 {
            let wrong = if child == 1234 { 0 } else { libc::EIO };
            let waited = libc::syscall(libc::SYS_wait4, child, null_mut::<i32>(), libc::__WALL, 0);
            write_i32(say, if waited == child { wrong } else { libc::ECHILD });
        }
        libc::_exit(0)
    }
}

fn read_i32(fd: i32, v: &mut i32) -> isize {
    // SAFETY: `v` is four writable bytes for which every value is right.
    unsafe { libc::read(fd, (v as *mut i32).cast(), size_of::<i32>()) }
}

fn write_i32(fd: i32, v: i32) {
    // SAFETY: four readable bytes. Nobody listening is told by the end of file, so the result says nothing more.
    unsafe { libc::write(fd, (&v as *const i32).cast(), size_of::<i32>()) };
}

/// fork by clone3 with the PID `tid` in the caller's own PID namespace.
///
/// # Safety
/// As fork: where 0 is returned, this is the child of a process that may have threads.
unsafe fn clone3_set_tid(tid: i32) -> libc::c_long {
    // SAFETY: zero is "nothing" in this struct of numbers, `tid` outlives the call, and without a stack it is a fork; the
    // caller answers for what the child does.
    unsafe {
        let mut args: libc::clone_args = zeroed();
        args.exit_signal = libc::SIGCHLD as u64;
        args.set_tid = &tid as *const i32 as u64;
        args.set_tid_size = 1;
        libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>())
    }
}

/// A process can be given a PID of our choice here, in the PID namespace we are in.
pub fn set_tid_here() -> Probe {
    // A PID that was ours a moment ago is very likely free; a few rounds, in case somebody was faster.
    for _ in 0..8 {
        let tid = fork(|| 0)?.wait_pid()?;
        // SAFETY: the child leaves at once.
        let r = unsafe { clone3_set_tid(tid) };
        if r == 0 {
            // SAFETY: ends this child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        if r > 0 {
            let got = Child(r as i32).wait_pid()?;
            return if got == tid { Ok(()) } else { no_effect("clone3(set_tid)") };
        }
        if Error::last_os_error().raw_os_error() != Some(libc::EEXIST) {
            break;
        }
    }
    failed("clone3(set_tid)")
}

/// A time namespace could be made (with a user namespace, when `user`).
pub fn time_namespace(user: bool) -> Probe {
    let flags = if user { libc::CLONE_NEWTIME | libc::CLONE_NEWUSER } else { libc::CLONE_NEWTIME };
    // SAFETY: the child changes nothing but its own namespaces.
    in_child("unshare(CLONE_NEWTIME)", move || unsafe { libc::unshare(flags) as _ })
}

/// Who is to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracee {
    /// A child of the tracer: Yama's `ptrace_scope` 1 permits it.
    Child,
    /// A process of the same user that is no descendant of the tracer: what an attach by PID meets.
    Stranger,
}

/// A process of the same user was seized, stopped, its registers read, and let go again.
pub fn ptrace(who: Tracee) -> Probe {
    // The tracee waits for a signal; it dies with us.
    let sleeper = || {
        // SAFETY: no argument points anywhere.
        unsafe { libc::pause() as _ }
    };
    let tracee = fork(sleeper)?;
    let pid = tracee.0;
    match who {
        Tracee::Child => trace(pid),
        Tracee::Stranger => {
            let (read, write) = pipe()?;
            let fd = write.as_raw_fd();
            let tracer = fork(move || {
                let (step, errno) = match trace(pid) {
                    Ok(()) => (-1, 0),
                    Err(e) => (
                        TRACE_STEPS.iter().position(|s| *s == e.step).unwrap_or(0) as i32,
                        e.error.and_then(|e| e.raw_os_error()).unwrap_or(0),
                    ),
                };
                write_i32(fd, step);
                write_i32(fd, errno);
                0
            })?;
            drop(write);
            let (mut step, mut errno) = (0, 0);
            let told = read_i32(read.as_raw_fd(), &mut step) > 0 && read_i32(read.as_raw_fd(), &mut errno) > 0;
            tracer.wait_pid()?;
            match (told, step, errno) {
                (true, -1, _) => Ok(()),
                (true, step, errno) => Err(Failed {
                    step: TRACE_STEPS.get(step as usize).copied().unwrap_or(TRACE_STEPS[0]),
                    error: (errno != 0).then(|| Error::from_raw_os_error(errno)),
                }),
                // It ended before it could tell.
                _ => Err(Failed {
                    step: "PTRACE_SEIZE killed the tracer",
                    error: Some(Error::from_raw_os_error(libc::EPERM)),
                }),
            }
        }
    }
}

const TRACE_STEPS: [&str; 5] =
    ["PTRACE_SEIZE", "PTRACE_INTERRUPT", "wait4 for the stop", "PTRACE_GETREGSET", "PTRACE_DETACH"];

/// Allocates nothing: it also runs in a forked child.
fn trace(pid: i32) -> Probe {
    // SAFETY: ptrace and wait4 on a process that is ours alone; the iovec says how large the buffer is.
    unsafe {
        ok(TRACE_STEPS[0], libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0))?;
        ok(TRACE_STEPS[1], libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0))?;
        let mut status = 0i32;
        ok(TRACE_STEPS[2], libc::syscall(libc::SYS_wait4, pid, &mut status, libc::__WALL, 0))?;
        if !libc::WIFSTOPPED(status) {
            return no_effect(TRACE_STEPS[2]);
        }
        let mut regs: libc::user_regs_struct = zeroed();
        let mut iov = libc::iovec {
            iov_base: (&mut regs as *mut libc::user_regs_struct).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        const NT_PRSTATUS: i32 = 1;
        ok(TRACE_STEPS[3], libc::ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, &mut iov))?;
        ok(TRACE_STEPS[4], libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0))?;
    }
    Ok(())
}

/// A descriptor of a child was fetched with pidfd_getfd, and it is the same open file.
pub fn pidfd_getfd() -> Probe {
    let (read, write) = pipe()?;
    // SAFETY: no argument points anywhere.
    let child = fork(|| unsafe { libc::pause() as _ })?;
    // SAFETY: system calls on a child of ours, and descriptors that nobody else owns yet.
    let theirs = unsafe {
        let pidfd = ok("pidfd_open", libc::syscall(libc::SYS_pidfd_open, child.0, 0))?;
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let fd = ok("pidfd_getfd", libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), write.as_raw_fd(), 0))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    write_i32(theirs.as_raw_fd(), 4711);
    let mut v = 0;
    if read_i32(read.as_raw_fd(), &mut v) == size_of::<i32>() as isize && v == 4711 {
        Ok(())
    } else {
        no_effect("pidfd_getfd")
    }
}

/// kcmp tells descriptors of one open file from descriptors of two.
pub fn kcmp() -> Probe {
    const KCMP_FILE: i32 = 0;
    let a = File::open("/proc/self/stat").map_err(|e| Failed { step: "open", error: Some(e) })?;
    let b = a.try_clone().map_err(|e| Failed { step: "dup", error: Some(e) })?;
    let c = File::open("/proc/self/stat").map_err(|e| Failed { step: "open", error: Some(e) })?;
    let same = |x: &File, y: &File| {
        // SAFETY: compares two descriptors of this process; no argument points anywhere.
        ok("kcmp", unsafe {
            let me = libc::getpid();
            libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, x.as_raw_fd(), y.as_raw_fd())
        })
    };
    if same(&a, &b)? == 0 && same(&a, &c)? != 0 {
        Ok(())
    } else {
        no_effect("kcmp")
    }
}

/// The kernel has PR_SET_MM_MAP (CONFIG_CHECKPOINT_RESTORE): argument areas, brk and the exe link can be restored.
pub fn set_mm_map() -> Probe {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP_SIZE: i32 = 15;
    let mut size = 0u32;
    // SAFETY: this option only writes the size of the kernel's struct to `size`.
    let r = unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &mut size as *mut u32, 0, 0) };
    ok("prctl(PR_SET_MM_MAP_SIZE)", r as _)?;
    if size > 0 {
        Ok(())
    } else {
        no_effect("prctl(PR_SET_MM_MAP_SIZE)")
    }
}

/// POSIX timers can be made with ids of our choice.
pub fn timer_ids() -> Probe {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    in_child("prctl(PR_TIMER_CREATE_RESTORE_IDS)", || {
        // SAFETY: switches a mode of this child, then makes a timer whose id is read from and written to `id`.
        unsafe {
            if libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0) < 0 {
                return -1;
            }
            let mut id = 4711i32;
            let r = libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, null::<u8>(), &mut id);
            if r == 0 && id != 4711 {
                return NO_EFFECT;
            }
            r
        }
    })
}

/// NS_GET_PID_FROM_PIDNS translates a PID of a namespace into ours.
pub fn pid_from_pidns() -> Probe {
    const NS_GET_PID_FROM_PIDNS: libc::c_ulong = 0x8004_b706;
    let ns = File::open("/proc/self/ns/pid").map_err(|e| Failed { step: "open /proc/self/ns/pid", error: Some(e) })?;
    // SAFETY: takes a PID by value and returns one.
    let (me, got) = unsafe {
        let me = libc::getpid();
        (me, libc::ioctl(ns.as_raw_fd(), NS_GET_PID_FROM_PIDNS, me as libc::c_ulong))
    };
    ok("ioctl(NS_GET_PID_FROM_PIDNS)", got as _)?;
    if got == me {
        Ok(())
    } else {
        no_effect("ioctl(NS_GET_PID_FROM_PIDNS)")
    }
}

/// One anonymous page of our own, unmapped again when it goes.
struct Page(*mut u8);

impl Page {
    fn new() -> Result<Page, Failed> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let p = unsafe {
            let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(null_mut(), PAGE, rw, private, -1, 0)
        };
        if p == libc::MAP_FAILED {
            return failed("mmap");
        }
        Ok(Page(p.cast()))
    }

    fn touch(&self) {
        // SAFETY: the page is mapped writable and ours; volatile, because nobody reads it.
        unsafe { self.0.write_volatile(1) };
        fence(Ordering::SeqCst);
    }

    fn at(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference is left.
        unsafe { libc::munmap(self.0.cast(), PAGE) };
    }
}

const PAGE: usize = 4096;

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// Whether PAGEMAP_SCAN finds `page` in `category`.
fn scan(page: &Page, category: u64) -> Result<bool, Failed> {
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    let pagemap =
        File::open("/proc/self/pagemap").map_err(|e| Failed { step: "open /proc/self/pagemap", error: Some(e) })?;
    let mut region = [0u64; 3];
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: 0,
        start: page.at(),
        end: page.at() + PAGE as u64,
        walk_end: 0,
        vec: region.as_mut_ptr() as u64,
        vec_len: 1,
        max_pages: 0,
        category_inverted: 0,
        category_mask: category,
        category_anyof_mask: 0,
        return_mask: category,
    };
    // SAFETY: `arg` is the kernel's struct of the size it says, `region` one page_region for its answer.
    let n = ok("ioctl(PAGEMAP_SCAN)", unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut arg) as _ })?;
    Ok(n == 1 && region[0] == page.at())
}

/// PAGEMAP_SCAN finds a page that was written, and only after it was.
pub fn pagemap_scan() -> Probe {
    let page = Page::new()?;
    if scan(&page, PAGE_IS_PRESENT)? {
        return no_effect("ioctl(PAGEMAP_SCAN)");
    }
    page.touch();
    if scan(&page, PAGE_IS_PRESENT)? {
        Ok(())
    } else {
        no_effect("ioctl(PAGEMAP_SCAN)")
    }
}

/// Dirty tracking by userfaultfd in its asynchronous write-protect mode: a page reads as written after it was, not before.
pub fn dirty_tracking() -> Probe {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
    const FEATURES: u64 = 1 /* PAGEFAULT_FLAG_WP */ | 1 << 13 /* WP_UNPOPULATED */ | 1 << 15 /* WP_ASYNC */;
    const MODE_WP: u64 = 2;
    const WRITEPROTECT_MODE_WP: u64 = 1;
    // SAFETY: no argument points anywhere; the descriptor is nobody else's yet.
    let uffd = unsafe {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        let fd = ok("userfaultfd", libc::syscall(libc::SYS_userfaultfd, flags))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let page = Page::new()?;
    page.touch();
    let call = |step, request, arg: &mut [u64]| {
        // SAFETY: `arg` is as long as the request number says (24, 32, 24 bytes), and the range is a page of our own.
        ok(step, unsafe { libc::ioctl(uffd.as_raw_fd(), request, arg.as_mut_ptr()) as _ })
    };
    call("ioctl(UFFDIO_API, WP_ASYNC)", UFFDIO_API, &mut [0xaa, FEATURES, 0])?;
    call("ioctl(UFFDIO_REGISTER)", UFFDIO_REGISTER, &mut [page.at(), PAGE as u64, MODE_WP, 0])?;
    call("ioctl(UFFDIO_WRITEPROTECT)", UFFDIO_WRITEPROTECT, &mut [page.at(), PAGE as u64, WRITEPROTECT_MODE_WP])?;
    if scan(&page, PAGE_IS_WRITTEN)? {
        return no_effect("userfaultfd write protection");
    }
    page.touch();
    if scan(&page, PAGE_IS_WRITTEN)? {
        Ok(())
    } else {
        no_effect("userfaultfd write protection")
    }
}

/// Bytes of the register state that this CPU and kernel save (xsave, what is enabled in XCR0).
pub fn xsave_bytes() -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        #[allow(unused_unsafe)]
        // SAFETY: every x86_64 CPU has the instruction.
        let (highest, d) = unsafe { (__cpuid(0).eax, __cpuid_count(0xd, 0)) };
        (highest >= 0xd && d.ebx > 0).then_some(d.ebx)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// A file system, as statfs tells it.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Its kind's magic number.
    pub magic: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes free for this user.
    pub free: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

impl FileSystem {
    /// The kind's name where it is a common one.
    pub fn name(&self) -> &'static str {
        match self.magic {
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlay",
            0x6969 => "nfs",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            0x6573_5546 => "fuse",
            0x0102_1997 => "9p",
            0x4d44 => "vfat",
            0xff53_4d42 | 0xfe53_4d42 => "smb",
            0x8584_58f6 => "ramfs",
            0xca45_1a4e => "bcachefs",
            _ => "an uncommon one",
        }
    }

    /// Whether what it holds is gone after a reboot.
    pub fn is_memory(&self) -> bool {
        matches!(self.magic, 0x0102_1994 | 0x8584_58f6)
    }
}

/// The file system that holds `path`.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: zero is a value of this struct of numbers; the path is a C string and the answer fits `s`.
    let s = unsafe {
        let mut s: libc::statfs64 = zeroed();
        if libc::statfs64(path.as_ptr(), &mut s) < 0 {
            return Err(Error::last_os_error());
        }
        s
    };
    let block = if s.f_frsize > 0 { s.f_frsize } else { s.f_bsize } as u64;
    Ok(FileSystem {
        magic: s.f_type as u64 & 0xffff_ffff,
        total: s.f_blocks.saturating_mul(block),
        free: s.f_bavail.saturating_mul(block),
        read_only: s.f_flags as u64 & libc::ST_RDONLY != 0,
    })
}

/// A forked child: killed and reaped when it goes.
pub(crate) struct Child(i32);

impl Child {
    /// Waits for its end by itself; its PID, which is free now.
    fn wait_pid(self) -> Result<i32, Failed> {
        let pid = self.0;
        self.wait().map(|_| pid)
    }

    /// Waits for its end by itself; its wait status.
    pub(crate) fn wait(self) -> Result<i32, Failed> {
        let pid = self.0;
        std::mem::forget(self);
        reap(pid)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet reaped: the PID is still its.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        let _ = reap(self.0);
    }
}

fn reap(pid: i32) -> Result<i32, Failed> {
    let mut status = 0i32;
    loop {
        // SAFETY: our own child; the status goes to a local.
        let r = unsafe { libc::syscall(libc::SYS_wait4, pid, &mut status, libc::__WALL, 0) };
        if r >= 0 {
            return Ok(status);
        }
        if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return failed("wait4");
        }
    }
}

/// Forks a child that does `f`, which may only make system calls, and ends.
pub(crate) fn fork(f: impl FnOnce() -> libc::c_long) -> Result<Child, Failed> {
    let parent = std::process::id() as i32;
    // SAFETY: the child only makes system calls (`f` promises it) and leaves by _exit. A raw clone rather than fork:
    // libc's runs handlers of pthread_atfork.
    let pid = ok("fork", unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? as i32;
    if pid > 0 {
        return Ok(Child(pid));
    }
    // SAFETY: as above.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // It may have died before that.
        if libc::getppid() != parent {
            libc::_exit(libc::EIO);
        }
        libc::_exit(f() as i32)
    }
}

/// What `f` in [`in_child`] returns where the kernel said yes and did nothing.
const NO_EFFECT: libc::c_long = -2;

/// Does `f`, a system call, in a child; its errno comes back in the exit status.
fn in_child(step: &'static str, f: impl FnOnce() -> libc::c_long) -> Probe {
    let child = fork(|| match f() {
        NO_EFFECT => 255,
        r if r < 0 => Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) as _,
        _ => 0,
    })?;
    let status = child.wait()?;
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, 255) => no_effect(step),
        (true, errno) => Err(Failed { step, error: Some(Error::from_raw_os_error(errno)) }),
        // A filter that kills ended it.
        _ => Err(Failed { step, error: Some(Error::from_raw_os_error(libc::EPERM)) }),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failed> {
    let mut fds = [0i32; 2];
    // SAFETY: the two descriptors go to an array of two, and are nobody else's.
    unsafe {
        ok("pipe2", libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) as _)?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
