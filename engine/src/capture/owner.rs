//! Who gets the signals of an open file (F_SETOWN, F_SETSIG), by the numbers that the program knows.
use super::files::FileView;
use super::observe::Observer;
use super::Step;
use sys::procfs::{self, fdinfo::LockKind};

const F_OWNER_PGRP: i32 = 2;

impl Observer<'_> {
    /// F_GETOWN_EX and F_GETSIG. The kernel tells a PID as we see it.
    pub(super) fn owner(&self, v: &FileView) -> Step<((i32, i32), i32)> {
        // a file on a disk sends none, but for a lease
        let silent = v.has_name() && !v.is_pipe() && v.info.locks.iter().all(|l| l.kind != LockKind::Lease);
        if silent || v.info.flags & libc::O_PATH as u32 != 0 {
            return Ok(((0, 0), 0));
        }
        let fd = self.descriptor(v.first_fd())?;
        let ((kind, id), sig) = sys::sched::file_owner(&fd);
        let inner = match kind {
            _ if id == 0 => 0,
            F_OWNER_PGRP => self.inner_group(id)?,
            _ if id == self.survey.pid => self.survey.inner_pid(),
            _ if self.survey.threads.contains_key(&id) => self.inner_tid(id),
            // a relative's
            _ => procfs::status::read(id).ok().and_then(|s| s.ns_pid.last().copied()).unwrap_or(id),
        };
        Ok(((kind, inner), sig))
    }

    /// A process group as it sees it.
    fn inner_group(&self, group: i32) -> Step<i32> {
        let status = procfs::status::read(self.survey.pid)?;
        let within =
            |s: &procfs::status::Status| (s.ns_pgid.first() == Some(&group)).then(|| s.ns_pgid.last().copied());
        // another's: of its leader, if that lives
        let led = || procfs::status::read(group).ok().and_then(|s| within(&s));
        Ok(within(&status).or_else(led).flatten().unwrap_or(group))
    }
}
