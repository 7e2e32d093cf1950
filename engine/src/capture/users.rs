//! User namespaces: a process may be in one that was made in ours, or in that of a private restore. What is in one has IDs, here and in the image, as we see them, and
//! capabilities that count inside.
use super::find::Survey;
use super::{Fault, Step};
use crate::sharing::{Groups, FS, VM};
use crate::Reason;
use image::v1::users::Users;
use std::collections::BTreeMap;
use sys::procfs::ns::{NsIds, NsKind};
use sys::procfs::{self, status::Status};
use sys::userns::{self, Maps, UserNs};

const OBJECT: &str = "user namespace";

/// A user namespace that a frozen process is in.
#[derive(Debug)]
pub(super) struct Space {
    /// Its inode number.
    id: u64,
    owner: u32,
    maps: Maps,
}

/// In which user namespace a process is.
#[derive(Debug, PartialEq)]
enum Place {
    /// The one that is around the program.
    Around,
    /// One in that.
    Nested,
    /// One in one in that, or deeper.
    Deeper,
    /// Another.
    Elsewhere,
}

/// `around`: those around the process, its own first; `base`: the one around the program.
fn place(around: &[u64], base: u64) -> Place {
    match around.iter().position(|id| *id == base) {
        Some(0) => Place::Around,
        Some(1) => Place::Nested,
        Some(_) => Place::Deeper,
        None => Place::Elsewhere,
    }
}

impl Survey {
    /// Its user namespace against ours, or against that of our init: what is not kept is a reason.
    pub(super) fn user_namespace(&mut self, mine: &NsIds, theirs: &NsIds) {
        let init = our_init(&self.status).filter(|_| self.private);
        let base = match init.map_or(Ok(mine.get(NsKind::User)), |p| procfs::ns::read_one(p, NsKind::User).map(Some)) {
            Ok(base) => base,
            Err(_) => return, // it is about to end
        };
        if base == theirs.get(NsKind::User) {
            return;
        }
        let outside =
            ("the process is in another one than this command", "run ctl inside the same container or namespace");
        let (why, remedy) = match base.and_then(|base| Some(place(&userns::around(self.pid).ok()?, base))) {
            Some(Place::Around) => return,
            Some(Place::Nested) => {
                self.users = theirs.get(NsKind::User);
                return;
            }
            Some(Place::Deeper) if init.is_none() => (
                "it is in one that is in another one, and only one inside this command's is kept",
                "run ctl inside the outer one (nsenter --user --preserve-credentials, with a process of that as --target)",
            ),
            Some(Place::Deeper) => (
                "it is in one that is in another one, and only one is kept",
                "let the program make one inside the other no more",
            ),
            Some(Place::Elsewhere) | None => outside,
        };
        self.reasons.push(Reason::new(OBJECT, why, remedy));
    }

    /// In the freeze: what that one says now. None: it is in none of its own.
    pub(super) fn space(&self) -> Step<Option<Space>> {
        let Some(id) = self.users else { return Ok(None) };
        let io = |e: std::io::Error| Fault::Sys(sys::Error::call("reading its user namespace", self.pid, e));
        let owner = UserNs::of(self.pid).and_then(|n| n.owner()).map_err(io)?;
        Ok(Some(Space { id, owner, maps: userns::maps(self.pid).map_err(io)? }))
    }
}

/// The init of its PID namespace, if that is one of ours.
pub(super) fn our_init(s: &Status) -> Option<i32> {
    let mut parent = s.ppid;
    // as many generations as there are PIDs at the very most
    for _ in 0..1 << 22 {
        match procfs::status::read(parent) {
            Ok(p) if p.ns_tgid.len() != s.ns_tgid.len() => return None,
            Ok(p) if p.ns_tgid.last() == Some(&1) => {
                return procfs::comm(parent).is_ok_and(|c| c == b"dormouse-init").then_some(parent)
            }
            Ok(p) => parent = p.ppid,
            Err(_) => return None,
        }
    }
    None
}

/// What others share with the program that are not captured with it: they stay in the one that there is, and a restored program has another.
pub(super) fn report_others(all: &mut [Survey]) {
    let members: Vec<i32> = all.iter().map(|s| s.pid).collect();
    let mut first: BTreeMap<u64, usize> = BTreeMap::new();
    for (i, s) in all.iter().enumerate() {
        s.users.map(|id| first.entry(id).or_insert(i));
    }
    if first.is_empty() {
        return;
    }
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for pid in procfs::pids().unwrap_or_default().into_iter().filter(|p| !members.contains(p)) {
        let id = procfs::ns::read_one(pid, NsKind::User).ok();
        if let Some(i) = id.and_then(|id| first.get(&id)) {
            let name = procfs::comm(pid).map(|c| c.escape_ascii().to_string()).unwrap_or_default();
            found.entry(*i).or_default().push(format!("PID {pid} ({name})"));
        }
    }
    for (i, s) in all.iter_mut().enumerate() {
        s.reported.retain(|l| !l.starts_with(OBJECT));
        if let Some(others) = found.get(&i) {
            let others = others.join(", ");
            let what =
                "in it, too, and not in the checkpoint; a restored program has one of its own, with the same maps";
            s.reported.push(format!("{OBJECT}: {others} is {what}"));
        }
    }
}

