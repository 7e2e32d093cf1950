//! `/proc/PID/smaps`: maps with VmFlags and sizes (proc_pid_smaps(5)). Seven times the cost of maps:
//! it walks every page table. Read it only for what maps lacks, and from the snapshot child.

use super::bytes::{dec, dec32, lines, split_at_byte, Words};
use super::maps::{parse_line, Vma};
use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "smaps";

/// A two-letter flag of the VmFlags line (fs/proc/task_mmu.c `show_smap_vma_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmFlag(pub [u8; 2]);

impl VmFlag {
    /// VM_READ
    pub const READ: VmFlag = VmFlag(*b"rd");
    /// VM_WRITE
    pub const WRITE: VmFlag = VmFlag(*b"wr");
    /// VM_EXEC
    pub const EXEC: VmFlag = VmFlag(*b"ex");
    /// VM_SHARED
    pub const SHARED: VmFlag = VmFlag(*b"sh");
    /// VM_MAYREAD
    pub const MAY_READ: VmFlag = VmFlag(*b"mr");
    /// VM_MAYWRITE
    pub const MAY_WRITE: VmFlag = VmFlag(*b"mw");
    /// VM_MAYEXEC
    pub const MAY_EXEC: VmFlag = VmFlag(*b"me");
    /// VM_MAYSHARE
    pub const MAY_SHARE: VmFlag = VmFlag(*b"ms");
    /// VM_GROWSDOWN: MAP_GROWSDOWN and the first stack
    pub const GROWSDOWN: VmFlag = VmFlag(*b"gd");
    /// VM_PFNMAP: pages without struct page, as of a device
    pub const PFNMAP: VmFlag = VmFlag(*b"pf");
    /// VM_LOCKED: mlock(2)
    pub const LOCKED: VmFlag = VmFlag(*b"lo");
    /// VM_LOCKONFAULT: mlock2(MLOCK_ONFAULT)
    pub const LOCKONFAULT: VmFlag = VmFlag(*b"lf");
    /// VM_IO: memory-mapped I/O
    pub const IO: VmFlag = VmFlag(*b"io");
    /// VM_SEQ_READ: MADV_SEQUENTIAL
    pub const SEQ_READ: VmFlag = VmFlag(*b"sr");
    /// VM_RAND_READ: MADV_RANDOM
    pub const RAND_READ: VmFlag = VmFlag(*b"rr");
    /// VM_DONTCOPY: MADV_DONTFORK
    pub const DONTFORK: VmFlag = VmFlag(*b"dc");
    /// VM_DONTEXPAND: mremap(2) may not grow it
    pub const DONTEXPAND: VmFlag = VmFlag(*b"de");
    /// VM_ACCOUNT: counts towards overcommit
    pub const ACCOUNT: VmFlag = VmFlag(*b"ac");
    /// VM_NORESERVE: MAP_NORESERVE
    pub const NORESERVE: VmFlag = VmFlag(*b"nr");
    /// VM_HUGETLB
    pub const HUGETLB: VmFlag = VmFlag(*b"ht");
    /// VM_SYNC: MAP_SYNC
    pub const SYNC: VmFlag = VmFlag(*b"sf");
    /// VM_WIPEONFORK: MADV_WIPEONFORK
    pub const WIPEONFORK: VmFlag = VmFlag(*b"wf");
    /// VM_DONTDUMP: MADV_DONTDUMP
    pub const DONTDUMP: VmFlag = VmFlag(*b"dd");
    /// VM_SOFTDIRTY
    pub const SOFTDIRTY: VmFlag = VmFlag(*b"sd");
    /// VM_MIXEDMAP
    pub const MIXEDMAP: VmFlag = VmFlag(*b"mm");
    /// VM_HUGEPAGE: MADV_HUGEPAGE
    pub const HUGEPAGE: VmFlag = VmFlag(*b"hg");
    /// VM_NOHUGEPAGE: MADV_NOHUGEPAGE
    pub const NOHUGEPAGE: VmFlag = VmFlag(*b"nh");
    /// VM_MERGEABLE: MADV_MERGEABLE
    pub const MERGEABLE: VmFlag = VmFlag(*b"mg");
    /// VM_UFFD_MISSING
    pub const UFFD_MISSING: VmFlag = VmFlag(*b"um");
    /// VM_UFFD_WP
    pub const UFFD_WP: VmFlag = VmFlag(*b"uw");
    /// VM_UFFD_MINOR
    pub const UFFD_MINOR: VmFlag = VmFlag(*b"ui");
    /// VM_SHADOW_STACK
    pub const SHADOW_STACK: VmFlag = VmFlag(*b"ss");
    /// VM_SEALED: mseal(2)
    pub const SEALED: VmFlag = VmFlag(*b"sl");
    /// VM_DROPPABLE: MAP_DROPPABLE
    pub const DROPPABLE: VmFlag = VmFlag(*b"dp");
}

