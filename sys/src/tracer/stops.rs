//! Stops of seized threads: waiting for one, what news there is until then, and going on from one to the next.
use super::raw::{self, Event};
use super::tasks::{Task, Tasks};
use crate::{procfs, Error, Result};
use std::time::{Duration, Instant};

/// Longest wait for a thread to stop. One in an uninterruptible sleep, or the parent of a vfork, does not.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether the first thread has ended instead of stopping.
const FIRST_LOOK: Duration = Duration::from_millis(10);

impl Tasks {
    /// Takes news of threads. A signal that arrives before the stop is handed on; one that arrives while the blob runs
    /// (only SIGSTOP can) is kept for later.
    pub fn pump(&mut self) -> Result<()> {
        self.pump_of(-1)
    }

    /// Takes news of one thread until it is stopped (-1: of any, until there is none).
    fn pump_of(&mut self, of: i32) -> Result<()> {
        while let Some((tid, e)) = raw::poll_event(of) {
            if self.making && !self.all.contains_key(&tid) {
                self.making = false;
                self.all.insert(tid, Task { helper: true, ..Task::seized() });
            }
            let Some(t) = self.all.get_mut(&tid) else { continue };
            match e {
                Event::Gone => {
                    self.lost |= t.entered;
                    self.all.remove(&tid);
                    if tid == self.pid && !self.only_first_has_ended() || self.all.is_empty() {
                        return Err(Error::Died { doing: "its freeze".into(), pid: self.pid });
                    }
                }
                Event::Signal(sig) if t.entered => {
                    t.held.push(sig);
                    if [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP].contains(&sig) {
                        t.held.pop();
                        t.stopped = true;
                        return Err(Error::Peer { peer: "parasite", what: format!("signal {sig} inside the blob") });
                    }
                    if t.calling {
                        raw::to_syscall(tid)?;
                    } else {
                        raw::cont(tid, 0)?;
                    }
                }
                Event::Signal(sig) => raw::cont(tid, sig)?,
                Event::Stop(_) if !self.hold && t.entered => raw::cont(tid, 0)?,
                Event::Stop(_) | Event::Syscall => {
                    t.stopped = true;
                    t.at_syscall = e == Event::Syscall;
                    if let (Event::Stop(sig), false) = (e, t.entered) {
                        t.group_stop = sig != libc::SIGTRAP; // ptrace(2), "Group-stop"
                    }
                    if tid == of {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until a thread is stopped.
    pub fn wait_stop(&mut self, tid: i32) -> Result<()> {
        let (end, mut waited) = (Instant::now() + STOP_LIMIT, false);
        loop {
            // the end of a leader is not told before those of all its threads have been taken
            self.pump_of(if tid == self.pid { -1 } else { tid })?;
            match self.all.get(&tid) {
                None if tid == self.pid && !self.only_first_has_ended() => {
                    return Err(Error::Died { doing: "its freeze".into(), pid: tid })
                }
                None => return Ok(()),
                Some(t) if t.stopped => return Ok(()),
                Some(_) => {}
            }
            // that nobody is told before the others have ended, too
            if tid == self.pid && waited && self.only_first_has_ended() {
                self.all.remove(&tid);
                return Ok(());
            }
            waited = true;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let state = procfs::stat::read(tid).map_or("unknown".into(), |s| format!("{:?}", s.state));
                return Err(Error::Stuck { tid, seconds: STOP_LIMIT.as_secs(), state });
            }
            self.wait_news(if tid == self.pid { left.min(FIRST_LOOK) } else { left });
        }
    }

    pub(super) fn wait_news(&self, limit: Duration) {
        use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
        use std::os::fd::AsFd;
        let mut p = [PollFd::new(self.sigfd().as_fd(), PollFlags::POLLIN)];
        let ms = PollTimeout::try_from(limit.as_millis().clamp(1, 60_000) as i32).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut p, ms);
        while let Ok(Some(_)) = self.sigfd().read_signal() {}
    }

    /// Lets a stopped thread go on.
    pub fn resume(&mut self, tid: i32) -> Result<()> {
        if let Some(t) = self.all.get_mut(&tid) {
            t.stopped = false;
            raw::cont(tid, 0)?;
        }
        Ok(())
    }

    /// Lets a thread go on until it stands at the entry of a system call or its exit; other stops (a SIGCONT's) in between are passed over.
    pub fn until_syscall(&mut self, tid: i32) -> Result<()> {
        loop {
            if let Some(t) = self.all.get_mut(&tid) {
                t.stopped = false;
            }
            raw::to_syscall(tid)?;
            self.wait_stop(tid)?;
            if self.all.get(&tid).is_none_or(|t| t.at_syscall) {
                return Ok(());
            }
        }
    }

    /// Brings a thread to a stop from which the kernel restarts its call by itself: not the exit of a system call of ours.
    pub fn bring_to_stop(&mut self, tids: &[i32]) -> Result<()> {
        for tid in tids {
            let Some(t) = self.all.get_mut(tid) else { continue };
            match raw::interrupt(*tid) {
                // it has ended by itself, as it does where the blob lets everybody go
                Err(Error::Died { .. }) if t.helper => continue,
                r => r?,
            }
            if t.stopped {
                t.stopped = false;
                raw::cont(*tid, 0)?;
            }
        }
        // the leader, which has the lowest number, last
        for tid in tids.iter().rev() {
            self.wait_stop(*tid)?;
        }
        Ok(())
    }
}
