//! The front: the process that the user started (launcher, ctl restore), while its supervisor starts and keeps the
//! session. It passes signals on, keeps the terminal, stops when the program stops, and returns its status.
//!
//! Which signals are passed on. The program of a launched session stays in the front's process group, so that pipelines
//! and job control are as without us; a signal to the whole group (Ctrl-C, a hang-up, `kill %1`, `fg`) therefore reaches
//! it without our help, and one that is sent to the front alone does not. The two look the same to the front, so the
//! supervisor, which is in the group too, is the witness: what both got went to the group. "Got" is made certain by a
//! barrier: a group signal is sent under the kernel's task list lock, which setpgid takes for writing, so after a setpgid
//! every member has it. What only one of the two got is passed on, as is a group signal if the program has left the group.
//!
//! SIGTSTP and SIGCONT need more care, as each clears the other where it is pending: that one of the two did not get it
//! proves nothing then. So only the front's word counts for them, and a SIGCONT that the supervisor did not see is passed
//! on only if the program has not stopped again since the stop that the front knows of.
use crate::errors::failed;
use crate::frame::{Conn, MAX_FRONT};
use crate::supervisor::{Running, Supervisor};
use crate::terminal::Terminal;
use crate::{Event, LaunchError, Outcome, Started, EXIT_FAILED, EXIT_LEFT};
use engine::{Error, Kind, Progress, Reason};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;
use sys::spawn::{self, Fork, Inherited};

/// What the front tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// The front got a signal, and by the barrier so has the supervisor if it went to the group. `stops` is the last
    /// `Stopped` that the front has heard.
    Signal { sig: i32, from: i32, stops: u64 },
    /// All that the front got before this question has been told.
    Asked { id: u64 },
}

/// What the supervisor tells the front.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToFront {
    Progress {
        phase: String,
        done: u64,
        total: u64,
    },
    Started(Started),
    Failed(WireError),
    /// The program stopped by this signal; its how many-th stop that is.
    Stopped {
        sig: i32,
        stops: u64,
    },
    /// The supervisor got a signal: tell what the front got.
    Ask {
        id: u64,
    },
    /// A trigger has made a checkpoint.
    Made {
        name: String,
        n: u64,
        pause_us: u64,
        took_us: u64,
        notes: Vec<String>,
    },
    /// A trigger's checkpoint failed.
    NotMade(WireError),
    /// The command ended with this wait status; `remain` processes that descend from it run on.
    Ended {
        status: i32,
        left: Option<u64>,
        remain: usize,
    },
}

/// A `LaunchError` that can be sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireError {
    code: u8,
    kind: u8,
    attempted: String,
    reasons: Vec<(String, String, String)>,
}

impl From<LaunchError> for WireError {
    fn from(e: LaunchError) -> WireError {
        let reasons = e.error.reasons.into_iter().map(|r| (r.object, r.why, r.remedy)).collect();
        WireError { code: e.code, kind: e.error.kind.exit_code(), attempted: e.error.attempted, reasons }
    }
}

impl From<WireError> for LaunchError {
    fn from(w: WireError) -> LaunchError {
        use Kind::*;
        let kinds = [Bug, Usage, Refused, NoSuch, Damaged, Busy, Storage, TargetDied, PutBack];
        let kind = kinds.into_iter().find(|k| k.exit_code() == w.kind).unwrap_or(Bug);
        let reasons = w.reasons.into_iter().map(|(o, y, r)| Reason::new(o, y, r)).collect();
        LaunchError { code: w.code, error: Error { kind, attempted: w.attempted, reasons } }
    }
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> LaunchError {
        LaunchError { code: EXIT_FAILED, error }
    }
}

/// What the supervisor has at hand while it starts a session.
pub(crate) struct Starting {
    pub(crate) inherited: Inherited,
    conn: std::sync::Mutex<Conn>,
}

impl Starting {
    /// Tells the front how far a restore is.
    pub(crate) fn progress(&self, p: Progress) {
        let said = ToFront::Progress { phase: p.phase.into(), done: p.done, total: p.total };
        // A front that is gone wants no progress.
        let mut conn = self.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = conn.send(&said, crate::control::PATIENCE);
    }
}

/// Signals that a front and a supervisor take by descriptor: all that can be passed on, and SIGCHLD. Not those that a
/// fault of our own raises.
pub(crate) fn signals() -> SigSet {
    let own = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL];
    let more = [Signal::SIGTRAP, Signal::SIGSYS, Signal::SIGPIPE];
    Signal::iterator().filter(|s| !own.contains(s) && !more.contains(s)).collect()
}

