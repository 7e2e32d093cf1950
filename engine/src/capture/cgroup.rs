//! Control groups: which each process is in. What is not kept of that is said: a thread's own, a namespace of them.
use super::find::Survey;
use super::Observer;
use image::v1::cgroup::{Cgroup, Cgroups};
use std::os::unix::fs::MetadataExt;
use sys::procfs::cgroup::{self, Membership};
use sys::procfs::ns::NsKind;

impl Survey {
    /// Before the freeze: what a restored one will not have.
    pub(super) fn cgroups(&mut self) {
        let namespace = |ids: &sys::procfs::ns::NsIds| ids.get(NsKind::Cgroup);
        let mine = sys::procfs::ns::read(std::process::id() as i32).ok();
        if self.spaces.as_ref().zip(mine.as_ref()).is_some_and(|(theirs, mine)| namespace(theirs) != namespace(mine)) {
            let what = "it is in another one than this command, and a restored one is in that of the restoring command";
            self.reported.push(format!("cgroup namespace: {what}"));
        }
        let Ok(process) = cgroup::read(self.pid) else { return };
        for (tid, facts) in &self.threads {
            let Ok(own) = cgroup::read_task(self.pid, *tid) else { continue };
            let other = own.iter().find(|m| !process.contains(m)).filter(|_| *tid != self.pid);
            if let Some(m) = other {
                let (path, tid) = (m.path.escape_ascii(), facts.inner_tid);
                let what = "it is not its process's; a restored thread is in that of its process";
                self.reported.push(format!("control group {path} of thread {tid}: {what}"));
            }
        }
    }
}

impl Observer<'_> {
    /// Those that it is in.
    pub(super) fn cgroups(&mut self) -> Vec<Membership> {
        cgroup::read(self.survey.pid).unwrap_or_else(|e| {
            let what = "they cannot be looked at, and a restored program is in those of the restoring command";
            self.reported.push(format!("control groups: {what} ({e})"));
            Vec::new()
        })
    }
}

/// Whether there is nothing to go back to.
pub(super) fn is_root(all: &[Membership]) -> bool {
    all.iter().all(|m| m.path == b"/")
}

/// In the image's words.
pub(super) fn kept(pid: i32, all: &[Membership]) -> Cgroups {
    let inode = |m: &Membership| {
        let folder = cgroup::folder(&m.path).filter(|_| m.hierarchy.is_empty());
        folder.and_then(|f| std::fs::metadata(f).ok()).map_or(0, |f| f.ino())
    };
    let one = |m: &Membership| {
        let (hierarchy, path) = (m.hierarchy.clone().into(), m.path.clone().into());
        Cgroup { hierarchy, path, inode: inode(m) }
    };
    Cgroups { pid, groups: all.iter().map(one).collect() }
}
