//! Phase build: the process, as a child of ours that serves in the blob; with the init of its namespace, if it gets one.
use super::fresh::Ids;
use super::pids::Rights;
use super::puppet::{end, reap, Puppet};
use super::{cannot, vdso, Fault, Image, Step};
use crate::{Pids, RestoreOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use sys::channel::Channel;
use sys::inject::Layout;
use sys::mem::RemoteMem;
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
const PR_SET_PTRACER: u64 = 0x5961_6d61;

/// Descriptors for the child, made in this process above all of the image's; closed here when dropped.
struct ForChild {
    /// Number of its socket.
    number: i32,
    /// Our copy of it, until the child has its own: while we hold it, the child's death would not end the conversation.
    sock: Option<OwnedFd>,
    stdio: [Option<OwnedFd>; 3],
}

impl ForChild {
    fn stdio(&self) -> [Option<i32>; 3] {
        [0, 1, 2].map(|i| self.stdio[i].as_ref().map(AsRawFd::as_raw_fd))
    }

    fn kept(&self) -> Vec<i32> {
        let mut k = vec![self.number];
        k.extend(self.stdio().into_iter().flatten());
        k
    }
}

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

/// Kills and reaps a child unless it was handed on.
struct Child(i32);

impl Child {
    fn keep(self) -> i32 {
        let pid = self.0;
        std::mem::forget(self);
        pid
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        end(self.0);
        reap(self.0);
    }
}

/// Makes the process.
pub fn build(image: &Image<'_>, o: &RestoreOptions<'_>, pids: Pids) -> Step<Puppet> {
    // before anything of this restore is in our memory or descriptors
    let tracer = Tracer::start_with(|| super::wake::states(image))?;
    // above the image's, and above ours: what the child keeps is one range
    let own = sys::procfs::fd::numbers(std::process::id() as i32)?;
    let base = own.into_iter().max().unwrap_or(2).max(image.highest_fd()).max(63) + 1;
    let _raised = raised(base as u64 + SPARE_FDS + image.files.contents.len() as u64)?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| Fault::Io("socketpair".into(), e))?;
    let sock = nest::dup_above(theirs.as_raw_fd(), base)?;
    let fds = ForChild {
        number: sock.as_raw_fd(),
        sock: Some(sock),
        stdio: o.stdio.map(|fd| nest::dup_above(fd, base).ok()),
    };
    drop(theirs);
    let slots = image.threads.len() as u64 - 1;
    let layout = Layout::new(slots, 0);
    let at = free(&occupied(image)?, SEARCH_FROM, layout.len + vdso::PARK_LEN + super::place::staging(image))?;
    let layout = layout.at(at);
    let made = Made { image, tracer, ours, fds, layout };
    match pids {
        Pids::Private => made.private(&o.triggers),
        _ => made.direct(pids),
    }
}

/// What both ways of making the process need.
struct Made<'a, 'b> {
    image: &'a Image<'b>,
    tracer: Tracer,
    ours: UnixStream,
    fds: ForChild,
    layout: Layout,
}

impl Made<'_, '_> {
    /// The program as our child, under its old PID or a new one.
    fn direct(mut self, pids: Pids) -> Step<Puppet> {
        let want = if pids == Pids::Fresh { 0 } else { self.image.process.pid };
        let child = nest::first_child(&self.layout, self.fds.number, range(&self.fds.kept()), want, 0);
        let child = Child(child.map_err(|e| pid_taken(e, want))?);
        self.fds.sock = None;
        let channel = Channel::new(self.ours.try_clone().map_err(|e| Fault::Io("socket".into(), e))?, child.0);
        let pid = child.0;
        self.puppet(channel, child, pid, pids, false, None)
    }

    /// The program as child of an init in a PID namespace of its own.
    fn private(mut self, signals: &[i32]) -> Step<Puppet> {
        let rights = Rights::own();
        let users = !rights.may_make_namespaces();
        let spaces = nest::NEW_PID | nest::NEW_MOUNTS | if users { nest::NEW_USER } else { 0 };
        let io = |what: &str| {
            let w = what.to_string();
            move |e: std::io::Error| Fault::Io(w, e)
        };
        let (init_ours, init_theirs) = UnixStream::pair().map_err(io("socketpair"))?;
        let (status, status_theirs) = std::io::pipe().map_err(io("pipe"))?;
        let base = self.fds.number;
        let init_sock = nest::dup_above(init_theirs.as_raw_fd(), base)?;
        let status_fd = nest::dup_above(status_theirs.as_raw_fd(), base)?;
        drop((init_theirs, status_theirs));
        let mut kept = self.fds.kept();
        kept.extend([init_sock.as_raw_fd(), status_fd.as_raw_fd()]);
        let init = nest::first_child(&self.layout, init_sock.as_raw_fd(), range(&kept), 0, spaces);
        let init = Child(init.map_err(namespaces_refused)?);
        let (init_fd, status_nr) = (init_sock.as_raw_fd(), status_fd.as_raw_fd());
        drop((init_sock, status_fd));
        self.fds.sock = None;
        if users {
            map_users(init.0, &rights)?;
        }
        let mut channel = Channel::new(init_ours, init.0);
        set_up_init(&mut channel)?;
        let inner = spawn(&mut channel, self.image.process.pid, self.fds.number)?;
        let pid = only_child(init.0)?;
        retire_init(
            &mut channel,
            &self.fds,
            &self.layout,
            wire::Reap { child: inner, status_fd: status_nr, signals: set(signals) },
        )?;
        drop(channel);
        let mut channel = Channel::new(self.ours.try_clone().map_err(io("socket"))?, pid);
        let mut p = Program::new();
        p.may(libc::SYS_close, &[init_fd.into()]);
        p.may(libc::SYS_close, &[status_nr.into()]);
        channel.run_all(&p)?;
        self.puppet(channel, init, pid, Pids::Private, users, Some(status.into()))
    }

