//! A terminal for a program: what it writes is collected, so that it never fills.
use crate::{run, Bed};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

/// A pseudo terminal; both ends are ours.
pub struct Pty {
    master: File,
    slave: OwnedFd,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    /// One of this many rows and columns.
    pub fn new(size: (u16, u16)) -> Result<Pty> {
        let ends = nix::pty::openpty(None, None)?;
        crate::sys::keep_descriptors_to_myself();
        crate::sys::set_window_size(&ends.slave, size)?;
        let master = File::from(ends.master);
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (master.try_clone()?, said.clone());
        std::thread::spawn(move || {
            let mut bytes = [0u8; 4096];
            while let Ok(n) = from.read(&mut bytes) {
                to.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(&bytes[..n]);
            }
        });
        Ok(Pty { master, slave: ends.slave, said })
    }

    /// Starts a command as leader of a session whose terminal this is.
    pub fn spawn(&self, bed: &mut Bed, command: &mut Command) -> Result<Child> {
        let end = || self.slave.try_clone();
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        crate::sys::own_session(command);
        nix::unistd::fchown(&self.slave, Some(bed.who.uid().into()), None)?;
        let child = command.spawn().with_context(|| format!("cannot start {}", run::typed(command)))?;
        bed.hold(child.id() as i32);
        Ok(child)
    }

    /// The end that programs have.
    pub fn slave(&self) -> &OwnedFd {
        &self.slave
    }

    /// Types something.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// What programs wrote so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(|e| e.into_inner())).into_owned()
    }

    /// Waits until `text` was written.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let waited =
            run::until(&format!("{text:?} on the terminal"), crate::bed::LIMIT, || Ok(self.said().contains(text)));
        waited.with_context(|| format!("the terminal shows: {}", self.said()))
    }
}
