//! A birth: of a process with a copy of the memory of who bears it, as by fork(2), or with that memory itself (CLONE_VM), where its blob is a second one in it.
use super::Step;
use sys::channel::Channel;
use sys::inject::Layout;
use sys::mem::RemoteMem;
use sys::program::{Arg::Imm, Program};

/// How one is born.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// What its parent is sent at its end; 0: nothing.
    pub signal: i32,
    /// What it shares with who bears it (CLONE_ flags).
    pub shares: i32,
    /// With CLONE_VM: where its blob comes to lie, in memory that is free.
    pub beside: Option<Layout>,
}

impl How {
    /// With a copy of everything, and unnoticed in the end.
    pub const COPY: How = How { signal: 0, shares: 0, beside: None };
}

/// Lets a process make another; its PID as it knows it, or the kernel's answer. `above`: the PID of that process here; `pid`: the one to be asked for, 0: any; `sock`:
/// the descriptor on which it serves.
pub fn spawn(channel: &mut Channel, (above, pid): (i32, i32), sock: i32, how: How) -> Step<std::io::Result<i32>> {
    let mut q = Vec::with_capacity(40);
    for v in [pid, sock, how.signal, how.shares] {
        q.extend_from_slice(&v.to_le_bytes());
    }
    for v in how.beside.map_or([0; 3], |l| [l.params(), l.stack(), l.serve_entry()]) {
        q.extend_from_slice(&v.to_le_bytes());
    }
    if let Some(l) = &how.beside {
        blob(channel, above, l, sock)?;
    }
    let a = channel.ask(wire::OP_SPAWN, &q)?;
    let r = a.get(..8).and_then(|b| b.try_into().ok()).map_or(-1, i64::from_le_bytes);
    Ok(if r < 0 { Err(std::io::Error::from_raw_os_error(-r as i32)) } else { Ok(r as i32) })
}

/// A second blob in the memory of a process: of one that is to serve on `sock`. It may be there from a number that was taken.
fn blob(channel: &mut Channel, pid: i32, l: &Layout, sock: i32) -> Step<()> {
    let mut p = Program::new();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    p.call(libc::SYS_mmap, &[Imm(l.base), Imm(l.len), Imm(rw), Imm(flags as u64), Imm(u64::MAX), Imm(0)]);
    p.named("mapping the restorer of one that has its memory");
    channel.run_all(&p)?;
    let mem = RemoteMem::open(pid)?;
    for (at, bytes) in l.content(sock) {
        mem.write(at, &bytes)?;
    }
    let mut p = Program::new();
    let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    p.call(libc::SYS_mprotect, &[Imm(l.base), Imm(l.code), Imm(rx)]);
    p.named("protecting the restorer of one that has its memory");
    Ok(channel.run_all(&p).map(drop)?)
}
