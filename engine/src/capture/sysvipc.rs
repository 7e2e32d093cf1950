//! System V semaphores and message queues. No descriptor or mapping leads to one: a program knows its number, and the kernel tells only who used it last.
//!
//! So the program's are those that its processes were the last to use, that one of them has something to give back to (SEM_UNDO), or that a thread of it
//! waits for, unless a living process outside is among the last users, too: then it is shared, and stays as it is, as files do. That nobody has used one
//! yet says nothing of its maker: such a one is nobody's.
use super::observe::{lock, Common, Observer};
use super::Step;
use crate::{Error, Kind, Reason};
use image::v1::process::Thread;
use image::v1::sysvipc::{self as v1, MessageQueue, QueuedMessage, SemaphoreSet, SysvIpc, Undo};
use std::collections::BTreeMap;
use sys::procfs::{self, sysvipc};
use sys::program::{CallId, Program};
use sys::sysv::{self, Operations, Semaphore};

/// Bytes of a program's operations that are sent at once.
const FULL: usize = 256 << 10;
/// More messages are not looked at: the kernel goes through all before each (MSG_COPY, ipc/msg.c), and the program stands still. Of a queue that is the program's only
/// if a thread waits for it, fewer.
const MOST_MESSAGES: u64 = 4096;
const MOST_OF_OTHERS: u64 = 256;
/// linux/capability.h.
const CAP_IPC_OWNER: u64 = 1 << 15;

/// An object that may be the program's: what waits in it is known when its threads are.
pub(super) struct Found<T> {
    object: T,
    /// A process of the program's is among the last users, or has something to give back.
    own: bool,
    /// Who uses it outside.
    other: Option<String>,
    /// The number of one of the program's is among the last users, but of before that began.
    younger: Option<i32>,
    /// A process that has ended and may have been another's is among the last users.
    visited: bool,
    /// How many threads wait for it.
    waiting: u32,
    /// Why its content is not known.
    unknown: Option<String>,
}

/// What was found in the freeze.
#[derive(Default)]
pub(super) struct AllFound {
    sets: Vec<Found<SemaphoreSet>>,
    queues: Vec<Found<MessageQueue>>,
}

/// The processes that are captured together.
struct Members {
    /// Their PIDs here and in the innermost namespace.
    inner: BTreeMap<i32, i32>,
    /// Their effective users; 0 for those that may use all (CAP_IPC_OWNER).
    users: BTreeMap<i32, u32>,
}

impl Members {
    fn new(all: &[Observer<'_>]) -> Step<Members> {
        let mut users = BTreeMap::new();
        for o in all {
            let status = procfs::status::read(o.survey.pid)?;
            let any = status.cap_effective & CAP_IPC_OWNER != 0;
            users.insert(o.survey.pid, if any { 0 } else { status.uid.effective });
        }
        Ok(Members { inner: all.iter().map(|o| (o.survey.pid, o.survey.inner_pid())).collect(), users })
    }

    /// Whether this user of an object can be the member of its number: numbers are used again.
    fn may_use(&self, pid: i32, p: &sysvipc::Perm) -> bool {
        let open = p.mode & 0o066 != 0;
        self.users.get(&pid).is_some_and(|u| open || *u == 0 || *u == p.owner.0 || *u == p.creator.0)
    }

    /// The PID in the innermost namespace of one of them; 0: it is none.
    fn inner(&self, pid: i32) -> i32 {
        self.inner.get(&pid).copied().unwrap_or(0)
    }

    /// What is known of an object by who used it last; `when`: that was, 0: never.
    fn found<T>(&self, object: T, perm: &sysvipc::Perm, last: &[i32], when: u64) -> Found<T> {
        let may: Vec<i32> = last.iter().copied().filter(|pid| self.may_use(*pid, perm)).collect();
        let own = may.iter().any(|pid| lives(*pid, when));
        let younger = may.first().filter(|_| !own).copied();
        let other = last.iter().find(|pid| self.inner(**pid) == 0 && lives(**pid, when)).map(|pid| who(*pid));
        // it has a number that is not seen from here
        let hidden = when != 0 && last.iter().all(|pid| *pid == 0);
        let other = other.or_else(|| hidden.then(|| "a process outside of this PID namespace".into()));
        Found { object, own, other, visited: false, younger, waiting: 0, unknown: None }
    }
}

/// Whether the process that used an object at this time (seconds since 1970) is there: one that began later has its number only.
pub(crate) fn lives(pid: i32, when: u64) -> bool {
    pid > 0 && procfs::stat::read(pid).is_ok_and(|s| !s.state.is_ended() && began_by(&s, when))
}

/// Whether a process began before that time (seconds since 1970), by the wall clock.
fn began_by(s: &procfs::stat::Stat, when: u64) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let up = sys::clock::Clocks::now().map_or(0, |c| c.boottime / 1_000_000_000);
    let began = now.saturating_sub(up.saturating_sub(s.starttime * sys::clock::TICK as u64 / 1_000_000_000));
    // one second: as exact as the times are
    began <= when + 1
}

