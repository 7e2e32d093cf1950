//! Control groups: a program comes back into its own where that is there and may be entered, and what it lost is said.
use anyhow::{ensure, Context, Result};
use dormouse_tests::cgroups::{mounted, path_of, Groups};
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{proc, unharmed, Bed, Case, Who};
use std::fs;

pub fn cases() -> Vec<Case> {
    // nobody else can make any
    if !Who::all().contains(&Who::Root) {
        return Vec::new();
    }
    let mut all = Case::by_both_doors("cgroup/back", back);
    all.extend(Case::each("cgroup/run-on", run_on));
    all.extend(Case::each("cgroup/gone", gone));
    all.extend(Case::each("cgroup/scope", scope));
    all.extend(Case::each("cgroup/frozen", frozen));
    all.extend(Case::each("cgroup/below-threads", below_threads));
    all.extend(Case::each("cgroup/tree", tree));
    all.extend(Case::each("cgroup/threaded", threaded));
    all.push(Case::new("cgroup/not-permitted", Who::User, not_permitted));
    if mounted("cgroup", "name=systemd").is_some() {
        all.push(Case::new("cgroup/version-1", Who::Root, version_1));
    }
    all
}

/// A program in `inner`; this case, and what it starts from here on, in `outer`.
fn start(bed: &mut Bed, groups: &Groups, start: Start) -> Result<Target> {
    let target = start.ready(bed)?;
    groups.enter("inner", target.pid)?;
    Ok(target)
}

fn is_in(groups: &Groups, name: &str, pid: i32) -> Result<()> {
    let (now, wanted) = (path_of(pid, "")?, groups.path(name));
    ensure!(now == wanted, "PID {pid} is in {now} instead of {wanted}");
    Ok(())
}

/// What a restore notes of control groups.
fn notes(said: &serde_json::Value) -> Vec<String> {
    let all = said["notes"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|n| n.as_str()).filter(|n| n.contains("control group")).map(str::to_owned).collect()
}

/// Restored from another group: a look says nothing, and then it is back in its own, five times.
fn back(bed: &mut Bed, agent: bool) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner"])?;
    let mut target = start(bed, &groups, Start::program("mem_anon").by_agent(agent))?;
    for _ in 0..5 {
        target.kill(bed)?;
        let looked = bed.ctl(&["check", &target.session.clone()])?.expect(0)?;
        ensure!(!looked.said().contains("control group"), "{}", looked.said());
        let said = target.restore_with(bed, &[])?;
        ensure!(notes(&said).is_empty(), "{said}");
        is_in(&groups, "inner", target.pid)?;
    }
    target.prove(bed).map(drop)
}

fn run_on(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner"])?;
    let mut target = start(bed, &groups, Start::program("mem_anon"))?;
    target.checkpoint(bed)?;
    is_in(&groups, "inner", target.pid)?;
    target.prove(bed).map(drop)
}

/// Restored, with this said of its group, by a look before, too; then it is in that of the restore.
fn elsewhere(bed: &mut Bed, groups: &Groups, target: &mut Target, words: &[&str]) -> Result<()> {
    let looked = bed.ctl(&["check", &target.session.clone()])?.expect(0)?.said();
    let said = target.restore_with(bed, &[])?;
    for word in words {
        ensure!(looked.contains(word), "check should say {word:?}: {looked}");
        ensure!(notes(&said).len() == 1 && notes(&said)[0].contains(word), "restore should say {word:?}, once: {said}");
    }
    is_in(groups, "outer", target.pid)?;
    target.prove(bed).map(drop)
}

fn gone(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner"])?;
    let mut target = start(bed, &groups, Start::program("mem_anon"))?;
    target.kill(bed)?;
    fs::remove_dir(groups.folder("inner"))?;
    let (inner, outer) = (groups.path("inner"), groups.path("outer"));
    let said = format!("control group {inner}: it is gone; it is in {outer} instead");
    elsewhere(bed, &groups, &mut target, &[&said])
}

/// A name of systemd's that is used again is another's group.
fn scope(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "a.scope"])?;
    let mut target = Start::program("mem_anon").ready(bed)?;
    groups.enter("a.scope", target.pid)?;
    target.kill(bed)?;
    target.restore(bed)?;
    is_in(&groups, "a.scope", target.pid)?;
    target.kill(bed)?;
    fs::remove_dir(groups.folder("a.scope"))?;
    groups.add(bed, "a.scope")?;
    elsewhere(bed, &groups, &mut target, &["a.scope: another one has that name now; it is in "])
}

