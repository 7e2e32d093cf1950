//! Restore, as a list of phases. The restored process is a puppet: it runs nothing but the blob, which makes the system
//! calls that this ordinary Rust sends it, until every thread is given its registers and goes on where it was.
//!
//! Read in this order: [`image`] (what is to be made), [`pids`] (under which numbers), [`build`] and [`family`] (the processes), [`clock`] (their time),
//! [`place`], [`fill`] and [`vdso`] (its memory), [`files`] (its descriptors), [`process`] and [`threads`], [`wake`]; [`fresh`] for new PIDs.

mod agent;
pub(crate) mod aio;
mod beside;
mod build;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod creds;
pub(crate) mod ended;
pub(crate) mod family;
pub mod files;
mod fill;
pub(crate) mod fresh;
mod heirloom;
pub(crate) mod hugetlb;
mod image;
mod keys;
mod named;
mod nursery;
pub(crate) mod pids;
pub(crate) mod place;
mod process;
pub(crate) mod ptys;
mod puppet;
pub(crate) mod sealed;
pub(crate) mod seccomp;
mod stdio;
mod sysv;
pub(crate) mod sysvipc;
mod threads;
mod unnamed;
pub(crate) mod users;
pub(crate) mod vdso;
mod waiting;
mod wake;

pub(crate) use build::SPARE_FDS;
pub(crate) use image::{Image, Tree};
pub(crate) use process::THREAD_CLOCK;
pub(crate) use sysv::missing as segments_missing;

use crate::{spread, Error, Kind, Progress, RestoreOptions, Restored, Result};
use ::image::CheckpointHandle;

/// The phases, with the names that errors, logs and fault tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The image's sections.
    Read,
    /// The image against this machine.
    Check,
    /// The process, and the init of its private PID namespace.
    Build,
    /// Its memory.
    Place,
    /// The content of its memory.
    Fill,
    /// Its threads, and its descriptors.
    Files,
    /// What its threads have, and attributes.
    Threads,
    /// Every thread goes on where it was.
    Wake,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 8] =
        [Phase::Read, Phase::Check, Phase::Build, Phase::Place, Phase::Fill, Phase::Files, Phase::Threads, Phase::Wake];

    /// Its name; the site of fault tests is `restore-` and this.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Read => "read",
            Phase::Check => "check",
            Phase::Build => "build",
            Phase::Place => "place",
            Phase::Fill => "fill",
            Phase::Files => "files",
            Phase::Threads => "threads",
            Phase::Wake => "wake",
        }
    }
}

/// An error of any room on its way to becoming the engine's.
#[derive(Debug)]
pub enum Fault {
    /// Already ours.
    Ours(Error),
    /// Of the host crate.
    Sys(sys::Error),
    /// Of the image.
    Image(::image::ImageError),
    /// What was done, on what, and the system's answer.
    Io(String, std::io::Error),
    /// The object, why not, and what to do.
    Cannot(crate::Reason),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        Fault::Ours(e)
    }
}
impl From<sys::Error> for Fault {
    fn from(e: sys::Error) -> Fault {
        Fault::Sys(e)
    }
}
impl From<::image::ImageError> for Fault {
    fn from(e: ::image::ImageError) -> Fault {
        Fault::Image(e)
    }
}
impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::Io("a call inside the new process".into(), e)
    }
}
impl From<sys::procfs::ReadError> for Fault {
    fn from(e: sys::procfs::ReadError) -> Fault {
        Fault::Io("looking at the new process".into(), std::io::Error::other(e.to_string()))
    }
}

/// Result of a step.
pub type Step<T> = std::result::Result<T, Fault>;

/// A [`Fault::Cannot`].
pub fn cannot(object: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault::Cannot(crate::Reason::new(object, why, remedy))
}

/// Restores a checkpoint: the program runs when this returns. The calling process must be single-threaded, and becomes the
/// parent of [`Restored::child`].
///
/// Whatever fails, no process is left and the image is untouched.
pub fn restore(handle: &CheckpointHandle, o: &RestoreOptions<'_>) -> Result<Restored> {
    let mut run = Run { phase: Phase::Read, o };
    let r = run.all(handle);
    r.map_err(|f| explain(f, &format!("restore {}", o.what), run.phase.name(), run.phase as u8 > Phase::Check as u8))
}

/// Everything that would make a restore fail, at once; nothing is changed. Gives what would change, a line each.
pub fn check(handle: &CheckpointHandle, o: &RestoreOptions<'_>) -> Result<Vec<String>> {
    let attempted = format!("restore {}", o.what);
    let mut tree = Tree::read(handle).map_err(|f| explain(f, &attempted, "read", false))?;
    stdio::log_to_here(&mut tree, o);
    crate::check::tree(&tree, o, crate::check::Depth::Try).map(|c| c.notes)
}

/// What the caller of the checkpoint noted under a name ([`crate::CaptureOptions::labels`]).
pub fn label(handle: &CheckpointHandle, name: &str) -> Result<Option<String>> {
    image::label(handle, name).map_err(|f| explain(f, "restore", "read", false))
}

/// Whether the program had a terminal at 0, 1 or 2, so that a detached restore should give it one.
pub fn wants_terminal(handle: &CheckpointHandle) -> Result<bool> {
    image::wants_terminal(handle).map_err(|f| explain(f, "restore", "read", false))
}

struct Run<'a> {
    phase: Phase,
    o: &'a RestoreOptions<'a>,
}

