//! Mappings that cannot be captured: each is looked at before the freeze, and what is new in it when it is recorded.
use super::find::Survey;
use crate::Reason;
use sys::procfs::maps::{Vma, VmaKind};
use sys::procfs::smaps::{Smap, VmFlag};

impl Survey {
    /// Reasons that its mappings are.
    pub(super) fn mappings(&mut self) {
        let reasons: Vec<Reason> = self
            .smaps
            .iter()
            .filter_map(|m| unsupported(m).map(|(w, r)| Reason::new(describe(&m.vma), w, r)))
            .collect();
        self.reasons.extend(reasons);
        let rings = self.smaps.iter().map(|m| &m.vma).filter(|v| v.kind() == VmaKind::AioRing);
        let mem = sys::mem::RemoteMem::open(self.pid).ok();
        let unread = rings.filter_map(|v| super::memory::unread_completions(mem.as_ref()?, v));
        self.unsure.extend(unread);
    }
}

/// "mapping 7f00..-7f01.. (/dev/foo)".
pub(super) fn describe(v: &Vma) -> String {
    let name = if v.path.is_empty() { "anonymous".into() } else { v.path.escape_ascii().to_string() };
    format!("mapping {:x}-{:x} ({name})", v.start, v.end)
}

/// Why a mapping cannot be captured, and what to do.
pub(super) fn unsupported(m: &Smap) -> Option<(&'static str, &'static str)> {
    let close = "unmap it before the checkpoint";
    match m.vma.kind() {
        VmaKind::AnonInode(b"io_uring") | VmaKind::Vdso | VmaKind::Vvar | VmaKind::VvarVclock
            if m.protection_key.is_some_and(|k| k != 0) =>
        {
            let why = "a memory protection key is on memory that the kernel made, which is not kept";
            return Some((why, "take it off (pkey_mprotect with key 0)"));
        }
        // judged with its descriptor
        VmaKind::AnonInode(b"io_uring") => return None,
        VmaKind::AnonInode(_) => {
            return Some(("it belongs to a kernel object that is not kept yet (perf, ...)", "close that object first"))
        }
        VmaKind::Socket => return Some(("packet rings are not kept", "close the packet socket")),
        _ => {}
    }
    if m.vma.path == b"/secretmem" {
        return Some(("secret memory (memfd_secret) lets nobody read it", close));
    }
    let f = |x| m.flags.has(x);
    let unnamed = super::memory::is_unnamed(&m.vma);
    if m.vma.kind() == VmaKind::File && m.vma.perms.shared && !unnamed && super::memory::is_gone(&m.vma) {
        return Some((
            "it shares a file whose name leads to another one now, which is not kept",
            "unmap it, or map it MAP_PRIVATE",
        ));
    }
    if m.vma.kind() == VmaKind::File && (f(VmFlag::IO) || f(VmFlag::PFNMAP)) {
        return Some(("it maps a device", "close the device first"));
    }
    if f(VmFlag::HUGETLB) && !super::hugetlb::is_kept(&m.vma) {
        return Some((
            "huge pages of a file, or of a memfd that is mapped MAP_PRIVATE are not kept yet",
            "run it without hugetlbfs, and map a memfd MAP_SHARED",
        ));
    }
    if f(VmFlag::UFFD_MISSING) || f(VmFlag::UFFD_WP) || f(VmFlag::UFFD_MINOR) {
        return Some((
            "userfaultfd watches it, which is not kept",
            "let the program unregister it (UFFDIO_UNREGISTER) before the checkpoint",
        ));
    }
    None
}
