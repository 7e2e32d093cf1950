//! Makes a checkpoint what it would have been under another kernel: `reimage STATE SESSION VDSO` adds to the session a copy of its
//! latest checkpoint in which the kernel's mappings are others ([vdso] is the file VDSO and lies first, [vvar] is smaller and behind
//! it, there is no [vvar_vclock]), and everything that the program had found out about its vDSO (pointers in memory and in
//! registers, the auxiliary vector, jumps of an earlier replaced one) is what it would have found in that one.
//!
//! `reimage STATE SESSION --elsewhere` adds one that needs registers (MPX) and a PID that no machine of today has;
//! `reimage STATE SESSION --larger` one of a machine with a little more memory, `--limited` one that may write larger files than anybody may;
//! `reimage STATE SESSION --later` one of a machine whose CLOCK_MONOTONIC is a million seconds later, and CLOCK_BOOTTIME two.
//!
//! Exit status 75: a thread is inside the vDSO, take another checkpoint.
use anyhow::{bail, ensure, Context, Result};
use image::v1::memory::{Memory, Vma, BACKING_ANON, BACKING_VDSO, BACKING_VVAR};
use image::v1::{self, files::Files, meta::Meta, process::Process, process::Thread};
use image::{
    CheckpointHandle, Compression, ManifestWriter, NewCheckpoint, PackInfo, PackRef, PackWriter, PageRun, PageSink,
    PageSource, SessionName, Store,
};
use std::collections::BTreeMap;

const PAGE: u64 = image::PAGE_SIZE as u64;
const VVAR_PAGES: u64 = 2;
const RIP: usize = 16;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, state, session, vdso] = &args[..] else {
        bail!("usage: reimage STATE SESSION VDSO|--elsewhere|--larger|--limited|--later")
    };
    let (store, name) = (Store::open(state.as_ref())?, SessionName::new(session)?);
    let from = store.open_checkpoint(&name, None)?;
    let change: Option<fn(&mut Parts)> = match vdso.as_str() {
        "--elsewhere" => Some(elsewhere),
        "--larger" => Some(|p| [6, 11].into_iter().for_each(|n| more(p, n))),
        "--later" => Some(later),
        "--limited" => Some(|p| more(p, 7)),
        _ => None,
    };
    if let Some(change) = change {
        println!("{}", changed(&store, &name, &from, change)?);
        return Ok(());
    }
    let mut new = std::fs::read(vdso)?;
    new.resize(new.len().next_multiple_of(PAGE as usize), 0);
    println!("{}", rewrite(&store, &name, &from, &new)?);
    Ok(())
}

fn rewrite(store: &Store, name: &SessionName, from: &CheckpointHandle, new: &[u8]) -> Result<u64> {
    let mut memory: Memory = section(from, v1::SECTION_MEMORY)?;
    let mut process: Process = section(from, v1::SECTION_PROCESS)?;
    let mut threads: Vec<Thread> = section(from, v1::SECTION_THREADS)?;
    let (meta, files): (Meta, Files) = (section(from, v1::SECTION_META)?, section(from, v1::SECTION_FILES)?);
    ensure!(files.contents.is_empty(), "files without a name have pages too: not here");
    let swap = Swap::new(from, &memory, new)?;
    if threads.iter().any(|t| swap.old.contains(&t.regs[RIP])) {
        std::process::exit(75);
    }
    threads.iter_mut().flat_map(|t| t.regs.iter_mut()).for_each(|r| *r = swap.word(*r));
    swap.words(&mut process.auxv);

    let incoming = store.begin(name)?;
    let mut sink = PageSink::new(PackWriter::create(&incoming.pack_path(), Compression::default())?, 0);
    each_run(from, std::mem::take(&mut memory.pages), &mut sink, |sink, at, mut bytes| {
        for (addr, page) in (at..).step_by(PAGE as usize).zip(bytes.chunks_exact_mut(PAGE as usize)) {
            if !swap.old.contains(&addr) {
                swap.words(page);
                let code = memory.vmas.iter().any(|v| v.start <= addr && addr < v.end && is_code(v));
                code.then(|| swap.jumps(addr, page));
                sink.push(addr, page)?;
            }
        }
        Ok(())
    })?;
    sink.push(swap.at, new)?;
    memory.vmas = swap.mappings(&memory.vmas, new.len() as u64);
    memory.pages = sink.take_runs();
    memory.pages.sort_by_key(|r| r.addr);
    let (_, pack, _) = sink.finish()?;

    publish(incoming, &pack, &meta, &process, &threads, &memory, &files)
}

/// What can be changed without the pages.
struct Parts {
    meta: Meta,
    process: Process,
    threads: Vec<Thread>,
}

