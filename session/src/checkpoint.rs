//! Checkpointing a live session, or any process.
use crate::control::{Client, Request};
use crate::hooks::Program;
use crate::lock::Lock;
use crate::recorder::{Made, Order};
use crate::registry::{self, now};
use crate::trigger::{Triggers, TRIGGERS_LABEL};
use crate::{
    engine_calls, procfs, store_calls, strays, CheckpointRequest, Checkpointed, Live, Mode, ProcId, Result, StateDir,
    Target,
};
use engine::{After, CaptureOptions, Error, Kind};
use image::{SessionName, Store};
use std::collections::BTreeMap;
use sys::pidfd::PidFd;

/// Longest wait for a killed program's end, milliseconds: on a busy machine a thread of SCHED_IDLE is long in dying; one in an uninterruptible call may never.
const DYING: i32 = 60_000;

/// Label under which a checkpoint has the path of its session's log.
pub(crate) const LOG_LABEL: &str = "log";

/// Makes a checkpoint. With [`After::Kill`] it returns when the session has ended, so that it can be restored at once.
pub fn checkpoint(state: &StateDir, target: &Target, request: &CheckpointRequest) -> Result<Checkpointed> {
    match target {
        Target::Session(name) => {
            let attempted = format!("checkpoint {name}");
            // Looked at before the lock, which would make the folder of a session that is not there.
            if !state.session(name).is_dir() {
                return Err(registry::no_such(name, &attempted));
            }
            let _lock = Lock::take_when_started(state, name, &attempted)?;
            let live = find_live(state, name, &attempted)?;
            take(state, name, &live, request, &attempted, true)
        }
        Target::Pid { pid, name } => {
            let attempted = format!("checkpoint process {pid} as {name}");
            let process = any_process(*pid, &attempted)?;
            other_name(state, &process, name, &attempted)?;
            let new = !state.session(name).exists();
            let result = attach(state, name, process, request, &attempted);
            if new && result.is_err() {
                registry::forget(state, name);
            }
            result
        }
    }
}

/// The same by a session's own recorder, whose supervisor knows of it. None: another is under way, and it was not to be waited for.
pub(crate) fn record(state: &StateDir, name: &SessionName, order: &Order) -> Result<Option<Made>> {
    let attempted = format!("checkpoint {name}");
    let _lock = match order.wait {
        true => Lock::take_when_free(state, name, &attempted)?,
        false => match Lock::take_when_started(state, name, &attempted) {
            Err(e) if e.kind == Kind::Busy => return Ok(None),
            lock => lock?,
        },
    };
    let live = find_live(state, name, &attempted)?;
    let (after, external) = (order.after, order.external.clone());
    let request = CheckpointRequest { after, external, ..Default::default() };
    let Checkpointed { captured, mut notes, .. } = take(state, name, &live, &request, &attempted, false)?;
    // Only now that a newer one is complete.
    if let Some(keep) = order.keep {
        if let Err(e) = state.store().and_then(|store| store_calls::prune(&store, name, keep)) {
            notes.push(e.to_string());
        }
    }
    let micros = |d: std::time::Duration| d.as_micros() as u64;
    let (pause_us, took_us) = (micros(captured.pause), micros(captured.took));
    Ok(Some(Made { n: captured.n, pause_us, took_us, reported: captured.reported, notes }))
}

/// The process; or why that PID cannot be one to checkpoint, as far as it can be told without touching it.
fn any_process(pid: i32, attempted: &str) -> Result<ProcId> {
    let object = format!("process {pid}");
    if pid <= 0 {
        return Err(Error::new(
            Kind::NoSuch,
            attempted,
            object,
            "that is not a PID",
            "give a number above 0 (ps -e lists them)",
        ));
    }
    match ProcId::of(pid).filter(ProcId::lives) {
        Some(process) => Ok(process),
        None => {
            Err(Error::new(Kind::NoSuch, attempted, object, "there is no such process", "ps -e lists those there are"))
        }
    }
}

/// Refuses a process that is live under another name.
fn other_name(state: &StateDir, process: &ProcId, name: &SessionName, attempted: &str) -> Result<()> {
    for listed in registry::list(state)? {
        let Some(live) = listed.live.filter(|l| l.program == *process && listed.name != name.as_str()) else {
            continue;
        };
        return Err(Error::new(
            Kind::Refused,
            attempted,
            format!("process {}", process.pid),
            format!("it is the live session {}", live.name),
            format!("use ctl checkpoint {}", live.name),
        ));
    }
    Ok(())
}

fn attach(
    state: &StateDir,
    name: &SessionName,
    process: ProcId,
    request: &CheckpointRequest,
    attempted: &str,
) -> Result<Checkpointed> {
    let _lock = Lock::take_when_started(state, name, attempted)?;
    let before = registry::live(state, name)?;
    if let Some(live) = before.as_ref().filter(|l| l.program != process) {
        return Err(Error::new(
            Kind::Refused,
            attempted,
            format!("name {name}"),
            format!("it is in use by the live PID {}", live.program.pid),
            "choose another --name",
        ));
    }
    let live = before.unwrap_or_else(|| Live {
        name: name.to_string(),
        mode: Mode::Attached,
        command: procfs::command_line(process.pid),
        program: process,
        init: None,
        supervisor: None,
        door: "attach".into(),
        from: None,
        created: now(),
        triggers: Triggers::default(),
    });
    let made = take(state, name, &live, request, attempted, true)?;
    // Only now: a refused process is not a session.
    if request.after != After::Kill && live.supervisor.is_none() {
        registry::register(state, name, &live)?;
    }
    Ok(made)
}

