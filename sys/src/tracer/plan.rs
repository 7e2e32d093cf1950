//! What has to be known before a target is stopped: code of its own to make system calls with, and where its main stack is.
use crate::mem::RemoteMem;
use crate::procfs::maps::{Vma, VmaKind};
use crate::{procfs, Error, Result};

/// Whether all threads are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Visit {
    /// Only the serving thread goes in.
    None,
    /// Every thread runs the visit's calls inside.
    All,
}

/// How to get in.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct EntryPlan {
    /// Address of `syscall; ret` in the target.
    pub syscall_ret: u64,
    /// Address of the target's own `rt_sigreturn` stub.
    pub sigreturn: u64,
    /// Start and end of the main stack.
    pub stack: Option<(u64, u64)>,
    /// `sockaddr_un` to connect to.
    #[serde(with = "serde_bytes")]
    pub addr: Vec<u8>,
    /// Which threads go in.
    pub visit: Visit,
    /// Calls that each visited thread makes ([`crate::program::Program::encode_calls`]); places in the buffer are
    /// relative to the thread's own.
    #[serde(with = "serde_bytes")]
    pub visit_calls: Vec<u8>,
    /// Mappings that an earlier attach left behind (start, bytes): they go first.
    pub stale: Vec<(u64, u64)>,
    /// How many processes with the same memory (CLONE_VM) have been entered before it: each has places of its own. See [`EntryPlan::after`].
    pub nth: u64,
}

impl EntryPlan {
    /// The way in beside the blobs of `nth` processes that have the same memory. What is left of an earlier attach the first of them has taken away, and what lies there
    /// now is theirs.
    pub fn after(self, nth: u64) -> EntryPlan {
        let stale = if nth == 0 { self.stale } else { Vec::new() };
        EntryPlan { stale, nth, ..self }
    }
}

const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// mov rax, 15; syscall
const SIGRETURN_64: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
/// mov eax, 15; syscall
const SIGRETURN_32: &[u8] = &[0xb8, 15, 0, 0, 0, 0x0f, 0x05];

/// Looks for the way in. Reads only.
pub fn prepare(pid: i32, addr: &[u8], visit: Visit, visit_calls: Vec<u8>) -> Result<EntryPlan> {
    let maps = procfs::maps::read(pid).map_err(|e| Error::Unfit { what: e.to_string() })?;
    let mem = RemoteMem::open(pid)?;
    let (mut ret, mut sigreturn) = (None, None);
    let mut code: Vec<&Vma> =
        maps.iter().filter(|v| v.perms.exec && v.perms.read && v.kind() != VmaKind::Vsyscall).collect();
    // the C library most likely has both, then the program itself
    code.sort_by_key(|v| {
        !(v.path.windows(6).any(|w| w == b"/libc.") || v.path.windows(8).any(|w| w == b"/libc.so" || w == b"/ld-musl"))
    });
    for v in code {
        let mut text = vec![0; v.len().min(64 << 20) as usize];
        let Ok(n) = mem.read_some(v.start, &mut text) else { continue };
        let text = &text[..n];
        ret = ret.or_else(|| find(text, SYSCALL_RET).map(|i| v.start + i));
        sigreturn =
            sigreturn.or_else(|| find(text, SIGRETURN_64).or_else(|| find(text, SIGRETURN_32)).map(|i| v.start + i));
        if ret.is_some() && sigreturn.is_some() {
            break;
        }
    }
    let missing =
        |what: &str| Error::Unfit { what: format!("no code of its own has {what}, which is what a way in is made of") };
    Ok(EntryPlan {
        syscall_ret: ret.ok_or_else(|| missing("`syscall; ret`"))?,
        sigreturn: sigreturn.ok_or_else(|| missing("an rt_sigreturn stub"))?,
        stack: maps.iter().find(|v| v.kind() == VmaKind::Stack).map(|v| (v.start, v.end)),
        addr: addr.to_vec(),
        visit,
        visit_calls,
        stale: stale(&maps),
        nth: 0,
    })
}

/// What an emergency exit of an earlier attach left: private anonymous mappings at our own places. An agent's region, which begins with no code, is in
/// use as long as it is there.
fn stale(maps: &[Vma]) -> Vec<(u64, u64)> {
    if maps.iter().any(|v| v.start == crate::inject::HOME && !v.perms.exec) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for home in crate::inject::homes() {
        let mut next = home;
        for v in &maps[maps.partition_point(|v| v.start < home)..] {
            if v.start != next || v.has_file() || v.perms.shared {
                break;
            }
            found.push((v.start, v.len()));
            next = v.end;
        }
    }
    found
}

fn find(text: &[u8], what: &[u8]) -> Option<u64> {
    memchr::memmem::find(text, what).map(|at| at as u64)
}
