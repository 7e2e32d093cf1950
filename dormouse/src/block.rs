//! The block of [`wire::api`], this side of it: two pages at a fixed address, which a recorder looks at from outside. Everything in it is an
//! atomic, as others read it, and a restore changes some of it while every thread of ours stands still.
use crate::os;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::OnceLock;
use wire::api::*;

/// How long one hook may take, unless the program says otherwise: milliseconds.
pub(crate) const HOOK_TIMEOUT: u32 = 10_000;

/// A connection of ours, or a region, in the block.
#[repr(C)]
pub(crate) struct Pair(AtomicU64, AtomicU64);

/// As `wire::api::at` lays it out; a test compares the two.
#[repr(C)]
pub(crate) struct Block {
    magic: AtomicU64,
    version: AtomicU32,
    len: AtomicU32,
    pid: AtomicU32,
    pub(crate) helper: AtomicU32,
    generation: AtomicU64,
    from: AtomicU64,
    pub(crate) disabled: AtomicU32,
    pub(crate) hook_timeout: AtomicU32,
    pub(crate) waiter: AtomicU64,
    _unused: u64,
    conns: [Pair; CONNECTIONS],
    name: [AtomicU64; NAME_LEN / 8],
    folder: [AtomicU64; FOLDER_LEN / 8],
    _more: [AtomicU64; (at::REGIONS - at::FOLDER - FOLDER_LEN) / 8],
    regions: [Pair; REGIONS],
}

/// This process's block, made when it is first asked for. None where there cannot be one: something else is at its address.
pub(crate) fn block() -> Option<&'static Block> {
    static BLOCK: OnceLock<Option<&'static Block>> = OnceLock::new();
    let block = (*BLOCK.get_or_init(make))?;
    block.own();
    Some(block)
}

fn make() -> Option<&'static Block> {
    let (block, fresh) = os::block_memory()?;
    if fresh {
        block.version.store(API_VERSION, SeqCst);
        block.len.store(BLOCK_LEN as u32, SeqCst);
        block.pid.store(std::process::id(), SeqCst);
        block.hook_timeout.store(HOOK_TIMEOUT, SeqCst);
        block.magic.store(BLOCK_MAGIC, SeqCst);
    }
    // Another copy of this library may have made it.
    let same = block.magic.load(SeqCst) == BLOCK_MAGIC && block.version.load(SeqCst) == API_VERSION;
    same.then_some(block)
}

impl Block {
    /// In a forked child the block is the parent's until here: its connections, hooks and critical sections are not ours.
    fn own(&self) {
        let (me, was) = (std::process::id(), self.pid.load(SeqCst));
        if was == me {
            return;
        }
        self.helper.store(0, SeqCst);
        self.disabled.store(0, SeqCst);
        for c in &self.conns {
            c.0.store(0, SeqCst);
        }
        self.pid.store(me, SeqCst);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    pub(crate) fn from(&self) -> u64 {
        self.from.load(SeqCst)
    }

    /// The session's name, as a restore told it or as [`Block::set_session`] was told.
    pub(crate) fn name(&self) -> Vec<u8> {
        text(&self.name)
    }

    /// The session's folder, likewise.
    pub(crate) fn folder(&self) -> Vec<u8> {
        text(&self.folder)
    }

    pub(crate) fn set_session(&self, name: &[u8], folder: &[u8]) {
        put(&self.name, name);
        put(&self.folder, folder);
    }

    /// Notes a connection; false if all places are taken.
    pub(crate) fn add_conn(&self, fd: i32, inode: u64) -> bool {
        // The descriptor first: a place counts once its inode is there.
        self.conns.iter().any(|c| {
            let free = c.1.compare_exchange(0, fd as u64, SeqCst, SeqCst).is_ok();
            if free {
                c.0.store(inode, SeqCst);
            }
            free
        })
    }

    /// Forgets one that was closed: its number may be somebody else's by now, but not its inode.
    pub(crate) fn remove_conn(&self, inode: u64) {
        for c in self.conns.iter().filter(|c| c.0.load(SeqCst) == inode) {
            c.0.store(0, SeqCst);
            c.1.store(0, SeqCst);
        }
    }

    /// Notes memory not worth keeping; false if all places are taken.
    pub(crate) fn add_region(&self, begin: u64, end: u64) -> bool {
        if self.regions.iter().any(|r| (r.0.load(SeqCst), r.1.load(SeqCst)) == (begin, end)) {
            return true;
        }
        self.regions.iter().any(|r| {
            let free = r.1.compare_exchange(0, end, SeqCst, SeqCst).is_ok();
            if free {
                r.0.store(begin, SeqCst);
            }
            free
        })
    }

    /// Forgets one; false if it was not noted.
    pub(crate) fn remove_region(&self, begin: u64, end: u64) -> bool {
        let mut found = false;
        for r in self.regions.iter().filter(|r| (r.0.load(SeqCst), r.1.load(SeqCst)) == (begin, end)) {
            r.0.store(0, SeqCst);
            r.1.store(0, SeqCst);
            found = true;
        }
        found
    }
}

fn text(words: &[AtomicU64]) -> Vec<u8> {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.load(SeqCst).to_le_bytes()).collect();
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// Nothing if it does not fit with its NUL.
fn put(words: &[AtomicU64], text: &[u8]) {
    let text = if text.len() < words.len() * 8 { text } else { &[] };
    for (i, w) in words.iter().enumerate() {
        let mut b = [0; 8];
        let part = text.get(i * 8..).unwrap_or_default();
        let n = part.len().min(8);
        b[..n].copy_from_slice(&part[..n]);
        w.store(u64::from_le_bytes(b), SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_struct_is_as_the_contract_lays_it_out() {
        assert_eq!(size_of::<Block>(), BLOCK_LEN as usize);
        let places = [
            (offset_of!(Block, magic), at::MAGIC),
            (offset_of!(Block, version), at::VERSION),
            (offset_of!(Block, len), at::LEN),
            (offset_of!(Block, pid), at::PID),
            (offset_of!(Block, helper), at::HELPER),
            (offset_of!(Block, generation), at::GENERATION),
            (offset_of!(Block, from), at::FROM),
            (offset_of!(Block, disabled), at::DISABLED),
            (offset_of!(Block, hook_timeout), at::HOOK_TIMEOUT),
            (offset_of!(Block, waiter), at::WAITER),
            (offset_of!(Block, conns), at::CONNS),
            (offset_of!(Block, name), at::NAME),
            (offset_of!(Block, folder), at::FOLDER),
            (offset_of!(Block, regions), at::REGIONS),
        ];
        for (is, should) in places {
            assert_eq!(is, should);
        }
    }

    #[test]
    fn texts_are_kept_whole_or_not_at_all() {
        let words: [AtomicU64; 2] = Default::default();
        put(&words, b"fifteen letters");
        assert_eq!(text(&words), b"fifteen letters");
        put(&words, b"sixteen letters!");
        assert_eq!(text(&words), b"");
    }
}
