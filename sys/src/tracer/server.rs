//! The tracer process's main loop.
use super::proto::{read_msg, write_msg, After, Ask, Entered, Frozen, LastCalls, Snapshot, Tell, ThreadState};
use super::tasks::{Task, Tasks};
use super::{enter, raw, strict, wake, EntryPlan};
use crate::inject::Layout;
use crate::mem::RemoteMem;
use crate::pidfd::PidFd;
use crate::seccomp::Chains;
use crate::{fault, procfs, Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Runs the tracer on its socket; never returns. `restored`: what the threads of a process that is restored will be given.
pub(super) fn run(sock: UnixStream, restored: Vec<ThreadState>) -> ! {
    // its own session: Ctrl-C and hang-ups of the recorder's terminal are not for it
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"dormouse-tracer");
    close_others(sock.as_raw_fd());
    reset_signals();
    let code = match Server::new(sock, restored).serve() {
        Ok(()) => 0,
        Err(_) => 1,
    };
    // SAFETY: ends this process at once; exit handlers belong to the recorder.
    unsafe { libc::_exit(code) }
}

/// No descriptor of the recorder's stays open here: locks, pipes and sockets must end with it.
fn close_others(keep: i32) {
    let close = |a: u32, b: u32| {
        // SAFETY: this process uses none of the descriptors that it closes.
        unsafe { libc::syscall(libc::SYS_close_range, a, b, 0) };
    };
    if keep > 0 {
        close(0, keep as u32 - 1);
    }
    close(keep as u32 + 1, u32::MAX);
}

/// SIGCHLD blocked (it is read from a signalfd), everything that a terminal or kill(1) sends by habit ignored.
fn reset_signals() {
    use nix::sys::signal::{signal, sigprocmask, SigHandler, SigSet, SigmaskHow, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None);
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGTSTP] {
        // SAFETY: no handler, only the disposition "ignore".
        let _ = unsafe { signal(s, SigHandler::SigIgn) };
    }
    // SAFETY: the default disposition, so that ended threads can be waited for.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

struct Inside {
    plan: EntryPlan,
    layout: Layout,
    server: i32,
}

struct Server {
    sock: UnixStream,
    tasks: Option<Tasks>,
    mem: Option<RemoteMem>,
    inside: Option<Inside>,
    first_stop: Instant,
    snapshot: Option<Snapshot>,
    /// Descriptors of the target at the freeze.
    fds: Vec<i32>,
    restored: Vec<ThreadState>,
    /// A restored process, before it runs: then another of its tree may end it, and it be waited for.
    restored_process: Option<PidFd>,
    /// That, when it runs, as long as the recorder may not know.
    unheard: Option<PidFd>,
}

impl Server {
    fn new(sock: UnixStream, restored: Vec<ThreadState>) -> Server {
        Server {
            sock,
            tasks: None,
            mem: None,
            inside: None,
            first_stop: Instant::now(),
            snapshot: None,
            fds: Vec::new(),
            restored,
            restored_process: None,
            unheard: None,
        }
    }

    /// Requests until the recorder is gone; then the target is cured.
    fn serve(&mut self) -> Result<()> {
        loop {
            let asked = self.wait_request().and_then(|()| read_msg::<Ask>(&mut self.sock));
            let Ok(Some(ask)) = asked else { break };
            let answer = self.answer(ask);
            let frozen = matches!(answer, Ok(Tell::Frozen(_)));
            let mut heard = self.tell(answer);
            if frozen {
                // heard or not: a cure needs it
                let read = self.read();
                heard = heard.and(self.tell(read));
            }
            if heard.is_err() {
                break;
            }
        }
        if let Some(process) = self.unheard.take() {
            let _ = process.kill(libc::SIGKILL); // or it has ended by itself
        }
        self.cure_all()
    }

    /// Answers; what has failed is undone first.
    fn tell(&mut self, answer: Result<Tell>) -> Result<()> {
        let answer = answer.unwrap_or_else(|e| {
            let _ = self.cure_all();
            Tell::Failed(e.into())
        });
        write_msg(&mut self.sock, &answer)
    }

