//! What processes share that are no threads of each other, and how they come to it again. Sharing begins at a birth (clone(2)) and at no other time, and who bears
//! whom in a restore is settled by parents and sessions (restore/family.rs). So those between two that share are born with it, too, and leave it (unshare(2)) when
//! all are born. What would have to be in two hands at once cannot be made: that is refused, at the checkpoint already. Nobody can leave shared memory or signal
//! handlers, so there all between two that share have to share, too.
use crate::Reason;
use std::collections::BTreeMap;

/// What can be shared, in the order of [`Groups`].
pub(crate) const KINDS: [(i32, &str); 4] = [
    (libc::CLONE_FS, "its working directory and umask (CLONE_FS)"),
    (libc::CLONE_FILES, "its descriptors (CLONE_FILES)"),
    (libc::CLONE_SIGHAND, "its signal handlers (CLONE_SIGHAND)"),
    (libc::CLONE_VM, "its memory (CLONE_VM)"),
];
/// Where those are.
pub(crate) const FS: usize = 0;
pub(crate) const FILES: usize = 1;
pub(crate) const SIGHAND: usize = 2;
pub(crate) const VM: usize = 3;
/// What unshare(2) can end.
const LEFT: i32 = libc::CLONE_FS | libc::CLONE_FILES;

/// Of each kind and process, the first process with which it shares; itself, if it shares with none that comes before it.
pub(crate) type Groups = [Vec<usize>; KINDS.len()];

/// A process, as far as it matters who bears it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kin {
    /// PID.
    pub pid: i32,
    /// Its parent's, if that is among them; else 0.
    pub parent: i32,
    /// Session.
    pub sid: i32,
}

/// How they are born.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Births {
    /// What each is born sharing with who bears it: CLONE_ flags.
    pub with: Vec<i32>,
    /// What each leaves when all are born: CLONE_ flags. The last is of what bears those without parents.
    pub until: Vec<i32>,
}

/// Two that share, but cannot be born so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parted {
    /// Index of the one.
    pub of: usize,
    /// Index of an earlier one.
    pub with: usize,
    /// What they share.
    pub what: &'static str,
}

impl Parted {
    /// Why it is refused. `name`: of a process.
    pub fn reason(&self, name: impl Fn(usize) -> String) -> Reason {
        let Parted { of, with, what } = self;
        let why = format!("it shares {what} with {}, and cannot be born to that again: none of them is the other's child, and what is between them has ended or shares with others", name(*with));
        let left = KINDS.iter().any(|(flag, words)| words == what && flag & LEFT != 0);
        let remedy = if left { "let it have its own (unshare(2)), or checkpoint" } else { "checkpoint" };
        Reason::new(name(*of), why, format!("{remedy} when one of them has ended"))
    }
}

/// Who bears each of them: the index of a process, or the number of processes for what bears those without parents. None: a founder of their session, whose
/// leader has ended, or nobody of ours. A helper between is born as its child is. Mirrors restore/family.rs.
fn bearers(all: &[Kin]) -> Vec<Option<usize>> {
    let index = |pid: i32| all.iter().position(|k| k.pid == pid);
    let bearer = |(i, k): (usize, &Kin)| {
        let parent = index(k.parent).filter(|_| k.parent != 0);
        let above = parent.map(|p| &all[p]);
        let older = |a: &Kin| a.sid == a.pid && index(a.parent).is_some_and(|g| all[g].sid == k.sid);
        if above.is_some_and(|a| k.sid == a.sid || k.sid == k.pid || older(a)) {
            return parent;
        }
        // adopted: below a process of its session
        let program = (k.sid == all[0].sid).then_some(0);
        match program.or_else(|| index(k.sid)) {
            _ if i == 0 => None,
            Some(leader) if leader == i => Some(parent.unwrap_or(all.len())),
            leader => leader,
        }
    };
    all.iter().enumerate().map(bearer).collect()
}

