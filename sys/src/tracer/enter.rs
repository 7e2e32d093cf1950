//! Getting in so that the tracer may die at any instant: every system call made for us in the target is entered by one
//! SETREGS into a chain whose end is `rt_sigreturn` on a complete frame, and so is the blob.
use super::raw;
use super::scratch::{self, Borrowed};
use super::strict;
use super::tasks::{Task, Tasks};
use super::{EntryPlan, Visit};
use crate::inject::{Layout, HOME, MAPPING_NAME};
use crate::mem::RemoteMem;
use crate::sigframe::{self, Regs};
use crate::{procfs, Error, Result};
use std::io;
use std::mem::offset_of;

/// All signals; the kernel keeps SIGKILL and SIGSTOP out by itself.
pub(super) const ALL_SIGNALS: u64 = u64::MAX;
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Registers that make a system call at `syscall; ret`, with the stack at a frame.
pub(super) fn call_regs(base: &Regs, gadget: u64, frame: u64, nr: i64, a: [u64; 6]) -> Regs {
    Regs {
        rax: nr as u64,
        orig_rax: u64::MAX,
        rdi: a[0],
        rsi: a[1],
        rdx: a[2],
        r10: a[3],
        r8: a[4],
        r9: a[5],
        rip: gadget,
        rsp: frame,
        eflags: base.eflags & !0x500, // no trap flag, direction up
        ..*base
    }
}

/// Makes one system call in a stopped thread. If the tracer dies meanwhile, the call completes and the thread goes on
/// where it was.
pub fn remote_call(tasks: &mut Tasks, tid: i32, plan: &EntryPlan, nr: i64, a: [u64; 6]) -> Result<i64> {
    let Some(frame) = tasks.borrowed.as_ref().map(|b| b.at) else {
        return Err(Error::Died { doing: crate::syscalls::name(nr), pid: tasks.pid });
    };
    if tasks.all.get(&tid).is_some_and(|t| t.strict) {
        return strict_call(tasks, tid, plan, frame, nr, a);
    }
    led(tasks, tid, |tasks| {
        let regs = tasks.all.get(&tid).map(|t| call_regs(&t.regs, plan.syscall_ret, frame, nr, a));
        raw::set_regs(tid, &regs.unwrap_or_default())?;
        led_through(tasks, tid)
    })
}

/// The same in a strict thread, whose emergency frame is at `frame`.
pub(super) fn strict_call(
    tasks: &mut Tasks,
    tid: i32,
    plan: &EntryPlan,
    frame: u64,
    nr: i64,
    a: [u64; 6],
) -> Result<i64> {
    led(tasks, tid, |tasks| strict::call(tasks, tid, plan, frame, nr, a))
}

/// What leads a thread through a call of ours: whatever fails from here on, it is cured.
fn led(tasks: &mut Tasks, tid: i32, lead: impl FnOnce(&mut Tasks) -> Result<i64>) -> Result<i64> {
    let Some(t) = tasks.all.get_mut(&tid) else {
        return Err(Error::Died { doing: "a call inside".into(), pid: tasks.pid });
    };
    t.entered = true;
    t.out = None;
    open(tid, t)?;
    t.calling = true;
    let r = lead(tasks);
    if let Some(t) = tasks.all.get_mut(&tid) {
        t.calling = false;
    }
    r
}

/// Lets a thread write to our memory that may not by its protection keys. From here on it leaves through a frame, which has its own state.
fn open(tid: i32, t: &mut Task) -> Result<()> {
    if let Some(state) = crate::pkru::opened(&t.xstate) {
        raw::set_xstate(tid, &state)?;
        t.spoilt = true;
    }
    Ok(())
}

/// To the call's entry, then to its exit.
fn led_through(tasks: &mut Tasks, tid: i32) -> Result<i64> {
    raw::set_sigmask(tid, ALL_SIGNALS)?;
    tasks.until_syscall(tid)?;
    tasks.until_syscall(tid)?;
    Ok(raw::regs(tid)?.rax as i64)
}

