//! A published checkpoint, open for reading.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{damaged, ImageError, Result};
use crate::pack::PackReader;
use crate::pages::PackRef;
use crate::section::ManifestReader;

use super::PACK_SUFFIX;

/// A checkpoint's manifest and packs. What is open stays readable if the checkpoint is removed.
#[derive(Debug)]
pub struct CheckpointHandle {
    n: u64,
    manifest: ManifestReader,
    refs: Vec<PackRef>,
    packs: Vec<PackReader>,
}

impl CheckpointHandle {
    pub(super) fn open(n: u64, manifest: &Path, packs_dir: &Path) -> Result<CheckpointHandle> {
        let reader = ManifestReader::open(manifest)?;
        let refs = reader.packs()?;
        let packs: Result<Vec<PackReader>> = refs.iter().map(|pack| open_pack(manifest, packs_dir, pack)).collect();
        Ok(CheckpointHandle { n, manifest: reader, refs, packs: packs? })
    }

    /// The checkpoint's number.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Its manifest.
    pub fn manifest(&self) -> &ManifestReader {
        &self.manifest
    }

    /// Its packs, in the order of the pack table, which [`crate::PageSource::Pack`] counts by.
    pub fn packs(&self) -> &[PackReader] {
        &self.packs
    }

    /// The pack table. A next checkpoint that uses these packs again names them so.
    pub fn pack_refs(&self) -> &[PackRef] {
        &self.refs
    }

    /// The pack of this ID.
    pub fn pack(&self, id: &str) -> Option<&PackReader> {
        self.packs.iter().find(|pack| pack.id() == id)
    }

    /// Bytes of the manifest and of its packs.
    pub fn bytes(&self) -> u64 {
        let packs: u64 = self.packs.iter().map(PackReader::file_len).sum();
        self.manifest.bytes().len() as u64 + packs
    }
}

/// Opens the pack that `manifest` names `pack` and checks that it is that one.
pub(super) fn open_pack(manifest: &Path, packs_dir: &Path, pack: &PackRef) -> Result<PackReader> {
    let path = packs_dir.join(format!("{}{PACK_SUFFIX}", pack.id));
    let reader = match PackReader::open(&path) {
        Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Err(ImageError::MissingPack { path: manifest.into(), pack: pack.id.clone() });
        }
        other => other?,
    };
    if reader.id() != pack.id || reader.pages() != pack.pages || reader.blake3() != pack.blake3 {
        return Err(damaged(&path, "it is another pack than the one its checkpoint names"));
    }
    Ok(reader)
}
