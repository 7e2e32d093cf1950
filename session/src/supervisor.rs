//! The supervisor: parent of a session's program, subreaper of everything that descends from it. One thread, one poll
//! loop over its signals, its front, its control socket, the program's status and its pty; nothing in it waits or sleeps.
//!
//! Checkpoints that a trigger or a peer wants are in `triggered`, the peers of the control socket in `peers`.
//!
//! It lives until the last process of the session has ended. In the foreground it is in its front's process group, as a
//! witness of group signals (see `front`); without a front it has a session of its own.
mod peers;
mod triggered;

use crate::control::{Answer, PATIENCE};
use crate::frame::Conn;
use crate::front::{drain, exit_code, let_go_of_stdio, not_passed, Got, ToFront, ToSupervisor};
use crate::lock::Lock;
use crate::procfs::descendants;
use crate::trigger::Means;
use crate::{registry, store_calls, Live, Started, StateDir};
use image::SessionName;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{getpgid, getpgrp, Pid};
use peers::Peer;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use sys::pidfd::PidFd;
use sys::spawn::{wait_any, Waited};
use triggered::Triggered;

/// A session that was just started.
pub(crate) struct Running {
    pub(crate) state: StateDir,
    pub(crate) name: SessionName,
    pub(crate) live: Live,
    /// Child of ours to wait for: the program, or the init of its namespace.
    pub(crate) child: i32,
    /// Where the program's wait status comes from, if it is not our child.
    pub(crate) status: Option<OwnedFd>,
    pub(crate) listener: Option<UnixListener>,
    pub(crate) pty: Option<Pty>,
    pub(crate) started: Started,
    /// Held until it is registered: the next verb may come as soon as the front has been told.
    pub(crate) lock: Option<Lock>,
}

/// The terminal of a detached program, and where its output goes.
pub(crate) struct Pty {
    pub(crate) master: File,
    /// Kept open: the last slave's closing would be a hang-up, also if the program is only reopening it.
    pub(crate) _slave: OwnedFd,
    pub(crate) log: File,
}

/// A signal that we got and our front may have got too.
struct Witnessed {
    id: u64,
    sig: i32,
    from: i32,
}

pub(crate) struct Supervisor {
    running: Running,
    program: Option<PidFd>,
    front: Option<Conn>,
    front_pid: i32,
    front_stopped: bool,
    /// How often the program has stopped.
    stops: u64,
    signals: SignalFd,
    witnessed: Vec<Witnessed>,
    peers: Vec<Peer>,
    next_id: u64,
    /// The command's wait status, once it has ended.
    ended: Option<i32>,
    left: Option<u64>,
    childless: bool,
    triggered: Triggered,
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Signals,
    Front,
    Listener,
    Status,
    Pty,
    Peer(u64),
    Recorder,
    Tick,
    Grace,
}

impl Supervisor {
    pub(crate) fn new(running: Running, front: Conn, signals: SignalFd, detach: bool) -> Supervisor {
        // It may have ended already: then it is our zombie, or its namespace's init tells.
        let program = PidFd::open(running.live.program.pid).ok();
        let mut s = Supervisor {
            program,
            front: Some(front),
            front_pid: nix::unistd::getppid().as_raw(),
            front_stopped: false,
            stops: 0,
            signals,
            witnessed: Vec::new(),
            peers: Vec::new(),
            next_id: 0,
            ended: None,
            left: None,
            childless: false,
            triggered: Triggered::default(),
            running,
        };
        // What came before the program was there did not reach it, group or not: no witness of ours must say it did.
        drain(&s.signals);
        s.running.lock = None;
        s.tell(&ToFront::Started(s.running.started.clone()));
        if detach {
            s.front = None;
        }
        s.begin_to_tick();
        s
    }

    /// Keeps the session to its end; gives the exit code of this process.
    pub(crate) fn run(mut self) -> i32 {
        // it may live for weeks after a restore that took a moment
        sys::own::trim_memory();
        let_go_of_stdio(true);
        // Our working directory is not the program's: do not keep its file system busy.
        let _ = std::env::set_current_dir("/");
        self.reap();
        while !self.settled() {
            for source in self.wait() {
                self.serve(source);
            }
        }
        0
    }

