//! System V semaphores and message queues: what was the program's is put back to what it was, or made again under its number. What others use, too, stays
//! as it is. Each is last used by the process that used it last.
use super::pids::Rights;
use super::puppet::Puppet;
use super::{cannot, Step, Tree};
use crate::capture::sysvipc::{describe, lives, who};
use crate::Reason;
use ::image::v1::sysvipc::*;
use sys::procfs::sysvipc as here;
use sys::program::{Arg::Imm, CallId, Program};
use sys::sysv::{self, Operations};

const CAP_SYS_RESOURCE: u32 = 24;
/// `struct semid64_ds` and `struct msqid64_ds` of x86-64, which begin with `struct ipc64_perm`.
const SEMID_DS: usize = 104;
const MSQID_DS: usize = 120;
/// Where msg_qbytes lies.
const QBYTES: usize = 88;
/// linux/ipc.h, linux/sem.h
const SETALL: i32 = 17;

/// Both kinds, as far as they are alike.
struct Kind {
    name: &'static str,
    /// Which number the next one gets, if it is free.
    next_id: &'static str,
    /// Option of ipcrm(1).
    ipcrm: &'static str,
    set: i64,
    size: usize,
}

const SETS: Kind = Kind {
    name: "semaphore set",
    next_id: "/proc/sys/kernel/sem_next_id",
    ipcrm: "-s",
    set: libc::SYS_semctl,
    size: SEMID_DS,
};
const QUEUES: Kind = Kind {
    name: "message queue",
    next_id: "/proc/sys/kernel/msg_next_id",
    ipcrm: "-q",
    set: libc::SYS_msgctl,
    size: MSQID_DS,
};

impl Kind {
    fn describe(&self, p: &Perm) -> String {
        describe(self.name, p.id, p.key)
    }
}

/// Why what an image has of them makes no sense.
pub fn sense(ipc: &SysvIpc) -> Result<(), String> {
    let perms = ipc.sets.iter().map(|s| &s.perm).chain(ipc.queues.iter().map(|q| &q.perm));
    if perms.clone().any(|p| p.id < 0 || p.mode & !0o777 != 0 || p.used > USE_VISITED) {
        return Err("a semaphore set or message queue has a number, permissions or use that make no sense".into());
    }
    let odd = |s: &SemaphoreSet| {
        let n = s.values.len();
        let undo = s.undo.iter().flat_map(|u| &u.adjust);
        n == 0 || s.values.iter().any(|v| *v > 32767) || s.last.len() > n || undo.clone().any(|a| a.0 as usize >= n)
    };
    if let Some(s) = ipc.sets.iter().find(|s| odd(s)) {
        return Err(format!("semaphore set {} makes no sense", s.perm.id));
    }
    match ipc.queues.iter().find(|q| q.messages.iter().any(|m| m.kind <= 0)) {
        Some(q) => Err(format!("message queue {} has a message of a type that makes no sense", q.perm.id)),
        None => Ok(()),
    }
}

/// What stands in the way.
pub fn check(ipc: &SysvIpc, rights: &Rights) -> Vec<Reason> {
    let mut c = Check(Vec::new());
    if !ipc.sets.is_empty() {
        let all = here::sem().unwrap_or_default();
        let perms: Vec<&here::Perm> = all.iter().map(|s| &s.perm).collect();
        for s in &ipc.sets {
            let Some(i) = c.there(&SETS, &s.perm, &perms) else { continue };
            let same = all[i].count as usize == s.values.len();
            if c.same(&SETS, &s.perm, perms[i], same) && s.perm.used == USE_OWN {
                c.used(&SETS, &s.perm, &set_users(s, &all[i]));
            }
        }
    }
    if !ipc.queues.is_empty() {
        let all = here::msg().unwrap_or_default();
        let perms: Vec<&here::Perm> = all.iter().map(|q| &q.perm).collect();
        for q in &ipc.queues {
            let found = c.there(&QUEUES, &q.perm, &perms);
            let most = found.map_or_else(default_most, |i| sysv::most(all[i].perm.id).unwrap_or(0));
            let raised = q.perm.used == USE_OWN || found.is_none() && q.perm.used != USE_SHARED;
            if raised && q.most > most && q.most > default_most() && !rights.has(CAP_SYS_RESOURCE) {
                let why = format!("it may hold {} bytes, and a new one only {}", q.most, default_most());
                c.refuse(&QUEUES, &q.perm, why, format!("sysctl -w kernel.msgmnb={}", q.most));
            }
            let Some(i) = found else { continue };
            if c.same(&QUEUES, &q.perm, perms[i], true) && q.perm.used == USE_OWN {
                c.used(&QUEUES, &q.perm, &queue_users(&all[i]));
            }
        }
    }
    c.0
}

