//! Making `engine::Error`s out of what goes wrong here.
use engine::{Error, Kind};
use image::ImageError;
use std::fmt::Display;
use std::io;
use std::path::Path;

/// What clap says of a command line, without how it is used, in one line: what is missing may be on lines of its own.
pub fn usage_in_one_line(text: &str) -> String {
    let all = text.split("\n\nUsage:").next().and_then(|t| t.split("\n\nFor more information").next());
    all.unwrap_or_default().trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An image or store error as an engine error: same words, with kind and advice.
pub fn image_error(attempted: impl Into<String>, e: ImageError) -> Error {
    let kind = if e.is_absent() {
        Kind::NoSuch
    } else if e.is_image() {
        Kind::Damaged
    } else {
        match e {
            ImageError::InvalidName { .. } => Kind::Usage,
            ImageError::Busy { .. } => Kind::Busy,
            _ => Kind::Storage,
        }
    };
    let remedy = e.advice();
    Error::new(kind, attempted, object_of(&e), e.to_string(), remedy)
}

fn object_of(e: &ImageError) -> &'static str {
    match e {
        ImageError::InvalidName { .. } => "name",
        ImageError::NoSuchSession { .. } | ImageError::Busy { .. } => "session",
        ImageError::NoSuchCheckpoint { .. } => "checkpoint",
        e if e.is_image() => "image",
        _ => "store",
    }
}

/// A file operation in the state directory that failed.
pub(crate) fn storage(attempted: impl Into<String>, path: &Path, e: &io::Error) -> Error {
    let remedy = match e.kind() {
        io::ErrorKind::PermissionDenied => "make it yours with mode 0700, or choose another with --state-dir",
        io::ErrorKind::ReadOnlyFilesystem => "choose a writable folder with --state-dir",
        io::ErrorKind::StorageFull => "free space there, or choose another folder with --state-dir",
        _ => "check this path, or choose another folder with --state-dir",
    };
    Error::new(Kind::Storage, attempted, path.display().to_string(), e.to_string(), remedy)
}

/// A system call of ours that should not fail.
pub(crate) fn failed(attempted: impl Into<String>, call: &str, e: impl Display) -> Error {
    Error::new(
        Kind::PutBack,
        attempted,
        call,
        e.to_string(),
        "nothing was changed; try again, and report this if it stays",
    )
}
