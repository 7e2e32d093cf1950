//! The tracer process as its recorder sees it.
use super::{raw::Rseq, EntryPlan};
use crate::channel::Watch;
use crate::inject::Layout;
use crate::seccomp::Chains;
use crate::sigframe::Regs;
use crate::{Error, Result};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// What becomes of the target when it is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// It runs on.
    Run,
    /// It is killed, without running another instruction.
    Kill,
    /// It is stopped (SIGSTOP), without running another instruction.
    Stop,
}

/// A thread's state for a new process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// TID here.
    pub tid: i32,
    /// Registers.
    pub regs: Regs,
    /// Signal mask, bit n-1 for signal n.
    pub sigmask: u64,
    /// Signals that its interrupted call's own mask blocks.
    pub call_mask: u64,
    /// Extended state in the standard format.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// rseq registration.
    pub rseq: Rseq,
    /// An unblocked signal of its own was pending.
    pub signal: bool,
}

/// All threads are stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// TIDs, ascending; visited threads have their slots in this order, without the serving one.
    pub tids: Vec<i32>,
    /// Threads that have ended but still stand in the list (a leader that called pthread_exit).
    pub ended: Vec<i32>,
    /// Where they were asked for, and the kernel tells: the seccomp filters, which are suspended until the release.
    pub filters: Option<Chains>,
}

/// The blob is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entered {
    /// Where.
    pub layout: Layout,
    /// The visited threads, by slot.
    pub visited: Vec<i32>,
    /// The serving thread.
    pub server: i32,
}

/// What the tracer saw while everything stood still.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// All threads.
    pub threads: Vec<ThreadState>,
    /// It was stopped (by SIGSTOP and kin) when it was frozen.
    pub stopped: bool,
    /// Signals pending for the process: raw siginfo.
    pub shared_pending: Vec<serde_bytes::ByteBuf>,
    /// Signals pending for each thread: (TID, raw siginfo).
    pub thread_pending: Vec<(i32, Vec<serde_bytes::ByteBuf>)>,
}

/// What a restored process does before its threads go on: the last traces of the restore go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastCalls {
    /// Address of a `syscall` instruction that is the process's own.
    pub syscall: u64,
    /// Descriptor to close: the blob's socket.
    pub close: i32,
    /// Its seccomp filters.
    pub filters: SetFilters,
    /// Address and bytes of the blob.
    pub unmap: (u64, u64),
    /// The leader ends, with this status, before any other thread goes on.
    pub end: Option<i32>,
}

/// Number and arguments of a system call that sets a filter.
pub type SetFilter = (i64, [u64; 3]);

/// How a restored process gets its seccomp filters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SetFilters {
    /// The system calls of the leader that set them, first those for all threads, of which there are [`SetFilters::common`]. What they need lies in the blob's buffer.
    pub calls: Vec<SetFilter>,
    /// How many of those come before the other threads' own.
    pub common: usize,
    /// Those of other threads, by their place among the threads.
    pub threads: BTreeMap<usize, Vec<SetFilter>>,
    /// They would not let through what comes after them: they are suspended until it is let go.
    pub suspend: bool,
    /// The leader's last call of all, by which it comes into strict mode. Those of other threads are the last of theirs.
    pub strict: Option<SetFilter>,
}

/// Requests to the tracer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Seize and stop all threads of a process, then read their states: two answers, [`Tell::Frozen`] and [`Tell::Read`]. `filtered`: its seccomp
    /// filters are told and suspended, if that is permitted. `known`: threads that were seen to be
    /// the program's.
    Freeze { pid: i32, filtered: bool, known: Vec<i32> },
    /// Bring the blob in; threads other than the serving one are not sent into it before [`Ask::Go`].
    Enter(EntryPlan),
    /// Every thread may be sent in.
    Go,
    /// Hand over what was read.
    Collect,
    /// Take the blob out; everything stands still.
    Leave,
    /// Take the blob out, if it is in, and let go.
    Release(After),
    /// Seize a process of ours that is to be restored, its threads parked in the blob.
    Adopt(Vec<i32>),
    /// Give its threads the states that the tracer was started with, make the last calls.
    Wake { tids: Vec<i32>, last: LastCalls },
    /// Let go of the woken process; with `stop` it stays stopped (SIGSTOP), without running an instruction.
    LetGo { stop: bool },
    /// The caller has heard that it runs: from here on it needs nobody.
    Farewell,
}

/// Answers of the tracer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Tell {
    Frozen(Frozen),
    Read,
    Entered(Box<Entered>),
    Snapshot(Box<Snapshot>),
    Left,
    Released { pause_ns: u64, late: u64 },
    Adopted,
    Woken,
    Failed(Failure),
}

