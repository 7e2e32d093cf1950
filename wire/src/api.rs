//! The block: what a program that uses `libdormouse` and a recorder know of each other without talking. Two pages of private anonymous memory
//! at a fixed address, [`BLOCK_AT`], so that whoever looks for them needs no symbol, whatever the library was linked into, and however often.
//!
//! **The rule for changing this file:** every change to a place, a constant's value or the meaning of a field raises [`API_VERSION`]. A block of
//! another version is left alone: its program is checkpointed as one without a block, and a library meets another's block as if there were none.
//!
//! The library writes it; a recorder reads it, and writes [`at::WAITER`] only. A restore writes [`at::GENERATION`], [`at::FROM`], [`at::NAME`] and
//! [`at::FOLDER`] before the program runs. All numbers are little endian; each is read and written whole.

/// Version of everything in this file.
pub const API_VERSION: u32 = 1;

/// Where the block is: below the blob's home.
pub const BLOCK_AT: u64 = 0x444f_524c_0000;
/// Its length.
pub const BLOCK_LEN: u64 = 8192;
/// First field of it: "DormApi" in memory.
pub const BLOCK_MAGIC: u64 = 0x0069_7041_6d72_6f44;

/// The signal that wakes a program's hook thread. It comes by rt_tgsigqueueinfo(2) to that thread alone, which has it blocked and waits for it;
/// its value is the key of the recorder's address ([`crate::recorder_name`]).
pub const WAKE_SIGNAL: i32 = 62;

/// Name of the hook thread, by which it is known for one.
pub const HELPER_NAME: &str = "dormouse-hooks";

/// Connections of ours that a program has open at once, at most.
pub const CONNECTIONS: usize = 8;
/// Regions not worth keeping, at most.
pub const REGIONS: usize = 256;
/// Bytes of the session's name with its NUL.
pub const NAME_LEN: usize = 128;
/// Bytes of the path of the session's folder with its NUL; a longer one is not told.
pub const FOLDER_LEN: usize = 1024;

/// Places in the block, bytes from its beginning.
pub mod at {
    /// u64, [`super::BLOCK_MAGIC`]; written last of all when the block is made.
    pub const MAGIC: usize = 0;
    /// u32, [`super::API_VERSION`].
    pub const VERSION: usize = 8;
    /// u32, [`super::BLOCK_LEN`].
    pub const LEN: usize = 12;
    /// u32: PID of the process whose block it is, as it sees it. In a forked child it is the parent's, until the child uses the library.
    pub const PID: usize = 16;
    /// u32: TID of the hook thread, as it sees it; 0: no hook was registered.
    pub const HELPER: usize = 20;
    /// u64: how often the program was restored.
    pub const GENERATION: usize = 24;
    /// u64: the checkpoint that it was restored from last; 0: none.
    pub const FROM: usize = 32;
    /// u32: how many critical sections are entered; no checkpoint is made above 0.
    pub const DISABLED: usize = 40;
    /// u32: how long one hook may take, milliseconds.
    pub const HOOK_TIMEOUT: usize = 44;
    /// u64: key of the address to which whoever leaves the last critical section connects; 0: nobody waits.
    pub const WAITER: usize = 48;
    /// Connections of the library's own: u64 inode (0: none) and u64 descriptor, [`super::CONNECTIONS`] times. In a restored program each reads as
    /// ended.
    pub const CONNS: usize = 64;
    /// The session's name, with a NUL.
    pub const NAME: usize = 192;
    /// The session's folder in the state directory, with a NUL.
    pub const FOLDER: usize = 320;
    /// Memory not worth keeping: u64 begin (0: none) and u64 end, [`super::REGIONS`] times, whole pages.
    pub const REGIONS: usize = 4096;
}
