//! `/proc/PID/maps`: the mappings of a process (proc_pid_maps(5), fs/proc/task_mmu.c `show_map_vma`).

use std::ops::Range;

use super::bytes::{dec, hex, hex32, lines, split_at_byte, unescape_octal, Words};
use super::{path_of, read_with, Dev, ParseError, Pid, ReadError, Result};

const FILE: &str = "maps";
const DELETED: &[u8] = b" (deleted)";

/// The four letters `rwxp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Perms {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub exec: bool,
    /// `s` (VM_MAYSHARE) rather than `p`
    pub shared: bool,
}

impl Perms {
    /// The bits of mprotect(2).
    pub fn prot(self) -> i32 {
        let bit = |on: bool, value| if on { value } else { 0 };
        bit(self.read, libc::PROT_READ) | bit(self.write, libc::PROT_WRITE) | bit(self.exec, libc::PROT_EXEC)
    }

    fn parse(text: &[u8]) -> Option<Perms> {
        let &[r, w, x, s] = text else { return None };
        let flag = |letter: u8, on: u8| match letter {
            l if l == on => Some(true),
            b'-' => Some(false),
            _ => None,
        };
        Some(Perms {
            read: flag(r, b'r')?,
            write: flag(w, b'w')?,
            exec: flag(x, b'x')?,
            shared: match s {
                b's' => true,
                b'p' => false,
                _ => return None,
            },
        })
    }
}

/// One line of maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address, page aligned.
    pub start: u64,
    /// Address after the last byte, page aligned.
    pub end: u64,
    /// Protection and sharing.
    pub perms: Perms,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Device of the file system of the file; 0:0 if none.
    pub dev: Dev,
    /// Inode of the file; 0 if none.
    pub inode: u64,
    /// The last column as bytes, `\012` undone, without the suffix ` (deleted)`. Empty if none.
    ///
    /// The kernel does not escape the backslash: a file whose name holds the four characters `\012`
    /// reads as one with a newline. [`map_files_link`] has the exact bytes.
    pub path: Vec<u8>,
    /// The column ended in ` (deleted)`. A living file may be named so too: see [`Vma::full_path`].
    pub deleted: bool,
}