/// Refuses one that shares its working directory or memory with another: a process can make a user namespace only without (unshare(2)).
pub(super) fn refuse_shared(all: &[Survey], shared: &Groups) -> Step<()> {
    let own = |kind: usize| super::shares::sharers(&shared[kind]).filter(|i| all[*i].users.is_some());
    let reason = |kind: usize, i: usize| {
        let why = format!(
            "it shares {}, and is in a user namespace of its own, which is not kept together",
            crate::sharing::KINDS[kind].1
        );
        Reason::new(all[i].describe(), why, "let it unshare(2) them, or start it without one of the two")
    };
    all[0].refuse_for([FS, VM].into_iter().flat_map(|kind| own(kind).map(move |i| reason(kind, i))).collect())
}

/// Refuses threads in one, where a process comes before that is not in it: no restore of that has been tried since descriptors are handed on before anybody enters.
pub(super) fn refuse_threads(all: &[Survey]) -> Step<()> {
    let threads = |s: &Survey| -> Step<usize> {
        // the kernel's own for a ring of io_uring are none
        Ok(procfs::tasks(s.pid)?.iter().filter(|tid| s.threads.contains_key(tid)).count())
    };
    let mut reasons = Vec::new();
    for (i, s) in all.iter().enumerate().skip(1) {
        let Some(other) = all[..i].iter().find(|o| s.users.is_some() && o.users != s.users) else { continue };
        // all who are in it enter it at the same time
        for with in all.iter().filter(|o| o.users == s.users) {
            if threads(with)? > 1 {
                let why = format!(
                    "{} has threads, and {} is not in it: that is not kept yet in one checkpoint",
                    with.describe(),
                    other.describe()
                );
                let reason = Reason::new(OBJECT, why, format!("checkpoint what is in it alone (--pid {})", s.pid));
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
    }
    all[0].refuse_for(reasons)
}

/// Refuses System V semaphores and message queues with threads in one: what a restore makes and changes of them it would do from inside. `all`: who is in one, and how
/// many threads each has.
pub(super) fn refuse_objects(attempted: &str, mut all: impl Iterator<Item = (bool, usize)>) -> Step<()> {
    if !all.any(|(inside, threads)| inside && threads > 1) {
        return Ok(());
    }
    let why = "threads are in it, and the program uses System V semaphores or message queues: that is not kept yet in one checkpoint";
    let remedy = "checkpoint it when those are removed (ipcrm), or when one thread is left";
    Err(crate::Error::new(crate::Kind::Refused, attempted, OBJECT, why, remedy).into())
}

/// Those of all processes, in the image's words. `of`: PID in the innermost namespace, and what it is in.
pub(super) fn kept<'s>(of: impl Iterator<Item = (i32, Option<&'s Space>)>) -> Vec<Users> {
    let mut all: Vec<(u64, Users)> = Vec::new();
    for (pid, space) in of {
        let Some(s) = space else { continue };
        match all.iter_mut().find(|(id, _)| *id == s.id) {
            Some((_, users)) => users.members.push(pid),
            None => {
                let Maps { users, groups, setgroups } = s.maps.clone();
                let members = vec![pid];
                all.push((s.id, Users { members, owner: s.owner, uid_map: users, gid_map: groups, setgroups }));
            }
        }
    }
    all.into_iter().map(|(_, users)| users).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_is_kept() {
        assert_eq!(place(&[5], 5), Place::Around);
        assert_eq!(place(&[6, 5], 5), Place::Nested);
        assert_eq!(place(&[6, 5, 4], 5), Place::Nested);
        assert_eq!(place(&[7, 6, 5], 5), Place::Deeper);
        assert_eq!(place(&[7, 6], 5), Place::Elsewhere);
    }

    #[test]
    fn those_in_one_are_together() {
        let space = |id| Space { id, owner: 7, maps: Maps { users: vec![(0, 7, 1)], ..Maps::default() } };
        let (a, b, c) = (space(1), space(2), space(1));
        let all = kept([(10, Some(&a)), (11, None), (12, Some(&b)), (13, Some(&c))].into_iter());
        assert_eq!(all.iter().map(|u| u.members.clone()).collect::<Vec<_>>(), [vec![10, 13], vec![12]]);
        assert_eq!(all[0].uid_map, [(0, 7, 1)]);
    }
}