    fn puppet(
        self,
        mut channel: Channel,
        child: Child,
        pid: i32,
        pids: Pids,
        own_users: bool,
        status: Option<OwnedFd>,
    ) -> Step<Puppet> {
        let mut p = Program::new();
        if let Some((area, size, sig)) = nest::own_rseq() {
            p.may(libc::SYS_rseq, &[Imm(area), Imm(size as u64), Imm(1), Imm(sig as u64)]);
        }
        // where Yama only lets ancestors trace: our tracer is none
        p.may(libc::SYS_prctl, &[Imm(PR_SET_PTRACER), Imm(u64::MAX)]);
        channel.run_all(&p)?;
        let mem = RemoteMem::open(pid)?;
        sys::fault::target(pid);
        let mut ids = Ids::default();
        if pids == Pids::Fresh {
            ids.set(self.image.process.pid, pid);
        }
        let temp_base = self.fds.kept().into_iter().max().unwrap_or(0) + 3;
        Ok(Puppet {
            channel,
            pid,
            child: child.keep(),
            pids,
            own_users,
            layout: self.layout,
            park: self.layout.base + self.layout.len,
            fit: vdso::fits(&vdso::own()?, self.image).map_err(Fault::Cannot)?,
            vdso_at: 0,
            sock: self.fds.number,
            stdio: self.fds.stdio(),
            temp_base,
            status,
            mem,
            tracer: Some(self.tracer),
            tids: Vec::new(),
            ids,
            mapped: Default::default(),
            woken: false,
        })
    }
}

fn pid_taken(e: sys::Error, want: i32) -> Fault {
    match e.errno() {
        Some(libc::EEXIST) => cannot(format!("PID {want}"), "it was taken meanwhile", "use --pids private"),
        Some(libc::EPERM) => {
            cannot(format!("PID {want}"), "choosing a PID is not permitted here", "use --pids private")
        }
        _ => e.into(),
    }
}

fn namespaces_refused(e: sys::Error) -> Fault {
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
fn range(kept: &[i32]) -> (i32, i32) {
    (kept.iter().copied().min().unwrap_or(0), kept.iter().copied().max().unwrap_or(0))
}

/// Maps our own user and group, and no other, into the user namespace of `pid`.
fn map_users(pid: i32, r: &Rights) -> Step<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).map_err(|e| Fault::Io(format!("writing {path}"), e))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{0} {0} 1", r.uid))?;
    write("gid_map", format!("{0} {0} 1", r.gid))
}

/// A /proc of its own, and a name for ps.
fn set_up_init(channel: &mut Channel) -> Step<()> {
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

/// Lets init make the program's process; its PID there.
fn spawn(channel: &mut Channel, pid: i32, sock: i32) -> Step<i32> {
    let mut q = Vec::with_capacity(16);
    for v in [pid, sock, libc::SIGCHLD, 0] {
        q.extend_from_slice(&v.to_le_bytes());
    }
    let a = channel.ask(wire::OP_SPAWN, &q)?;
    let r = a.get(..8).and_then(|b| b.try_into().ok()).map_or(-1, i64::from_le_bytes);
    if r < 0 {
        let e = std::io::Error::from_raw_os_error(-r as i32);
        return Err(cannot(
            format!("PID {pid} in a private namespace"),
            format!("clone3: {e}"),
            "see /proc/sys/kernel/pid_max and the limit of processes",
        ));
    }
    Ok(r as i32)
}

/// PID, as seen from here, of the one child of init.
fn only_child(init: i32) -> Step<i32> {
    let c = sys::procfs::children(init)?;
    c.first().copied().ok_or_else(|| Fault::Sys(sys::Error::Died { doing: "its making".into(), pid: init }))
}

/// Signals as a mask.
fn set(signals: &[i32]) -> u64 {
    signals.iter().filter(|s| (1..=64).contains(*s)).fold(0, |all, s| all | 1 << (s - 1))
}

/// Init lets go of everything but the blob, and waits for the program.
fn retire_init(channel: &mut Channel, fds: &ForChild, l: &Layout, reap: wire::Reap) -> Step<()> {
    let mut p = Program::new();
    for fd in fds.kept() {
        p.call(libc::SYS_close, &[fd.into()]);
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

/// What is in use here or in the image, ascending.
fn occupied(image: &Image<'_>) -> Step<Vec<(u64, u64)>> {
    let own: Vec<Vma> = sys::procfs::maps::read(std::process::id() as i32)?;
    let mut used: Vec<(u64, u64)> = own.iter().map(|v| (v.start, v.end)).collect();
    used.extend(image.memory.vmas.iter().map(taken));
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
