//! Huge pages for a case. They are the kernel's and taken from all, so one case at a time has some, and what there was is put back in every case: when it
//! is over, however it ends, and if it was killed by the next one that wants some, or when the stage is removed.
use crate::case::Skip;
use crate::stage::Stage;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::mem::ManuallyDrop;
use std::path::Path;

/// How many there are to be, of the size that mmap takes by default. (What sysfs tells counts those, too, that are only there until they are free.)
const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// The group that may have System V shared memory of them.
const GROUP: &str = "/proc/sys/vm/hugetlb_shm_group";
/// In the stage: how many there were, and which group, while some case has changed that.
const BEFORE: &str = "hugepages";

/// Huge pages of 2 MiB beyond those that there were.
pub struct HugePages {
    /// Until the case's process is gone, and all that had them.
    file: ManuallyDrop<Flock<File>>,
    /// Of other runs on this machine, as long as that.
    _pool: ManuallyDrop<Flock<File>>,
    before: (u64, u64),
}

impl HugePages {
    /// Reserves some.
    pub fn reserve(n: u64) -> Result<HugePages> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Skip("only root can reserve huge pages".into()).into());
        }
        let path = Stage::given()?.path.join(BEFORE);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).context("the lock of huge pages")?;
        let pool = Flock::lock(File::open(POOL).context(POOL)?, FlockArg::LockExclusive).map_err(|(_, e)| e);
        let pool = pool.context("the lock of the machine's huge pages")?;
        let before = match noted(&path) {
            Some(before) => before,
            None => (read(POOL)?, read(GROUP)?),
        };
        fs::write(&path, format!("{} {}", before.0, before.1))?;
        let pages = HugePages { file: ManuallyDrop::new(file), _pool: ManuallyDrop::new(pool), before };
        pages.set(n)?;
        let got = read(POOL)?;
        if got != before.0 + n {
            return Err(Skip(format!(
                "{n} huge pages cannot be had: {} of them are there",
                got.saturating_sub(before.0)
            ))
            .into());
        }
        Ok(pages)
    }

    /// Another number of them.
    pub fn set(&self, n: u64) -> Result<()> {
        fs::write(POOL, (self.before.0 + n).to_string()).context(POOL)
    }

    /// Lets this group have System V shared memory of them, too.
    pub fn for_segments_of(&self, group: u32) -> Result<()> {
        fs::write(GROUP, group.to_string()).context(GROUP)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if self.set(0).is_ok() && fs::write(GROUP, self.before.1.to_string()).is_ok() {
            // else who comes next tries
            let _ = self.file.set_len(0);
        }
    }
}

/// Puts back what a killed case has left.
pub fn put_back(stage: &Path) {
    if let Some(before) = noted(&stage.join(BEFORE)) {
        let _ = fs::write(POOL, before.0.to_string());
        let _ = fs::write(GROUP, before.1.to_string());
    }
}

fn read(path: &'static str) -> Result<u64> {
    Ok(fs::read_to_string(path).context(path)?.trim().parse()?)
}

fn noted(path: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (pages, group) = text.trim().split_once(' ')?;
    Some((pages.parse().ok()?, group.parse().ok()?))
}