/// The program as it would have been with other registers in use (XCR0 bits 3 and 4), where PIDs go on beyond 4194304.
fn elsewhere(p: &mut Parts) {
    p.meta.xfeatures |= 3 << 3;
    p.threads.iter_mut().next_back().into_iter().for_each(|t| t.tid = 5_000_000);
}

/// The program as it would have been where clocks run for longer.
fn later(p: &mut Parts) {
    p.meta.monotonic_ns += 1_000_000 * 1_000_000_000;
    p.meta.boottime_ns += 2_000_000 * 1_000_000_000;
}

/// One more of a limit than it had.
fn more(p: &mut Parts, limit: usize) {
    let (soft, hard) = p.process.rlimits[limit];
    p.process.rlimits[limit] = (hard.max(soft) + 1, hard + 1);
}

/// The same checkpoint, but for what `change` does.
fn changed(store: &Store, name: &SessionName, from: &CheckpointHandle, change: fn(&mut Parts)) -> Result<u64> {
    let mut p = Parts {
        meta: section(from, v1::SECTION_META)?,
        process: section(from, v1::SECTION_PROCESS)?,
        threads: section(from, v1::SECTION_THREADS)?,
    };
    change(&mut p);
    let (mut memory, files): (Memory, Files) = (section(from, v1::SECTION_MEMORY)?, section(from, v1::SECTION_FILES)?);
    let incoming = store.begin(name)?;
    let mut sink = PageSink::new(PackWriter::create(&incoming.pack_path(), Compression::default())?, 0);
    each_run(from, std::mem::take(&mut memory.pages), &mut sink, |sink, at, bytes| Ok(sink.push(at, &bytes)?))?;
    memory.pages = sink.take_runs();
    memory.pages.sort_by_key(|r| r.addr);
    let (_, pack, _) = sink.finish()?;
    publish(incoming, &pack, &p.meta, &p.process, &p.threads, &memory, &files)
}

/// Hands stored pages (address, bytes) to `take`; those that are not stored go to the sink as they are.
fn each_run(
    from: &CheckpointHandle,
    runs: Vec<PageRun>,
    sink: &mut PageSink,
    mut take: impl FnMut(&mut PageSink, u64, Vec<u8>) -> Result<()>,
) -> Result<()> {
    for run in runs {
        let PageSource::Pack { pack, place } = run.source else {
            sink.push_known(run);
            continue;
        };
        let mut bytes = vec![0; (run.pages * PAGE) as usize];
        from.packs()[pack as usize].read_pages(place, &mut bytes)?;
        take(sink, run.addr, bytes)?;
    }
    Ok(())
}

fn publish(
    mut incoming: NewCheckpoint,
    pack: &PackInfo,
    meta: &Meta,
    process: &Process,
    threads: &[Thread],
    memory: &Memory,
    files: &Files,
) -> Result<u64> {
    let mut m = ManifestWriter::new();
    m.write_packs(&[PackRef::from(pack)])?;
    m.write_section(v1::SECTION_META, v1::VERSION, true, meta)?;
    m.write_section(v1::SECTION_PROCESS, v1::VERSION, true, process)?;
    m.write_section(v1::SECTION_THREADS, v1::VERSION, true, &threads)?;
    m.write_section(v1::SECTION_MEMORY, v1::VERSION, true, memory)?;
    m.write_section(v1::SECTION_FILES, v1::VERSION, true, files)?;
    incoming.write_manifest(&m.finish().0)?;
    Ok(incoming.publish()?)
}

fn section<T: serde::de::DeserializeOwned>(from: &CheckpointHandle, kind: u32) -> Result<T> {
    from.manifest().read_section(kind)?.context("a section is missing")
}

/// Where a vDSO that was replaced before lies: code of no file.
fn is_code(v: &Vma) -> bool {
    v.backing == BACKING_ANON && v.prot & 4 != 0
}

/// What becomes of addresses in the old vDSO.
struct Swap {
    old: std::ops::Range<u64>,
    /// Start of the new one.
    at: u64,
    new_len: u64,
    /// Entries and parts of the dynamic section, as addresses: old to new (0: the new one has no such entry).
    known: BTreeMap<u64, u64>,
}

