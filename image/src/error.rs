//! Every way reading or writing an image can fail: what was attempted, on what, why, what next.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Why an image or the store could not be read or written.
///
/// The message (`Display`) says what was attempted, on what and why it failed;
/// [`ImageError::advice`] says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The operating system refused a file operation.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase that fits after "cannot".
        doing: String,
        /// The file or folder it was done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one that Dormouse wrote, or not of the kind asked for.
    #[error("cannot read {}: {why}", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What shows that it is foreign.
        why: String,
    },
    /// The file is ours, but its bytes are not those that were written.
    #[error("cannot read {}: damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part failed which check.
        what: String,
    },
    /// The file holds nothing at all.
    #[error("cannot read {}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file ends before its contents do.
    #[error("cannot read {}: cut short: {what}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was expected where the file ended.
        what: String,
    },
    /// The file was written in a format this build is too old to read.
    #[error(
        "cannot read {}: it has {what} format {}.{} (written by {writer}); this build reads \
         formats up to {readable}.x", path.display(), found.0, found.1
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The kind of file: manifest, page pack or export.
        what: &'static str,
        /// Major and minor number found.
        found: (u16, u16),
        /// The highest major number this build reads.
        readable: u16,
        /// Who wrote the file, as its header says.
        writer: String,
    },
    /// A section that must be understood for a right restore is not known to this build.
    #[error(
        "cannot use {}: it needs section kind {kind} version {version}, which this build does \
         not know", path.display()
    )]
    UnknownSection {
        /// The manifest.
        path: PathBuf,
        /// Kind of the section.
        kind: u32,
        /// Version of the section.
        version: u16,
    },
    /// A manifest names a page pack that is not in the store.
    #[error("cannot use {}: page pack {pack} is missing", path.display())]
    MissingPack {
        /// The manifest, or the pack's path where it should be.
        path: PathBuf,
        /// The pack's ID.
        pack: String,
    },
    /// No session of this name is in the store.
    #[error("there is no session {name}")]
    NoSuchSession {
        /// The name asked for.
        name: String,
    },
    /// The session has no checkpoint of this number, or none at all.
    #[error("session {name} has no checkpoint{}", have_text(*n, have))]
    NoSuchCheckpoint {
        /// The session.
        name: String,
        /// The number asked for; `None` if the latest was asked for.
        n: Option<u64>,
        /// The numbers that exist, ascending.
        have: Vec<u64>,
    },
    /// The text cannot be a session name.
    #[error("{name:?} cannot be a session name: {why}")]
    InvalidName {
        /// The text, shortened if very long.
        name: String,
        /// The rule it breaks.
        why: String,
    },
    /// A folder of the store belongs to another user.
    #[error(
        "cannot use the state directory {}: it belongs to user {owner}, not to user {euid} who \
         runs this", path.display()
    )]
    WrongOwner {
        /// The folder.
        path: PathBuf,
        /// User ID of its owner.
        owner: u32,
        /// Effective user ID of this process.
        euid: u32,
    },
    /// A checkpoint of this session is being written right now by another process or thread.
    #[error("cannot remove session {name}: a checkpoint of it is being written")]
    Busy {
        /// The session.
        name: String,
    },
}

/// `" 7 (it has 1, 2)"`, or how else the missing number is said.
fn have_text(n: Option<u64>, have: &[u64]) -> String {
    let asked = n.map(|n| format!(" {n}")).unwrap_or_default();
    if have.is_empty() {
        return if n.is_some() { format!("{asked} (it has none)") } else { String::new() };
    }
    // A session may have thousands; the newest are those one wants to know.
    let shown: Vec<String> = have.iter().rev().take(8).rev().map(u64::to_string).collect();
    let more = if have.len() > shown.len() { "..., " } else { "" };
    format!("{asked} (it has {more}{})", shown.join(", "))
}

