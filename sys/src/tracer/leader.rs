//! First threads that have ended while others of their process run: of those neither ptrace nor wait(2) tells.
use super::stops::STOP_LIMIT;
use super::tasks::Tasks;
use crate::{procfs, Error, Result};
use std::time::Instant;

impl Tasks {
    /// Waits until a thread that is about to end has: of a leader with other threads wait(2) does not tell.
    pub fn wait_zombie(&mut self, tid: i32) -> Result<()> {
        let end = Instant::now() + STOP_LIMIT;
        while !is_zombie(self.pid, tid) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let state = procfs::stat::read(tid).map_or("unknown".into(), |s| format!("{:?}", s.state));
                return Err(Error::Stuck { tid, seconds: STOP_LIMIT.as_secs(), state });
            }
            self.wait_news(left);
        }
        Ok(())
    }

    /// The first thread has ended, and others run.
    pub(super) fn only_first_has_ended(&self) -> bool {
        procfs::stat::read(self.pid).is_ok_and(|s| s.state.is_ended() && s.num_threads > 1)
    }
}

/// A thread has ended, and is not waited for yet.
pub(super) fn is_zombie(pid: i32, tid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/task/{tid}/stat"))
        .ok()
        .and_then(|b| procfs::stat::parse(&b).ok())
        .is_none_or(|s| matches!(s.state, procfs::State::Zombie | procfs::State::Dead))
}
