//! The behaviour programs, as they are found, with what is special about some.
use crate::stage::{sources, Stage};
use crate::target::{Door, Start};
use anyhow::{ensure, Context, Result};
use std::process::Command;

/// A program with arguments: one row of the matrix.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Its name in cases: "mem_anon", "blocked.poll".
    pub name: String,
    /// The program.
    pub program: String,
    /// Its own arguments.
    pub args: Vec<String>,
    /// In its environment.
    pub envs: Vec<(String, String)>,
    /// The door that it has to be started by; None: any.
    pub door: Option<Door>,
    /// It holds an object that a checkpoint may refuse (by name, and leaving it unharmed).
    pub refusable: bool,
    /// Its time-out can be chosen.
    pub timed: bool,
    /// One of many alike: its sabotage is tried in `make test-full` only.
    pub alike: bool,
}

/// Not rows of the matrix: `six`, `restricted`, `fd_external` and `fd_shared` are to be refused, `thr_named` too, with new PIDs; `heartbeat` measures, `api` does as it is told, `seccomp` and `thr_seccomp` need the agent or root, `seccomp_strict` root and an option, `seccomp_flaps` is refused at some moments, `mem_hugetlb`, `mem_hugeshared`, `mem_hugeshm` and the trees of those huge pages. They have cases of their own,
/// by both doors (`Case::by_both_doors`) but for `thr_code32`, which is static: its like with a loader is `thr_code32_dynamic`.
const APART: &[&str] = &[
    "six",
    "restricted",
    "fd_external",
    "fd_shared",
    "heartbeat",
    "thr_odd",
    "thr_code32",
    "sock_odd",
    "sig_woken",
    "thr_named",
    "api",
    "seccomp",
    "thr_seccomp",
    "seccomp_strict",
    "seccomp_flaps",
    "calls",
    "clones",
    "mem_hugetlb",
    "tree_hugetlb",
    "mem_hugeshared",
    "mem_hugeshm",
    "tree_hugeshm",
    "tree_hugeshared",
];

impl Variant {
    fn of(program: &str) -> Variant {
        Variant {
            name: program.into(),
            program: program.into(),
            args: vec![],
            envs: vec![],
            door: None,
            refusable: false,
            timed: false,
            alike: false,
        }
    }

    fn with(mut self, args: &[&str]) -> Variant {
        self.name = format!("{}.{}", self.program, args.last().unwrap_or(&"").trim_start_matches('-'));
        self.args = args.iter().map(|a| a.to_string()).collect();
        self
    }

    fn door(self, door: Door) -> Variant {
        Variant { door: Some(door), ..self }
    }

