//! `ctl inspect NAME[@N]`: what a checkpoint holds.
use std::fs;

use engine::Error;
use image::store::{CHECKPOINTS_DIR, MANIFEST_FILE};
use serde_json::json;
use session::{image_error, StateDir};

use super::list::{ago, seconds};
use crate::cli::OneCheckpoint;
use crate::out::Out;
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &OneCheckpoint) -> Result<Done, Error> {
    let spec = name::spec("inspect", &args.what)?;
    let store = state.store()?;
    let checkpoint =
        store.open_checkpoint(&spec.name, spec.n).map_err(|e| image_error(format!("inspect {spec}"), e))?;
    let summary = engine::inspect(&checkpoint)?;
    let n = checkpoint.n();
    let manifest = store.session_dir(&spec.name).join(CHECKPOINTS_DIR).join(n.to_string()).join(MANIFEST_FILE);
    let created = fs::metadata(manifest).and_then(|m| m.modified()).ok();
    let identity = checkpoint.manifest().identity().to_string();
    let header = checkpoint.manifest().header();
    let bytes = checkpoint.bytes();
    let result = json!({
        "name": spec.name.as_str(), "n": n, "created": created.map(seconds), "bytes": bytes, "identity": identity,
        "format": format!("{}.{}", header.major, header.minor), "writer": header.writer, "summary": summary,
    });
    out.answer(result, || {
        let when = created.map(|t| format!(", made {}", ago(t))).unwrap_or_default();
        format!("{}@{n}, format {}.{}{when}\n{summary}", spec.name, header.major, header.minor)
    })?;
    Ok(Done::Code(0))
}
