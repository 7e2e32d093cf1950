//! Phase build, of several processes: who bears whom, so that each has its old parent, session and process group.
//!
//! A child is in its parent's session as that is when it is born. So one whose session is older than its parent's is born before the parent's setsid(2), all
//! others after. What has lost its parent is born by a helper that ends, and so becomes the reaper's; a session or group whose leader is gone is founded by a
//! helper of the leader's number. A process has its memory before it bears any other, which then has it too (heirloom.rs).
use super::nursery::{Helper, Nursery};
use super::{cannot, ptys, Image, Step, Tree};
use crate::{Reason, RestoreOptions};
use ::image::v1::tree::Zombie;
use std::collections::BTreeMap;
use sys::channel::Channel;
use sys::pidfd::PidFd;
use sys::program::{Arg::Imm, Program};

/// Longest wait for the end of a helper, milliseconds: it has been killed, or is about to exit.
const END: i32 = 10_000;

/// Who leads a session.
fn leads(image: &Image<'_>) -> bool {
    image.process.sid == image.process.pid
}

/// Whether the program gets a session of its own: all others do if they had one.
fn own_session(i: usize, image: &Image<'_>, o: &RestoreOptions<'_>) -> bool {
    if i == 0 {
        o.own_session
    } else {
        leads(image)
    }
}

/// Why its sessions and groups cannot be made again.
pub fn check(tree: &Tree<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for (i, image) in tree.all.iter().enumerate().skip(1) {
        let p = &image.process;
        let Some(parent) = tree.index(image.parent) else { continue };
        let above = &tree.all[parent];
        let older = tree.index(above.parent).map(|g| tree.all[g].process.sid);
        let born = leads(image) || p.sid == above.process.sid || leads(above) && older == Some(p.sid);
        // one that it has adopted may have brought any session along
        if !born && !above.process.subreaper {
            let why = format!("its session {} is neither its parent's nor its own: it cannot be born into it", p.sid);
            reasons.push(Reason::new(
                name(image),
                why,
                "let it lead a session of its own (setsid), and checkpoint again",
            ));
        }
        let group = tree.all.iter().find(|o| o.process.pid == p.pgid);
        if group.is_some_and(|g| g.process.sid != p.sid) && i > 0 {
            let why = format!("its process group {} is led by a process of another session", p.pgid);
            reasons.push(Reason::new(name(image), why, "checkpoint it when that has ended"));
        }
    }
    let apart = tree.births().err().unwrap_or_default();
    reasons.extend(apart.iter().map(|a| a.reason(|i| name(&tree.all[i]))));
    reasons
}

/// "process 12 (sleep)".
pub fn name(image: &Image<'_>) -> String {
    let comm = image.threads.first().map_or(&[][..], |t| &t.comm[..]);
    format!("process {} ({})", image.process.pid, comm.escape_ascii())
}

/// Numbers of sessions and groups whose leaders are gone, which helpers will need: not those that are the caller's affair.
pub fn gone(tree: &Tree<'_>) -> Vec<i32> {
    let Some(first) = tree.all.first().map(|i| &i.process) else { return Vec::new() };
    let used = tree.all.iter().flat_map(|i| [i.process.sid, i.process.pgid]);
    let used = used.chain(tree.zombies.iter().map(|z| z.pgid).filter(|g| tree.zombies.iter().all(|z| z.pid != *g)));
    let outside = |n: &i32| *n == 0 || *n == first.sid || *n == first.pgid || tree.index(*n).is_some();
    let set: std::collections::BTreeSet<i32> = used.filter(|n| !outside(n)).collect();
    set.into_iter().collect()
}

/// How many helpers have to stay until all are born, at most.
pub fn staying(tree: &Tree<'_>) -> usize {
    gone(tree).len() + tree.zombies.len()
}

