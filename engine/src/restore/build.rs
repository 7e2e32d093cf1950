//! Phase build: the program's process, as a child of ours that serves in the blob, with the init of its namespace, if it gets one; and all other processes,
//! in the order that family.rs says.
use super::nursery::{Nursery, Sock};
use super::pids::Rights;
use super::puppet::Puppet;
use super::waiting::Waiting;
use super::{cannot, vdso, Fault, Image, Phase, Step, Tree};
use crate::{Pids, RestoreOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use sys::channel::Channel;
use sys::inject::Layout;
use sys::nest;
use sys::procfs::maps::Vma;
use sys::program::{Arg::Imm, Program};
use sys::rlimit::Raised;
use sys::tracer::Tracer;

/// Descriptors above the image's that a restore uses at once: socket, standard streams, files in the making.
pub const SPARE_FDS: u64 = 64;
/// Where the search for free addresses begins: far from where kernels put programs, stacks and libraries.
const SEARCH_FROM: u64 = 0x1000_0000_0000;
/// Kept free below a growing stack (stack_guard_gap is 256 pages by default).
const STACK_GAP: u64 = 2 << 20;
pub(super) const PR_SET_PTRACER: u64 = 0x5961_6d61;

/// Our own limit of descriptors, raised if it must be.
fn raised(need: u64) -> Step<Raised> {
    let io = |e| Fault::Io("limit of open files".into(), e);
    let raised = Raised::for_descriptors(need).map_err(io)?;
    if raised.limit() < need {
        let why = format!("{need} descriptors are needed and {} are the hard limit", raised.limit());
        return Err(cannot("limit of open files", why, "raise it (ulimit -Hn, or LimitNOFILE of the service)"));
    }
    Ok(raised)
}

/// Makes the processes, with their memory: in the order of the tree's; and the init of their namespace, where that is needed yet. `enter` is told of each phase that begins.
pub fn build(
    tree: &Tree<'_>,
    o: &RestoreOptions<'_>,
    pids: Pids,
    notes: &mut Vec<String>,
    enter: &mut dyn FnMut(Phase) -> Step<()>,
) -> Step<(Vec<Puppet>, Option<Waiting>)> {
    // before anything of this restore is in our memory or descriptors
    let tracers = tracers(tree, pids)?;
    // above the images', and above ours: what the children keep is one range
    let own = sys::procfs::fd::numbers(std::process::id() as i32)?;
    let highest = tree.all.iter().map(Image::highest_fd).max().unwrap_or(-1);
    // one for each process, one for the cradle, and for helpers: one for each that stays, and one for all others; our own ends stay below
    let sockets = (tree.all.len() + 1 + super::family::staying(tree) + 1) as i32;
    let base = own.into_iter().max().unwrap_or(2).max(highest).max(63) + 1 + 2 * sockets;
    let contents = tree.all.first().map_or(0, |i| i.files.contents.len() as u64);
    let terminals = super::ptys::descriptors(tree);
    let places = crate::objects::uring_places(tree);
    let _raised = raised((base as u64 + sockets as u64 + SPARE_FDS + contents + terminals).max(places))?;
    let mut socks = Vec::new();
    for _ in 0..sockets {
        let (ours, theirs) = UnixStream::pair().map_err(|e| Fault::Io("socketpair".into(), e))?;
        let theirs = nest::dup_above(theirs.as_raw_fd(), base)?;
        socks.push(Sock { ours, number: theirs.as_raw_fd(), theirs: Some(theirs) });
    }
    let stdio = o.stdio.map(|fd| nest::dup_above(fd, base).ok());
    let ptys = super::ptys::make(tree, base, notes)?;
    let slots = tree.all.iter().map(|i| i.threads.len() as u64 - 1).max().unwrap_or(0);
    let layout = Layout::new(slots, 0);
    let staging = tree.all.iter().map(super::place::staging).max().unwrap_or(0);
    let common: u64 = tree.shares().values().sum();
    // a blob for each that is born to another's memory, and for a helper that is
    let together = tree.all.iter().filter(|i| i.shares_memory).count() as u64;
    let blobs = if together == 0 { 0 } else { together + 1 };
    let parts = [layout.len + vdso::PARK_LEN, staging, common, blobs * layout.len];
    let len: u64 = parts.iter().sum();
    let at = free(&occupied(tree)?, SEARCH_FROM, len)?;
    let layout = layout.at(at);
    let shares = Shares::map(at + parts[0] + parts[1], &tree.shares())?;
    let places = Places { layout, area: (at, at + len), shares, beside: at + len - parts[3] };
    let mut n = Nursery::new(tree, (o, pids), places, (socks, stdio, ptys), notes)?;
    match pids {
        Pids::Private => n.private()?,
        _ => n.direct()?,
    }
    enter(Phase::Place)?;
    super::family::grow(&mut n, o)?;
    n.puppets(tracers)
}

/// Tracers, one for each process. They are processes too, so that one may be given the number of another that is to be: then there is one more.
fn tracers(tree: &Tree<'_>, pids: Pids) -> Step<Vec<Tracer>> {
    let wanted = if pids == Pids::Keep { super::pids::numbers(tree) } else { BTreeSet::new() };
    let (mut all, mut in_the_way) = (Vec::with_capacity(tree.all.len()), Vec::new());
    for image in &tree.all {
        let tracer = loop {
            let tracer = Tracer::start_with(|| super::wake::states(image))?;
            if !wanted.contains(&tracer.pid()) {
                break tracer;
            }
            // until all have others: or the next one would get it again
            in_the_way.push(tracer);
        };
        all.push(tracer);
    }
    Ok(all)
}

/// Where what is ours lies in all processes.
pub struct Places {
    /// The blob, of all but those who have another's memory, and whom those bear.
    pub layout: Layout,
    /// All of it: addresses of the first byte, and of that after the last.
    pub area: (u64, u64),
    /// Memory that several share.
    pub shares: Shares,
    /// Blobs of those who have another's memory, one behind the other.
    pub beside: u64,
}

/// Memory that several processes share, mapped here so that all are born with it; unmapped here when dropped.
pub struct Shares(Vec<(u64, u64, nest::Shared)>);

impl Shares {
    /// One behind the other from `at` on: number, and bytes.
    fn map(mut at: u64, all: &BTreeMap<u64, u64>) -> Step<Shares> {
        let mut mapped = Vec::new();
        for (share, len) in all {
            mapped.push((*share, at, nest::Shared::map(at, *len)?));
            at += len;
        }
        Ok(Shares(mapped))
    }

    /// By number, where each lies.
    pub fn places(&self) -> BTreeMap<u64, (u64, u64)> {
        self.0.iter().map(|(share, at, s)| (*share, (*at, s.len()))).collect()
    }
}

pub(super) fn pid_taken(e: sys::Error, want: i32) -> Fault {
    match e.errno() {
        Some(libc::EEXIST) => cannot(format!("PID {want}"), "it was taken meanwhile", "use --pids private"),
        Some(libc::EPERM) => {
            cannot(format!("PID {want}"), "choosing a PID is not permitted here", "use --pids private")
        }
        _ => e.into(),
    }
}

pub(super) fn namespaces_refused(e: sys::Error) -> Fault {
    match e.errno() {
        Some(libc::EPERM | libc::ENOSPC | libc::EACCES) => {
            let why = format!("this machine does not permit it ({e})");
            cannot(
                "private PID namespace",
                why,
                "`ctl doctor` says what forbids it; or restore as root with --pids keep",
            )
        }
        _ => e.into(),
    }
}

/// First and last of these descriptors; nobody's are between them.
pub(super) fn range(kept: &[i32]) -> (i32, i32) {
    (kept.iter().copied().min().unwrap_or(0), kept.iter().copied().max().unwrap_or(0))
}

/// Maps our own user and group, and no other, into the user namespace of `pid`.
pub(super) fn map_users(pid: i32, r: &Rights) -> Step<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).map_err(|e| Fault::Io(format!("writing {path}"), e))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{0} {0} 1", r.uid))?;
    write("gid_map", format!("{0} {0} 1", r.gid))
}

