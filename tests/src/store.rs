//! The store as files, seen without the product's code.
use crate::Bed;
use anyhow::{ensure, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file that checkpoints consist of, with its bytes' length and a hash: what must not change.
pub fn content(bed: &Bed, session: &str) -> BTreeMap<PathBuf, (usize, u64)> {
    let mut all = BTreeMap::new();
    for part in ["checkpoints", "packs"] {
        gather(&session_dir(bed, session).join(part), &mut all);
    }
    all
}

/// The session's folder in the store.
pub fn session_dir(bed: &Bed, session: &str) -> PathBuf {
    bed.state().join("sessions").join(session)
}

/// Numbers of the checkpoints that are there whole, ascending.
pub fn numbers(bed: &Bed, session: &str) -> Vec<u64> {
    let Ok(dir) = fs::read_dir(session_dir(bed, session).join("checkpoints")) else { return vec![] };
    let mut all: Vec<u64> = dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    all.sort();
    all
}

/// Asserts that the store holds exactly these checkpoints of a session, that `ctl list` says so, and that each verifies.
pub fn holds(bed: &mut Bed, session: &str, expected: &[u64]) -> Result<()> {
    let there = numbers(bed, session);
    ensure!(there == expected, "the store should hold {expected:?} of {session}, it holds {there:?}");
    let list = bed.ctl_json(&["list"])?;
    let listed = list["sessions"].as_array().and_then(|all| all.iter().find(|s| s["name"] == session).cloned());
    let listed: Vec<u64> = match listed {
        Some(s) => {
            s["checkpoints"].as_array().into_iter().flatten().filter_map(|n| n.as_u64().or(n["n"].as_u64())).collect()
        }
        None => vec![],
    };
    ensure!(listed == expected, "ctl list should show {expected:?} of {session}, it shows {listed:?}: {list}");
    for n in expected {
        bed.ctl(&["verify", &format!("{session}@{n}")])?.expect(0)?;
    }
    Ok(())
}

/// Asserts by which door a checkpoint was made: "job@3", or "job" for its latest.
pub fn made_by(bed: &mut Bed, checkpoint: &str, door: &str) -> Result<()> {
    let said = bed.ctl_json(&["inspect", checkpoint])?["summary"]["door"].clone();
    ensure!(said == door, "{checkpoint} should be by the door {door}, it is by {said}");
    Ok(())
}

/// Asserts it of all checkpoints of a session, of which there are some.
pub fn all_made_by(bed: &mut Bed, session: &str, door: &str) -> Result<()> {
    let all = numbers(bed, session);
    ensure!(!all.is_empty(), "the store holds no checkpoint of {session}");
    all.into_iter().try_for_each(|n| made_by(bed, &format!("{session}@{n}"), door))
}

/// Asserts that the state directory is the user's alone: folders 0700, files and sockets 0600.
pub fn is_private(bed: &Bed) -> Result<()> {
    private(bed, &bed.state())
}

fn private(bed: &Bed, path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::symlink_metadata(path)?;
    let (mode, expected) = (meta.mode() & 0o7777, if meta.is_dir() { 0o700 } else { 0o600 });
    ensure!(mode == expected, "{} should have mode {expected:o}, it has {mode:o}", path.display());
    ensure!(
        meta.uid() == bed.who.uid(),
        "{} should belong to {}, it belongs to {}",
        path.display(),
        bed.who.uid(),
        meta.uid()
    );
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            private(bed, &entry?.path())?;
        }
    }
    Ok(())
}

fn gather(dir: &Path, all: &mut BTreeMap<PathBuf, (usize, u64)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            gather(&path, all);
        } else if let Ok(bytes) = fs::read(&path) {
            all.insert(path, (bytes.len(), hash(&bytes)));
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut h = DefaultHasher::new();
    bytes.hash(&mut h);
    h.finish()
}
