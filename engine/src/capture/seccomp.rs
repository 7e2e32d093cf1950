//! Seccomp filters of a target: what they are, and whether we may work inside it. Who has CAP_SYS_ADMIN is told them by the kernel, and may suspend them
//! while the program is frozen; anybody else knows what the program's agent has kept, and works inside only if all that is called there is let through.
use super::find::Survey;
use super::Step;
use crate::{Door, Reason};
use sys::agent::Absent;
use sys::procfs;
use sys::seccomp::{kept, needs, Judge, Unknown};
use sys::tracer::Suspended;

const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Seccomp in /proc/PID/status.
const STRICT: u32 = 1;
const FILTERS: u32 = 2;

impl Survey {
    /// Whether it is under filters.
    pub(super) fn is_filtered(&self) -> bool {
        self.status.seccomp == Some(FILTERS)
    }

    /// Before the freeze: every reason that can be seen by then.
    pub(super) fn seccomp(&mut self) {
        if self.status.seccomp == Some(STRICT) {
            let why = "it is in strict seccomp mode: the first foreign system call would kill it";
            self.reasons.push(Reason::new(self.object(), why, "start it without strict seccomp"));
        }
        if !self.is_filtered() {
            return;
        }
        let privileged = self.door == Door::Attach && may_suspend();
        match kept(self.pid, &self.status) {
            Ok(kept) => {
                self.judge = Judge::new(kept.filters, privileged);
                let reasons = self.unfit();
                self.reasons.extend(reasons);
            }
            Err(_) if privileged => {} // the kernel tells them, in the freeze
            Err(why) => self.reasons.push(unknown(self.object(), &why)),
        }
    }

    /// In the freeze. `told`: what the kernel says, where it does.
    pub(super) fn seccomp_frozen(&mut self, told: Option<Suspended>) -> Step<()> {
        if !self.is_filtered() {
            return Ok(());
        }
        let (filters, suspended) = match told {
            Some(told) if !told.apart.is_empty() => {
                return self.refuse_for(told.apart.into_iter().map(apart).collect())
            }
            Some(told) => (told.filters, true),
            None => match kept(self.pid, &self.status) {
                Ok(kept) => (kept.filters, false),
                Err(why) => return self.refuse_for(vec![unknown(self.object(), &why)]),
            },
        };
        self.judge = Judge::new(filters, suspended);
        if let Some(why) = self.shut_to_agent() {
            return Err(why.into());
        }
        self.refuse_for(self.unfit())
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
        if !self.status.no_new_privs && self.status.cap_effective & CAP_SYS_ADMIN == 0 {
            let why = "it has seccomp filters, and neither no_new_privs nor CAP_SYS_ADMIN, without which they cannot be set again";
            let remedy = "let it set no_new_privs before (PR_SET_NO_NEW_PRIVS; systemd: NoNewPrivileges=yes)";
            reasons.push(Reason::new(self.object(), why, remedy));
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

fn unknown(object: String, why: &Unknown) -> Reason {
    let why = format!("a seccomp filter restricts it, and the first forbidden call made inside could kill it: {why}");
    let remedy = match why {
        _ if why.contains("at this moment") => "it runs on as before; try again",
        _ => "run ctl as root, to whom the kernel tells its filters; or start it by launcher, whose agent keeps them",
    };
    Reason::new(object, why, remedy)
}

fn apart(tid: i32) -> Reason {
    let (why, remedy) = OTHERS;
    Reason::new(format!("thread {tid}"), why, remedy)
}

/// Why a thread with filters of its own is refused, and what to do.
pub(super) const OTHERS: (&str, &str) = (
    "its seccomp filters are not those of the process's first thread, which is not kept yet",
    "set them for all threads (SECCOMP_FILTER_FLAG_TSYNC), or before the threads are made",
);

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
