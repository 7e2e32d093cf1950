//! As whom a case runs: root, or an ordinary user without any capability.
use anyhow::{ensure, Result};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::proc;

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root, with what capabilities it has here.
    Root,
    /// An ordinary user: [`ORDINARY`] if the tests run as root, else who runs them.
    User,
}

/// Uid and gid of the ordinary user. It needs no entry in /etc/passwd.
pub const ORDINARY: u32 = 65533;

impl Who {
    /// Those that can be tested here.
    pub fn all() -> &'static [Who] {
        match nix::unistd::geteuid().is_root() {
            true => &[Who::Root, Who::User],
            false => &[Who::User],
        }
    }

    /// Last part of a case's name.
    pub fn name(self) -> &'static str {
        match self {
            Who::Root => "root",
            Who::User => "user",
        }
    }

    /// Its uid.
    pub fn uid(self) -> u32 {
        match (self, nix::unistd::geteuid().as_raw()) {
            (Who::User, 0) => ORDINARY,
            (_, me) => me,
        }
    }

    /// The command is run as this user, with no supplementary groups and (by the exec of a non-root user) no capability.
    pub fn apply(self, command: &mut Command) {
        if self.uid() != nix::unistd::geteuid().as_raw() {
            command.uid(self.uid()).gid(self.uid());
        }
    }

    /// Asserts that a process runs as this user; without any capability if it is an ordinary one.
    pub fn assert_is(self, what: &str, pid: i32) -> Result<()> {
        let status = proc::status(pid).ok_or_else(|| anyhow::anyhow!("{what} (PID {pid}) is not there"))?;
        let [real, effective, ..] = status.uids;
        ensure!(
            [real, effective] == [self.uid(); 2],
            "{what} (PID {pid}) should run as uid {}, has {:?}",
            self.uid(),
            status.uids
        );
        if self == Who::User {
            // those of one in a user namespace of its own say nothing outside
            ensure!(
                status.cap_eff == 0 || what.ends_with("userns"),
                "{what} (PID {pid}) should have no capability, has CapEff {:#x}",
                status.cap_eff
            );
        }
        Ok(())
    }
}

/// Does something as another user, as far as files and sockets go: this process has to be root, or that user. It has one thread.
pub fn acting<T>(uid: u32, f: impl FnOnce() -> T) -> Result<T> {
    let me = nix::unistd::geteuid();
    if me.as_raw() == uid {
        return Ok(f());
    }
    nix::unistd::seteuid(uid.into())?;
    let done = f();
    nix::unistd::seteuid(me)?;
    Ok(done)
}
