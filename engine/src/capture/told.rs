//! What only a thread itself can be asked: the calls for that, who makes them when, and what the answers say.
use super::observe::Observer;
use super::Step;
use sys::program::{CallId, Out, Program, Reply};
use sys::tracer;

/// Threads whose visit is one request.
const AT_ONCE: usize = 1000;

/// Runs in every thread but the serving one: what only the thread itself can be asked. Buffer: alternate stack at 0
/// (24 bytes, with PR_GET_TSC in its padding at 12), clear_child_tid at 24, robust list's head and length at 32, pdeathsig at 48, NUMA policy at 52, its nodes at 56, pending signals that are blocked at 64.
pub(super) fn visit_program() -> Program {
    let mut p = Program::new();
    let o = p.out(tracer::VISIT_BUF as usize);
    ask_thread(&mut p, o);
    p
}

/// How many results of a visit are answers: the last ones, [`Told`]'s.
const ANSWERS: u64 = 8;

/// Timer slack, I/O priority, thread keyring, CPUID, speculation and secure bits come as results, the rest in `o`.
fn ask_thread(p: &mut Program, o: Out) -> [CallId; ANSWERS as usize] {
    p.may(libc::SYS_sigaltstack, &[0.into(), o.arg()]);
    p.may(libc::SYS_prctl, &[libc::PR_GET_TSC.into(), o.at(TSC as u32)]);
    p.may(libc::SYS_prctl, &[libc::PR_GET_TID_ADDRESS.into(), o.at(24)]);
    p.may(libc::SYS_get_robust_list, &[0.into(), o.at(32), o.at(40)]);
    p.may(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG.into(), o.at(48)]);
    // first without the nodes, which the kernel refuses to tell if there are more than 64
    p.may(libc::SYS_get_mempolicy, &[o.at(52), 0.into(), 0.into(), 0.into(), 0.into()]);
    p.may(libc::SYS_get_mempolicy, &[o.at(52), o.at(56), 64.into(), 0.into(), 0.into()]);
    p.may(libc::SYS_rt_sigpending, &[o.at(64), 8.into()]);
    let slack = p.may(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK.into()]);
    let ioprio = p.may(libc::SYS_ioprio_get, &[1.into(), 0.into()]);
    let keyring = p.may(libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID.into(), KEY_THREAD.into(), 0.into()]);
    let cpuid = p.may(libc::SYS_arch_prctl, &[ARCH_GET_CPUID.into(), 0.into()]);
    let mut speculation = |kind: i32| {
        p.may(libc::SYS_prctl, &[PR_GET_SPECULATION_CTRL.into(), kind.into(), 0.into(), 0.into(), 0.into()])
    };
    let speculation = [speculation(0), speculation(1), speculation(2)];
    let securebits = p.may(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]);
    [slack, ioprio, keyring, cpuid, speculation[0], speculation[1], speculation[2], securebits]
}

/// Where PR_GET_TSC's answer is.
const TSC: usize = 12;
/// asm/prctl.h, linux/prctl.h
const ARCH_GET_CPUID: i32 = 0x1011;
const PR_GET_SPECULATION_CTRL: i32 = 52;
/// keyctl(2), linux/keyctl.h. Asking for a thread's or a process's keyring makes none.
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEY_THREAD: i32 = -1;
const KEY_PROCESS: i32 = -2;

/// Modes of NUMA policy that name nodes (linux/mempolicy.h): bind, interleave, preferred-many, weighted interleave.
const MPOL_WITH_NODES: [u32; 4] = [2, 3, 5, 6];

/// What a thread said of itself.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub tid: i32,
    /// As [`visit_program`] lays it out.
    pub buf: Vec<u8>,
    pub slack: i64,
    pub ioprio: i64,
    /// Its own keyring, or -errno.
    pub keyring: i64,
    /// 0: the instruction faults.
    pub cpuid: i64,
    /// Store bypass, indirect branch, L1D flush.
    pub speculation: [i64; 3],
    /// PR_GET_SECUREBITS.
    pub securebits: i64,
}

impl Told {
    fn new(
        tid: i32,
        buf: Vec<u8>,
        [slack, ioprio, keyring, cpuid, a, b, c, securebits]: [i64; ANSWERS as usize],
    ) -> Told {
        Told { tid, buf, slack, ioprio, keyring, cpuid, speculation: [a, b, c], securebits }
    }

    /// Reading the time stamp counter is a fault.
    pub fn no_tsc(&self) -> bool {
        self.buf[TSC..TSC + 4].try_into().map_or(0, i32::from_le_bytes) == libc::PR_TSC_SIGSEGV
    }

    /// Signals that were pending for it or the process, of those that it blocked.
    pub fn pending(&self) -> u64 {
        self.buf[64..72].try_into().map_or(0, u64::from_le_bytes)
    }