/// What enters a frozen group would never be restored.
fn frozen(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner"])?;
    let mut target = start(bed, &groups, Start::program("mem_anon"))?;
    target.kill(bed)?;
    fs::write(groups.folder("inner").join("cgroup.freeze"), "1")?;
    elsewhere(bed, &groups, &mut target, &["/inner: it is frozen (cgroup.freeze)"])
}

/// What only the kernel knows is said when it refuses: nobody comes into a group of its own below one for threads.
fn below_threads(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "domain", "domain/threads", "domain/threads/inner"])?;
    let mut target = Start::program("mem_anon").ready(bed)?;
    groups.enter("domain/threads/inner", target.pid)?;
    target.kill(bed)?;
    fs::write(groups.folder("domain/threads").join("cgroup.type"), "threaded")?;
    let said = target.restore_with(bed, &[])?;
    let words = format!("control group {}: it is threaded", groups.path("domain/threads/inner"));
    ensure!(notes(&said).len() == 1 && notes(&said)[0].starts_with(&words), "{said}");
    is_in(&groups, "outer", target.pid)?;
    target.prove(bed).map(drop)
}

fn not_permitted(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner"])?;
    let mut target = start(bed, &groups, Start::program("mem_anon"))?;
    target.kill(bed)?;
    std::os::unix::fs::chown(groups.folder("inner").join("cgroup.procs"), Some(0), None)?;
    elsewhere(bed, &groups, &mut target, &["/inner: you may not put a process into it"])
}

/// Each process of a tree has its own.
fn tree(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner", "third"])?;
    let mut target = start(bed, &groups, Start::program("tree").args(["--what", "family"]))?;
    let below = proc::descendants(target.pid);
    ensure!(below.len() > 1, "it has {below:?} below it");
    let names = ["inner", "outer", "third"];
    let name = |i: usize| names[(i + 1) % 3];
    for (i, pid) in below.iter().enumerate() {
        groups.enter(name(i), *pid)?;
    }
    for _ in 0..3 {
        target.kill(bed)?;
        let said = target.restore_with(bed, &[])?;
        ensure!(notes(&said).is_empty(), "{said}");
        is_in(&groups, "inner", target.pid)?;
        for (i, pid) in proc::descendants(target.pid).iter().enumerate() {
            is_in(&groups, name(i), *pid)?;
        }
    }
    target.prove(bed).map(drop)
}

/// Threads in groups of their own are in their process's after a restore: that is in the image.
fn threaded(bed: &mut Bed) -> Result<()> {
    let groups = Groups::make(bed, &["outer", "inner", "inner/threads"])?;
    fs::write(groups.folder("inner/threads").join("cgroup.type"), "threaded")?;
    let mut target = start(bed, &groups, Start::program("thr_join"))?;
    let tid = *proc::threads(target.pid).iter().find(|t| **t != target.pid).context("it has one thread")?;
    fs::write(groups.folder("inner/threads").join("cgroup.threads"), tid.to_string())?;
    target.kill(bed)?;
    let said = bed.ctl(&["inspect", &target.session.clone()])?.expect(0)?.said();
    let words = format!("control group {} of thread {tid}", groups.path("inner/threads"));
    ensure!(said.contains(&words), "inspect should say {words:?}: {said}");
    target.restore(bed)?;
    for tid in proc::threads(target.pid) {
        is_in(&groups, "inner", tid)?;
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(drop)
}

/// Those of version 1 are named, with their hierarchy.
fn version_1(bed: &mut Bed) -> Result<()> {
    let folder = mounted("cgroup", "name=systemd").context("it is not mounted")?;
    let own = folder.join(format!("dormouse-test-{}", std::process::id()));
    fs::create_dir(&own)?;
    let done = in_version_1(bed, &own);
    fs::remove_dir(&own)?;
    done
}

fn in_version_1(bed: &mut Bed, own: &std::path::Path) -> Result<()> {
    let mut target = Start::program("mem_anon").ready(bed)?;
    fs::write(own.join("cgroup.procs"), target.pid.to_string())?;
    target.kill(bed)?;
    let said = target.restore_with(bed, &[])?;
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    let words = format!("control groups /{name} (name=systemd): those of version 1 are not put back");
    ensure!(notes(&said).len() == 1 && notes(&said)[0].contains(&words), "{said}");
    target.prove(bed).map(drop)
}
