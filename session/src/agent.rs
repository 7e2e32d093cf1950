//! The agent's file: carried by this binary, written into the state directory for the loader to find.
//!
//! Unless it is asked for, the agent is an offer: where its file cannot be written or named, the program is started without it, and that is said.
use crate::errors::{failed, storage};
use crate::state::write_atomically;
use crate::{Result, StateDir};
use engine::{Door, DoorChoice, Error, Kind};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PRELOAD: &str = "LD_PRELOAD";

/// Sets the command up such that it starts with the agent, if that is wanted. Gives the door that this is for, and what is to be said.
pub(crate) fn offer(
    state: &StateDir,
    wanted: DoorChoice,
    command: &mut Command,
    attempted: &str,
) -> Result<(Door, Option<String>)> {
    if wanted == DoorChoice::Only(Door::Attach) {
        return Ok((Door::Attach, None));
    }
    // Its loader would say on the program's stderr that it cannot load the agent.
    if is_32_bit(command.get_program()) {
        let (why, remedy) = ("it is a 32-bit program, and only 64-bit ones are kept", "run its 64-bit build");
        return match wanted {
            DoorChoice::Only(_) => Err(Error::new(Kind::Refused, attempted, "the command", why, remedy)),
            DoorChoice::Auto => Ok((Door::Attach, Some(format!("a checkpoint will be refused: {why}; {remedy}")))),
        };
    }
    match (wanted, preload(state, command, attempted)) {
        (_, Ok(())) => Ok((Door::Agent, None)),
        (DoorChoice::Only(_), Err(e)) => Err(e),
        (DoorChoice::Auto, Err(e)) => {
            let why: Vec<String> = e.reasons.iter().map(|r| format!("{}: {}", r.object, r.why)).collect();
            let note = format!("started without the agent, so its checkpoints need ptrace: {}", why.join("; "));
            Ok((Door::Attach, Some(note)))
        }
    }
}

/// EI_CLASS of the file that execvp would find (elf(5)); false where that cannot be told.
fn is_32_bit(command: &OsStr) -> bool {
    let places: Vec<PathBuf> = match std::env::var_os("PATH").filter(|_| !command.as_bytes().contains(&b'/')) {
        Some(folders) => std::env::split_paths(&folders).map(|f| f.join(command)).collect(),
        None => vec![command.into()],
    };
    let Some(path) = places.iter().find(|p| is_executable(p)) else { return false };
    let mut head = [0; 5];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head == *b"\x7fELF\x01"
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Preloads it; what the caller preloads comes after it.
fn preload(state: &StateDir, command: &mut Command, attempted: &str) -> Result<()> {
    let path = materialise(state)?;
    // ld.so(8): names are parted by colons and spaces, and nothing can be quoted
    if path.as_os_str().as_bytes().iter().any(|b| b" :\t\n".contains(b)) {
        let why = "its name has a colon or white space in it, and LD_PRELOAD knows no way to write that";
        let remedy = "choose another with --state-dir, or leave out --door agent";
        return Err(Error::new(Kind::Refused, attempted, path.display().to_string(), why, remedy));
    }
    let mut list = OsString::from(&path);
    if let Some(theirs) = std::env::var_os(PRELOAD).filter(|v| !v.is_empty()) {
        list.push(":");
        list.push(theirs);
    }
    command.env(PRELOAD, list);
    Ok(())
}

/// The agent as a file, named by its content: one that is there is complete, and is this one.
fn materialise(state: &StateDir) -> Result<PathBuf> {
    let (bytes, id) = sys::agent::carried();
    let path = state.path().join(format!("{}{id:016x}.so", sys::agent::FILE));
    let there = std::fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64);
    if !there {
        write_atomically(&path, bytes).map_err(|e| storage("write the agent", &path, &e))?;
    }
    std::fs::canonicalize(&path).map_err(|e| failed("write the agent", &path.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_32_bit_program_is_started_without_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::resolve(Some(dir.path())).unwrap();
        let door = |head: &[u8], wanted| {
            let file = dir.path().join("program");
            std::fs::write(&file, head).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mut command = Command::new(&file);
            let offered = offer(&state, wanted, &mut command, "launch it");
            (offered, command.get_envs().any(|(name, _)| name == PRELOAD))
        };
        let (offered, preloaded) = door(b"\x7fELF\x01\x01\x01", DoorChoice::Auto);
        let (was, note) = offered.unwrap();
        assert!(was == Door::Attach && !preloaded);
        assert!(note.is_some_and(|n| n.contains("32-bit") && n.contains("64-bit build")));
        let (offered, preloaded) = door(b"\x7fELF\x01\x01\x01", DoorChoice::Only(Door::Agent));
        assert!(offered.is_err_and(|e| e.kind == Kind::Refused) && !preloaded);
        for head in [b"\x7fELF\x02\x01\x01".as_slice(), b"#!/bin/sh\n", b""] {
            let (offered, preloaded) = door(head, DoorChoice::Auto);
            assert!(matches!(offered, Ok((Door::Agent, None))) && preloaded);
        }
    }
}
