//! What there is of a session at one moment, as /proc and the file system tell it: what must be equal each time, and what may grow a little.
use anyhow::{ensure, Context, Result};
use dormouse_tests::agent::PAGE;
use dormouse_tests::bed::SOON;
use dormouse_tests::job::Job;
use dormouse_tests::{proc, run, store, unharmed, Bed};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// How many of each kind.
type Kinds = BTreeMap<String, usize>;

/// Anonymous mappings that may come to be in the program: malloc's and the thread stacks', which the kernel merges and splits.
const ANONYMOUS: u64 = 8;
/// Mappings by which the supervisor may grow: its allocator's.
const SUPERVISOR: u64 = 4;
/// KiB that it may grow by: in a row it is one process; after each restore it is another one, whose heap is what that restore needed.
pub const SAME_SUPERVISOR: u64 = 256;
pub const NEW_SUPERVISOR: u64 = 2048;

/// At one moment.
pub struct Census {
    /// Equal each time, by what it is of.
    exact: BTreeMap<&'static str, Kinds>,
    /// May grow to this much more than at first: by what it is of, how many, and the bound.
    bounded: BTreeMap<&'static str, (u64, u64)>,
    /// The agent's page.
    page: Vec<u8>,
}

/// Bytes of the page that are the process's parent, another one after each restore (wire/src/agent.rs).
const PARENT: std::ops::Range<usize> = 80..84;

impl Census {
    /// Counts, when it is as `first` or, if there is none, when all that the last checkpoint needed has gone. `growth`: KiB that the
    /// memory of the program and of the supervisor may grow by.
    pub fn take(bed: &Bed, job: &Job, growth: (u64, u64), first: Option<&Census>) -> Result<Census> {
        unharmed::entirely(job.pid)?;
        let mut census = None;
        let mut why = String::new();
        let settled = run::until("", SOON, || {
            bed.reap();
            let now = Census::count(bed, job, growth)?;
            why = first.map_or_else(|| now.unsettled(job), |first| now.differs(first));
            census = Some(now);
            Ok(why.is_empty())
        });
        ensure!(settled.is_ok(), "{why}");
        census.context("it was counted")
    }

    fn count(bed: &Bed, job: &Job, growth: (u64, u64)) -> Result<Census> {
        let maps = proc::maps(job.pid);
        let anonymous = |m: &&proc::Mapping| m.name.is_empty() || m.name == "[heap]";
        let named = |m: &proc::Mapping| (!anonymous(&m)).then(|| format!("{} {}", m.perms, m.name));
        let descriptors = |pid| kinds(proc::descriptors(pid).into_iter().map(|(_, what)| numberless(&what)));
        let processes = proc::descendants(std::process::id() as i32).into_iter().filter_map(proc::status);
        let of_processes = processes.map(|s| format!("{} {}", s.comm, if s.state == 'Z' { "zombie" } else { "" }));
        let mut files = Vec::new();
        list(&bed.state(), &bed.state(), &mut files);
        let exact = BTreeMap::from([
            ("mappings of the program that have a name", kinds(maps.iter().filter_map(named))),
            ("descriptors of the program", descriptors(job.pid)),
            ("descriptors of the supervisor", descriptors(job.supervisor)),
            ("processes", kinds(of_processes)),
            ("files in the state directory", kinds(files)),
            ("files of ours elsewhere", kinds(elsewhere(bed))),
        ]);
        let bounded = BTreeMap::from([
            ("anonymous mappings of the program", (maps.iter().filter(anonymous).count() as u64, ANONYMOUS)),
            ("KiB of the program's anonymous memory", (memory(job.pid)?, growth.0)),
            ("mappings of the supervisor", (proc::maps(job.supervisor).len() as u64, SUPERVISOR)),
            ("KiB of the supervisor's anonymous memory", (memory(job.supervisor)?, growth.1)),
        ]);
        let mut page = vec![0; 144];
        fs::File::open(format!("/proc/{}/mem", job.pid))?.read_exact_at(&mut page, PAGE)?;
        page[PARENT].fill(0);
        Ok(Census { exact, bounded, page })
    }