/// What the last column says the mapping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmaKind<'a> {
    /// Private anonymous memory without a name.
    Anonymous,
    /// `[heap]`: overlaps start_brk..brk.
    Heap,
    /// `[stack]`: the first thread's stack.
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`
    Vvar,
    /// `[vvar_vclock]` (6.13+)
    VvarVclock,
    /// `[vsyscall]`: the fixed gate page at the top, no real mapping.
    Vsyscall,
    /// Another name in brackets, such as `[uprobes]`; without the brackets.
    Special(&'a [u8]),
    /// `[anon:NAME]`: private anonymous memory named by PR_SET_VMA_ANON_NAME.
    AnonNamed(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared anonymous memory so named.
    AnonShmemNamed(&'a [u8]),
    /// `/dev/zero (deleted)`: MAP_SHARED|MAP_ANONYMOUS; dev and inode are its identity.
    SharedAnon,
    /// `/SYSVkkkkkkkk (deleted)`: System V shared memory; the inode is its shmid.
    SysvShm {
        /// The key of shmget(2).
        key: u32,
    },
    /// `/memfd:NAME (deleted)`
    Memfd(&'a [u8]),
    /// `/anon_hugepage (deleted)`: MAP_HUGETLB without a file.
    AnonHugepage,
    /// `/[aio] (deleted)`: the ring of io_setup(2).
    AioRing,
    /// `anon_inode:NAME`, the name without brackets, such as `io_uring` or `perf_event`.
    AnonInode(&'a [u8]),
    /// `socket:[INODE]`: a packet ring.
    Socket,
    /// A file.
    File,
}

impl Vma {
    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True for no bytes at all, which the kernel never shows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// start..end.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// True if `address` is inside.
    pub fn contains(&self, address: u64) -> bool {
        self.range().contains(&address)
    }

    /// The last column with its ` (deleted)`: the path to try first when asking whether it lives.
    pub fn full_path(&self) -> Vec<u8> {
        let mut path = self.path.clone();
        if self.deleted {
            path.extend_from_slice(DELETED);
        }
        path
    }

    /// True if a struct file is behind it (`vm_file`), whatever kind of file.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.dev != Dev::default()
    }

    /// What the last column says.
    pub fn kind(&self) -> VmaKind<'_> {
        let path = self.path.as_slice();
        if path.is_empty() {
            return if self.has_file() { VmaKind::File } else { VmaKind::Anonymous };
        }
        if let Some(inner) = path.strip_prefix(b"[").and_then(|p| p.strip_suffix(b"]")) {
            return bracketed(inner);
        }
        if let Some(name) = path.strip_prefix(b"anon_inode:") {
            let inner = name.strip_prefix(b"[").and_then(|n| n.strip_suffix(b"]"));
            return VmaKind::AnonInode(inner.unwrap_or(name));
        }
        if path.starts_with(b"socket:[") {
            return VmaKind::Socket;
        }
        if self.deleted {
            if let Some(name) = path.strip_prefix(b"/memfd:") {
                return VmaKind::Memfd(name);
            }
            if let Some(key) = path.strip_prefix(b"/SYSV").filter(|k| k.len() == 8).and_then(hex32) {
                return VmaKind::SysvShm { key };
            }
            match path {
                b"/dev/zero" => return VmaKind::SharedAnon,
                b"/anon_hugepage" => return VmaKind::AnonHugepage,
                b"/[aio]" => return VmaKind::AioRing,
                _ => {}
            }
        }
        VmaKind::File
    }
}

fn bracketed(inner: &[u8]) -> VmaKind<'_> {
    if let Some(name) = inner.strip_prefix(b"anon:") {
        return VmaKind::AnonNamed(name);
    }
    if let Some(name) = inner.strip_prefix(b"anon_shmem:") {
        return VmaKind::AnonShmemNamed(name);
    }
    match inner {
        b"heap" => VmaKind::Heap,
        b"stack" => VmaKind::Stack,
        b"vdso" => VmaKind::Vdso,
        b"vvar" => VmaKind::Vvar,
        b"vvar_vclock" => VmaKind::VvarVclock,
        b"vsyscall" => VmaKind::Vsyscall,
        other => VmaKind::Special(other),
    }
}

/// Parses one line; the error is what was expected.
pub(super) fn parse_line(line: &[u8]) -> std::result::Result<Vma, &'static str> {
    let mut words = Words::new(line);
    let (start, end) = words
        .next()
        .and_then(|word| split_at_byte(word, b'-'))
        .and_then(|(start, end)| Some((hex(start)?, hex(end)?)))
        .ok_or("expected START-END")?;
    if end < start {
        return Err("a range that ends before it starts");
    }
    let perms = words.next().and_then(Perms::parse).ok_or("expected rwxp")?;
    let offset = words.next().and_then(hex).ok_or("expected a hexadecimal offset")?;
    let dev = words
        .next()
        .and_then(|word| split_at_byte(word, b':'))
        .and_then(|(major, minor)| Some(Dev { major: hex32(major)?, minor: hex32(minor)? }))
        .ok_or("expected MAJOR:MINOR")?;
    let inode = words.next().and_then(dec).ok_or("expected an inode number")?;
    let column = words.rest();
    let (path, deleted) = match column.strip_suffix(DELETED) {
        Some(path) if !path.is_empty() => (path, true),
        _ => (column, false),
    };
    let path = if path.contains(&b'\\') { unescape_octal(path, b"\n") } else { path.to_vec() };
    Ok(Vma { start, end, perms, offset, dev, inode, path, deleted })
}

/// The mappings in ascending order, as the file lists them.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Vma>, ParseError> {
    let mut vmas = Vec::with_capacity(text.len() / 80);
    for (number, line) in lines(text) {
        let vma = parse_line(line).map_err(|what| ParseError::new(FILE, number, what, line))?;
        vmas.push(vma);
    }
    Ok(vmas)
}

/// Reads `/proc/PID/maps`. A zombie or kernel thread has none: an empty list.
pub fn read(pid: Pid) -> Result<Vec<Vma>> {
    read_with(&path_of(pid, FILE), parse)
}

/// The exact name of a file-backed mapping: the link `/proc/PID/map_files/START-END`, with its
/// ` (deleted)` if any. Reading the link needs no privilege over one's own process.
pub fn map_files_link(pid: Pid, start: u64, end: u64) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    let path = path_of(pid, &format!("map_files/{start:x}-{end:x}"));
    let link = std::fs::read_link(&path).map_err(|e| ReadError::io("readlink", &path, e))?;
    Ok(link.into_os_string().into_vec())
}
