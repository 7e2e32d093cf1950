//! Phase fill: the stored pages go to their addresses. Each frame of a pack is read and decoded once, on all CPUs if
//! there is much, and written into the process by as few calls as can be.
use super::place::Kept;
use super::puppet::Puppet;
use super::{cannot, heirloom, Fault, Image, Step};
use crate::{Progress, RestoreOptions};
use ::image::v1::memory::*;
use ::image::{PageRun, PageSource, PAGE_SIZE};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use sys::program::{Arg::Imm, Program};

const PAGE: u64 = PAGE_SIZE as u64;
/// Below this many bytes one thread is faster.
const ALONE: u64 = 1 << 20;

/// A piece of a frame and where it goes.
struct Piece {
    pack: u32,
    frame: usize,
    /// Bytes into the frame.
    skip: usize,
    addr: u64,
    len: usize,
}

/// Writes all pages. `heritage`: the process that has borne it, whose memory it has, and what of that it keeps.
pub fn fill(
    p: &mut Puppet,
    image: &Image<'_>,
    heritage: Option<(&Image<'_>, &[Kept])>,
    o: &RestoreOptions<'_>,
) -> Step<()> {
    let Some((from, kept)) = heritage else { return write(p, image, &image.memory.pages, o) };
    let change = heirloom::change(&image.memory.pages, &from.memory.pages, kept);
    let mut prog = Program::new();
    for (start, end) in &change.forget {
        prog.call(libc::SYS_madvise, &[Imm(*start), Imm(end - start), Imm(libc::MADV_DONTNEED as u64)]);
        p.run_if_full(&mut prog)?;
    }
    p.run(&prog)?;
    write(p, image, &change.write, o)
}

/// Writes these pages.
fn write(p: &Puppet, image: &Image<'_>, runs: &[PageRun], o: &RestoreOptions<'_>) -> Step<()> {
    let mut pieces = Vec::new();
    for run in runs {
        let whole = covered(image, run.addr, run.pages)?;
        match run.source {
            // fresh memory is zero already; a file's page that was overwritten with zeros is not
            PageSource::Zero if whole == BACKING_FILE_PRIVATE => zeros(p, run.addr, run.pages)?,
            PageSource::Zero => {}
            // the vDSO sees to itself
            PageSource::Pack { .. } if whole == BACKING_VDSO => {}
            PageSource::Pack { pack, place } => cut(image, run.addr, run.pages, pack, place, &mut pieces)?,
        }
    }
    pieces.sort_by_key(|c| (c.pack, c.frame, c.addr));
    let groups: Vec<&[Piece]> = pieces.chunk_by(|a, b| (a.pack, a.frame) == (b.pack, b.frame)).collect();
    let total: u64 = pieces.iter().map(|c| c.len as u64).sum();
    let job = Job {
        p_mem: &p.mem,
        image,
        groups: &groups,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
    let tell = |done: u64| {
        if let Some(f) = o.progress {
            f(Progress { phase: "fill", done, total });
        }
    };
    if total < ALONE || cpus == 1 {
        return job.work(&tell);
    }
    std::thread::scope(|s| {
        let helpers: Vec<_> = (1..cpus).map(|_| s.spawn(|| job.work(&|_| {}))).collect();
        let mut result = job.work(&tell);
        for h in helpers {
            let r =
                h.join().unwrap_or_else(|_| Err(cannot("memory", "a thread that filled it panicked", "report this")));
            result = result.and(r);
        }
        result
    })
}

/// Tells the program's libdormouse that this is a restored program, and whose.
pub fn tell(p: &Puppet, image: &Image<'_>, o: &RestoreOptions<'_>) -> Step<()> {
    use std::os::unix::ffi::OsStrExt;
    let Some(block) = sys::api::Block::read(&p.mem, image.process.pid) else { return Ok(()) };
    let (name, folder) = o.session.as_ref().map_or(("", &[][..]), |s| (&s.0, s.1.as_os_str().as_bytes()));
    Ok(block.restored(&p.mem, image.handle.n(), name, folder)?)
}

/// The kind of mapping that a run of pages lies in.
fn covered(image: &Image<'_>, addr: u64, pages: u64) -> Step<u32> {
    let vmas = &image.memory.vmas;
    let end = pages.checked_mul(PAGE).and_then(|n| addr.checked_add(n));
    let mut i = vmas.partition_point(|v| v.end <= addr);
    let kind = vmas.get(i).map_or(u32::MAX, |v| v.backing);
    let mut at = addr;
    // a run may go on over the border of adjacent mappings
    while let (Some(v), Some(end)) = (vmas.get(i), end) {
        if v.start > at {
            break;
        }
        if v.end >= end {
            return Ok(if mixed(&vmas[vmas.partition_point(|v| v.end <= addr)..=i]) {
                BACKING_FILE_PRIVATE
            } else {
                kind
            });
        }
        at = v.end;
        i += 1;
    }
    let advice = "run `ctl verify`; restore an earlier checkpoint";
    Err(Fault::Ours(crate::Error::new(
        crate::Kind::Damaged,
        "restore",
        "image",
        format!("its pages at {addr:#x} lie in no mapping"),
        advice,
    )))
}

fn mixed(vmas: &[Vma]) -> bool {
    vmas.iter().any(|v| v.backing == BACKING_FILE_PRIVATE)
}

fn zeros(p: &Puppet, addr: u64, pages: u64) -> Step<()> {
    let chunk = vec![0; (pages.min(256) * PAGE) as usize];
    let (mut at, end) = (addr, addr + pages * PAGE);
    while at < end {
        let n = chunk.len().min((end - at) as usize);
        p.mem.write(at, &chunk[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Cuts a run at the borders of frames.
fn cut(image: &Image<'_>, addr: u64, pages: u64, pack: u32, place: u64, out: &mut Vec<Piece>) -> Step<()> {
    let advice = "run `ctl verify`; restore an earlier checkpoint";
    let bad = |what: String| Fault::Ours(crate::Error::new(crate::Kind::Damaged, "restore", "image", what, advice));
    let reader = image
        .handle
        .packs()
        .get(pack as usize)
        .ok_or_else(|| bad(format!("it names page pack {pack}, which it does not list")))?;
    let (mut place, mut addr, mut left) = (place, addr, pages);
    while left > 0 {
        let Some(frame) = reader.frame_of(place) else {
            return Err(bad(format!("page {place} of pack {} does not exist", reader.id())));
        };
        let f = reader.frames()[frame];
        let inside = place - f.first;
        let n = (f.pages as u64 - inside).min(left);
        out.push(Piece { pack, frame, skip: (inside * PAGE) as usize, addr, len: (n * PAGE) as usize });
        place += n;
        addr += n * PAGE;
        left -= n;
    }
    Ok(())
}

/// The frames to be done, shared by all threads.
struct Job<'a> {
    p_mem: &'a sys::mem::RemoteMem,
    image: &'a Image<'a>,
    groups: &'a [&'a [Piece]],
    next: AtomicUsize,
    done: AtomicU64,
    failed: AtomicBool,
}

impl Job<'_> {
    fn work(&self, tell: &dyn Fn(u64)) -> Step<()> {
        let r = self.frames(tell);
        if r.is_err() {
            self.failed.store(true, Relaxed);
        }
        r
    }

    fn frames(&self, tell: &dyn Fn(u64)) -> Step<()> {
        let (mut buf, mut decoder) = (Vec::new(), ::image::Decoder::default());
        while let Some(group) = self.groups.get(self.next.fetch_add(1, Relaxed)) {
            if self.failed.load(Relaxed) {
                return Ok(());
            }
            let (reader, frame) = (&self.image.handle.packs()[group[0].pack as usize], group[0].frame);
            let bytes: u64 = group.iter().map(|c| c.len as u64).sum();
            let kept;
            let len = reader.frames()[frame].pages as usize * PAGE_SIZE;
            // relatives want the rest of it
            let pages = if bytes < len as u64 / 2 {
                kept = reader.cached_frame(frame)?;
                &kept[..]
            } else {
                buf.resize(len, 0);
                reader.decode_frame_with(&mut decoder, frame, &mut buf)?;
                &buf[..]
            };
            let pieces: Vec<_> = group.iter().map(|c| (c.addr, &pages[c.skip..c.skip + c.len])).collect();
            self.p_mem.write_pieces(&pieces)?;
            tell(self.done.fetch_add(bytes, Relaxed) + bytes);
        }
        Ok(())
    }
}
