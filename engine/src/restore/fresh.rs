//! New PIDs and TIDs (`--pids fresh`): what in an image names the program's own threads, and what becomes of it.
//!
//! [`Ids`] says what each number is now; whoever hands one to the kernel asks it. In the program's memory three things are set right, once its
//! threads are there ([`settle`]): the C library's copy of each thread's TID, the agent's page, libdormouse's block. What names a thread where nobody can know
//! of it is refused before anything starts ([`check`]), as far as it can be seen: locks that are held and say by whom.
use super::puppet::Puppet;
use super::{cannot, Image, Step, Tree};
use crate::Reason;
use ::image::v1::objects::{Kind, Named};
use ::image::v1::process::Thread;
use ::image::{PageSource, PAGE_SIZE};
use std::collections::HashMap;
use std::mem::offset_of;
use wire::agent::{AgentPage, AGENT_MAGIC, AGENT_PAGE};

/// What is to be done where new PIDs cannot be had.
const REMEDY: &str = "use --pids private, or as root --pids keep";
/// glibc's `struct pthread`, from the TLS base: itself (tcbhead_t), and its TID.
const GLIBC_SELF: u64 = 0x10;
const GLIBC_TID: u64 = 0x2d0;
/// musl's: the previous and the next in the list of threads, and its TID.
const MUSL_PREV: u64 = 0x10;
const MUSL_NEXT: u64 = 0x18;
const MUSL_TID: u64 = 0x30;
/// linux/futex.h
const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
const FUTEX_CMD_MASK: u64 = 0x7f;
const FUTEX_PI: [u64; 3] = [6, 11, 13];
/// The signal of glibc's thread for SIGEV_THREAD, by which it is known.
const SIGTIMER: i32 = 32;
const SIGEV_THREAD_ID: i32 = 4;
/// siginfo_t: si_code, and si_pid of signals that somebody sent.
const SI_CODE: usize = 8;
const SI_PID: usize = 16;
/// SI_USER, SI_QUEUE, SI_TKILL
const SENT: [i32; 3] = [0, -1, -6];

/// What the image's PIDs and TIDs are in the new process, as the program sees them.
#[derive(Clone, Debug, Default)]
pub struct Ids(HashMap<i32, i32>);

impl Ids {
    /// From now on `old` is `new`.
    pub fn set(&mut self, old: i32, new: i32) {
        self.0.insert(old, new);
    }

    /// What a number is now: the same, unless it is one of the program's that has changed.
    pub fn of(&self, old: i32) -> i32 {
        self.0.get(&old).copied().unwrap_or(old)
    }

    /// A pending signal: one that the program has sent to itself still has.
    pub fn siginfo(&self, info: &[u8]) -> Vec<u8> {
        let mut info = info.to_vec();
        let word = |info: &[u8], at: usize| info[at..at + 4].try_into().map_or(0, i32::from_le_bytes);
        if SENT.contains(&word(&info, SI_CODE)) {
            let sender = self.of(word(&info, SI_PID));
            info[SI_PID..SI_PID + 4].copy_from_slice(&sender.to_le_bytes());
        }
        info
    }
}

/// Memory of the program, wherever it is at the moment.
trait Memory {
    /// Bytes at an address; false if they are not there.
    fn read(&self, at: u64, out: &mut [u8]) -> bool;

    fn u32(&self, at: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.read(at, &mut b).then(|| u32::from_le_bytes(b))
    }

    fn u64(&self, at: u64) -> Option<u64> {
        let mut b = [0; 8];
        self.read(at, &mut b).then(|| u64::from_le_bytes(b))
    }
}

/// As it is stored. A page that is not stored holds nothing that a thread has written.
struct Stored<'a>(&'a Image<'a>);

