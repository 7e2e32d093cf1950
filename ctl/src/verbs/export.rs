//! `ctl export NAME[@N] FILE`: a checkpoint as a single file, which exists whole or not at all.
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use engine::{Error, Kind};
use image::{ImageError, SessionName, Store};
use serde_json::json;
use session::{image_error, StateDir};

use crate::cli::Export;
use crate::out::{self, Out};
use crate::progress::{Bar, Watched};
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &Export) -> Result<Done, Error> {
    let spec = name::spec("export", &args.what)?;
    let store = state.store()?;
    let attempted = format!("export {spec} to {}", args.file.display());
    let checkpoint = store.open_checkpoint(&spec.name, spec.n).map_err(|e| image_error(&attempted, e))?;
    let (n, total) = (checkpoint.n(), checkpoint.bytes());
    let bar = Bar::new(out);
    let what = Exported { store: &store, name: &spec.name, n, total, attempted: &attempted, bar: &bar };
    let stdout = args.file == Path::new("-");
    // A device or a FIFO is written to; anything else there is somebody's file.
    let there = fs::metadata(&args.file).map(|m| m.file_type()).ok();
    let bytes = if stdout {
        what.write(&args.file, &mut io::stdout().lock())?
    } else if there.is_some_and(|t| t.is_char_device() || t.is_fifo()) {
        let mut file = OpenOptions::new().write(true).open(&args.file).map_err(|e| what.storage(&args.file, &e))?;
        what.write(&args.file, &mut file)?
    } else if there.is_some() {
        let why = "exists already";
        let remedy = "remove it, or choose another name";
        return Err(Error::new(Kind::Refused, attempted, args.file.display().to_string(), why, remedy));
    } else {
        what.publish(&args.file)?
    };
    bar.clear();
    let result = json!({"name": spec.name.as_str(), "n": n, "file": args.file.to_string_lossy(), "bytes": bytes});
    let text = || format!("exported {}@{n} to {}, {}", spec.name, args.file.display(), out::bytes(bytes));
    if stdout {
        out.aside(result, &[text()]);
    } else {
        out.done(result, text)?;
    }
    Ok(Done::Code(0))
}

/// What is exported.
struct Exported<'a> {
    store: &'a Store,
    name: &'a SessionName,
    n: u64,
    /// Bytes in all, nearly.
    total: u64,
    attempted: &'a str,
    bar: &'a Bar,
}

impl Exported<'_> {
    /// Writes it; `path` is for messages.
    fn write(&self, path: &Path, to: &mut dyn Write) -> Result<u64, Error> {
        let mut to = BufWriter::with_capacity(1 << 20, Watched::new(to, self.bar, "export", self.total));
        match self.store.export(self.name, Some(self.n), &mut to) {
            Ok(bytes) => to.flush().map(|()| bytes).map_err(|e| self.storage(path, &e)),
            // About the file that is made, not one of the store.
            Err(ImageError::Io { source, path: at, .. }) if at == Path::new("the export") => {
                Err(self.storage(path, &source))
            }
            Err(e) => Err(image_error(self.attempted, e)),
        }
    }

    /// Writes it aside and gives it its name when it is whole and on the disk.
    fn publish(&self, path: &Path) -> Result<u64, Error> {
        let fail = |e: io::Error| self.storage(path, &e);
        let aside = Aside(aside(path).map_err(fail)?);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside.0).map_err(fail)?;
        let bytes = self.write(path, &mut file)?;
        file.sync_all().map_err(fail)?;
        // Unlike rename, link never replaces what somebody put there meanwhile; not every file system has it.
        match fs::hard_link(&aside.0, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => fs::rename(&aside.0, path).map_err(fail)?,
            linked => linked.map_err(fail)?,
        }
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|f| f.sync_all()).map_err(fail)?;
        }
        Ok(bytes)
    }

    fn storage(&self, path: &Path, e: &io::Error) -> Error {
        let remedy = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space there, or choose another place",
            io::ErrorKind::NotFound => "make the folder first, or choose another place",
            io::ErrorKind::BrokenPipe => "let what reads it read to the end",
            _ => "choose a place that you may write to",
        };
        Error::new(Kind::Storage, self.attempted, path.display().to_string(), e.to_string(), remedy)
    }
}

/// A file that is removed again, whatever happens.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // Not there where it could not be made, or was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

/// A name beside `path`: short, because the file's own may be as long as the file system takes.
fn aside(path: &Path) -> io::Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this names no file"));
    }
    Ok(path.with_file_name(format!(".dormouse-export-{}", std::process::id())))
}
