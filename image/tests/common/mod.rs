//! What the tests of this crate share.
#![allow(dead_code)] // each test file uses its part of it

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dormouse_image::{
    Compression, ManifestWriter, NewCheckpoint, PackRef, PackWriter, PageRun, PageSink, PageSource, SessionName, Store,
    PAGE_SIZE,
};

/// A section kind of the tests' own.
pub const RUNS: u32 = 16;

/// `count` different pages that do not compress, chosen by `seed`.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut pages = vec![0; count * PAGE_SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut pages);
    pages
}

/// `count` different pages that compress well.
pub fn text(seed: u64, count: usize) -> Vec<u8> {
    let page = |i| format!("page {i} of {seed}; ").repeat(PAGE_SIZE / 10).into_bytes();
    (0..count).flat_map(|i| page(i)[..PAGE_SIZE].to_vec()).collect()
}

pub fn name(text: &str) -> SessionName {
    SessionName::new(text).unwrap()
}

/// Writes a checkpoint of `pages` with one pack of its own, and with `old` packs named again.
pub fn fill(new: &mut NewCheckpoint, pages: &[u8], old: &[PackRef]) -> dormouse_image::Result<()> {
    let writer = PackWriter::create(&new.pack_path(), Compression::Lz4)?;
    let mut sink = PageSink::new(writer, 0);
    sink.push(0x10000, pages)?;
    let (runs, info, _) = sink.finish()?;
    let mut refs = vec![PackRef::from(&info)];
    refs.extend_from_slice(old);
    new.write_manifest(&manifest(&refs, &runs))
}

pub fn manifest(refs: &[PackRef], runs: &[PageRun]) -> Vec<u8> {
    let mut writer = ManifestWriter::new();
    writer.write_packs(refs).unwrap();
    writer.write_section(RUNS, 1, true, runs).unwrap();
    writer.finish().0
}

pub fn checkpoint(store: &Store, session: &str, pages: &[u8], old: &[PackRef]) -> u64 {
    let mut new = store.begin(&name(session)).unwrap();
    fill(&mut new, pages, old).unwrap();
    new.publish().unwrap()
}

/// Reads back the pages of a checkpoint that `fill` wrote.
pub fn read_back(store: &Store, session: &str, n: Option<u64>) -> dormouse_image::Result<Vec<u8>> {
    let checkpoint = store.open_checkpoint(&name(session), n)?;
    let runs: Vec<PageRun> = checkpoint.manifest().read_section(RUNS)?.unwrap();
    let mut pages = Vec::new();
    for run in runs {
        assert_eq!(run.addr, 0x10000 + pages.len() as u64);
        let mut part = vec![0; run.pages as usize * PAGE_SIZE];
        if let PageSource::Pack { pack, place } = run.source {
            checkpoint.packs()[pack as usize].read_pages(place, &mut part)?;
        }
        pages.extend(part);
    }
    Ok(pages)
}

/// Every file and folder below `dir` with the hash of its contents: what the store holds.
pub fn snapshot(dir: &Path) -> BTreeMap<String, Option<String>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let key = path.strip_prefix(dir).unwrap().to_str().unwrap().to_string();
            if path.is_dir() {
                found.insert(key, None);
                todo.push(path);
            } else if key != "store.lock" {
                let hash = blake3::hash(&fs::read(&path).unwrap());
                found.insert(key, Some(hash.to_string()));
            }
        }
    }
    found
}