/// A /proc of its own, and a name for ps.
pub(super) fn set_up_init(channel: &mut Channel) -> Step<()> {
    let mut p = Program::new();
    let (none, root, proc_path) = (p.cstr(b"none"), p.cstr(b"/"), p.cstr(b"/proc"));
    let (fstype, name) = (p.cstr(b"proc"), p.cstr(b"dormouse-init"));
    let slave = libc::MS_REC | libc::MS_SLAVE;
    p.call(libc::SYS_mount, &[none, root, Imm(0), Imm(slave), Imm(0)]);
    p.named("making the mounts a private copy");
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let mount = p.may(libc::SYS_mount, &[fstype, proc_path, fstype, Imm(flags), Imm(0)]);
    p.call(libc::SYS_prctl, &[Imm(libc::PR_SET_NAME as u64), name]);
    // SIGCHLD at its default, or no child could be waited for
    let act = p.bytes(&[0; 32]);
    p.call(libc::SYS_rt_sigaction, &[Imm(libc::SIGCHLD as u64), act, Imm(0), Imm(8)]);
    let r = channel.run_all(&p)?;
    r.get(mount).map(drop).map_err(|e| {
        let why = format!(
            "it cannot be mounted in a PID namespace here ({e}); a container that masks parts of /proc forbids it"
        );
        cannot("/proc", why, "run the container with an unmasked /proc, or restore as root with --pids keep")
    })
}

