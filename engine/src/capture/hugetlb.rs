//! Memory of huge pages (MAP_HUGETLB). What is private is read in the freeze: a snapshot child that still had it would take pages from the pool for what
//! the program writes meanwhile, and lose its own where there are none. What is shared is a file without a name, like a memfd of huge pages, and
//! may be one: unnamed.rs; or System V shared memory: sysv.rs.
use super::snapshot::Child;
use super::{Observer, Step};
use sys::procfs::maps::{Vma, VmaKind};
use sys::program::{Arg::Imm, Program};

/// Whether this is private memory of them.
pub(super) fn is(v: &Vma) -> bool {
    v.kind() == VmaKind::AnonHugepage && !v.perms.shared
}

/// Whether this, which is of huge pages, is shared and has no name in a file system.
pub(super) fn is_shared(v: &Vma) -> bool {
    v.perms.shared && v.deleted && matches!(v.kind(), VmaKind::AnonHugepage | VmaKind::Memfd(_))
}

/// Whether this, which is of huge pages, is of a kind that can be kept.
pub(super) fn is_kept(v: &Vma) -> bool {
    is(v) || is_shared(v) || matches!(v.kind(), VmaKind::SysvShm { .. })
}

impl Observer<'_> {
    /// Whether the snapshot child has something to do before the program runs again.
    pub(super) fn needs_its_child(&self) -> bool {
        !self.huge.is_empty() || !self.hidden.is_empty()
    }

    /// Takes it from the snapshot child, before the program runs again.
    pub(super) fn without_huge_pages<'c>(&mut self, mut child: Option<&'c mut Child>) -> Step<Option<&'c mut Child>> {
        if let Some(child) = child.as_mut().filter(|_| !self.huge.is_empty()) {
            let mut p = Program::new();
            for (start, end) in &self.huge {
                p.may(libc::SYS_munmap, &[Imm(*start), Imm(end - start)]);
            }
            match child.channel.run(&p) {
                // then it takes room for a while
                Err(sys::Error::Filtered { .. }) => {}
                r => drop(r?),
            }
        }
        Ok(child)
    }
}
