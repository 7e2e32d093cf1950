//! Whoever may signal a program with the agent in it may call it in: what such a one then says, foreign, malformed or too large, or that it says
//! nothing and goes, never harms the program.
use anyhow::{ensure, Context, Result};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, sys, unharmed, Bed, Case};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// wire/src/agent.rs
const PAGE: u64 = 0x444f_5200_0000;
const SIGNAL: i32 = 63;
const MAGIC: u32 = 0x6573_4d44;
/// Bytes of the frame with which a thread comes in.
const ARRIVAL: usize = 400;

pub fn cases() -> Vec<Case> {
    Case::each("agent/foreign-frames", foreign).into_iter().map(|c| c.limit(120)).collect()
}

fn foreign(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").door(Door::Launched).agent().ready(bed)?;
    let version = version(target.pid)?;
    for (i, words) in conversations(version).into_iter().enumerate() {
        let why = format!("conversation {i}: {} bytes", words.len());
        converse(target.pid, version, i as u64, &words).with_context(|| why.clone())?;
        ensure!(proc::alive(target.pid), "{why}: it died");
    }
    // called by nobody who listens; called to park where nobody serves
    for code in [-(0x4400 + version as i32), -(0x4500 + version as i32), -(0x4400 + version as i32 + 1)] {
        call(target.pid, code, 1 << 40)?;
    }
    unharmed::entirely(target.pid)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

/// The version that the page says.
fn version(pid: i32) -> Result<u32> {
    let mut b = [0; 12];
    std::fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut b, PAGE)?;
    ensure!(&b[..8] == b"DORMAGNT", "there is no agent's page");
    Ok(u32::from_le_bytes(b[8..].try_into()?))
}

fn head(magic: u32, version: u32, op: u16, len: u32) -> Vec<u8> {
    let mut v = magic.to_le_bytes().to_vec();
    v.extend_from_slice(&(version as u16).to_le_bytes());
    v.extend_from_slice(&op.to_le_bytes());
    v.extend_from_slice(&len.to_le_bytes());
    v.extend_from_slice(&7u32.to_le_bytes());
    v
}

/// What is said to it.
fn conversations(version: u32) -> Vec<Vec<u8>> {
    let mut all = vec![
        vec![],
        vec![0; 7],
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        head(MAGIC + 1, version, 1, 0),
        head(MAGIC, version + 1, 5, 0),
        head(MAGIC, version, 5, 0),
        head(MAGIC, version, 1, u32::MAX),
        head(MAGIC, version, 1, 64 << 20),
        head(MAGIC, version, 1, 100),
        head(MAGIC, version, 99, 0),
    ];
    for op in 0..12 {
        // OP_REAP and OP_SPAWN make a process something else, as they are told: nothing that is malformed
        if op == 6 || op == 7 {
            continue;
        }
        all.push(head(MAGIC, version, op, 0));
        // any bytes are a request for a snapshot child
        if op == 2 {
            continue;
        }
        for fill in [0xffu8, 0x41] {
            let mut v = head(MAGIC, version, op, 160);
            v.extend([fill; 160]);
            all.push(v);
        }
    }
    // headers of programs with counts that do not fit, in many ways: a fixed sequence of numbers
    let mut seed = 0x9e37_79b9u32;
    for _ in 0..40 {
        let mut v = head(MAGIC, version, 1, 96);
        for i in 0..24u32 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = if i < 8 && seed & 1 == 0 { seed >> 28 } else { seed | 1 << 31 };
            v.extend_from_slice(&word.to_le_bytes());
        }
        all.push(v);
    }
    all
}

/// Calls the first thread in to serve, says this, hears what comes, and goes.
fn converse(pid: i32, version: u32, number: u64, words: &[u8]) -> Result<()> {
    let nonce = u64::from(std::process::id()) << 32 | number << 1 | 1;
    let name: Vec<u8> =
        b"dormouse-".iter().copied().chain((0..16).map(|i| b'a' + (nonce >> (i * 4) & 15) as u8)).collect();
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    call(pid, -(0x4400 + version as i32), nonce)?;
    listener.set_nonblocking(true)?;
    let mut came = None;
    run::until("the agent's connection", Duration::from_secs(5), || {
        came = listener.accept().ok();
        Ok(came.is_some())
    })?;
    let (mut sock, _): (UnixStream, _) = came.context("nobody came")?;
    sock.set_nonblocking(false)?;
    sock.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut arrival = [0; ARRIVAL];
    sock.read_exact(&mut arrival).context("its first frame")?;
    // it may have hung up by then
    let _ = sock.write_all(words);
    let _ = sock.shutdown(std::net::Shutdown::Write);
    let mut rest = Vec::new();
    let _ = sock.read_to_end(&mut rest);
    Ok(())
}

/// Sends the agent's signal to the first thread.
fn call(pid: i32, code: i32, nonce: u64) -> Result<()> {
    let mut info = [0u8; 128];
    for (at, v) in [(0, SIGNAL), (4, 8), (8, code), (16, std::process::id() as i32), (32, -1)] {
        info[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }
    info[24..32].copy_from_slice(&nonce.to_le_bytes());
    sys::queue_to_thread(pid, pid, SIGNAL, &info)
}
