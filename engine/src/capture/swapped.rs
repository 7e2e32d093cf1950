//! Shared anonymous memory that is swapped out. mincore(2) does not show it, pagemap neither, and the files of map_files, which could
//! be asked for holes, open for the privileged only. smaps tells how much of a mapping is swapped out, not which pages: so all
//! that are not resident are read. A hole that is read becomes a page of zeros, which is why that has a limit.
use crate::Reason;
use sys::procfs::{maps::Vma, smaps::Smap};

/// Holes that may be read, in pages: 64 MiB.
const HOLES: u64 = 16 << 10;

/// Which pages of a mapping of shared memory are stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Those that are resident: nothing is swapped out.
    Resident,
    /// All of them.
    All,
    /// It cannot be told.
    Unknown,
}

/// Decides by pages: of the mapping, resident, swapped out.
pub(super) fn decide(all: u64, resident: u64, swapped: u64) -> Stored {
    let absent = all.saturating_sub(resident);
    match swapped {
        0 => Stored::Resident,
        n if absent.saturating_sub(n) <= HOLES => Stored::All,
        _ => Stored::Unknown,
    }
}

/// Pages of a mapping that are swapped out.
pub(super) fn pages(v: &Vma, smaps: &[Smap]) -> u64 {
    let own = smaps.iter().filter(|m| m.vma.start < v.end && v.start < m.vma.end);
    own.map(|m| m.swap_kb).sum::<u64>() >> 2
}

/// Anything at all is swapped out on this machine.
pub(super) fn any() -> bool {
    in_use(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn in_use(meminfo: &str) -> bool {
    let value = |key: &str| {
        meminfo.lines().find_map(|l| l.strip_prefix(key)?.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    value("SwapTotal:") != value("SwapFree:")
}

/// The refusal of [`Stored::Unknown`].
pub(super) fn refusal(v: &Vma, swapped: u64) -> Reason {
    let why =
        format!("{} KiB of this shared memory are swapped out, and the kernel does not tell which of it", swapped << 2);
    let remedy = "let the program touch it, or swap in (swapoff -a), before the checkpoint";
    Reason::new(super::mappings::describe(v), why, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swapped_out_is_read_unless_that_would_fill_too_many_holes() {
        assert_eq!(decide(100, 40, 0), Stored::Resident);
        // all that is absent is swapped out: no hole is touched, whatever its size
        assert_eq!(decide(1 << 30, 0, 1 << 30), Stored::All);
        // what is both in the swap cache and resident is counted twice
        assert_eq!(decide(100, 90, 20), Stored::All);
        assert_eq!(decide(HOLES + 10, 0, 10), Stored::All);
        assert_eq!(decide(HOLES + 11, 0, 10), Stored::Unknown);
    }

    #[test]
    fn swap_is_in_use_if_some_is_not_free() {
        assert!(!in_use("MemFree: 5 kB\nSwapCached:  0 kB\nSwapTotal:  0 kB\nSwapFree:  0 kB\n"));
        assert!(!in_use("SwapTotal:  2048 kB\nSwapFree:  2048 kB\n"));
        assert!(in_use("SwapTotal:  2048 kB\nSwapFree:  2044 kB\n"));
        assert!(!in_use(""));
    }
}
