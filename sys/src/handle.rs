//! File handles (open_by_handle_at(2)): what tells an inode of a file system, whatever its name is.
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// MAX_HANDLE_SZ of include/linux/exportfs.h
const MAX: usize = 128;
/// A handle to compare, which need not be one to open; kernel 6.5, uapi/linux/fcntl.h.
const AT_HANDLE_FID: i32 = 0x200;

/// `struct file_handle` with room for the largest.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX],
}

/// A file handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Its type, which is the file system's.
    pub kind: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Handle {
    /// That of what is at a path, and the number of its mount (mountinfo). A symbolic link at its end is not followed.
    pub fn of_path(path: &Path) -> io::Result<(Handle, u64)> {
        Handle::of(libc::AT_FDCWD, &CString::new(path.as_os_str().as_bytes())?, 0)
    }

    /// That of an open file, and the number of its mount.
    pub fn of_file(fd: &impl AsFd) -> io::Result<(Handle, u64)> {
        Handle::of(fd.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    fn of(dir: i32, path: &std::ffi::CStr, flags: i32) -> io::Result<(Handle, u64)> {
        let ask = |flags| {
            let mut raw = Raw { bytes: MAX as u32, kind: 0, handle: [0; MAX] };
            let mut mount = 0i32;
            let handle = (&raw mut raw).cast::<libc::file_handle>();
            // SAFETY: `path` ends in NUL; `raw` is a file_handle with room for as many bytes as it says, and `mount` an int: the kernel
            // writes no more than those.
            match unsafe { libc::name_to_handle_at(dir, path.as_ptr(), handle, &mut mount, flags) } {
                0 => Ok((raw, mount)),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let (raw, mount) = match ask(flags | AT_HANDLE_FID) {
            // an older kernel
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => ask(flags)?,
            r => r?,
        };
        let bytes = raw.handle[..(raw.bytes as usize).min(MAX)].to_vec();
        Ok((Handle { kind: raw.kind, bytes }, mount as u64))
    }

    /// Opens what it tells, by name only (O_PATH); `mount`: any open file of its file system. Needs CAP_DAC_READ_SEARCH.
    pub fn open(&self, mount: &impl AsFd) -> io::Result<OwnedFd> {
        let mut raw = Raw { bytes: self.bytes.len() as u32, kind: self.kind, handle: [0; MAX] };
        let room = raw.handle.get_mut(..self.bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&self.bytes);
        let handle = (&raw mut raw).cast::<libc::file_handle>();
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: `raw` is a file_handle with as many bytes as it says, which the kernel reads.
        let fd = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), handle, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_the_inodes_by_whatever_name() {
        let dir = std::env::temp_dir().join(format!("dormouse-handle-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (one, two, other) = (dir.join("one"), dir.join("two"), dir.join("other"));
        let file = std::fs::File::create(&one).unwrap();
        std::fs::hard_link(&one, &two).unwrap();
        std::fs::write(&other, "").unwrap();
        let of = |p| Handle::of_path(p).unwrap();
        assert_eq!(of(&one), of(&two));
        assert_eq!(of(&one), Handle::of_file(&file).unwrap());
        assert_ne!(of(&one).0, of(&other).0);
        assert!(Handle::of_path(&dir.join("none")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
