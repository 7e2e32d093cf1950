//! The supervisor's checkpoints: wished for by a signal, the clock, SIGTERM or a peer; made by a recorder (`crate::recorder`), one at
//! a time. A wish that comes meanwhile is one more checkpoint when that one is done, however many came; a tick of the clock is
//! skipped then. Nothing here waits.
use super::Supervisor;
use crate::control::Answer;
use crate::front::ToFront;
use crate::recorder::{Made, Order, Recorder};
use crate::state::open_log;
use crate::trigger::Means;
use engine::{After, Error, External, Externals, Kind};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

/// A checkpoint that is wished for.
#[derive(Default)]
pub(super) struct Wish {
    /// It ends the program.
    end: bool,
    /// By SIGTERM: fails it, then the program is given that.
    term: bool,
    /// By the clock: not worth waiting for another one that is under way.
    tick: bool,
    /// Peers that wait for an answer, and their connection's number in the program.
    askers: Vec<(u64, Option<i32>)>,
}

/// The checkpoint that is being made.
struct Current {
    recorder: Recorder,
    wish: Wish,
    /// The latest one before it.
    before: Option<u64>,
    /// Its grace ran out, which was said.
    given_up: bool,
}

/// What the supervisor knows of its checkpoints.
#[derive(Default)]
pub(super) struct Triggered {
    current: Option<Current>,
    next: Option<Wish>,
    /// Ticks.
    pub(super) every: Option<TimerFd>,
    /// Runs out.
    pub(super) grace: Option<TimerFd>,
    /// What was not kept in the last one: said again only if it changes.
    reported: Vec<String>,
    /// Lines for the log that found no room there; the oldest go if they are too many.
    unsaid: VecDeque<String>,
}

/// So many lines wait for room in the log.
const UNSAID: usize = 100;

impl Triggered {
    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.current.as_ref().map(|c| &c.recorder)
    }
}

impl Supervisor {
    /// Sets the clock going.
    pub(super) fn begin_to_tick(&mut self) {
        let Some(every) = self.running.live.triggers.every() else { return };
        match timer(every, true) {
            Ok(t) => self.triggered.every = Some(t),
            Err(e) => self.say(&failed(self.attempted(), "timerfd", e)),
        }
    }

    /// A signal that is not for the program.
    pub(super) fn trigger(&mut self, means: Means) {
        match means {
            Means::Keep => self.wish(Wish::default()),
            Means::End => self.wish(Wish { end: true, ..Wish::default() }),
            Means::Term => {
                if self.triggered.grace.is_none() {
                    self.triggered.grace = timer(self.running.live.triggers.grace(), false).ok();
                }
                match self.triggered.current.as_mut().filter(|c| c.wish.end && !c.given_up) {
                    Some(ending) => ending.wish.term = true,
                    None => self.wish(Wish { end: true, term: true, ..Wish::default() }),
                }
            }
        }
    }

    /// A peer asks for one; it is answered when that is done.
    pub(super) fn asked(&mut self, peer: u64, end: bool, fd: Option<i32>) {
        self.wish(Wish { end, askers: vec![(peer, fd)], ..Wish::default() });
    }

    pub(super) fn tick(&mut self) {
        let ticks = self.triggered.every.as_ref().map(drain);
        if ticks.is_some() && self.triggered.current.is_none() {
            self.wish(Wish { tick: true, ..Wish::default() });
        }
    }

    fn wish(&mut self, wish: Wish) {
        if self.triggered.current.is_none() {
            return self.start(wish);
        }
        let next = self.triggered.next.get_or_insert_default();
        next.end |= wish.end;
        next.term |= wish.term;
        next.askers.extend(wish.askers);
    }

    fn start(&mut self, wish: Wish) {
        if self.program.is_none() || self.left.is_some() {
            let e = Error::new(Kind::TargetDied, self.attempted(), "the program", "it has ended", "ctl list shows it");
            return self.answer_all(&wish, &Err(e));
        }
        let named = wish.askers.iter().filter_map(|(_, fd)| Some(((*fd)?, External::Close))).collect();
        let order = Order {
            after: if wish.end { After::Kill } else { After::Run },
            external: Externals { named, close: false },
            wait: !wish.tick,
            keep: self.running.live.triggers.keep,
        };
        let before = self.latest();
        let (state, name) = (self.running.state.clone(), self.running.name.clone());
        // In the child: whoever watches these must see the end of us, not of it.
        let let_go = || {
            self.front = None;
            self.peers.clear();
            self.running.listener = None;
            self.running.status = None;
            self.running.pty = None;
        };
        match Recorder::start(&state, &name, &order, let_go) {
            Ok(recorder) => {
                self.triggered.current = Some(Current { recorder, wish, before, given_up: false });
            }
            Err(e) => self.not_made(wish, failed(self.attempted(), "start a recorder", e)),
        }
    }

    pub(super) fn hear_recorder(&mut self) {
        let Some(current) = &mut self.triggered.current else { return };
        if current.recorder.hear() {
            return;
        }
        let Some(Current { recorder, wish, before, given_up }) = self.triggered.current.take() else { return };
        match recorder.result() {
            Some(Ok(Some(made))) => self.made(wish, made),
            Some(Ok(None)) => {} // a tick's: nobody waits for it
            Some(Err(e)) => self.not_made(wish, e),
            None => {
                // What it had done is not known yet if the program has ended with it.
                self.reap();
                if wish.end {
                    self.left_unsaid(before);
                }
                if !given_up {
                    let why = "it was killed before it was done";
                    let remedy = "the program is as it was, and earlier checkpoints stand; ask again";
                    self.not_made(wish, Error::new(Kind::PutBack, self.attempted(), "recorder", why, remedy));
                }
            }
        }
        if let Some(next) = self.triggered.next.take() {
            self.start(next);
        }
    }

