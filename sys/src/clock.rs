//! The clocks that a time namespace has of its own, and the namespace (time_namespaces(7)).
use crate::procfs::timens::{self, Offsets};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A clock tick of /proc in nanoseconds (USER_HZ).
pub const TICK: i64 = 10_000_000;

/// Of CLOCK_MONOTONIC and CLOCK_BOOTTIME, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// CLOCK_BOOTTIME.
    pub boottime: u64,
}

impl Clocks {
    /// As this process sees them now.
    pub fn now() -> io::Result<Clocks> {
        let ns = |id: libc::clockid_t| {
            let t = nix::time::clock_gettime(nix::time::ClockId::from_raw(id))?;
            Ok::<u64, io::Error>(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        };
        Ok(Clocks { monotonic: ns(libc::CLOCK_MONOTONIC)?, boottime: ns(libc::CLOCK_BOOTTIME)? })
    }

    /// As they are where the offsets are this much larger.
    pub fn ahead(self, by: Offsets) -> Clocks {
        Clocks {
            monotonic: self.monotonic.saturating_add_signed(by.monotonic),
            boottime: self.boottime.saturating_add_signed(by.boottime),
        }
    }
}

/// Sets the clocks of the time namespace that a process has made for its children, of which it has none yet, this much ahead of
/// those that this process has.
pub fn set_ahead(pid: i32, by: Offsets) -> io::Result<()> {
    // those of the namespace that this process is in: it has made no other, or not yet set it
    let own = timens::read(std::process::id() as i32).map_err(io::Error::other)?;
    std::fs::write(format!("/proc/{pid}/timens_offsets"), (own + by).to_string())
}

/// While this lives, the children of this process come to be in another time namespace than it.
#[derive(Debug)]
pub struct ForChildren(Option<File>);

impl ForChildren {
    /// Makes the namespace, its clocks this much ahead of ours.
    pub fn new(by: Offsets) -> io::Result<ForChildren> {
        let own = File::open("/proc/self/ns/time")?;
        // SAFETY: unshare takes an integer and touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWTIME) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let made = ForChildren(Some(own));
        set_ahead(std::process::id() as i32, by)?;
        Ok(made)
    }

    /// From here on children are in ours. This process must have one thread.
    pub fn end(mut self) -> io::Result<()> {
        self.0.take().map_or(Ok(()), |own| back(&own))
    }
}

fn back(own: &File) -> io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory.
    match unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWTIME) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for ForChildren {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            let _ = back(&own);
        }
    }
}
