//! Pending signals with what they carry, where there is no tracer to peek at them: each thread takes those that wait for it, and queues them again, in
//! one program of calls, so that nobody's death can lose any. All signals are blocked meanwhile.
use super::observe::Observer;
use super::told::Told;
use super::{Fault, Step};
use crate::{Door, Error, Kind, Reason};
use serde_bytes::ByteBuf;
use sys::agent::Absent;
use sys::procfs;
use sys::program::{CallId, Out, Program};

/// More of one thread, or of the process, are not looked at.
const MOST: usize = 64;
const SIGINFO: usize = 128;
const AGENT: u64 = 1 << (wire::agent::AGENT_SIGNAL - 1);

/// What is pending.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// For the process: raw siginfo.
    pub shared: Vec<ByteBuf>,
    /// For each thread that has any.
    pub threads: Vec<(i32, Vec<ByteBuf>)>,
}

impl Pending {
    /// As signals, bit n-1 for signal n.
    pub fn bits(&self) -> u64 {
        let number = |i: &ByteBuf| i.get(..4).and_then(|b| b.try_into().ok()).map_or(1, u32::from_le_bytes);
        let all = self.shared.iter().chain(self.threads.iter().flat_map(|t| &t.1));
        all.fold(0, |all, i| all | 1 << number(i).clamp(1, 64).wrapping_sub(1))
    }
}

impl Observer<'_> {
    /// Looks at what is pending for the process and each of its threads. `told`: what each has said, all signals blocked.
    pub(super) fn pending(&mut self, told: &[Told]) -> Step<Pending> {
        let (pid, server) = (self.survey.pid, self.entered.server);
        let mut all = Pending::default();
        // what comes later comes after the checkpoint, unless it is from another process of the tree, which has stopped later
        if !self.common.several && told.iter().all(|t| t.pending() & !AGENT == 0) {
            return Ok(all);
        }
        let status = procfs::status::read_task(pid, server)?;
        let shared = status.sig_shared_pending & !AGENT;
        let mut threads: Vec<(i32, Option<u32>)> =
            self.entered.visited.iter().enumerate().map(|(i, t)| (*t, Some(i as u32))).collect();
        threads.push((server, None));
        for (tid, slot) in threads {
            let own = match tid == server {
                true => status.sig_pending,
                false => procfs::status::read_task(pid, tid)?.sig_pending,
            };
            let own = own & !AGENT;
            if own & shared != 0 {
                // whose it takes first could be told, but not where the others begin
                return Err(self.too_many());
            }
            if own != 0 && self.survey.is_strict(tid) {
                return Err(self.nobody_to_take(tid));
            }
            if own != 0 {
                all.threads.push((tid, self.take(own, Some(tid), slot)?));
            }
        }
        if shared != 0 {
            // one that came from kill(2) can be queued for the process by the leader only (kernel/signal.c, do_rt_sigqueueinfo)
            if self.survey.is_strict(pid) {
                return Err(self.nobody_to_take(pid));
            }
            let leader = self.entered.visited.iter().position(|t| *t == pid);
            if leader.is_none() && server != pid {
                return Err(self.too_many());
            }
            all.shared = self.take(shared, None, leader.map(|i| i as u32))?;
        }
        Ok(all)
    }

    /// Lets a thread (by its slot; None: the serving one) take the signals of `set` and queue them again, for the thread `of` or for the process.
    fn take(&mut self, set: u64, of: Option<i32>, slot: Option<u32>) -> Step<Vec<ByteBuf>> {
        let inner = self.survey.inner_pid();
        let mut p = Program::new();
        let set = p.bytes(&set.to_le_bytes());
        let now = p.bytes(&[0; 16]);
        let infos: Vec<Out> = (0..MOST).map(|_| p.out(SIGINFO)).collect();
        let taken: Vec<CallId> =
            infos.iter().map(|i| p.may(libc::SYS_rt_sigtimedwait, &[set, i.arg(), now, 8.into()])).collect();
        // where nothing was taken, its errno is no signal, and the call does nothing
        for (c, i) in taken.iter().zip(&infos) {
            match of {
                Some(tid) => {
                    let tid = self.inner_tid(tid);
                    p.may(libc::SYS_rt_tgsigqueueinfo, &[inner.into(), tid.into(), c.arg(), i.arg()])
                }
                None => p.may(libc::SYS_rt_sigqueueinfo, &[inner.into(), c.arg(), i.arg()]),
            };
        }
        if let Some(slot) = slot {
            p.for_thread(slot, 0);
        }
        let r = self.channel.run(&p)?;
        let found = |(c, i): (&CallId, &Out)| (r.raw(*c) > 0).then(|| ByteBuf::from(r.bytes(*i).to_vec()));
        let all: Vec<ByteBuf> = taken.iter().zip(&infos).map_while(found).collect();
        if all.len() == MOST {
            return Err(self.too_many());
        }
        Ok(all)
    }

    /// Whoever takes signals in a thread's place needs calls that strict mode forbids, again and again.
    fn nobody_to_take(&self, tid: i32) -> Fault {
        let why = "signals wait for it, which it alone could be asked for, and it is in strict seccomp mode";
        let reason =
            Reason::new(format!("thread {tid}"), why, "checkpoint when it has taken them; all run on as before");
        Error { kind: Kind::Refused, attempted: self.survey.attempted.clone(), reasons: vec![reason] }.into()
    }

    /// The agent's door is shut for it; on the other, of several processes, nobody can look.
    fn too_many(&self) -> Fault {
        if self.door() == Door::Agent {
            return Fault::from(Absent::Pending);
        }
        let (why, remedy) = (Absent::Pending.to_string(), "checkpoint when it has taken them; all run on as before");
        let reasons =
            vec![Reason::new(self.survey.describe(), why.replace("the agent can look at", "can be looked at"), remedy)];
        Error { kind: Kind::Refused, attempted: self.survey.attempted.clone(), reasons }.into()
    }
}
