//! An agent called in by hand, as a recorder does it, without any code of the product: for what ctl would refuse before it begins, and for what no
//! recorder would say.
use crate::{proc, run, sys};
use anyhow::{ensure, Context, Result};
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Where the agent's page is (wire/src/agent.rs).
pub const PAGE: u64 = 0x444f_5200_0000;
/// The agent's signal.
pub const SIGNAL: i32 = 63;
/// First word of each frame.
pub const MAGIC: u32 = 0x6573_4d44;
/// Bytes of the frame with which a thread comes in.
pub const ARRIVAL: usize = 400;
const PATIENCE: Duration = Duration::from_secs(5);

/// The version that the page says.
pub fn version(pid: i32) -> Result<u32> {
    let mut b = [0; 12];
    std::fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut b, PAGE)?;
    ensure!(&b[..8] == b"DORMAGNT", "there is no agent's page");
    Ok(u32::from_le_bytes(b[8..].try_into()?))
}

/// The code of the signal that calls a thread in to serve.
pub fn to_serve(version: u32) -> i32 {
    -(0x4400 + version as i32)
}

/// The code of the signal that calls a thread in to park.
pub fn to_park(version: u32) -> i32 {
    -(0x4500 + version as i32)
}

/// A frame's header.
pub fn head(magic: u32, version: u32, op: u16, len: u32) -> Vec<u8> {
    let mut v = magic.to_le_bytes().to_vec();
    v.extend_from_slice(&(version as u16).to_le_bytes());
    v.extend_from_slice(&op.to_le_bytes());
    v.extend_from_slice(&len.to_le_bytes());
    v.extend_from_slice(&7u32.to_le_bytes());
    v
}

/// In which call a thread is seen, and what tells that call from another of the same instruction.
#[derive(Clone, Copy)]
struct Doing {
    call: i32,
    pc: u32,
    print: u64,
}

impl Doing {
    const UNKNOWN: Doing = Doing { call: -1, pc: 0, print: 0 };

    /// From /proc/PID/task/TID/syscall: number, six arguments, stack pointer, instruction pointer.
    fn of(pid: i32, tid: i32) -> Doing {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        let Some((Ok(call), rest)) = text.trim().split_once(' ').map(|(nr, rest)| (nr.parse(), rest)) else {
            return Doing::UNKNOWN;
        };
        let words: Option<Vec<u64>> =
            rest.split(' ').map(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok()).collect();
        match words.as_deref() {
            Some([args @ .., sp, pc]) if args.len() == 6 => {
                let mix = |h: u64, v: &u64| (h ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                Doing { call, pc: *pc as u32, print: args.iter().fold(mix(1, sp), mix) }
            }
            _ => Doing::UNKNOWN,
        }
    }
}

/// Sends the agent's signal to a thread. Which call it was in is left for it to find out.
pub fn call(pid: i32, tid: i32, code: i32, number: i32, nonce: u64) -> Result<()> {
    call_seen(pid, tid, code, number, nonce, Doing::UNKNOWN)
}

/// The same, and says in which call it was seen.
fn call_seen(pid: i32, tid: i32, code: i32, number: i32, nonce: u64, seen: Doing) -> Result<()> {
    let mut info = [0u8; 128];
    let words = [SIGNAL, number, code, 0, std::process::id() as i32, 0];
    for (to, v) in info.chunks_exact_mut(4).zip(words.into_iter().chain([0, 0, seen.call, seen.pc as i32])) {
        to.copy_from_slice(&v.to_le_bytes());
    }
    info[24..32].copy_from_slice(&nonce.to_le_bytes());
    info[40..48].copy_from_slice(&seen.print.to_le_bytes());
    sys::queue_to_thread(pid, tid, SIGNAL, &info)
}

/// Name of a recorder's abstract address, made from its key.
pub fn recorder_name(key: u64) -> Vec<u8> {
    b"dormouse-".iter().copied().chain((0..16).map(|i| b'a' + (key >> (i * 4) & 15) as u8)).collect()
}

/// Calls the first thread in to serve; its connection, its first frame read. `number` makes each call another.
pub fn serve(pid: i32, number: u64, slots: i32) -> Result<(UnixStream, u64)> {
    let nonce = u64::from(std::process::id()) << 32 | number << 1 | 1;
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(recorder_name(nonce))?)?;
    call(pid, pid, to_serve(version(pid)?), slots, nonce)?;
    listener.set_nonblocking(true)?;
    let mut came = None;
    run::until("the agent's connection", PATIENCE, || {
        came = listener.accept().ok();
        Ok(came.is_some())
    })?;
    let (mut sock, _) = came.context("nobody came")?;
    sock.set_nonblocking(false)?;
    sock.set_read_timeout(Some(PATIENCE))?;
    arrived(&mut sock)?;
    Ok((sock, nonce))
}

fn arrived(sock: &mut UnixStream) -> Result<()> {
    sock.read_exact(&mut [0; ARRIVAL]).context("the frame of a thread that comes in")
}

/// Looks at all threads, calls them in, waits until all are, and lets them go: how long that took, which no thread's pause is longer than.
pub fn freeze(pid: i32, number: u64) -> Result<Duration> {
    let others: Vec<i32> = proc::threads(pid).into_iter().filter(|t| *t != pid).collect();
    let seen: Vec<Doing> = others.iter().map(|tid| Doing::of(pid, *tid)).collect();
    let began = Instant::now();
    let (mut sock, nonce) = serve(pid, number, others.len() as i32)?;
    // which the program ignores, and no thread of it may notice, though the first one is inside
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGCHLD)?;
    for (tid, seen) in others.iter().zip(seen) {
        call_seen(pid, *tid, to_park(version(pid)?), *tid, nonce, seen)?;
    }
    for _ in &others {
        arrived(&mut sock)?;
    }
    drop(sock);
    // the next one may only come when the last has left
    run::until("everyone out", PATIENCE, || Ok(proc::ours(pid).is_empty()))?;
    Ok(began.elapsed())
}