impl Stored<'_> {
    fn page(&self, at: u64, out: &mut [u8; PAGE_SIZE]) -> bool {
        let (runs, size) = (&self.0.memory.pages, PAGE_SIZE as u64);
        let run = runs[..runs.partition_point(|r| r.addr <= at)].last().filter(|r| at < r.addr + r.pages * size);
        match run.map(|r| (r.source, (at - r.addr) / size)) {
            Some((PageSource::Zero, _)) => {
                out.fill(0);
                true
            }
            Some((PageSource::Pack { pack, place }, n)) => {
                self.0.handle.packs().get(pack as usize).is_some_and(|p| p.read_pages(place + n, out).is_ok())
            }
            None => false,
        }
    }
}

impl Memory for Stored<'_> {
    fn read(&self, at: u64, out: &mut [u8]) -> bool {
        let (mut done, mut page) = (0, [0; PAGE_SIZE]);
        while done < out.len() {
            let Some(here) = at.checked_add(done as u64) else { return false };
            let skip = here as usize % PAGE_SIZE;
            if !self.page(here - skip as u64, &mut page) {
                return false;
            }
            let n = (PAGE_SIZE - skip).min(out.len() - done);
            out[done..done + n].copy_from_slice(&page[skip..skip + n]);
            done += n;
        }
        true
    }
}

impl Memory for sys::mem::RemoteMem {
    fn read(&self, at: u64, out: &mut [u8]) -> bool {
        self.read_some(at, out).is_ok_and(|n| n == out.len())
    }
}

/// Where the C library keeps a thread's TID: glibc where the kernel is to clear it, so that its place is known there whatever the version; musl in a
/// struct that its list of threads tells from anything else. Empty: not known.
fn copies(m: &dyn Memory, t: &Thread) -> Vec<u64> {
    let base = t.regs.get(21).copied().unwrap_or(0);
    let is_tid = |at: u64| m.u32(at) == Some(t.tid as u32);
    let at = |offset: u64| base.checked_add(offset).and_then(|a| m.u64(a));
    let itself = base != 0 && at(0) == Some(base);
    let glibc = itself && at(GLIBC_SELF) == Some(base) && is_tid(base + GLIBC_TID);
    let linked = || {
        let (prev, next) = (at(MUSL_PREV)?, at(MUSL_NEXT)?);
        Some(m.u64(next.checked_add(MUSL_PREV)?)? == base && m.u64(prev.checked_add(MUSL_NEXT)?)? == base)
    };
    let musl = itself && linked() == Some(true) && is_tid(base + MUSL_TID);
    let mut all = Vec::new();
    all.extend((t.clear_child_tid != 0 && is_tid(t.clear_child_tid)).then_some(t.clear_child_tid));
    all.extend(glibc.then_some(base + GLIBC_TID).filter(|at| *at != t.clear_child_tid));
    all.extend(musl.then_some(base + MUSL_TID));
    all
}

/// Every reason why it cannot have new PIDs, and what may go wrong all the same.
pub fn check(tree: &Tree<'_>) -> Result<String, Vec<Reason>> {
    let image = match &tree.all[..] {
        [one] if tree.zombies.is_empty() => one,
        _ => {
            let why = "its processes know each other by their PIDs, and nobody can find where they have noted them";
            return Err(vec![Reason::new(format!("{} processes", tree.all.len() + tree.zombies.len()), why, REMEDY)]);
        }
    };
    let m = Stored(image);
    let mut all: Vec<Reason> = image.running().filter_map(|t| against(&m, image, t)).collect();
    for t in image.process.timers.iter().filter(|t| t.notify == SIGEV_THREAD_ID && t.signal == SIGTIMER) {
        let why = "it is one of glibc's with SIGEV_THREAD, and the TID of the thread behind those is kept where nobody can find it";
        all.push(Reason::new(format!("POSIX timer {}", t.id), why, REMEDY));
    }
    all.extend(named_by_number(image));
    if !all.is_empty() {
        return Err(all);
    }
    Ok("it gets new PIDs: what it has noted of its own PID and TIDs holds no more, nor do recursive and error-checking mutexes and write locks \
        that it held at the checkpoint"
        .into())
}

