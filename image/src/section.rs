//! Manifests: a header, then sections, then an END section that seals them.
//!
//! A section is (kind, version, flags, length, checksum) and a msgpack *named* map, so that a
//! field can be added without the old reader misreading the rest. The reader checks the whole
//! file before it gives anything out. This module knows no kind of section but the pack table,
//! which the store needs to know what belongs to a checkpoint.

use std::collections::HashSet;
use std::fmt;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{damaged, truncated, Doing, ImageError, Result};
use crate::header::{self, u16_at, u32_at, u64_at, Header, HEADER_LEN};
use crate::pages::PackRef;

/// Length of a section's header in bytes.
pub const SECTION_HEADER_LEN: usize = 24;
/// Sections start at multiples of this many bytes; the gap is filled with zeros.
pub const SECTION_ALIGN: usize = 8;
/// Offset in a section's header of its kind (u32).
pub const OFFSET_KIND: usize = 0;
/// Offset of its version (u16).
pub const OFFSET_VERSION: usize = 4;
/// Offset of its flags (u16).
pub const OFFSET_FLAGS: usize = 6;
/// Offset of its payload's length in bytes (u64).
pub const OFFSET_LENGTH: usize = 8;
/// Offset of its payload's CRC-32C (u32).
pub const OFFSET_PAYLOAD_CRC: usize = 16;
/// Offset of the CRC-32C (u32) of the section header's bytes before it.
pub const OFFSET_HEADER_CRC: usize = 20;

/// Flag: a reader that does not know this kind must refuse the file.
pub const FLAG_REQUIRED: u16 = 1;
/// Flag: the payload's checksum field is 0; the END section's hash alone covers it (exports).
pub const FLAG_STREAMED: u16 = 2;

/// Kind of the section that ends a file: the BLAKE3 hash of every byte before it.
pub const SECTION_END: u32 = u32::MAX;
/// Kind of the pack table: every pack the manifest names ([`PackRef`]), in table order.
pub const SECTION_PACKS: u32 = 1;
/// Kinds below this belong to this module; those of `v1` start here.
pub const FIRST_FREE_KIND: u32 = 16;

/// Version of the pack table that this build writes.
const PACKS_VERSION: u16 = 1;

/// What a manifest is, in 32 bytes: the BLAKE3 hash of all before its END section.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub [u8; 32]);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

/// The pack table as it lies in the file.
#[derive(Serialize, Deserialize)]
struct PackTable {
    packs: Vec<PackRef>,
}

/// The head of a section, as in its 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionInfo {
    /// What the section describes.
    pub kind: u32,
    /// Version of that kind's contents.
    pub version: u16,
    /// True if a reader that does not know the kind must refuse the file.
    pub required: bool,
    /// Length of the payload in bytes.
    pub length: u64,
    pub(crate) flags: u16,
    pub(crate) crc: u32,
}

impl SectionInfo {
    pub(crate) fn new(kind: u32, version: u16, flags: u16, length: u64, crc: u32) -> SectionInfo {
        SectionInfo { kind, version, required: flags & FLAG_REQUIRED != 0, length, flags, crc }
    }

    pub(crate) fn encode(&self) -> [u8; SECTION_HEADER_LEN] {
        let mut head = [0; SECTION_HEADER_LEN];
        head[OFFSET_KIND..OFFSET_VERSION].copy_from_slice(&self.kind.to_le_bytes());
        head[OFFSET_VERSION..OFFSET_FLAGS].copy_from_slice(&self.version.to_le_bytes());
        head[OFFSET_FLAGS..OFFSET_LENGTH].copy_from_slice(&self.flags.to_le_bytes());
        head[OFFSET_LENGTH..OFFSET_PAYLOAD_CRC].copy_from_slice(&self.length.to_le_bytes());
        head[OFFSET_PAYLOAD_CRC..OFFSET_HEADER_CRC].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&head[..OFFSET_HEADER_CRC]);
        head[OFFSET_HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    pub(crate) fn decode(head: &[u8; SECTION_HEADER_LEN], at: u64, path: &Path) -> Result<SectionInfo> {
        if u32_at(head, OFFSET_HEADER_CRC) != crc32c::crc32c(&head[..OFFSET_HEADER_CRC]) {
            return Err(damaged(path, format!("the section header at byte {at} does not match its checksum")));
        }
        Ok(SectionInfo::new(
            u32_at(head, OFFSET_KIND),
            u16_at(head, OFFSET_VERSION),
            u16_at(head, OFFSET_FLAGS),
            u64_at(head, OFFSET_LENGTH),
            u32_at(head, OFFSET_PAYLOAD_CRC),
        ))
    }
}

/// Bytes of zeros after a payload of `length` bytes.
pub(crate) fn padding(length: u64) -> usize {
    (length.wrapping_neg() % SECTION_ALIGN as u64) as usize
}

/// Builds a manifest in memory.
#[derive(Debug)]
pub struct ManifestWriter {
    bytes: Vec<u8>,
}

impl ManifestWriter {
    /// A manifest with the header this build writes.
    pub fn new() -> ManifestWriter {
        ManifestWriter::with_header(&Header::new(header::MANIFEST))
    }

