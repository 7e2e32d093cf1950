//! `/proc/PID/status` (proc_pid_status(5), fs/proc/array.c `proc_pid_status`).

use std::cell::Cell;

use super::bytes::{dec, dec32, hex, int32, lines, oct, split_at_byte, trim, Words};
use super::{path_of, read_with, ParseError, Pid, Result, State};

const FILE: &str = "status";

/// The four ids of a `Uid:` or `Gid:` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved set.
    pub saved: u32,
    /// File system.
    pub fs: u32,
}

/// The `Vm*` lines, in KiB. A zombie or kernel thread has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of proc_pid_status(5)
pub struct VmSizes {
    pub peak: u64,
    pub size: u64,
    pub lck: u64,
    pub pin: u64,
    pub hwm: u64,
    pub rss: u64,
    pub rss_anon: u64,
    pub rss_file: u64,
    pub rss_shmem: u64,
    pub data: u64,
    pub stk: u64,
    pub exe: u64,
    pub lib: u64,
    pub pte: u64,
    pub swap: u64,
}

/// The file. Signal sets have signal N at bit N-1; capability sets have capability N at bit N.
/// `Option` is what an older kernel or a zombie may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Name, its escapes (`\n`, `\\`) undone.
    pub name: Vec<u8>,
    /// State
    pub state: State,
    /// Tgid
    pub tgid: Pid,
    /// Pid: the TID for a thread
    pub pid: Pid,
    /// PPid; 0 if the parent is outside the reader's PID namespace
    pub ppid: Pid,
    /// TracerPid; 0 if none
    pub tracer_pid: Pid,
    /// Uid
    pub uid: Ids,
    /// Gid
    pub gid: Ids,
    /// Groups
    pub groups: Vec<u32>,
    /// Umask
    pub umask: Option<u32>,
    /// FDSize: slots of the descriptor table
    pub fd_size: u64,
    /// NSpid: from the reader's namespace inwards
    pub ns_pid: Vec<Pid>,
    /// NStgid
    pub ns_tgid: Vec<Pid>,
    /// NSpgid
    pub ns_pgid: Vec<Pid>,
    /// NSsid
    pub ns_sid: Vec<Pid>,
    /// Kthread (6.8+)
    pub kthread: Option<bool>,
    /// Vm*
    pub vm: Option<VmSizes>,
    /// CoreDumping
    pub core_dumping: bool,
    /// THP_enabled
    pub thp_enabled: Option<bool>,
    /// untag_mask (LAM)
    pub untag_mask: Option<u64>,
    /// Threads; 0 for a task past exit
    pub threads: u32,
    /// SigQ: queued signals of the real user, and their limit
    pub sig_queue: Option<(u64, u64)>,
    /// SigPnd: pending for this thread
    pub sig_pending: u64,
    /// ShdPnd: pending for the process
    pub sig_shared_pending: u64,
    /// SigBlk
    pub sig_blocked: u64,
    /// SigIgn
    pub sig_ignored: u64,
    /// SigCgt
    pub sig_caught: u64,
    /// CapInh
    pub cap_inheritable: u64,
    /// CapPrm
    pub cap_permitted: u64,
    /// CapEff
    pub cap_effective: u64,
    /// CapBnd
    pub cap_bounding: u64,
    /// CapAmb
    pub cap_ambient: u64,
    /// NoNewPrivs
    pub no_new_privs: bool,
    /// Seccomp: 0 none, 1 strict, 2 filter; None if the kernel has no seccomp
    pub seccomp: Option<u32>,
    /// Seccomp_filters
    pub seccomp_filters: Option<u32>,
    /// Speculation_Store_Bypass, such as `thread vulnerable` (PR_SET_SPECULATION_CTRL)
    pub speculation_store_bypass: Vec<u8>,
    /// SpeculationIndirectBranch
    pub speculation_indirect_branch: Vec<u8>,
    /// x86_Thread_features, such as `shstk`
    pub x86_features: Vec<Vec<u8>>,
    /// x86_Thread_features_locked
    pub x86_features_locked: Vec<Vec<u8>>,
    /// Cpus_allowed: CPU N is bit N%8 of byte N/8, as sched_setaffinity(2) takes it
    pub cpus_allowed: Vec<u8>,
    /// Mems_allowed: node N likewise
    pub mems_allowed: Vec<u8>,
    /// voluntary_ctxt_switches
    pub voluntary_switches: u64,
    /// nonvoluntary_ctxt_switches
    pub nonvoluntary_switches: u64,
}

/// A value by its place in the text, found once.
struct Table<'a> {
    rows: Vec<(usize, &'a [u8], &'a [u8])>,
    /// Behind the one that was asked for last: they are asked for in the kernel's order, but for a few.
    next: Cell<usize>,
}