/// A helper that leads a session or a group for a while.
struct Founder {
    number: i32,
    helper: Helper,
    /// It will be the one of the dead with that number.
    dies: bool,
}

/// Bears all but the program, which is there.
pub fn grow(n: &mut Nursery<'_, '_>, o: &RestoreOptions<'_>) -> Step<()> {
    let mut founders = Vec::new();
    branch(n, 0, o, &mut founders)?;
    adopted(n, None, n.tree.children(None), o, &mut founders)?;
    groups(n, o, &mut founders)?;
    let (dying, others): (Vec<Founder>, Vec<Founder>) = founders.into_iter().partition(|f| f.dies);
    let mut dying: BTreeMap<i32, Helper> = dying.into_iter().map(|f| (f.number, f.helper)).collect();
    // a group's leader before those whom it leads
    let (leaders, led): (Vec<&Zombie>, Vec<&Zombie>) = n.tree.zombies.iter().partition(|z| z.pgid == z.pid);
    for z in leaders.into_iter().chain(led) {
        let there = dying.remove(&z.pid);
        die(n, z, there)?;
    }
    let tree = n.tree;
    ptys::settle(n, |i| own_session(i, &tree.all[i], o))?;
    for f in others {
        n.end_helper(f.helper)?;
    }
    n.part()
}

/// Bears what a reaper (None: it is not in the image) has adopted: it is born below a process of its session.
fn adopted(
    n: &mut Nursery<'_, '_>,
    reaper: Option<usize>,
    mut all: Vec<usize>,
    o: &RestoreOptions<'_>,
    founders: &mut Vec<Founder>,
) -> Step<()> {
    // who leads comes before who is led
    all.sort_by_key(|i| !leads(&n.tree.all[*i]));
    for i in all {
        let sid = n.tree.all[i].process.sid;
        // a session that is the caller's, or the program's own
        let program = (sid == n.tree.all[0].process.sid).then_some(0);
        match program.or_else(|| n.tree.index(sid)) {
            Some(leader) if leader == i => n.bear_at(reaper, i)?,
            Some(leader) => {
                let helper = n.helper(Some(leader), i)?;
                n.bear_by(&helper, i)?;
                n.end_helper(helper)?;
            }
            None => {
                // its leader has ended
                if !founders.iter().any(|f| f.number == sid) {
                    let f = found(n, reaper, sid, &[(libc::SYS_setsid, &[])])?;
                    founders.push(f);
                }
                if let Some(f) = founders.iter().find(|f| f.number == sid) {
                    n.bear_by(&f.helper, i)?;
                }
            }
        }
        branch(n, i, o, founders)?;
    }
    Ok(())
}

/// A helper that leads: if one of the dead has the number, in its place.
fn found(
    n: &mut Nursery<'_, '_>,
    parent: Option<usize>,
    number: i32,
    how: &[(i64, &[sys::program::Arg])],
) -> Step<Founder> {
    let dead = n.tree.zombies.iter().find(|z| z.pid == number);
    let parent = dead.map_or(parent, |z| n.tree.index(z.parent));
    let helper = n.founder(parent, number, dead.map_or(0, sent))?;
    n.talk(&helper)?.run_all(&calls(how))?;
    Ok(Founder { number, helper, dies: dead.is_some() })
}

