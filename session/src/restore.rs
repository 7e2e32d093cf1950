//! Restoring a checkpoint as a session.
use crate::checkpoint::LOG_LABEL;
use crate::control::Bound;
use crate::front::{self, Starting};
use crate::launch::kill_child;
use crate::lock::Lock;
use crate::registry::{self, now};
use crate::state::open_log;
use crate::supervisor::{Pty, Running};
use crate::trigger::{Triggers, TRIGGERS_LABEL};
use crate::{control, engine_calls, procfs, store_calls};
use crate::{Event, LaunchError, Live, Mode, Outcome, ProcId, RestoreRequest, Result, Spec, Started, StateDir};
use engine::{Door, Pids, Progress, RestoreOptions, Restored};
use image::{CheckpointHandle, SessionName};
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Opens a checkpoint; gives its full specification too (`web@3` for `web`).
pub fn open_checkpoint(state: &StateDir, spec: &Spec, attempted: &str) -> Result<(CheckpointHandle, Spec)> {
    let handle = store_calls::checkpoint(&state.store()?, &spec.name, spec.n, attempted)?;
    let n = store_calls::number(&handle);
    Ok((handle, Spec { name: spec.name.clone(), n: Some(n) }))
}

/// What a restore would say: its notes, or every obstacle at once as an error. Changes nothing.
pub fn check(state: &StateDir, request: &RestoreRequest) -> Result<Vec<String>> {
    let attempted = format!("restore {}", request.spec);
    let (handle, spec) = open_checkpoint(state, &request.spec, &attempted)?;
    let name = request.as_name.as_ref().unwrap_or(&spec.name);
    not_live(state, name, &format!("restore {spec}"))?;
    let options = options(request, &spec, [0, 1, 2], None);
    engine_calls::check(&handle, &with_log(options, &handle, state.log(name))?)
}

/// Restores a checkpoint as a session. In the foreground it gets our stdio and terminal, and this returns when it has
/// ended; detached this returns when it runs. For a process with one thread. The error's code is 125 always; its kind
/// says more.
pub fn restore(
    state: &StateDir,
    request: &RestoreRequest,
    on_event: &dyn Fn(Event),
) -> std::result::Result<Outcome, LaunchError> {
    let attempted = format!("restore {}", request.spec);
    // Opened here first: what is wrong with it is told without a fork.
    let (handle, spec) = open_checkpoint(state, &request.spec, &attempted)?;
    let attempted = format!("restore {spec}");
    let name = request.as_name.clone().unwrap_or_else(|| spec.name.clone());
    let before = registry::Before::of(state, &name);
    let outcome = front::run(&attempted, request.detach, on_event, |starting| {
        // It ends here: a supervisor that kept its packs open would keep their room on the disk, when they have long been removed.
        let handle = handle;
        start(state, &name, request, &spec, &handle, starting, &attempted).inspect_err(|_| before.again(state, &name))
    });
    // Again: a supervisor that was killed has done nothing.
    outcome.inspect_err(|_| before.again(state, &name))
}

fn not_live(state: &StateDir, name: &SessionName, attempted: &str) -> Result<()> {
    registry::require_not_live(state, name, attempted, &format!("use --as NEW, or end it with ctl kill {name}"))
}

fn options<'a>(
    r: &RestoreRequest,
    spec: &Spec,
    stdio: [RawFd; 3],
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
) -> RestoreOptions<'a> {
    RestoreOptions {
        what: spec.to_string(),
        pids: r.pids,
        stdio,
        own_session: r.detach,
        external: r.external.clone(),
        external_close: r.external_close,
        log: None,
        map_path: r.map_path.clone(),
        session: None,
        triggers: Vec::new(),
        progress,
    }
}

/// A program's log is its session's: detached, also under another name or elsewhere, it writes to that; in the foreground, to our stdout
/// and stderr.
fn with_log<'a>(mut o: RestoreOptions<'a>, handle: &CheckpointHandle, log: PathBuf) -> Result<RestoreOptions<'a>> {
    let old = engine_calls::label(handle, LOG_LABEL)?.map(PathBuf::from);
    if o.own_session {
        o.map_path.extend(old.filter(|old| *old != log).map(|old| (old, log)));
    } else {
        o.log = old;
    }
    Ok(o)
}

fn start(
    state: &StateDir,
    name: &SessionName,
    request: &RestoreRequest,
    spec: &Spec,
    handle: &CheckpointHandle,
    starting: &Starting,
    attempted: &str,
) -> std::result::Result<Running, LaunchError> {
    let mut lock = Lock::take(state, name, attempted)?;
    lock.starting();
    not_live(state, name, attempted)?;
    let control = control::bind(state, name)?;
    let progress = |p| starting.progress(p);
    let stdio = Stdio::of(state, name, request, handle, attempted)?;
    let options = options(request, spec, stdio.numbers(), Some(&progress));
    let mut options = with_log(options, handle, state.log(name))?;
    options.session = Some((name.to_string(), state.session(name)));
    let (triggers, note) = triggers(request, handle)?;
    options.triggers = triggers.signals();
    let mut restored = engine_calls::restore(handle, &options)?;
    restored.notes.extend(note);
    let pid = restored.pid;
    let kept = keep(state, name, request, spec, restored, triggers, control, stdio, lock, attempted);
    Ok(kept.inspect_err(|_| kill_child(pid))?)
}

