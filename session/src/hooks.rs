//! What a program that uses libdormouse has to say about a checkpoint before it is made: critical sections are waited for, and its hooks run.
//!
//! Hooks run in the program's own hook thread while everything still runs. The recorder wakes it by a signal to that one thread, whose value is
//! the key of a fresh abstract address; the thread connects, and the conversation (frames as on the control socket) is
//!
//! ```text
//! recorder: before              thread: running NAME, for each; then ready, or a veto with its reason
//! ... the checkpoint; the connection is the library's own, and in a restored program reads as ended ...
//! recorder: after, n or error   thread: running NAME, for each; then done
//! ```
//!
//! The end of the connection without an `after` tells the thread that the recorder is gone, or, if its generation has changed, that the
//! program was restored.
use crate::frame::{Conn, MAX_CONTROL};
use crate::Result;
use engine::{After, Error, Kind};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::{Duration, Instant};
use sys::api::Block;
use sys::channel::Listener;
use sys::mem::RemoteMem;
use sys::procfs::status;

/// How long a checkpoint waits for a program to leave its critical section. Documented in dormouse.h.
const CRITICAL: Duration = Duration::from_secs(10);

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Say<'a> {
    Before { after: &'a str },
    After { n: Option<u64>, error: Option<&'a str> },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Heard {
    Running(String),
    Ready,
    Veto { hook: String, reason: String },
    Done,
}

/// A program that uses libdormouse.
pub(crate) struct Program<'a> {
    pid: i32,
    inner: i32,
    uid: u32,
    mem: RemoteMem,
    attempted: &'a str,
    until: Instant,
}

/// Its hooks have been run and let the checkpoint be made.
pub(crate) struct Round {
    conn: Conn,
    patience: Duration,
}

