//! `ctl checkpoint NAME | --pid PID --name NAME [--kill | --stop]`.
use std::time::Duration;

use engine::{After, Error};
use serde_json::json;
use session::{CheckpointRequest, StateDir, Target};

use crate::cli::{externals, Checkpoint};
use crate::out::{self, Out};
use crate::progress::Bar;
use crate::{name, Done};

pub fn run(out: &Out, state: &StateDir, args: &Checkpoint) -> Result<Done, Error> {
    let name = args.name.as_deref().or(args.session.as_deref()).unwrap_or_default();
    let name = name::session("checkpoint", name)?;
    let target = match args.pid {
        Some(pid) => Target::Pid { pid, name },
        None => Target::Session(name),
    };
    let (after, after_text) = match (args.kill, args.stop) {
        (true, _) => (After::Kill, "kill"),
        (_, true) => (After::Stop, "stop"),
        _ => (After::Run, "run"),
    };
    let bar = Bar::new(out);
    let tick = |p| bar.tick(p);
    let made = session::checkpoint(
        state,
        &target,
        &CheckpointRequest {
            after,
            door: args.door.into(),
            external: externals(&args.external),
            strict: args.strict,
            risk_strict: args.risk_seccomp_strict,
            progress: Some(&tick),
        },
    )?;
    bar.clear();
    let c = &made.captured;
    for line in made.notes.iter().chain(&c.reported) {
        out.note(line);
    }
    let result = json!({
        "name": made.name.as_str(), "n": c.n, "pid": made.pid, "after": after_text,
        "door": c.door.name(), "pause_ms": ms(c.pause), "took_ms": ms(c.took), "bytes": c.bytes, "threads": c.threads,
        "processes": c.processes,
        "reported": c.reported, "notes": made.notes,
    });
    out.done(result, || {
        let then = match after {
            After::Run => "",
            After::Kill => "; killed",
            After::Stop => "; stopped",
        };
        let mut threads = if c.threads == 1 { "1 thread".into() } else { format!("{} threads", c.threads) };
        if c.processes > 1 {
            threads = format!("{} processes, {threads}", c.processes);
        }
        let (pause, took) = (out::duration(c.pause), out::duration(c.took));
        let size = out::bytes(c.bytes);
        format!("checkpoint {}@{}: {size}, {threads}, paused {pause}, took {took}{then}", made.name, c.n)
    })?;
    Ok(Done::Code(0))
}

/// Milliseconds with three decimals.
fn ms(d: Duration) -> f64 {
    d.as_micros() as f64 / 1000.0
}