    /// Program and supervisor, perhaps a private namespace's init, all of them alive, and nothing else; and nobody in the agent.
    fn unsettled(&self, job: &Job) -> String {
        let all = proc::descendants(std::process::id() as i32);
        let others: Vec<_> =
            all.iter().filter(|p| ![job.pid, job.supervisor].contains(p)).filter_map(|p| proc::status(*p)).collect();
        if others.len() > 1 || others.iter().any(|s| s.comm != "dormouse-init" || s.state == 'Z') {
            return format!("beside the program and its supervisor there are {others:?}");
        }
        let state = u64::from_le_bytes(self.page[24..32].try_into().unwrap_or_default());
        if state != 0 {
            return format!("somebody is in the agent: {state:#x}");
        }
        let incoming = self.exact["files in the state directory"].keys().find(|f| f.contains("/.")).cloned();
        let elsewhere = self.exact["files of ours elsewhere"].keys().next().cloned();
        incoming.or(elsewhere).map(|f| format!("{f} is there")).unwrap_or_default()
    }

    /// How it is not what it was first; empty if it is.
    fn differs(&self, first: &Census) -> String {
        let mut all = Vec::new();
        for (of, kinds) in &self.exact {
            let then = &first.exact[of];
            for kind in kinds.keys().chain(then.keys()) {
                let (was, is) = (then.get(kind).unwrap_or(&0), kinds.get(kind).unwrap_or(&0));
                if was != is {
                    all.push(format!("{of}: {was} of {kind} at first, {is} now"));
                }
            }
        }
        for (of, (is, by)) in &self.bounded {
            let was = first.bounded[of].0;
            if *is > was + by {
                all.push(format!("{was} {of} at first, {is} now: more than {by} more"));
            }
        }
        if self.page != first.page {
            all.push(format!("the agent's page was {:x?} and is {:x?}", first.page, self.page));
        }
        all.dedup();
        all.join("\n")
    }

    /// What may grow, now and at first.
    pub fn growth(&self, first: &Census) -> String {
        let of = |(what, (is, _)): (&&str, &(u64, u64))| format!("{} to {is} {what}", first.bounded[what].0);
        self.bounded.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

fn kinds(all: impl IntoIterator<Item = String>) -> Kinds {
    let mut kinds = Kinds::new();
    for kind in all {
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// "socket:[4711]" without its number.
fn numberless(what: &str) -> String {
    match what.split_once(":[") {
        Some((kind, _)) => kind.into(),
        None => what.into(),
    }
}

/// Files below a folder, numbers and IDs left out of their names.
fn list(dir: &Path, root: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(&path, root, all);
        }
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let part = |p: &str| match p.strip_suffix(".pack") {
            Some(_) => "ID.pack".to_owned(),
            None if p.bytes().all(|b| b.is_ascii_digit()) => "N".into(),
            None => p.into(),
        };
        all.push(name.split('/').map(part).collect::<Vec<_>>().join("/"));
    }
}

/// KiB of memory that is no file's, in memory and swapped. (What of files is counted as private depends on who else has them mapped.)
fn memory(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let of = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("no {key} in {text}"))
    };
    Ok(of("Anonymous:")? + of("Swap:")?)
}

/// System V objects and shared memory of the user's, and temporary files with our name. This process has an IPC namespace of its own if it may.
fn elsewhere(bed: &Bed) -> Vec<String> {
    let mut all = Vec::new();
    for kind in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        let mut lines = text.lines();
        let uid = lines.next().and_then(|head| head.split_whitespace().position(|w| w == "uid"));
        let ours = |l: &&str| uid.and_then(|at| l.split_whitespace().nth(at)) == Some(&bed.who.uid().to_string()[..]);
        all.extend(lines.filter(ours).map(|l| format!("System V {kind}: {l}")));
    }
    for dir in ["/dev/shm", "/tmp", "/var/tmp"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = entry.metadata().is_ok_and(|m| m.uid() == bed.who.uid());
            if ours && (dir == "/dev/shm" || name.starts_with(".dormouse")) {
                all.push(format!("{dir}/{name}"));
            }
        }
    }
    all
}

/// The session's checkpoints: the last ones, and no others.
pub fn kept(bed: &Bed, job: &Job, last: u64) -> Result<()> {
    let there = store::numbers(bed, &job.line.name);
    let expected: Vec<u64> = (last.saturating_sub(2).max(1)..=last).collect();
    ensure!(there == expected, "with --keep 3 the store should hold {expected:?}, it holds {there:?}");
    Ok(())
}