/// Signals as a mask.
pub(super) fn set(signals: &[i32]) -> u64 {
    signals.iter().filter(|s| (1..=64).contains(*s)).fold(0, |all, s| all | 1 << (s - 1))
}

/// Init lets go of everything but the blob, and waits for the program.
pub(super) fn retire_init(channel: &mut Channel, kept: &[i32], l: &Layout, reap: wire::Reap) -> Step<()> {
    let mut p = Program::new();
    for fd in kept {
        p.call(libc::SYS_close, &[(*fd).into()]);
    }
    let root = p.cstr(b"/");
    p.call(libc::SYS_chdir, &[root]);
    if let Some((area, size, sig)) = nest::own_rseq() {
        p.may(libc::SYS_rseq, &[Imm(area), Imm(size as u64), Imm(1), Imm(sig as u64)]);
    }
    super::place::unmap_all_but(&mut p, &[(l.base, l.base + l.len)]);
    channel.run_all(&p)?;
    let mut q = reap.child.to_le_bytes().to_vec();
    q.extend_from_slice(&reap.status_fd.to_le_bytes());
    q.extend_from_slice(&reap.signals.to_le_bytes());
    Ok(channel.send(wire::OP_REAP, &q)?)
}

/// What is in use here or in any process of the image, ascending.
fn occupied(tree: &Tree<'_>) -> Step<Vec<(u64, u64)>> {
    let own: Vec<Vma> = sys::procfs::maps::read(std::process::id() as i32)?;
    let mut used: Vec<(u64, u64)> = own.iter().map(|v| (v.start, v.end)).collect();
    used.extend(tree.all.iter().flat_map(|i| &i.memory.vmas).map(taken));
    used.sort_unstable();
    Ok(used)
}

/// The range of a mapping, with what is kept free below a growing stack.
pub fn taken(v: &image::v1::memory::Vma) -> (u64, u64) {
    let gap = if super::place::has_flag(&v.flags, "gd") { STACK_GAP } else { 0 };
    (v.start.saturating_sub(gap), v.end)
}

/// The first free range of `len` bytes from `from` on; `used` is ascending.
pub fn free(used: &[(u64, u64)], from: u64, len: u64) -> Step<u64> {
    let mut at = from;
    for (start, end) in used {
        if *end <= at {
            continue;
        }
        if *start >= at + len {
            break;
        }
        at = *end;
    }
    if at + len > nest::task_size() {
        let why = format!("no {len} bytes are free in it for the restorer");
        return Err(cannot("address space", why, "restore it on another machine"));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_range_lies_in_a_gap_that_is_large_enough() {
        let s = SEARCH_FROM;
        assert_eq!(free(&[], s, 0x1000).unwrap(), s);
        assert_eq!(free(&[(0, s + 0x1000), (s + 0x2000, s + 0x3000)], s, 0x1000).unwrap(), s + 0x1000);
        assert_eq!(free(&[(0, s + 0x1000), (s + 0x2000, s + 0x3000)], s, 0x2000).unwrap(), s + 0x3000);
        assert!(free(&[(0, nest::task_size() - 0x1000)], s, 0x2000).is_err());
    }
}
