//! Another process's memory, as a file: `/proc/PID/mem` (proc(5)). Writes to private mappings ignore protections and
//! give the process its own copy of the page.
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// Most pieces that one call takes (sysconf(3), UIO_MAXIOV of linux/uio.h).
const IOV_MAX: usize = 1024;

/// An open `/proc/PID/mem`. It stays with the address space that it was opened on.
#[derive(Debug)]
pub struct RemoteMem {
    pid: i32,
    file: File,
}

impl RemoteMem {
    /// Opens it for reading and writing; wants ptrace rights.
    pub fn open(pid: i32) -> Result<RemoteMem> {
        let pid = crate::procfs::first::by(pid);
        let path = format!("/proc/{pid}/mem");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        match file {
            Ok(file) => Ok(RemoteMem { pid, file }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::Died { doing: "opening its memory".into(), pid })
            }
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Reads exactly `out.len()` bytes at `addr`.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, addr).map_err(|e| self.err("reading memory", addr, e))
    }

    /// The same with one copy (process_vm_readv(2)) where the file makes two. It knows the process by its number and heeds protections:
    /// what it does not read comes through the file, and what it has read counts only if [`RemoteMem::is_there`] then says so.
    pub fn read_by_number(&self, addr: u64, out: &mut [u8]) -> Result<()> {
        if !may_read_by_number() {
            return self.read(addr, out);
        }
        let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        let remote = libc::iovec { iov_base: addr as *mut _, iov_len: out.len() };
        // SAFETY: the kernel writes, of this process, to `out` only, which is ours alone meanwhile.
        let n = unsafe { libc::process_vm_readv(self.pid, &local, 1, &remote, 1, 0) }.max(0) as usize;
        if n == out.len() {
            return Ok(());
        }
        self.read(addr + n as u64, &mut out[n..])
    }

    /// The process has not ended since this was opened, so nobody else has got its number: its memory at `addr` can still be read.
    pub fn is_there(&self, addr: u64) -> Result<()> {
        self.read(addr, &mut [0])
    }

    /// Writes all of `b` at `addr`.
    pub fn write(&self, addr: u64, b: &[u8]) -> Result<()> {
        self.file.write_all_at(b, addr).map_err(|e| self.err("writing memory", addr, e))
    }

    /// Writes each piece at its address, many with one call (process_vm_writev(2)). That copies once where the file copies twice, but
    /// knows the process by its number and heeds protections: only for a process that we are making, and what it does not write goes
    /// through the file.
    pub fn write_pieces(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        for some in pieces.chunks(IOV_MAX) {
            let local = some.iter().map(|(_, b)| libc::iovec { iov_base: b.as_ptr() as *mut _, iov_len: b.len() });
            let remote = some.iter().map(|(at, b)| libc::iovec { iov_base: *at as *mut _, iov_len: b.len() });
            let (local, remote) = (Vec::from_iter(local), Vec::from_iter(remote));
            let n = some.len() as libc::c_ulong;
            // SAFETY: the kernel reads `n` iovecs of each list and, of this process, the slices that the local ones were made of.
            let r = unsafe { libc::process_vm_writev(self.pid, local.as_ptr(), n, remote.as_ptr(), n, 0) };
            let mut written = r.max(0) as usize;
            for (at, b) in some {
                let done = written.min(b.len());
                written -= done;
                if done < b.len() {
                    self.write(at + done as u64, &b[done..])?;
                }
            }
        }
        Ok(())
    }

    /// Reads as much as there is, at most `out.len()` bytes.
    pub fn read_some(&self, addr: u64, out: &mut [u8]) -> std::io::Result<usize> {
        self.file.read_at(out, addr)
    }

    fn err(&self, what: &str, addr: u64, e: std::io::Error) -> Error {
        // the file answers 0 bytes once the address space is gone
        if e.kind() == std::io::ErrorKind::UnexpectedEof || e.kind() == std::io::ErrorKind::WriteZero {
            return Error::Died { doing: format!("{what} at {addr:#x}"), pid: self.pid };
        }
        Error::call(format!("{what} at {addr:#x}"), self.pid, e)
    }
}

/// No filter of seccomp's is on this process, which could end it for a call that it only does not need.
fn may_read_by_number() -> bool {
    static MAY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let own = || crate::procfs::status::read(std::process::id() as i32);
    *MAY.get_or_init(|| own().is_ok_and(|s| matches!(s.seccomp, None | Some(0))))
}
