//! Holds FORMAT.md against the code: each table row that names a constant has its value, and the
//! bytes that are written lie where the tables say.

use dormouse_image::header::{self, *};
use dormouse_image::pack::*;
use dormouse_image::section::*;
use dormouse_image::store::*;
use dormouse_image::{ManifestWriter, PackWriter};

const DOC: &str = include_str!("../FORMAT.md");

/// Cells of the table rows of `doc`.
fn rows(doc: &str) -> Vec<Vec<&str>> {
    let tables = doc.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    tables.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The tables' constants, by name, as the document has them: (name, first cell, second cell).
fn documented() -> Vec<(&'static str, u64, Option<u64>)> {
    let constants = rows(DOC).into_iter().filter_map(|row| {
        let name = row.last()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((name, row[0].parse().ok()?, row[1].parse().ok()))
    });
    constants.collect()
}

macro_rules! constants {
    ($($name:ident)*) => { vec![$((stringify!($name), $name as u64)),*] };
}

#[test]
fn the_tables_have_the_values_of_the_code() {
    let mut code = constants![
        OFFSET_MAGIC OFFSET_MAJOR OFFSET_MINOR OFFSET_ARCH OFFSET_WRITER OFFSET_CRC HEADER_LEN
        OFFSET_KIND OFFSET_VERSION OFFSET_FLAGS OFFSET_LENGTH OFFSET_PAYLOAD_CRC
        OFFSET_HEADER_CRC SECTION_HEADER_LEN SECTION_PACKS FIRST_FREE_KIND SECTION_END
        OFFSET_ID OFFSET_PACK_FLAGS OFFSET_BLOCK_CRC PACK_HEADER_LEN ENTRY_OFFSET ENTRY_STORED
        ENTRY_PAGES ENTRY_CRC ENTRY_METHOD ENTRY_LEN FOOTER_INDEX FOOTER_FRAMES FOOTER_PAGES
        FOOTER_INDEX_CRC FOOTER_HASH FOOTER_CRC FOOTER_LEN EXPORT_NAME EXPORT_MANIFEST EXPORT_PACK
    ];
    code.push(("SECTION_TREE", dormouse_image::v1::SECTION_TREE.into()));
    code.push(("SECTION_SYSVIPC", dormouse_image::v1::SECTION_SYSVIPC.into()));
    code.push(("SECTION_KEYS", dormouse_image::v1::SECTION_KEYS.into()));
    code.push(("SECTION_RIGHTS", dormouse_image::v1::SECTION_RIGHTS.into()));
    code.push(("SECTION_SHARES", dormouse_image::v1::SECTION_SHARES.into()));
    code.push(("SECTION_APART", dormouse_image::v1::SECTION_APART.into()));
    code.push(("SECTION_CGROUPS", dormouse_image::v1::SECTION_CGROUPS.into()));
    code.push(("SECTION_STRICT", dormouse_image::v1::SECTION_STRICT.into()));
    code.push(("SECTION_USERS", dormouse_image::v1::SECTION_USERS.into()));
    code.push(("SECTION_SHARED_MEMORY", dormouse_image::v1::SECTION_SHARED_MEMORY.into()));
    code.push(("SECTION_ENDED", dormouse_image::v1::SECTION_ENDED.into()));
    let doc = documented();
    for (name, value) in &code {
        let found: Vec<u64> = doc.iter().filter(|d| d.0 == *name).map(|d| d.1).collect();
        assert!(!found.is_empty(), "FORMAT.md does not have {name}");
        assert!(found.iter().all(|v| v == value), "FORMAT.md has {found:?} for {name} = {value}");
    }
    for (name, ..) in doc {
        assert!(code.iter().any(|c| c.0 == name), "FORMAT.md has {name}, which is not compared");
    }
}

#[test]
fn the_rows_of_a_table_lie_one_after_the_other() {
    for section in DOC.split("| offset | bytes |").skip(1) {
        let mut at = 0;
        let table = section.lines().skip(2).take_while(|line| line.starts_with('|'));
        for row in rows(&table.collect::<Vec<_>>().join("\n")) {
            assert_eq!(row[0].parse(), Ok(at), "{row:?}");
            at += row[1].parse().unwrap_or(0);
        }
    }
}

#[test]
fn magics_and_formats_are_those_of_the_code() {
    for kind in [header::MANIFEST, header::PACK, header::EXPORT] {
        let magic: Vec<String> = kind.magic.iter().map(|byte| format!("{byte:02x}")).collect();
        let row = format!("| {} | `{}` | {}.{} |", kind.what, magic.join(" "), kind.major, kind.minor);
        assert!(DOC.contains(&row), "FORMAT.md lacks {row}");
    }
    assert!(DOC.contains(&format!("`{}`", String::from_utf8_lossy(&FOOTER_MAGIC))));
    assert!(DOC.contains(&format!("{ARCH_X86_64} is x86-64")));
    assert!(DOC.contains(&format!("1 to {FRAME_PAGES} pages")));
    for (method, text) in [(Method::Raw, "raw"), (Method::Lz4, "LZ4"), (Method::Zstd, "Zstandard")] {
        assert!(DOC.contains(&format!("{} {text}", method as u32)));
        assert_eq!(Method::from_number(method as u32), Some(method));
    }
    assert_eq!((FLAG_REQUIRED, FLAG_STREAMED, FLAG_MAPPABLE), (1, 2, 1));
}

#[test]
fn the_layout_of_the_store_is_that_of_the_code() {
    for name in [
        SESSIONS_DIR,
        CHECKPOINTS_DIR,
        PACKS_DIR,
        MANIFEST_FILE,
        LOCK_FILE,
        INCOMING_PREFIX,
        REMOVED_PREFIX,
        PACK_SUFFIX,
    ] {
        assert!(DOC.contains(name), "FORMAT.md does not have {name}");
    }
}

/// The first bytes ever written by format 1.0: if this fails, the format has changed.
#[test]
fn a_manifest_has_the_bytes_of_format_1_0() {
    let fixed = Header { writer: "test".into(), ..Header::new(header::MANIFEST) };
    let mut writer = ManifestWriter::with_header(&fixed);
    writer.write_packs(&[]).unwrap();
    let (bytes, identity) = writer.finish();
    assert_eq!(bytes.len(), 64 + 24 + 8 + 24 + 32);
    assert_eq!(bytes[64 + 24..64 + 24 + 8], *b"\x81\xa5packs\x90");
    assert_eq!(bytes[bytes.len() - 32..], identity.0);
    assert_eq!(identity.to_string(), "01b90d7a68417a2779db071c5c4c2dd30f60dc23595a374bb5b932cbeec7a7c1");
}

#[test]
fn a_pack_has_its_parts_where_the_tables_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pack");
    let mut writer = PackWriter::create(&path, Compression::None).unwrap();
    writer.append(&[7; 3 * 4096]).unwrap();
    let info = writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), PACK_HEADER_LEN + 3 * 4096 + ENTRY_LEN + FOOTER_LEN);
    let id: String = bytes[OFFSET_ID..][..16].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(id, info.id);
    assert_eq!(bytes[OFFSET_PACK_FLAGS], FLAG_MAPPABLE as u8);
    let footer = &bytes[bytes.len() - FOOTER_LEN..];
    assert!(footer.starts_with(&FOOTER_MAGIC));
    assert_eq!(footer[FOOTER_INDEX..][..8], (4u64 * 4096).to_le_bytes());
    assert_eq!((footer[FOOTER_FRAMES], footer[FOOTER_PAGES]), (1, 3));
    assert_eq!(footer[FOOTER_HASH..][..32], info.blake3);
    let hashed = &bytes[..bytes.len() - FOOTER_LEN + FOOTER_HASH];
    assert_eq!(*blake3::hash(hashed).as_bytes(), info.blake3);
}
