//! Whoever may signal a program with the agent in it may call it in: what such a one then says, foreign, malformed or too large, or that it says
//! nothing and goes, never harms the program.
use anyhow::{ensure, Context, Result};
use dormouse_tests::agent::{self, head, MAGIC};
use dormouse_tests::fuzz::{self, Rng};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, unharmed, Bed, Case};
use std::io::{Read, Write};

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("agent/foreign-frames", foreign);
    all.extend(Case::each("agent/fuzz", by_chance));
    all.extend(Case::each("agent/program-for-nobody", for_nobody));
    all.into_iter().map(|c| c.limit(if std::env::var_os("FULL").is_some() { 600 } else { 120 })).collect()
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

/// A program for a slot in which no thread is, and two for one: neither is waited for.
fn for_nobody(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").door(Door::Launched).agent().ready(bed)?;
    let version = agent::version(target.pid)?;
    let other = proc::threads(target.pid).into_iter().find(|t| *t != target.pid).context("it has one thread")?;
    for (number, parked) in [(1, false), (2, true)] {
        let (mut sock, nonce) = agent::serve(target.pid, number, 8)?;
        if parked {
            agent::call(target.pid, other, agent::to_park(version), other, nonce)?;
            sock.read_exact(&mut [0; agent::ARRIVAL])?;
        }
        let words: Vec<u32> = if parked {
            vec![2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 1, 1, 0]
        } else {
            vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]
        };
        let mut body: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        // calls that the kernel does not know
        body.extend(vec![0xff; if parked { 128 } else { 64 }]);
        sock.write_all(&[head(MAGIC, version, 3, body.len() as u32), body].concat())?;
        let op = answered(&mut sock)?;
        ensure!(op == OP_ERROR, "it is answered with {op}");
        drop(sock);
        unharmed::entirely(target.pid)?;
    }
    target.checkpoint(bed)?;
    target.prove(bed).map(drop)
}

const OP_ERROR: u16 = 0xffff;

/// One request, and what must come of it.
struct Request {
    bytes: Vec<u8>,
    /// It is none: the answer is an error.
    bad: bool,
    /// Nothing after it is heard.
    last: bool,
}

/// What no recorder says, by chance; each frame that came whole is answered, what is none with an error.
fn by_chance(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("thr_sync").door(Door::Launched).agent().ready(bed)?;
    let version = agent::version(target.pid)?;
    let mut number = 1000;
    fuzz::rounds(120, |rng| {
        number += 1;
        let requests: Vec<Request> = (0..1 + rng.below(12)).map(|_| request(rng, version)).collect();
        let (mut sock, _) = agent::serve(target.pid, number, *rng.pick(&[0, 1, 8, 1000]))?;
        for r in &requests {
            // it may have hung up by then
            let _ = sock.write_all(&r.bytes);
        }
        let cut = if rng.one_in(4) { rng.below(40) } else { 0 };
        let _ = sock.write_all(&head(MAGIC, version, 1, 100)[..cut.min(16)]);
        let _ = sock.shutdown(std::net::Shutdown::Write);
        for (i, r) in requests.iter().enumerate() {
            let op = answered(&mut sock)
                .with_context(|| format!("request {i}: {:x?}", &r.bytes[..r.bytes.len().min(64)]))?;
            let said = u16::from_le_bytes([r.bytes[6], r.bytes[7]]);
            ensure!(
                op == if r.bad { OP_ERROR } else { said } || (!r.bad && op == OP_ERROR),
                "request {i} ({said}) is answered with {op}"
            );
            if r.last {
                break;
            }
        }
        ensure!(sock.read(&mut [0]).unwrap_or(0) == 0, "more answers than requests");
        ensure!(proc::alive(target.pid), "it died");
        Ok(())
    })?;
    unharmed::entirely(target.pid)?;
    target.checkpoint(bed)?;
    target.kill(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// Reads one answer; its op.
fn answered(sock: &mut impl Read) -> Result<u16> {
    let mut h = [0; 16];
    sock.read_exact(&mut h).context("no answer")?;
    let word = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    ensure!(word(0) == MAGIC && word(12) == 7 && word(8) <= 4 << 20, "an answer that is no frame: {h:x?}");
    sock.read_exact(&mut vec![0; word(8) as usize]).context("an answer that is cut short")?;
    Ok(u16::from_le_bytes([h[6], h[7]]))
}

/// Words that are no system call's number, no address and no small count.
fn large(rng: &mut Rng, n: usize) -> Vec<u8> {
    (0..n).flat_map(|_| (rng.number() as u32 | 1 << 31).to_le_bytes()).collect()
}

/// A whole frame.
fn request(rng: &mut Rng, version: u32) -> Request {
    let whole = |op, body: Vec<u8>| [head(MAGIC, version, op, body.len() as u32), body].concat();
    let bad = |bytes| Request { bytes, bad: true, last: false };
    let words = |all: &[u32]| all.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    match rng.below(9) {
        // asks who is there: the one good one
        0 => Request { bad: false, ..bad(whole(5, vec![])) },
        // an op that there is not
        1 => bad(whole(*rng.pick(&[0, 8, 11, 12, 99, 0x1000, 0xffff]), rng.bytes(40))),
        // not ours, another version, longer than it can be
        2 => {
            let h = *rng.pick(&[
                (MAGIC ^ 1, version, 5, 0),
                (MAGIC, version + 1, 5, 0),
                (MAGIC, version, 1, u32::MAX),
                (MAGIC, version, 3, 5 << 20),
            ]);
            Request { last: true, ..bad(head(h.0, h.1, h.2, h.3)) }
        }
        // too short for what it says that it is (reap, spawn, aside, visit, batch, threads)
        3 => {
            let (op, len) = *rng.pick(&[(6, 16), (7, 16), (9, 48), (10, 8), (1, 32), (3, 32)]);
            let n = rng.below(len);
            bad(whole(op, rng.bytes(n)))
        }
        // counts that do not fit
        4 => {
            let n = 8 + rng.below(60);
            let mut body = large(rng, n);
            for at in 0..8 {
                if rng.one_in(2) {
                    let small = (rng.number() as u32 >> 27).to_le_bytes();
                    body[at * 4..at * 4 + 4].copy_from_slice(&small);
                }
            }
            Request { bad: false, ..bad(whole(*rng.pick(&[1, 3, 10]), body)) }
        }
        // programs for threads that are not there, or for one twice
        5 => {
            let slot = *rng.pick(&[0, 1, 7, 8, 999, 1000, u32::MAX]);
            let n = 1 + rng.below(3) as u32;
            let mut body = words(&[1, 0, 0, 64, 0, 0, n, 0]);
            (0..n).for_each(|_| body.extend(words(&[slot, 0, 1, 0])));
            body.extend(large(rng, 16));
            bad(whole(3, body))
        }
        // threads that cannot be started
        6 => Request { bad: false, ..bad(whole(4, words(&[*rng.pick(&[0, 8, 1000, u32::MAX]), 0]))) },
        // more calls for each that visits than there is room
        7 => bad(whole(10, words(&[*rng.pick(&[1, 0xffff, u32::MAX]), *rng.pick(&[0, 1 << 20, u32::MAX])]))),
        // a program whose calls the kernel refuses, with places that are not in its buffer
        _ => {
            let mut body = words(&[1, 0, 0, 64, 0, 64, 0, 0]);
            body.extend(large(rng, 16));
            Request { bad: false, ..bad(whole(1, body)) }
        }
    }
}
