//! `ctl check NAME[@N]`: can it be restored here? `ctl check --pid PID`: can it be checkpointed? Nothing is changed.
use engine::Error;
use serde_json::json;
use session::{RestoreRequest, StateDir};

use crate::cli::{externals, Check};
use crate::out::Out;
use crate::{name, Done};

/// Whether a checkpoint can be restored.
pub fn run(out: &Out, state: &StateDir, args: &Check) -> Result<Done, Error> {
    let spec = name::spec("restore", args.what.as_deref().unwrap_or_default())?;
    let mut request = RestoreRequest::new(spec.clone());
    let external = externals(&args.external);
    (request.external, request.external_close) = (external.named, external.close);
    let notes = session::check(state, &request)?;
    report(out, json!({"name": spec.name.as_str(), "n": spec.n}), &format!("{spec} can be restored"), notes)
}

/// Whether a process can be checkpointed. No state directory is needed for that.
pub fn process(out: &Out, pid: i32, args: &Check) -> Result<Done, Error> {
    let notes = engine::preflight(pid, &externals(&args.external), args.strict, args.risk_seccomp_strict)?;
    report(out, json!({ "pid": pid }), &format!("PID {pid} can be checkpointed"), notes)
}

fn report(out: &Out, mut result: serde_json::Value, text: &str, notes: Vec<String>) -> Result<Done, Error> {
    result["ok"] = true.into();
    result["notes"] = notes.clone().into();
    out.answer(result, || {
        let mut lines = vec![text.to_owned()];
        lines.extend(notes.iter().map(|n| format!("  {n}")));
        lines.join("\n")
    })?;
    Ok(Done::Code(0))
}