    fn env(mut self, name: &str, value: &str) -> Variant {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Whether its agent can be called: not in a static one, nor in one that has to be started without launcher, nor in one that blocks all
    /// signals by raw calls.
    pub fn agent(&self) -> bool {
        !self.program.starts_with("static_")
            // which has no C library that would load it
            && self.program != "go_runtime"
            && self.program != "sig_masked"
            // a signal could be the end of it
            && self.program != "thr_pkru"
            // a stopped child, and those that are about to execute a program, have no agent that could be called
            && !matches!(self.name.as_str(), "tree.stopped" | "tree.busy")
            // nor are those called that have another's descriptors
            && !matches!(self.name.as_str(), "tree_shares.files" | "tree_shares.both" | "tree_shares.mixed")
            && self.program != "tree_vm"
            && matches!(self.door, None | Some(Door::Launched | Door::Terminal))
    }

    /// How it is started, if nothing else is said by `door`; a call with a time-out gets this many milliseconds.
    pub fn start(&self, door: Door, timeout_ms: u32) -> Start {
        let mut start = Start::program(&self.program).args(self.args.clone()).door(self.door.unwrap_or(door));
        if self.timed {
            start = start.args(["--timeout".to_owned(), timeout_ms.to_string()]);
        }
        self.envs.iter().fold(start, |s, (name, value)| s.env(name, value))
    }
}

/// Every row of the matrix, from the sources that are there.
pub fn variants(stage: &Stage) -> Result<Vec<Variant>> {
    let mut names: Vec<String> = std::fs::read_dir(sources())?
        .filter_map(|e| {
            let file = e.ok()?.file_name();
            let file = file.to_str()?;
            file.strip_suffix(".c").or(file.strip_suffix(".go")).map(str::to_owned)
        })
        .filter(|name| !APART.contains(&name.as_str()))
        .collect();
    names.sort();
    ensure!(names.len() > 40, "only {} programs in {}", names.len(), sources().display());
    let mut all = Vec::new();
    for name in names {
        match name.as_str() {
            "blocked" => all.extend(blocked(stage)?),
            // In the launcher's session it leads already, so these come by their PID. A restored one joins another session.
            "proc_ids" => {
                let may_change = "DORMOUSE_TEST_SID_MAY_CHANGE";
                all.push(Variant::of(&name));
                all.push(Variant {
                    name: "proc_ids.member".into(),
                    ..Variant::of(&name).door(Door::Member).env(may_change, "1")
                });
                all.push(Variant::of(&name).with(&["--setsid"]).door(Door::Member));
                all.push(Variant::of(&name).with(&["--setpgid"]).door(Door::Member).env(may_change, "1"));
            }
            // a group of others, and another one when it is restored
            "thr_tid_use" => {
                all.push(Variant::of(&name));
                all.push(Variant { name: "thr_tid_use.member".into(), ..Variant::of(&name).door(Door::Member) });
            }
            "stack_left" => {
                all.push(Variant::of(&name));
                all.push(Variant::of(&name).with(&["--deep"]));
            }
            "mem_seal" | "tree_seal" => {
                all.push(Variant::of(&name));
                all.push(Variant::of(&name).with(&["--all"]));
            }
            "mem_lockall" => {
                all.push(Variant::of(&name));
                all.push(Variant::of(&name).with(&["--on-fault"]));
            }
            "sig_masked" => {
                for call in ["ppoll", "pselect", "epoll_pwait", "sigsuspend"] {
                    all.push(Variant::of(&name).with(&["--call", call]));
                }
            }
            "udp_multicast" => {
                all.push(Variant::of(&name));
                all.push(Variant::of(&name).with(&["--sources"]));
            }
            "tree" => {
                for what in [
                    "family", "sessions", "groups", "reaper", "zombies", "stopped", "files", "locks", "memory",
                    "threads", "busy",
                ] {
                    all.push(Variant::of(&name).with(&["--what", what]));
                }
                // only a session's are known to belong to it
                all.push(Variant::of(&name).with(&["--what", "orphans"]).door(Door::Launched));
            }
            "tree_shares" => {
                for what in ["fs", "files", "both", "mixed"] {
                    all.push(Variant::of(&name).with(&["--what", what]));
                }
            }
            "tree_vm" => {
                all.push(Variant::of(&name));
                // only a session's are known to belong to it
                all.push(Variant::of(&name).with(&["--orphan"]).door(Door::Launched));
            }
            "userns" => {
                for what in ["root", "same", "none", "threads", "tree", "parent", "ranges"] {
                    all.push(Variant::of(&name).with(&["--what", what]));
                }
            }
            "thr_leader" => {
                for what in ["pthread", "raw"] {
                    all.push(Variant::of(&name).with(&["--what", what]));
                }
            }
            "tty" => all.push(Variant::of(&name).door(Door::Terminal)),
            _ => all.push(Variant::of(&name)),
        }
    }
    Ok(all)
}

/// A row for each call that a thread can be blocked in.
fn blocked(stage: &Stage) -> Result<Vec<Variant>> {
    let out = Command::new(stage.program("blocked")).arg("--list-long").output().context("blocked --list-long")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut all = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [call, timed, needs] = words[..] else { anyhow::bail!("blocked --list-long says {line:?}") };
        let variant = Variant::of("blocked").with(&["--call", call]);
        all.push(Variant { timed: timed == "timed", refusable: needs != "-", alike: !all.is_empty(), ..variant });
    }
    ensure!(all.len() > 30, "blocked --list-long names only {} calls", all.len());
    Ok(all)
}