impl Swap {
    fn new(from: &CheckpointHandle, memory: &Memory, new: &[u8]) -> Result<Swap> {
        let parts: Vec<&Vma> = memory.vmas.iter().filter(|v| is_kernels(v)).collect();
        let vdso = parts.iter().find(|v| v.backing == BACKING_VDSO).context("no vDSO")?;
        let at = parts[0].start;
        let room = parts[parts.len() - 1].end - at;
        ensure!(room == parts.iter().map(|v| v.end - v.start).sum(), "the kernel's mappings are not adjacent");
        ensure!(new.len() as u64 + VVAR_PAGES * PAGE <= room, "the new ones are larger than what is there");
        let mut text = vec![0; (vdso.end - vdso.start) as usize];
        for run in memory.pages.iter().filter(|r| vdso.start <= r.addr && r.addr < vdso.end) {
            let out = &mut text[(run.addr - vdso.start) as usize..][..(run.pages * PAGE) as usize];
            if let PageSource::Pack { pack, place } = run.source {
                from.packs()[pack as usize].read_pages(place, out)?;
            }
        }
        let (was, is) = (parse(&text).context("the old vDSO")?, parse(new).context("the new vDSO")?);
        ensure!(was["__vdso_clock_gettime"] != is["__vdso_clock_gettime"], "both have the same layout: not a proof");
        let known = was.iter().map(|(name, off)| (vdso.start + off, is.get(name).map_or(0, |to| at + to))).collect();
        Ok(Swap { old: vdso.start..vdso.end, at, new_len: new.len() as u64, known })
    }

    fn word(&self, w: u64) -> u64 {
        if !self.old.contains(&w) {
            return w;
        }
        let same = self.at + (w - self.old.start).min(self.new_len - 1);
        self.known.get(&w).copied().unwrap_or(same)
    }

    fn words(&self, bytes: &mut [u8]) {
        for w in bytes.as_chunks_mut::<8>().0 {
            *w = self.word(u64::from_le_bytes(*w)).to_le_bytes();
        }
    }

    /// Jumps (e9, 32 bits) to an entry.
    fn jumps(&self, addr: u64, page: &mut [u8]) {
        for i in 0..page.len() - 5 {
            let next = addr + i as u64 + 5;
            let Ok(distance) = page[i + 1..i + 5].try_into().map(i32::from_le_bytes) else { continue };
            let to = self.known.get(&next.wrapping_add_signed(i64::from(distance)));
            if let (0xe9, Some(to)) = (page[i], to) {
                page[i + 1..i + 5].copy_from_slice(&(to.wrapping_sub(next) as i32).to_le_bytes());
            }
        }
    }

    fn mappings(&self, was: &[Vma], len: u64) -> Vec<Vma> {
        let mut all: Vec<Vma> = was.iter().filter(|v| !is_kernels(v)).cloned().collect();
        let mut at = self.at;
        for (backing, name, len) in [(BACKING_VDSO, "[vdso]", len), (BACKING_VVAR, "[vvar]", VVAR_PAGES * PAGE)] {
            let like = was.iter().find(|v| v.backing == backing).cloned().unwrap_or_default();
            all.push(Vma { start: at, end: at + len, name: name.as_bytes().to_vec().into(), ..like });
            at += len;
        }
        all.sort_by_key(|v| v.start);
        all
    }
}

fn is_kernels(v: &Vma) -> bool {
    matches!(v.backing, BACKING_VDSO | BACKING_VVAR)
}

/// Entries of a vDSO by name, and of its dynamic section by "tag N": offsets.
fn parse(elf: &[u8]) -> Option<BTreeMap<String, u64>> {
    let u = |at: u64, n: usize| {
        let b = elf.get(at as usize..at as usize + n)?;
        Some(b.iter().rev().fold(0, |v, x| v << 8 | u64::from(*x)))
    };
    let (headers, count) = (u(0x20, 8)?, u(0x38, 2)?);
    let dynamic = (0..count).map(|i| headers + i * 56).find(|h| u(*h, 4) == Some(2))?;
    let dynamic = u(dynamic + 8, 8)?;
    let mut all = BTreeMap::new();
    for at in (dynamic..).step_by(16) {
        let tag = u(at, 8)?;
        if tag == 0 {
            break;
        }
        all.insert(format!("tag {tag}"), at);
    }
    let value = |tag: u64| u(all[&format!("tag {tag}")] + 8, 8);
    let (hash, strings, symbols) = (value(4)?, value(5)?, value(6)?);
    let names: Option<Vec<(String, u64)>> = (1..u(hash + 4, 4)?)
        .map(|i| symbols + i * 24)
        .filter(|s| u(*s + 4, 1).is_some_and(|info| info & 15 == 2))
        .map(|s| {
            let name = elf[(strings + u(s, 4)?) as usize..].split(|b| *b == 0).next()?;
            Some((String::from_utf8_lossy(name).into_owned(), u(s + 8, 8)?))
        })
        .collect();
    all.extend(names?);
    Some(all)
}