fn must(tasks: &mut Tasks, tid: i32, plan: &EntryPlan, nr: i64, a: [u64; 6]) -> Result<u64> {
    let r = remote_call(tasks, tid, plan, nr, a)?;
    if (-4095..0).contains(&r) {
        return Err(Error::Inside {
            call: crate::syscalls::name(nr),
            pid: tasks.pid,
            source: io::Error::from_raw_os_error(-r as i32),
        });
    }
    Ok(r as u64)
}

/// Borrows memory of the target for a frame (and the mapping's name behind it), and keeps what was there. Gives the thread whose
/// frame it is: `tid` if that can be.
fn borrow_scratch(tasks: &mut Tasks, mem: &RemoteMem, tid: i32, plan: &EntryPlan) -> Result<i32> {
    let len = |tasks: &Tasks, tid: i32| match tasks.all.get(&tid) {
        // it makes a thread that serves
        Some(t) if t.strict => strict::scratch(tasks, tid),
        _ => name_offset(tasks, tid) + MAPPING_NAME.len() as u64 + 1,
    };
    // borrowed already: what is there now is ours
    let (tid, at) = match &tasks.borrowed {
        Some(b) => (b.tid, b.at),
        None => {
            let (tid, at) = scratch::pick(tasks, mem, tid, (plan.stack, plan.nth), len(tasks, tid))?;
            let mut was = vec![0; len(tasks, tid) as usize];
            mem.read(at, &mut was)?;
            tasks.borrowed = Some(Borrowed { tid, at, was });
            (tid, at)
        }
    };
    let mut f = tasks.emergency_frame(tid, at, plan.sigreturn);
    f.extend_from_slice(MAPPING_NAME.as_bytes());
    f.push(0);
    mem.write(at, &f)?;
    Ok(tid)
}

/// Gives back exactly what was there. No thread may be in a call of ours any more.
fn give_back_scratch(tasks: &mut Tasks, mem: &RemoteMem) -> Result<()> {
    match tasks.borrowed.take() {
        Some(b) => mem.write(b.at, &b.was),
        None => Ok(()),
    }
}

/// Offset of the name behind the frame.
pub(super) fn name_offset(tasks: &Tasks, tid: i32) -> u64 {
    tasks.all.get(&tid).map_or(0, |t| sigframe::size(t.xstate.len()) as u64)
}

/// Maps the blob, fills everything in, and sends the serving thread and all others (to run `plan.visit`) into it. Gives the serving
/// thread, `tid` if it has room for a frame, or one that was made for us where all are strict, and the others by slot. `go`: waits until
/// something may be run in other threads than the leader.
pub fn enter(
    tasks: &mut Tasks,
    mem: &RemoteMem,
    tid: i32,
    plan: &EntryPlan,
    before: &[i32],
    go: impl FnOnce() -> Result<()>,
) -> Result<(Layout, i32, Vec<i32>)> {
    let tid = borrow_scratch(tasks, mem, tid, plan)?;
    let mut go = Some(go);
    if let Some(go) = go.take_if(|_| tid != tasks.pid) {
        if let Err(e) = go() {
            give_back_scratch(tasks, mem)?;
            return Err(e);
        }
    }
    let tid = match tasks.all.get(&tid).filter(|t| t.strict) {
        None => tid,
        Some(_) => match strict::helper(tasks, mem, tid, plan).and_then(|_| borrow_scratch(tasks, mem, tid, plan)) {
            Ok(helper) => helper,
            Err(e) => return Err(not_in(tasks, mem, tid, e)),
        },
    };
    let others: Vec<i32> = match plan.visit {
        Visit::None => Vec::new(),
        Visit::All => tasks.all.iter().filter(|(t, k)| **t != tid && k.stopped).map(|(t, _)| *t).collect(),
    };
    let frame = tasks.all.values().map(|t| sigframe::size(t.xstate.len())).max().unwrap_or(0);
    let l = Layout::new(others.len() as u64, frame as u64);
    let l = match map_fresh(tasks, tid, plan, l) {
        Ok(l) => l,
        Err(e) => return Err(not_in(tasks, mem, tid, e)),
    };
    let r = in_mapping(tasks, mem, tid, plan, &l, &others)
        .and_then(|()| go.map_or(Ok(()), |go| go()))
        .and_then(|()| send_all_in(tasks, mem, tid, plan, &l, &others));
    if r.is_err() {
        let _ = leave_mapping(tasks, mem, tid, plan, &l, before);
    }
    r.map(|()| (l, tid, others))
}