    /// Waits for a request while handling what happens to the threads.
    fn wait_request(&mut self) -> Result<()> {
        use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
        use std::os::fd::AsFd;
        let Some(tasks) = self.tasks.as_mut() else { return Ok(()) };
        loop {
            let ready = {
                let mut p = [
                    PollFd::new(self.sock.as_fd(), PollFlags::POLLIN),
                    PollFd::new(tasks.sigfd().as_fd(), PollFlags::POLLIN),
                ];
                let _ = poll(&mut p, PollTimeout::NONE);
                p[0].any().unwrap_or(true)
            };
            while let Ok(Some(_)) = tasks.sigfd().read_signal() {}
            // a death shows at the next request
            let _ = tasks.pump();
            if tasks.lost {
                // the recorder's conversation ends with that, and its next request finds nothing
                return self.cure_all();
            }
            if ready {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, a: Ask) -> Result<Tell> {
        match a {
            Ask::Freeze { pid, filtered, known } => self.freeze(pid, filtered, &known),
            Ask::Enter(plan) => self.enter(plan),
            Ask::Go => Err(Error::Unfit { what: "nothing is entered".into() }),
            Ask::Collect => match self.tasks.as_ref().map(snapshot).or(self.snapshot.take()) {
                Some(s) => Ok(Tell::Snapshot(Box::new(s))),
                None => Err(Error::Unfit { what: "nothing is frozen".into() }),
            },
            Ask::Leave => self.leave().map(|()| Tell::Left),
            Ask::Release(after) => self.release(after),
            Ask::Adopt(tids) => self.adopt(&tids),
            Ask::Wake { tids, last } => self.wake(&tids, last),
            Ask::LetGo { stop } => self.let_go(stop),
            Ask::Farewell => {
                self.unheard = None;
                Ok(Tell::Released { pause_ns: 0, late: 0 })
            }
        }
    }

    fn freeze(&mut self, pid: i32, filtered: bool, known: &[i32]) -> Result<Tell> {
        fault::target(pid);
        procfs::first::has_ended(pid);
        // before the first stop: an open file that stays with the address space
        self.mem = Some(RemoteMem::open(pid)?);
        self.first_stop = Instant::now();
        let tasks = self.tasks.insert(Tasks::new(pid)?);
        tasks.freeze(known)?;
        procfs::first::has_ended(pid);
        let tids: Vec<i32> = tasks.all.keys().copied().collect();
        if filtered && strict::mark(tasks) {
            strict::not_for_the_oom_killer();
        }
        let filters = if filtered { suspended(tasks)? } else { None };
        Ok(Tell::Frozen(Frozen { tids, ended: Vec::new(), filters }))
    }

    fn read(&mut self) -> Result<Tell> {
        let Some(tasks) = self.tasks.as_mut() else { return Err(Error::Unfit { what: "nothing is frozen".into() }) };
        tasks.read_state()?;
        // before anybody goes in who has the same memory, and would unmap it; a strict thread stands in its own code, and only its frame is there
        let leaves = |t: &Task| [t.regs.rip, t.regs.rsp].into_iter().any(crate::inject::is_home);
        if tasks.all.values().any(leaves) {
            return Err(still_leaving());
        }
        self.fds = procfs::fd::numbers(tasks.pid).map_err(|e| Error::Unfit { what: e.to_string() })?;
        Ok(Tell::Read)
    }

    fn enter(&mut self, plan: EntryPlan) -> Result<Tell> {
        let (Some(tasks), Some(mem)) = (self.tasks.as_mut(), self.mem.as_ref()) else {
            return Err(Error::Unfit { what: "nothing is frozen".into() });
        };
        let pid = tasks.pid;
        let server = if tasks.all.contains_key(&pid) { pid } else { tasks.all.keys().next().copied().unwrap_or(pid) };
        let server = strict::server(tasks, server);
        if strict::left_behind(tasks) {
            return Err(still_leaving());
        }
        let sock = &mut self.sock;
        let go = || match read_msg(sock)? {
            Some(Ask::Go) => Ok(()),
            _ => Err(Error::Peer { peer: "recorder", what: "it does not want to go in any more".into() }),
        };
        let (layout, server, visited) = enter::enter(tasks, mem, server, &plan, &self.fds, go)?;
        tasks.hold = false;
        self.inside = Some(Inside { plan, layout, server });
        Ok(Tell::Entered(Box::new(Entered { layout, visited, server })))
    }

    /// Takes the blob out, if it is in.
    fn leave(&mut self) -> Result<()> {
        if let (Some(t), Some(mem), Some(i)) = (self.tasks.as_mut(), self.mem.as_ref(), self.inside.take()) {
            t.hold = true;
            enter::leave_mapping(t, mem, i.server, &i.plan, &i.layout, &self.fds)?;
        }
        Ok(())
    }

    fn release(&mut self, after: After) -> Result<Tell> {
        let pid = self.tasks.as_ref().map_or(0, |t| t.pid);
        let mut late = 0;
        if after == After::Kill {
            late = self.tasks.as_ref().map_or(0, Tasks::late_signals);
            kill(pid, libc::SIGKILL)?;
            if let Some(t) = self.tasks.as_mut() {
                t.all.clear();
            }
            raw::reap_killed();
            self.tasks = None;
            self.inside = None;
        } else {
            self.leave()?;
            if after == After::Stop {
                // pending before the release: taken before the next instruction of the program
                kill(pid, libc::SIGSTOP)?;
            }
            if let Some(mut t) = self.tasks.take() {
                self.snapshot = Some(t.release()?);
            }
        }
        let pause_ns = self.first_stop.elapsed().as_nanos() as u64;
        Ok(Tell::Released { pause_ns, late })
    }

    /// Whatever was begun is undone.
    fn cure_all(&mut self) -> Result<()> {
        let r = self.leave();
        if let Some(mut t) = self.tasks.take() {
            if t.adopted {
                // dropping it kills the process
                return r;
            }
            return r.and(t.release().map(drop));
        }
        r
    }

    /// Seizes without stopping: from here on the process ends with this tracer, until it is let go.
    fn adopt(&mut self, tids: &[i32]) -> Result<Tell> {
        let Some(pid) = tids.first().copied() else { return Err(Error::Unfit { what: "it has no threads".into() }) };
        fault::target(pid);
        let tasks = self.tasks.insert(Tasks::new(pid)?);
        tasks.adopted = true;
        tasks.seize_or_die(tids)?;
        self.restored_process = Some(PidFd::open(pid)?);
        Ok(Tell::Adopted)
    }

    /// Everything but letting go: if whoever restores is gone by then, so is the process.
    fn wake(&mut self, tids: &[i32], last: LastCalls) -> Result<Tell> {
        let Some(tasks) = self.tasks.as_mut() else { return Err(Error::Unfit { what: "nothing is adopted".into() }) };
        wake::wake(tasks, tids, &self.restored, last)?;
        Ok(Tell::Woken)
    }

    fn let_go(&mut self, stop: bool) -> Result<Tell> {
        let Some(mut tasks) = self.tasks.take() else { return Err(Error::Unfit { what: "nothing is adopted".into() }) };
        self.unheard = self.restored_process.take();
        if stop {
            match self.unheard.as_ref().map(|p| p.kill(libc::SIGSTOP)) {
                Some(Err(e)) if e.errno() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
        wake::let_go(&mut tasks)?;
        Ok(Tell::Released { pause_ns: 0, late: 0 })
    }
}

/// The seccomp filters of stopped threads, from here on suspended; None where that is not permitted.
fn suspended(tasks: &Tasks) -> Result<Option<Chains>> {
    let denied = |e: &Error| matches!(e.errno(), Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::EIO));
    let mut chains = Chains::default();
    for (tid, _) in tasks.all.iter().filter(|(_, t)| t.stopped) {
        let filters = raw::seccomp_filters(*tid);
        match filters.and_then(|f| raw::suspend_seccomp(*tid, false).map(|()| f)) {
            Err(e) if denied(&e) => return Ok(None),
            f => chains.add(*tid, f?),
        }
    }
    Ok(Some(chains))
}

fn still_leaving() -> Error {
    Error::Unfit { what: "a thread is just leaving an earlier checkpoint that was broken off".into() }
}

fn kill(pid: i32, sig: i32) -> Result<()> {
    // SAFETY: kill takes two integers.
    if unsafe { libc::kill(pid, sig) } < 0 {
        return Err(Error::call("kill", pid, std::io::Error::last_os_error()));
    }
    Ok(())
}

/// What was read of the frozen threads.
pub(super) fn snapshot(tasks: &Tasks) -> Snapshot {
    let bufs = |v: &[Vec<u8>]| v.iter().cloned().map(serde_bytes::ByteBuf::from).collect::<Vec<_>>();
    let mut s = Snapshot {
        threads: Vec::new(),
        stopped: false,
        shared_pending: bufs(&tasks.shared_pending),
        thread_pending: Vec::new(),
    };
    for (tid, t) in tasks.all.iter().filter(|(_, t)| !t.helper) {
        s.stopped |= t.group_stop;
        if !t.pending.is_empty() {
            s.thread_pending.push((*tid, bufs(&t.pending)));
        }
        let regs = crate::restart::with_call(&t.regs, t.call);
        let (sigmask, call_mask, rseq, signal) = (t.sigmask, t.call_mask, t.rseq, t.signal);
        s.threads.push(ThreadState { tid: *tid, regs, sigmask, call_mask, xstate: t.xstate.clone(), rseq, signal });
    }
    s
}