/// An [`Error`] on its way between processes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    Call(String, i32, i32),
    Died(String, i32),
    Stuck(i32, u64, String),
    Other(String),
    Peer(String),
    Inside(String, i32, i32),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        match e {
            Error::Call { doing, pid, source } => Failure::Call(doing, pid, source.raw_os_error().unwrap_or(0)),
            Error::Died { doing, pid } => Failure::Died(doing, pid),
            Error::Stuck { tid, seconds, state } => Failure::Stuck(tid, seconds, state),
            Error::Inside { call, pid, source } => Failure::Inside(call, pid, source.raw_os_error().unwrap_or(0)),
            Error::Unfit { what } => Failure::Other(what),
            e => Failure::Peer(e.to_string()),
        }
    }
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Error {
        let io = std::io::Error::from_raw_os_error;
        match f {
            Failure::Call(doing, pid, e) => Error::Call { doing, pid, source: io(e) },
            Failure::Died(doing, pid) => Error::Died { doing, pid },
            Failure::Stuck(tid, seconds, state) => Error::Stuck { tid, seconds, state },
            Failure::Inside(call, pid, e) => Error::Inside { call, pid, source: io(e) },
            Failure::Other(what) => Error::Unfit { what },
            Failure::Peer(what) => Error::Peer { peer: "tracer", what },
        }
    }
}

pub(super) fn write_msg<T: Serialize>(s: &mut UnixStream, m: &T) -> Result<()> {
    let b = rmp_serde::to_vec(m).map_err(|e| Error::Peer { peer: "tracer", what: e.to_string() })?;
    let send = |s: &mut UnixStream| -> std::io::Result<()> {
        s.write_all(&(b.len() as u64).to_le_bytes())?;
        s.write_all(&b)
    };
    send(s).map_err(|e| Error::Peer { peer: "tracer", what: e.to_string() })
}

/// Largest message: the states of tens of thousands of threads.
const MAX_MSG: u64 = 1 << 30;

/// None at the end of the stream.
pub(super) fn read_msg<T: DeserializeOwned>(s: &mut UnixStream) -> Result<Option<T>> {
    let bad = |e: String| Error::Peer { peer: "tracer", what: e };
    let mut n = [0; 8];
    match s.read_exact(&mut n) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        r => r.map_err(|e| bad(e.to_string()))?,
    }
    let n = u64::from_le_bytes(n);
    if n > MAX_MSG {
        return Err(bad(format!("a message of {n} bytes")));
    }
    let mut b = vec![0; n as usize];
    s.read_exact(&mut b).map_err(|e| bad(e.to_string()))?;
    rmp_serde::from_slice(&b).map(Some).map_err(|e| bad(e.to_string()))
}

/// A tracer process. Dropping it makes it cure and release its target and end.
#[derive(Debug)]
pub struct Tracer {
    sock: Option<UnixStream>,
    pid: i32,
    /// It has been asked to let its target go, and has not answered yet.
    releasing: bool,
    /// It has said that the threads' states are read.
    read: bool,
}

impl Tracer {
    /// Starts one. The calling process must be single-threaded.
    pub fn start() -> Result<Tracer> {
        Tracer::start_with(Vec::new)
    }

    /// Starts one for a restore. `restored`, called there, gives what the threads will be given. The calling process must be
    /// single-threaded.
    pub fn start_with(restored: impl FnOnce() -> Vec<ThreadState>) -> Result<Tracer> {
        let (a, b) = UnixStream::pair().map_err(|e| Error::call("socketpair", std::process::id() as i32, e))?;
        // SAFETY: the child only runs the tracer's own code, on its own copy of everything, and never returns.
        match unsafe { nix::unistd::fork() } {
            Err(e) => Err(Error::Call {
                doing: "fork of the tracer".into(),
                pid: std::process::id() as i32,
                source: e.into(),
            }),
            Ok(nix::unistd::ForkResult::Child) => {
                drop(a);
                super::server::run(b, restored())
            }
            Ok(nix::unistd::ForkResult::Parent { child }) => {
                Ok(Tracer { sock: Some(a), pid: child.as_raw(), releasing: false, read: false })
            }
        }
    }

    /// PID of its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells when it has ended.
    pub fn watch(&mut self) -> Result<Watch> {
        let sock = self.sock()?.try_clone();
        sock.map(Watch::new).map_err(|e| Error::call("dup of the tracer's socket", std::process::id() as i32, e))
    }

    fn sock(&mut self) -> Result<&mut UnixStream> {
        self.sock.as_mut().ok_or_else(ended)
    }

