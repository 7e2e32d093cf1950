//! `/proc/PID/timens_offsets`: how far the clocks of a process's children are ahead of the machine's (time_namespaces(7)).

use super::bytes::{dec, int, lines, Words};
use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "timens_offsets";
const NANO: i64 = 1_000_000_000;

/// The offsets of a time namespace in nanoseconds, against the machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// Of CLOCK_MONOTONIC, also coarse and raw.
    pub monotonic: i64,
    /// Of CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl std::ops::Sub for Offsets {
    type Output = Offsets;
    fn sub(self, o: Offsets) -> Offsets {
        let Offsets { monotonic, boottime } = self;
        Offsets { monotonic: monotonic.saturating_sub(o.monotonic), boottime: boottime.saturating_sub(o.boottime) }
    }
}

impl std::ops::Add for Offsets {
    type Output = Offsets;
    fn add(self, o: Offsets) -> Offsets {
        let Offsets { monotonic, boottime } = self;
        Offsets { monotonic: monotonic.saturating_add(o.monotonic), boottime: boottime.saturating_add(o.boottime) }
    }
}

/// As the file is written.
impl std::fmt::Display for Offsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, ns) in [("monotonic", self.monotonic), ("boottime", self.boottime)] {
            writeln!(f, "{name} {} {}", ns.div_euclid(NANO), ns.rem_euclid(NANO))?;
        }
        Ok(())
    }
}

/// Parses the lines `monotonic SECONDS NANOSECONDS` and `boottime ...`.
pub fn parse(text: &[u8]) -> std::result::Result<Offsets, ParseError> {
    let mut offsets = Offsets::default();
    for (number, line) in lines(text) {
        let mut words = Words::new(line);
        let to = match words.next() {
            Some(b"monotonic") => &mut offsets.monotonic,
            Some(b"boottime") => &mut offsets.boottime,
            _ => continue,
        };
        let ns = || {
            let (s, ns) = (int(words.next()?)?, i64::try_from(dec(words.next()?)?).ok()?);
            s.checked_mul(NANO)?.checked_add(ns)
        };
        *to = { ns }().ok_or_else(|| ParseError::new(FILE, number, "expected seconds and nanoseconds", line))?;
    }
    Ok(offsets)
}

/// Those of the namespace that the process's children are in: its own, unless it has made another for them. ENOENT where the kernel
/// has no time namespaces.
pub fn read(pid: Pid) -> Result<Offsets> {
    read_with(&path_of(pid, FILE), parse)
}