/// Not in yet: out of the call of ours, then the stack is what it was.
fn not_in(tasks: &mut Tasks, mem: &RemoteMem, tid: i32, e: Error) -> Error {
    let out = tasks.bring_to_stop(&[tid]).and_then(|()| tasks.cure(tid));
    let _ = out.and_then(|()| give_back_scratch(tasks, mem));
    e
}

/// What an earlier attach left goes, and a fresh mapping comes.
fn map_fresh(tasks: &mut Tasks, tid: i32, plan: &EntryPlan, l: Layout) -> Result<Layout> {
    for (start, len) in &plan.stale {
        must(tasks, tid, plan, libc::SYS_munmap, [*start, *len, 0, 0, 0, 0])?;
    }
    let home = HOME + plan.nth * wire::HOMES_APART;
    let map = [home, l.len, 5, 0x4022, u64::MAX, 0]; // PROT_READ|PROT_EXEC, PRIVATE|ANONYMOUS|NORESERVE
    match must(tasks, tid, plan, libc::SYS_mmap, map) {
        Err(e) if e.errno() == Some(libc::EAGAIN) => Err(no_room(tasks.pid, l.len)),
        r => Ok(l.at(r?)),
    }
}

/// The kernel's one reason for EAGAIN at a mapping of ours (mm/mmap.c): it would be locked, and more than may be.
fn no_room(pid: i32, bytes: u64) -> Error {
    let locked = procfs::status::read(pid).ok().and_then(|s| s.vm).map_or(0, |v| v.lck << 10);
    let what = format!(
        "mlockall(MCL_FUTURE) locks all that is mapped, our {} KiB too, which is more than its limit of locked memory allows: raise that for the \
         moment (prlimit --pid {pid} --memlock={})",
        bytes >> 10,
        locked + bytes
    );
    Error::Unfit { what }
}

fn in_mapping(
    tasks: &mut Tasks,
    mem: &RemoteMem,
    tid: i32,
    plan: &EntryPlan,
    l: &Layout,
    others: &[i32],
) -> Result<()> {
    let name = tasks.borrowed.as_ref().map_or(0, |b| b.at) + name_offset(tasks, tid);
    // a kernel without CONFIG_ANON_VMA_NAME refuses the name: then the blob's first bytes tell whose it is
    remote_call(tasks, tid, plan, libc::SYS_prctl, [PR_SET_VMA, 0, l.base, l.len, name, 0])?;
    must(tasks, tid, plan, libc::SYS_mprotect, [l.base + l.code, l.len - l.code, 3, 0, 0, 0])?;
    // whose handlers end calls, which only the process itself is told
    for signal in tasks.handled().collect::<Vec<_>>() {
        must(tasks, tid, plan, libc::SYS_rt_sigaction, [signal as u64, 0, l.buffer(), 8, 0, 0])?;
        let mut flags = [0; 8]; // of struct kernel_sigaction, behind the handler
        mem.read(l.buffer() + 8, &mut flags)?;
        if u64::from_le_bytes(flags) & libc::SA_RESTART as u64 == 0 {
            tasks.breaks |= 1 << (signal - 1);
        }
    }
    mem.write(l.base, payload::BLOB)?;
    let visitors = others.iter().filter(|t| !is_strict(tasks, t)).count();
    mem.write(l.params(), &l.params_bytes(&plan.addr, -1, true, visitors as u32))?;
    mem.write(l.frame(0), &tasks.emergency_frame(tid, l.frame(0), l.sigreturn()))?;
    prepare_visits(tasks, mem, l, plan, others)
}

/// Whether it makes its calls one by one, and is not sent in.
fn is_strict(tasks: &Tasks, tid: &i32) -> bool {
    tasks.all.get(tid).is_some_and(|t| t.strict)
}

