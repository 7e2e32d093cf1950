//! Writing a pack: frames are compressed on worker threads and written in order by one more.
//!
//! A pack of one frame is written without any thread. Otherwise the caller fills frames, a few
//! workers compress them, the output thread hashes them in order, and the sink's own thread writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::frame::{Encoder, StoredFrame};
use super::sink::Sink;
use super::*;
use crate::error::{Doing, Result};
use crate::header::{self, Header, HEADER_LEN};
use crate::PAGE_SIZE;

/// A complete pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackInfo {
    /// Its ID: 32 lower-case hex digits, random.
    pub id: String,
    /// How many pages it holds.
    pub pages: u64,
    /// Length of its file in bytes.
    pub stored_bytes: u64,
    /// Its BLAKE3 hash, as in its footer.
    pub blake3: [u8; 32],
}

/// Writes a page pack. Dropped before [`PackWriter::finish`], it leaves an incomplete file,
/// which the folder of the new checkpoint takes with it.
#[derive(Debug)]
pub struct PackWriter {
    path: PathBuf,
    id: String,
    compression: Compression,
    pages: u64,
    /// Frames handed on.
    frames: u64,
    frame: Vec<u8>,
    stage: Stage,
}

/// A pack that is written, and on its way to the disk.
#[derive(Debug)]
#[must_use = "it is not on the disk before wait() has said so"]
pub struct PackSync {
    path: PathBuf,
    sink: Sink,
}

impl PackSync {
    /// Waits until all is on the disk. Error: `Io`, also of what was written before; the pack is then lost.
    pub fn wait(mut self) -> Result<()> {
        self.sink.wait().doing("write the page pack", &self.path)
    }
}

/// Who writes the frames.
#[derive(Debug)]
enum Stage {
    /// The caller: there has been no full frame yet.
    Inline(Box<Output>),
    /// The threads.
    Pipeline(Pipeline),
    /// Nobody: the output failed, and the error has been given to the caller.
    Failed,
}

impl PackWriter {
    /// Creates the pack's file at `path` (mode 0600), which must not exist.
    ///
    /// Error: `Io` if it cannot be created or written.
    pub fn create(path: &Path, compression: Compression) -> Result<PackWriter> {
        let id = crate::store::random_bytes()?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .doing("create the page pack", path)?;
        let mut output = Output::new(file);
        output.write(&header_block(&id, compression)).doing("write the page pack", path)?;
        Ok(PackWriter {
            path: path.into(),
            id: id_text(&id),
            compression,
            pages: 0,
            frames: 0,
            frame: Vec::new(),
            stage: Stage::Inline(Box::new(output)),
        })
    }

    /// The pack's ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Appends `pages` and returns the place of the first: its index among the pack's pages.
    ///
    /// Error: `Io` if the storage refuses, possibly for pages appended before. The pack is then
    /// lost.
    ///
    /// # Panics
    /// If the length of `pages` is not a multiple of the page size.
    pub fn append(&mut self, pages: &[u8]) -> Result<u64> {
        assert!(pages.len().is_multiple_of(PAGE_SIZE), "{} bytes are not whole pages", pages.len());
        let first = self.pages;
        let mut rest = pages;
        while !rest.is_empty() {
            let full = self.compression.len_of_frame(self.frames);
            let room = full - self.frame.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.frame.extend_from_slice(now);
            rest = later;
            if self.frame.len() == full {
                self.submit().doing("write the page pack", &self.path)?;
            }
        }
        self.pages += (pages.len() / PAGE_SIZE) as u64;
        Ok(first)
    }

    /// Writes what is left, the index and the footer, and waits until all is on the disk.
    pub fn finish(self) -> Result<PackInfo> {
        let (info, sync) = self.close()?;
        sync.wait()?;
        Ok(info)
    }

    /// The same, but does not wait: the pack counts only once it is on the disk.
    pub fn close(mut self) -> Result<(PackInfo, PackSync)> {
        let done = self.complete();
        let (output, blake3) = done.doing("write the page pack", &self.path)?;
        let info = PackInfo { id: self.id, pages: self.pages, stored_bytes: output.offset, blake3 };
        Ok((info, PackSync { path: self.path, sink: output.sink }))
    }