    /// NUMA policy and nodes.
    pub fn mempolicy(&self) -> (u32, u64) {
        let mode = self.buf[52..56].try_into().map_or(0, u32::from_le_bytes);
        (mode, self.buf[56..64].try_into().map_or(0, u64::from_le_bytes))
    }
}

/// The questions to the serving thread, and the one after the process's keyring.
pub(super) struct ServerTold {
    buf: Out,
    answers: [CallId; ANSWERS as usize],
    keyring: CallId,
}

impl ServerTold {
    /// Asks them.
    pub fn ask(p: &mut Program) -> ServerTold {
        let buf = p.out(tracer::VISIT_BUF as usize);
        let answers = ask_thread(p, buf);
        let keyring = p.may(libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID.into(), KEY_PROCESS.into(), 0.into()]);
        ServerTold { buf, answers, keyring }
    }
}

impl Observer<'_> {
    /// What the threads that the agent has parked said as they came in; those that did not make the visit's calls then, make them now.
    pub(super) fn visit(&mut self) -> Step<Vec<Told>> {
        let answers = |results: &[i64]| results.last_chunk().copied().unwrap_or([0; ANSWERS as usize]);
        let said = std::mem::take(&mut self.visited);
        let slots: Vec<(usize, i32)> = self.entered.visited.iter().copied().enumerate().collect();
        let silent: Vec<(usize, i32)> = slots.into_iter().filter(|(_, tid)| !said.contains_key(tid)).collect();
        let mut all: Vec<Told> = said.into_iter().map(|(tid, (r, buf))| Told::new(tid, buf, answers(&r))).collect();
        for some in silent.chunks(AT_ONCE) {
            let mut p = Program::new();
            let mut asked = Vec::with_capacity(some.len());
            for (slot, tid) in some {
                let first = p.len();
                let o = p.out(tracer::VISIT_BUF as usize);
                asked.push((*tid, o, ask_thread(&mut p, o)));
                p.for_thread(*slot as u32, first);
            }
            let r = self.channel.run(&p)?;
            all.extend(asked.into_iter().map(|(tid, o, c)| Told::new(tid, r.bytes(o).to_vec(), c.map(|c| r.raw(c)))));
        }
        Ok(all)
    }

    /// Answers of the threads that the tracer has sent in.
    pub(super) fn visited(&mut self) -> Step<Vec<Told>> {
        // first of all: the buffer that holds them is the next program's
        let mut wait = Program::new();
        wait.for_no_thread();
        self.channel.run(&wait)?;
        let (l, n) = (self.entered.layout, self.entered.visited.len() as u64);
        let ncalls = visit_program().len() as u64;
        let mut bufs = vec![0; (n * tracer::VISIT_BUF) as usize];
        let mut results = vec![0; (n * ncalls * 8) as usize];
        if n > 0 {
            let first = tracer::visit_place(&l, n, ncalls, 0);
            self.mem.read(first.buf, &mut bufs)?;
            self.mem.read(first.results, &mut results)?;
        }
        let result = |i: usize, k: u64| {
            let at = (i as u64 * ncalls + k) as usize * 8;
            results[at..at + 8].try_into().map_or(0, i64::from_le_bytes)
        };
        let one = |(i, tid): (usize, &i32)| {
            let b = bufs[i * tracer::VISIT_BUF as usize..][..tracer::VISIT_BUF as usize].to_vec();
            Told::new(*tid, b, std::array::from_fn(|k| result(i, ncalls - ANSWERS + k as u64)))
        };
        Ok(self.entered.visited.iter().enumerate().map(one).collect())
    }

    /// The visited threads' answers and the serving one's.
    pub(super) fn server_told(&mut self, mut all: Vec<Told>, server: ServerTold, r: &Reply) -> Vec<Told> {
        // a thread that was made for us is none of the program's
        if self.survey.threads.contains_key(&self.entered.server) {
            all.push(Told::new(self.entered.server, r.bytes(server.buf).to_vec(), server.answers.map(|c| r.raw(c))));
        }
        self.report_threads(&all, r.raw(server.keyring));
        all
    }

    /// What the threads have and a restore cannot bring back; `keyring`: the process's, or -errno.
    fn report_threads(&mut self, all: &[Told], keyring: i64) {
        if keyring > 0 {
            self.reported.push("process keyring: its keys are not kept; a restored program has none".into());
        }
        for t in all {
            let tid = self.inner_tid(t.tid);
            if t.keyring > 0 {
                self.reported
                    .push(format!("keyring of thread {tid}: its keys are not kept; a restored thread has none"));
            }
            if matches!(t.mempolicy(), (mode, 0) if MPOL_WITH_NODES.contains(&(mode & 0xff))) {
                let what = "its nodes have numbers above 63; a restored thread has the default policy";
                self.reported.push(format!("NUMA policy of thread {tid}: {what}"));
            }
        }
    }
}