/// Bears the children of a process, and theirs.
fn branch(n: &mut Nursery<'_, '_>, i: usize, o: &RestoreOptions<'_>, founders: &mut Vec<Founder>) -> Step<()> {
    n.memory(i)?;
    let sid = n.tree.all[i].process.sid;
    let own = own_session(i, &n.tree.all[i], o);
    let before = n.tree.index(n.tree.all[i].parent).map(|p| n.tree.all[p].process.sid);
    let (mut older, mut younger, mut brought) = (Vec::new(), Vec::new(), Vec::new());
    for c in n.tree.children(Some(i)) {
        let p = &n.tree.all[c].process;
        match p.sid {
            s if s == sid || s == p.pid => younger.push(c),
            s if own && before == Some(s) => older.push(c),
            _ => brought.push(c),
        }
    }
    for c in older {
        n.bear_at(Some(i), c)?;
        branch(n, c, o, founders)?;
    }
    if own {
        n.run(i, &calls(&[(libc::SYS_setsid, &[])]))?;
        ptys::control(n, i)?;
    }
    for c in younger {
        n.bear_at(Some(i), c)?;
        branch(n, c, o, founders)?;
    }
    if !brought.is_empty() {
        let reap = Imm(libc::PR_SET_CHILD_SUBREAPER as u64);
        n.run(i, &calls(&[(libc::SYS_prctl, &[reap, Imm(1)])]))?;
        adopted(n, Some(i), brought, o, founders)?;
    }
    Ok(())
}

fn calls(all: &[(i64, &[sys::program::Arg])]) -> Program {
    let mut p = Program::new();
    for (nr, args) in all {
        p.call(*nr, args);
    }
    p
}

/// Process groups: the leaders found theirs, then the others join.
fn groups(n: &mut Nursery<'_, '_>, o: &RestoreOptions<'_>, founders: &mut Vec<Founder>) -> Step<()> {
    for (i, image) in n.tree.all.iter().enumerate() {
        let p = &image.process;
        if p.pgid == p.pid && !own_session(i, image, o) {
            n.run(i, &calls(&[(libc::SYS_setpgid, &[Imm(0), Imm(0)])]))?;
        }
    }
    let mut lost: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    let outside = n.tree.all[0].process.pgid;
    for (i, image) in n.tree.all.iter().enumerate() {
        let p = &image.process;
        if p.pgid == p.pid || p.pgid == 0 {
            continue;
        }
        // who founded a session founded its first group, too
        let founded = founders.iter().any(|f| f.number == p.pgid).then_some(i);
        match (n.tree.index(p.pgid), founded) {
            (Some(_), _) => n.joins(i, p.pgid),
            // before its founder ends
            (None, Some(_)) => n.run(i, &calls(&[(libc::SYS_setpgid, &[Imm(0), p.pgid.into()])]))?,
            // the group that the program was started in: it is in the caller's now, and those in its session with it
            (None, None) if p.pgid == outside && p.sid == n.tree.all[0].process.sid => {}
            (None, None) => lost.entry(p.pgid).or_default().push(i),
        }
    }
    for (group, members) in lost {
        let f = found(n, Some(members[0]), group, &[(libc::SYS_setpgid, &[Imm(0), Imm(0)])])?;
        for i in members {
            n.run(i, &calls(&[(libc::SYS_setpgid, &[Imm(0), group.into()])]))?;
        }
        founders.push(f);
    }
    let of_the_dead = |g: i32| n.tree.zombies.iter().any(|z| z.pid == g);
    let lost: BTreeMap<i32, usize> = (n.tree.zombies.iter())
        .filter(|z| !is_outside(n.tree, z.pgid) && n.tree.index(z.pgid).is_none() && !of_the_dead(z.pgid))
        .filter_map(|z| Some((z.pgid, n.tree.index(z.parent)?)))
        .collect();
    for (group, parent) in lost {
        if !founders.iter().any(|f| f.number == group) {
            founders.push(found(n, Some(parent), group, &[(libc::SYS_setpgid, &[Imm(0), Imm(0)])])?);
        }
    }
    Ok(())
}

/// A group that the program was started in: it is the caller's affair.
fn is_outside(tree: &Tree<'_>, group: i32) -> bool {
    let first = tree.all.first().map(|i| i.process.pgid);
    group == 0 || first == Some(group) && tree.index(group).is_none()
}