/// How all are born, so that they share; or who cannot be. Processes come after their parents.
pub(crate) fn plan(all: &[Kin], groups: &Groups) -> Result<Births, Vec<Parted>> {
    let mut births = Births { with: vec![0; all.len()], until: vec![0; all.len() + 1] };
    let (bearers, mut apart) = (bearers(all), Vec::new());
    // as many steps as there are processes at the very most
    let line = |i: usize| -> Vec<usize> {
        let above = |x: &usize| bearers.get(*x).copied().flatten();
        std::iter::successors(Some(i), above).take(all.len() + 1).collect()
    };
    for ((flag, what), of) in KINDS.into_iter().zip(groups) {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        of.iter().enumerate().for_each(|(i, first)| members.entry(*first).or_default().push(i));
        members.retain(|_, m| m.len() > 1);
        let mut holds: BTreeMap<usize, usize> = members.iter().flat_map(|(g, m)| m.iter().map(|i| (*i, *g))).collect();
        for (group, members) in &members {
            let lines: Vec<Vec<usize>> = members.iter().map(|i| line(*i)).collect();
            let common = lines[0].iter().copied().find(|x| lines.iter().all(|l| l.contains(x)));
            let paths = lines.iter().map(|l| l.split(|x| Some(*x) == common).next().unwrap_or_default());
            let between: Vec<usize> = paths.flatten().copied().chain(common).collect();
            let fits = |x: &usize| holds.get(x).map_or(flag & LEFT != 0, |g| g == group);
            if common.is_none() || !between.iter().all(fits) {
                apart.push(Parted { of: members[1], with: *group, what });
                continue;
            }
            for x in between {
                if holds.insert(x, *group).is_none() {
                    births.until[x] |= flag;
                }
                if Some(x) != common {
                    births.with[x] |= flag;
                }
            }
        }
    }
    match apart.is_empty() {
        true => Ok(births),
        false => Err(apart),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PID, parent, session of each.
    fn family(all: &[(i32, i32, i32)]) -> Vec<Kin> {
        all.iter().map(|(pid, parent, sid)| Kin { pid: *pid, parent: *parent, sid: *sid }).collect()
    }

    /// Who is born with it, and who leaves it, by index.
    fn born(all: &[(i32, i32, i32)], first: &[usize]) -> Result<(Vec<usize>, Vec<usize>), (usize, usize)> {
        let own: Vec<usize> = (0..first.len()).collect();
        let groups = std::array::from_fn(|kind| if kind <= FILES { first.to_vec() } else { own.clone() });
        let set = |v: &[i32]| v.iter().enumerate().filter(|(_, f)| **f != 0).map(|(i, _)| i).collect();
        plan(&family(all), &groups).map(|b| (set(&b.with), set(&b.until))).map_err(|a| (a[0].of, a[0].with))
    }

    #[test]
    fn a_child_that_shares_is_born_so() {
        let all = [(10, 0, 1), (11, 10, 1), (12, 10, 1), (13, 12, 1)];
        assert_eq!(born(&all, &[0, 1, 2, 3]), Ok((vec![], vec![])));
        assert_eq!(born(&all, &[0, 0, 2, 3]), Ok((vec![1], vec![])));
        assert_eq!(born(&all, &[0, 1, 2, 2]), Ok((vec![3], vec![])));
        assert_eq!(born(&all, &[0, 0, 2, 2]), Ok((vec![1, 3], vec![])));
    }

    #[test]
    fn those_between_leave_it() {
        let all = [(10, 0, 1), (11, 10, 1), (12, 10, 1), (13, 12, 1)];
        // grandparent and grandchild; siblings
        assert_eq!(born(&all, &[0, 1, 2, 0]), Ok((vec![2, 3], vec![2])));
        assert_eq!(born(&all, &[0, 1, 1, 3]), Ok((vec![1, 2], vec![0])));
    }

    #[test]
    fn what_cannot_be_in_two_hands_is_refused() {
        // the one between has something of its own with another
        assert_eq!(born(&[(10, 0, 1), (11, 10, 1), (12, 11, 1), (13, 11, 1)], &[0, 1, 0, 1]), Err((2, 0)));
        // the leader of their session has ended: each has a founder above it
        assert_eq!(born(&[(10, 0, 1), (20, 0, 7), (21, 0, 7)], &[0, 1, 1]), Err((2, 1)));
    }

    #[test]
    fn nobody_between_can_leave_memory() {
        let born = |all: &[(i32, i32, i32)], first: &[usize]| {
            let own: Vec<usize> = (0..first.len()).collect();
            let groups = std::array::from_fn(|kind| if kind == VM { first.to_vec() } else { own.clone() });
            let set = |v: &[i32]| v.iter().enumerate().filter(|(_, f)| **f != 0).map(|(i, _)| i).collect::<Vec<_>>();
            plan(&family(all), &groups).map(|b| (set(&b.with), set(&b.until))).map_err(|a| (a[0].of, a[0].with))
        };
        let all = [(10, 0, 1), (11, 10, 1), (12, 11, 1), (13, 10, 1)];
        assert_eq!(born(&all, &[0, 0, 0, 0]), Ok((vec![1, 2, 3], vec![])));
        assert_eq!(born(&all, &[0, 1, 1, 3]), Ok((vec![2], vec![])));
        // the one between has its own; siblings whose parent has
        assert_eq!(born(&all, &[0, 1, 0, 3]), Err((2, 0)));
        assert_eq!(born(&all, &[0, 1, 2, 1]), Err((3, 1)));
        // its parent has ended: by a helper that has the program's
        assert_eq!(born(&[(10, 0, 1), (20, 0, 1)], &[0, 0]), Ok((vec![1], vec![])));
    }

    #[test]
    fn the_adopted_are_born_below_their_session() {
        // by the program; by what bears those without parents
        assert_eq!(born(&[(10, 0, 1), (20, 0, 1), (21, 20, 1)], &[0, 0, 2]), Ok((vec![1], vec![])));
        assert_eq!(born(&[(10, 0, 1), (20, 0, 20), (21, 0, 21)], &[0, 1, 1]), Ok((vec![1, 2], vec![3])));
        assert_eq!(born(&[(10, 0, 1), (20, 0, 20), (21, 0, 21)], &[0, 0, 2]), Err((1, 0)));
    }
}