/// What one thread has that names threads by number.
fn against(m: &dyn Memory, image: &Image<'_>, t: &Thread) -> Option<Reason> {
    let r = |i: usize| t.regs.get(i).copied().unwrap_or(0);
    let (call, rdi, rsi) = (r(10) as i64, r(14), r(13));
    let waits_for_pi = || {
        let owner = m.u32(rdi).map_or(0, |w| (w & FUTEX_TID_MASK) as i32);
        call == libc::SYS_futex
            && FUTEX_PI.contains(&(rsi & FUTEX_CMD_MASK))
            && image.threads.iter().any(|t| t.tid == owner)
    };
    let is_timer = || call == libc::SYS_rt_sigtimedwait && m.u64(rdi) == Some(1 << (SIGTIMER - 1));
    let why = if copies(m, t).is_empty() {
        "where its C library keeps its TID is not known: it is neither glibc nor musl"
    } else if holds_robust(m, t) {
        "it holds a robust mutex, which names it by its TID"
    } else if waits_for_pi() {
        "it waits for a mutex with priority inheritance, which names its owner by the TID"
    } else if is_timer() {
        "it is glibc's for timers with SIGEV_THREAD, and its TID is kept where nobody can find it"
    } else {
        return None;
    };
    Some(Reason::new(format!("thread {} ({})", t.tid, t.comm.escape_ascii()), why, REMEDY))
}

/// Whether its robust list (set_robust_list(2)) has anything in it, or is about to.
fn holds_robust(m: &dyn Memory, t: &Thread) -> bool {
    let (head, len) = t.robust;
    if head == 0 || len < 24 {
        return false;
    }
    let next = m.u64(head).unwrap_or(0) & !1;
    let pending = head.checked_add(16).and_then(|at| m.u64(at)).unwrap_or(0);
    (next != 0 && next != head) || pending != 0
}