impl Run<'_> {
    fn enter(&mut self, p: Phase) -> Step<()> {
        self.phase = p;
        if let Some(f) = self.o.progress {
            f(Progress { phase: p.name(), done: 0, total: 0 });
        }
        sys::fault::point(&format!("restore-{}", p.name()))
            .map_err(|e| Fault::Io("a failure that a test asked for".into(), e))
    }

    fn all(&mut self, handle: &CheckpointHandle) -> Step<Restored> {
        self.enter(Phase::Read)?;
        let mut tree = Tree::read(handle)?;
        let mut notes = Vec::from_iter(stdio::log_to_here(&mut tree, self.o));
        self.enter(Phase::Check)?;
        let checked = crate::check::tree(&tree, self.o, crate::check::Depth::Look)?;
        notes.extend(checked.notes);

        self.enter(Phase::Build)?;
        let o = self.o;
        let (born, mut init) = build::build(&tree, o, checked.pids, &mut notes, &mut |p| self.enter(p))?;
        let mut puppets = puppet::Puppets(born);
        let all = &mut puppets.0;
        self.enter(Phase::Fill)?;
        each(all, &tree, &mut notes, |_, p, image, notes| {
            if image.shares_memory {
                return Ok(());
            }
            place::finish(p, image, o, notes)?;
            fill::tell(p, image, o)
        })?;
        for i in (0..all.len()).filter(|i| tree.memory_of(*i) != *i) {
            all[i].vdso_at = all[tree.memory_of(i)].vdso_at;
        }
        self.enter(Phase::Files)?;
        each(all, &tree, &mut notes, |_, p, image, _| process::places(p, image, o))?;
        // who enters a user namespace before it has threads opens its files before, with the rights that it has here
        let early = if users::numbers_threads(&tree) { Some(files::all(all, &tree, o, &mut notes)?) } else { None };
        users::enter(all, &tree, users::When::BeforeThreads, &mut notes)?;
        // one after the other, while this process has no threads: they have numbers, too; and an open file may be a handle of a thread of any, or owned by it
        for (p, image) in all.iter_mut().zip(&tree.all) {
            threads::start(p, image, init.as_mut())?;
            if p.pids == crate::Pids::Fresh {
                fresh::settle(p, image)?;
            }
        }
        init.map_or(Ok(()), waiting::Waiting::retire)?;
        let made = match early {
            Some(made) => made,
            None => files::all(all, &tree, o, &mut notes)?,
        };
        self.enter(Phase::Threads)?;
        for (i, (p, image)) in all.iter_mut().zip(&tree.all).enumerate() {
            let mut own = Vec::new();
            process::group(p, image, tree.all[0].process.pgid, o, &mut own)?;
            notes.extend(named(i, image, own));
        }
        each(all, &tree, &mut notes, |i, p, image, notes| {
            files::late::owners(p, image, &made[i], notes)?;
            p.adopt()?;
            process::attributes(p, image, notes)?;
            agent::tell(p, image, o)?;
            threads::attributes(p, image, notes)?;
            files::late::positions(p, image)?;
            sealed::seal(p, image)
        })?;
        // what is put back here is not the processes' own, and stays so if anything after it fails; after it they may have no right to
        let ipc = sysvipc::put(all, &tree, &mut notes)?;
        each(all, &tree, &mut notes, |_, p, image, notes| process::limits(p, image, o, notes))?;
        users::enter(all, &tree, users::When::Last, &mut notes)?;
        each(all, &tree, &mut notes, |_, p, image, notes| {
            process::last(p, image, notes)?;
            files::late::polled(p, image, o, notes)?;
            process::descriptors(p, image, notes)
        })?;
        self.enter(Phase::Wake)?;
        let restored = wake::wake(all, &tree, notes)?;
        ipc.keep();
        Ok(restored)
    }
}

/// What is noted of another process than the program (0) names it.
fn named(i: usize, image: &Image<'_>, notes: Vec<String>) -> Vec<String> {
    let line = |l: String| if i == 0 { l } else { format!("{}: {l}", family::name(image)) };
    notes.into_iter().map(line).collect()
}

/// Does something with each process, with several at a time; what it notes of another than the program names it.
fn each(
    all: &mut [puppet::Puppet],
    tree: &Tree<'_>,
    notes: &mut Vec<String>,
    f: impl Fn(usize, &mut puppet::Puppet, &Image<'_>, &mut Vec<String>) -> Step<()> + Sync,
) -> Step<()> {
    let done = spread::over(all.iter_mut().zip(&tree.all), |i, (p, image)| {
        let mut own = Vec::new();
        f(i, p, image, &mut own).map(|()| named(i, image, own))
    });
    for of_one in done.into_iter().flatten() {
        notes.extend(of_one?);
    }
    Ok(())
}

/// An error of another room in the engine's words.
pub(crate) fn explain(f: Fault, attempted: &str, phase: &str, begun: bool) -> Error {
    let late = if begun { Kind::PutBack } else { Kind::Refused };
    let unharmed =
        "no process is left and the image is untouched; `ctl check` and `ctl doctor` tell what this machine permits";
    match f {
        Fault::Ours(e) => e,
        Fault::Cannot(r) => Error { kind: late, attempted: attempted.into(), reasons: vec![r] },
        Fault::Image(e) => {
            let kind = match &e {
                e if e.is_storage() => Kind::Storage,
                e if e.is_absent() => Kind::NoSuch,
                e if e.is_image() => Kind::Damaged,
                _ => late,
            };
            Error::new(kind, attempted, "image", e.to_string(), e.advice())
        }
        Fault::Sys(e @ sys::Error::Died { .. }) => Error::new(
            Kind::TargetDied,
            attempted,
            format!("phase {phase}"),
            format!("the new process ended meanwhile ({e})"),
            unharmed,
        ),
        Fault::Sys(e) => Error::new(late, attempted, format!("phase {phase}"), e.to_string(), unharmed),
        Fault::Io(what, e) => Error::new(late, attempted, format!("phase {phase}"), format!("{what}: {e}"), unharmed),
    }
}