fn find_live(state: &StateDir, name: &SessionName, attempted: &str) -> Result<Live> {
    let object = format!("session {name}");
    let Some(live) = registry::live(state, name)? else {
        let listed = registry::status(state, name).map_err(|e| {
            if e.kind == Kind::NoSuch {
                registry::no_such(name, attempted)
            } else {
                e
            }
        })?;
        let remedy = match listed.checkpoints.last() {
            Some(n) => format!("ctl restore {name} wakes it from {name}@{n}"),
            None => "start it again with launcher".into(),
        };
        return Err(Error::new(Kind::Refused, attempted, object, "nothing of it runs", remedy));
    };
    if !live.program.lives() {
        let why =
            format!("its command (PID {}) has ended; only processes that descend from it run on", live.program.pid);
        let remedy = "checkpoint one of them with ctl checkpoint --pid PID --name NEW";
        return Err(Error::new(Kind::Refused, attempted, object, why, remedy));
    }
    Ok(live)
}

/// The checkpoint itself; the lock is held. `tell`: the supervisor does not know of it yet.
fn take(
    state: &StateDir,
    name: &SessionName,
    live: &Live,
    request: &CheckpointRequest,
    attempted: &str,
    tell: bool,
) -> Result<Checkpointed> {
    let pid = live.program.pid;
    let store = state.store()?;
    // Stays with the process whatever becomes of the PID.
    let handle = PidFd::open(pid).ok();
    let mut notes = Vec::new();
    let mut supervisor = None;
    if tell && request.after == After::Kill && live.supervised() {
        match announce(state, name) {
            Ok(client) => supervisor = Some(client),
            Err(e) => notes.push(format!(
                "the supervisor could not be told ({e}): it will report SIGKILL instead of exit code 85"
            )),
        }
    }
    if !live.program.lives() {
        let remedy = "ctl list shows what is left of it";
        return Err(Error::new(Kind::TargetDied, attempted, format!("process {pid}"), "it ended meanwhile", remedy));
    }
    let mut labels = BTreeMap::from([
        ("session".to_string(), name.to_string()),
        ("command".to_string(), live.command.clone()),
        ("mode".to_string(), format!("{:?}", live.mode).to_lowercase()),
        (LOG_LABEL.to_string(), state.log(name).to_string_lossy().into_owned()),
    ]);
    labels.extend(live.triggers.label().map(|text| (TRIGGERS_LABEL.to_string(), text)));
    let others = || strays::of(live);
    let options = CaptureOptions {
        after: request.after,
        door: request.door,
        agent: live.door == engine::Door::Agent.name(),
        others: Some(&others),
        external: request.external.clone(),
        strict: request.strict || live.triggers.strict,
        risk_strict: request.risk_strict,
        labels,
        progress: request.progress,
    };
    let captured = match with_hooks(&store, name, live, &options, &mut notes, attempted) {
        Ok(mut captured) => {
            notes.append(&mut captured.notes);
            captured
        }
        Err(e) => {
            // If it cannot be told, the closed connection says the same.
            let _ = supervisor.as_mut().map(|s| s.ask(&Request::Stays));
            return Err(e);
        }
    };
    if request.after == After::Kill {
        if let Some(e) = supervisor.as_mut().and_then(|s| s.left(captured.n, DYING).err()) {
            notes.push(format!("the supervisor did not confirm the end of {name} ({e})"));
        }
        if handle.is_some_and(|h| !h.wait_end(DYING)) {
            notes.push(format!("process {pid} is killed but has not ended yet"));
        }
        if !live.supervised() {
            registry::unregister(state, name, &format!("checkpointed as {} and killed", captured.n));
        }
    }
    Ok(Checkpointed { name: name.clone(), pid, captured, notes })
}

/// The checkpoint, in no critical section of the program's and between its hooks.
fn with_hooks(
    store: &Store,
    name: &SessionName,
    live: &Live,
    options: &CaptureOptions,
    notes: &mut Vec<String>,
    attempted: &str,
) -> Result<engine::Captured> {
    let pid = live.program.pid;
    let record = || engine_calls::checkpoint(store, name, pid, options);
    let Some(program) = Program::of(pid, attempted) else { return record() };
    loop {
        program.wait_enabled()?;
        let round = program.before(options.after)?;
        let made = record();
        notes.extend(round.and_then(|r| r.after(&made, options.after)));
        match made {
            Err(e) if program.again(&e) => {}
            made => return made,
        }
    }
}

fn announce(state: &StateDir, name: &SessionName) -> std::io::Result<Client> {
    let mut client = Client::connect(state, name)?;
    client.ask(&Request::Leaving)?;
    Ok(client)
}
