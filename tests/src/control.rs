//! A session's control socket, spoken to by hand: four bytes of length, then JSON.
use crate::who::acting;
use crate::{store, Bed};
use anyhow::{ensure, Context, Result};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest that an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where it is.
pub fn path(bed: &Bed, session: &str) -> PathBuf {
    store::session_dir(bed, session).join("control")
}

/// PID of the supervisor of a session, as ctl lists it.
pub fn supervisor(bed: &mut Bed, session: &str) -> Result<i32> {
    let list = bed.ctl_json(&["list"])?;
    let mut all = list["sessions"].as_array().into_iter().flatten();
    let one = all.find(|s| s["name"] == session).with_context(|| format!("{session} is not listed: {list}"))?;
    let pid = one["live"]["supervisor"].as_i64().or(one["supervisor"].as_i64());
    Ok(pid.with_context(|| format!("no supervisor in {one}"))? as i32)
}

/// Connects as the user of the case.
pub fn connect(bed: &Bed, session: &str) -> Result<UnixStream> {
    connect_as(bed, session, bed.who.uid())?.context("connecting to the control socket")
}

/// Connects as any user, if this process may become that.
pub fn connect_as(bed: &Bed, session: &str, uid: u32) -> Result<io::Result<UnixStream>> {
    let connected = acting(uid, || UnixStream::connect(path(bed, session)))?;
    if let Ok(stream) = &connected {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok(connected)
}

/// A frame.
pub fn frame(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

/// The next answer; None if it has hung up.
pub fn answer(stream: &mut UnixStream) -> Result<Option<Value>> {
    let Some(head) = exactly(stream, 4)? else { return Ok(None) };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    ensure!(len <= 64 << 10, "an answer of {len} bytes");
    let body = exactly(stream, len as usize)?.context("an answer is cut short")?;
    let answer: Value = serde_json::from_slice(&body).context("an answer that is not JSON")?;
    let ok = answer["ok"].as_bool().with_context(|| format!("no ok in {answer}"))?;
    let error = answer["error"].as_str().unwrap_or_default();
    ensure!(ok == error.is_empty(), "an error and no error: {answer}");
    ensure!(!error.chars().any(|c| c.is_control() && c != '\n'), "control characters in {answer}");
    Ok(Some(answer))
}

/// So many bytes; None if it has hung up before the first. What it never read of ours makes its hang-up a reset.
fn exactly(stream: &mut UnixStream, n: usize) -> Result<Option<Vec<u8>>> {
    let mut all = vec![0; n];
    let mut at = 0;
    while at < n {
        match stream.read(&mut all[at..]) {
            Ok(0) => break,
            Ok(got) => at += got,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                anyhow::bail!("neither an answer nor a hang-up within {PATIENCE:?}")
            }
            Err(e) => return Err(e.into()),
        }
    }
    ensure!(at == 0 || at == n, "it hung up in the middle of an answer");
    Ok((at == n).then_some(all))
}

/// All answers until it hangs up; after a refusal nothing comes.
pub fn answers(stream: &mut UnixStream) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    while let Some(one) = answer(stream)? {
        all.push(one);
    }
    let refused = all.iter().position(|a| a["ok"] == false);
    ensure!(refused.is_none_or(|at| at + 1 == all.len()), "after a refusal it goes on: {all:?}");
    Ok(all)
}

/// Says all that, in these pieces at most; it may hang up meanwhile. Then that there is no more.
pub fn say(stream: &mut UnixStream, bytes: &[u8], piece: usize) -> Result<()> {
    for part in bytes.chunks(piece.max(1)) {
        match stream.write_all(part) {
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => return Ok(()),
            done => done?,
        }
    }
    match stream.shutdown(Shutdown::Write) {
        Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e.into()),
        _ => Ok(()),
    }
}
