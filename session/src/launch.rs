//! Starting a command as a session.
use crate::front::{self, Starting};
use crate::lock::Lock;
use crate::registry::{self, now};
use crate::state::open_log;
use crate::state::ENV_STATE_DIR;
use crate::supervisor::Running;
use crate::{control, name, Event, LaunchError, LaunchRequest, Live, Mode, Outcome, ProcId, Started, StateDir};
use crate::{EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND};
use engine::{Error, Kind};
use image::SessionName;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// The name of the session that a launched program is.
const ENV_SESSION: &str = "DORMOUSE_SESSION";

/// Starts a command as a session. In the foreground (`detach` false) it has our stdio and terminal, and this returns when it has
/// ended; detached it has /dev/null and the session's log, and this returns when it runs. For a process with one thread.
pub fn launch(state: &StateDir, request: &LaunchRequest, on_event: &dyn Fn(Event)) -> Result<Outcome, LaunchError> {
    let Some(command) = request.argv.first() else {
        return Err(Error::new(Kind::Usage, "launch", "command", "there is none", "write it after --").into());
    };
    let attempted = match &request.name {
        Some(name) => format!("launch {name}"),
        None => format!("launch {}", command.to_string_lossy()),
    };
    front::run(&attempted, request.detach, on_event, |starting| {
        let name = match &request.name {
            Some(name) => name.clone(),
            None => name::make(state, command)?,
        };
        start(state, &name, request, starting, &attempted).inspect_err(|_| {
            // What was made for it; a session that was there before has its checkpoints or its log.
            if registry::status(state, &name).is_err() {
                registry::forget(state, &name);
            }
        })
    })
}

fn start(
    state: &StateDir,
    name: &SessionName,
    request: &LaunchRequest,
    starting: &Starting,
    attempted: &str,
) -> Result<Running, LaunchError> {
    let mut lock = Lock::take(state, name, attempted)?;
    lock.starting();
    registry::require_not_live(
        state,
        name,
        attempted,
        &format!("choose another --name, or end it with ctl kill {name}"),
    )?;
    let had_log = state.log(name).exists();
    let control = control::bind(state, name)?;
    let mut command = Command::new(&request.argv[0]);
    command.args(&request.argv[1..]);
    // So libdormouse finds the session's control socket.
    command.env(ENV_SESSION, name.as_str()).env(ENV_STATE_DIR, state.path());
    if request.detach {
        let log = open_log(&state.log(name))?;
        command.stdin(Stdio::null()).stdout(copy(&log, attempted)?).stderr(log);
    }
    let (door, note) = crate::agent::offer(state, request.door, &mut command, attempted)?;
    // One that comes to the program is passed on to us by its agent.
    let (line, value) = sys::agent::triggers(&request.triggers.signals(), std::process::id() as i32);
    match request.triggers.signals().is_empty() || door != engine::Door::Agent {
        true => command.env_remove(line),
        false => command.env(line, value),
    };
    // Meant for us: one that goes to the whole group, or to the program by mistake, must not end or stop it.
    let inherited = starting.inherited.clone().ignoring(request.triggers.signals());
    let prepared = sys::spawn::prepare(&mut command, inherited, request.detach)
        .map_err(|e| cannot_start(attempted, &request.argv[0], &e))?;
    let pid = prepared.pid();
    // Our child, unreaped as yet: the PID is its own.
    let program =
        ProcId::of(pid).ok_or_else(|| crate::errors::failed(attempted, "/proc", "the started program is not in it"))?;
    let live = Live {
        name: name.to_string(),
        mode: if request.detach { Mode::Detached } else { Mode::Foreground },
        program,
        init: None,
        supervisor: ProcId::me(),
        door: door.name().into(),
        command: request.argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "),
        from: None,
        created: now(),
        triggers: request.triggers.clone(),
    };
    // Before it runs: whoever hears of the program finds the session.
    registry::register(state, name, &live)?;
    prepared.go().map_err(|e| {
        registry::withdraw(state, name);
        if request.detach && !had_log {
            // Empty, as nothing ran.
            let _ = std::fs::remove_file(state.log(name));
        }
        cannot_start(attempted, &request.argv[0], &e)
    })?;
    let started = Started {
        name: name.to_string(),
        name_made: request.name.is_none(),
        from: None,
        pid,
        supervisor: std::process::id() as i32,
        pids: None,
        notes: note.into_iter().collect(),
        log: request.detach.then(|| state.log(name)),
        redraw: false,
    };
    Ok(Running {
        state: state.clone(),
        name: name.clone(),
        live,
        child: pid,
        status: None,
        listener: control.keep(),
        pty: None,
        started,
        lock: Some(lock),
    })
}

fn copy(log: &File, attempted: &str) -> crate::Result<File> {
    log.try_clone().map_err(|e| crate::errors::failed(attempted, "dup", e))
}

/// Ends a child that was started a moment ago and cannot be kept. The supervisor ends next, so init reaps it.
pub(crate) fn kill_child(pid: i32) {
    // It is our unreaped child: the PID is its own.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// What exec (or fork) said, with the exit code that shells use for it.
fn cannot_start(attempted: &str, command: &OsStr, e: &io::Error) -> LaunchError {
    let path = Path::new(command);
    if e.raw_os_error() == Some(libc::EACCES) && command.as_encoded_bytes().contains(&b'/') && path.is_dir() {
        let error = Error::new(
            Kind::Refused,
            attempted,
            "the command",
            "it is a directory",
            "name a program, in it or elsewhere",
        );
        return LaunchError { code: EXIT_CANNOT_EXECUTE, error };
    }
    let (code, kind, remedy) = match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => (
            EXIT_NOT_FOUND,
            Kind::Refused,
            "check its spelling and PATH (and, of a script, the interpreter in its first line)",
        ),
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            (crate::EXIT_FAILED, Kind::PutBack, "end other processes, or raise the limit (ulimit -a)")
        }
        Some(libc::EACCES | libc::EPERM) => (EXIT_CANNOT_EXECUTE, Kind::Refused, "make it executable (chmod +x)"),
        _ => (EXIT_CANNOT_EXECUTE, Kind::Refused, "check that it is a program for this machine"),
    };
    LaunchError { code, error: Error::new(kind, attempted, "the command", plain(e), remedy) }
}

/// The kernel's words without Rust's error number.
fn plain(e: &io::Error) -> String {
    e.raw_os_error().map_or_else(|| e.to_string(), |n| nix::errno::Errno::from_raw(n).desc().to_lowercase())
}
