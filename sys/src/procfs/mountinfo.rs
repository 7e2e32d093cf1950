//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5), fs/proc_namespace.c `show_mountinfo`).

use super::bytes::{dec, dec32, lines, split_at_byte, unescape_octal, Words};
use super::{path_of, read_with, Dev, ParseError, Pid, Result};

const FILE: &str = "mountinfo";
/// What the kernel escapes here, the backslash too: nothing is ambiguous.
const ESCAPED: &[u8] = b" \t\n\\#";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount id: the `mnt_id` of fdinfo and statx(2).
    pub id: u64,
    /// Id of the parent mount; its own or an unlisted one for the root.
    pub parent: u64,
    /// `st_dev` of files on it (but for btrfs subvolumes and the like).
    pub dev: Dev,
    /// The directory of the file system that is mounted here.
    pub root: Vec<u8>,
    /// Where, relative to the process's root.
    pub mount_point: Vec<u8>,
    /// Per-mount options, such as `rw,nosuid`.
    pub options: Vec<u8>,
    /// Optional fields: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub propagation: Vec<Vec<u8>>,
    /// File system type, with its subtype after a dot.
    pub fs_type: Vec<u8>,
    /// Source: a device or `none`.
    pub source: Vec<u8>,
    /// Options of the file system as a whole.
    pub super_options: Vec<u8>,
}

impl Mount {
    /// True if the mount or its file system is read-only.
    pub fn read_only(&self) -> bool {
        let ro = |options: &[u8]| options.split(|b| *b == b',').any(|o| o == b"ro");
        ro(&self.options) || ro(&self.super_options)
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = Words::new(line);
    let text = |word: &[u8]| unescape_octal(word, ESCAPED);
    let id = words.next().and_then(dec)?;
    let parent = words.next().and_then(dec)?;
    let (major, minor) = split_at_byte(words.next()?, b':')?;
    let dev = Dev { major: dec32(major)?, minor: dec32(minor)? };
    let root = text(words.next()?);
    let mount_point = text(words.next()?);
    let options = words.next()?.to_vec();
    let propagation = words.by_ref().take_while(|word| *word != b"-").map(<[u8]>::to_vec).collect();
    let fs_type = text(words.next()?);
    // The source may be the empty string: two blanks, and the options follow.
    let rest = words.raw_rest();
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let (source, options_fs) = split_at_byte(rest, b' ').unwrap_or((rest, b""));
    Some(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        options,
        propagation,
        fs_type,
        source: text(source),
        super_options: options_fs.to_vec(),
    })
}

/// The mount that a path leads into, which has no symbolic links; of several at one point the uppermost. Nothing is looked up: a file system may be slow
/// to answer, or not answer at all.
pub fn of<'m>(mounts: &'m [Mount], path: &std::path::Path) -> Option<&'m Mount> {
    use std::os::unix::ffi::OsStrExt;
    let at = |m: &Mount, point: &std::path::Path| m.mount_point == point.as_os_str().as_bytes();
    let root = std::path::Path::new("/");
    let is_first = |m: &&Mount| at(m, root) && !mounts.iter().any(|p| p.id == m.parent && p.id != m.id);
    let mut here = mounts.iter().find(is_first)?;
    let mut points: Vec<_> = path.ancestors().collect();
    points.reverse();
    for point in points {
        // no longer than there are mounts
        for _ in 0..mounts.len() {
            let Some(next) = mounts.iter().find(|m| m.parent == here.id && m.id != here.id && at(m, point)) else {
                break;
            };
            here = next;
        }
    }
    Some(here)
}

/// Parses the list, in mount order: of two on one mount point the later hides the earlier.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Mount>, ParseError> {
    let parse = |(number, line)| {
        let what = "expected ID PARENT DEV ROOT POINT OPTIONS - TYPE SOURCE OPTIONS";
        parse_line(line).ok_or_else(|| ParseError::new(FILE, number, what, line))
    };
    lines(text).map(parse).collect()
}

/// Reads `/proc/PID/mountinfo`.
pub fn read(pid: Pid) -> Result<Vec<Mount>> {
    read_with(&path_of(pid, FILE), parse)
}