/// "PID 12 (nginx)".
pub(crate) fn who(pid: i32) -> String {
    let name = procfs::comm(pid).map(|c| c.escape_ascii().to_string()).unwrap_or_default();
    format!("PID {pid} ({name})")
}

/// "semaphore set 12 (key 0x00000000)".
pub(crate) fn describe(what: &str, id: i32, key: i32) -> String {
    format!("{what} {id} (key {key:#010x})")
}

fn perm(p: &sysvipc::Perm) -> v1::Perm {
    v1::Perm { id: p.id, key: p.key, mode: p.mode, owner: p.owner, creator: p.creator, used: v1::USE_OWN }
}

/// Looks at all that may be the program's; everything stands still.
pub(super) fn look(all: &mut [Observer<'_>], common: &Common) -> Step<()> {
    let (sets, queues) = (sysvipc::sem().unwrap_or_default(), sysvipc::msg().unwrap_or_default());
    if sets.is_empty() && queues.is_empty() {
        return Ok(());
    }
    let members = Members::new(all)?;
    let mut found = AllFound::default();
    let mut known = Vec::new();
    for s in &sets {
        // what nobody of this user may look at is none of the program's, but for what it is to give back
        let now = match sysv::semaphores(s.perm.id, s.count) {
            Ok(now) => now,
            Err(e) => {
                if members.users.values().any(|u| *u == s.perm.owner.0 && *u != 0) {
                    let object = describe("semaphore set", s.perm.id, s.perm.key);
                    all[0].reported.push(format!("{object}: it cannot be looked at ({e}): it stays as it is"));
                }
                continue;
            }
        };
        let last: Vec<i32> = now.iter().map(|s| s.last).collect();
        let object = SemaphoreSet {
            perm: perm(&s.perm),
            values: now.iter().map(|s| s.value).collect(),
            last: last.iter().map(|pid| members.inner(*pid)).collect(),
            undo: Vec::new(),
        };
        // to set a value is a use, too, but the time of that is no other than that of the making
        let set = last.iter().any(|pid| *pid != 0);
        let when = s.used.max(if set { s.changed } else { 0 });
        let mut one = members.found(object, &s.perm, &last, when);
        one.waiting = now.iter().map(|s| s.waiting).sum();
        found.sets.push(one);
        known.push(Known { perm: s.perm.clone(), used: s.used, now });
    }
    if !found.sets.is_empty() {
        owed(all, &members, &mut found.sets, &known)?;
    }
    for q in &queues {
        let (last, when) = ([q.sender, q.receiver], q.sent.max(q.received));
        let object = MessageQueue {
            perm: perm(&q.perm),
            most: sysv::most(q.perm.id).unwrap_or(0),
            sender: members.inner(q.sender),
            receiver: members.inner(q.receiver),
            messages: Vec::new(),
        };
        let mut one = members.found(object, &q.perm, &last, when);
        // what a client has put in, which has ended, is not the program's to take out again
        one.visited = last.iter().any(|pid| *pid != 0 && members.inner(*pid) == 0);
        let most = if one.own { MOST_MESSAGES } else { MOST_OF_OTHERS };
        if one.other.is_none() && q.messages > most {
            one.unknown = Some(format!("there are {}, and each look at one goes through all before it", q.messages));
        } else if one.other.is_none() {
            match messages(q) {
                Ok(messages) => one.object.messages = messages,
                Err(e) => one.unknown = Some(e.to_string()),
            }
        }
        found.queues.push(one);
    }
    *lock(&common.ipc) = found;
    Ok(())
}

fn messages(q: &sysvipc::Msg) -> std::io::Result<Vec<QueuedMessage>> {
    let mut all = Vec::new();
    while let Some((kind, data)) = match q.messages {
        0 => None,
        _ => sysv::message(q.perm.id, all.len() as u64, q.bytes as usize)?,
    } {
        all.push(QueuedMessage { kind, data: data.into() });
    }
    Ok(all)
}

/// What the kernel tells of a set.
struct Known {
    perm: sysvipc::Perm,
    /// When somebody used it last, seconds since 1970; 0: never.
    used: u64,
    now: Vec<Semaphore>,
}

impl Known {
    /// Whether a process of the program's can have something to give back to it. Others' sets are not asked about, for that leaves a trace (see
    /// [`sys::sysv`]): to one that it may not use, or that nobody has used since it began, it owes nothing.
    fn may_owe(&self, members: &Members, s: &procfs::stat::Stat) -> bool {
        let has_number = || self.now.iter().any(|n| n.last == s.pid);
        self.used != 0 && members.may_use(s.pid, &self.perm) && (began_by(s, self.used) || has_number())
    }
}

impl Known {
    /// Whether a process has used it that has given up the right to since: what it is to give back it still gives, for the kernel asks nobody then.
    fn is_shut_to(&self, members: &Members, pid: i32) -> bool {
        !members.may_use(pid, &self.perm) && self.now.iter().any(|n| n.last == pid) && lives(pid, self.used)
    }
}

/// What each process is to give back to which semaphore.
fn owed(all: &mut [Observer<'_>], members: &Members, sets: &mut [Found<SemaphoreSet>], known: &[Known]) -> Step<()> {
    let pids: Vec<i32> = all.iter().map(|o| o.survey.pid).collect();
    let (mut owing, mut asked) = (Vec::new(), vec![false; known.len()]);
    for (o, has) in all.iter_mut().zip(sysv::have_lists(&pids)) {
        let stat = procfs::stat::read(o.survey.pid)?;
        for k in known.iter().filter(|k| has && k.is_shut_to(members, stat.pid)) {
            let object = describe("semaphore set", k.perm.id, k.perm.key);
            let what = "has used it, and may not any more, so that it cannot be asked whether it is to give back to it (SEM_UNDO): a restored one does not";
            o.reported.push(format!("{object}: PID {} {what}", stat.pid));
        }
        let ask: Vec<bool> = known.iter().map(|k| has && k.may_owe(members, &stat)).collect();
        if !ask.contains(&true) {
            continue;
        }
        asked.iter_mut().zip(&ask).for_each(|(a, now)| *a |= now);
        o.refuse_lists_of_threads()?;
        for (set, i, sign) in o.what_it_owes(sets, &ask)? {
            let (id, n, value) = (sets[set].object.perm.id, i as u16, sets[set].object.values[i]);
            let by = o.how_much(id, n, value, sign)?;
            let set = &mut sets[set];
            set.own = true;
            let pid = o.survey.inner_pid();
            if set.object.undo.last().is_none_or(|u| u.pid != pid) {
                set.object.undo.push(Undo { pid, adjust: Vec::new() });
            }
            if let Some(u) = set.object.undo.last_mut() {
                u.adjust.push((n, by));
            }
            if owing.last() != Some(&o.survey.pid) {
                owing.push(o.survey.pid);
            }
        }
    }
    for (i, a) in owing.iter().enumerate() {
        let same = |b: &&i32| sys::kcmp::shares(*a, **b, sys::kcmp::Resource::SysvSem).is_ok_and(|same| same);
        if let Some(b) = owing[..i].iter().find(same) {
            let why = format!("what it is to give back to semaphores (SEM_UNDO) it shares with PID {b} (CLONE_SYSVSEM), which is not kept");
            let reason = Reason::new(format!("PID {a}"), why, "start it by fork");
            return all[0].survey.refuse_for(vec![reason]);
        }
    }
    // whoever has changed one meanwhile has spoiled the answers
    for ((set, Known { now: before, .. }), _) in sets.iter().zip(known).zip(&asked).filter(|(_, asked)| **asked) {
        let p = &set.object.perm;
        let now = sysv::semaphores(p.id, before.len() as u32);
        if now.is_ok_and(|now| now.iter().zip(before).any(|(a, b)| (a.value, a.last) != (b.value, b.last))) {
            let why = "somebody outside has changed it while it was looked at";
            let object = describe("semaphore set", p.id, p.key);
            if set.own {
                return all[0].survey.refuse_for(vec![Reason::new(object, why, "it runs on as before; try again")]);
            }
            let lost = "if the program was to give back to it when it ends (SEM_UNDO), a restored one does not";
            all[0].reported.push(format!("{object}: {why}: {lost}"));
        }
    }
    Ok(())
}

/// A call of semop(2) that says something by its error.
fn ask(p: &mut Program, id: i32, ops: &Operations) -> CallId {
    let bytes = p.bytes(ops.bytes());
    p.may(libc::SYS_semop, &[id.into(), bytes, (ops.len() as u64).into()])
}

impl Observer<'_> {
    /// Threads that have such a list of their own, made by clone(2) without CLONE_SYSVSEM.
    fn refuse_lists_of_threads(&self) -> Step<()> {
        let pid = self.survey.pid;
        let tids: Vec<i32> = procfs::tasks(pid)?.into_iter().filter(|tid| *tid != pid).collect();
        let apart = |tid: &i32| sys::kcmp::shares(pid, *tid, sys::kcmp::Resource::SysvSem).is_ok_and(|same| !same);
        let apart: Vec<i32> = tids.into_iter().filter(apart).collect();
        let with = apart.iter().zip(sysv::have_lists(&apart)).find(|(_, has)| *has);
        let why =
            "what it is to give back to semaphores (SEM_UNDO) is its own and not its process's, which is not kept";
        let reason = |(tid, _): (&i32, bool)| Reason::new(format!("thread {tid}"), why, "start it by pthread_create");
        self.survey.refuse_for(with.map(reason).into_iter().collect())
    }

    /// Which semaphores it is to give something back to: the set's index, the semaphore's, and whether that makes it larger.
    /// `ask_of`: of which sets.
    fn what_it_owes(&mut self, sets: &[Found<SemaphoreSet>], ask_of: &[bool]) -> Step<Vec<(usize, usize, bool)>> {
        let mut owes = Vec::new();
        let (mut p, mut asked) = (Program::new(), Vec::new());
        let mut all = Vec::new();
        for (s, set) in sets.iter().enumerate().filter(|(s, _)| ask_of[*s]) {
            all.extend(set.object.values.iter().enumerate().map(|(i, v)| (s, i, *v)));
        }
        while !all.is_empty() {
            while let Some((s, i, value)) = all.pop() {
                let id = sets[s].object.perm.id;
                let up = ask(&mut p, id, &sysv::at_least(i as u16, value, 1));
                let down = ask(&mut p, id, &sysv::at_most(i as u16, value, -1));
                asked.push((s, i, up, down));
                if p.size() > FULL {
                    break;
                }
            }
            if !self.channel.permits(&p) {
                if sets.iter().any(|s| s.own) {
                    let what = "its seccomp filter does not let us ask what it is to give back when it ends (SEM_UNDO): a restored one gives nothing back";
                    self.reported.push(format!("System V semaphores: {what}"));
                }
                return Ok(Vec::new());
            }
            let r = self.channel.run(&p)?;
            let is = |c| r.raw(c) == -i64::from(libc::ERANGE);
            for (s, i, up, down) in asked.drain(..) {
                let p = &sets[s].object.perm;
                let error =
                    |c| sys::Error::call("semop", self.survey.pid, std::io::Error::from_raw_os_error(-r.raw(c) as i32));
                // it may not change it; the others are of a probe's kind
                let known = [libc::ERANGE, libc::EAGAIN, libc::EACCES, libc::EIDRM, libc::EINVAL];
                if let Some(c) = [up, down].into_iter().find(|c| !known.contains(&(-r.raw(*c) as i32))) {
                    let object = describe("semaphore set", p.id, p.key);
                    let what = "whether the program is to give back to it when it ends cannot be asked";
                    self.reported.push(format!("{object}: {what} ({}): a restored one does not", error(c)));
                }
                owes.extend((is(up) || is(down)).then(|| (s, i, is(up))));
            }
            p = Program::new();
        }
        owes.sort_unstable();
        Ok(owes)
    }

    /// How much: the largest that it is not below, by halves.
    fn how_much(&mut self, id: i32, n: u16, value: u16, up: bool) -> Step<i32> {
        let (mut low, mut high) = (1, if up { 32767 } else { 32768 });
        while low < high {
            let middle = (low + high + 1) / 2;
            let mut p = Program::new();
            let ops = if up { sysv::at_least(n, value, middle) } else { sysv::at_most(n, value, -middle) };
            let c = ask(&mut p, id, &ops);
            match self.channel.run(&p)?.raw(c) == -i64::from(libc::ERANGE) {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(if up { low } else { -low })
    }
}

/// Numbers that threads wait for in calls that are to be issued again, each with how many do: of semaphores, and of queues.
fn waited_for<'t>(threads: impl Iterator<Item = &'t Thread>) -> [BTreeMap<i32, u32>; 2] {
    const RAX: usize = 10;
    const RDI: usize = 14;
    let mut all = [BTreeMap::new(), BTreeMap::new()];
    for t in threads {
        let word = |i: usize| t.regs.get(i).copied().unwrap_or(u64::MAX) as i64;
        let kind = match word(RAX) {
            libc::SYS_semop | libc::SYS_semtimedop => 0,
            libc::SYS_msgrcv | libc::SYS_msgsnd => 1,
            _ => continue,
        };
        *all[kind].entry(word(RDI) as i32).or_default() += 1;
    }
    all
}

/// What it is to the program, and why that cannot be kept; None: nothing.
fn used<T>(f: &Found<T>, waits: bool, object: &str, reported: &mut Vec<String>) -> Option<u32> {
    let own = f.own || waits;
    match &f.other {
        Some(other) if own => {
            reported.push(format!("{object}: {other} uses it, too: it stays as it is, at a restore, too"));
            Some(v1::USE_SHARED)
        }
        None if own && f.visited => Some(v1::USE_VISITED),
        None if own => Some(v1::USE_OWN),
        None => {
            if let Some(pid) = f.younger {
                let what = "was the last user before it began, so it is taken for another's, which had that number";
                reported.push(format!("{object}: PID {pid} {what}: it stays as it is"));
            }
            None
        }
        Some(_) => None,
    }
}

/// Of what was found, what is kept. `reported`: what stays as it is.
pub(super) fn kept<'t>(
    common: &Common,
    threads: impl Iterator<Item = &'t Thread>,
    attempted: &str,
    reported: &mut Vec<String>,
) -> Step<SysvIpc> {
    let found = std::mem::take(&mut *lock(&common.ipc));
    let [sets, queues] = waited_for(threads);
    let (mut ipc, mut reasons) = (SysvIpc::default(), Vec::new());
    for mut f in found.sets {
        let (id, key) = (f.object.perm.id, f.object.perm.key);
        let (object, waits) = (describe("semaphore set", id, key), sets.get(&id).copied().unwrap_or(0));
        // the program's own threads wait for nothing while they stand still
        if f.waiting > 0 && f.other.is_none() {
            f.other = Some("a process that waits for it".into());
        }
        let Some(used) = used(&f, waits > 0, &object, reported) else { continue };
        if let (Some(other), false) = (&f.other, f.object.undo.is_empty()) {
            let why = format!("the program is to give back to it when it ends (SEM_UNDO), and {other} uses it, too");
            reasons.push(Reason::new(
                object,
                why,
                "checkpoint when the program holds none of its semaphores, or end that process",
            ));
            continue;
        }
        f.object.perm.used = used;
        if used == v1::USE_SHARED {
            f.object.last.clear();
        }
        ipc.sets.push(f.object);
    }
    for mut f in found.queues {
        let (id, key) = (f.object.perm.id, f.object.perm.key);
        let object = describe("message queue", id, key);
        let Some(used) = used(&f, queues.contains_key(&id), &object, reported) else { continue };
        if let (Some(e), false) = (&f.unknown, used == v1::USE_SHARED) {
            let remedy = "give yourself the right to read it, or let the program receive them first";
            reasons.push(Reason::new(object, format!("its messages cannot be looked at: {e}"), remedy));
            continue;
        }
        f.object.perm.used = used;
        ipc.queues.push(f.object);
    }
    match reasons.is_empty() {
        true => Ok(ipc),
        false => Err(Error { kind: Kind::Refused, attempted: attempted.into(), reasons }.into()),
    }
}