impl Program<'_> {
    /// None if it does not use the library, or cannot be looked into (which the engine says).
    pub(crate) fn of(pid: i32, attempted: &str) -> Option<Program<'_>> {
        let status = status::read(pid).ok()?;
        let inner = status.ns_tgid.last().copied().unwrap_or(pid);
        let mem = RemoteMem::open(pid).ok()?;
        Block::read(&mem, inner)?;
        Some(Program { pid, inner, uid: status.uid.effective, mem, attempted, until: Instant::now() + CRITICAL })
    }

    fn block(&self) -> Option<Block> {
        Block::read(&self.mem, self.inner)
    }

    /// Whether a checkpoint that was refused is worth another try: it was in a critical section in the freeze, and there is time.
    pub(crate) fn again(&self, e: &Error) -> bool {
        e.kind == Kind::Busy && Instant::now() < self.until
    }

    /// Waits, within bounds, until the program is in no critical section.
    pub(crate) fn wait_enabled(&self) -> Result<()> {
        loop {
            let n = self.block().map_or(0, |b| b.disabled());
            if n == 0 {
                return Ok(());
            }
            let left = self.until.saturating_duration_since(Instant::now());
            let busy = || {
                let why = format!(
                    "it is in a critical section (dormouse_disable, {n} deep), for {} s now",
                    CRITICAL.as_secs()
                );
                self.error(Kind::Busy, why, "try again when it has left it (dormouse_enable)")
            };
            if left.is_zero() {
                return Err(busy());
            }
            let listener = Listener::new().map_err(|e| self.failed(e))?;
            Block::wait_for_enable(&self.mem, listener.key()).map_err(|e| self.failed(e))?;
            // Left before it could see that somebody waits: it will not connect.
            if self.block().is_some_and(|b| b.disabled() > 0)
                && !matches!(listener.accept_within(self.pid, self.uid, None, left), Ok(Some(_)))
            {
                let _ = Block::wait_for_enable(&self.mem, 0);
                return Err(busy());
            }
        }
    }

    /// Runs its hooks before the checkpoint. None: it has none.
    pub(crate) fn before(&self, after: After) -> Result<Option<Round>> {
        let Some(block) = self.block() else { return Ok(None) };
        let Some(helper) = block.helper() else { return Ok(None) };
        let patience = Duration::from_millis(u64::from(block.hook_timeout()));
        let tid = self.thread(helper)?;
        let listener = Listener::new().map_err(|e| self.failed(e))?;
        sys::api::wake(self.pid, tid, listener.key()).map_err(|e| self.failed(e))?;
        let answered = listener.accept_within(self.pid, self.uid, None, patience).ok().flatten();
        let (stream, _) = answered.ok_or_else(|| {
            let why = format!(
                "its hook thread {helper} did not answer within {} s: a hook of an earlier checkpoint may still run",
                patience.as_secs_f32()
            );
            self.error(Kind::Refused, why, "look at what that hook waits for")
        })?;
        let conn = Conn::new(stream, MAX_CONTROL).map_err(|e| self.broken("", &e))?;
        let mut round = Round { conn, patience };
        let word = match after {
            After::Run => "run",
            After::Kill => "kill",
            After::Stop => "stop",
        };
        let mut running = String::new();
        let mut said = round.say(&Say::Before { after: word });
        while said.is_ok() {
            match round.hear() {
                Ok(Heard::Running(name)) => running = name,
                Ok(Heard::Ready) => return Ok(Some(round)),
                Ok(Heard::Veto { hook, reason }) => {
                    let why = format!("its hook {hook} vetoed the checkpoint: {reason}");
                    return Err(self.error(Kind::Refused, why, "try again when that has passed"));
                }
                Ok(Heard::Done) => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    let why = format!("its hook {running} has not returned within {} s", patience.as_secs_f32());
                    let remedy = "look at what it waits for, or allow it more time (dormouse_hook_timeout)";
                    return Err(self.error(Kind::Refused, why, remedy));
                }
                Err(e) => said = Err(e),
            }
        }
        let e = said.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        Err(self.broken(&running, &e))
    }

    /// The hook thread as seen from here, if it can answer.
    fn thread(&self, helper: i32) -> Result<i32> {
        let stopped = |why: &str, remedy: &str| self.error(Kind::Refused, why.to_string(), remedy);
        for tid in sys::procfs::tasks(self.pid).unwrap_or_default() {
            let Ok(s) = status::read_task(self.pid, tid) else { continue };
            if s.ns_pid.last().copied().unwrap_or(tid) != helper {
                continue;
            }
            if matches!(s.state, sys::procfs::State::Stopped | sys::procfs::State::Tracing) {
                return Err(stopped(
                    "it is stopped, so its hooks cannot run",
                    "let it go on first (kill -CONT), or end the tracing",
                ));
            }
            // It has the signal blocked, but for as long as it waits for it, when that is not seen in its mask: its name must do.
            if s.name != wire::api::HELPER_NAME.as_bytes() {
                break;
            }
            return Ok(tid);
        }
        Err(stopped("the thread that runs its hooks is gone, or has another name", "report this"))
    }

    fn error(&self, kind: Kind, why: String, remedy: &str) -> Error {
        Error::new(kind, self.attempted, format!("PID {}", self.pid), why, remedy)
    }

    fn failed(&self, e: sys::Error) -> Error {
        self.error(Kind::PutBack, e.to_string(), "the program runs on as before; try again")
    }

    fn broken(&self, running: &str, e: &io::Error) -> Error {
        let at = if running.is_empty() { String::new() } else { format!(" (in its hook {running})") };
        self.error(
            Kind::PutBack,
            format!("its hook thread broke off{at}: {e}"),
            "the program runs on as before; try again",
        )
    }
}

impl Round {
    fn say(&mut self, what: &Say) -> io::Result<()> {
        self.conn.send(what, crate::control::PATIENCE)
    }

    fn hear(&mut self) -> io::Result<Heard> {
        let ms = i32::try_from(self.patience.as_millis()).unwrap_or(i32::MAX);
        self.conn.receive(ms)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Tells the hooks how it ended, and waits for them if the program runs. Gives what is to be said of it.
    pub(crate) fn after(mut self, made: &Result<engine::Captured>, after: After) -> Option<String> {
        let error = made.as_ref().err().map(ToString::to_string);
        if made.is_ok() && after == After::Kill {
            return None;
        }
        let n = made.as_ref().ok().map(|c| c.n);
        let mut said = self.say(&Say::After { n, error: error.as_deref() });
        if made.is_ok() && after == After::Stop {
            return None; // it hears it when it is continued
        }
        let mut running = String::new();
        while said.is_ok() {
            match self.hear() {
                Ok(Heard::Running(name)) => running = name,
                Ok(Heard::Done) => return None,
                Ok(_) => {}
                Err(e) => said = Err(e),
            }
        }
        let e = said.err().map(|e| e.to_string()).unwrap_or_default();
        Some(format!("the program's hooks after the checkpoint were not all run (last: {running}): {e}"))
    }
}
