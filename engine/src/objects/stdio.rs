//! External ends at 0, 1, 2 and their dups, and terminals wherever they are: reconnected at restore to the standard
//! streams of the restoring command.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::Result;
use image::v1::objects::{External, Kind};

/// An external end that a standard stream of the restoring command replaces.
pub struct Stdio;

impl Object for Stdio {
    fn kind(&self) -> Kind {
        Kind::External
    }

    fn claims(&self, f: &FileView) -> bool {
        // a file or /dev/null keeps being itself
        f.is_terminal()
            || (f.stdio() >= 0
                && (f.is_pipe() && !f.both_ends || f.socket.as_ref().is_some_and(|s| s.remote.is_some())))
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let mut e = External { stdio: f.stdio(), ..External::default() };
        if f.is_terminal() {
            // a terminal that is not a standard stream: the first standard stream that is one stands for it
            if e.stdio < 0 {
                e.stdio = o.terminal_stdio();
            }
            if let Ok(t) = sys::tty::get(&o.descriptor(f.first_fd())?) {
                e.termios = t.termios.into();
                e.winsize = t.winsize;
            }
        }
        Ok(encode(&e))
    }
}