/// Gives one that is about to end its name, session and group; or what could not be given.
fn belongs(z: &Zombie, above: &Image<'_>, tree: &Tree<'_>, channel: &mut Channel) -> Step<Result<(), String>> {
    let mut p = Program::new();
    let comm = p.cstr(&z.comm);
    p.may(libc::SYS_prctl, &[Imm(libc::PR_SET_NAME as u64), comm]);
    let (leads, parent) = (z.sid == z.pid, &above.process);
    let (outside, theirs) = (is_outside(tree, z.pgid), is_outside(tree, parent.pgid));
    let call = match () {
        // one that has founded its group or session already may not again
        () if leads => Some(p.may(libc::SYS_setsid, &[])),
        () if outside => None,
        () => Some(p.may(libc::SYS_setpgid, &[Imm(0), z.pgid.into()])),
    };
    let own = (p.may(libc::SYS_getsid, &[Imm(0)]), p.may(libc::SYS_getpgid, &[Imm(0)]));
    let r = channel.run(&p)?;
    let failed = call.and_then(|c| r.get(c).err()).map(|e| format!(" ({e})")).unwrap_or_default();
    let is = |call, number: i32| r.get(call).is_ok_and(|n| n == i64::from(number));
    let session = if leads { is(own.0, z.sid) } else { z.sid == parent.sid };
    let group = if outside { theirs } else { is(own.1, z.pgid) };
    Ok(match (session, group) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("it is not in its process group {}{failed}", z.pgid)),
        (false, _) => Err(format!("it is not in its session {} and process group {}{failed}", z.sid, z.pgid)),
    })
}

/// The signal that its parent got for it.
fn sent(z: &Zombie) -> i32 {
    z.exit_signal.unwrap_or(libc::SIGCHLD)
}

/// A child that ends as it had, and is not waited for. `there`: it has led a session or a group already.
fn die(n: &mut Nursery<'_, '_>, z: &Zombie, there: Option<Helper>) -> Step<()> {
    let Some(parent) = n.tree.index(z.parent) else { return Ok(()) };
    let helper = match there {
        Some(helper) => helper,
        None => n.founder(Some(parent), z.pid, sent(z))?,
    };
    let (here, mut channel) = (helper.here, n.talk(&helper)?);
    if let Err(lost) = belongs(z, &n.tree.all[parent], n.tree, &mut channel)? {
        let who = format!("ended process {} ({})", z.pid, z.comm.escape_ascii());
        n.note(format!("{who}: {lost}: a parent that looks for it there (waitpid(2)) does not find it"));
    }
    let mut p = Program::new();
    match z.status & 0x7f {
        0 => {
            p.call(libc::SYS_exit_group, &[Imm((z.status >> 8 & 0xff) as u64)]);
        }
        signal => {
            // without a core, whatever its status says
            let none = p.bytes(&[0; 16]);
            p.may(libc::SYS_prlimit64, &[Imm(0), Imm(u64::from(libc::RLIMIT_CORE)), none, Imm(0)]);
            let own = p.call(libc::SYS_getpid, &[]);
            p.call(libc::SYS_kill, &[own.arg(), signal.into()]);
            let open = p.bytes(&[0; 8]);
            p.call(libc::SYS_rt_sigprocmask, &[Imm(libc::SIG_SETMASK as u64), open, Imm(0), Imm(8)]);
            // only if it was none that ends a process
            p.call(libc::SYS_exit_group, &[Imm(signal as u64 + 128)]);
        }
    }
    let process = PidFd::open(here)?;
    channel.send(wire::OP_BATCH, &p.encode())?;
    if !process.wait_end(END) {
        return Err(cannot(format!("ended process {}", z.pid), "it does not end here", "report this"));
    }
    // its end is no news
    let mut p = Program::new();
    let (set, now) = (p.bytes(&super::build::set(&[sent(z)]).to_le_bytes()), p.bytes(&[0; 16]));
    p.may(libc::SYS_rt_sigtimedwait, &[set, Imm(0), now, Imm(8)]);
    n.run(parent, &p)
}