    fn ask(&mut self, a: Ask) -> Result<Tell> {
        write_msg(self.sock()?, &a)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Tell> {
        match read_msg(self.sock()?)? {
            Some(Tell::Failed(f)) => Err(f.into()),
            Some(t) => Ok(t),
            None => Err(ended()),
        }
    }

    /// Stops all threads of a process. Their states are read while the caller does something else. `filtered`: it is under seccomp filters,
    /// which are told and suspended where that is permitted. `known`: threads that were seen to be the program's; of others it is looked whether they
    /// are io_uring's, which are left alone.
    pub fn freeze(&mut self, pid: i32, filtered: bool, known: Vec<i32>) -> Result<Frozen> {
        self.read = false;
        match self.ask(Ask::Freeze { pid, filtered, known })? {
            Tell::Frozen(f) => Ok(f),
            t => Err(odd(&t)),
        }
    }

    /// Waits until the states of all threads are read.
    pub fn wait_read(&mut self) -> Result<()> {
        if !self.read {
            match self.answer()? {
                Tell::Read => self.read = true,
                t => return Err(odd(&t)),
            }
        }
        Ok(())
    }

    /// Begins to bring the blob in: calls are made in one thread, and nothing is run in the others before [`Tracer::enter`].
    pub fn begin_to_enter(&mut self, plan: EntryPlan) -> Result<()> {
        write_msg(self.sock()?, &Ask::Enter(plan))
    }

    /// The blob is in; it will connect to the plan's address.
    pub fn enter(&mut self) -> Result<Entered> {
        self.wait_read()?;
        match self.ask(Ask::Go)? {
            Tell::Entered(e) => Ok(*e),
            t => Err(odd(&t)),
        }
    }

    /// What was read of the frozen threads; may also be asked for after the release.
    pub fn collect(&mut self) -> Result<Snapshot> {
        match self.ask(Ask::Collect)? {
            Tell::Snapshot(s) => Ok(*s),
            t => Err(odd(&t)),
        }
    }

    /// Asks for [`Tracer::release`], which has to follow, of a target that runs on: several let theirs go at the same time.
    pub fn begin_to_release(&mut self) -> Result<()> {
        write_msg(self.sock()?, &Ask::Release(After::Run))?;
        self.releasing = true;
        Ok(())
    }

    /// Takes the blob out, before [`Tracer::release`]: for a target whose descriptor table others have, who are not to run while our connection is in it.
    pub fn leave(&mut self) -> Result<()> {
        match self.ask(Ask::Leave)? {
            Tell::Left => Ok(()),
            t => Err(odd(&t)),
        }
    }

    /// Takes the blob out and lets the target go; the pause from first stop to last release, and, where it is killed, the signals
    /// that had come since the freeze (bit n-1 for signal n), which die with it.
    pub fn release(&mut self, after: After) -> Result<(std::time::Duration, u64)> {
        let told = match std::mem::take(&mut self.releasing) {
            true => self.answer()?,
            false => self.ask(Ask::Release(after))?,
        };
        match told {
            Tell::Released { pause_ns, late } => Ok((std::time::Duration::from_nanos(pause_ns), late)),
            t => Err(odd(&t)),
        }
    }

    /// Seizes a process that is being restored, of these threads, the leader first, without stopping it. If the tracer or the caller dies before
    /// [`Tracer::let_go`] has returned, so does that process.
    pub fn adopt(&mut self, tids: &[i32]) -> Result<()> {
        match self.ask(Ask::Adopt(tids.to_vec()))? {
            Tell::Adopted => Ok(()),
            t => Err(odd(&t)),
        }
    }

    /// Gives the threads of the restored process the states of [`Tracer::start_with`], in that order, the leader first, which
    /// makes the last calls. They run when they are let go.
    pub fn wake(&mut self, tids: Vec<i32>, last: LastCalls) -> Result<()> {
        match self.ask(Ask::Wake { tids, last })? {
            Tell::Woken => Ok(()),
            t => Err(odd(&t)),
        }
    }

    /// Lets go of the woken process; with `stop` it stays stopped (SIGSTOP) and has not run an instruction. It is killed if the
    /// caller does not live to hear of it, for then the restore has failed.
    pub fn let_go(&mut self, stop: bool) -> Result<()> {
        for ask in [Ask::LetGo { stop }, Ask::Farewell] {
            match self.ask(ask)? {
                Tell::Released { .. } => {}
                t => return Err(odd(&t)),
            }
        }
        Ok(())
    }
}

fn ended() -> Error {
    Error::Peer { peer: "tracer", what: "it ended".into() }
}

fn odd(t: &Tell) -> Error {
    let kind = format!("{t:?}");
    Error::Peer {
        peer: "tracer",
        what: format!("an answer out of turn: {}", kind.split(['(', ' ']).next().unwrap_or_default()),
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(sock) = self.sock.take() {
            // not only closed: a watch may hold it too
            let _ = sock.shutdown(std::net::Shutdown::Both);
        }
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None);
    }
}
