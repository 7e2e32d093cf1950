//! Measures packs: `packbench DIR [DUMP-FILE] [MIB]`.
//!
//! Prints the throughput of a plain write and fsync, of a pack of the same incompressible bytes,
//! the time of a small checkpoint from begin to publish, and, with a dump of a program's memory,
//! ratio and speed of each way to compress.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_image::{Compression, ManifestWriter, PackReader, PackRef, PackWriter, PageSink, SessionName, Store};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WAYS: [Compression; 7] = [
    Compression::None,
    Compression::Lz4,
    Compression::Zstd(-5),
    Compression::Zstd(-1),
    Compression::Zstd(1),
    Compression::Zstd(3),
    Compression::SoonThenSmall(1),
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: packbench DIR [DUMP-FILE] [MIB]")?;
    let dir = Path::new(&dir);
    let dump = args.next().filter(|path| path != "-");
    let mib: usize = args.next().map_or(Ok(1024), |n| n.parse())?;
    std::fs::create_dir_all(dir)?;
    if let Some(dump) = dump {
        compare(dir, &std::fs::read(dump)?)?;
    }
    small(dir)?;
    large(dir, mib)
}

/// Incompressible bytes, different in each page.
fn noise(bytes: usize) -> Result<Vec<u8>> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    Ok(noise)
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn compare(dir: &Path, dump: &[u8]) -> Result<()> {
    let dump = &dump[..dump.len() / 4096 * 4096];
    println!("dump of {} MB", dump.len() / 1_000_000);
    for way in WAYS {
        let path = dir.join("pack");
        let begun = Instant::now();
        let mut sink = PageSink::new(PackWriter::create(&path, way)?, 0);
        for (i, part) in dump.chunks(1 << 20).enumerate() {
            sink.push((i as u64) << 20, part)?;
        }
        let (runs, info, stats) = sink.finish()?;
        let written = begun.elapsed();
        let reader = PackReader::open(&path)?;
        let begun = Instant::now();
        for i in 0..reader.frames().len() {
            reader.decode_frame(i)?;
        }
        println!(
            "{way:?}: {} zero {} dup {} stored, {} runs; {:.1} MB, ratio {:.2}; {:.0} ms write, {:.0} ms decode",
            stats.zero,
            stats.duplicate,
            stats.stored,
            runs.len(),
            info.stored_bytes as f64 / 1e6,
            (stats.stored * 4096) as f64 / info.stored_bytes as f64,
            written.as_secs_f64() * 1e3,
            begun.elapsed().as_secs_f64() * 1e3
        );
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn small(dir: &Path) -> Result<()> {
    let store = Store::open(&dir.join("state"))?;
    let name = SessionName::new("bench")?;
    for mib in [1, 4, 16] {
        let pages = noise(mib << 20)?;
        let mut times = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            let mut new = store.begin(&name)?;
            let mut sink = PageSink::new(PackWriter::create(&new.pack_path(), Compression::default())?, 0);
            sink.push(0, &pages)?;
            let (runs, info, _) = sink.finish()?;
            let packed = begun.elapsed();
            let mut manifest = ManifestWriter::new();
            manifest.write_packs(&[PackRef::from(&info)])?;
            manifest.write_section(16, 1, true, &runs)?;
            new.write_manifest(&manifest.finish().0)?;
            new.publish()?;
            times.push((begun.elapsed(), packed));
        }
        times.sort();
        println!("checkpoint of {mib} MiB: median {:?} (pack {:?}), worst {:?}", times[5].0, times[5].1, times[9].0);
    }
    store.remove_session(&name)?;
    Ok(())
}

/// Rounds of each measurement; the medians are printed, since disks are not steady.
const ROUNDS: usize = 5;

fn large(dir: &Path, mib: usize) -> Result<()> {
    let pages = noise(mib << 20)?;
    let path = dir.join("pack");
    let ways = [Compression::None, Compression::Lz4, Compression::default()];
    let mut rates = vec![Vec::new(); ways.len() + 1];
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let mut file = File::create(&path)?;
        pages.chunks(1 << 20).try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        rates[0].push(rate(pages.len(), begun.elapsed()));
        std::fs::remove_file(&path)?;
        for (i, way) in ways.into_iter().enumerate() {
            let begun = Instant::now();
            let mut sink = PageSink::new(PackWriter::create(&path, way)?, 0);
            for (i, part) in pages.chunks(1 << 18).enumerate() {
                sink.push((i as u64) << 18, part)?;
            }
            sink.finish()?;
            rates[i + 1].push(rate(pages.len(), begun.elapsed()));
            std::fs::remove_file(&path)?;
        }
    }
    let whats = ["plain write and fsync".to_string()];
    let whats = whats.into_iter().chain(ways.map(|way| format!("pack {way:?}")));
    for (what, rates) in whats.zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let (least, median, most) = (rates[0], rates[ROUNDS / 2], rates[ROUNDS - 1]);
        println!("{what}: median {median:.0} MB/s (from {least:.0} to {most:.0})");
    }
    Ok(())
}
