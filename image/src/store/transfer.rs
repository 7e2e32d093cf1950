//! A checkpoint as a single file: the sections of `crate::section`, streamed.
//!
//! Header, then NAME, MANIFEST, one PACK for each entry of the manifest's pack table in its
//! order, and END with the hash of every byte before it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{damaged, truncated, Doing, ImageError, Result};
use crate::header::{self, Header, HEADER_LEN};
use crate::name::SessionName;
use crate::pack::PackReader;
use crate::section::{
    padding, ManifestReader, SectionInfo, FLAG_REQUIRED, FLAG_STREAMED, SECTION_ALIGN, SECTION_END, SECTION_HEADER_LEN,
};

use super::incoming::check_pack;
use super::{files, Store};

/// Kind of the section that holds the session's name, as text.
pub const EXPORT_NAME: u32 = 1;
/// Kind of the section that holds the manifest, as in its file.
pub const EXPORT_MANIFEST: u32 = 2;
/// Kind of a section that holds a page pack, as in its file.
pub const EXPORT_PACK: u32 = 3;

/// A manifest above this many bytes is not believed: it could not be held in memory twice.
const MANIFEST_MAX: u64 = 4 << 30;

/// What messages call the stream, whose path only the caller knows.
const STREAM: &str = "the export";

impl Store {
    /// Writes checkpoint `n` of `name` (`None`: the latest) to `out` as a single file. All of
    /// it is verified first. Gives the number of bytes written.
    ///
    /// Errors: those of [`Store::verify`]; `Io` if `out` refuses.
    pub fn export(&self, name: &SessionName, n: Option<u64>, out: &mut dyn Write) -> Result<u64> {
        let checkpoint = self.open_checkpoint(name, n)?;
        checkpoint.packs().iter().try_for_each(PackReader::verify)?;
        let mut out = Hashed::new(out);
        let path = Path::new(STREAM);
        out.write_all(&Header::new(header::EXPORT).encode()).doing("write", path)?;
        put(&mut out, EXPORT_NAME, name.as_str().as_bytes())?;
        put(&mut out, EXPORT_MANIFEST, checkpoint.manifest().bytes())?;
        for pack in checkpoint.packs() {
            put_pack(&mut out, pack)?;
        }
        let hash = *out.hasher.finalize().as_bytes();
        put(&mut out, SECTION_END, &hash)?;
        out.flush().doing("write", path)?;
        Ok(out.count)
    }

    /// Reads a file that [`Store::export`] wrote and publishes it as a new checkpoint of the
    /// session named in it, or of `name`. Gives the session and the checkpoint's number.
    ///
    /// Errors: `Empty`, `NotOurs`, `NewerFormat`, `Truncated`, `Damaged`, `UnknownSection`
    /// about the file; `Io`. The store then holds what it held.
    pub fn import(&self, input: &mut dyn Read, name: Option<&SessionName>) -> Result<(SessionName, u64)> {
        let path = Path::new(STREAM);
        let mut input = Hashed::new(input);
        let mut head = Vec::new();
        (&mut input).take(HEADER_LEN as u64).read_to_end(&mut head).doing("read", path)?;
        Header::decode(&head, header::EXPORT, path)?;
        let text = get(&mut input, EXPORT_NAME, 4096)?;
        let text = String::from_utf8(text).map_err(|_| damaged(path, "its name is not text"))?;
        let name = match name {
            Some(name) => name.clone(),
            None => SessionName::new(&text)?,
        };
        let manifest = get(&mut input, EXPORT_MANIFEST, MANIFEST_MAX)?;
        let packs = ManifestReader::parse(path, manifest.clone())?.packs()?;
        let mut new = self.begin(&name)?;
        let mut files = Vec::new();
        for pack in &packs {
            let to = new.pack_path();
            files.push(get_pack(&mut input, &to)?);
            check_pack(&PackReader::open(&to)?, &pack.id).map_err(|error| match error {
                // The file it lies in is about to be removed: name what the caller knows.
                ImageError::Damaged { what, .. } => damaged(path, format!("page pack {}: {what}", pack.id)),
                other => other,
            })?;
        }
        check_end(&mut input)?;
        // Only now that it is known to be worth waiting for the disk.
        for file in &files {
            file.sync_all().doing("write the page packs of", path)?;
        }
        new.write_manifest(&manifest)?;
        Ok((name, new.publish()?))
    }
}

/// A stream whose bytes are hashed as they pass.
struct Hashed<S> {
    stream: S,
    hasher: blake3::Hasher,
    count: u64,
}

impl<S> Hashed<S> {
    fn new(stream: S) -> Hashed<S> {
        Hashed { stream, hasher: blake3::Hasher::new(), count: 0 }
    }
}

