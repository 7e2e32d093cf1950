//! `/proc/PID/stat` (proc_pid_stat(5), fs/proc/array.c `do_task_stat`).

use super::bytes::{dec, dec32, int, int32, Words};
use super::{path_of, read_with, ParseError, Pid, Result, State};

const FILE: &str = "stat";

/// All 52 fields but the obsolete ones. Times are in clock ticks (sysconf(_SC_CLK_TCK)) unless said
/// otherwise. Addresses are 0 to a reader without ptrace access.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of proc_pid_stat(5)
pub struct Stat {
    pub pid: Pid,
    /// Up to 15 bytes, any of them: `)`, blanks and newlines too.
    pub comm: Vec<u8>,
    pub state: State,
    pub ppid: Pid,
    pub pgrp: Pid,
    pub session: Pid,
    /// 0 without a controlling terminal; encoded as new_encode_dev: see [`Stat::tty`].
    pub tty_nr: i32,
    /// Foreground process group of the terminal; -1 if none.
    pub tpgid: Pid,
    /// PF_* of include/linux/sched.h.
    pub flags: u32,
    pub minflt: u64,
    pub cminflt: u64,
    pub majflt: u64,
    pub cmajflt: u64,
    pub utime: u64,
    pub stime: u64,
    pub cutime: i64,
    pub cstime: i64,
    /// Kernel's view: 0..39 ordinary (20 is nice 0), below 0 real-time.
    pub priority: i64,
    pub nice: i64,
    pub num_threads: i64,
    /// Clock ticks after boot: with the PID and boot id, a process's identity.
    pub starttime: u64,
    /// Bytes.
    pub vsize: u64,
    /// Pages.
    pub rss: i64,
    /// Bytes.
    pub rsslim: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub exit_signal: i32,
    pub processor: i32,
    pub rt_priority: u32,
    /// SCHED_*.
    pub policy: u32,
    /// Time waiting for block I/O.
    pub delayacct_blkio_ticks: u64,
    pub guest_time: u64,
    pub cguest_time: i64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// In the form of waitpid(2).
    pub exit_code: i32,
}

impl Stat {
    /// The controlling terminal.
    pub fn tty(&self) -> Option<super::Dev> {
        let nr = self.tty_nr as u32;
        (nr != 0).then_some(super::Dev { major: (nr >> 8) & 0xfff, minor: (nr & 0xff) | ((nr >> 12) & 0xf_ff00) })
    }

    /// PF_KTHREAD: a kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    /// PF_IO_WORKER: a thread that the kernel has made in the process for io_uring. It runs no code of the program's, and to stop it (ptrace, SIGSTOP) would end
    /// what it does for a request with EINTR (io_uring/io-wq.c).
    pub fn is_io_worker(&self) -> bool {
        self.flags & 0x10 != 0
    }

    /// PF_EXITING: it has begun to end, and soon has no descriptors any more.
    pub fn is_exiting(&self) -> bool {
        self.flags & 0x4 != 0
    }

    /// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which are PR_SET_IO_FLUSHER (kernel/sys.c). PR_GET_IO_FLUSHER asks for a capability.
    pub fn is_io_flusher(&self) -> bool {
        self.flags & 0x0018_0000 == 0x0018_0000
    }

    /// PF_MCE_PROCESS and PF_MCE_EARLY: PR_MCE_KILL_LATE (0) or PR_MCE_KILL_EARLY (1); None: the machine's default.
    pub fn mce_kill(&self) -> Option<u32> {
        (self.flags & 0x80 != 0).then_some((self.flags >> 27) & 1)
    }
}

struct Numbers<'a>(Words<'a>, usize);

impl<'a> Numbers<'a> {
    fn take<T>(&mut self, name: &str, convert: fn(&[u8]) -> Option<T>) -> std::result::Result<T, ParseError> {
        let word = self.0.next().unwrap_or_default();
        self.1 += 1;
        let what = || format!("field {} ({name}) is no number", self.1);
        convert(word).ok_or_else(|| ParseError::new(FILE, 1, &what(), word))
    }

    fn skip(&mut self, count: usize) {
        self.1 += count;
        for _ in 0..count {
            self.0.next();
        }
    }
}

/// Parses the file. The comm ends at the last `)`: nothing after it is text.
pub fn parse(text: &[u8]) -> std::result::Result<Stat, ParseError> {
    let fail = |what| ParseError::new(FILE, 1, what, text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let open = text.iter().position(|b| *b == b'(').ok_or_else(|| fail("expected ("))?;
    let close = text.iter().rposition(|b| *b == b')').ok_or_else(|| fail("expected )"))?;
    if close < open {
        return Err(fail(") comes before ("));
    }
    let mut pid = Numbers(Words::new(&text[..open]), 0);
    let mut f = Numbers(Words::new(&text[close + 1..]), 2);
    let letter = |word: &[u8]| match word {
        [letter] => Some(State::from_letter(*letter)),
        _ => None,
    };
    Ok(Stat {
        pid: pid.take("pid", int32)?,
        comm: text[open + 1..close].to_vec(),
        state: f.take("state", letter)?,
        ppid: f.take("ppid", int32)?,
        pgrp: f.take("pgrp", int32)?,
        session: f.take("session", int32)?,
        tty_nr: f.take("tty_nr", int32)?,
        tpgid: f.take("tpgid", int32)?,
        flags: f.take("flags", dec32)?,
        minflt: f.take("minflt", dec)?,
        cminflt: f.take("cminflt", dec)?,
        majflt: f.take("majflt", dec)?,
        cmajflt: f.take("cmajflt", dec)?,
        utime: f.take("utime", dec)?,
        stime: f.take("stime", dec)?,
        cutime: f.take("cutime", int)?,
        cstime: f.take("cstime", int)?,
        priority: f.take("priority", int)?,
        nice: f.take("nice", int)?,
        num_threads: f.take("num_threads", int)?,
        starttime: {
            f.skip(1); // itrealvalue, always 0
            f.take("starttime", dec)?
        },
        vsize: f.take("vsize", dec)?,
        rss: f.take("rss", int)?,
        rsslim: f.take("rsslim", dec)?,
        start_code: f.take("startcode", dec)?,
        end_code: f.take("endcode", dec)?,
        start_stack: f.take("startstack", dec)?,
        exit_signal: {
            f.skip(9); // kstkesp, kstkeip, four signal masks (see status), wchan, nswap, cnswap
            f.take("exit_signal", int32)?
        },
        processor: f.take("processor", int32)?,
        rt_priority: f.take("rt_priority", dec32)?,
        policy: f.take("policy", dec32)?,
        delayacct_blkio_ticks: f.take("delayacct_blkio_ticks", dec)?,
        guest_time: f.take("guest_time", dec)?,
        cguest_time: f.take("cguest_time", int)?,
        start_data: f.take("start_data", dec)?,
        end_data: f.take("end_data", dec)?,
        start_brk: f.take("start_brk", dec)?,
        arg_start: f.take("arg_start", dec)?,
        arg_end: f.take("arg_end", dec)?,
        env_start: f.take("env_start", dec)?,
        env_end: f.take("env_end", dec)?,
        exit_code: f.take("exit_code", int32)?,
    })
}

/// Reads `/proc/PID/stat`: times are those of the whole process.
pub fn read(pid: Pid) -> Result<Stat> {
    read_with(&path_of(pid, FILE), parse)
}

/// Reads `/proc/PID/task/TID/stat`: of the one thread.
pub fn read_task(pid: Pid, tid: Pid) -> Result<Stat> {
    read_with(&path_of(pid, &format!("task/{tid}/stat")), parse)
}
