//! The recorder of a supervised session: a forked child of the supervisor that makes one checkpoint, says how it went, and ends.
//!
//! A process of its own, so that the supervisor goes on passing signals, reaping and answering meanwhile (it has one thread, and a
//! checkpoint may take seconds), and so that it can be killed when a grace runs out: to the program that is the death of any
//! recorder. It is in a session of its own, out of reach of Ctrl-C, and SIGTERM ends it (`ctl kill`).
use crate::checkpoint::record;
use crate::frame::{Conn, MAX_FRONT};
use crate::front::WireError;
use crate::{LaunchError, StateDir};
use engine::{After, Error, Externals, Kind};
use image::SessionName;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use sys::pidfd::PidFd;
use sys::spawn::{self, Fork};

/// What a recorder is told to do.
#[derive(Default)]
pub(crate) struct Order {
    /// What becomes of the program.
    pub(crate) after: After,
    /// What a restore does with external ends.
    pub(crate) external: Externals,
    /// Wait for another checkpoint of the session that is under way; else none is made.
    pub(crate) wait: bool,
    /// Prune to so many when it is complete.
    pub(crate) keep: Option<usize>,
}

/// A checkpoint that a recorder made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) n: u64,
    pub(crate) pause_us: u64,
    pub(crate) took_us: u64,
    /// What is not kept, each with what is lost.
    pub(crate) reported: Vec<String>,
    /// What else is to be said.
    pub(crate) notes: Vec<String>,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Made(Made),
    /// Another checkpoint is under way, and was not to be waited for.
    Needless,
    Failed(WireError),
}

/// One that is at work.
pub(crate) struct Recorder {
    conn: Conn,
    handle: PidFd,
    said: Option<Said>,
}

impl Recorder {
    /// Starts one. `let_go` is called in the child, which must not keep open what others see the end of. Only for a process with
    /// one thread.
    pub(crate) fn start(
        state: &StateDir,
        name: &SessionName,
        order: &Order,
        let_go: impl FnOnce(),
    ) -> io::Result<Recorder> {
        let (ours, theirs) = UnixStream::pair()?;
        match spawn::fork()? {
            Fork::Parent(pid) => {
                // Our child, and nobody reaps it before we are back in the loop.
                let handle = PidFd::open(pid).map_err(io::Error::other)?;
                Ok(Recorder { conn: Conn::new(ours, MAX_FRONT)?, handle, said: None })
            }
            Fork::Child => {
                drop(ours);
                // Unwinding must not go on into the supervisor's own frames.
                let code = catch_unwind(AssertUnwindSafe(|| {
                    let_go();
                    work(theirs, state, name, order);
                }));
                spawn::exit_now(code.is_err().into())
            }
        }
    }

    /// Takes in what it says; false when it has ended.
    pub(crate) fn hear(&mut self) -> bool {
        let open = self.conn.fill();
        if let Some(Ok(said)) = self.conn.next() {
            self.said = Some(said);
        }
        open
    }

    /// How it went; None if it was killed before it could say so.
    pub(crate) fn result(self) -> Option<Result<Option<Made>, Error>> {
        Some(match self.said? {
            Said::Made(made) => Ok(Some(made)),
            Said::Needless => Ok(None),
            Said::Failed(e) => Err(LaunchError::from(e).error),
        })
    }

    /// Kills it. The program runs on as after any recorder's death.
    pub(crate) fn kill(&self) {
        // One that has just ended needs no signal.
        let _ = self.handle.kill(libc::SIGKILL);
    }
}

impl AsFd for Recorder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

fn work(stream: UnixStream, state: &StateDir, name: &SessionName, order: &Order) {
    // A fork is no group leader, and a signal can be unblocked: neither fails. All others stay blocked, as in the supervisor: what
    // came to its group before we had left that is not for us.
    let _ = nix::unistd::setsid();
    let _ = SigSet::from(Signal::SIGTERM).thread_unblock();
    let Ok(mut conn) = Conn::new(stream, MAX_FRONT) else { return };
    let result = catch_unwind(AssertUnwindSafe(|| record(state, name, order))).unwrap_or_else(|_| {
        let attempted = format!("checkpoint {name}");
        Err(Error::new(Kind::Bug, attempted, "recorder", "it panicked", "this is a bug: please report it"))
    });
    let said = match result {
        Ok(Some(made)) => Said::Made(made),
        Ok(None) => Said::Needless,
        Err(e) => Said::Failed(LaunchError::from(e).into()),
    };
    // A supervisor that is gone needs no news.
    let _ = conn.send(&said, crate::control::PATIENCE);
}