/// Forks a supervisor that starts a session by `start` and keeps it; returns when it runs (`detach`) or its command has
/// ended. Only for a process with one thread.
pub(crate) fn run(
    attempted: &str,
    detach: bool,
    on_event: &dyn Fn(Event),
    start: impl FnOnce(&Starting) -> Result<Running, LaunchError>,
) -> Result<Outcome, LaunchError> {
    let fail = |call: &str, e: &dyn std::fmt::Display| LaunchError::from(failed(attempted, call, e));
    // What is still in these buffers would be in the supervisor's copies too.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    let inherited = Inherited::now();
    let (ours, theirs) = UnixStream::pair().map_err(|e| fail("socketpair", &e))?;
    let before = signals().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(|e| fail("sigprocmask", &e))?;
    let outcome = match spawn::fork() {
        Ok(Fork::Child) => {
            drop(ours);
            spawn::exit_now(supervise(theirs, inherited, detach, start))
        }
        Ok(Fork::Parent(supervisor)) => {
            // What it holds is the supervisor's to use.
            drop((theirs, start));
            match Front::new(ours, supervisor, detach, on_event) {
                Ok(mut front) => {
                    front.inherited = Some(inherited);
                    front.run(attempted)
                }
                Err(e) => Err(fail("signalfd", &e)),
            }
        }
        Err(e) => Err(fail("fork", &e)),
    };
    // A mask that was readable can be set again.
    let _ = before.thread_set_mask();
    outcome
}

/// The supervisor's side of the fork, to its exit code (which nobody looks at).
fn supervise(
    stream: UnixStream,
    inherited: Inherited,
    detach: bool,
    start: impl FnOnce(&Starting) -> Result<Running, LaunchError>,
) -> i32 {
    let Ok(conn) = Conn::new(stream, MAX_FRONT) else { return 1 };
    if detach {
        // Fails only for a group leader, which a forked child is not.
        let _ = nix::unistd::setsid();
    }
    spawn::want_children();
    let starting = Starting { inherited, conn: conn.into() };
    let made = nix::sys::prctl::set_child_subreaper(true)
        .and_then(|()| SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|e| LaunchError::from(failed("start a supervisor", "subreaper or signalfd", e)));
    let result = made.and_then(|signals| Ok((start(&starting)?, signals)));
    starting.inherited.let_go();
    let mut conn = starting.conn.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match result {
        Err(e) => {
            // A front that is gone needs no reason.
            let _ = conn.send(&ToFront::Failed(e.into()), crate::control::PATIENCE);
            1
        }
        Ok((running, signals)) => Supervisor::new(running, conn, signals, detach).run(),
    }
}

/// One signal, as a signalfd gives it.
pub(crate) struct Got {
    pub(crate) sig: i32,
    pub(crate) from: i32,
}

/// Signals that are blocked but not passed on: a read or write of the terminal in the background sends SIGTTIN and SIGTTOU to
/// the whole group, and the program's own copy is what counts.
pub(crate) fn not_passed(sig: i32) -> bool {
    matches!(sig, libc::SIGCHLD | libc::SIGTTIN | libc::SIGTTOU)
}

/// All signals that have come.
pub(crate) fn drain(signals: &SignalFd) -> Vec<Got> {
    let mut all = Vec::new();
    while let Ok(Some(info)) = signals.read_signal() {
        all.push(Got { sig: info.ssi_signo as i32, from: info.ssi_pid as i32 });
    }
    all
}

