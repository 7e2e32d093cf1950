//! User namespaces of a program's own: made again by the first process that was in each, entered by the others (setns(2)), whoever bore whom: where a process was born nobody can
//! tell afterwards. That comes as late as it can, for whoever is inside may do nothing outside any more; but nobody enters one who has threads, so those who will
//! have any do so before these are made.
use super::creds::Creds;
use super::pids::Rights;
use super::puppet::Puppet;
use super::{cannot, named, Fault, Image, Step, Tree};
use crate::{Pids, Reason};
use ::image::v1::process::Process;
use ::image::v1::rights::Rights as Wanted;
use ::image::v1::users::{Range, Users};
use std::collections::BTreeSet;
use sys::program::{Arg::Imm, Program};

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETFCAP: u32 = 31;
const OBJECT: &str = "user namespace";

/// When one is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before there are threads.
    BeforeThreads,
    /// When all else is there but credentials.
    Last,
}

impl When {
    fn of(users: &Users, tree: &Tree<'_>) -> When {
        let threads = |pid: &i32| tree.index(*pid).is_some_and(|i| tree.all[i].threads.len() > 1);
        if users.members.iter().any(threads) {
            When::BeforeThreads
        } else {
            When::Last
        }
    }
}

/// Each has members, which are in no other one, and maps that can be.
pub fn sense(tree: &Tree<'_>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for u in &tree.users {
        if let Some(pid) = u.members.iter().find(|pid| tree.index(**pid).is_none() || !seen.insert(**pid)) {
            return Err(format!("the user namespace of process {pid} makes no sense"));
        }
        let shares = |i: &&Image<'_>| i.shares_fs || i.shares_memory;
        let sharing = tree.all.iter().find(|i| shares(i) && u.members.contains(&i.process.pid));
        if let Some(i) = sharing {
            return Err(format!(
                "the user namespace of process {}, which shares its directory or memory, makes no sense",
                i.process.pid
            ));
        }
        if u.members.is_empty() || !Users::makes_sense(&u.uid_map) || !Users::makes_sense(&u.gid_map) {
            return Err("a map of a user namespace makes no sense".into());
        }
    }
    Ok(())
}

/// Whether we write maps as who may: into that of a process in our own user namespace. Else it writes them itself, and may map its own user and group only.
fn by_us(rights: &Rights, own_users: bool) -> bool {
    !own_users && [CAP_SETUID, CAP_SETGID, CAP_SETFCAP].iter().all(|c| rights.has(*c))
}

/// What stands against making that of a process here. `own_users`: it is restored into a user namespace of ours.
pub fn check(image: &Image<'_>, rights: &Rights, own_users: bool, pids: Pids) -> Vec<Reason> {
    let Some(u) = &image.users else { return Vec::new() };
    let mut reasons = Vec::new();
    let root = "restore it as root";
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    if most.is_ok_and(|n| n.trim() == "0") {
        let why = "this machine permits none (user.max_user_namespaces is 0)";
        reasons.push(Reason::new(OBJECT, why, "sysctl -w user.max_user_namespaces=1000"));
    }
    if !by_us(rights, own_users) {
        for (what, map, own) in [("users", &u.uid_map, rights.uid), ("groups", &u.gid_map, rights.gid)] {
            if !map.is_empty() && !matches!(map[..], [(_, outside, 1)] if outside == own) {
                let why =
                    format!("its map of {what} ({}) is more than you may write: your own only ({own})", text(map));
                reasons.push(Reason::new(OBJECT, why, root));
            }
        }
        if !u.gid_map.is_empty() && u.setgroups {
            let why = "its map of groups was written by who may, as setgroups(2) is permitted in it, and you may not";
            reasons.push(Reason::new(OBJECT, why, root));
        }
        if u.owner != rights.uid {
            let why = format!("it was made by user {}, and you are user {}", u.owner, rights.uid);
            reasons.push(Reason::new(OBJECT, why, format!("restore it as user {} or as root", u.owner)));
        }
    }
    reasons.extend(ids(&image.process, &image.rights.values().cloned().collect::<Vec<_>>(), u));
    if image.threads.len() > 1 && pids == Pids::Keep {
        let why = format!("process {} has threads in it, and nobody may choose their numbers there", image.process.pid);
        reasons.push(Reason::new(OBJECT, why, "use --pids private, or --pids fresh"));
    }
    reasons
}

/// Whether threads are made in one, where nobody may choose their numbers.
pub fn numbers_threads(tree: &Tree<'_>) -> bool {
    tree.all.iter().any(|i| i.users.is_some() && i.threads.len() > 1)
}

/// What its threads have that nobody could give them there; `others`: those of threads that have others than their process.
pub(crate) fn ids(process: &Process, others: &[Wanted], u: &Users) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let [r, _, s, _] = process.uid;
    let have = ([r, u.owner, s, u.owner], process.gid);
    for w in std::iter::once(&Wanted::of(process)).chain(others) {
        reasons.extend(unmapped(w, have, u));
        if sorted(&w.groups) != sorted(&process.groups) {
            let why = format!("thread {} has supplementary groups of its own in it, which is not kept yet", w.tid);
            reasons.push(Reason::new(OBJECT, why, "checkpoint it when that thread has ended"));
        }
    }
    reasons
}

