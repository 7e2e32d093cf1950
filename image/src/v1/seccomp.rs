//! Seccomp filters, seccomp(2). All threads have the same. The section is there only where there are any.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// One filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Its program: `struct sock_filter`, 8 bytes an instruction.
    pub code: ByteBuf,
    /// SECCOMP_FILTER_FLAG_LOG, as far as it is known.
    pub flags: u32,
}
