//! `ctl import FILE`: adds the checkpoint of an exported file to its session, or to another.
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use engine::{Error, Kind};
use image::ImageError;
use serde_json::json;
use session::{image_error, StateDir};

use crate::cli::Import;
use crate::out::Out;
use crate::progress::{Bar, Watched};
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &Import) -> Result<Done, Error> {
    let name = args.name.as_deref().map(|n| name::session("import", n)).transpose()?;
    let shown = args.file.display().to_string();
    let attempted = format!("import {shown}");
    let (input, total): (Box<dyn Read>, u64) = if args.file == Path::new("-") {
        (Box::new(io::stdin().lock()), 0)
    } else {
        let (file, len) = open(&args.file).map_err(|e| unreadable(&attempted, &shown, &e))?;
        (Box::new(file), len)
    };
    let bar = Bar::new(out);
    let mut input = BufReader::with_capacity(1 << 20, Watched::new(input, &bar, "import", total));
    let imported = state.store()?.import(&mut input, name.as_ref());
    bar.clear();
    let (name, n) = imported.map_err(|e| match e {
        // The file's own idea of a name, not something that was typed.
        ImageError::InvalidName { why, .. } => Error::new(
            Kind::Damaged,
            &attempted,
            &shown,
            format!("the name in it: {why}"),
            "give it a name with --name",
        ),
        ImageError::Io { source, path, .. } if path == Path::new("the export") => {
            unreadable(&attempted, &shown, &source)
        }
        e => image_error(&attempted, e),
    })?;
    let result = json!({"name": name.as_str(), "n": n, "file": args.file.to_string_lossy()});
    out.done(result, || format!("imported {shown} as {name}@{n}"))?;
    Ok(Done::Code(0))
}

/// The file and its length.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((file, meta.len()))
}

fn unreadable(attempted: &str, file: &str, e: &io::Error) -> Error {
    let (kind, remedy) = match e.kind() {
        io::ErrorKind::NotFound => (Kind::NoSuch, "give the path of a file that ctl export wrote"),
        io::ErrorKind::IsADirectory => (Kind::Damaged, "give the path of a file that ctl export wrote"),
        io::ErrorKind::PermissionDenied => (Kind::Storage, "get the right to read it"),
        _ => (Kind::Storage, "check the file system that holds it, then try again"),
    };
    Error::new(kind, attempted, file, e.to_string(), remedy)
}
