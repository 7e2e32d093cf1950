//! An address space: its mappings and where its pages lie.
use crate::pages::PageRun;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Mapping of no file.
pub const BACKING_ANON: u32 = 0;
/// Private mapping of a file: only changed pages are stored.
pub const BACKING_FILE_PRIVATE: u32 = 1;
/// Shared mapping of a file: its content is the file's.
pub const BACKING_FILE_SHARED: u32 = 2;
/// Shared anonymous memory; `share` is its identity.
pub const BACKING_SHARED_ANON: u32 = 3;
/// The kernel's: [vdso].
pub const BACKING_VDSO: u32 = 4;
/// The kernel's: [vvar], [vvar_vclock].
pub const BACKING_VVAR: u32 = 5;
/// Private mapping of a file that no longer exists: all its pages are stored.
pub const BACKING_FILE_GONE: u32 = 6;
/// Ring of an asynchronous I/O context, io_setup(2), with no completion in it.
pub const BACKING_AIO: u32 = 7;
/// Shared mapping of a file without a name (memfd, deleted file): `file` is the index of its content in `Files::contents`.
pub const BACKING_UNNAMED: u32 = 8;

/// Mapping of a segment of System V shared memory: `file` is its index in [`Memory::segments`].
pub const BACKING_SYSV: u32 = 9;
/// Mapping of a ring of io_uring(7): `share` is its inode.
pub const BACKING_URING: u32 = 12;
/// Private mapping of huge pages and of no file (MAP_HUGETLB), of `page_kb` each.
pub const BACKING_HUGETLB: u32 = 13;

/// An address space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Mappings by address.
    pub vmas: Vec<Vma>,
    /// Files that mappings are of.
    pub files: Vec<MappedFile>,
    /// Guard regions (MADV_GUARD_INSTALL): start and end.
    pub guards: Vec<(u64, u64)>,
    /// Stored pages, by address.
    pub pages: Vec<PageRun>,
    /// Segments of System V shared memory that mappings are of.
    pub segments: Vec<Segment>,
    /// Symbols of the vDSO: name and offset, to recognise its layout.
    pub vdso_symbols: Vec<(String, u64)>,
}

/// A mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address behind it.
    pub end: u64,
    /// PROT_ bits.
    pub prot: u32,
    /// One of the `BACKING_` constants.
    pub backing: u32,
    /// Index of the file, where there is one; of [`BACKING_UNNAMED`] of its content.
    pub file: u32,
    /// Offset in the file (or in the shared memory), bytes.
    pub offset: u64,
    /// Identity of shared anonymous memory, or of a ring of io_uring: equal for mappings of the same.
    pub share: u64,
    /// Two-letter flags as smaps shows them, concatenated ("rdwrmrmw...").
    pub flags: String,
    /// NUMA policy (MPOL_ constant with its flags) and nodes, bit n for node n; 0: none of its own.
    pub mempolicy: (u32, u64),
    /// Size of its pages in KiB, of [`BACKING_HUGETLB`].
    pub page_kb: u32,
    /// Name (PR_SET_VMA_ANON_NAME), or the kernel's in brackets.
    pub name: ByteBuf,
}

/// A mapped file and how it is recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MappedFile {
    /// Path.
    pub path: ByteBuf,
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// GNU build ID, hex; empty: none.
    pub build_id: String,
    /// Opened for writing (a shared writable mapping).
    pub writable: bool,
}

/// A segment of System V shared memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Segment {
    /// Its number, shmid.
    pub id: i32,
    /// Key of shmget; 0: none.
    pub key: i32,
    /// Bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// It was to go with the last who is attached: it is made anew, and its pages are stored. Else it is the kernel's, and stays where it is.
    pub ends: bool,
    /// Size of its pages in KiB, if those are huge ones (SHM_HUGETLB); else 0.
    pub page_kb: u32,
}