fn send_all_in(
    tasks: &mut Tasks,
    mem: &RemoteMem,
    tid: i32,
    plan: &EntryPlan,
    l: &Layout,
    others: &[i32],
) -> Result<()> {
    let (n, ncalls) = (others.len() as u64, (plan.visit_calls.len() / size_of::<wire::Call>()) as u64);
    for (i, t) in others.iter().enumerate() {
        if !is_strict(tasks, t) {
            continue;
        }
        let i = i as u64;
        strict::visit(tasks, mem, *t, plan, l.frame(i + 1), super::visit_place(l, n, ncalls, i))?;
    }
    send_in(tasks, tid, l, (l.serve_entry(), l.params(), l.stack()), l.frame(0), true)?;
    // it leaves through its frame in the mapping now; and the snapshot must see the program's stack
    give_back_scratch(tasks, mem)?;
    for (i, t) in others.iter().enumerate() {
        if is_strict(tasks, t) {
            continue;
        }
        let i = i as u64;
        let way = (l.thread_entry(), l.slot(i), l.thread_stack(i));
        send_in(tasks, *t, l, way, l.frame(i + 1), !payload::PARKED_KEEP_XSTATE)?;
    }
    Ok(())
}

/// Slots, programs and frames of the visited threads: results and buffers are where [`super::visit_place`] says.
fn prepare_visits(tasks: &Tasks, mem: &RemoteMem, l: &Layout, plan: &EntryPlan, others: &[i32]) -> Result<()> {
    if others.is_empty() {
        return Ok(());
    }
    let ncalls = (plan.visit_calls.len() / size_of::<wire::Call>()) as u64;
    let (mut slots, mut calls) = (Vec::new(), Vec::new());
    let mut frames = Vec::with_capacity(others.len() * l.frame_size as usize);
    for (i, t) in others.iter().enumerate() {
        let i = i as u64;
        let at = super::visit_place(l, others.len() as u64, ncalls, i);
        if at.buf + super::VISIT_BUF > l.buffer() + crate::inject::BUFFER || at.results + ncalls * 8 > l.buffer() {
            return Err(Error::Unfit { what: format!("{} threads are more than one visit can hold", others.len()) });
        }
        // a strict one has made its calls by then
        let state = if is_strict(tasks, t) { wire::SLOT_IDLE } else { wire::SLOT_RUN };
        slots.extend_from_slice(&l.slot_bytes(i, state, ncalls as u32, at.calls, at.results, true));
        let mut c = plan.visit_calls.clone();
        for call in c.chunks_exact_mut(size_of::<wire::Call>()) {
            for k in 0..6 {
                if call[8 + k] == wire::ARG_BUF {
                    let a = 16 + k * 8;
                    let off = u64::from_le_bytes(call[a..a + 8].try_into().unwrap_or_default());
                    call[a..a + 8].copy_from_slice(&(at.buf - l.buffer() + off).to_le_bytes());
                }
            }
        }
        calls.extend_from_slice(&c);
        let mut f = tasks.emergency_frame(*t, l.frame(i + 1), l.sigreturn());
        f.resize(l.frame_size as usize, 0);
        frames.extend_from_slice(&f);
    }
    mem.write(l.slot(0), &slots)?;
    mem.write(super::visit_place(l, others.len() as u64, ncalls, 0).calls, &calls)?;
    mem.write(l.frame(1), &frames)
}

/// Into the blob, with all signals blocked, then off. `spoils`: the code there may change extended state. `frame`: through which it leaves.
fn send_in(
    tasks: &mut Tasks,
    tid: i32,
    l: &Layout,
    (entry, arg, stack): (u64, u64, u64),
    frame: u64,
    spoils: bool,
) -> Result<()> {
    let Some(t) = tasks.all.get_mut(&tid) else { return Ok(()) };
    let eflags = t.regs.eflags & !0x500; // no trap flag, direction up
    let door = Regs { rip: l.leave(), rdi: frame, orig_rax: u64::MAX, rax: 0, eflags, ..t.regs };
    raw::set_regs(tid, &door)?;
    t.entered = true;
    t.sent = true;
    t.spoilt |= spoils;
    t.out = Some(door);
    open(tid, t)?;
    raw::set_sigmask(tid, ALL_SIGNALS)?;
    raw::set_regs(tid, &Regs { rip: entry, rdi: arg, rsp: stack, ..door })?;
    tasks.resume(tid)
}

