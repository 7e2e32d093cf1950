//! Where a pack's bytes go: through the page cache, or past it.
//!
//! A small pack is written through the page cache. A large one is written past it (`O_DIRECT`, open(2)) in blocks by a
//! thread of its own: one copy less, no memory of the machine filled with what nobody reads soon, and no burst of writeback in
//! kernel threads, which the running target would have to share the CPUs with. Where the file system refuses that, the same
//! thread writes through the cache and syncs as it goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};

/// What places, lengths and memory of direct I/O are multiples of: no file system that we know asks for more (statx(2), STATX_DIOALIGN).
const ALIGN: usize = 4096;
/// Bytes in a block.
const BLOCK: usize = 4 << 20;
/// Bytes in each of the first blocks, and how many those are: so that a pack of some MiB is being written before it is complete.
const EARLY: usize = 256 << 10;
const EARLY_BLOCKS: usize = 32;
/// Bytes of those after which the disk is asked to have them for good while more are being made: the last wait is the shorter.
const EARLY_SYNC: usize = 512 << 10;
/// Blocks on their way. Bounds the memory that a slow disk can cost.
const BLOCKS: usize = 4;
/// Bytes written through the page cache before writeback is asked for.
const SYNC_EVERY: usize = 16 << 20;

/// Takes a file's bytes in their order.
#[derive(Debug)]
pub(super) enum Sink {
    /// Written at once.
    Cached(File),
    /// Collected in blocks that a thread writes.
    Threaded(Threaded),
}

impl Sink {
    /// Appends `bytes`. An error may be about bytes appended before.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Cached(file) => file.write_all(bytes),
            Sink::Threaded(threaded) => threaded.write(bytes),
        }
    }

    /// From now on a thread writes what is appended, past the page cache if it can: `path` is the file's, `offset` what it holds.
    pub fn use_thread(&mut self, path: &Path, offset: u64) -> io::Result<()> {
        if let Sink::Cached(file) = self {
            *self = Sink::Threaded(Threaded::start(file.try_clone()?, path, offset)?);
        }
        Ok(())
    }

    /// There is no more: what is left is being written.
    pub fn close(&mut self) -> io::Result<()> {
        match self {
            Sink::Cached(_) => Ok(()),
            Sink::Threaded(threaded) => threaded.close(),
        }
    }

    /// Waits until all is on the disk. Only after [`Sink::close`].
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Sink::Cached(file) => file.sync_all(),
            Sink::Threaded(threaded) => threaded.join(),
        }
    }
}

