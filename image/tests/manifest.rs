//! Manifests: round trips, and every way their bytes can be wrong.

use std::path::Path;

use dormouse_image::section::{SECTION_END, SECTION_PACKS};
use dormouse_image::{ImageError, ManifestReader, ManifestWriter, PackRef, PageRun, PageSource, Result};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    pid: i32,
    name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct New {
    added: u8,
    name: String,
    pid: i32,
}

fn parse(bytes: Vec<u8>) -> Result<ManifestReader> {
    ManifestReader::parse(Path::new("m"), bytes)
}

fn old() -> Old {
    Old { pid: 7, name: "seven".into() }
}

fn small() -> Vec<u8> {
    let mut writer = ManifestWriter::new();
    let pack = PackRef { id: "0123456789abcdef0123456789abcdef".into(), pages: 3, blake3: [9; 32] };
    writer.write_packs(&[pack]).unwrap();
    writer.write_section(20, 3, true, &old()).unwrap();
    writer.finish().0
}

#[test]
fn sections_are_read_as_written() {
    let mut writer = ManifestWriter::new();
    writer.write_packs(&[]).unwrap();
    writer.write_section(20, 3, true, &old()).unwrap();
    writer.write_section(21, 1, false, &old()).unwrap();
    writer.write_section(21, 1, false, &Old { pid: 8, ..old() }).unwrap();
    let (bytes, identity) = writer.finish();
    let reader = parse(bytes.clone()).unwrap();
    assert_eq!(reader.identity(), identity);
    assert_eq!(identity.to_string().len(), 64);
    assert_eq!(reader.bytes(), bytes);
    assert_eq!(reader.packs().unwrap(), []);
    assert_eq!(reader.read_section::<Old>(20).unwrap(), Some(old()));
    assert_eq!(reader.read_section::<Old>(99).unwrap(), None);
    let pids: Vec<i32> = reader.read_all::<Old>(21).unwrap().iter().map(|o| o.pid).collect();
    assert_eq!(pids, [7, 8]);
    assert!(reader.read_section::<Old>(21).unwrap_err().to_string().contains("2 sections"));
    let seen: Vec<(u32, u16, bool)> = reader.sections().map(|s| (s.kind, s.version, s.required)).collect();
    assert_eq!(seen, [(SECTION_PACKS, 1, true), (20, 3, true), (21, 1, false), (21, 1, false)]);
}

#[test]
fn an_inserted_field_is_not_misread() {
    let mut writer = ManifestWriter::new();
    writer.write_section(20, 4, true, &New { added: 1, name: "x".into(), pid: 2 }).unwrap();
    let read = parse(writer.finish().0).unwrap().read_section::<Old>(20).unwrap();
    assert_eq!(read, Some(Old { pid: 2, name: "x".into() }));
}

#[test]
fn unknown_required_sections_are_refused_by_kind() {
    let reader = parse(small()).unwrap();
    reader.check_known(&[20]).unwrap();
    reader.check_versions(&[(20, 3)]).unwrap();
    let error = reader.check_known(&[19, 21]).unwrap_err();
    assert!(matches!(error, ImageError::UnknownSection { kind: 20, version: 3, .. }));
    assert!(error.to_string().contains("section kind 20 version 3"), "{error}");
    assert!(reader.check_versions(&[(20, 2)]).is_err());
    let mut writer = ManifestWriter::new();
    writer.write_section(30, 1, false, &old()).unwrap();
    parse(writer.finish().0).unwrap().check_known(&[]).unwrap();
}