/// What a queue may hold that nobody has set (kernel.msgmnb).
fn default_most() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/msgmnb").unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

/// Who lives and has used a set, or waits for it.
fn set_users(s: &SemaphoreSet, here: &here::Sem) -> Option<String> {
    let all = sysv::semaphores(s.perm.id, s.values.len() as u32).unwrap_or_default();
    let when = here.used.max(here.changed);
    let last = all.iter().find(|n| lives(n.last, when)).map(|n| who(n.last));
    last.or_else(|| all.iter().any(|n| n.waiting > 0).then(|| "a process that waits for it".into()))
}

fn queue_users(q: &here::Msg) -> Option<String> {
    let waits = || sys::procfs::waits(&[libc::SYS_msgrcv, libc::SYS_msgsnd], q.perm.id as u64);
    [q.sender, q.receiver].into_iter().find(|pid| lives(*pid, q.sent.max(q.received))).or_else(waits).map(who)
}

struct Check(Vec<Reason>);

impl Check {
    fn refuse(&mut self, kind: &Kind, p: &Perm, why: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Reason::new(kind.describe(p), why, remedy));
    }

    /// Where one with its number is. If there is none: whether it can be made.
    fn there(&mut self, kind: &Kind, p: &Perm, all: &[&here::Perm]) -> Option<usize> {
        let found = all.iter().position(|h| h.id == p.id);
        if found.is_some() {
            return found;
        }
        let gone = "it is not there any more: it was removed (ipcrm), or this is another machine or another boot";
        let key = all.iter().find(|h| p.key != 0 && h.key == p.key);
        if p.used == USE_SHARED {
            let remedy = "restore a checkpoint of a program that makes it itself";
            self.refuse(kind, p, format!("{gone}; what was in it others used, too, and it was not stored"), remedy);
        } else if let Some(other) = key {
            let why = format!("{gone}; another one, {}, has its key", other.id);
            self.refuse(
                kind,
                p,
                why,
                format!("end the program that uses that one, and remove it (ipcrm {} {})", kind.ipcrm, other.id),
            );
        } else if !may_choose(kind) {
            let why = format!("{gone}; and to make it again under its number needs a right that you have not");
            self.refuse(kind, p, why, "restore it as root (CAP_CHECKPOINT_RESTORE)");
        }
        None
    }

    /// Whether it is the one that it was.
    fn same(&mut self, kind: &Kind, p: &Perm, now: &here::Perm, shape: bool) -> bool {
        let same = shape && now.key == p.key && now.creator == p.creator;
        if !same {
            let why = "another one has its number: another key, maker or number of semaphores";
            self.refuse(kind, p, why, format!("remove it if nobody needs it (ipcrm {} {})", kind.ipcrm, p.id));
        }
        same
    }

    /// It is to be put back to what it was: nobody else may use it.
    fn used(&mut self, kind: &Kind, p: &Perm, by: &Option<String>) {
        if let Some(by) = by {
            let why = format!("it would be put back to what it was at the checkpoint, and {by} uses it");
            self.refuse(kind, p, why, "end that process");
        }
    }
}

/// Whether we may say which number the next one gets.
fn may_choose(kind: &Kind) -> bool {
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    nix::unistd::faccessat(nix::fcntl::AT_FDCWD, kind.next_id, nix::unistd::AccessFlags::W_OK, flags).is_ok()
}

/// What was made here: removed again when this is dropped, for then there is no program.
#[derive(Default)]
pub struct Made {
    sets: Vec<i32>,
    queues: Vec<i32>,
}

impl Made {
    /// The program runs, and they are its.
    pub fn keep(mut self) {
        (self.sets, self.queues) = Default::default();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.sets.iter().for_each(|id| sysv::remove_set(*id));
        self.queues.iter().for_each(|id| sysv::remove_queue(*id));
    }
}

/// Puts all of them back, or makes them. Nothing of the program runs yet.
pub fn put(all: &mut [Puppet], tree: &Tree<'_>, notes: &mut Vec<String>) -> Step<Made> {
    let mut made = Made::default();
    let ipc = &tree.ipc;
    if ipc.sets.is_empty() && ipc.queues.is_empty() {
        return Ok(made);
    }
    let there: Vec<i32> = here::sem().unwrap_or_default().into_iter().map(|s| s.perm.id).collect();
    for s in ipc.sets.iter().filter(|s| s.perm.used != USE_SHARED) {
        let new = !there.contains(&s.perm.id);
        if new {
            let count = Imm(s.values.len() as u64);
            make(all, &SETS, &s.perm, (libc::SYS_semget, count), &mut made.sets)?;
            notes.push(format!("{}: it was gone, and is made again", SETS.describe(&s.perm)));
        }
        if new || s.perm.used == USE_OWN {
            set(all, tree, s)?;
        }
    }
    let there: Vec<(i32, u64)> = here::msg().unwrap_or_default().into_iter().map(|q| (q.perm.id, q.messages)).collect();
    for q in ipc.queues.iter().filter(|q| q.perm.used != USE_SHARED) {
        let found = there.iter().find(|t| t.0 == q.perm.id);
        if found.is_none() {
            make(all, &QUEUES, &q.perm, (libc::SYS_msgget, Imm(0)), &mut made.queues)?;
            notes.push(format!("{}: it was gone, and is made again", QUEUES.describe(&q.perm)));
        }
        if found.is_none() || q.perm.used == USE_OWN {
            queue(all, tree, q, found.map_or(0, |t| t.1), notes)?;
        }
    }
    Ok(made)
}