/// A buffer whose bytes begin at an aligned address.
#[derive(Debug)]
struct Block {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Block {
    fn new() -> Block {
        let memory = vec![0; BLOCK + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Block { memory, start, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Takes as much of `bytes` as there is room for below `limit`, and says how much.
    fn take(&mut self, bytes: &[u8], limit: usize) -> usize {
        let n = bytes.len().min(limit - self.len);
        let at = self.start + self.len;
        self.memory[at..at + n].copy_from_slice(&bytes[..n]);
        self.len += n;
        n
    }
}

/// The block that is being filled, and the thread that writes the full ones.
#[derive(Debug)]
pub(super) struct Threaded {
    block: Block,
    submitted: usize,
    full: Option<SyncSender<Block>>,
    empty: Receiver<Block>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Threaded {
    fn start(file: File, path: &Path, offset: u64) -> io::Result<Threaded> {
        // Refused (EINVAL) where the file system cannot.
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok();
        let direct = direct.filter(|_| offset.is_multiple_of(ALIGN as u64));
        let (full, blocks) = mpsc::sync_channel(BLOCKS);
        let (spare, empty) = mpsc::sync_channel(BLOCKS + 1);
        for _ in 0..BLOCKS {
            drop(spare.send(Block::new()));
        }
        let writer = Writer { file, direct, offset, unsynced: 0, early: 0 };
        let thread = thread::Builder::new().name("pack-write".into()).spawn(move || writer.run(&blocks, &spare))?;
        Ok(Threaded { block: Block::new(), submitted: 0, full: Some(full), empty, thread: Some(thread) })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let limit = if self.submitted < EARLY_BLOCKS { EARLY } else { BLOCK };
            let n = self.block.take(bytes, limit);
            bytes = &bytes[n..];
            if self.block.len == limit {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Hands the block on and takes an empty one, waiting for it.
    fn submit(&mut self) -> io::Result<()> {
        let Ok(mut empty) = self.empty.recv() else { return self.stopped() };
        empty.len = 0;
        self.submitted += 1;
        let block = std::mem::replace(&mut self.block, empty);
        match self.full.as_ref().map(|full| full.send(block)) {
            Some(Ok(())) => Ok(()),
            _ => self.stopped(),
        }
    }

    /// The thread has ended before its time: it knows why.
    fn stopped(&mut self) -> io::Result<()> {
        self.join().and(Err(io::Error::other("writing it failed before")))
    }

    fn join(&mut self) -> io::Result<()> {
        self.full = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("a thread of the pack writer panicked")),
            None => Err(io::Error::other("writing it failed before")),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        if self.block.len > 0 {
            self.submit()?;
        }
        self.full = None;
        Ok(())
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        // So that no thread writes on after the caller has given up and removed the file.
        drop(self.join());
    }
}

/// What the thread has: the file through the page cache and, while that works, past it.
struct Writer {
    file: File,
    direct: Option<File>,
    offset: u64,
    unsynced: usize,
    /// Of the first blocks, what the disk may have in its cache only.
    early: usize,
}

impl Writer {
    fn run(mut self, blocks: &Receiver<Block>, spare: &SyncSender<Block>) -> io::Result<()> {
        let mut next = blocks.recv().ok();
        while let Some(block) = next.take() {
            let bytes = block.bytes();
            let aligned = self.past_the_cache(&bytes[..bytes.len() / ALIGN * ALIGN])?;
            self.through_the_cache(&bytes[aligned..], self.offset + aligned as u64)?;
            self.offset += bytes.len() as u64;
            self.early += bytes.len();
            // Nobody takes it if the pack was given up.
            drop(spare.send(block));
            next = match blocks.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.sync_early()?;
                    blocks.recv().ok()
                }
                there => there.ok(),
            };
        }
        self.file.sync_all()
    }

    /// Nothing is to be written at the moment.
    fn sync_early(&mut self) -> io::Result<()> {
        if self.early < EARLY_SYNC || self.offset > (EARLY_BLOCKS * EARLY) as u64 {
            return Ok(());
        }
        self.early = 0;
        self.file.sync_data()
    }

    /// How much was written: all or, where the file system does not take it, nothing.
    fn past_the_cache(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(direct) = &self.direct else { return Ok(0) };
        match direct.write_all_at(bytes, self.offset) {
            Ok(()) => Ok(bytes.len()),
            // Only now does it say that it wants another alignment, or none of it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                self.direct = None;
                Ok(0)
            }
            Err(e) => Err(e),
        }
    }

    fn through_the_cache(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of which no two blocks are equal, early ones neither.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 + i / EARLY * 31) as u8).collect()
    }

    fn written(parts: &[usize], spoil: impl Fn(&mut Sink)) -> (Vec<u8>, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let file = OpenOptions::new().write(true).create_new(true).open(&path).expect("a file");
        let mut sink = Sink::Cached(file);
        let all = bytes(ALIGN + parts.iter().sum::<usize>());
        sink.write(&all[..ALIGN]).expect("the head");
        sink.use_thread(&path, ALIGN as u64).expect("a thread");
        spoil(&mut sink);
        let mut at = ALIGN;
        for n in parts {
            sink.write(&all[at..at + n]).expect("a part");
            at += n;
        }
        sink.close().and_then(|()| sink.wait()).expect("the end");
        (std::fs::read(&path).expect("the file"), all)
    }

    #[test]
    fn what_is_appended_is_in_the_file_whatever_the_lengths() {
        for parts in
            [&[][..], &[1], &[4095, 1], &[BLOCK], &[BLOCK + 1], &[100, 3 * BLOCK, 5 * BLOCK + 77, 3], &[BLOCK * 9]]
        {
            let (file, all) = written(parts, |_| ());
            assert!(file == all, "{parts:?}");
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut sink = Sink::Cached(full);
        sink.use_thread(Path::new("/dev/full"), 0).expect("a thread");
        let error = sink
            .write(&bytes(BLOCK * 20))
            .and_then(|()| sink.close())
            .and_then(|()| sink.wait())
            .expect_err("it cannot hold that");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert!(sink.write(&bytes(BLOCK * 2)).is_err(), "and it stays so");
    }

    #[test]
    fn a_file_system_without_direct_io_is_written_through_the_cache() {
        let refuses = |sink: &mut Sink| {
            // memory at no aligned address: refused with EINVAL
            let Sink::Threaded(threaded) = sink else { panic!("no thread") };
            threaded.block.start = 0;
        };
        let (file, all) = written(&[3 * BLOCK + 5], refuses);
        assert!(file == all);
    }
}
