//! `/proc/PID/auxv`: the auxiliary vector the kernel gave at exec (getauxval(3)).

use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "auxv";

/// The pairs (AT_*, value), without the closing AT_NULL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auxv(pub Vec<(u64, u64)>);

impl Auxv {
    /// The value of one type, such as `libc::AT_SYSINFO_EHDR` or `libc::AT_PHDR`.
    pub fn get(&self, kind: u64) -> Option<u64> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value)
    }
}

/// Parses the vector of 64-bit words; it ends at AT_NULL or at the end of the file (a zombie's is
/// empty).
pub fn parse(data: &[u8]) -> std::result::Result<Auxv, ParseError> {
    let mut pairs = Vec::with_capacity(data.len() / 16);
    let chunks = data.chunks_exact(8);
    let tail = chunks.remainder();
    let mut words = chunks.filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)));
    while let Some(kind) = words.next() {
        if kind == libc::AT_NULL {
            return Ok(Auxv(pairs));
        }
        let value = words.next().ok_or_else(|| cut(data))?;
        pairs.push((kind, value));
    }
    if tail.is_empty() {
        Ok(Auxv(pairs))
    } else {
        Err(cut(data))
    }
}

fn cut(data: &[u8]) -> ParseError {
    let what = format!("{} bytes are not whole pairs of 64-bit words", data.len());
    ParseError { file: FILE, line: 0, what }
}

/// Reads `/proc/PID/auxv`.
pub fn read(pid: Pid) -> Result<Auxv> {
    read_with(&path_of(pid, FILE), parse)
}
