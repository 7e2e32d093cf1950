//! The terminal of a foreground session, kept by the front: given to the program's process group if that is its own,
//! taken back when the program stops or ends, and its settings put right after a program that had no chance to.
use nix::sys::signal::{killpg, Signal};
use nix::sys::termios::{tcgetattr, tcsetattr, SetArg, Termios};
use nix::unistd::{getpgid, getpgrp, isatty, tcgetpgrp, tcsetpgrp, Pid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The caller's terminal.
pub(crate) struct Terminal {
    fd: OwnedFd,
    settings: Option<Termios>,
    given: bool,
}

impl Terminal {
    /// The controlling terminal among 0, 1, 2, if there is one.
    pub(crate) fn of_caller() -> Option<Terminal> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let all: [BorrowedFd; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let fd = all.into_iter().find(|fd| isatty(fd).unwrap_or(false) && tcgetpgrp(fd).is_ok())?;
        let fd = fd.try_clone_to_owned().ok()?;
        let settings = tcgetattr(&fd).ok();
        Some(Terminal { fd, settings, given: false })
    }

    /// True if our process group is in the foreground.
    fn ours(&self) -> bool {
        tcgetpgrp(&self.fd).is_ok_and(|p| p == getpgrp())
    }

    /// Gives the terminal to the program if it has a process group of its own and we have the terminal.
    pub(crate) fn give(&mut self, program: i32) {
        let group = getpgid(Some(Pid::from_raw(program)));
        if let Some(group) = group.ok().filter(|g| *g != getpgrp() && g.as_raw() > 0) {
            // Fails for a group of another session, which cannot use this terminal anyway.
            self.given = self.ours() && tcsetpgrp(&self.fd, group).is_ok();
        }
    }

    /// Gives it to a program that was stopped because it did not have it, and continues that; false if that is not why.
    pub(crate) fn give_late(&mut self, program: i32) -> bool {
        let Some(group) = getpgid(Some(Pid::from_raw(program))).ok().filter(|g| *g != getpgrp()) else { return false };
        if self.ours() {
            self.give(program);
        }
        let has_it = tcgetpgrp(&self.fd).is_ok_and(|p| p == group);
        has_it && killpg(group, Signal::SIGCONT).is_ok()
    }

    /// Takes it back if it was given. SIGTTOU is blocked in the front, so this may be done from the background.
    pub(crate) fn take_back(&mut self) {
        if std::mem::take(&mut self.given) {
            // Fails if the terminal is gone, and then nobody misses it.
            let _ = tcsetpgrp(&self.fd, getpgrp());
        }
    }

    /// Puts back the settings that it had before the program.
    pub(crate) fn put_settings_back(&self) {
        if let Some(settings) = self.settings.as_ref().filter(|_| self.ours()) {
            let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, settings);
        }
    }
}
