//! Seccomp filters (seccomp(2)) of a target: its programs, and whether they let through what we call inside it.
//!
//! A call of ours that a filter forbids can kill the program, so none is made that was not judged before: what the blob and the agent always
//! call by [`needs`], and each program of calls as it is sent ([`crate::channel::Channel`]).
mod bpf;
mod chains;
mod kept;
pub mod needs;

pub use chains::Chains;
pub(crate) use kept::kept_in;
pub use kept::{begun, kept, Kept, Unknown};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// linux/seccomp.h
pub const FLAG_TSYNC: u32 = 1;
/// Whatever the filter does is logged.
pub const FLAG_LOG: u32 = 2;
/// Speculation stays as it is.
pub const FLAG_SPEC_ALLOW: u32 = 4;
/// Somebody answers for the kernel.
pub const FLAG_NEW_LISTENER: u32 = 8;
/// Bytes of an instruction.
pub const INSTRUCTION: usize = 8;

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Its program: struct sock_filter, 8 bytes an instruction.
    #[serde(with = "serde_bytes")]
    pub code: Vec<u8>,
    /// The flags that it was set with, as far as they are known.
    pub flags: u32,
}

impl Filter {
    /// Whether it may ask another process for an answer (SECCOMP_RET_USER_NOTIF).
    pub fn asks_somebody(&self) -> bool {
        self.flags & FLAG_NEW_LISTENER != 0 || bpf::returns(&self.code, bpf::USER_NOTIF)
    }
}

/// What becomes of a call, at the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is made.
    Allowed,
    /// It may be answered with an error instead.
    Fails,
    /// It may end the thread or the process, or wait for somebody else's answer.
    Deadly,
}

/// Arguments as far as they are known.
pub type Args = [Option<u64>; 6];

/// What these filters together make of a call. What is not known is taken to be anything.
pub fn verdict(filters: &[Filter], nr: i64, args: &Args) -> Verdict {
    let data = bpf::data(nr, args);
    filters.iter().map(|f| bpf::verdict(&f.code, &data)).max().unwrap_or(Verdict::Allowed)
}

/// Whether the filters of a process let a call of ours through: all that any of its threads has, for which of them serves is not chosen by us.
#[derive(Debug, Default)]
pub struct Judge {
    filters: Vec<Filter>,
    suspended: bool,
    known: Mutex<BTreeMap<(i64, Args), Verdict>>,
}

impl Clone for Judge {
    fn clone(&self) -> Judge {
        Judge::new(self.filters.clone(), self.suspended)
    }
}

impl Judge {
    /// Of these filters. `suspended`: a tracer keeps them off (PTRACE_O_SUSPEND_SECCOMP). Should it be killed meanwhile, they are there again: then
    /// a call of ours may fail, but must not kill.
    pub fn new(filters: Vec<Filter>, suspended: bool) -> Judge {
        Judge { filters, suspended, known: Mutex::default() }
    }

    /// For a process that has the same filters and no tracer.
    pub fn beside(&self) -> Judge {
        Judge::new(self.filters.clone(), false)
    }

    /// The filters.
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// Whether a tracer keeps them off.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    fn permits(&self, nr: i64, args: &Args) -> bool {
        if self.filters.is_empty() {
            return true;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let v = *known.entry((nr, *args)).or_insert_with(|| verdict(&self.filters, nr, args));
        v == Verdict::Allowed || self.suspended && v == Verdict::Fails
    }

    /// The names of the calls that are not let through, each once.
    pub fn refused(&self, calls: impl IntoIterator<Item = (i64, Args)>) -> Vec<String> {
        let mut names = Vec::new();
        for (nr, args) in calls {
            if !self.permits(nr, &args) {
                let name = crate::syscalls::name(nr);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filter that answers with `action` to these calls, and allows all others.
    pub(super) fn denying(calls: &[i64], action: u32) -> Filter {
        let one = |code: u16, jt: u8, k: u32| {
            let mut b = code.to_le_bytes().to_vec();
            b.extend_from_slice(&[jt, 0]);
            b.extend_from_slice(&k.to_le_bytes());
            b
        };
        let mut code = one(0x20, 0, 0);
        for (i, nr) in calls.iter().enumerate() {
            code.extend(one(0x15, (calls.len() - i) as u8, *nr as u32));
        }
        code.extend(one(6, 0, 0x7fff_0000));
        code.extend(one(6, 0, action));
        Filter { code, flags: 0 }
    }

    #[test]
    fn the_worst_of_all_filters_counts() {
        let (fails, kills) = (denying(&[83], 0x0005_0001), denying(&[41], 0x8000_0000));
        let both = [fails.clone(), kills];
        let v = |nr| verdict(&both, nr, &[None; 6]);
        assert_eq!((v(83), v(41), v(0)), (Verdict::Fails, Verdict::Deadly, Verdict::Allowed));
        let judge = Judge::new(both.to_vec(), false);
        let calls = [83, 41, 0, 83].map(|nr| (nr, [None; 6]));
        assert_eq!(judge.refused(calls), ["mkdir", "socket"]);
        assert_eq!(Judge::new(both.to_vec(), true).refused(calls), ["socket"]);
        assert_eq!(Judge::new(both.to_vec(), true).beside().refused(calls), ["mkdir", "socket"]);
        assert!(!fails.asks_somebody() && denying(&[1], 0x7fc0_0000).asks_somebody());
    }
}