    /// A manifest with a header of the caller's choice.
    pub fn with_header(header: &Header) -> ManifestWriter {
        ManifestWriter { bytes: header.encode().to_vec() }
    }

    /// Appends a section. `value` is encoded as a msgpack named map; a struct is expected.
    ///
    /// The same kind may be written several times (one per process, say) and is then read with
    /// [`ManifestReader::read_all`]. Error: `value` cannot be encoded, which is a fault of its type.
    ///
    /// # Panics
    /// If `kind` is [`SECTION_END`], which [`ManifestWriter::finish`] writes.
    pub fn write_section<T: Serialize + ?Sized>(
        &mut self,
        kind: u32,
        version: u16,
        required: bool,
        value: &T,
    ) -> Result<()> {
        assert_ne!(kind, SECTION_END, "the END section is written by finish");
        let payload = rmp_serde::to_vec_named(value).map_err(|error| ImageError::Io {
            doing: format!("encode section kind {kind} of"),
            path: "the new manifest".into(),
            source: std::io::Error::other(error),
        })?;
        self.append(kind, version, if required { FLAG_REQUIRED } else { 0 }, &payload);
        Ok(())
    }

    /// Appends the pack table. Every manifest has exactly one, also if it is empty.
    pub fn write_packs(&mut self, packs: &[PackRef]) -> Result<()> {
        let table = PackTable { packs: packs.to_vec() };
        self.write_section(SECTION_PACKS, PACKS_VERSION, true, &table)
    }

    /// Seals the manifest: its bytes and its identity.
    pub fn finish(mut self) -> (Vec<u8>, Identity) {
        let hash = *blake3::hash(&self.bytes).as_bytes();
        self.append(SECTION_END, 1, FLAG_REQUIRED, &hash);
        (self.bytes, Identity(hash))
    }

    fn append(&mut self, kind: u32, version: u16, flags: u16, payload: &[u8]) {
        let length = payload.len() as u64;
        let info = SectionInfo::new(kind, version, flags, length, crc32c::crc32c(payload));
        self.bytes.extend_from_slice(&info.encode());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len() + padding(length), 0);
    }
}

impl Default for ManifestWriter {
    fn default() -> Self {
        ManifestWriter::new()
    }
}

/// A manifest whose every byte has been checked.
#[derive(Debug)]
pub struct ManifestReader {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Header,
    /// Each section and where its payload starts.
    sections: Vec<(SectionInfo, usize)>,
    identity: Identity,
}

impl ManifestReader {
    /// Reads and checks the manifest at `path`.
    pub fn open(path: &Path) -> Result<ManifestReader> {
        let bytes = std::fs::read(path).doing("read the manifest", path)?;
        ManifestReader::parse(path, bytes)
    }