/// Files and directories below /proc/PID of its own.
fn named_by_number(image: &Image<'_>) -> Vec<Reason> {
    let own = format!("/proc/{}", image.process.pid);
    let below =
        |path: &[u8]| path.strip_prefix(own.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
    let (why, remedy) = ("it names the program by its PID", "let the program leave it before the checkpoint");
    let mut all = Vec::new();
    for (what, path) in [("working directory", &image.process.cwd), ("root directory", &image.process.root)] {
        if below(path) {
            all.push(Reason::new(format!("{what} {}", path.escape_ascii()), why, remedy));
        }
    }
    let named = [Kind::Regular, Kind::Directory, Kind::Path].map(|k| k as u32);
    for (i, f) in image.files.open.iter().enumerate().filter(|(_, f)| named.contains(&f.kind)) {
        let path = rmp_serde::from_slice::<Named>(&f.data).map(|n| n.path).unwrap_or_default();
        if below(&path) {
            all.push(Reason::new(super::files::describe(image, i as u32, f), why, remedy));
        }
    }
    all
}

/// Sets right what names its threads in its memory. All of them are there, and none has run.
pub fn settle(p: &Puppet, image: &Image<'_>) -> Step<()> {
    for t in image.running() {
        let all = copies(&p.mem, t);
        if all.is_empty() {
            let why = "its TID is not where it was in the image";
            return Err(cannot(format!("thread {}", t.tid), why, "run `ctl verify`; use --pids private"));
        }
        for at in all {
            p.mem.write(at, &p.ids.of(t.tid).to_le_bytes())?;
        }
    }
    agent(p, image)?;
    match sys::api::Block::read(&p.mem, image.process.pid) {
        Some(block) => Ok(block.renumber(&p.mem, p.ids.of(image.process.pid), |tid| p.ids.of(tid))?),
        None => Ok(()),
    }
}

/// The agent's page: whose threads it counts.
fn agent(p: &Puppet, image: &Image<'_>) -> Step<()> {
    let mut magic = [0; AGENT_MAGIC.len()];
    let pid = AGENT_PAGE + offset_of!(AgentPage, pid) as u64;
    if p.mem.read(AGENT_PAGE, &mut magic).is_ok()
        && magic == AGENT_MAGIC
        && p.mem.u32(pid) == Some(image.process.pid as u32)
    {
        p.mem.write(pid, &p.ids.of(image.process.pid).to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words by address.
    struct Words(HashMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, at: u64, out: &mut [u8]) -> bool {
            let Some(w) = self.0.get(&(at & !7)) else { return false };
            let skip = (at & 7) as usize;
            out.copy_from_slice(&w.to_le_bytes()[skip..skip + out.len()]);
            true
        }
    }

    const BASE: u64 = 0x7000_0000;
    const TID: i32 = 4711;

    fn thread(clear_child_tid: u64) -> Thread {
        let mut regs = vec![0; 27];
        regs[21] = BASE;
        Thread { tid: TID, regs, clear_child_tid, ..Thread::default() }
    }

    fn words(all: &[(u64, u64)]) -> Words {
        Words(all.iter().copied().collect())
    }

    #[test]
    fn a_copy_is_known_where_the_kernel_clears_it_and_by_the_librarys_struct() {
        let own = 0x1_0000_0000 | TID as u64;
        assert_eq!(copies(&words(&[(0x5000, own)]), &thread(0x5000)), [0x5000]);
        let glibc = words(&[(BASE, BASE), (BASE + GLIBC_SELF, BASE), (BASE + GLIBC_TID, own)]);
        assert_eq!(copies(&glibc, &thread(0)), [BASE + GLIBC_TID]);
        assert_eq!(copies(&glibc, &thread(BASE + GLIBC_TID)), [BASE + GLIBC_TID]);
        let other = 0x6000_0000;
        let mut musl = vec![(BASE, BASE), (BASE + MUSL_PREV, other), (BASE + MUSL_NEXT, other), (BASE + MUSL_TID, own)];
        musl.extend([(other + MUSL_PREV, BASE), (other + MUSL_NEXT, BASE), (0x5000, 0)]);
        assert_eq!(copies(&words(&musl), &thread(0x5000)), [BASE + MUSL_TID]);
        musl[4].1 = other;
        assert_eq!(copies(&words(&musl), &thread(0x5000)), [0; 0]);
        assert_eq!(copies(&words(&[]), &thread(0x5000)), [0; 0]);
    }

    #[test]
    fn a_robust_list_holds_something_if_it_does_not_lead_back_to_its_head() {
        let held = |next: u64, pending: u64| {
            let t = Thread { robust: (0x9000, 24), ..Thread::default() };
            holds_robust(&words(&[(0x9000, next), (0x9008, 0), (0x9010, pending)]), &t)
        };
        assert!(!held(0x9000, 0) && !held(0, 0) && !held(0x9001, 0));
        assert!(held(0x9100, 0) && held(0x9000, 0x9100));
        assert!(!holds_robust(&words(&[]), &Thread::default()));
    }

    #[test]
    fn who_has_sent_a_signal_to_itself_still_has() {
        let mut ids = Ids::default();
        ids.set(TID, 12);
        let info = |code: i32, pid: i32| {
            let mut info = vec![0; 128];
            info[SI_CODE..SI_CODE + 4].copy_from_slice(&code.to_le_bytes());
            info[SI_PID..SI_PID + 4].copy_from_slice(&pid.to_le_bytes());
            info
        };
        for code in SENT {
            assert_eq!(ids.siginfo(&info(code, TID)), info(code, 12));
            assert_eq!(ids.siginfo(&info(code, 99)), info(code, 99));
        }
        // SI_TIMER has its ID there
        assert_eq!(ids.siginfo(&info(-2, TID)), info(-2, TID));
    }
}
