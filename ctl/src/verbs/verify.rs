//! `ctl verify NAME[@N]`: reads all of a checkpoint and compares every checksum.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::{Error, Progress};
use serde_json::json;
use session::{image_error, StateDir};

use crate::cli::OneCheckpoint;
use crate::out::{self, Out};
use crate::progress::Bar;
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &OneCheckpoint) -> Result<Done, Error> {
    let spec = name::spec("verify", &args.what)?;
    let attempted = format!("verify {spec}");
    let checkpoint = state.store()?.open_checkpoint(&spec.name, spec.n).map_err(|e| image_error(&attempted, e))?;
    let total = checkpoint.bytes();
    let bar = Bar::new(out);
    let done = AtomicU64::new(0);
    // A pack is verified in one go, so somebody else must keep the bar moving.
    std::thread::scope(|scope| {
        let packs = scope.spawn(|| {
            checkpoint.packs().iter().try_for_each(|pack| {
                let verified = pack.verify();
                done.fetch_add(pack.file_len(), Ordering::Relaxed);
                verified
            })
        });
        while !packs.is_finished() {
            std::thread::park_timeout(Duration::from_millis(2));
            bar.tick(Progress { phase: "verify", done: done.load(Ordering::Relaxed), total });
        }
        packs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(|e| image_error(&attempted, e))?;
    bar.clear();
    let identity = checkpoint.manifest().identity().to_string();
    let pages: u64 = checkpoint.packs().iter().map(|p| p.pages()).sum();
    let result = json!({
        "name": spec.name.as_str(), "n": checkpoint.n(), "ok": true, "identity": identity,
        "packs": checkpoint.packs().len(), "pages": pages, "bytes": total,
    });
    out.done(result, || format!("{}@{} is whole: {pages} pages, {}", spec.name, checkpoint.n(), out::bytes(total)))?;
    Ok(Done::Code(0))
}