/// What makes checkpoints of the restored session by itself: what did before, unless the caller says otherwise.
fn triggers(request: &RestoreRequest, handle: &CheckpointHandle) -> Result<(Triggers, Option<String>)> {
    let before = match engine_calls::label(handle, TRIGGERS_LABEL)? {
        Some(text) if !request.no_triggers => serde_json::from_str(&text),
        _ => Ok(Triggers::default()),
    };
    Ok(match before {
        Ok(before) => (request.triggers.over(&before), None),
        Err(e) => {
            let note =
                format!("the triggers that it was checkpointed with cannot be read ({e}): they are not in force");
            (request.triggers.clone(), Some(note))
        }
    })
}

/// Registers what was restored.
#[allow(clippy::too_many_arguments)]
fn keep(
    state: &StateDir,
    name: &SessionName,
    request: &RestoreRequest,
    spec: &Spec,
    restored: Restored,
    triggers: Triggers,
    control: Bound,
    stdio: Stdio,
    lock: Lock,
    attempted: &str,
) -> Result<Running> {
    let Restored { child, pid, status, pids, agent, notes } = restored;
    let gone = |what: &str| crate::errors::failed(attempted, "/proc", format!("the restored {what} is not in it"));
    let init = (child != pid).then(|| ProcId::of(child).ok_or_else(|| gone("namespace"))).transpose()?;
    // In a private namespace the program may have ended and been reaped by now; the record is then its namespace's.
    let program = ProcId::of(pid).or_else(|| init.clone()).ok_or_else(|| gone("program"))?;
    let live = Live {
        name: name.to_string(),
        mode: if request.detach { Mode::Detached } else { Mode::Foreground },
        program,
        init,
        supervisor: ProcId::me(),
        door: if agent { Door::Agent } else { Door::Attach }.name().into(),
        command: procfs::command_line(pid),
        from: spec.n,
        created: now(),
        triggers,
    };
    registry::register(state, name, &live)?;
    let started = Started {
        name: name.to_string(),
        name_made: false,
        from: spec.n,
        pid,
        supervisor: std::process::id() as i32,
        pids: Some(pids_word(pids).into()),
        notes,
        log: request.detach.then(|| state.log(name)),
        redraw: matches!(stdio, Stdio::Caller { terminal: true }),
    };
    let pty = match stdio {
        Stdio::Pty(pty) => Some(pty),
        _ => None,
    };
    Ok(Running {
        state: state.clone(),
        name: name.clone(),
        live,
        child,
        status,
        listener: control.keep(),
        pty,
        started,
        lock: Some(lock),
    })
}

fn pids_word(pids: Pids) -> &'static str {
    match pids {
        Pids::Auto => "auto",
        Pids::Keep => "keep",
        Pids::Private => "private",
        Pids::Fresh => "fresh",
    }
}

/// What the program's external ends at 0, 1, 2 are connected to.
enum Stdio {
    /// Ours, as they are; `terminal`: the program had one at 0, 1 or 2.
    Caller { terminal: bool },
    /// A terminal of its own.
    Pty(Pty),
    /// /dev/null and the log.
    Log(File, File),
}

impl Stdio {
    fn of(
        state: &StateDir,
        name: &SessionName,
        request: &RestoreRequest,
        handle: &CheckpointHandle,
        attempted: &str,
    ) -> Result<Stdio> {
        let wants_terminal = engine_calls::wants_terminal(handle)?;
        if !request.detach {
            return Ok(Stdio::Caller { terminal: wants_terminal });
        }
        let log = open_log(&state.log(name))?;
        let fail = |what: &str, e: &dyn std::fmt::Display| crate::errors::failed(attempted, what, e);
        if !wants_terminal {
            let null = File::open("/dev/null").map_err(|e| fail("/dev/null", &e))?;
            return Ok(Stdio::Log(null, log));
        }
        Ok(Stdio::Pty(pty(log).map_err(|e| fail("pty", &e))?))
    }

    fn numbers(&self) -> [RawFd; 3] {
        match self {
            Stdio::Caller { .. } => [0, 1, 2],
            Stdio::Pty(pty) => [pty._slave.as_raw_fd(); 3],
            Stdio::Log(null, log) => [null.as_raw_fd(), log.as_raw_fd(), log.as_raw_fd()],
        }
    }
}

/// A terminal of 24 by 80 (the engine gives it the size and settings of the program's own) whose output goes to `log`.
fn pty(log: File) -> nix::Result<Pty> {
    let ends = nix::pty::openpty(None, None)?;
    let closed_at_exec = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    closed_at_exec(&ends.master)?;
    closed_at_exec(&ends.slave)?;
    fcntl(&ends.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    let slave = ends.slave;
    // Without a terminal to set it there is no size; the program's own is set by the engine.
    let _ = sys::spawn::set_window_size(std::os::fd::AsFd::as_fd(&slave), (24, 80));
    Ok(Pty { master: File::from(ends.master), _slave: slave, log })
}
