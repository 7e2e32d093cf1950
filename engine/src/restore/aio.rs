//! Contexts of asynchronous I/O (io_setup(2)): made anew and moved to the old address, which is the context's name; the kernel
//! follows the move (fs/aio.c, `aio_ring_mremap`). They come back empty.
use super::puppet::Puppet;
use super::{cannot, Image, Step};
use crate::Reason;
use ::image::v1::memory::{Vma, BACKING_AIO};
use sys::program::{Arg::Imm, Program};

const PAGE: u64 = ::image::PAGE_SIZE as u64;
/// `struct aio_ring`'s head, and each event.
const HEAD: u64 = 32;
const EVENT: u64 = 32;

/// Bytes of the ring of a context for `n` requests: the kernel doubles it, and gives each CPU some (`ioctx_alloc`).
fn ring(n: u64, cpus: u64) -> u64 {
    (HEAD + (n.max(cpus * 4) * 2 + 2) * EVENT).next_multiple_of(PAGE)
}

/// The most requests for which a context has a ring of so many bytes.
fn requests(bytes: u64) -> u64 {
    (bytes.saturating_sub(HEAD) / EVENT).saturating_sub(2) / 2
}

fn contexts<'a>(image: &'a Image<'_>) -> impl Iterator<Item = &'a Vma> {
    image.memory.vmas.iter().filter(|v| v.backing == BACKING_AIO)
}

fn describe(v: &Vma) -> String {
    format!("asynchronous I/O context {:x}", v.start)
}

/// Those whose ring would be larger here.
pub fn check(image: &Image<'_>) -> Vec<Reason> {
    if contexts(image).next().is_none() {
        return Vec::new();
    }
    let cpus = possible_cpus();
    let fits = |v: &Vma| ring(requests(v.end - v.start), cpus) == v.end - v.start;
    let reason = |v| {
        Reason::new(
            describe(v),
            format!("with {cpus} CPUs its ring is larger than its place"),
            "restore it on a machine with fewer CPUs",
        )
    };
    contexts(image).filter(|v| !fits(v)).map(reason).collect()
}

/// How many CPUs there could be: the number behind the last one in "0-3".
fn possible_cpus() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<u64>().ok());
    last.map_or(1, |n| n + 1)
}

/// Makes them, when everything else has its place: the kernel chooses where a ring is at first.
pub fn make(p: &mut Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Step<()> {
    for v in contexts(image) {
        let len = v.end - v.start;
        let mut prog = Program::new();
        let id = prog.out(8);
        prog.call(libc::SYS_io_setup, &[Imm(requests(len)), id.arg()]);
        prog.named("making its context of asynchronous I/O (see fs.aio-max-nr)");
        let at = p.run(&prog)?.u64(id, 0);
        let mut nr = [0; 4];
        sys::mem::RemoteMem::open(p.pid)?.read(at + 4, &mut nr)?;
        if (HEAD + u64::from(u32::from_le_bytes(nr)) * EVENT).next_multiple_of(PAGE) != len {
            return Err(cannot(
                describe(v),
                "its ring has another size here",
                "restore it on the machine that it comes from",
            ));
        }
        let mut prog = Program::new();
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        prog.call(libc::SYS_mremap, &[Imm(at), Imm(len), Imm(len), Imm(flags), Imm(v.start)]);
        prog.named("moving its context of asynchronous I/O");
        p.run(&prog)?;
        notes.push(format!("{}: requests that were in flight, if there were any, are lost", describe(v)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_each_size_is_made_again() {
        for (n, cpus) in [(1, 4), (4, 4), (62, 1), (63, 1), (128, 4), (1024, 64)] {
            let bytes = ring(n, cpus);
            assert!(requests(bytes) >= n);
            assert_eq!(ring(requests(bytes), cpus), bytes, "{n} requests, {cpus} CPUs");
        }
        assert_ne!(ring(requests(PAGE), 64), PAGE);
    }
}