    fn wait(&self) -> Vec<Source> {
        let mut sources: Vec<(Source, BorrowedFd)> = vec![(Source::Signals, self.signals.as_fd())];
        sources.extend(self.running.listener.as_ref().map(|l| (Source::Listener, l.as_fd())));
        sources.extend(self.front.as_ref().map(|f| (Source::Front, f.as_fd())));
        sources.extend(self.running.status.as_ref().map(|s| (Source::Status, s.as_fd())));
        sources.extend(self.running.pty.as_ref().map(|p| (Source::Pty, p.master.as_fd())));
        sources.extend(self.peers.iter().map(|p| (Source::Peer(p.id), p.conn.as_fd())));
        let t = &self.triggered;
        sources.extend(t.recorder().map(|r| (Source::Recorder, r.as_fd())));
        sources.extend(t.every.as_ref().map(|t| (Source::Tick, t.as_fd())));
        sources.extend(t.grace.as_ref().map(|t| (Source::Grace, t.as_fd())));
        let mut fds: Vec<PollFd> = sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return Vec::new();
        }
        let ready = |fd: &PollFd| fd.revents().is_some_and(|r| !r.is_empty());
        sources.iter().zip(&fds).filter(|(_, fd)| ready(fd)).map(|((source, _), _)| *source).collect()
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Front => self.hear_front(),
            Source::Listener => self.accept(),
            Source::Status => self.read_status(),
            Source::Pty => {
                self.copy_output();
            }
            Source::Peer(id) => self.hear_peer(id),
            Source::Recorder => self.hear_recorder(),
            Source::Tick => self.tick(),
            Source::Grace => self.grace_is_over(),
        }
    }

    /// True when the session is over and everybody has been told.
    fn settled(&mut self) -> bool {
        let Some(status) = self.ended else {
            if self.childless {
                // Its status was lost with its init, or never to be had: as if killed.
                self.ended = Some(libc::SIGKILL);
                return self.settled();
            }
            return false;
        };
        // What it records may be the last state of the program, or be why it ended.
        if self.triggered.recorder().is_some() {
            return false;
        }
        // Whether this was a checkpoint's kill is about to be told.
        if self.left.is_none() && self.peers.iter().any(|p| p.leaving.is_some()) {
            return false;
        }
        if self.childless {
            while self.running.pty.is_some() && self.copy_output() {}
            registry::unregister(&self.running.state, &self.running.name, &how(status, self.left));
            for peer in self.peers.iter_mut().filter(|p| p.waits) {
                // A client that is gone needs no answer.
                let _ = peer.conn.send(&Answer::done(self.running.live.program.pid), PATIENCE);
            }
            self.tell_end(status, 0);
            return true;
        }
        if self.front.is_some() && self.left.is_none() {
            let init = self.running.live.init.as_ref().map(|i| i.pid);
            let all = descendants(std::process::id() as i32);
            let remain = all.iter().filter(|p| Some(p.pid) != init && !ends_by_itself(p.pid)).count();
            // None: what is left is about to be reaped, and that will wake us.
            if remain > 0 {
                self.tell_end(status, remain);
                self.leave_front();
            }
        }
        false
    }

    fn tell_end(&mut self, status: i32, remain: usize) {
        self.tell(&ToFront::Ended { status, left: self.left, remain });
        self.wake_front();
    }

    fn tell(&mut self, said: &ToFront) {
        if self.front.as_mut().is_some_and(|front| front.send(said, PATIENCE).is_err()) {
            self.leave_front();
        }
    }

    /// No front any more: out of its process group, whose signals are not meant for us.
    fn leave_front(&mut self) {
        if self.front.take().is_some() {
            let _ = nix::unistd::setsid();
            for w in std::mem::take(&mut self.witnessed) {
                self.pass(w.sig, false);
            }
        }
    }

    /// Continues a front that stopped with the program.
    fn wake_front(&mut self) {
        if std::mem::take(&mut self.front_stopped) && nix::unistd::getppid().as_raw() == self.front_pid {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.front_pid), nix::sys::signal::Signal::SIGCONT);
        }
    }

    // --- children ---

    fn reap(&mut self) {
        loop {
            match wait_any() {
                Waited::Changed(pid, status) if pid == self.running.child => {
                    let over = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
                    if over && self.running.live.init.is_some() {
                        // The init's own status stands for the program's only if that was not told.
                        while self.running.status.is_some() && self.ended.is_none() && self.status_is_there() {
                            self.read_status();
                        }
                        self.running.status = None;
                        self.ended.get_or_insert(status);
                    } else if self.running.live.init.is_none() {
                        self.changed(status);
                    }
                }
                Waited::Changed(..) => {}
                Waited::Nothing => {
                    self.childless = false;
                    return;
                }
                Waited::NoChild => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// The program's wait status changed.
    fn changed(&mut self, status: i32) {
        if libc::WIFSTOPPED(status) {
            if self.front.is_some() {
                self.front_stopped = true;
                self.stops += 1;
                self.tell(&ToFront::Stopped { sig: libc::WSTOPSIG(status), stops: self.stops });
            }
        } else if libc::WIFCONTINUED(status) {
            self.wake_front();
        } else {
            self.ended.get_or_insert(status);
            self.program = None;
            self.triggered.every = None;
        }
    }

    fn status_is_there(&self) -> bool {
        let Some(fd) = &self.running.status else { return false };
        matches!(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1))
    }

    /// The init of a private PID namespace writes each wait status of the program: four bytes, native order.
    fn read_status(&mut self) {
        let Some(fd) = &self.running.status else { return };
        let mut status = [0u8; 4];
        match nix::unistd::read(fd, &mut status) {
            Ok(4) => match engine::passed_on(i32::from_ne_bytes(status)) {
                Some(sig) => drop(self.is_from_program(sig, self.running.live.program.pid)),
                None => self.changed(i32::from_ne_bytes(status)),
            },
            Err(nix::errno::Errno::EINTR) => {}
            _ => self.running.status = None,
        }
    }

    /// Copies what the program wrote to its terminal; false if nothing was there.
    fn copy_output(&mut self) -> bool {
        let Some(pty) = &mut self.running.pty else { return false };
        let mut bytes = [0u8; 16384];
        match pty.master.read(&mut bytes) {
            // A log that cannot be written must not block the program: the output is lost, as into a closed terminal.
            Ok(n) if n > 0 => {
                let _ = pty.log.write_all(&bytes[..n]);
                true
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => false,
            _ => {
                self.running.pty = None;
                false
            }
        }
    }

    // --- signals ---

    fn take_signals(&mut self) {
        for Got { sig, from } in drain(&self.signals) {
            if not_passed(sig) || self.is_from_program(sig, from) {
                continue;
            }
            if self.front.is_some() {
                self.next_id += 1;
                self.witnessed.push(Witnessed { id: self.next_id, sig, from });
                self.tell(&ToFront::Ask { id: self.next_id });
            } else {
                self.pass(sig, false);
            }
        }
        self.reap();
    }

    /// A trigger that came to the program, which has passed it on: its agent does that.
    fn is_from_program(&mut self, sig: i32, from: i32) -> bool {
        let triggers = &self.running.live.triggers;
        let is = from == self.running.live.program.pid && triggers.signals().contains(&sig);
        if let Some(means) = triggers.means(sig).filter(|_| is) {
            self.trigger(means);
        }
        is
    }

    fn hear_front(&mut self) {
        let Some(front) = &mut self.front else { return };
        let open = front.fill();
        let mut said = Vec::new();
        while let Some(Ok(m)) = front.next::<ToSupervisor>() {
            said.push(m);
        }
        // By the front's barrier, what it tells and went to the group is here by now.
        self.take_signals();
        for m in said {
            match m {
                ToSupervisor::Signal { sig, from, stops } => {
                    let before = self.witnessed.len();
                    self.witnessed.retain(|w| (w.sig, w.from) != (sig, from));
                    let group = self.witnessed.len() != before;
                    // Ours may have been cleared by its opposite, to the whole group like it, and that one counts.
                    let cleared = match sig {
                        libc::SIGTSTP => self.witnessed.iter().any(|w| w.sig == libc::SIGCONT),
                        libc::SIGCONT => stops != self.stops,
                        _ => false,
                    };
                    if group || !cleared {
                        self.pass(sig, group);
                    }
                }
                ToSupervisor::Asked { id } => {
                    let mine = self.witnessed.iter().position(|w| w.id == id).map(|i| self.witnessed.remove(i));
                    // The front's copy of these may have been cleared, or have gone into its own stop.
                    if let Some(w) = mine.filter(|w| !matches!(w.sig, libc::SIGTSTP | libc::SIGCONT)) {
                        self.pass(w.sig, false);
                    }
                }
            }
        }
        if !open {
            self.leave_front();
        }
    }

    /// A signal came: it is a trigger, or passed on.
    fn pass(&mut self, sig: i32, group: bool) {
        match self.running.live.triggers.means(sig).filter(|_| self.program.is_some()) {
            // It may be ending by it already: no state to wake up in.
            Some(Means::Term) if group && self.program_has(sig) => self.not_for_us_alone(),
            Some(means) => self.trigger(means),
            None => self.pass_on(sig, group),
        }
    }

    /// Passes a signal on to the program, if it did not reach it already as a member of our group; to all that is left
    /// of the session if the command has ended.
    fn pass_on(&mut self, sig: i32, group: bool) {
        let Some(program) = &self.program else {
            if matches!(sig, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                self.give_up_recording();
            }
            if self.front.is_none() {
                self.signal_all(sig);
            }
            return;
        };
        let pid = Pid::from_raw(self.running.live.program.pid);
        let its = getpgid(Some(pid)).ok();
        if group && its == Some(getpgrp()) {
            return;
        }
        // It may end at any time, and then there is nobody to tell.
        if group && its == Some(pid) {
            if let Ok(signal) = nix::sys::signal::Signal::try_from(sig) {
                let _ = nix::sys::signal::killpg(pid, signal);
                return;
            }
        }
        let _ = program.kill(sig);
    }

    /// True if the program, as a member of our group, has got what went to that, and does not ignore it.
    fn program_has(&self, sig: i32) -> bool {
        let pid = self.running.live.program.pid;
        let ignores = sys::procfs::status::read(pid).is_ok_and(|s| s.sig_ignored >> (sig - 1) & 1 != 0);
        getpgid(Some(Pid::from_raw(pid))) == Ok(getpgrp()) && !ignores
    }

    fn signal_all(&self, sig: i32) {
        for process in descendants(std::process::id() as i32) {
            // What ended meanwhile needs no signal; the handle is checked before it is used.
            if let Some(handle) = PidFd::open(process.pid).ok().filter(|_| process.lives()) {
                let _ = handle.kill(sig);
            }
        }
    }

    fn latest(&self) -> Option<u64> {
        self.checkpoints()?.last().copied()
    }

    /// Numbers of the complete ones; None if that cannot be told.
    fn checkpoints(&self) -> Option<Vec<u64>> {
        let store = self.running.state.store().ok()?;
        store_calls::numbers(&store, &self.running.name).ok()
    }
}

/// True of what is about to end, and of what a checkpoint has left for a moment: its tracer, which runs what we do, and its snapshot
/// child, which is in the blob.
fn ends_by_itself(pid: i32) -> bool {
    use sys::procfs::vma_at;
    let ours = || {
        let exe = |who: &str| std::fs::metadata(format!("/proc/{who}/exe")).ok().map(|m| (m.dev(), m.ino()));
        exe(&pid.to_string()).is_some_and(|its| Some(its) == exe("self"))
    };
    // In this order: one that begins to end meanwhile has neither executable nor memory any more.
    ours() || vma_at::read(pid, sys::inject::HOME).is_ok_and(|vma| vma.is_some()) || sys::procfs::is_ending(pid)
}

/// How a session ended, in words.
fn how(status: i32, left: Option<u64>) -> String {
    if let Some(n) = left {
        return format!("checkpointed as {n} and killed");
    }
    if libc::WIFSIGNALED(status) {
        let sig = libc::WTERMSIG(status);
        let name = nix::sys::signal::Signal::try_from(sig).map_or(format!("signal {sig}"), |s| s.to_string());
        return format!("killed by {name}");
    }
    format!("exited with {}", exit_code(status))
}