impl<S: Write> Write for Hashed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.stream.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Read> Read for Hashed<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// Writes a section that is in memory.
fn put(out: &mut dyn Write, kind: u32, payload: &[u8]) -> Result<()> {
    let length = payload.len() as u64;
    let info = SectionInfo::new(kind, 1, FLAG_REQUIRED, length, crc32c::crc32c(payload));
    out.write_all(&info.encode())
        .and_then(|()| out.write_all(payload))
        .and_then(|()| out.write_all(&[0; SECTION_ALIGN][..padding(length)]))
        .doing("write", Path::new(STREAM))
}

/// Writes a section that holds a pack's file.
fn put_pack(out: &mut dyn Write, pack: &PackReader) -> Result<()> {
    let length = pack.file_len();
    let info = SectionInfo::new(EXPORT_PACK, 1, FLAG_REQUIRED | FLAG_STREAMED, length, 0);
    out.write_all(&info.encode()).doing("write", Path::new(STREAM))?;
    // The open file, not its path: the checkpoint may be removed meanwhile. Nobody else uses
    // its position, since a pack is read by offset.
    let mut file = pack.file();
    file.seek(SeekFrom::Start(0)).doing("read the page pack", pack.path())?;
    let copied = io::copy(&mut file.take(length), out).doing("write", Path::new(STREAM))?;
    if copied != length {
        return Err(truncated(pack.path(), "it became shorter while it was exported"));
    }
    out.write_all(&[0; SECTION_ALIGN][..padding(length)]).doing("write", Path::new(STREAM))
}

/// Reads the next section's header, which must be of `kind`.
fn get_info(input: &mut Hashed<&mut dyn Read>, kind: u32) -> Result<SectionInfo> {
    let path = Path::new(STREAM);
    let at = input.count;
    let mut head = [0; SECTION_HEADER_LEN];
    read_whole(input, &mut head)?;
    let info = SectionInfo::decode(&head, at, path)?;
    if info.kind == kind {
        return Ok(info);
    }
    let known = [EXPORT_NAME, EXPORT_MANIFEST, EXPORT_PACK, SECTION_END];
    if info.required && !known.contains(&info.kind) {
        let (kind, version) = (info.kind, info.version);
        return Err(ImageError::UnknownSection { path: path.into(), kind, version });
    }
    Err(damaged(path, format!("section kind {} at byte {at}, expected {kind}", info.kind)))
}

/// Reads the next section, which must be of `kind` and of at most `max` bytes.
fn get(input: &mut Hashed<&mut dyn Read>, kind: u32, max: u64) -> Result<Vec<u8>> {
    let path = Path::new(STREAM);
    let info = get_info(input, kind)?;
    if info.length > max {
        return Err(damaged(path, format!("section kind {kind} has {} bytes", info.length)));
    }
    // Not allocated beforehand: the length is only a claim.
    let mut payload = Vec::new();
    let got = input.take(info.length).read_to_end(&mut payload).doing("read", path)?;
    if got as u64 != info.length {
        return Err(short(input.count));
    }
    get_padding(input, info.length)?;
    if crc32c::crc32c(&payload) != info.crc {
        return Err(damaged(path, format!("section kind {kind} does not match its checksum")));
    }
    Ok(payload)
}

/// Reads the next section, which must hold a pack, into a new file at `to`.
fn get_pack(input: &mut Hashed<&mut dyn Read>, to: &Path) -> Result<File> {
    let info = get_info(input, EXPORT_PACK)?;
    let mut file = files::create_new(to)?;
    let mut left = info.length;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 20) as usize];
        read_whole(input, part)?;
        file.write_all(part).doing("write the page pack", to)?;
        left -= part.len() as u64;
    }
    get_padding(input, info.length)?;
    Ok(file)
}

/// Reads the zeros after a payload of `length` bytes.
fn get_padding(input: &mut Hashed<&mut dyn Read>, length: u64) -> Result<()> {
    let mut zeros = [0; SECTION_ALIGN];
    read_whole(input, &mut zeros[..padding(length)])?;
    match zeros {
        [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
        _ => Err(damaged(Path::new(STREAM), "the gap after a section is not filled with zeros")),
    }
}

/// Reads the END section, and that nothing follows it.
fn check_end(input: &mut Hashed<&mut dyn Read>) -> Result<()> {
    let path = Path::new(STREAM);
    let hash = *input.hasher.finalize().as_bytes();
    if get(input, SECTION_END, hash.len() as u64)? != hash {
        return Err(damaged(path, "its contents do not match the hash in its END section"));
    }
    match input.read(&mut [0]).doing("read", path)? {
        0 => Ok(()),
        _ => Err(damaged(path, "there are bytes after its END section")),
    }
}

fn read_whole(input: &mut Hashed<&mut dyn Read>, out: &mut [u8]) -> Result<()> {
    match input.read_exact(out) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(short(input.count)),
        other => other.doing("read", Path::new(STREAM)),
    }
}

fn short(count: u64) -> ImageError {
    truncated(Path::new(STREAM), format!("it ends after {count} bytes, within a section"))
}
