//! The engine: capture (the recorder), check and restore, as lists of phases. Ordinary safe Rust; what touches a
//! process goes through `sys`, what touches the disk through `image`.
//!
//! [`objects`] has one file per kind of kernel object: how it is captured, checked and made again.
#![forbid(unsafe_code)]

mod api;
pub mod capture;
mod check;
mod error;
mod inspect;
pub mod objects;
mod restore;
mod sharing;
mod spread;

pub use api::*;
pub use capture::{checkpoint, inherited, preflight};
pub use error::{Error, Kind, Reason};
pub use inspect::{inspect, Descriptor, Summary};
pub use restore::{check, label, restore, wants_terminal, Phase as RestorePhase};

/// Result of the engine's operations.
pub type Result<T> = std::result::Result<T, Error>;
