//! A recorder that a supervisor starts: a child of its own, for a supervisor waits for nothing. It makes one checkpoint, answers whoever asked
//! for it, and ends. Killed, it takes nobody along: its tracer cures the program, and the end of its connection is the answer.
use crate::control::{Answer, PATIENCE};
use crate::frame::Conn;
use crate::{checkpoint, CheckpointRequest, StateDir, Target};
use image::SessionName;
use std::panic::{catch_unwind, AssertUnwindSafe};
use sys::spawn::{self, Fork};

/// Forks. None in the recorder, its PID in the supervisor.
pub(crate) fn start() -> std::io::Result<Option<i32>> {
    Ok(match spawn::fork()? {
        Fork::Child => None,
        Fork::Parent(pid) => Some(pid),
    })
}

/// What the recorder does, to its end.
pub(crate) fn work(state: &StateDir, name: &SessionName, mut conn: Conn) -> ! {
    // Out of the front's group: Ctrl-C is for the program.
    let _ = nix::unistd::setsid();
    let made = catch_unwind(AssertUnwindSafe(|| {
        checkpoint(state, &Target::Session(name.clone()), &CheckpointRequest::default())
    }));
    let answer = match made {
        Ok(Ok(made)) => Answer { n: Some(made.captured.n), ..Answer::done(made.pid) },
        Ok(Err(e)) => Answer { code: Some(e.kind.exit_code()), ..Answer::refused(e.to_string()) },
        Err(_) => Answer { code: Some(1), ..Answer::refused("the recorder panicked: report this".into()) },
    };
    // Who asked may be gone.
    let _ = conn.send(&answer, PATIENCE);
    spawn::exit_now(0)
}
