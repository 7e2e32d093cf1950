//! The mapping at one address, by PROCMAP_QUERY (6.11+, linux/fs.h), which takes microseconds whatever the number of
//! mappings is; on older kernels out of the whole listing.
#![allow(unsafe_code)]

use super::maps::{self, Perms};
use super::{Pid, Result};
use std::fs::File;
use std::os::fd::AsRawFd;

/// _IOWR('f', 17, struct procmap_query)
const PROCMAP_QUERY: libc::c_ulong = 3 << 30 | (size_of::<Query>() as libc::c_ulong) << 16 | 0x66 << 8 | 17;

/// struct procmap_query
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev: [u32; 2],
    name_and_build_id_size: [u32; 2],
    name_and_build_id_addr: [u64; 2],
}

/// Start, end and protection of the mapping that holds `addr`; None if none does.
pub fn read(pid: Pid, addr: u64) -> Result<Option<(u64, u64, Perms)>> {
    if let Ok(file) = File::open(super::path_of(pid, "maps")) {
        let mut q = Query { size: size_of::<Query>() as u64, query_addr: addr, ..Query::default() };
        // SAFETY: `q` is as large as its first field says; it asks for no name and no build ID, so nothing else is written.
        if unsafe { libc::ioctl(file.as_raw_fd(), PROCMAP_QUERY, &raw mut q) } == 0 {
            let bit = |n: u64| q.vma_flags & n != 0;
            let perms = Perms { read: bit(1), write: bit(2), exec: bit(4), shared: bit(8) };
            return Ok(Some((q.vma_start, q.vma_end, perms)));
        }
        if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) {
            return Ok(None);
        }
    }
    Ok(maps::read(pid)?.iter().find(|v| v.contains(addr)).map(|v| (v.start, v.end, v.perms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_listing_says() {
        let me = std::process::id() as i32;
        let all = maps::read(me).unwrap();
        for v in all.iter().filter(|v| v.kind() != maps::VmaKind::Vsyscall && v.path.starts_with(b"/")) {
            for addr in [v.start, v.end - 1] {
                assert_eq!(read(me, addr).unwrap(), Some((v.start, v.end, v.perms)), "{v:?}");
            }
        }
        assert_eq!(read(me, 0x10).unwrap(), None);
    }
}