/// Puts /dev/null in the place of stdin and stdout (and stderr): the program has its own copies, and whoever reads
/// the other end of a pipe must see its end when the program closes it, not when we do.
pub(crate) fn let_go_of_stdio(stderr_too: bool) {
    let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else { return };
    // Only closing the old one matters, and that happens even where these could fail.
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    if stderr_too {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

struct Front<'a> {
    conn: Conn,
    signals: SignalFd,
    supervisor: i32,
    detach: bool,
    on_event: &'a dyn Fn(Event),
    terminal: Option<Terminal>,
    started: Option<Started>,
    stops: u64,
    /// Closed when the program runs.
    inherited: Option<Inherited>,
}

impl<'a> Front<'a> {
    fn new(stream: UnixStream, supervisor: i32, detach: bool, on_event: &'a dyn Fn(Event)) -> nix::Result<Front<'a>> {
        let conn = Conn::new(stream, MAX_FRONT).map_err(|_| nix::errno::Errno::EIO)?;
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let terminal = if detach { None } else { Terminal::of_caller() };
        Ok(Front { conn, signals, supervisor, detach, on_event, terminal, started: None, stops: 0, inherited: None })
    }

    fn run(&mut self, attempted: &str) -> Result<Outcome, LaunchError> {
        loop {
            let open = self.conn.fill();
            while let Some(said) = self.conn.next::<ToFront>() {
                let said = said.map_err(|e| failed(attempted, "supervisor", e))?;
                if let Some(outcome) = self.hear(said)? {
                    return Ok(outcome);
                }
            }
            if !open {
                return Err(self.abandoned(attempted));
            }
            let mut fds = [
                PollFd::new(self.conn.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(failed(attempted, "poll", e).into()),
            }
            self.pass_on();
        }
    }

    /// Tells the supervisor every signal that has come.
    fn pass_on(&mut self) {
        let got = drain(&self.signals);
        if got.is_empty() {
            return;
        }
        barrier();
        for Got { sig, from } in got {
            if not_passed(sig) {
                continue;
            }
            if sig == libc::SIGCONT {
                self.give_terminal();
                if from == self.supervisor {
                    continue;
                }
            }
            // A supervisor that is gone is noticed by the closed socket.
            let _ = self.conn.send(&ToSupervisor::Signal { sig, from, stops: self.stops }, crate::control::PATIENCE);
        }
    }

    fn give_terminal(&mut self) {
        if let (Some(terminal), Some(started)) = (&mut self.terminal, &self.started) {
            terminal.give(started.pid);
        }
    }

    fn terminal_was_late(&mut self) -> bool {
        match (&mut self.terminal, &self.started) {
            (Some(terminal), Some(started)) => terminal.give_late(started.pid),
            _ => false,
        }
    }

    fn hear(&mut self, said: ToFront) -> Result<Option<Outcome>, LaunchError> {
        match said {
            ToFront::Progress { phase, done, total } => {
                (self.on_event)(Event::Progress(Progress { phase: interned(phase), done, total }));
            }
            ToFront::Failed(e) => {
                self.reap_supervisor();
                return Err(e.into());
            }
            ToFront::Started(started) => {
                (self.on_event)(Event::Started(started.clone()));
                self.started = Some(started.clone());
                if self.detach {
                    return Ok(Some(Outcome::Running(started)));
                }
                let _ = std::io::stdout().flush();
                let_go_of_stdio(false);
                if let Some(inherited) = self.inherited.take() {
                    inherited.let_go();
                }
                self.give_terminal();
                if started.redraw && self.terminal.is_some() {
                    // As a resize says it. Who has no handler for it never notices.
                    let resized = ToSupervisor::Signal { sig: libc::SIGWINCH, from: 0, stops: self.stops };
                    let _ = self.conn.send(&resized, crate::control::PATIENCE);
                }
            }
            // It woke in a process group of its own and wanted the terminal before it was given.
            ToFront::Stopped { sig: libc::SIGTTIN | libc::SIGTTOU, .. } if self.terminal_was_late() => {}
            ToFront::Stopped { sig, stops } => {
                self.stops = stops;
                if let Some(terminal) = &mut self.terminal {
                    terminal.take_back();
                }
                spawn::stop_self(sig);
                // Continued; or never stopped (an orphaned group): then the program keeps the terminal.
                self.give_terminal();
            }
            ToFront::Ask { id } => {
                barrier();
                self.pass_on();
                let _ = self.conn.send(&ToSupervisor::Asked { id }, crate::control::PATIENCE);
            }
            ToFront::Made { name, n, pause_us, took_us, notes } => {
                let (pause, took) = (Duration::from_micros(pause_us), Duration::from_micros(took_us));
                (self.on_event)(Event::Checkpointed { name, n, pause, took, notes });
            }
            ToFront::NotMade(e) => (self.on_event)(Event::NotCheckpointed { error: LaunchError::from(e).error }),
            ToFront::Ended { status, left, remain } => return Ok(Some(self.ended(status, left, remain))),
        }
        Ok(None)
    }

    fn ended(&mut self, status: i32, left: Option<u64>, remain: usize) -> Outcome {
        let name = self.started.as_ref().map(|s| s.name.clone()).unwrap_or_default();
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back();
            if libc::WIFSIGNALED(status) {
                terminal.put_settings_back();
            }
        }
        if let Some(n) = left {
            self.reap_supervisor();
            (self.on_event)(Event::Left { name, n });
            return Outcome::Ended { code: EXIT_LEFT };
        }
        if remain == 0 {
            self.reap_supervisor();
        } else {
            (self.on_event)(Event::Background { name, processes: remain, supervisor: self.supervisor });
        }
        Outcome::Ended { code: exit_code(status) }
    }

    /// It has said its last and ends: whoever waits for us need not find it.
    fn reap_supervisor(&self) {
        // An error says that it is gone already (SIGCHLD is ignored here).
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.supervisor), None);
    }

    fn abandoned(&mut self, attempted: &str) -> LaunchError {
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back();
        }
        let (why, remedy) = match &self.started {
            None => {
                ("it ended before the program ran".to_string(), "try again, and report this if it stays".to_string())
            }
            Some(s) => (
                format!("it was killed; the program runs on as PID {} without it", s.pid),
                format!("ctl checkpoint {0} and ctl kill {0} still work", s.name),
            ),
        };
        let object = format!("supervisor (PID {})", self.supervisor);
        LaunchError::from(Error::new(Kind::PutBack, attempted, object, why, remedy))
    }
}

/// After this, a signal to our process group that one member has got has been given to every member (see the module's
/// comment). It changes nothing, and may well be refused; the lock was taken all the same.
fn barrier() {
    let me = nix::unistd::Pid::from_raw(0);
    let _ = nix::unistd::setpgid(me, nix::unistd::getpgrp());
}

/// The exit code that stands for a wait status: the program's own, 128+n for a signal.
pub(crate) fn exit_code(status: i32) -> u8 {
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// A phase's name with the lifetime that [`Progress`] wants; there are a dozen of them.
fn interned(phase: String) -> &'static str {
    static KNOWN: Mutex<Option<HashMap<String, &'static str>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    known.get_or_insert_default().entry(phase).or_insert_with_key(|p| p.clone().leak())
}