/// The flags of one mapping, in the kernel's order; ones we have no name for are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFlags(Vec<VmFlag>);

impl VmFlags {
    /// True if the kernel listed `flag`.
    pub fn has(&self, flag: VmFlag) -> bool {
        self.0.contains(&flag)
    }

    /// Adds one.
    pub fn add(&mut self, flag: VmFlag) {
        self.0.push(flag);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = VmFlag> + '_ {
        self.0.iter().copied()
    }

    /// From the words of a VmFlags line. A word that is not two letters (`??` stands for none we
    /// know on a newer kernel) is skipped.
    pub fn parse(text: &[u8]) -> VmFlags {
        VmFlags(Words::new(text).filter_map(|w| w.try_into().ok().map(VmFlag)).collect())
    }
}

/// One mapping with what smaps adds. Sizes are in KiB, as the kernel gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smap {
    /// The header line.
    pub vma: Vma,
    /// VmFlags; empty if the kernel gave none.
    pub flags: VmFlags,
    /// Rss
    pub rss_kb: u64,
    /// Pss
    pub pss_kb: u64,
    /// Shared_Dirty
    pub shared_dirty_kb: u64,
    /// Private_Dirty
    pub private_dirty_kb: u64,
    /// Anonymous: copied or never-file pages
    pub anonymous_kb: u64,
    /// AnonHugePages
    pub anon_huge_kb: u64,
    /// Swap
    pub swap_kb: u64,
    /// Locked: the Pss of an mlocked mapping, else 0
    pub locked_kb: u64,
    /// KernelPageSize
    pub kernel_page_kb: u64,
    /// THPeligible
    pub thp_eligible: bool,
    /// ProtectionKey, where the processor has them
    pub protection_key: Option<u32>,
}

impl Smap {
    fn new(vma: Vma) -> Smap {
        Smap {
            vma,
            flags: VmFlags::default(),
            rss_kb: 0,
            pss_kb: 0,
            shared_dirty_kb: 0,
            private_dirty_kb: 0,
            anonymous_kb: 0,
            anon_huge_kb: 0,
            swap_kb: 0,
            locked_kb: 0,
            kernel_page_kb: 0,
            thp_eligible: false,
            protection_key: None,
        }
    }

    /// None if a known field has no number.
    fn field(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let first = || Words::new(value).next().and_then(dec);
        match key {
            b"VmFlags" => self.flags = VmFlags::parse(value),
            b"Rss" => self.rss_kb = first()?,
            b"Pss" => self.pss_kb = first()?,
            b"Shared_Dirty" => self.shared_dirty_kb = first()?,
            b"Private_Dirty" => self.private_dirty_kb = first()?,
            b"Anonymous" => self.anonymous_kb = first()?,
            b"AnonHugePages" => self.anon_huge_kb = first()?,
            b"Swap" => self.swap_kb = first()?,
            b"Locked" => self.locked_kb = first()?,
            b"KernelPageSize" => self.kernel_page_kb = first()?,
            b"THPeligible" => self.thp_eligible = first()? != 0,
            b"ProtectionKey" => {
                self.protection_key = Some(Words::new(value).next().and_then(dec32)?);
            }
            _ => {}
        }
        Some(())
    }
}

/// `Key: value`, which no header line is: its first word holds no colon.
fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, value) = split_at_byte(line, b':')?;
    let is_key = key.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    is_key.then_some((key, value))
}

/// The mappings in ascending order.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Smap>, ParseError> {
    let mut maps: Vec<Smap> = Vec::with_capacity(text.len() / 700);
    for (number, line) in lines(text) {
        let fail = |what| ParseError::new(FILE, number, what, line);
        match key_value(line) {
            Some((key, value)) => {
                let map = maps.last_mut().ok_or_else(|| fail("a field before any mapping"))?;
                map.field(key, value).ok_or_else(|| fail("expected a number"))?;
            }
            None => maps.push(Smap::new(parse_line(line).map_err(fail)?)),
        }
    }
    Ok(maps)
}

/// Reads `/proc/PID/smaps`.
pub fn read(pid: Pid) -> Result<Vec<Smap>> {
    read_with(&path_of(pid, FILE), parse)
}