impl<'a> Table<'a> {
    fn new(text: &'a [u8]) -> Table<'a> {
        let row = |(number, line): (usize, &'a [u8])| {
            let (key, value) = split_at_byte(line, b':')?;
            Some((number, key, value))
        };
        let mut rows = Vec::with_capacity(80);
        rows.extend(lines(text).filter_map(row));
        Table { rows, next: Cell::new(0) }
    }

    fn get<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> std::result::Result<Option<T>, ParseError> {
        let (before, behind) = self.rows.split_at(self.next.get());
        let Some(at) = behind.iter().chain(before).position(|(_, k, _)| *k == key.as_bytes()) else {
            return Ok(None);
        };
        let at = (self.next.get() + at) % self.rows.len();
        self.next.set(at + 1);
        let (number, _, value) = self.rows[at];
        let fail = || ParseError::new(FILE, number, &format!("unexpected value of {key}"), value);
        convert(value).map(Some).ok_or_else(fail)
    }

    fn need<T>(&self, key: &str, convert: impl FnOnce(&'a [u8]) -> Option<T>) -> std::result::Result<T, ParseError> {
        self.get(key, convert)?.ok_or_else(|| ParseError::missing(FILE, key))
    }

    fn kb(&self, key: &str) -> std::result::Result<u64, ParseError> {
        Ok(self.get(key, |v| Words::new(v).next().and_then(dec))?.unwrap_or(0))
    }

    fn list<T>(&self, key: &str, convert: fn(&[u8]) -> Option<T>) -> std::result::Result<Vec<T>, ParseError> {
        Ok(self.get(key, |v| Words::new(v).map(convert).collect())?.unwrap_or_default())
    }
}

/// `\n` and `\\` of `seq_escape_str` (fs/proc/array.c `proc_task_name`).
fn unescape_name(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'\\', [b'n', after @ ..]) => {
                out.push(b'\n');
                after
            }
            (b'\\', [b'\\', after @ ..]) => {
                out.push(b'\\');
                after
            }
            _ => {
                out.push(*first);
                tail
            }
        };
    }
    out
}

/// A bitmap of lib/vsprintf.c `%*pb`: 32-bit groups in hexadecimal, the highest first.
pub fn parse_bitmap(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for group in trim(text).rsplit(|b| *b == b',') {
        out.extend_from_slice(&u32::try_from(hex(group)?).ok()?.to_le_bytes());
    }
    Some(out)
}

fn ids(value: &[u8]) -> Option<Ids> {
    let mut words = Words::new(value);
    let mut next = || words.next().and_then(dec32);
    Some(Ids { real: next()?, effective: next()?, saved: next()?, fs: next()? })
}

fn flag(value: &[u8]) -> Option<bool> {
    Some(dec(trim(value))? != 0)
}

/// Parses the file.
pub fn parse(data: &[u8]) -> std::result::Result<Status, ParseError> {
    let t = Table::new(data);
    let pid = |v: &[u8]| int32(trim(v));
    let set = |v: &[u8]| hex(trim(v));
    let number = |v: &[u8]| dec32(trim(v));
    let text = |v: &[u8]| Some(trim(v).to_vec());
    let vm = if t.get("VmSize", Some)?.is_some() { Some(vm_sizes(&t)?) } else { None };
    Ok(Status {
        // Exactly one tab belongs to the format: a name may begin with one, or end in a blank.
        name: t.need("Name", |v| Some(unescape_name(v.strip_prefix(b"\t").unwrap_or(v))))?,
        state: t.need("State", |v| Some(State::from_letter(*trim(v).first()?)))?,
        tgid: t.need("Tgid", pid)?,
        pid: t.need("Pid", pid)?,
        ppid: t.need("PPid", pid)?,
        tracer_pid: t.need("TracerPid", pid)?,
        uid: t.need("Uid", ids)?,
        gid: t.need("Gid", ids)?,
        groups: t.list("Groups", dec32)?,
        umask: t.get("Umask", |v| u32::try_from(oct(trim(v))?).ok())?,
        fd_size: t.kb("FDSize")?,
        ns_pid: t.list("NSpid", int32)?,
        ns_tgid: t.list("NStgid", int32)?,
        ns_pgid: t.list("NSpgid", int32)?,
        ns_sid: t.list("NSsid", int32)?,
        kthread: t.get("Kthread", flag)?,
        vm,
        core_dumping: t.get("CoreDumping", flag)?.unwrap_or(false),
        thp_enabled: t.get("THP_enabled", flag)?,
        untag_mask: t.get("untag_mask", set)?,
        threads: t.need("Threads", number)?,
        sig_queue: t.get("SigQ", |v| {
            let (queued, limit) = split_at_byte(trim(v), b'/')?;
            Some((dec(queued)?, dec(limit)?))
        })?,
        sig_pending: t.need("SigPnd", set)?,
        sig_shared_pending: t.need("ShdPnd", set)?,
        sig_blocked: t.need("SigBlk", set)?,
        sig_ignored: t.need("SigIgn", set)?,
        sig_caught: t.need("SigCgt", set)?,
        cap_inheritable: t.need("CapInh", set)?,
        cap_permitted: t.need("CapPrm", set)?,
        cap_effective: t.need("CapEff", set)?,
        cap_bounding: t.need("CapBnd", set)?,
        cap_ambient: t.need("CapAmb", set)?,
        no_new_privs: t.get("NoNewPrivs", flag)?.unwrap_or(false),
        seccomp: t.get("Seccomp", number)?,
        seccomp_filters: t.get("Seccomp_filters", number)?,
        speculation_store_bypass: t.get("Speculation_Store_Bypass", text)?.unwrap_or_default(),
        speculation_indirect_branch: t.get("SpeculationIndirectBranch", text)?.unwrap_or_default(),
        x86_features: t.list("x86_Thread_features", |w| Some(w.to_vec()))?,
        x86_features_locked: t.list("x86_Thread_features_locked", |w| Some(w.to_vec()))?,
        cpus_allowed: t.get("Cpus_allowed", parse_bitmap)?.unwrap_or_default(),
        mems_allowed: t.get("Mems_allowed", parse_bitmap)?.unwrap_or_default(),
        voluntary_switches: t.kb("voluntary_ctxt_switches")?,
        nonvoluntary_switches: t.kb("nonvoluntary_ctxt_switches")?,
    })
}