/// IDs of a thread that it cannot get inside: not in the maps. `have`: users and groups that it has as it enters.
fn unmapped(w: &Wanted, have: ([u32; 4], [u32; 4]), u: &Users) -> Option<Reason> {
    let lost = |want: [u32; 4], have: [u32; 4], map: &[Range]| {
        let new = |i: usize| if i == 3 { want[3] != want[1] } else { want[i] != have[i] };
        (0..4).find(|i| new(*i) && Users::inside(map, want[*i]).is_none()).map(|i| want[i])
    };
    let user = lost(w.uid, have.0, &u.uid_map).map(|id| ("user", id));
    let (what, id) = user.or_else(|| lost(w.gid, have.1, &u.gid_map).map(|id| ("group", id)))?;
    let why = format!("thread {} has {what} {id}, which its maps have not", w.tid);
    Some(Reason::new(OBJECT, why, "let it have IDs of its maps"))
}

fn sorted(groups: &[u32]) -> Vec<u32> {
    let mut all = groups.to_vec();
    all.sort_unstable();
    all
}

/// What is not as it was.
pub fn notes(image: &Image<'_>, own_users: bool) -> Option<String> {
    let u = image.users.as_ref()?;
    let denied = own_users || std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|s| s.trim() == "deny");
    let words = "setgroups(2) is not permitted in its user namespace, as it is not in the one around it; it was";
    (u.setgroups && denied).then(|| words.into())
}

/// All that are to be entered now.
pub fn enter(all: &mut [Puppet], tree: &Tree<'_>, when: When, notes: &mut Vec<String>) -> Step<()> {
    for u in tree.users.iter().filter(|u| When::of(u, tree) == when) {
        let members: Vec<usize> = u.members.iter().filter_map(|pid| tree.index(*pid)).collect();
        let Some((first, others)) = members.split_first() else { continue };
        make(&mut all[*first], &tree.all[*first], u, &mut |n| notes.extend(named(*first, &tree.all[*first], n)))?;
        let at = all[*first].inner;
        for i in others {
            let mut p = Program::new();
            let mut own = Vec::new();
            begin(&all[*i], &tree.all[*i], u, &mut p, &mut own);
            notes.extend(named(*i, &tree.all[*i], own));
            let path = p.cstr(format!("/proc/{at}/ns/user").as_bytes());
            let fd = p.call(libc::SYS_open, &[path, Imm((libc::O_RDONLY | libc::O_CLOEXEC) as u64)]);
            p.named(format!("opening the user namespace of process {at}"));
            p.call(libc::SYS_setns, &[fd.arg(), Imm(libc::CLONE_NEWUSER as u64)]);
            p.named(format!("entering the user namespace of process {at}"));
            p.call(libc::SYS_close, &[fd.arg()]);
            all[*i].run(&p)?;
        }
    }
    Ok(())
}

/// Its IDs, as they are outside. A change of them makes it one that only root may look at: so it stays, if it was such a one, as far as it writes its maps not
/// itself; others could read it before it runs.
fn begin(puppet: &Puppet, image: &Image<'_>, u: &Users, p: &mut Program, notes: &mut Vec<String>) {
    Creds::before_users(puppet, image, u, p, notes);
    if image.process.dumpable == 1 || !by_us(&Rights::own(), puppet.own_users) {
        p.call(libc::SYS_prctl, &[Imm(libc::PR_SET_DUMPABLE as u64), Imm(1)]);
    }
}

/// Makes one, with its maps.
fn make(puppet: &mut Puppet, image: &Image<'_>, u: &Users, note: &mut dyn FnMut(Vec<String>)) -> Step<()> {
    let (mut p, mut own) = (Program::new(), Vec::new());
    begin(puppet, image, u, &mut p, &mut own);
    note(own);
    let made = p.may(libc::SYS_unshare, &[Imm(libc::CLONE_NEWUSER as u64)]);
    let refused = |e| cannot(OBJECT, format!("it cannot be made here: {e}"), "`ctl doctor` says what forbids it");
    puppet.run(&p)?.get(made).map_err(refused)?;
    if by_us(&Rights::own(), puppet.own_users) {
        for (file, text) in files(u) {
            let path = format!("/proc/{}/{file}", puppet.pid);
            std::fs::write(&path, text).map_err(|e| Fault::Io(format!("writing {path}"), e))?;
        }
        return Ok(());
    }
    let mut p = Program::new();
    for (file, text) in files(u) {
        write(&mut p, file, &text);
    }
    puppet.run(&p).map(drop)
}

/// What is written, in this order: groups can be mapped by an ordinary user only where setgroups(2) is not permitted.
fn files(u: &Users) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if !u.setgroups {
        all.push(("setgroups", "deny".into()));
    }
    let maps = [("uid_map", &u.uid_map), ("gid_map", &u.gid_map)];
    all.extend(maps.into_iter().filter(|(_, m)| !m.is_empty()).map(|(file, m)| (file, lines(m))));
    all
}

fn write(p: &mut Program, file: &str, text: &str) {
    let path = p.cstr(format!("/proc/self/{file}").as_bytes());
    let fd = p.call(libc::SYS_open, &[path, Imm((libc::O_WRONLY | libc::O_CLOEXEC) as u64)]);
    p.named(format!("opening /proc/self/{file}"));
    let bytes = p.bytes(text.as_bytes());
    p.call(libc::SYS_write, &[fd.arg(), bytes, Imm(text.len() as u64)]);
    p.named(format!("writing /proc/self/{file}"));
    p.call(libc::SYS_close, &[fd.arg()]);
}

/// A map as its file takes it.
fn lines(map: &[Range]) -> String {
    map.iter().map(|(inside, outside, n)| format!("{inside} {outside} {n}\n")).collect()
}

/// A map in a message.
fn text(map: &[Range]) -> String {
    lines(map).trim_end().replace('\n', ", ")
}