    /// Checks the whole of a manifest's `bytes`; `path` is for messages.
    ///
    /// Errors: those of [`Header::decode`], `Truncated` if the END section is not reached,
    /// `Damaged` if any checksum or the closing hash does not match.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<ManifestReader> {
        let header = Header::decode(&bytes, header::MANIFEST, path)?;
        let mut sections = Vec::new();
        let mut at = HEADER_LEN;
        loop {
            let (info, payload, next) = section_at(&bytes, at, path)?;
            if info.kind == SECTION_END {
                let identity = check_end(&bytes, at, next, path)?;
                let path = path.to_path_buf();
                return Ok(ManifestReader { path, bytes, header, sections, identity });
            }
            sections.push((info, payload));
            at = next;
        }
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The manifest's identity.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The manifest's bytes, as in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sections in file order, without END.
    pub fn sections(&self) -> impl Iterator<Item = SectionInfo> + '_ {
        self.sections.iter().map(|(info, _)| *info)
    }

    /// Fails with `UnknownSection` on the first required section whose kind is not in `kinds`.
    /// The pack table is always known.
    pub fn check_known(&self, kinds: &[u32]) -> Result<()> {
        let unknown = |s: &SectionInfo| s.required && s.kind != SECTION_PACKS && !kinds.contains(&s.kind);
        self.refuse(self.sections().find(unknown))
    }

    /// Like [`ManifestReader::check_known`] with the highest version known of each kind.
    pub fn check_versions(&self, known: &[(u32, u16)]) -> Result<()> {
        let unknown = |s: &SectionInfo| {
            let own = s.kind == SECTION_PACKS && s.version <= PACKS_VERSION;
            s.required && !own && !known.iter().any(|(k, v)| *k == s.kind && s.version <= *v)
        };
        self.refuse(self.sections().find(unknown))
    }

    fn refuse(&self, unknown: Option<SectionInfo>) -> Result<()> {
        match unknown {
            None => Ok(()),
            Some(SectionInfo { kind, version, .. }) => {
                Err(ImageError::UnknownSection { path: self.path.clone(), kind, version })
            }
        }
    }

    /// The one section of `kind`, or `None` if there is none.
    ///
    /// Errors: `Damaged` if there are several, or if the payload is not exactly one `T`.
    pub fn read_section<T: DeserializeOwned>(&self, kind: u32) -> Result<Option<T>> {
        let mut all = self.read_all(kind)?;
        if all.len() > 1 {
            return Err(damaged(&self.path, format!("{} sections of kind {kind}, expected one", all.len())));
        }
        Ok(all.pop())
    }

    /// Every section of `kind`, in file order.
    ///
    /// Errors: `Damaged` if a payload is not exactly one `T`.
    pub fn read_all<T: DeserializeOwned>(&self, kind: u32) -> Result<Vec<T>> {
        let of_kind = self.sections.iter().filter(|(info, _)| info.kind == kind);
        of_kind.map(|(info, start)| self.decode(info, *start)).collect()
    }

    fn decode<T: DeserializeOwned>(&self, info: &SectionInfo, start: usize) -> Result<T> {
        let payload = &self.bytes[start..start + info.length as usize];
        let mut decoder = rmp_serde::Deserializer::new(Cursor::new(payload));
        let value = T::deserialize(&mut decoder).map_err(|error| {
            damaged(&self.path, format!("section kind {} version {}: {error}", info.kind, info.version))
        })?;
        // A decoder stops at the end of its value; bytes after it were not written by us.
        let rest = payload.len() as u64 - decoder.position();
        if rest != 0 {
            return Err(damaged(&self.path, format!("section kind {} has {rest} bytes too many", info.kind)));
        }
        Ok(value)
    }

    /// The pack table. Every ID has been checked to be one.
    ///
    /// Errors: `Damaged` if there is not exactly one table or an ID is not 32 hex digits;
    /// `UnknownSection` if it is of a later version.
    pub fn packs(&self) -> Result<Vec<PackRef>> {
        let newer = |s: &SectionInfo| s.kind == SECTION_PACKS && s.version > PACKS_VERSION;
        self.refuse(self.sections().find(newer))?;
        let table: PackTable =
            self.read_section(SECTION_PACKS)?.ok_or_else(|| damaged(&self.path, "it has no table of page packs"))?;
        // The ID becomes part of a path: nothing but an ID may pass.
        if let Some(bad) = table.packs.iter().find(|pack| !crate::pack::is_id(&pack.id)) {
            let what = format!("{:?} is not the ID of a page pack", bad.id);
            return Err(damaged(&self.path, what));
        }
        let mut seen = HashSet::new();
        match table.packs.iter().find(|pack| !seen.insert(&pack.id)) {
            Some(twice) => {
                let what = format!("its table has page pack {} twice", twice.id);
                Err(damaged(&self.path, what))
            }
            None => Ok(table.packs),
        }
    }
}

/// The section whose header is at `at`: (its head, start of its payload, end with padding).
fn section_at(bytes: &[u8], at: usize, path: &Path) -> Result<(SectionInfo, usize, usize)> {
    let short = || truncated(path, format!("the section at byte {at} is not whole"));
    let payload = at + SECTION_HEADER_LEN;
    let head = bytes.get(at..payload).ok_or_else(short)?;
    let head = std::array::from_fn(|i| head[i]);
    let info = SectionInfo::decode(&head, at as u64, path)?;
    let left = (bytes.len() - payload) as u64;
    if info.length > left || padding(info.length) as u64 > left - info.length {
        return Err(short());
    }
    let end = payload + info.length as usize;
    if info.crc != crc32c::crc32c(&bytes[payload..end]) {
        let what = format!("section kind {} at byte {at} does not match its checksum", info.kind);
        return Err(damaged(path, what));
    }
    Ok((info, payload, end + padding(info.length)))
}

/// Checks the END section at `at`, which ends at `next`.
fn check_end(bytes: &[u8], at: usize, next: usize, path: &Path) -> Result<Identity> {
    let hash = *blake3::hash(&bytes[..at]).as_bytes();
    if bytes[at + SECTION_HEADER_LEN..next] != hash {
        return Err(damaged(path, "its contents do not match the hash in its END section"));
    }
    if next != bytes.len() {
        return Err(damaged(path, format!("{} bytes after its END section", bytes.len() - next)));
    }
    Ok(Identity(hash))
}
