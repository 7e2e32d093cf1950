//! The image room: what a checkpoint leaves on disk, and the store that keeps it.
//!
//! What belongs here: the bytes of manifests, page packs and export files, their checks, and the
//! folder layout of the store. What may not enter: anything that knows a process, a PID or a
//! system call of the target. `FORMAT.md` states the bytes; `tests/format.rs` holds it against
//! the constants of this crate.
//!
//! Read in this order: [`header`] (the part readable for ever), [`section`] (what a manifest is
//! made of), [`pack`] (where pages lie), [`pages`] (which page lies where), [`store`] (how a
//! checkpoint comes to exist whole or not at all).
#![forbid(unsafe_code)]

pub mod error;
pub mod header;
pub mod name;
pub mod pack;
mod page_hash;
pub mod pages;
pub mod section;
pub mod store;
pub mod v1;

pub use error::{ImageError, Result};
pub use header::{FileKind, Header};
pub use name::SessionName;
pub use pack::{Compression, Decoder, PackInfo, PackReader, PackWriter};
pub use pages::{PackRef, PageRun, PageSink, PageSource, PageStats};
pub use section::{Identity, ManifestReader, ManifestWriter, SectionInfo};
pub use store::{CheckpointHandle, CheckpointInfo, NewCheckpoint, Store};

/// Size of a page in bytes. Addresses, packs and page runs are multiples of it.
pub const PAGE_SIZE: usize = 4096;
