//! The block of a program that uses libdormouse ([`wire::api`]), seen from outside; and the signal that wakes its hook thread.
use crate::mem::RemoteMem;
use crate::{Error, Result};
use wire::api::{at, *};

/// A copy of a program's block.
#[derive(Clone)]
pub struct Block(Vec<u8>);

impl Block {
    /// The block of the process whose memory this is and whose PID, as it sees it, is `inner`. None if it has none, or one that is not to be
    /// believed: of another version, or its parent's.
    pub fn read(mem: &RemoteMem, inner: i32) -> Option<Block> {
        let mut b = vec![0; BLOCK_LEN as usize];
        if mem.read_some(BLOCK_AT, &mut b).ok()? != b.len() {
            return None;
        }
        let block = Block(b);
        let ours = block.u64(at::MAGIC) == BLOCK_MAGIC
            && block.u32(at::VERSION) == API_VERSION
            && u64::from(block.u32(at::LEN)) == BLOCK_LEN;
        (ours && block.u32(at::PID) as i32 == inner).then_some(block)
    }

    fn u32(&self, at: usize) -> u32 {
        self.0[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.0[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
    }

    fn pairs(&self, at: usize, n: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..n).map(move |i| (self.u64(at + i * 16), self.u64(at + i * 16 + 8))).filter(|p| p.0 != 0)
    }

    /// TID of the hook thread, as the program sees it.
    pub fn helper(&self) -> Option<i32> {
        Some(self.u32(at::HELPER) as i32).filter(|t| *t > 0)
    }

    /// How many critical sections are entered.
    pub fn disabled(&self) -> u32 {
        self.u32(at::DISABLED)
    }

    /// How long one hook may take, milliseconds.
    pub fn hook_timeout(&self) -> u32 {
        self.u32(at::HOOK_TIMEOUT)
    }

    /// Whether a descriptor with this inode is a connection of the library's own.
    pub fn is_connection(&self, fd: i32, inode: u64) -> bool {
        self.pairs(at::CONNS, CONNECTIONS).any(|c| c == (inode, fd as u64))
    }

    /// Memory not worth keeping: begin and end. Only whole pages, and only what makes sense.
    pub fn regions(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<_> =
            self.pairs(at::REGIONS, REGIONS).filter(|r| r.0 < r.1 && (r.0 | r.1) % 4096 == 0).collect();
        all.sort_unstable();
        all
    }

    /// Asks whoever leaves the last critical section to connect to the address of this key.
    pub fn wait_for_enable(mem: &RemoteMem, key: u64) -> Result<()> {
        mem.write(BLOCK_AT + at::WAITER as u64, &key.to_le_bytes())
    }

    /// Tells a restored program, before it runs, that it is one: from which checkpoint, and whose session it is now.
    pub fn restored(&self, mem: &RemoteMem, from: u64, name: &str, folder: &[u8]) -> Result<()> {
        let generation = self.u64(at::GENERATION) + 1;
        mem.write(BLOCK_AT + at::GENERATION as u64, &generation.to_le_bytes())?;
        mem.write(BLOCK_AT + at::FROM as u64, &from.to_le_bytes())?;
        mem.write(BLOCK_AT + at::WAITER as u64, &[0; 8])?;
        mem.write(BLOCK_AT + at::NAME as u64, &padded::<NAME_LEN>(name.as_bytes()))?;
        mem.write(BLOCK_AT + at::FOLDER as u64, &padded::<FOLDER_LEN>(folder))
    }

    /// Tells a program that is restored with new numbers its PID and the TID of its hook thread.
    pub fn renumber(&self, mem: &RemoteMem, pid: i32, new: impl Fn(i32) -> i32) -> Result<()> {
        mem.write(BLOCK_AT + at::PID as u64, &pid.to_le_bytes())?;
        match self.helper() {
            Some(tid) => mem.write(BLOCK_AT + at::HELPER as u64, &new(tid).to_le_bytes()),
            None => Ok(()),
        }
    }
}

// The places do not overlap.
const _: () = assert!(at::CONNS + CONNECTIONS * 16 <= at::NAME && at::NAME + NAME_LEN <= at::FOLDER);
const _: () = assert!(at::FOLDER + FOLDER_LEN <= at::REGIONS && at::REGIONS + REGIONS * 16 <= BLOCK_LEN as usize);

/// With its NUL and zeros; nothing if it is too long.
fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    if text.len() < N {
        out[..text.len()].copy_from_slice(text);
    }
    out
}

/// Queues the signal that wakes a hook thread, with a value, to that one thread. TGID and TID as seen from here.
pub fn wake(tgid: i32, tid: i32, value: u64) -> Result<()> {
    // siginfo_t: number, errno and code at 0, 4 and 8; sender's PID, UID and the value at 16, 20 and 24
    let mut info = [0u64; 16];
    info[0] = WAKE_SIGNAL as u64;
    info[1] = libc::SI_QUEUE as u32 as u64;
    info[3] = value;
    // SAFETY: the kernel reads the 128 bytes of a siginfo, which `info` has, and writes nothing.
    let r = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, tgid, tid, WAKE_SIGNAL, info.as_ptr()) };
    if r < 0 {
        return Err(Error::call("rt_tgsigqueueinfo to the hook thread", tgid, std::io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        let mut b = vec![0; BLOCK_LEN as usize];
        b[at::REGIONS..at::REGIONS + 8].copy_from_slice(&0x7000u64.to_le_bytes());
        b[at::REGIONS + 8..at::REGIONS + 16].copy_from_slice(&0x9000u64.to_le_bytes());
        b[at::REGIONS + 16..at::REGIONS + 24].copy_from_slice(&0x5001u64.to_le_bytes());
        b[at::REGIONS + 24..at::REGIONS + 32].copy_from_slice(&0x6000u64.to_le_bytes());
        b[at::CONNS..at::CONNS + 8].copy_from_slice(&77u64.to_le_bytes());
        b[at::CONNS + 8..at::CONNS + 16].copy_from_slice(&5u64.to_le_bytes());
        Block(b)
    }

    #[test]
    fn only_what_makes_sense_is_read() {
        assert_eq!(block().regions(), [(0x7000, 0x9000)]);
        assert!(block().is_connection(5, 77));
        assert!(!block().is_connection(5, 78) && !block().is_connection(6, 77) && !block().is_connection(0, 0));
        assert_eq!(block().helper(), None);
    }

    #[test]
    fn memory_without_a_block_has_none() {
        let mem = RemoteMem::open(std::process::id() as i32).unwrap();
        assert!(Block::read(&mem, std::process::id() as i32).is_none());
    }
}
