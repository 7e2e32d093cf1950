//! Contents of files that have no name: read sparsely, by SEEK_DATA and SEEK_HOLE (lseek(2)).
use crate::capture::Fault;
use image::PageSink;
use nix::unistd::{lseek64, Whence};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

const CHUNK: u64 = 1 << 20;
const PAGE: u64 = image::PAGE_SIZE as u64;

/// Puts the file's data into the sink, at its offsets; the file's size.
///
/// The file shares its position with the target's: the position is put back.
pub(crate) fn read(file: &File, sink: &mut PageSink) -> Result<u64, Fault> {
    let size = file.metadata()?.size();
    // an open file description of its own, so that seeking does not move the target's
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let file = File::open(path)?;
    let mut at = 0;
    let mut buf = vec![0; CHUNK as usize];
    while at < size {
        let data = match lseek64(&file, at as i64, Whence::SeekData) {
            Ok(d) => d as u64,
            Err(nix::Error::ENXIO) => break,
            // a file system without holes
            Err(_) => at,
        };
        // asked from where the data begins: below that, in a block smaller than a page, may be a hole
        let end = lseek64(&file, data as i64, Whence::SeekHole).map_or(size, |e| e as u64).min(size);
        if end <= data {
            return Err(std::io::Error::other("a file without a name changes while it is read").into());
        }
        at = data / PAGE * PAGE;
        while at < end {
            let n = CHUNK.min(end.div_ceil(PAGE) * PAGE - at) as usize;
            let len = n.min((size - at) as usize);
            buf[..n].fill(0);
            file.read_exact_at(&mut buf[..len], at)?;
            sink.push(at, &buf[..n])?;
            at += n as u64;
        }
    }
    Ok(size)
}
