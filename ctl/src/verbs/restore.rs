//! `ctl restore NAME[@N]`: in the foreground the program has this terminal, and its status is ours.
use engine::Error;
use serde_json::{json, Value};
use session::{Event, Outcome, RestoreRequest, Started, StateDir};

use crate::cli::{externals, Restore};
use crate::out::Out;
use crate::progress::Bar;
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &Restore) -> Result<Done, Error> {
    let mut request = RestoreRequest::new(name::spec("restore", &args.what)?);
    request.as_name = args.as_name.as_deref().map(|n| name::session("restore", n)).transpose()?;
    request.detach = args.detach;
    request.pids = args.pids.map(Into::into).unwrap_or_default();
    request.map_path = args.map_path.clone();
    request.no_triggers = args.no_triggers;
    let external = externals(&args.external);
    (request.external, request.external_close) = (external.named, external.close);
    let bar = Bar::new(out);
    let outcome = session::restore(state, &request, &|event| match event {
        Event::Progress(p) => bar.tick(p),
        Event::Started(s) => {
            bar.clear();
            // Detached, it is the result, printed below.
            if !args.detach {
                out.aside(started(&s), &s.notes);
            }
        }
        Event::Background { name, processes, supervisor } => out.note(&format!(
            "{name}: the command ended, {processes} of its descendants run on (supervisor: PID {supervisor})"
        )),
        Event::Checkpointed { name, n, notes, .. } => {
            notes.iter().for_each(|note| out.note(&format!("checkpoint {name}@{n}: {note}")));
        }
        Event::NotCheckpointed { error } => out.warning(&error),
        Event::Left { name, n } => out.note(&format!("{name}: checkpointed as {name}@{n} and left")),
    })
    .map_err(|e| e.error)?;
    bar.clear();
    match outcome {
        Outcome::Ended { code } => Ok(Done::Code(code)),
        Outcome::Running(s) => {
            s.notes.iter().for_each(|n| out.note(n));
            out.done(started(&s), || {
                let from = s.from.map(|n| format!(" from checkpoint {n}")).unwrap_or_default();
                let log = s.log.as_ref().map(|l| format!(", output in {}", l.display())).unwrap_or_default();
                format!("{} runs{from} as PID {}{log}", s.name, s.pid)
            })?;
            Ok(Done::Code(0))
        }
    }
}

fn started(s: &Started) -> Value {
    json!({
        "name": s.name, "from": s.from, "pid": s.pid, "supervisor": s.supervisor, "pids": s.pids, "notes": s.notes,
        "log": s.log.as_ref().map(|l| l.to_string_lossy()),
    })
}
