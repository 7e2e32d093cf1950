//! The open files of all processes that are captured together, each once: by fork and SCM_RIGHTS one open file may have descriptors in several.
use super::files::{self, Ends, FileView};
use super::observe::Hands;
use super::shared::Others;
use super::Step;
use crate::objects;
use image::v1::files::{Fd, Lock, LOCK_POSIX};
use std::collections::hash_map::{Entry, HashMap};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// What was found. An index in `views` is an open file's number in the image.
#[derive(Default)]
pub(super) struct Opened {
    /// Each as the first process that holds it does.
    pub views: Vec<FileView>,
    /// Descriptors of each process.
    pub fds: Vec<Vec<Fd>>,
    /// Record locks of each process on files that an earlier one holds too.
    pub locks: Vec<Vec<(u32, Lock)>>,
}

/// Where copies of descriptors come from.
pub(super) type AllHands = BTreeMap<i32, Hands>;

/// Joins what each process has open.
pub(super) fn join(all: Vec<Vec<FileView>>, hands: &AllHands) -> Step<Opened> {
    let mut o = Opened::default();
    let mut copies: HashMap<usize, OwnedFd> = HashMap::new();
    for views in all {
        let (mut fds, mut locks) = (Vec::new(), Vec::new());
        let before = o.views.len();
        for v in views {
            let id = match same(&o.views[..before], &v, hands, &mut copies)? {
                Some(i) => {
                    let own = objects::locks::held(&v).into_iter().filter(|l| l.kind == LOCK_POSIX);
                    locks.extend(own.map(|l| (i as u32, l)));
                    i
                }
                None => o.views.len(),
            };
            fds.extend(v.fds.iter().map(|(fd, cloexec)| Fd { fd: *fd, open: id as u32, cloexec: *cloexec }));
            if id == o.views.len() {
                o.views.push(v);
            }
        }
        fds.sort_by_key(|f| f.fd);
        o.fds.push(fds);
        o.locks.push(locks);
    }
    Ok(o)
}

/// The open file among those of other processes that is this one.
fn same(
    others: &[FileView],
    v: &FileView,
    hands: &AllHands,
    copies: &mut HashMap<usize, OwnedFd>,
) -> Step<Option<usize>> {
    let mut own = None;
    for (i, other) in others.iter().enumerate().filter(|(_, o)| o.may_be(v)) {
        let own = match &own {
            Some(fd) => fd,
            None => own.insert(copy(v, hands)?),
        };
        let theirs = match copies.entry(i) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => e.insert(copy(other, hands)?),
        };
        let told = sys::agent::same_open_file(theirs.as_fd(), own.as_fd());
        if told.map_err(|e| sys::Error::call(format!("kcmp of descriptor {}", v.first_fd()), v.pid, e))? {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

fn copy(v: &FileView, hands: &AllHands) -> Step<OwnedFd> {
    let of = hands.get(&v.pid).ok_or(sys::Error::Unfit { what: format!("nothing is known of PID {}", v.pid) })?;
    Ok(of.copy(v.first_fd())?)
}

/// Marks ends that are there, and who else holds them.
pub(super) fn mark(o: &mut Opened, members: &[i32], hands: &AllHands, others: &mut Others) {
    let ends = Ends::of(o.views.iter());
    files::mark_ends(&mut |v| copy(v, hands).ok(), o.views.iter_mut(), &ends);
    super::handles::mark(o.views.iter_mut(), members, None);
    others.mark(members, &mut o.views.iter_mut().collect::<Vec<_>>());
}
