//! `/proc/PID/numa_maps` (numa(7), fs/proc/task_mmu.c `show_numa_map`, mm/mempolicy.c `mpol_to_str`): the NUMA policy of each
//! mapping. A mapping without one of its own is shown with its process's.

use super::bytes::{dec, hex, lines};
use super::{path_of, read_with, ParseError, Pid, Result};

const FILE: &str = "numa_maps";

/// A policy: the mode with its flags (linux/mempolicy.h), and the nodes, bit n for node n.
pub type Policy = (u32, u64);

/// A mapping that has a policy other than the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Its first address.
    pub start: u64,
    /// None: it cannot be expressed (an unknown word, a node above 63).
    pub policy: Option<Policy>,
}

const MODES: &[(&[u8], u32)] = &[
    (b"prefer", 1),
    (b"bind", 2),
    (b"interleave", 3),
    (b"local", 4),
    (b"prefer (many)", 5),
    (b"weighted interleave", 6),
];
const FLAGS: &[(&[u8], u32)] = &[(b"static", 1 << 15), (b"relative", 1 << 14), (b"balancing", 1 << 13)];

/// "interleave=static:0-3,5".
fn policy(text: &[u8]) -> Option<Policy> {
    let (head, nodes) = match text.iter().position(|b| *b == b':') {
        Some(i) => (&text[..i], &text[i + 1..]),
        None => (text, &b""[..]),
    };
    let mut parts = head.split(|b| *b == b'=' || *b == b'|');
    let name = parts.next()?;
    let mut mode = MODES.iter().find(|m| m.0 == name)?.1;
    for flag in parts {
        mode |= FLAGS.iter().find(|f| f.0 == flag)?.1;
    }
    let mut mask = 0u64;
    for range in nodes.split(|b| *b == b',').filter(|r| !r.is_empty()) {
        let mut ends = range.split(|b| *b == b'-').map(dec);
        let first = ends.next()??;
        let last = ends.next().unwrap_or(Some(first))?;
        if last > 63 || first > last {
            return None;
        }
        mask |= (first..=last).fold(0, |m, n| m | 1 << n);
    }
    Some((mode, mask))
}

/// What is shown of a mapping behind its address, up to the first statistic; some names hold a space.
fn shown(line: &[u8]) -> &[u8] {
    let two_words = MODES.iter().filter(|m| m.0.contains(&b' ') && line.starts_with(m.0)).map(|m| m.0.len()).max();
    let skip = two_words.unwrap_or(0);
    let end = line[skip..].iter().position(|b| *b == b' ').map_or(line.len(), |i| skip + i);
    &line[..end]
}

/// The mappings with a policy other than the default, ascending.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Mapping>, ParseError> {
    let mut out = Vec::new();
    for (number, line) in lines(text) {
        let fail = |what| ParseError::new(FILE, number, what, line);
        let space = line.iter().position(|b| *b == b' ').ok_or_else(|| fail("no policy"))?;
        let start = hex(&line[..space]).ok_or_else(|| fail("expected an address"))?;
        let shown = shown(&line[space + 1..]);
        if shown != b"default" {
            out.push(Mapping { start, policy: policy(shown) });
        }
    }
    Ok(out)
}

/// Reads the file; a kernel without NUMA has none.
pub fn read(pid: Pid) -> Result<Vec<Mapping>> {
    let path = path_of(pid, FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    read_with(&path, parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let text = b"1000 default file=/bin/x mapped=3 N0=3\n2000 bind:0 anon=1\n3000 interleave=static:0-2,5\n\
            4000 prefer (many):1 anon=2\n5000 local\n6000 bind=static|balancing:1\n7000 magic:1\n8000 bind:64\n";
        let got: Vec<_> = parse(text).unwrap().into_iter().map(|m| (m.start, m.policy)).collect();
        let want = [
            (0x2000, Some((2, 1))),
            (0x3000, Some((3 | 1 << 15, 0b100111))),
            (0x4000, Some((5, 2))),
            (0x5000, Some((4, 0))),
            (0x6000, Some((2 | 1 << 15 | 1 << 13, 2))),
            (0x7000, None),
            (0x8000, None),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn a_line_without_a_policy_is_an_error() {
        assert!(parse(b"1000\n").is_err());
        assert!(parse(b"x default\n").is_err());
    }
}
