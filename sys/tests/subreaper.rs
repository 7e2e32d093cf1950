//! A subreaper that is taken out of the blob while it is none for the moment (as for the fork of the snapshot child) is one again.
//! In a process of one thread, since the tracer is forked.
use dormouse_sys::channel::{Channel, Listener};
use dormouse_sys::mem::RemoteMem;
use dormouse_sys::program::Program;
use dormouse_sys::tracer::{prepare, Tracer, Visit};
use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, pipe, read, write, ForkResult};
use std::mem::offset_of;

fn main() {
    let (from, to) = pipe().unwrap();
    let (from_ready, to_ready) = pipe().unwrap();
    // SAFETY: this process has one thread, and the child ends by _exit.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            set_child_subreaper(true).unwrap();
            // what the blob's middle process is to it: a child without exit signal that has ended and is not waited for
            // SAFETY: as fork(2); the child ends at once.
            if unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } == 0 {
                // SAFETY: it has nothing to clean up.
                unsafe { libc::_exit(0) }
            }
            write(&to_ready, b"x").unwrap();
            read(&from, &mut [0]).unwrap();
            // SAFETY: ends this process; the parent's exit handlers are not for it.
            unsafe { libc::_exit(get_child_subreaper().unwrap() as i32) }
        }
    };
    read(&from_ready, &mut [0]).unwrap();
    let pid = child.as_raw();
    let listener = Listener::new().unwrap();
    let plan = prepare(pid, listener.addr(), Visit::None, Vec::new()).unwrap();
    let mut tracer = Tracer::start().unwrap();
    tracer.freeze(pid, false, Vec::new()).unwrap();
    tracer.begin_to_enter(plan).unwrap();
    let entered = tracer.enter().unwrap();
    // SAFETY: geteuid takes nothing and always succeeds.
    let (sock, _) = listener.accept(pid, unsafe { libc::geteuid() }, None).unwrap();
    let mut channel = Channel::new(sock, pid);
    let flag = entered.layout.params() + offset_of!(wire::Params, forking) as u64;
    RemoteMem::open(pid).unwrap().write(flag, &(wire::FORKING | wire::SUBREAPER_ASIDE).to_le_bytes()).unwrap();
    let mut none = Program::new();
    none.call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), 0.into()]);
    channel.run(&none).unwrap();
    // the recorder breaks off: the tracer cures, and the blob, whose conversation goes on, has no part in it
    drop(tracer);
    drop(channel);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "", "no zombie is left");
    write(&to, b"x").unwrap();
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 1), "it should be a subreaper as it was");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored");
}
