//! Control groups for a case, of version 2, in a place of their own: made by root, given to who runs the case, and removed however it ends; if it was killed, by the
//! next one that wants some.
use crate::{run, Bed};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of all of them begin with.
const NAME: &str = "dormouse-test-";
/// Longest wait for the end of what is left in them.
const END: Duration = Duration::from_secs(10);

/// A group of the case's, and those in it. The case's own process is moved among them: what it starts is where it is.
pub struct Groups {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// Where the case's process was.
    home: String,
    top: PathBuf,
}

impl Groups {
    /// Makes these, and goes into the first.
    pub fn make(bed: &Bed, names: &[&str]) -> Result<Groups> {
        let mount = mounted("cgroup2", "").context("no cgroup2 is mounted here")?;
        remove_stale(&mount);
        let top = mount.join(format!("{NAME}{}", std::process::id()));
        let groups = Groups { home: path_of(std::process::id() as i32, "")?, mount, top };
        fs::create_dir(&groups.top).with_context(|| groups.top.display().to_string())?;
        give(bed, &groups.top)?;
        for name in names {
            groups.add(bed, name)?;
        }
        groups.enter(names[0], std::process::id() as i32)?;
        Ok(groups)
    }

    /// One more.
    pub fn add(&self, bed: &Bed, name: &str) -> Result<()> {
        let folder = self.folder(name);
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        give(bed, &folder)
    }

    /// Its folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// Its path, as /proc has it.
    pub fn path(&self, name: &str) -> String {
        let below = self.folder(name);
        format!("/{}", below.strip_prefix(&self.mount).unwrap_or(&below).display())
    }

    /// Moves a process.
    pub fn enter(&self, name: &str, pid: i32) -> Result<()> {
        let file = self.folder(name).join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| file.display().to_string())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = fs::write(
            self.mount.join(self.home.trim_start_matches('/')).join("cgroup.procs"),
            std::process::id().to_string(),
        );
        remove(&self.top);
    }
}

/// The group of a process in a hierarchy ("": version 2).
pub fn path_of(pid: i32, hierarchy: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = text.lines().find_map(|l| l.split_once(':')?.1.strip_prefix(hierarchy)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("PID {pid} is in no group of hierarchy {hierarchy:?}: {text}"))?.to_owned())
}

/// Where a hierarchy is mounted: by type, and an option.
pub fn mounted(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let is = |words: &[&str]| words[2] == kind && (option.is_empty() || words[3].split(',').any(|o| o == option));
    mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|w| w.len() > 3 && is(w)).map(|w| w[1].into())
}

fn give(bed: &Bed, folder: &Path) -> Result<()> {
    for file in [folder.to_owned(), folder.join("cgroup.procs")] {
        chown(&file, Some(bed.who.uid()), None).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Ends whoever is still in it or below, and removes it.
fn remove(top: &Path) {
    let _ = fs::write(top.join("cgroup.kill"), "1");
    let _ = run::until("a group without processes", END, || Ok(removed(top)));
}

fn removed(folder: &Path) -> bool {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    for f in below.filter(|f| f.is_dir()) {
        let _ = removed(&f);
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
}

/// What killed cases have left.
fn remove_stale(mount: &Path) {
    for e in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = e.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(NAME).and_then(|n| n.parse::<i32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&e.path());
        }
    }
}