#[test]
fn bytes_after_a_value_are_refused() {
    // One value after another in a section: what a decoder alone would not see.
    let mut two = rmp_serde::to_vec_named(&old()).unwrap();
    two.extend(rmp_serde::to_vec_named(&old()).unwrap());
    let mut bytes = small();
    // Splice a section that holds both before END, and seal again by hand.
    bytes.truncate(bytes.len() - 56);
    let mut head = Vec::new();
    head.extend(40u32.to_le_bytes());
    head.extend(1u16.to_le_bytes());
    head.extend(1u16.to_le_bytes());
    head.extend((two.len() as u64).to_le_bytes());
    head.extend(crc32c::crc32c(&two).to_le_bytes());
    head.extend(crc32c::crc32c(&head).to_le_bytes());
    bytes.extend(head);
    bytes.extend(&two);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let hash = blake3::hash(&bytes);
    let mut end = Vec::new();
    end.extend(SECTION_END.to_le_bytes());
    end.extend(1u16.to_le_bytes());
    end.extend(1u16.to_le_bytes());
    end.extend(32u64.to_le_bytes());
    end.extend(crc32c::crc32c(hash.as_bytes()).to_le_bytes());
    end.extend(crc32c::crc32c(&end).to_le_bytes());
    bytes.extend(end);
    bytes.extend(hash.as_bytes());
    let error = parse(bytes).unwrap().read_section::<Old>(40).unwrap_err();
    assert!(error.to_string().contains("bytes too many"), "{error}");
}

#[test]
fn every_flipped_bit_is_found() {
    let good = small();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = parse(bytes).expect_err(&format!("bit {bit}"));
        assert!(error.is_image() && !error.advice().is_empty(), "{error}");
    }
}

#[test]
fn every_shorter_length_is_found() {
    let good = small();
    for len in 0..good.len() {
        let error = parse(good[..len].to_vec()).expect_err(&format!("length {len}"));
        match error {
            ImageError::Empty { .. } => assert_eq!(len, 0),
            ImageError::Truncated { .. } => assert!(len > 0),
            other => panic!("length {len}: {other}"),
        }
    }
    let longer = [good, vec![0]].concat();
    assert!(parse(longer).unwrap_err().to_string().contains("1 bytes after"));
}

#[test]
fn only_ids_get_into_paths() {
    for id in ["../../../../etc/passwd", "", "0123456789ABCDEF0123456789ABCDEF"] {
        let mut writer = ManifestWriter::new();
        writer.write_packs(&[PackRef { id: id.into(), pages: 0, blake3: [0; 32] }]).unwrap();
        assert!(parse(writer.finish().0).unwrap().packs().is_err());
    }
    let mut writer = ManifestWriter::new();
    writer.write_section(20, 1, true, &old()).unwrap();
    let error = parse(writer.finish().0).unwrap().packs().unwrap_err();
    assert!(error.to_string().contains("no table of page packs"), "{error}");
}

#[test]
fn page_sources_have_integer_tags() {
    let zero = rmp_serde::to_vec_named(&PageSource::Zero).unwrap();
    assert_eq!(zero, [0x91, 0]);
    let pack = rmp_serde::to_vec_named(&PageSource::Pack { pack: 5, place: 6 }).unwrap();
    assert_eq!(pack, [0x93, 1, 5, 6]);
    for bad in [&[0x90][..], &[0x91, 1], &[0x92, 0, 0], &[0x91, 2], &[0x94, 1, 5, 6, 7]] {
        assert!(rmp_serde::from_slice::<PageSource>(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn page_runs_are_read_as_written(runs: Vec<(u64, u64, Option<(u32, u64)>)>) {
        let run = |(addr, pages, place): (u64, u64, Option<(u32, u64)>)| PageRun {
            addr,
            pages,
            source: place.map_or(PageSource::Zero, |(pack, place)| PageSource::Pack { pack, place }),
        };
        let runs: Vec<PageRun> = runs.into_iter().map(run).collect();
        let mut writer = ManifestWriter::new();
        writer.write_section(16, 1, true, &runs).unwrap();
        let read = parse(writer.finish().0).unwrap().read_section::<Vec<PageRun>>(16).unwrap();
        prop_assert_eq!(read, Some(runs));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, at: usize, cut: usize) {
        drop(parse(bytes.clone()));
        // The same within a manifest, where the header lets it pass.
        let mut good = small();
        let at = at % good.len();
        let end = (at + cut % 64).min(good.len());
        good.splice(at..end, bytes);
        if let Ok(reader) = parse(good) {
            drop(reader.packs());
        }
    }
}
