//! The one place with assembly, a file for each architecture.
mod x86_64;
pub use x86_64::*;
