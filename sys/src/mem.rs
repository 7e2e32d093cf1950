//! Another process's memory, as a file: `/proc/PID/mem` (proc(5)). Writes to private mappings ignore protections and
//! give the process its own copy of the page.
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// An open `/proc/PID/mem`. It stays with the address space that it was opened on.
#[derive(Debug)]
pub struct RemoteMem {
    pid: i32,
    file: File,
}

impl RemoteMem {
    /// Opens it for reading and writing; wants ptrace rights.
    pub fn open(pid: i32) -> Result<RemoteMem> {
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

    /// Writes all of `b` at `addr`.
    pub fn write(&self, addr: u64, b: &[u8]) -> Result<()> {
        self.file.write_all_at(b, addr).map_err(|e| self.err("writing memory", addr, e))
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
