//! Seccomp filters of a target: what they are, and whether we may work inside it. Who has CAP_SYS_ADMIN is told them by the kernel, and may suspend them
//! while the program is frozen; anybody else knows what the program's agent has kept, and works inside only if all that is called there is let through.
//! Strict mode, too, may be suspended, but a thread that is about to make a call then ends if the tracer does: that is for whoever asks for it.
use super::find::Survey;
use super::threads::Facts;
use super::Step;
use crate::{Door, Reason};
use sys::agent::Absent;
use sys::procfs::{self, status::Status};
use sys::seccomp::{kept, needs, Chains, Judge, Unknown};

const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Seccomp in /proc/PID/status.
const STRICT: u32 = 1;
const FILTERS: u32 = 2;

impl Survey {
    /// Whether any of its threads is under filters.
    pub(super) fn is_filtered(&self) -> bool {
        self.status.seccomp == Some(FILTERS) || self.threads.values().any(|f| f.filters != Some(0))
    }

    /// Threads in strict mode.
    fn strict_threads(&self) -> impl Iterator<Item = i32> + '_ {
        self.threads.iter().filter(|(_, f)| f.strict).map(|(tid, _)| *tid)
    }

    /// Whether any thread is in strict mode: those run no programs.
    pub(crate) fn has_strict_threads(&self) -> bool {
        self.strict_threads().next().is_some()
    }

    /// Whether a thread is in strict mode.
    pub(super) fn is_strict(&self, tid: i32) -> bool {
        self.threads.get(&tid).is_some_and(|f| f.strict)
    }

    /// Whether the tracer is to suspend seccomp.
    pub(super) fn is_under_seccomp(&self) -> bool {
        self.is_filtered() || self.strict_threads().next().is_some()
    }

    /// Why threads in strict mode are not entered, and what to do.
    fn strict_reasons(&self, suspends: bool) -> Vec<Reason> {
        let remedy = match (suspends, self.risk) {
            (true, true) => return Vec::new(),
            (true, false) => "pass --risk-seccomp-strict, by which the mode is suspended: then only the death of our own tracer in one of a few instants would kill it",
            (false, _) => "run ctl as root, who may suspend the mode, with --risk-seccomp-strict; or let it use a filter instead (SECCOMP_MODE_FILTER)",
        };
        let first = procfs::first::by(self.pid);
        let object = |tid: i32| if tid == first { self.object() } else { format!("thread {tid}") };
        let why = "it is in strict seccomp mode: the first foreign system call would kill it";
        self.strict_threads().map(|tid| Reason::new(object(tid), why, remedy)).collect()
    }

    /// Before the freeze: every reason that can be seen by then.
    pub(super) fn seccomp(&mut self) {
        let reasons = self.strict_reasons(may_suspend());
        self.reasons.extend(reasons);
        if !self.is_filtered() {
            return;
        }
        let suspends = may_suspend();
        match kept(self.pid) {
            Ok(kept) => {
                self.judge = Judge::new(kept.chains.all(), suspends && self.door == Door::Attach);
                self.chains = kept.chains;
                let reasons = self.unfit();
                self.reasons.extend(reasons);
            }
            Err(_) if suspends => {} // the kernel tells them, in the freeze: by ptrace
            Err(why) => self.reasons.push(unknown(self.object(), &why)),
        }
    }

    /// Why its agent cannot be called: what filters there are it does not know, but the kernel may tell.
    pub(super) fn unknown_to_agent(&self) -> Option<Absent> {
        if self.strict_threads().next().is_some() {
            return Some(Absent::Seccomp("a thread's mode is strict".into()));
        }
        let why = if self.is_filtered() { kept(self.pid).err() } else { None };
        why.map(|why| Absent::Seccomp(why.to_string()))
    }

    /// In the freeze. `told`: what the kernel says, where it does.
    pub(super) fn seccomp_frozen(&mut self, told: Option<Chains>) -> Step<()> {
        self.suspended = told.is_some();
        self.refuse_for(self.strict_reasons(self.suspended))?;
        if !self.is_filtered() {
            return Ok(());
        }
        let suspended = self.suspended;
        self.chains = match told.map_or_else(|| kept(self.pid).map(|k| k.chains), Ok) {
            Ok(chains) => chains,
            Err(why) => return self.refuse_for(vec![unknown(self.object(), &why)]),
        };
        self.judge = Judge::new(self.chains.all(), suspended);
        if let Some(why) = self.shut_to_agent() {
            return Err(why.into());
        }
        self.refuse_for(self.unfit())
    }

    /// In the freeze, when every thread has been asked: those that have others than were told, set since the survey or not seen by the agent.
    pub(super) fn come_under_seccomp(&self, tids: &[i32]) -> Vec<Reason> {
        let other = |tid: &&i32| match self.threads.get(tid).map(|f| f.filters) {
            _ if self.is_strict(**tid) && !(self.suspended && self.risk) => true,
            Some(Some(n)) => n as usize != self.chains.of(**tid).len(),
            Some(None) => self.chains.of(**tid).is_empty(),
            None => false,
        };
        let why = "it has come under seccomp while it was looked at";
        let reason = |tid: &i32| Reason::new(format!("thread {tid}"), why, "it runs on as before; try again");
        tids.iter().filter(other).map(reason).collect()
    }

    /// The thread that could not be given its filters again: which takes no_new_privs or CAP_SYS_ADMIN of the first thread, if all have the same, else of each.
    fn without_right(&self) -> Option<i32> {
        let first = procfs::first::by(self.pid);
        let may = |no_new_privs: bool, effective: u64| no_new_privs || effective & CAP_SYS_ADMIN != 0;
        let others = |(tid, f): (&i32, &Facts)| {
            let lacks = !self.chains.of(*tid).is_empty() && !may(f.rights.no_new_privs, f.rights.caps[2]);
            lacks.then_some(*tid)
        };
        let known = |tid: &&i32| self.chains.knows(**tid);
        if self.threads.keys().filter(known).all(|tid| self.chains.of(*tid) == self.chains.of(first)) {
            return (!may(self.status.no_new_privs, self.status.cap_effective)).then_some(first);
        }
        self.threads.iter().find_map(others)
    }

    fn object(&self) -> String {
        format!("PID {}", self.pid)
    }

    /// Why its agent cannot be asked for all that a checkpoint needs.
    pub(super) fn shut_to_agent(&self) -> Option<Absent> {
        if self.door != Door::Agent {
            return None;
        }
        let refused = self.judge.refused(super::told::visit_program().for_judge());
        (!refused.is_empty()).then(|| Absent::Filtered(refused.join(", ")))
    }

    /// Why nothing can be done inside it, or it could not be made again. On the agent's door its calls are judged before it is called.
    fn unfit(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut names = self.judge.beside().refused(needs::essential());
        let suspended = names.is_empty() && self.judge.is_suspended();
        if self.door == Door::Attach {
            let mut calls = [needs::conversation(), needs::attach()].concat();
            calls.extend(super::told::visit_program().for_judge());
            names.extend(self.judge.refused(calls));
        }
        if !names.is_empty() {
            reasons.push(refused(self.pid, &names.join(", "), suspended));
        }
        if self.judge.filters().iter().any(|f| f.asks_somebody()) {
            let why = "one of its seccomp filters asks another process for its answers (SECCOMP_RET_USER_NOTIF), which is not kept yet";
            reasons.push(Reason::new(self.object(), why, "start it without that filter"));
        }
        if let Some(tid) = self.without_right() {
            let why = "it has seccomp filters, and neither no_new_privs nor CAP_SYS_ADMIN, without which they cannot be set again";
            let remedy = "let it set no_new_privs before (PR_SET_NO_NEW_PRIVS; systemd: NoNewPrivileges=yes)";
            let object = if tid == procfs::first::by(self.pid) { self.object() } else { format!("thread {tid}") };
            reasons.push(Reason::new(object, why, remedy));
        }
        reasons
    }
}

