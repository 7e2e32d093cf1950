//! Format 1: the frozen structs of a manifest's sections. They mirror nothing at run time: the engine translates, so
//! that refactors there never move the format. A field may be added (with a default); none may change its meaning.
//!
//! Open files are generic: [`files::OpenFile`] has a kind's number and its bytes, and each kind's struct is in the file
//! of its name. A kind that a build does not know is refused by its number.

pub mod anon;
pub mod cgroup;
pub mod ended;
pub mod fanotify;
pub mod files;
pub mod inotify;
pub mod keys;
pub mod memory;
pub mod meta;
pub mod mqueue;
pub mod objects;
pub mod process;
pub mod pty;
pub mod rights;
pub mod seccomp;
pub mod shares;
pub mod sockets;
pub mod sysvipc;
pub mod tree;
pub mod uring;
pub mod users;

/// Section: [`meta::Meta`].
pub const SECTION_META: u32 = 16;
/// Section: [`process::Process`].
pub const SECTION_PROCESS: u32 = 17;
/// Section: `Vec<process::Thread>`.
pub const SECTION_THREADS: u32 = 18;
/// Section: [`memory::Memory`].
pub const SECTION_MEMORY: u32 = 19;
/// Section: [`files::Files`].
pub const SECTION_FILES: u32 = 20;
/// Section: `Vec<seccomp::Filter>`, the oldest first; not there if there are none.
pub const SECTION_SECCOMP: u32 = 21;
/// Section: [`tree::Tree`]; not there if there is one process.
pub const SECTION_TREE: u32 = 22;
/// Section: [`sysvipc::SysvIpc`]; not there if there are no such objects.
pub const SECTION_SYSVIPC: u32 = 23;
/// Section: `Vec<keys::Keys>`, of each process that has any; not there if none has.
pub const SECTION_KEYS: u32 = 24;
/// Section: `Vec<ended::First>`; not there if no process's first thread has ended.
pub const SECTION_ENDED: u32 = 25;
/// Section: `Vec<rights::Rights>`; not there if all threads have their process's.
pub const SECTION_RIGHTS: u32 = 26;
/// Section: `Vec<shares::Shares>`, of each process that shares anything with an earlier one; not there if none does.
pub const SECTION_SHARES: u32 = 27;
/// Section: [`seccomp::Apart`]; not there if all threads have their process's filters.
pub const SECTION_APART: u32 = 28;
/// Section: `Vec<cgroup::Cgroups>`, of each process that is in any but the root; not required, and not there if none is.
pub const SECTION_CGROUPS: u32 = 29;
/// Section: [`seccomp::Strict`]; not there if no thread is.
pub const SECTION_STRICT: u32 = 30;
/// Section: `Vec<users::Users>`; not there if all processes are in the user namespace that the recorder took for the program's surroundings.
pub const SECTION_USERS: u32 = 31;
/// Section: `Vec<shares::Memory>`, of each process that has the memory of an earlier one; not there if none does.
pub const SECTION_SHARED_MEMORY: u32 = 32;

/// Every section that this build reads, for the refusal of unknown ones.
pub const KNOWN: &[u32] = &[
    crate::section::SECTION_PACKS,
    SECTION_META,
    SECTION_PROCESS,
    SECTION_THREADS,
    SECTION_MEMORY,
    SECTION_FILES,
    SECTION_SECCOMP,
    SECTION_TREE,
    SECTION_SYSVIPC,
    SECTION_KEYS,
    SECTION_ENDED,
    SECTION_RIGHTS,
    SECTION_SHARES,
    SECTION_APART,
    SECTION_CGROUPS,
    SECTION_STRICT,
    SECTION_USERS,
    SECTION_SHARED_MEMORY,
];

/// Version of each section that this build writes.
pub const VERSION: u16 = 1;
