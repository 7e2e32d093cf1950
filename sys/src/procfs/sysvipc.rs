//! `/proc/sysvipc/shm`: the segments of System V shared memory (proc(5), ipc/shm.c `sysvipc_shm_proc_show`).

use super::bytes::{dec, int32, lines, oct, Words};
use super::{read_with, ParseError, Result};

const FILE: &str = "sysvipc/shm";
/// SHM_DEST: it goes when nobody is attached any more.
const DEST: u64 = 0o1000;

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shm {
    /// Key of shmget(2); 0: IPC_PRIVATE.
    pub key: i32,
    /// shmid; the inode of its mappings.
    pub id: i32,
    /// Permissions.
    pub mode: u32,
    /// It goes when nobody is attached any more (IPC_RMID).
    pub ends: bool,
    /// Bytes.
    pub size: u64,
    /// Mappings of it, of all processes.
    pub attached: u64,
}

fn parse_line(line: &[u8]) -> Option<Shm> {
    let mut words = Words::new(line);
    let (key, id) = (int32(words.next()?)?, int32(words.next()?)?);
    let perms = oct(words.next()?)?;
    let size = dec(words.next()?)?;
    let attached = words.nth(2).and_then(dec)?;
    Some(Shm { key, id, mode: (perms & 0o777) as u32, ends: perms & DEST != 0, size, attached })
}

/// Parses the list.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Shm>, ParseError> {
    let one =
        |(number, line)| parse_line(line).ok_or_else(|| ParseError::new(FILE, number, "unexpected segment", line));
    lines(text).skip(1).map(one).collect()
}

/// The segments of this IPC namespace.
pub fn shm() -> Result<Vec<Shm>> {
    read_with(std::path::Path::new("/proc/sysvipc/shm"), parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read() {
        let text = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n         0          3  1600                  8192   811   811      2  1000  1000  1000  1000 1700000000          0 1700000000                  4096                     0\n-559038737          4   640                   100   811     0      0     0     0     0     0          0          0 1700000000                     0                     0\n";
        let a = Shm { key: 0, id: 3, mode: 0o600, ends: true, size: 8192, attached: 2 };
        let b = Shm { key: -559038737, id: 4, mode: 0o640, ends: false, size: 100, attached: 0 };
        assert_eq!(parse(text).unwrap(), [a, b]);
        assert!(parse(b"key\n1 2 x").is_err());
        assert!(shm().is_ok());
    }
}