/// Why no snapshot child can be made, which has the filters too, and nobody to suspend them.
pub(super) fn no_child(judge: &Judge, subreaper: bool) -> Option<String> {
    let refused = judge.refused(needs::fork(subreaper));
    let why = "the pause was as long as the copying of memory: its seccomp filters do not let through what a snapshot child calls";
    (!refused.is_empty()).then(|| format!("{why} ({})", refused.join(", ")))
}

/// Whether the kernel tells filters, and suspends them.
fn may_suspend() -> bool {
    let me = procfs::status::read(std::process::id() as i32);
    me.is_ok_and(|s| s.cap_effective & CAP_SYS_ADMIN != 0 && s.seccomp.unwrap_or(0) == 0)
}

fn unknown(object: String, unknown: &Unknown) -> Reason {
    let why =
        format!("a seccomp filter restricts it, and the first forbidden call made inside could kill it: {unknown}");
    let remedy = match unknown {
        Unknown::Setting => "it runs on as before; try again",
        Unknown::Beside(..) => "run ctl as root, to whom the kernel tells its filters",
        _ => "run ctl as root, to whom the kernel tells its filters; or start it by launcher, whose agent keeps them",
    };
    Reason::new(object, why, remedy)
}

/// Why no snapshot child can be made where all threads are in strict mode.
pub(super) const NO_STRICT_CHILD: &str = "the pause was as long as the copying of memory: all its threads are in strict seccomp mode, and so would a snapshot child be, with nobody to suspend it";

/// Whether a thread is in strict mode.
pub(super) fn is_strict(s: &Status) -> bool {
    s.seccomp == Some(STRICT)
}

/// How many filters a thread has; None: the kernel does not tell.
pub(super) fn count(s: &Status) -> Option<u32> {
    if s.seccomp == Some(FILTERS) {
        s.seccomp_filters
    } else {
        Some(0)
    }
}

/// Why nothing is called inside a filtered process.
pub(super) fn refused(pid: i32, calls: &str, suspended: bool) -> Reason {
    let object = format!("PID {pid}");
    if suspended {
        let why = format!("its seccomp filters would kill it for calls that a checkpoint makes inside it ({calls}), if our tracer, which suspends them, were killed meanwhile");
        return Reason::new(
            object,
            why,
            "let its filters answer these calls with an error (SECCOMP_RET_ERRNO), or allow them",
        );
    }
    let why = format!("its seccomp filters do not let through calls that a checkpoint makes inside it ({calls})");
    Reason::new(object, why, "allow these calls in its filters; or, if they are answered with an error only, run ctl as root, who may suspend filters")
}