    fn made(&mut self, wish: Wish, made: Made) {
        if wish.end {
            self.left = Some(made.n);
            self.triggered.grace = None;
        }
        let mut notes = made.notes.clone();
        if self.triggered.reported != made.reported {
            notes.extend(made.reported.iter().cloned());
            self.triggered.reported = made.reported.clone();
        }
        self.answer_all(&wish, &Ok(made.n));
        self.log_unsaid();
        if self.is_heard() {
            let name = self.running.name.to_string();
            self.tell(&ToFront::Made { name, n: made.n, pause_us: made.pause_us, took_us: made.took_us, notes });
        } else {
            notes.iter().for_each(|note| self.log(&format!("checkpoint {}@{}: {note}", self.running.name, made.n)));
        }
    }

    fn not_made(&mut self, wish: Wish, e: Error) {
        let over = self.ended.is_some() || self.left.is_some();
        if !over {
            self.say(&e);
        }
        let term = wish.term;
        self.answer_all(&wish, &Err(e));
        if term && self.triggered.grace.take().is_some() {
            self.pass_on(libc::SIGTERM, false);
        }
    }

    /// SIGTERM went to the whole group.
    pub(super) fn not_for_us_alone(&mut self) {
        let why = "it went to the whole process group, so the program has it too, and may be ending by it";
        let remedy = "send it to the launcher alone (systemd: KillMode=mixed)";
        self.say(&Error::new(Kind::Refused, self.attempted(), "SIGTERM", why, remedy));
    }

    /// SIGTERM's time for a checkpoint is over.
    pub(super) fn grace_is_over(&mut self) {
        if self.triggered.grace.take().is_none() {
            return;
        }
        let e = self.too_late();
        let mut given_up = self.triggered.next.take().unwrap_or_default();
        if let Some(current) = &mut self.triggered.current {
            current.given_up = true;
            current.recorder.kill();
            given_up.askers.append(&mut current.wish.askers);
        }
        if self.ended.is_none() {
            self.say(&e);
            self.pass_on(libc::SIGTERM, false);
        }
        self.answer_all(&given_up, &Err(e));
    }

    fn too_late(&self) -> Error {
        let why = format!("{:?} are over, so the program is given SIGTERM", self.running.live.triggers.grace());
        let remedy = match self.latest() {
            Some(n) => format!("{}@{n} stands; pass a longer --grace", self.running.name),
            None => "there is no earlier checkpoint; pass a longer --grace".into(),
        };
        Error::new(Kind::PutBack, self.attempted(), "grace", why, remedy)
    }

    /// The program has ended: nobody needs to wait for a checkpoint of it any longer if asked to stop.
    pub(super) fn give_up_recording(&mut self) {
        if let Some(current) = &self.triggered.current {
            current.recorder.kill();
        }
    }

    fn answer_all(&mut self, wish: &Wish, result: &Result<u64, Error>) {
        let answer = match result {
            Ok(n) => Answer { n: Some(*n), ..Answer::done(self.running.live.program.pid) },
            Err(e) => Answer { code: Some(e.kind.exit_code()), ..Answer::refused(e.to_string()) },
        };
        for (id, _) in &wish.askers {
            if let Some(peer) = self.peers.iter_mut().find(|p| p.id == *id) {
                peer.asks = false;
            }
            self.tell_peer(*id, &answer);
        }
    }

    /// What went wrong, to whoever can see it: the front's stderr, else the session's log.
    fn say(&mut self, e: &Error) {
        match self.is_heard() {
            true => self.tell(&ToFront::NotMade(crate::LaunchError::from(e.clone()).into())),
            false => self.log(&e.to_string()),
        }
    }

    /// There is a front. One that is stopped would read nothing of what the clock makes us say for hours.
    fn is_heard(&self) -> bool {
        self.front.is_some() && !self.front_stopped
    }

    fn log(&mut self, text: &str) {
        let unsaid = &mut self.triggered.unsaid;
        unsaid.extend(text.lines().map(|line| format!("dormouse: {line}\n")));
        unsaid.drain(..unsaid.len().saturating_sub(UNSAID));
        self.log_unsaid();
    }

    /// The disk that is full for a checkpoint may be full for the news of it: said when there is room again.
    fn log_unsaid(&mut self) {
        let unsaid = &mut self.triggered.unsaid;
        let Some(Ok(mut log)) = (!unsaid.is_empty()).then(|| open_log(&self.running.state.log(&self.running.name)))
        else {
            return;
        };
        while unsaid.front().is_some_and(|line| log.write_all(line.as_bytes()).is_ok()) {
            unsaid.pop_front();
        }
    }

    fn attempted(&self) -> String {
        format!("checkpoint {}", self.running.name)
    }
}

fn failed(attempted: String, call: &str, e: impl std::fmt::Display) -> Error {
    let remedy = "the program runs on; end other processes, or raise the limit (ulimit -a)";
    Error::new(Kind::PutBack, attempted, call, e.to_string(), remedy)
}

/// A timer that runs out, or ticks.
fn timer(after: Duration, again: bool) -> nix::Result<TimerFd> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    let after = TimeSpec::from_duration(after);
    let when = if again { Expiration::Interval(after) } else { Expiration::OneShot(after) };
    timer.set(when, TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// Takes the ticks that have come, so that it wakes nobody before the next.
fn drain(timer: &TimerFd) {
    // It is readable: that is why we are here.
    let _ = timer.wait();
}