/// The process of this PID; if there is none, the program.
fn of(tree: &Tree<'_>, pid: i32) -> usize {
    tree.index(pid).unwrap_or(0)
}

/// Makes one under its number. `get`: the call, and the argument that only semget(2) has.
fn make(
    all: &mut [Puppet],
    kind: &Kind,
    perm: &Perm,
    (get, count): (i64, sys::program::Arg),
    made: &mut Vec<i32>,
) -> Step<()> {
    let mut p = Program::new();
    let path = p.cstr(kind.next_id.as_bytes());
    let id = perm.id.to_string();
    let text = p.bytes(id.as_bytes());
    let fd =
        p.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, (libc::O_WRONLY | libc::O_CLOEXEC).into(), Imm(0)]);
    p.named(format!("choosing the number of {}", kind.describe(perm)));
    p.call(libc::SYS_write, &[fd.arg(), text, Imm(id.len() as u64)]);
    p.call(libc::SYS_close, &[fd.arg()]);
    // its maker is who makes it: root stands in for another for a moment
    let stand_in =
        sys::procfs::status::read(std::process::id() as i32).is_ok_and(|s| s.uid.effective == 0) && perm.creator.0 != 0;
    let keep = Imm(u64::from(u32::MAX));
    if stand_in {
        p.may(libc::SYS_setresgid, &[keep, Imm(perm.creator.1.into()), keep]);
        p.may(libc::SYS_setresuid, &[keep, Imm(perm.creator.0.into()), keep]);
    }
    let how = Imm((libc::IPC_CREAT | libc::IPC_EXCL) as u64 | u64::from(perm.mode));
    let args = [perm.key.into(), count, how];
    let got = match get {
        libc::SYS_semget => p.may(get, &args),
        _ => p.may(get, &[args[0], args[2]]),
    };
    if stand_in {
        p.call(libc::SYS_setresuid, &[keep, Imm(0), keep]);
        p.call(libc::SYS_setresgid, &[keep, Imm(0), keep]);
    }
    let got = all[0].run(&p)?.get(got);
    let object = kind.describe(perm);
    let got = got.map_err(|e| {
        // or the next one that anybody makes would get its number
        let still = if sysv::use_up(kind.set == libc::SYS_semctl).is_ok() {
            ""
        } else {
            "; the next one that anybody makes gets its number"
        };
        let why = format!("it cannot be made again: {e}{still}");
        cannot(&object, why, "see /proc/sys/kernel/sem and msgmni, and ipcs")
    })? as i32;
    made.push(got);
    if got != perm.id {
        let why = format!("it got another number, {got}: somebody else has its own, or made one in the same instant");
        return Err(cannot(object, why, "try again; `ipcs` says who has it"));
    }
    Ok(())
}

/// Owner and permissions, where they differ, and what else IPC_SET sets.
fn permissions(p: &mut Program, kind: &Kind, perm: &Perm, most: u64) {
    let mut ds = vec![0; kind.size];
    ds[4..8].copy_from_slice(&perm.owner.0.to_ne_bytes());
    ds[8..12].copy_from_slice(&perm.owner.1.to_ne_bytes());
    ds[20..24].copy_from_slice(&perm.mode.to_ne_bytes());
    if kind.size == MSQID_DS {
        ds[QBYTES..QBYTES + 8].copy_from_slice(&most.to_ne_bytes());
    }
    let ds = p.bytes(&ds);
    let command = libc::IPC_SET.into();
    let args = if kind.size == MSQID_DS {
        vec![perm.id.into(), command, ds]
    } else {
        vec![perm.id.into(), Imm(0), command, ds]
    };
    p.call(kind.set, &args);
    p.named(format!("owner and permissions of {}", kind.describe(perm)));
}

fn operate(p: &mut Program, s: &SemaphoreSet, ops: &Operations) -> CallId {
    let bytes = p.bytes(ops.bytes());
    let c = p.call(libc::SYS_semop, &[s.perm.id.into(), bytes, Imm(ops.len() as u64)]);
    p.named(format!("using {}", SETS.describe(&s.perm)));
    c
}

