//! `ctl doctor`: what this machine and this user permit, and what that means. Found out by doing it where that is possible.
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use engine::Error;
use serde::Serialize;
use sys::probe::{self, Namespaces};

use crate::out::Out;
use crate::Done;

mod kernel;
mod machine;
mod pids;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// All of it works.
    Ok,
    /// Something is given up without it.
    Limited,
    /// It does not work at all.
    Missing,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    /// Stable name.
    id: &'static str,
    status: Status,
    /// The main job does not work without it.
    essential: bool,
    /// What was found.
    found: String,
    /// What that means.
    means: String,
    /// What to do about it; null where nothing is to be done.
    remedy: Option<String>,
}

impl Line {
    fn ok(id: &'static str, found: impl Into<String>, means: impl Into<String>) -> Line {
        Line { id, status: Status::Ok, essential: false, found: found.into(), means: means.into(), remedy: None }
    }

    /// Not `ok`: what it means then, and what to do.
    fn short_of(
        id: &'static str,
        status: Status,
        found: impl Into<String>,
        means: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Line {
        let remedy = Some(remedy.into());
        Line { id, status, essential: false, found: found.into(), means: means.into(), remedy }
    }

    fn essential(self) -> Line {
        Line { essential: true, ..self }
    }
}

/// Whether a probe worked, as a line.
fn from_probe(
    id: &'static str,
    probe: probe::Probe,
    (found, means): (&str, &str),
    otherwise: Status,
    (means_otherwise, remedy): (&str, &str),
) -> Line {
    match probe {
        Ok(()) => Line::ok(id, found, means),
        Err(e) => Line::short_of(id, otherwise, e.to_string(), means_otherwise, remedy),
    }
}

/// Runs the verb: exit code 0 if the main job works here, 3 if not.
pub fn run(out: &Out, state_dir: &Path) -> Result<Done, Error> {
    let me = Me::new();
    let mut lines = vec![kernel::version(), kernel::checkpoint_restore(&me)];
    lines.extend(kernel::tracing(&me));
    lines.extend(pids::lines(&me));
    lines.extend(kernel::features(&me));
    lines.extend(machine::lines(&me));
    lines.extend(machine::state(state_dir, &me));
    let works = lines.iter().all(|l| !(l.essential && l.status == Status::Missing));
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        uid: u32,
        root: bool,
        state_dir: &'a Path,
        lines: &'a [Line],
    }
    let root = me.uid == 0;
    out.answer(Report { ok: works, uid: me.uid, root, state_dir, lines: &lines }, || text(&lines, works, me.uid))?;
    Ok(Done::Code(if works { 0 } else { engine::Kind::Refused.exit_code() }))
}

fn text(lines: &[Line], works: bool, uid: u32) -> String {
    let mut s = String::new();
    let width = lines.iter().map(|l| l.id.len()).max().unwrap_or(0);
    for l in lines {
        let status = match l.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        let _ = writeln!(s, "{status:7}  {:width$}  {}: {}", l.id, l.found, l.means);
        if let Some(remedy) = &l.remedy {
            let _ = writeln!(s, "{:7}  {:width$}  to change it: {remedy}", "", "");
        }
    }
    let user = if uid == 0 { "root".into() } else { format!("user {uid}") };
    s.push('\n');
    if works {
        let _ = writeln!(s, "Programs can be checkpointed and restored here by {user}.");
    } else {
        let missing: Vec<&str> =
            lines.iter().filter(|l| l.essential && l.status == Status::Missing).map(|l| l.id).collect();
        let _ =
            writeln!(s, "Programs cannot be checkpointed and restored here by {user}: missing {}.", missing.join(", "));
    }
    s
}

/// What /proc says of this process.
struct Me {
    uid: u32,
    cap_eff: u64,
    seccomp: u32,
    cap_names: Vec<&'static str>,
}

/// The capabilities that make a difference, with their bits.
const CAPS: [(&str, u32); 4] =
    [("CAP_CHECKPOINT_RESTORE", 40), ("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19)];

impl Me {
    fn new() -> Me {
        let status = read("/proc/self/status");
        let field = |key: &str| {
            status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(str::trim)).unwrap_or_default()
        };
        let cap_eff = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
        Me {
            // Real, effective, saved, file system.
            uid: field("Uid").split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(u32::MAX),
            cap_eff,
            seccomp: field("Seccomp").parse().unwrap_or(0),
            cap_names: CAPS.iter().filter(|(_, bit)| cap_eff >> bit & 1 == 1).map(|(name, _)| *name).collect(),
        }
    }

    /// Runs a probe. A filter may kill who tries: then a child finds that out.
    fn probe(&self, f: fn() -> probe::Probe) -> probe::Probe {
        if self.survives(|| drop(f())) {
            f()
        } else {
            Err(killed())
        }
    }

    fn survives(&self, f: impl FnOnce()) -> bool {
        self.seccomp == 0 || probe::survives(f)
    }

    fn has(&self, cap: &str) -> bool {
        self.cap_names.contains(&cap)
    }
}

fn killed() -> probe::Failed {
    probe::Failed {
        step: "a seccomp filter killed the probe",
        error: Some(std::io::ErrorKind::PermissionDenied.into()),
    }
}

/// What a private PID namespace is good for; see [`Me::probe`].
fn namespaces(me: &Me, user: bool) -> Namespaces {
    if me.survives(|| drop(probe::namespaces(user))) {
        probe::namespaces(user)
    } else {
        Namespaces { made: Err(killed()), proc: None, set_tid: None }
    }
}

/// A file's text; empty where it cannot be read, which is then what it says.
fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}