    fn complete(&mut self) -> io::Result<(Output, [u8; 32])> {
        let last = std::mem::take(&mut self.frame);
        let mut output = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Inline(mut output) if !last.is_empty() => {
                let (frame, _) = Encoder::default().encode(self.compression.of_frame(self.frames), last, Vec::new());
                output.write_frame(&frame)?;
                *output
            }
            Stage::Inline(output) => *output,
            Stage::Pipeline(mut pipeline) => {
                if !last.is_empty() {
                    pipeline.submit(last, self.compression.of_frame(self.frames));
                }
                pipeline.join()?
            }
            Stage::Failed => return Err(failed_before()),
        };
        let blake3 = output.finish(self.pages)?;
        Ok((output, blake3))
    }

    /// Hands the full frame on, starting the threads if it is the first.
    fn submit(&mut self) -> io::Result<()> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Inline(output) => Stage::Pipeline(Pipeline::start(*output, &self.path, self.compression)?),
            stage => stage,
        };
        let Stage::Pipeline(pipeline) = &mut self.stage else {
            return Err(failed_before());
        };
        let how = self.compression.of_frame(self.frames);
        self.frames += 1;
        let empty = pipeline.spare(self.compression.len_of_frame(self.frames));
        if pipeline.submit(std::mem::replace(&mut self.frame, empty), how) {
            return Ok(());
        }
        // The output thread has stopped: it knows why.
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Pipeline(mut pipeline) => pipeline.join().and(Err(failed_before())),
            _ => Err(failed_before()),
        }
    }
}

fn failed_before() -> io::Error {
    io::Error::other("writing it failed before")
}

/// The first page of a pack's file.
fn header_block(id: &[u8; 16], compression: Compression) -> Vec<u8> {
    let mut block = vec![0; PACK_HEADER_LEN];
    block[..HEADER_LEN].copy_from_slice(&Header::new(header::PACK).encode());
    block[OFFSET_ID..OFFSET_PACK_FLAGS].copy_from_slice(id);
    let flags = if compression == Compression::None { FLAG_MAPPABLE } else { 0 };
    block[OFFSET_PACK_FLAGS..OFFSET_PACK_FLAGS + 4].copy_from_slice(&flags.to_le_bytes());
    let crc = crc32c::crc32c(&block[..OFFSET_BLOCK_CRC]);
    block[OFFSET_BLOCK_CRC..].copy_from_slice(&crc.to_le_bytes());
    block
}

/// The file, its hash and its index as they grow.
#[derive(Debug)]
struct Output {
    sink: Sink,
    offset: u64,
    hasher: blake3::Hasher,
    index: Vec<u8>,
}