/// What the blob has left unfinished: [`wire::Params::forking`].
fn unfinished(mem: &RemoteMem, l: &Layout) -> Result<u32> {
    let mut b = [0; 4];
    mem.read(l.params() + std::mem::offset_of!(wire::Params, forking) as u64, &mut b)?;
    Ok(u32::from_le_bytes(b))
}

/// The blob's connection, if it has one. Others may have the same descriptor table and open what they like, so it is not what is new there.
/// `server`: the serving thread, which stands still.
fn connection(pid: i32, mem: &RemoteMem, server: i32, l: &Layout, before: &[i32]) -> Option<i32> {
    let mut sock = [0; 4];
    mem.read(l.params() + offset_of!(wire::Params, sock) as u64, &mut sock).ok()?;
    match i32::from_le_bytes(sock) {
        -1 => {}
        sock => return Some(sock),
    }
    // between the call that made it and the note of its number it is in a register
    let r = raw::regs(server).ok().filter(|r| l.contains(r.rip))?;
    let registers = [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r12, r.r13, r.r14, r.r15];
    let new = procfs::fd::links(pid).unwrap_or_default().into_iter();
    let mut new = new.filter(|(fd, link)| !before.contains(fd) && link.starts_with(b"socket:"));
    new.find(|(fd, _)| registers.contains(&(*fd as u64))).map(|(fd, _)| fd)
}

/// Takes the mapping away again: everyone but `tid` is cured first, then `tid` unmaps it from outside.
///
/// Where the recorder is gone, the blob has seen that too, and its threads may have left through their frames before they
/// could be stopped: those run their own program again and are only stopped in it; the blob closes its connection before
/// it lets anybody go. `before`: the target's descriptors at the freeze.
pub fn leave_mapping(
    tasks: &mut Tasks,
    mem: &RemoteMem,
    tid: i32,
    plan: &EntryPlan,
    l: &Layout,
    before: &[i32],
) -> Result<()> {
    let entered: Vec<i32> = tasks.all.iter().filter(|(_, t)| t.entered).map(|(t, _)| *t).collect();
    tasks.bring_to_stop(&entered)?;
    // the serving thread sets this before it lets anybody go, itself included, and now it stands still too
    let mut released = [0; 4];
    let released = match mem.read(l.params() + offset_of!(wire::Params, release) as u64, &mut released) {
        Ok(()) => released != [0; 4],
        Err(_) => true,
    };
    let mut left = false;
    for t in entered.iter().filter(|_| released) {
        let sent = tasks.all.get(t).is_some_and(|t| t.sent);
        if sent && !l.contains(raw::regs(*t)?.rip) {
            tasks.left_by_itself(*t)?;
            left = true;
        }
    }
    let connection = if left { None } else { connection(tasks.pid, mem, tid, l, before) };
    // a helper may have ended, by itself
    let tid = if tasks.all.contains_key(&tid) { tid } else { tasks.all.keys().next().copied().unwrap_or(tid) };
    let tid = borrow_scratch(tasks, mem, tid, plan)?;
    for t in entered.iter().filter(|t| **t != tid) {
        tasks.cure(*t)?;
    }
    // taken out in the middle of making the snapshot child. First of all calls: this is the step with which the blob's own
    // instructions, which would have seen to it, are left for good
    let forking = if left { 0 } else { unfinished(mem, l)? };
    if forking & wire::SUBREAPER_ASIDE != 0 {
        remote_call(tasks, tid, plan, libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as u64, 1, 0, 0, 0, 0])?;
    }
    if forking & wire::FORKING != 0 {
        remote_call(tasks, tid, plan, libc::SYS_wait4, [u64::MAX, 0, libc::__WCLONE as u32 as u64, 0, 0, 0])?;
    }
    if let Some(fd) = connection {
        remote_call(tasks, tid, plan, libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
    }
    must(tasks, tid, plan, libc::SYS_munmap, [l.base, l.len, 0, 0, 0, 0])?;
    // from the exit of that call to a stop from which the kernel restarts the interrupted call, then its own state
    tasks.bring_to_stop(&[tid])?;
    tasks.cure(tid)?;
    give_back_scratch(tasks, mem)?;
    let helper = tasks.all.iter().find(|(_, t)| t.helper).map(|(tid, _)| *tid);
    helper.map_or(Ok(()), |helper| strict::end(tasks, helper))
}
