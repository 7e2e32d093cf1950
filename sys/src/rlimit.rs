//! Our own limit of open files (getrlimit(2)), raised while that is needed.
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use std::io;

/// The soft limit of open files, perhaps raised; put back when dropped. What is open beyond it then stays open.
#[derive(Debug)]
pub struct Raised {
    before: Option<(u64, u64)>,
    limit: u64,
}

impl Raised {
    /// Raises the soft limit to the hard one, unless it is at least `need` already.
    pub fn for_descriptors(need: u64) -> io::Result<Raised> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if need <= soft {
            return Ok(Raised { before: None, limit: soft });
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(Raised { before: Some((soft, hard)), limit: hard })
    }

    /// Descriptors below this number can be had.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.before {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
    }
}
