//! Packs and the page sink: round trips, and every way a pack's bytes can be wrong.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{noise, text};
use dormouse_image::pack::{Method, FRAME_PAGES, PACK_HEADER_LEN, SOON};
use dormouse_image::{
    Compression, ImageError, PackInfo, PackReader, PackWriter, PageRun, PageSink, PageSource, PageStats, PAGE_SIZE,
};
use proptest::prelude::*;

const WAYS: [Compression; 5] =
    [Compression::SoonThenSmall(1), Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(-5)];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(dir: &Path, way: Compression, parts: &[&[u8]]) -> (PathBuf, PackInfo) {
    let path = dir.join(format!("{way:?}.pack"));
    let mut writer = PackWriter::create(&path, way).unwrap();
    let mut place = 0;
    for part in parts {
        assert_eq!(writer.append(part).unwrap(), place);
        place += (part.len() / PAGE_SIZE) as u64;
    }
    let id = writer.id().to_string();
    let info = writer.finish().unwrap();
    assert_eq!((info.pages, &info.id), (place, &id));
    assert_eq!(info.stored_bytes, fs::metadata(&path).unwrap().len());
    (path, info)
}

#[test]
fn pages_are_read_as_written() {
    let dir = folder();
    // Below a frame, exactly a frame, and many frames, with parts that straddle frames.
    for count in [0, 1, FRAME_PAGES - 1, FRAME_PAGES, FRAME_PAGES * 5 + 17] {
        let pages = [text(1, count / 2), noise(2, count - count / 2)].concat();
        for way in WAYS {
            let parts: Vec<&[u8]> = pages.chunks(37 * PAGE_SIZE).collect();
            let (path, info) = write(dir.path(), way, &parts);
            let reader = PackReader::open(&path).unwrap();
            assert_eq!((reader.id(), reader.pages()), (info.id.as_str(), count as u64));
            assert_eq!((reader.blake3(), reader.file_len()), (info.blake3, info.stored_bytes));
            reader.verify().unwrap();
            let mut all = vec![1; pages.len()];
            reader.read_pages(0, &mut all).unwrap();
            assert!(all == pages);
            let frames: Vec<u8> = (0..reader.frames().len()).flat_map(|i| reader.decode_frame(i).unwrap()).collect();
            assert!(frames == pages);
            let mut page = vec![0; PAGE_SIZE];
            for place in [0, count / 3, count.saturating_sub(1)].into_iter().filter(|p| *p < count) {
                reader.read_pages(place as u64, &mut page).unwrap();
                assert!(page == pages[place * PAGE_SIZE..][..PAGE_SIZE]);
            }
            let error = reader.read_pages(count as u64, &mut page).unwrap_err();
            assert!(error.to_string().contains("was asked for"), "{error}");
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn an_uncompressed_pack_can_be_mapped() {
    let dir = folder();
    let pages = text(3, 600);
    let (path, _) = write(dir.path(), Compression::None, &[&pages]);
    let reader = PackReader::open(&path).unwrap();
    let file = fs::read(&path).unwrap();
    assert_eq!(reader.mapped_offset(0), Some(PACK_HEADER_LEN as u64));
    for place in [0u64, 255, 256, 599] {
        let at = reader.mapped_offset(place).unwrap() as usize;
        assert!(at.is_multiple_of(PAGE_SIZE));
        assert!(file[at..at + PAGE_SIZE] == pages[place as usize * PAGE_SIZE..][..PAGE_SIZE]);
    }
    assert_eq!(reader.mapped_offset(600), None);
    let (path, _) = write(dir.path(), Compression::Lz4, &[&pages]);
    let reader = PackReader::open(&path).unwrap();
    assert_eq!(reader.mapped_offset(0), None);
    assert!(reader.file_len() < pages.len() as u64 / 4);
}

#[test]
fn several_threads_may_read_one_pack() {
    let dir = folder();
    let pages = text(4, FRAME_PAGES * 4);
    let (path, _) = write(dir.path(), Compression::Zstd(1), &[&pages]);
    let reader = PackReader::open(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (reader, pages) = (&reader, &pages);
            scope.spawn(move || {
                let mut page = vec![0; PAGE_SIZE];
                for place in (thread..FRAME_PAGES * 4).step_by(97) {
                    reader.read_pages(place as u64, &mut page).unwrap();
                    assert!(page == pages[place * PAGE_SIZE..][..PAGE_SIZE]);
                }
            });
        }
    });
}

#[test]
fn an_existing_file_is_not_overwritten_and_packs_are_private() {
    use std::os::unix::fs::MetadataExt;
    let dir = folder();
    let (path, _) = write(dir.path(), Compression::Lz4, &[]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let error = PackWriter::create(&path, Compression::Lz4).unwrap_err();
    assert!(error.to_string().contains("cannot create the page pack"), "{error}");
}

#[test]
fn every_flipped_byte_is_found() {
    let dir = folder();
    for way in WAYS {
        let (path, _) = write(dir.path(), way, &[&text(5, 2), &noise(5, 1)]);
        let good = fs::read(&path).unwrap();
        let bad_path = dir.path().join("bad");
        fs::write(&bad_path, &good).unwrap();
        let file = fs::File::options().write(true).open(&bad_path).unwrap();
        for (at, byte) in good.iter().enumerate() {
            use std::os::unix::fs::FileExt;
            file.write_all_at(&[byte ^ (1 << (at % 8))], at as u64).unwrap();
            let found = PackReader::open(&bad_path).and_then(|reader| reader.verify());
            let error = found.expect_err(&format!("{way:?} byte {at}"));
            assert!(error.is_image(), "{error}");
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
        PackReader::open(&bad_path).unwrap().verify().unwrap();
    }
}

#[test]
fn a_damaged_page_is_found_when_it_is_read() {
    use std::os::unix::fs::FileExt;
    let dir = folder();
    let (path, _) = write(dir.path(), Compression::None, &[&noise(6, FRAME_PAGES * 2)]);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", (PACK_HEADER_LEN + 300 * PAGE_SIZE) as u64).unwrap();
    let reader = PackReader::open(&path).unwrap();
    let mut page = vec![0; PAGE_SIZE];
    reader.read_pages(0, &mut page).unwrap();
    let error = reader.read_pages(256, &mut page).unwrap_err();
    assert!(error.to_string().contains("pages 256 to 511 do not match their checksum"), "{error}");
}

#[test]
fn every_shorter_length_is_found() {
    let dir = folder();
    let (path, _) = write(dir.path(), Compression::Lz4, &[&text(7, 3)]);
    let good = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    for len in (0..good.len()).rev() {
        file.set_len(len as u64).unwrap();
        match PackReader::open(&path).expect_err(&format!("length {len}")) {
            ImageError::Empty { .. } => assert_eq!(len, 0),
            ImageError::Truncated { .. } => {}
            other => panic!("length {len}: {other}"),
        }
    }
    fs::write(&path, b"#!/bin/sh\necho hello\n").unwrap();
    assert!(matches!(PackReader::open(&path), Err(ImageError::NotOurs { .. })));
}

#[test]
fn the_sink_drops_zeros_finds_duplicates_and_merges() {
    let dir = folder();
    let path = dir.path().join("pack");
    let writer = PackWriter::create(&path, Compression::Lz4).unwrap();
    let mut sink = PageSink::new(writer, 3);
    let pages = noise(8, 4);
    let zeros = vec![0; 2 * PAGE_SIZE];
    sink.push(0x1000, &pages).unwrap();
    sink.push(0x5000, &zeros).unwrap();
    sink.push(0x7000, &zeros).unwrap();
    sink.push(0x9000, &pages[PAGE_SIZE..]).unwrap();
    // Not adjacent: a run of its own.
    sink.push(0xf000, &zeros).unwrap();
    let old = PageSource::Pack { pack: 0, place: 40 };
    let run = |addr, pages, source| PageRun { addr, pages, source };
    sink.push_known(run(0x11000, 2, old));
    sink.push_known(run(0x13000, 1, PageSource::Pack { pack: 0, place: 42 }));
    sink.push_known(run(0x14000, 0, PageSource::Zero));
    let place = |place| PageSource::Pack { pack: 3, place };
    let first = sink.take_runs();
    assert_eq!(
        first,
        [
            run(0x1000, 4, place(0)),
            run(0x5000, 4, PageSource::Zero),
            run(0x9000, 3, place(1)),
            run(0xf000, 2, PageSource::Zero),
            run(0x11000, 3, old),
        ]
    );
    // Another address space: its runs are its own, its duplicates are found.
    sink.push(0x1000, &pages[..PAGE_SIZE]).unwrap();
    let (runs, info, stats) = sink.finish().unwrap();
    assert_eq!(runs, [run(0x1000, 1, place(0))]);
    assert_eq!(info.pages, 4);
    assert_eq!(stats, PageStats { total: 14, zero: 6, duplicate: 4, stored: 4 });
}

#[test]
fn frames_are_short_while_time_counts() {
    let dir = folder();
    let part = text(12, FRAME_PAGES);
    // 32 MiB in short frames, then long ones, of which the last is not full.
    let parts: Vec<&[u8]> = (0..34).map(|i| if i < 33 { &part[..] } else { &part[..5 * PAGE_SIZE] }).collect();
    let (path, _) = write(dir.path(), Compression::default(), &parts);
    let reader = PackReader::open(&path).unwrap();
    reader.verify().unwrap();
    let frames: Vec<_> = reader.frames().iter().map(|f| (f.pages, f.method)).collect();
    assert!(frames[..SOON as usize].iter().all(|f| *f == (64, Method::Lz4)), "{frames:?}");
    assert_eq!(frames[SOON as usize..], [(256, Method::Zstd), (5, Method::Zstd)]);
    // Over the place where the length changes.
    let mut out = vec![0; FRAME_PAGES * PAGE_SIZE];
    reader.read_pages(32 * FRAME_PAGES as u64 - 7, &mut out).unwrap();
    assert!(
        out[..7 * PAGE_SIZE] == part[part.len() - 7 * PAGE_SIZE..]
            && out[7 * PAGE_SIZE..] == part[..part.len() - 7 * PAGE_SIZE]
    );
}

#[test]
fn a_pack_that_is_closed_is_whole_when_it_was_waited_for() {
    let dir = folder();
    for count in [1, FRAME_PAGES * 2 + 3] {
        let path = dir.path().join(format!("{count}.pack"));
        let pages = noise(13, count);
        let mut writer = PackWriter::create(&path, Compression::default()).unwrap();
        writer.append(&pages).unwrap();
        let (info, sync) = writer.close().unwrap();
        sync.wait().unwrap();
        let reader = PackReader::open(&path).unwrap();
        assert_eq!(
            (reader.blake3(), reader.file_len(), reader.pages()),
            (info.blake3, info.stored_bytes, count as u64)
        );
        reader.verify().unwrap();
    }
}

#[test]
fn a_writer_that_is_dropped_ends_its_threads() {
    let dir = folder();
    let path = dir.path().join("pack");
    let mut writer = PackWriter::create(&path, Compression::Lz4).unwrap();
    writer.append(&noise(9, FRAME_PAGES * 3)).unwrap();
    drop(writer);
    assert!(matches!(PackReader::open(&path), Err(ImageError::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Any pages, in any parts: what is read by the runs is what was pushed.
    #[test]
    fn any_pages_are_read_as_pushed(
        kinds in proptest::collection::vec((0u8..4, 0u8..8), 0..700),
        part in 1usize..300,
        way in 0usize..WAYS.len(),
    ) {
        let page = |(kind, n): &(u8, u8)| match kind {
            0 => vec![0; PAGE_SIZE],
            1 => vec![*n; PAGE_SIZE],
            2 => noise(u64::from(*n), 1),
            _ => text(u64::from(*n), 1),
        };
        let pages: Vec<u8> = kinds.iter().flat_map(page).collect();
        let dir = folder();
        let path = dir.path().join("pack");
        let mut sink = PageSink::new(PackWriter::create(&path, WAYS[way]).unwrap(), 0);
        for (i, chunk) in pages.chunks(part * PAGE_SIZE).enumerate() {
            sink.push((i * part * PAGE_SIZE) as u64, chunk).unwrap();
        }
        let (runs, _, stats) = sink.finish().unwrap();
        prop_assert_eq!(stats.total, stats.zero + stats.duplicate + stats.stored);
        let reader = PackReader::open(&path).unwrap();
        reader.verify().unwrap();
        let mut read = Vec::new();
        for run in runs {
            prop_assert_eq!(run.addr, read.len() as u64);
            let mut part = vec![0; run.pages as usize * PAGE_SIZE];
            if let PageSource::Pack { place, .. } = run.source {
                reader.read_pages(place, &mut part).unwrap();
            }
            read.extend(part);
        }
        prop_assert!(read == pages);
    }
}
