//! Whoever may signal a program with the agent in it may call it in: what such a one then says, foreign, malformed or too large, or that it says
//! nothing and goes, never harms the program.
use anyhow::{ensure, Context, Result};
use dormouse_tests::agent::{self, head, MAGIC};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, unharmed, Bed, Case};
use std::io::{Read, Write};

pub fn cases() -> Vec<Case> {
    Case::each("agent/foreign-frames", foreign).into_iter().map(|c| c.limit(120)).collect()
}

fn foreign(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").door(Door::Launched).agent().ready(bed)?;
    let version = agent::version(target.pid)?;
    for (i, words) in conversations(version).into_iter().enumerate() {
        let why = format!("conversation {i}: {} bytes", words.len());
        converse(target.pid, i as u64, &words).with_context(|| why.clone())?;
        ensure!(proc::alive(target.pid), "{why}: it died");
    }
    // called by nobody who listens; called to park where nobody serves
    for code in [agent::to_serve(version), agent::to_park(version), agent::to_serve(version + 1)] {
        agent::call(target.pid, target.pid, code, 8, 1 << 40)?;
    }
    unharmed::entirely(target.pid)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
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
fn converse(pid: i32, number: u64, words: &[u8]) -> Result<()> {
    let (mut sock, _) = agent::serve(pid, number, 8)?;
    // it may have hung up by then
    let _ = sock.write_all(words);
    let _ = sock.shutdown(std::net::Shutdown::Write);
    let mut rest = Vec::new();
    let _ = sock.read_to_end(&mut rest);
    Ok(())
}
