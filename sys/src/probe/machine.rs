//! What the machine is: its CPU's register state, its file systems.
use std::ffi::CString;
use std::io::{self, Error};
use std::mem::zeroed;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of the register state that this CPU and kernel save (xsave, what is enabled in XCR0).
pub fn xsave_bytes() -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        #[allow(unused_unsafe)]
        // SAFETY: every x86_64 CPU has the instruction.
        let (highest, d) = unsafe { (__cpuid(0).eax, __cpuid_count(0xd, 0)) };
        (highest >= 0xd && d.ebx > 0).then_some(d.ebx)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// A file system, as statfs tells it.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Its kind's magic number.
    pub magic: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes free for this user.
    pub free: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

impl FileSystem {
    /// The kind's name where it is a common one.
    pub fn name(&self) -> &'static str {
        match self.magic {
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlay",
            0x6969 => "nfs",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            0x6573_5546 => "fuse",
            0x0102_1997 => "9p",
            0x4d44 => "vfat",
            0xff53_4d42 | 0xfe53_4d42 => "smb",
            0x8584_58f6 => "ramfs",
            0xca45_1a4e => "bcachefs",
            _ => "an uncommon one",
        }
    }

    /// Whether what it holds is gone after a reboot.
    pub fn is_memory(&self) -> bool {
        matches!(self.magic, 0x0102_1994 | 0x8584_58f6)
    }
}

/// The file system that holds `path`.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: zero is a value of this struct of numbers; the path is a C string and the answer fits `s`.
    let s = unsafe {
        let mut s: libc::statfs64 = zeroed();
        if libc::statfs64(path.as_ptr(), &mut s) < 0 {
            return Err(Error::last_os_error());
        }
        s
    };
    let block = if s.f_frsize > 0 { s.f_frsize } else { s.f_bsize } as u64;
    Ok(FileSystem {
        magic: s.f_type as u64 & 0xffff_ffff,
        total: s.f_blocks.saturating_mul(block),
        free: s.f_bavail.saturating_mul(block),
        read_only: s.f_flags as u64 & libc::ST_RDONLY != 0,
    })
}