fn vm_sizes(t: &Table<'_>) -> std::result::Result<VmSizes, ParseError> {
    Ok(VmSizes {
        peak: t.kb("VmPeak")?,
        size: t.kb("VmSize")?,
        lck: t.kb("VmLck")?,
        pin: t.kb("VmPin")?,
        hwm: t.kb("VmHWM")?,
        rss: t.kb("VmRSS")?,
        rss_anon: t.kb("RssAnon")?,
        rss_file: t.kb("RssFile")?,
        rss_shmem: t.kb("RssShmem")?,
        data: t.kb("VmData")?,
        stk: t.kb("VmStk")?,
        exe: t.kb("VmExe")?,
        lib: t.kb("VmLib")?,
        pte: t.kb("VmPTE")?,
        swap: t.kb("VmSwap")?,
    })
}

/// Reads `/proc/PID/status`; a TID works too and gives the thread. Of a process whose first thread has ended it is that of another
/// ([`super::first`]), but for the number.
pub fn read(pid: Pid) -> Result<Status> {
    let mut s = read_with(&path_of(pid, FILE), parse)?;
    if s.pid != pid && s.tgid == pid {
        (s.pid, s.ns_pid) = (pid, s.ns_tgid.clone());
    }
    Ok(s)
}

/// What a thread may have otherwise than its process: name, IDs, groups, capabilities, no_new_privs, seccomp and its filters, CPUs.
const OWN: [&[u8]; 13] = [
    b"Name:",
    b"Uid:",
    b"Gid:",
    b"Groups:",
    b"CapInh:",
    b"CapPrm:",
    b"CapEff:",
    b"CapBnd:",
    b"CapAmb:",
    b"NoNewPrivs:",
    b"Seccomp:",
    b"Seccomp_filters:",
    b"Cpus_allowed:",
];

/// The file of [`read_task`], open: to ask again costs no look-up, and no other thread of the same number answers.
#[derive(Debug)]
pub struct TaskStatus {
    file: std::fs::File,
    path: std::path::PathBuf,
}

impl TaskStatus {
    /// Opens it.
    pub fn open(pid: Pid, tid: Pid) -> Result<TaskStatus> {
        let path = std::path::PathBuf::from(format!("/proc/{pid}/task/{tid}/status"));
        let file = std::fs::File::open(&path).map_err(|e| super::ReadError::io("open", &path, e))?;
        Ok(TaskStatus { file, path })
    }

    /// The lines that tell what the thread has of its own now, to see whether any has changed. Nothing is parsed, and few calls are
    /// made: a thousand threads are asked while they stand still.
    pub fn own_lines(&self) -> Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let failed = |e| super::ReadError::io("read", &self.path, e);
        let mut text = [0; 4096];
        let len = self.file.read_at(&mut text, 0).map_err(failed)?;
        let mut longer = Vec::new();
        // one read gives a seq_file whole, if the room suffices
        if len == text.len() {
            longer = std::fs::read(&self.path).map_err(failed)?;
        }
        let text = if longer.is_empty() { &text[..len] } else { &longer };
        let own = |line: &&[u8]| OWN.iter().any(|key| line.starts_with(key));
        let mut lines = Vec::with_capacity(512);
        text.split_inclusive(|b| *b == b'\n').filter(own).for_each(|line| lines.extend_from_slice(line));
        Ok(lines)
    }

    /// Its descriptor's number.
    pub fn number(&self) -> u64 {
        std::os::fd::AsRawFd::as_raw_fd(&self.file) as u64
    }
}

/// Reads `/proc/PID/task/TID/status`.
pub fn read_task(pid: Pid, tid: Pid) -> Result<Status> {
    read_with(&path_of(pid, &format!("task/{tid}/status")), parse)
}
