//! Start or resume: the same command line starts a job, and after whatever ended it takes it up where its last checkpoint is.
use crate::{launch, registry, restore, store_calls};
use crate::{Event, LaunchError, LaunchRequest, Outcome, RestoreRequest, Spec, StateDir};
use engine::{Error, Kind};
use image::SessionName;

/// Which checkpoint is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest; refused if it is damaged.
    Newest,
    /// The newest that verifies.
    Intact,
}

/// Restores the session if it has a checkpoint, else starts its command. For a process with one thread. The request must have
/// a name.
pub fn resume(
    state: &StateDir,
    request: &LaunchRequest,
    which: Resume,
    no_triggers: bool,
    on_event: &dyn Fn(Event),
) -> Result<Outcome, LaunchError> {
    let Some(name) = &request.name else {
        let remedy = "pass --name NAME, the same at each start";
        return Err(Error::new(Kind::Usage, "resume", "session", "it has no name", remedy).into());
    };
    let attempted = format!("resume {name}");
    let remedy = format!("it is in use: wait for its end, or end it with ctl kill {name}");
    registry::require_not_live(state, name, &attempted, &remedy)?;
    let numbers = store_calls::numbers(&state.store()?, name)?;
    let Some(newest) = numbers.last() else {
        return launch(state, request, on_event);
    };
    let (n, passed_over) = match which {
        Resume::Newest => (*newest, Vec::new()),
        Resume::Intact => intact(state, name, &numbers, &attempted)?,
    };
    let again = RestoreRequest {
        detach: request.detach,
        triggers: request.triggers.clone(),
        no_triggers,
        ..RestoreRequest::new(Spec { name: name.clone(), n: Some(n) })
    };
    let outcome = restore(state, &again, &|event| match event {
        Event::Started(mut started) => {
            started.notes.splice(0..0, passed_over.iter().cloned());
            on_event(Event::Started(started));
        }
        other => on_event(other),
    });
    outcome.map_err(|mut e| {
        if e.error.kind == Kind::Damaged && which == Resume::Newest {
            for r in &mut e.error.reasons {
                r.remedy = format!("--resume=intact takes the newest checkpoint that is whole; ctl verify {name}@{n}");
            }
        }
        e
    })
}

/// The newest checkpoint that verifies, and what is to be said of those that do not.
fn intact(state: &StateDir, name: &SessionName, numbers: &[u64], attempted: &str) -> crate::Result<(u64, Vec<String>)> {
    let store = state.store()?;
    let mut damaged = Vec::new();
    for n in numbers.iter().rev() {
        match store_calls::verify(&store, name, *n) {
            Ok(()) => {
                let said = |e: &Error| e.reasons.iter().map(|r| r.why.clone()).collect::<Vec<_>>().join(", ");
                let each = damaged.iter().map(|(n, e)| format!("{name}@{n} is damaged and passed over: {}", said(e)));
                return Ok((*n, each.collect()));
            }
            Err(e) => damaged.push((*n, e)),
        }
    }
    let mut all = Error { kind: Kind::Damaged, attempted: attempted.into(), reasons: Vec::new() };
    for (n, e) in damaged {
        all.reasons.extend(e.reasons.into_iter().map(|mut r| {
            r.object = format!("{name}@{n}");
            r.remedy = format!("no checkpoint is whole: ctl rm {name} removes them, and the command starts anew");
            r
        }));
    }
    Err(all)
}