/// Values, what is to be given back, and who used each last.
fn set(all: &mut [Puppet], tree: &Tree<'_>, s: &SemaphoreSet) -> Step<()> {
    let now = here::sem().unwrap_or_default().into_iter().find(|h| h.perm.id == s.perm.id);
    let mut p = Program::new();
    if now.is_none_or(|h| (h.perm.mode, h.perm.owner) != (s.perm.mode, s.perm.owner)) {
        permissions(&mut p, &SETS, &s.perm, 0);
    }
    let values: Vec<u8> = s.values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let values = p.bytes(&values);
    p.call(libc::SYS_semctl, &[s.perm.id.into(), Imm(0), SETALL.into(), values]);
    p.named(format!("the values of {}", SETS.describe(&s.perm)));
    all[0].run(&p)?;
    for u in &s.undo {
        let mut p = Program::new();
        for (n, by) in u.adjust.iter().filter(|a| a.1 != 0) {
            operate(&mut p, s, &sysv::adjust(*n, s.values[*n as usize], *by));
        }
        all[of(tree, u.pid)].run(&p)?;
    }
    for (i, puppet) in all.iter_mut().enumerate() {
        let mut p = Program::new();
        let its = s.last.iter().enumerate().filter(|(_, pid)| **pid != 0 && of(tree, **pid) == i);
        for (n, _) in its {
            operate(&mut p, s, &sysv::touch(n as u16, s.values[n]));
        }
        puppet.run(&p)?;
    }
    Ok(())
}

/// Takes all messages out that are in it, and puts those in that were.
fn queue(all: &mut [Puppet], tree: &Tree<'_>, q: &MessageQueue, waiting: u64, notes: &mut Vec<String>) -> Step<()> {
    let (id, object) = (q.perm.id, QUEUES.describe(&q.perm));
    let now = here::msg().unwrap_or_default().into_iter().find(|h| h.perm.id == id);
    let bytes = now.as_ref().map_or(0, |h| h.bytes) as usize;
    let receiver = &mut all[of(tree, q.receiver)];
    let (mut p, mut same) = (Program::new(), waiting as usize == q.messages.len());
    for i in 0..waiting {
        let there = sysv::message(id, i, bytes).ok().flatten();
        same &= there.is_some_and(|(kind, data)| {
            q.messages.get(i as usize).is_some_and(|m| (m.kind, &m.data[..]) == (kind, &data[..]))
        });
    }
    if !same && waiting > 0 {
        notes.push(format!(
            "{object}: the {waiting} messages that were in it now are replaced by the {} of the checkpoint",
            q.messages.len()
        ));
    }
    // before anything is lost
    let has = sysv::most(id).unwrap_or(0);
    let most = has.max(q.most);
    if most != has || now.is_none_or(|h| (h.perm.mode, h.perm.owner) != (q.perm.mode, q.perm.owner)) {
        permissions(&mut p, &QUEUES, &q.perm, most);
    }
    receiver.run(&p)?;
    p = Program::new();
    for _ in 0..waiting {
        let to = p.out(8 + 1);
        let how = libc::MSG_NOERROR | libc::IPC_NOWAIT;
        p.call(libc::SYS_msgrcv, &[id.into(), to.arg(), Imm(0), Imm(0), how.into()]);
        p.named(format!("emptying {object}"));
        receiver.run_if_full(&mut p)?;
    }
    receiver.run(&p)?;
    if q.receiver != 0 {
        // also of one that is empty
        let mut p = Program::new();
        send(&mut p, id, 1, &[], &object);
        all[of(tree, q.sender)].run(&p)?;
        let mut p = Program::new();
        let to = p.out(8 + 1);
        p.call(libc::SYS_msgrcv, &[id.into(), to.arg(), Imm(0), Imm(0), libc::IPC_NOWAIT.into()]);
        all[of(tree, q.receiver)].run(&p)?;
    }
    let sender = &mut all[of(tree, q.sender)];
    let mut p = Program::new();
    for m in &q.messages {
        send(&mut p, id, m.kind, &m.data, &object);
        sender.run_if_full(&mut p)?;
    }
    sender.run(&p)?;
    if most != q.most {
        let mut p = Program::new();
        permissions(&mut p, &QUEUES, &q.perm, q.most);
        all[0].run(&p)?;
    }
    Ok(())
}

fn send(p: &mut Program, id: i32, kind: i64, data: &[u8], object: &str) {
    let message = p.bytes(&[&kind.to_ne_bytes(), data].concat());
    p.call(libc::SYS_msgsnd, &[id.into(), message, Imm(data.len() as u64), libc::IPC_NOWAIT.into()]);
    p.named(format!("filling {object}"));
}
