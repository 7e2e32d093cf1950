//! Export files: round trips, and every way their bytes can be wrong.

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use common::{checkpoint, name, noise, read_back, snapshot, text};
use dormouse_image::header::{self, Header};
use dormouse_image::{ImageError, ManifestWriter, PackRef, Store};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn export(store: &Store, session: &str) -> Vec<u8> {
    let mut file = Vec::new();
    let written = store.export(&name(session), None, &mut file).unwrap();
    assert_eq!(written, file.len() as u64);
    file
}

/// A small export with two packs.
fn small() -> Vec<u8> {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 1), &[]);
    let first = store.open_checkpoint(&name("web"), None).unwrap().pack_refs().to_vec();
    checkpoint(&store, "web", &text(2, 1), &first);
    export(&store, "web")
}

#[test]
fn an_export_is_imported_as_it_was() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &noise(1, 700), &[]);
    let file = export(&store, "web");
    let (_other_dir, other) = open();
    assert_eq!(other.import(&mut &file[..], None).unwrap(), (name("web"), 1));
    assert_eq!(other.import(&mut &file[..], Some(&name("copy"))).unwrap(), (name("copy"), 1));
    for session in ["web", "copy"] {
        assert!(read_back(&other, session, None).unwrap() == noise(1, 700));
        let identity = other.verify(&name(session), None).unwrap();
        assert_eq!(identity, store.verify(&name("web"), None).unwrap());
    }
    assert!(export(&other, "web") == file);
}

#[test]
fn an_import_of_what_is_there_shares_its_packs() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 5), &[]);
    let file = export(&store, "web");
    assert_eq!(store.import(&mut &file[..], None).unwrap(), (name("web"), 2));
    let packs = store.session_dir(&name("web")).join("packs");
    assert_eq!(fs::read_dir(packs).unwrap().count(), 1);
    store.remove(&name("web"), 1).unwrap();
    assert!(read_back(&store, "web", Some(2)).unwrap() == text(1, 5));
}

#[test]
fn every_flipped_byte_is_found_and_changes_nothing() {
    let good = small();
    let (_dir, store) = open();
    let before = snapshot(store.root());
    let mut bytes = good.clone();
    for at in 0..good.len() {
        // The packs are mostly padding: within them, every 31st byte and the ends are enough.
        if (1024..good.len() - 1024).contains(&at) && at % 31 != 0 {
            continue;
        }
        bytes[at] ^= 1 << (at % 8);
        let error = store.import(&mut &bytes[..], None).expect_err(&format!("byte {at}"));
        assert!(error.is_image() || matches!(error, ImageError::InvalidName { .. }), "{error}");
        bytes[at] = good[at];
    }
    assert_eq!(snapshot(store.root()), before);
    store.import(&mut &bytes[..], None).unwrap();
}

#[test]
fn every_shorter_length_is_found_and_changes_nothing() {
    let good = small();
    let (_dir, store) = open();
    let before = snapshot(store.root());
    for len in (0..good.len()).filter(|len| len % 97 == 0 || *len < 600 || good.len() - len < 600) {
        match store.import(&mut &good[..len], None).expect_err(&format!("length {len}")) {
            ImageError::Empty { .. } => assert_eq!(len, 0),
            ImageError::Truncated { .. } => {}
            other => panic!("length {len}: {other}"),
        }
    }
    let longer = [&good[..], b"x"].concat();
    let error = store.import(&mut &longer[..], None).unwrap_err();
    assert!(error.to_string().contains("bytes after its END"), "{error}");
    assert_eq!(snapshot(store.root()), before);
}

#[test]
fn foreign_and_newer_files_are_refused_by_name() {
    let (_dir, store) = open();
    let import = |bytes: &[u8]| store.import(&mut &*bytes, None).unwrap_err();
    assert!(matches!(import(b""), ImageError::Empty { .. }));
    assert!(matches!(import(&[0; 4096]), ImageError::NotOurs { .. }));
    assert!(matches!(import(b"PK\x03\x04"), ImageError::NotOurs { .. }));
    let (manifest, _) = ManifestWriter::new().finish();
    assert!(import(&manifest).to_string().contains("a Dormouse manifest, not a export"));
    let newer = Header { major: 2, ..Header::new(header::EXPORT) };
    let error = import(&newer.encode());
    assert!(error.to_string().contains("export format 2.0"), "{error}");
}

/// The only pack of `session`.
fn pack_path(store: &Store, session: &str) -> PathBuf {
    let opened = store.open_checkpoint(&name(session), None).unwrap();
    opened.packs()[0].path().to_path_buf()
}

#[test]
fn a_pack_cannot_take_the_place_of_another() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 1), &[]);
    let file = export(&store, "web");
    let mine = pack_path(&store, "web");
    // A whole pack, but another, under the ID that the file brings.
    let (_other_dir, other) = open();
    checkpoint(&other, "web", &text(2, 1), &[]);
    fs::copy(&mine, mine.with_extension("keep")).unwrap();
    fs::copy(pack_path(&other, "web"), &mine).unwrap();
    let before = snapshot(store.root());
    let error = store.import(&mut &file[..], None).unwrap_err();
    assert!(error.to_string().contains("another pack than the one"), "{error}");
    assert_eq!(snapshot(store.root()), before);
    // A manifest that lies about a pack that is there.
    fs::rename(mine.with_extension("keep"), &mine).unwrap();
    let id = mine.file_stem().unwrap().to_str().unwrap().to_string();
    let forged = common::manifest(&[PackRef { id, pages: 1, blake3: [7; 32] }], &[]);
    let mut new = store.begin(&name("web")).unwrap();
    new.write_manifest(&forged).unwrap();
    let error = new.publish().unwrap_err();
    assert!(error.to_string().contains("another pack than the one"), "{error}");
    assert!(read_back(&store, "web", None).unwrap() == text(1, 1));
}

#[test]
fn an_import_repairs_a_damaged_pack() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &noise(1, 3), &[]);
    let file = export(&store, "web");
    let path = pack_path(&store, "web");
    let mut bytes = fs::read(&path).unwrap();
    bytes[6000] ^= 4;
    fs::write(&path, bytes).unwrap();
    assert!(store.verify(&name("web"), None).is_err());
    assert_eq!(store.import(&mut &file[..], None).unwrap(), (name("web"), 2));
    store.verify(&name("web"), Some(1)).unwrap();
    store.verify(&name("web"), Some(2)).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_not_exported() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &noise(1, 3), &[]);
    let path = pack_path(&store, "web");
    let mut bytes = fs::read(&path).unwrap();
    bytes[6000] ^= 4;
    fs::write(&path, bytes).unwrap();
    let mut out = Vec::new();
    assert!(matches!(store.export(&name("web"), None, &mut out), Err(ImageError::Damaged { .. })));
    assert!(out.is_empty());
}

/// A stream that fails after some bytes.
struct Failing(usize);

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn streams_that_fail_are_storage() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &noise(1, 3), &[]);
    for room in [0, 100, 5000, 16900] {
        let error = store.export(&name("web"), None, &mut Failing(room)).unwrap_err();
        assert!(error.is_storage(), "{error}");
        assert!(error.to_string().starts_with("cannot write the export: "), "{error}");
    }
    let error = store.import(&mut Failing(0), None).unwrap_err();
    assert!(error.is_storage() && error.to_string().starts_with("cannot read the export: "));
}
