//! Images that older builds wrote (tests/golden): verified, read and restored, whatever has changed since.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::stage::checkout;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::who::ORDINARY;
use dormouse_tests::{agent, proc, run, store, unharmed, Bed, Case, Who};
use std::fs;
use std::path::Path;

/// Where the program was when the images were made.
const THEN: &str = "/tmp/dormouse-golden";
/// Whose the images are of programs that nobody launched.
const IMAGES: [(&str, u32); 2] = [("root.image", 0), ("user.image", ORDINARY)];
/// The ordinary user's, with the agent of the build that made it.
const LAUNCHED: (&str, u32) = ("agent.image", ORDINARY);
/// The ordinary user's: a tree that nobody launched.
const TREE: (&str, u32) = ("tree.image", ORDINARY);

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("golden/v1-restores", restores);
    all.extend(Case::each("golden/v1-of-a-launched-program-restores", restores_launched));
    all.extend(Case::each("golden/v1-of-a-tree-restores", restores_tree));
    all.extend(Case::each("golden/v1-spoilt-file-is-refused", spoilt));
    all
}

/// Whoever's it is restores it, and the program proves itself; everybody else can read it, and is told whose it is.
fn restores(bed: &mut Bed) -> Result<()> {
    let mut restored = 0;
    for (image, uid) in IMAGES {
        let dir = lay_out(bed, image)?;
        bed.ctl(&["verify", "golden"])?.expect(0)?;
        let inspected = bed.ctl_json(&["inspect", "golden"])?;
        let threads = inspected["summary"]["threads"].as_array().map_or(0, Vec::len);
        ensure!(threads == 2, "it has two threads, inspect says {inspected}");
        let map = format!("{THEN}={}", dir.display());
        let restore = bed.ctl(&["restore", "golden", "--detach", "--map-path", &map])?;
        if bed.who == Who::Root || bed.who.uid() == uid {
            restore.expect(0)?;
            proves_itself(&dir)?;
            let live = bed.state().join("sessions/golden/live.json");
            run::until("the end of the session", LIMIT, || Ok(!live.exists()))?;
            restored += 1;
        } else {
            restore.refused(3, &[&format!("the program runs as user {uid}"), "or as root"])?;
        }
        bed.ctl(&["rm", "golden"])?.expect(0)?;
    }
    let own = IMAGES.iter().filter(|(_, uid)| bed.who == Who::Root || *uid == bed.who.uid()).count();
    ensure!(restored == own, "{own} images should have been restored, {restored} were");
    Ok(())
}

/// One with an agent: its next checkpoint is by that if today's recorder talks to it, else by ptrace; restored from that, it proves itself.
fn restores_launched(bed: &mut Bed) -> Result<()> {
    let dir = lay_out(bed, LAUNCHED.0)?;
    bed.ctl(&["verify", "golden"])?.expect(0)?;
    store::made_by(bed, "golden", "agent")?;
    let map = format!("{THEN}={}", dir.display());
    let args = ["--json", "restore", "golden", "--detach", "--map-path", &map];
    let restore = bed.ctl(&args)?;
    if bed.who != Who::Root && bed.who.uid() != LAUNCHED.1 {
        let why = format!("the program runs as user {}", LAUNCHED.1);
        return restore.refused(3, &[&why, "or as root"]).map(drop);
    }
    let pid = restore.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    let status = proc::status(pid).context("it is gone")?;
    ensure!(status.uids == [LAUNCHED.1; 4] && status.threads == 2, "it is {status:?}");
    let door = if agent::version(pid)? == version_of_today(bed)? { "agent" } else { "attach" };
    bed.ctl(&["checkpoint", "golden"])?.expect(0)?;
    unharmed::entirely(pid)?;
    bed.ctl(&["checkpoint", "golden", "--kill"])?.expect(0)?;
    for n in [2, 3] {
        store::made_by(bed, &format!("golden@{n}"), door)?;
    }
    bed.ctl(&["restore", "golden", "--detach"])?.expect(0)?;
    proves_itself(&dir)?;
    let live = bed.state().join("sessions/golden/live.json");
    run::until("the end of the session", LIMIT, || Ok(!live.exists()))
}

/// Four processes, one of them dead, and what they share.
fn restores_tree(bed: &mut Bed) -> Result<()> {
    let dir = lay_out(bed, TREE.0)?;
    bed.ctl(&["verify", "golden"])?.expect(0)?;
    let map = format!("{THEN}={}", dir.display());
    let restore = bed.ctl(&["--json", "restore", "golden", "--detach", "--map-path", &map])?;
    if bed.who != Who::Root && bed.who.uid() != TREE.1 {
        let why = format!("the program runs as user {}", TREE.1);
        return restore.refused(3, &[&why, "or as root"]).map(drop);
    }
    let pid = restore.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    let family = std::iter::once(pid).chain(proc::descendants(pid));
    let (dead, alive): (Vec<_>, Vec<_>) = family.filter_map(proc::status).partition(|s| s.state == 'Z');
    let users: Vec<_> = alive.iter().map(|s| s.uids).collect();
    ensure!(users == [[TREE.1; 4]; 3] && dead.len() == 1, "its users are {users:?}, and dead are {dead:?}");
    proves_itself(&dir)?;
    let live = bed.state().join("sessions/golden/live.json");
    run::until("the end of the session", LIMIT, || Ok(!live.exists()))
}

/// The version of the agent that launcher preloads now.
fn version_of_today(bed: &mut Bed) -> Result<u32> {
    let mut target = Start::program("mem_anon").door(Door::Launched).agent().ready(bed)?;
    let version = agent::version(target.pid)?;
    target.end(bed)?;
    Ok(version)
}

/// The open file of the image is not long enough any more: refused by name, nothing is started.
fn spoilt(bed: &mut Bed) -> Result<()> {
    let image = if bed.who == Who::Root { "root.image" } else { "user.image" };
    let dir = lay_out(bed, image)?;
    fs::remove_file(dir.join("data"))?;
    let map = format!("{THEN}={}", dir.display());
    let data = dir.join("data");
    let words = [data.to_str().unwrap_or_default(), "does not exist"];
    bed.ctl(&["restore", "golden", "--detach", "--map-path", &map])?.refused(3, &words)?;
    ensure!(!dir.join("result").exists(), "it ran");
    Ok(())
}

/// A folder with what the program had around it, and the image in the store.
fn lay_out(bed: &mut Bed, image: &str) -> Result<std::path::PathBuf> {
    let golden = checkout().join("tests/golden/v1");
    let dir = bed.folder()?;
    for name in ["sleeper", "launched", "ld.so", "family", "data", image] {
        fs::copy(golden.join(name), dir.join(name))?;
        bed.give(&dir.join(name))?;
    }
    let owner = IMAGES.iter().chain([&LAUNCHED, &TREE]).find(|(name, _)| *name == image).map(|(_, uid)| *uid);
    if bed.who == Who::Root {
        std::os::unix::fs::chown(&dir, owner, owner)?; // it writes its result there
    }
    let file = dir.join(image).to_string_lossy().into_owned();
    bed.ctl(&["import", &file])?.expect(0)?;
    Ok(dir)
}

fn proves_itself(dir: &Path) -> Result<()> {
    fs::write(dir.join("gate"), "")?;
    let result = dir.join("result");
    run::until("a result", LIMIT, || Ok(fs::read_to_string(&result).is_ok_and(|s| s.ends_with('\n'))))?;
    let said = fs::read_to_string(result)?;
    ensure!(said == "OK\n", "the restored program says: {said}");
    Ok(())
}
