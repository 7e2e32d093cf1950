//! A first thread that has ended while others of its process run: that it has, and not all have been killed; and by which of the others what is the
//! whole process's can be asked. What is seen from outside is asked of one of them by itself ([`procfs::first`]).
use super::find::Survey;
use super::{died, Step};
use crate::Door;
use sys::procfs::{self, stat::Stat};

impl Survey {
    /// The number, in the innermost namespace, of a thread that has what is the whole process's: the first one, unless that has ended.
    pub(super) fn inner_living(&self) -> i32 {
        let by = procfs::first::by(self.pid);
        if by == self.pid {
            return self.inner_pid();
        }
        match procfs::status::read_task(self.pid, by) {
            Ok(s) => s.ns_pid.last().copied().filter(|_| self.private).unwrap_or(by),
            Err(_) => self.inner_pid(),
        }
    }

    /// In the freeze, when nothing is run in it yet: whether its first thread has ended. `now`: what the kernel says of that.
    pub(super) fn first(&mut self, now: &Stat, frozen: &[i32]) -> Step<()> {
        // of the process that says how it was stopped, if it is
        let status = || procfs::stat::read_task(self.pid, self.pid).map(|s| s.exit_code);
        self.ended = now.state.is_ended().then(status).transpose()?;
        let killed = |door| match door {
            Door::Attach => killed(self.pid),
            Door::Agent => Ok(procfs::is_ending(self.pid)),
        };
        // stopped, a thread can only be killed, and with it the process
        if self.ended.is_some() && (frozen.contains(&self.pid) || killed(self.door)?) {
            return Err(died(&self.attempted, "freeze").into());
        }
        procfs::first::note(self.pid, Some(now));
        Ok(())
    }
}

/// In the freeze, when nothing is run in it yet: whether all of it has been killed, and not only its first thread has ended. Nothing else
/// takes the others out of their stop.
fn killed(pid: i32) -> Step<bool> {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let stands = |tid: i32| {
        let s = procfs::status::read_task(pid, tid);
        s.is_ok_and(|s| s.state == procfs::State::Tracing && s.sig_pending & SIGKILL == 0)
    };
    let others = procfs::tasks(pid)?.into_iter().filter(|tid| *tid != pid && !procfs::is_io_worker(pid, *tid));
    let others: Vec<i32> = others.collect();
    Ok(others.is_empty() || !others.into_iter().all(stands))
}
