//! Namespaces, and PIDs of our choice in them.
use super::child::failed;
use super::{fork, in_child, no_effect, ok, pipe, read_i32, write_i32, Child, Failed, Probe};
use std::io::Error;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

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
