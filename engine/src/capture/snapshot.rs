//! Phase fork: the snapshot child, which is asked for, made, and met. What happens in the program then: parasite/src/snapshot.rs.
use super::{Observer, Step};
use sys::channel::{Channel, Listener};
use sys::procfs;
use sys::seccomp::Judge;

/// The snapshot child: ends when this is dropped.
pub(super) struct Child {
    /// PID here.
    pub pid: i32,
    /// The conversation with it.
    pub channel: Channel,
}

impl Observer<'_> {
    /// Asks for the snapshot child, and gives what its filters let through; None where there may be none. [`Observer::child`] has to follow.
    ///
    /// `adopted`: one of the processes above it that are captured too is a reaper.
    pub(super) fn ask_for_a_child(&mut self, subreaper: bool, adopted: bool) -> Step<Option<Judge>> {
        // it would be reparented to the target itself, which would see it; with children of its own, being no subreaper for a
        // moment could lose it an orphan
        if !self.survey.threads.contains_key(&self.entered.server) {
            self.noted.push(super::seccomp::NO_STRICT_CHILD.into());
            return Ok(None);
        }
        let sees = self.survey.inner_pid() == 1
            || adopted
            || subreaper && procfs::children(self.survey.pid).map_or(true, |c| !c.is_empty());
        if sees {
            let who = if adopted { "a process above it" } else { "the program" };
            self.noted.push(format!("the pause was as long as the copying of memory: {who} is a reaper (PID 1, or PR_SET_CHILD_SUBREAPER and has children), and would see a snapshot child"));
            return Ok(None);
        }
        let judge = self.survey.judge.beside();
        if let Some(why) = super::seccomp::no_child(&judge, subreaper) {
            self.noted.push(why);
            return Ok(None);
        }
        self.channel.send(wire::OP_FORK, &[subreaper as u8, 0, 0, 0, 0, 0, 0, 0])?;
        Ok(Some(judge))
    }

    /// The snapshot child that was asked for; None where the kernel refuses one.
    pub(super) fn child(&mut self, l: &Listener, judge: Judge) -> Step<Option<Child>> {
        match self.forked()? {
            true => self.meet(l, judge).map(Some),
            false => Ok(None),
        }
    }

    /// Whether there is the snapshot child that was asked for: memory is safe in it from here on. [`Observer::meet`] has to follow.
    pub(super) fn forked(&mut self) -> Step<bool> {
        let a = self.channel.answer(wire::OP_FORK)?;
        let pid = a.try_into().map_or(-libc::EPROTO as i64, i64::from_le_bytes);
        if pid < 0 {
            let e = std::io::Error::from_raw_os_error(-pid as i32);
            self.noted
                .push(format!("the pause was as long as the copying of memory: no snapshot child could be made ({e})"));
            return Ok(false);
        }
        Ok(true)
    }

    /// The child connects, whatever has become of the program: that may run again, and end.
    pub(super) fn meet(&mut self, l: &Listener, judge: Judge) -> Step<Child> {
        let (sock, pid) = l.accept(0, self.survey.status.uid.effective, None)?;
        Ok(Child { pid, channel: Channel::beside(sock, pid).judged(judge) })
    }
}
