//! `ctl list`: the sessions, what they do, and their checkpoints.
use std::time::{SystemTime, UNIX_EPOCH};

use engine::Error;
use image::{CheckpointInfo, SessionName};
use serde_json::{json, Value};
use session::{image_error, Listed, State, StateDir};

use crate::out::{self, Out};
use crate::Done;

pub fn run(out: &Out, state: &StateDir) -> Result<Done, Error> {
    let store = state.store()?;
    let mut all: Vec<(Listed, Vec<CheckpointInfo>)> = Vec::new();
    for listed in session::list(state)? {
        let checkpoints = match SessionName::new(&listed.name).and_then(|n| store.list(&n)) {
            Ok(checkpoints) => checkpoints,
            // Removed since it was listed, or live and never checkpointed.
            Err(e) if e.is_absent() => Vec::new(),
            Err(e) => return Err(image_error(format!("list checkpoints of {}", listed.name), e)),
        };
        all.push((listed, checkpoints));
    }
    out.answer(json!({ "sessions": all.iter().map(|(l, c)| to_json(l, c)).collect::<Vec<_>>() }), || text(&all))?;
    Ok(Done::Code(0))
}

fn state_name(s: State) -> &'static str {
    match s {
        State::Live => "live",
        State::Stopped => "stopped",
        State::Dead => "dead",
        State::Ended => "ended",
    }
}

fn to_json(l: &Listed, checkpoints: &[CheckpointInfo]) -> Value {
    let checkpoints: Vec<Value> = checkpoints
        .iter()
        .map(|c| {
            let (identity, damaged) = match &c.identity {
                Ok(id) => (Some(id.to_string()), None),
                Err(e) => (None, Some(e.to_string())),
            };
            let created = seconds(c.created);
            json!({"n": c.n, "created": created, "bytes": c.bytes, "identity": identity, "damaged": damaged})
        })
        .collect();
    let live = l.live.as_ref();
    json!({
        "name": l.name, "state": state_name(l.state), "checkpoints": checkpoints,
        "pid": live.map(|v| v.program.pid), "supervisor": live.and_then(|v| v.supervisor.as_ref()).map(|s| s.pid),
        "mode": live.map(|v| v.mode), "command": live.map(|v| &v.command), "from": live.and_then(|v| v.from), "triggers": live.map(|v| &v.triggers).filter(|t| !t.is_empty()),
        "last": l.last, "log": l.log.as_ref().map(|p| p.to_string_lossy()),
    })
}

/// Seconds since 1970.
pub fn seconds(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How long ago, for people.
pub fn ago(t: SystemTime) -> String {
    match SystemTime::now().duration_since(t).map_or(0, |d| d.as_secs()) {
        s if s < 120 => format!("{s} s ago"),
        s if s < 2 * 3600 => format!("{} min ago", s / 60),
        s if s < 2 * 86400 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86400),
    }
}

fn text(all: &[(Listed, Vec<CheckpointInfo>)]) -> String {
    let mut rows = vec![["NAME", "STATE", "PID", "CHECKPOINTS", "LATEST", "SIZE", "COMMAND"].map(String::from)];
    for (l, checkpoints) in all {
        let latest = checkpoints.last();
        rows.push([
            l.name.clone(),
            state_name(l.state).into(),
            l.live.as_ref().map_or("-".into(), |v| v.program.pid.to_string()),
            ranges(&checkpoints.iter().map(|c| c.n).collect::<Vec<_>>()),
            latest.map_or("-".into(), |c| if c.identity.is_ok() { ago(c.created) } else { "damaged".into() }),
            latest.filter(|c| c.identity.is_ok()).map_or("-".into(), |c| out::bytes(c.bytes)),
            short(l.live.as_ref().map(|v| v.command.as_str()).or(l.last.as_deref()).unwrap_or_default()),
        ]);
    }
    table(&rows)
}

/// A command line as far as a table can hold it; --json has all of it.
fn short(text: &str) -> String {
    const ENOUGH: usize = 60;
    match text.char_indices().nth(ENOUGH) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.into(),
    }
}

/// Columns side by side. Cells are escaped here: the line breaks and widths are ours.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| out::escape(c)).collect()).collect();
    let width = |i: usize| rows.iter().map(|r: &Vec<String>| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |r: &Vec<String>| {
        let cells: Vec<String> = r.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// 1, 2, 3, 5 as "1-3,5".
fn ranges(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    if runs.is_empty() {
        return "-".into();
    }
    let run = |(a, b): &(u64, u64)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_drawn_together() {
        assert_eq!(ranges(&[]), "-");
        assert_eq!(ranges(&[1]), "1");
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), "1-3,5,7-8");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A".to_string(), "B".into()], ["long\n".into(), "x".into()]];
        assert_eq!(table(&rows), "A       B\nlong\\n  x");
    }
}
