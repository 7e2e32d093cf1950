//! Under which PIDs and TIDs the program can run here.
use super::Tree;
use crate::{Pids, Reason};
use std::collections::BTreeSet;

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
const CAP_SETFCAP: u64 = 1 << 31;

/// What this process may do.
#[derive(Clone, Debug)]
pub struct Rights {
    /// Effective capabilities.
    pub caps: u64,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective UID.
    pub uid: u32,
    /// Effective GID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Bounding set of capabilities, which nobody can make larger.
    pub bounding: u64,
    /// Inheritable capabilities.
    pub inheritable: u64,
}

impl Rights {
    /// Of this process.
    pub fn own() -> Rights {
        match sys::procfs::status::read(std::process::id() as i32) {
            Ok(s) => Rights {
                caps: s.cap_effective,
                permitted: s.cap_permitted,
                uid: s.uid.effective,
                gid: s.gid.effective,
                groups: s.groups,
                bounding: s.cap_bounding,
                inheritable: s.cap_inheritable,
            },
            Err(_) => Rights {
                caps: 0,
                permitted: 0,
                uid: u32::MAX,
                gid: u32::MAX,
                groups: Vec::new(),
                bounding: u64::MAX,
                inheritable: 0,
            },
        }
    }

    /// May choose PIDs in this PID namespace.
    pub fn may_choose_pids(&self) -> bool {
        self.caps & (CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE) != 0
    }

    /// May make a PID namespace without a user namespace.
    pub fn may_make_namespaces(&self) -> bool {
        self.caps & CAP_SYS_ADMIN != 0
    }

    /// May make a PID namespace, be it in a user namespace: to map root into one needs CAP_SETFCAP (user_namespaces(7)).
    fn may_be_private(&self) -> bool {
        self.may_make_namespaces() || self.uid != 0 || self.caps & CAP_SETFCAP != 0
    }

    /// Has this capability, by number.
    pub fn has(&self, cap: u32) -> bool {
        self.caps >> cap & 1 != 0
    }
}

/// Decides; the second part is what to tell about it.
pub fn decide(tree: &Tree<'_>, asked: Pids, rights: &Rights) -> Result<(Pids, Option<String>), Vec<Reason>> {
    let pid = tree.all.first().map_or(0, |i| i.process.pid);
    let private_reasons = || -> Vec<Reason> {
        let low = tree.all.iter().flat_map(|i| &i.threads).any(|t| t.tid == 1);
        let low = low.then(|| {
            Reason::new(
                "PID 1",
                "a private PID namespace has an init of its own under that number",
                "restore it as root with --pids keep in a namespace without PID 1",
            )
        });
        let unmapped = (!rights.may_be_private()).then(|| {
            Reason::new(
                "a private PID namespace",
                "without CAP_SYS_ADMIN it needs a user namespace, and to map root into one CAP_SETFCAP, which you have not either",
                "get one of the two, or CAP_CHECKPOINT_RESTORE for --pids keep; or use --pids fresh",
            )
        });
        low.into_iter().chain(unmapped).collect()
    };
    match asked {
        Pids::Fresh => super::fresh::check(tree).map(|note| (Pids::Fresh, Some(note))),
        Pids::Keep => {
            if !rights.may_choose_pids() {
                let remedy = "use --pids private, or restore it as root";
                return Err(vec![Reason::new(
                    "--pids keep",
                    "choosing a PID here needs CAP_CHECKPOINT_RESTORE",
                    remedy,
                )]);
            }
            match taken(tree) {
                t if t.is_empty() => Ok((Pids::Keep, None)),
                t => Err(t
                    .into_iter()
                    .map(|id| {
                        Reason::new(format!("PID {id}"), "it is in use", "end that process, or use --pids private")
                    })
                    .collect()),
            }
        }
        Pids::Private => match private_reasons() {
            r if r.is_empty() => Ok((Pids::Private, None)),
            r => Err(r),
        },
        Pids::Auto => {
            let why = if !rights.may_choose_pids() {
                "an ordinary user cannot choose PIDs elsewhere".to_string()
            } else if super::users::numbers_threads(tree) {
                "nobody can choose those of threads in a user namespace elsewhere".to_string()
            } else {
                match taken(tree).first() {
                    None => return Ok((Pids::Keep, None)),
                    Some(id) => format!("PID {id} is in use"),
                }
            };
            match private_reasons() {
                r if r.is_empty() => {
                    Ok((Pids::Private, Some(format!("runs in a private PID namespace as PID {pid}: {why}"))))
                }
                r => Err(r),
            }
        }
    }
}

/// Every number that a restore asks the kernel for: of processes, threads, the dead, and of groups and sessions whose leaders have ended.
pub fn numbers(tree: &Tree<'_>) -> BTreeSet<i32> {
    let tids = tree.all.iter().flat_map(|i| &i.threads).map(|t| t.tid);
    tids.chain(tree.zombies.iter().map(|z| z.pid)).chain(super::family::gone(tree)).collect()
}

/// IDs of the image that a process, thread, group or session has here.
fn taken(tree: &Tree<'_>) -> Vec<i32> {
    // without a descriptor to ask by nothing is known, and clone3 will tell
    let Ok(here) = sys::sched::Numbers::new() else { return Vec::new() };
    numbers(tree).into_iter().filter(|t| here.used(*t)).collect()
}
