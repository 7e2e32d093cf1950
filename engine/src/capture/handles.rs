//! Handles of processes (pidfds): which are of those that are captured together, and so can be made again.
use super::files::FileView;
use sys::procfs::{self, State};

/// Marks those of `members`, of their threads, and of who has ended and that one of them has yet to wait for. In the freeze that is exact. `above`: before
/// it, the parent of the first of them: of whom they, or it, have below them, it cannot be said yet.
pub(super) fn mark<'v>(views: impl Iterator<Item = &'v mut FileView>, members: &[i32], above: Option<i32>) {
    for v in views {
        let of = v.info.pidfd.as_ref().map_or(0, |p| p.pid);
        v.relative = of > 0 && (belongs(of, members) || above.is_some_and(|a| is_below(of, members, a)));
    }
}

/// `pid` may be a thread's.
fn belongs(pid: i32, members: &[i32]) -> bool {
    let of_a_member = procfs::status::read(pid).is_ok_and(|s| members.contains(&s.tgid));
    of_a_member || procfs::stat::read(pid).is_ok_and(|s| s.state == State::Zombie && members.contains(&s.ppid))
}

fn is_below(pid: i32, members: &[i32], above: i32) -> bool {
    let parent = |pid: &i32| procfs::stat::read(*pid).ok().map(|s| s.ppid).filter(|p| *p > 1);
    // parents end: as many generations as there are PIDs at the very most
    std::iter::successors(parent(&pid), parent).take(1 << 22).any(|p| p == above || members.contains(&p))
}