impl ImageError {
    /// True if the storage is why: full, over quota, read-only, broken, or no right to it.
    pub fn is_storage(&self) -> bool {
        const EIO: i32 = 5;
        match self {
            ImageError::Io { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::StorageFull
                        | ErrorKind::QuotaExceeded
                        | ErrorKind::ReadOnlyFilesystem
                        | ErrorKind::PermissionDenied
                        | ErrorKind::FileTooLarge
                ) || source.raw_os_error() == Some(EIO)
            }
            ImageError::WrongOwner { .. } => true,
            _ => false,
        }
    }

    /// True if the image itself is why: damaged, incomplete, foreign, or of a newer format.
    pub fn is_image(&self) -> bool {
        matches!(
            self,
            ImageError::NotOurs { .. }
                | ImageError::Damaged { .. }
                | ImageError::Empty { .. }
                | ImageError::Truncated { .. }
                | ImageError::NewerFormat { .. }
                | ImageError::UnknownSection { .. }
                | ImageError::MissingPack { .. }
        )
    }

    /// True if what was asked for does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, ImageError::NoSuchSession { .. } | ImageError::NoSuchCheckpoint { .. })
    }

    /// What to do next, as a sentence without a full stop.
    pub fn advice(&self) -> String {
        match self {
            ImageError::Io { path, source, .. } => io_advice(path, source),
            ImageError::NotOurs { .. } => "give the path of a file that Dormouse wrote (ctl export makes one)".into(),
            ImageError::Damaged { .. }
            | ImageError::Empty { .. }
            | ImageError::Truncated { .. }
            | ImageError::MissingPack { .. } => {
                "restore an earlier checkpoint of the session by NAME@N, or import an export of \
                 this one; ctl verify tells which are whole"
                    .into()
            }
            ImageError::NewerFormat { writer, .. } => {
                format!("use the build that wrote it ({writer}), or a newer one")
            }
            ImageError::UnknownSection { .. } => "use the build that wrote this checkpoint, or a newer one".into(),
            ImageError::NoSuchSession { .. } => "ctl list shows the sessions there are".into(),
            ImageError::NoSuchCheckpoint { name, have, .. } if have.is_empty() => {
                format!("make one with ctl checkpoint {name}")
            }
            ImageError::NoSuchCheckpoint { name, have, .. } => {
                let last = have.last().copied().unwrap_or_default();
                format!("use {name}@{last} or another that it has")
            }
            ImageError::InvalidName { .. } => format!("choose a name of {}", crate::name::RULE),
            ImageError::WrongOwner { owner, .. } => {
                format!("run this as user {owner}, or choose another folder with --state-dir")
            }
            ImageError::Busy { name } => {
                format!("try again when the checkpoint of {name} is done")
            }
        }
    }
}

/// Advice for a failed file operation.
fn io_advice(path: &Path, source: &io::Error) -> String {
    let at = path.display();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!(
            "free space on the file system that holds {at} (ctl rm removes old checkpoints), or \
             choose another with --state-dir"
        ),
        ErrorKind::ReadOnlyFilesystem => {
            format!("the file system that holds {at} is mounted read-only; choose another with --state-dir")
        }
        ErrorKind::PermissionDenied => {
            format!("get the right to use {at}, or choose another folder with --state-dir")
        }
        ErrorKind::NotFound => format!("check that {at} exists"),
        ErrorKind::AlreadyExists => format!("move {at} out of the way"),
        _ => format!("check the file system that holds {at}, then try again"),
    }
}

/// Turns an `io::Error` into an [`ImageError`] that says what was done to what.
pub(crate) trait Doing<T> {
    /// `doing` is a verb phrase that fits after "cannot".
    fn doing(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|source| ImageError::Io { doing: doing.into(), path: path.into(), source })
    }
}

/// A [`ImageError::Damaged`] of `path`.
pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> ImageError {
    ImageError::Damaged { path: path.into(), what: what.into() }
}

/// A [`ImageError::Truncated`] of `path`.
pub(crate) fn truncated(path: &Path, what: impl Into<String>) -> ImageError {
    ImageError::Truncated { path: path.into(), what: what.into() }
}
