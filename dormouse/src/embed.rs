//! A program without a launcher that wants to be a session: it starts its recorders itself. Each is a `ctl checkpoint --pid`, no child of ours
//! (the program has no more children than before), which answers over a connection of ours. Restored, the program has a supervisor like any other.
use crate::block::Block;
use crate::link::Link;
use crate::{os, Error, Outcome};
use serde_json::Value;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

static NAME: Mutex<Option<String>> = Mutex::new(None);

pub(crate) fn name() -> Option<String> {
    NAME.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(crate) fn set_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains('\0') {
        return Err(Error::new(2, format!("cannot be a session: {name:?} is no name for one")));
    }
    *NAME.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
    Ok(())
}

pub(crate) fn checkpoint(block: &'static Block, name: &str) -> Result<Outcome, Error> {
    let fail = |code: u8, why: String| {
        Error::new(code, format!("cannot checkpoint {name}: {why}; the program runs on as before"))
    };
    let ctl = ctl().ok_or_else(|| {
        fail(
            3,
            "there is no ctl to start as its recorder: set DORMOUSE_CTL, or install it beside the program or in PATH"
                .into(),
        )
    })?;
    let pid = std::process::id().to_string();
    let argv: Option<Vec<CString>> =
        [ctl.as_os_str().as_bytes(), b"checkpoint", b"--json", b"--pid", pid.as_bytes(), b"--name", name.as_bytes()]
            .into_iter()
            .map(|word| CString::new(word).ok())
            .collect();
    let argv = argv.ok_or_else(|| fail(2, "its name or ctl's path has a NUL".into()))?;
    let started = (|| {
        let (ours, theirs) = os::pair()?;
        // Both are ours until the recorder alone has the other.
        let (link, other) = (Link::new(block, ours)?, Link::new(block, theirs)?);
        os::spawn_apart(&argv, other.fd())?;
        Ok(link)
    })();
    let link = started.map_err(|e: std::io::Error| fail(9, format!("{} could not be started: {e}", ctl.display())))?;
    let said = link.all().map_err(|e| fail(9, e.to_string()))?;
    let answer: Value =
        serde_json::from_slice(&said).map_err(|_| fail(9, "the recorder ended before it answered".into()))?;
    match answer["n"].as_u64() {
        Some(number) => Ok(Outcome::Continued { number }),
        None => Err(Error::new(answer["error"]["exit_code"].as_u64().unwrap_or(9) as u8, in_words(&answer["error"]))),
    }
}

/// An error of ctl's as it would say it.
fn in_words(e: &Value) -> String {
    let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let reasons = e["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reason = |r: &Value| format!("{}: {}; {}", word(&r["object"]), word(&r["why"]), word(&r["remedy"]));
    let reasons: Vec<String> = reasons.iter().map(reason).collect();
    format!("cannot {}: {}", word(&e["attempted"]), reasons.join("\n  "))
}

fn ctl() -> Option<PathBuf> {
    let runs = |p: &PathBuf| std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if let Some(named) = std::env::var_os("DORMOUSE_CTL").filter(|v| !v.is_empty()) {
        return Some(named.into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("ctl"))).filter(runs);
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside.or_else(|| {
        std::env::split_paths(&path).filter(|d| d.is_absolute()).map(|d: PathBuf| Path::join(&d, "ctl")).find(runs)
    })
}
