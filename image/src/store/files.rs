//! The file operations the store is made of.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{damaged, Doing, ImageError, Result};

/// Makes `dir` and its missing parents, mode 0700.
pub(super) fn create_private_dirs(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).doing("create the folder", dir)
}

/// Makes the one folder `dir`, mode 0700; true if it was missing.
pub(super) fn create_private_dir(dir: &Path) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(error).doing("create the folder", dir),
    }
}

/// Takes the rights of others to `dir` away.
pub(super) fn make_private(dir: &Path) -> Result<()> {
    let mode = fs::metadata(dir).doing("read the mode of", dir)?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).doing("make private", dir)
}

/// Refuses `dir` if it is not of user `euid`.
pub(super) fn check_owner(dir: &Path, euid: u32) -> Result<()> {
    let owner = fs::metadata(dir).doing("read the owner of", dir)?.uid();
    if owner == euid {
        return Ok(());
    }
    Err(ImageError::WrongOwner { path: dir.into(), owner, euid })
}

/// The effective user ID of this process: second number of the `Uid:` line.
pub(super) fn effective_uid() -> Result<u32> {
    let path = Path::new("/proc/self/status");
    let status = fs::read(path).doing("read", path)?;
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Uid:"));
    line.and_then(|line| std::str::from_utf8(line).ok())
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| damaged(path, "it has no user ID"))
}

/// The names in `dir` that are UTF-8 (ours all are); none if there is no such folder.
pub(super) fn list_dir(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing("list", dir),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let names: io::Result<Vec<Option<String>>> = names.collect();
    Ok(names.doing("list", dir)?.into_iter().flatten().collect())
}

/// Writes a new file of mode 0600 and waits until its bytes are on the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create_new(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).doing("write", path)
}

/// Creates a file of mode 0600 that must not exist.
pub(super) fn create_new(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).doing("create", path)
}

/// Removes a file, which need not exist.
pub(super) fn remove_file_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("remove", path),
        _ => Ok(()),
    }
}

/// Removes a folder and all in it; it need not exist.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("remove", path),
        _ => Ok(()),
    }
}

/// Waits until the names in `dir` are on the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).doing("write the folder", dir)
}

/// The checkpoint number that `text` is: decimal, from 1 on, without leading zeros.
pub(super) fn number(text: &str) -> Option<u64> {
    let n: u64 = text.parse().ok()?;
    (n > 0 && n.to_string() == text).then_some(n)
}

/// Sixteen random bytes, for names that nobody else has.
pub(crate) fn random_bytes() -> Result<[u8; 16]> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.doing("read random bytes from", path)?;
    Ok(bytes)
}

/// `prefix` and random hex digits.
pub(super) fn random_name(prefix: &str) -> Result<String> {
    Ok(format!("{prefix}{}", crate::pack::id_text(&random_bytes()?)))
}