impl Output {
    fn new(file: File) -> Output {
        Output { sink: Sink::Cached(file), offset: 0, hasher: blake3::Hasher::new(), index: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write(bytes)?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn write_frame(&mut self, frame: &StoredFrame) -> io::Result<()> {
        self.index.extend_from_slice(&self.offset.to_le_bytes());
        self.index.extend_from_slice(&(frame.len as u32).to_le_bytes());
        self.index.extend_from_slice(&frame.pages.to_le_bytes());
        self.index.extend_from_slice(&frame.crc.to_le_bytes());
        self.index.extend_from_slice(&(frame.method as u32).to_le_bytes());
        self.write(frame.bytes())
    }

    /// Writes index and footer and has all written to the disk. Gives the file's hash.
    fn finish(&mut self, pages: u64) -> io::Result<[u8; 32]> {
        let index = std::mem::take(&mut self.index);
        let mut footer = [0; FOOTER_LEN];
        footer[..FOOTER_INDEX].copy_from_slice(&FOOTER_MAGIC);
        footer[FOOTER_INDEX..FOOTER_FRAMES].copy_from_slice(&self.offset.to_le_bytes());
        let frames = (index.len() / ENTRY_LEN) as u64;
        footer[FOOTER_FRAMES..FOOTER_PAGES].copy_from_slice(&frames.to_le_bytes());
        footer[FOOTER_PAGES..FOOTER_INDEX_CRC].copy_from_slice(&pages.to_le_bytes());
        let crc = crc32c::crc32c(&index).to_le_bytes();
        footer[FOOTER_INDEX_CRC..FOOTER_INDEX_CRC + 4].copy_from_slice(&crc);
        self.write(&index)?;
        self.hasher.update(&footer[..FOOTER_HASH]);
        let hash = *self.hasher.finalize().as_bytes();
        footer[FOOTER_HASH..FOOTER_HASH + 32].copy_from_slice(&hash);
        let crc = crc32c::crc32c(&footer[..FOOTER_CRC]).to_le_bytes();
        footer[FOOTER_CRC..].copy_from_slice(&crc);
        self.write(&footer)?;
        self.sink.close()?;
        Ok(hash)
    }
}

/// A frame on its way to a worker, how it is to be compressed, and where the worker puts the result.
type Job = (Vec<u8>, Compression, SyncSender<StoredFrame>);

/// Buffers to use again: a fresh megabyte costs its page faults.
type Spares = Arc<Mutex<Vec<Vec<u8>>>>;

/// The threads: workers that compress, one that puts the frames in order and hashes them. The sink has one more, which writes.
#[derive(Debug)]
struct Pipeline {
    jobs: Option<SyncSender<Job>>,
    /// The results to come, in the order of the frames.
    order: Option<SyncSender<Receiver<StoredFrame>>>,
    threads: Vec<JoinHandle<()>>,
    output: Option<JoinHandle<io::Result<Output>>>,
    spares: Spares,
}

/// Most frames between the caller and the file. Bounds the memory that a slow disk can cost.
const QUEUE: usize = 16;

impl Pipeline {
    fn start(mut output: Output, path: &Path, compression: Compression) -> io::Result<Pipeline> {
        let (jobs, job_queue) = mpsc::sync_channel::<Job>(QUEUE);
        let (order, in_order) = mpsc::sync_channel::<Receiver<StoredFrame>>(QUEUE);
        let job_queue = Arc::new(Mutex::new(job_queue));
        let spares = Spares::default();
        let mut pipeline = Pipeline {
            jobs: Some(jobs),
            order: Some(order),
            threads: Vec::new(),
            output: None,
            spares: spares.clone(),
        };
        let workers = match compression {
            Compression::None => 1,
            _ => thread::available_parallelism().map_or(1, |n| n.get().min(4)),
        };
        for _ in 0..workers {
            let (queue, spares) = (job_queue.clone(), spares.clone());
            let worker = thread::Builder::new().name("pack-compress".into());
            let run = move || work(&queue, &spares);
            pipeline.threads.push(worker.spawn(run)?);
        }
        output.sink.use_thread(path, output.offset)?;
        let writer = thread::Builder::new().name("pack-order".into());
        let run = move || write_in_order(output, &in_order, &spares);
        pipeline.output = Some(writer.spawn(run)?);
        Ok(pipeline)
    }

    /// An empty buffer for the next frame, of `len` bytes, and with the room that a compressor wants beyond them.
    fn spare(&self, len: usize) -> Vec<u8> {
        let mut buffer = take_spare(&self.spares);
        buffer.clear();
        buffer.reserve(len + len / 8);
        buffer
    }

    /// Queues a frame, waiting while the queue is full. False if the output has stopped.
    fn submit(&mut self, frame: Vec<u8>, how: Compression) -> bool {
        let (Some(jobs), Some(order)) = (&self.jobs, &self.order) else {
            return false;
        };
        let (result, to_come) = mpsc::sync_channel(1);
        order.send(to_come).is_ok() && jobs.send((frame, how, result)).is_ok()
    }

    /// Ends the threads once all is written, and gives the output back.
    fn join(&mut self) -> io::Result<Output> {
        self.jobs = None;
        self.order = None;
        let written = self.output.take().map(JoinHandle::join);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        match written {
            Some(Ok(output)) => output,
            _ => Err(io::Error::other("a thread of the pack writer panicked")),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // So that no thread writes on after the caller has given up and removed the file.
        drop(self.join());
    }
}

fn take_spare(spares: &Spares) -> Vec<u8> {
    spares.lock().ok().and_then(|mut spares| spares.pop()).unwrap_or_default()
}

fn give_spare(spares: &Spares, buffer: Vec<u8>) {
    if let Ok(mut spares) = spares.lock() {
        if spares.len() < QUEUE && buffer.capacity() >= SOON_LEN {
            spares.push(buffer);
        }
    }
}

/// A worker: compresses frames until there are no more.
fn work(queue: &Mutex<Receiver<Job>>, spares: &Spares) {
    let mut encoder = Encoder::default();
    loop {
        let job = queue.lock().ok().and_then(|queue| queue.recv().ok());
        let Some((pages, how, result)) = job else { return };
        let (frame, spare) = encoder.encode(how, pages, take_spare(spares));
        give_spare(spares, spare);
        // Nobody listens if the output failed; the caller learns that from the output.
        drop(result.send(frame));
    }
}

/// The output thread: writes the frames in order.
fn write_in_order(
    mut output: Output,
    in_order: &Receiver<Receiver<StoredFrame>>,
    spares: &Spares,
) -> io::Result<Output> {
    for to_come in in_order {
        let lost = |_| io::Error::other("a thread of the pack writer panicked");
        let frame = to_come.recv().map_err(lost)?;
        output.write_frame(&frame)?;
        give_spare(spares, frame.buffer);
    }
    Ok(output)
}
