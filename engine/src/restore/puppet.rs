//! The process under construction: where it is, how to talk to it, and what ends it if the restore fails.
use super::build::PR_SET_PTRACER;
use super::fresh::Ids;
use super::{Fault, Step};
use crate::Pids;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use sys::channel::Channel;
use sys::inject::Layout;
use sys::mem::RemoteMem;
use sys::program::{Arg::Imm, Program, Reply};
use sys::tracer::Tracer;

/// A frame's payload is kept below this, which leaves room for the results ([`sys::inject::REQUEST`]) and keeps the
/// programs' data within [`sys::inject::BUFFER`].
const FULL: usize = 900 << 10;

/// The process under construction. Dropped before it is woken, it is killed and reaped.
pub struct Puppet {
    /// Conversation with its leader.
    pub channel: Channel,
    /// PID as seen from here.
    pub pid: i32,
    /// PID as it knows it.
    pub inner: i32,
    /// What ends it: itself, or the init of its namespace.
    pub child: i32,
    /// That is our child, and to be reaped by us.
    pub ours: bool,
    /// It was born by a process that had its memory already.
    pub heir: bool,
    /// The area of restartable sequences (rseq(2)) that it has registered by its birth: address, bytes, signature.
    pub rseq: Option<(u64, u32, u32)>,
    /// What it got.
    pub pids: Pids,
    /// It is in a user namespace of its own.
    pub own_users: bool,
    /// Where the blob lies in it.
    pub layout: Layout,
    /// Where blobs and what else is ours lie in all processes: addresses of the first byte, and of that after the last.
    pub area: (u64, u64),
    /// Address where our own vDSO waits for its place.
    pub park: u64,
    /// Memory that it shares with other processes, by its number: where it lies for the moment, and bytes.
    pub shares: BTreeMap<u64, (u64, u64)>,
    /// Segments of System V shared memory that were made here, by their old numbers: their new ones.
    pub segments: BTreeMap<i32, i32>,
    /// How our vDSO stands in for the program's.
    pub fit: super::vdso::Fit,
    /// Where our vDSO lies in the end.
    pub vdso_at: u64,
    /// Its descriptor of the blob's socket.
    pub sock: i32,
    /// All such in its table, ascending: those of who shares it, too.
    pub socks: Vec<i32>,
    /// Its copies of the standard streams that it is to get; None: closed.
    pub stdio: [Option<i32>; 3],
    /// Its descriptors of pseudo terminals, by their numbers in the image: master, and slave if that was ever opened.
    pub ptys: BTreeMap<u32, (i32, Option<i32>)>,
    /// All descriptors from here on are free for temporary use.
    pub temp_base: i32,
    /// Where the program's wait status will come from.
    pub status: Option<OwnedFd>,
    /// Its memory.
    pub mem: RemoteMem,
    /// Its tracer.
    pub tracer: Option<Tracer>,
    /// TIDs as seen from here, in the order of the image's threads.
    pub tids: Vec<i32>,
    /// What the image's PIDs and TIDs are in it.
    pub ids: Ids,
    /// Its descriptors of files without a name that are mapped, by their content.
    pub mapped: std::collections::HashMap<u32, i32>,
    /// Pairs of sockets whose queues are not filled yet, by the one that was made first: its peer.
    pub unfilled: std::collections::HashMap<u32, i32>,
    /// It runs: not ours to kill any more.
    pub woken: bool,
}

impl Puppet {
    /// Runs a program in the leader; each must-call has to succeed.
    pub fn run(&mut self, p: &Program) -> Step<Reply> {
        if p.is_empty() {
            return Ok(Reply::default());
        }
        Ok(self.channel.run_all(p)?)
    }

    /// Runs what has been collected if it is about to become too long for one frame.
    pub fn run_if_full(&mut self, p: &mut Program) -> Step<()> {
        if p.size() + p.len() * 8 < FULL {
            return Ok(());
        }
        self.run(p)?;
        *p = Program::new();
        Ok(())
    }

    /// Runs a program in parked threads; each must-call of each thread has to succeed.
    pub fn run_threads(&mut self, p: &Program) -> Step<Reply> {
        let r = self.channel.run(p)?;
        for (i, x) in r.results.iter().enumerate() {
            if (-4095..0).contains(x) && p.must(i) {
                let source = std::io::Error::from_raw_os_error(-x as i32);
                return Err(sys::Error::Inside { call: p.name(i), pid: self.pid, source }.into());
            }
        }
        Ok(r)
    }

    /// What it calls before anything else.
    pub fn first_calls(&self) -> Program {
        let mut p = Program::new();
        if let Some((area, size, sig)) = self.rseq {
            p.may(libc::SYS_rseq, &[Imm(area), Imm(size as u64), Imm(1), Imm(sig as u64)]);
        }
        // where Yama only lets ancestors trace: our tracer is none
        p.may(libc::SYS_prctl, &[Imm(PR_SET_PTRACER), Imm(u64::MAX)]);
        p
    }

    /// Seizes its threads: from here on it ends with its tracer.
    pub fn adopt(&mut self) -> Step<()> {
        match self.tracer.as_mut() {
            Some(t) => t.adopt(&self.tids)?,
            None => return Err(Fault::Io("tracer".into(), std::io::Error::other("there is none"))),
        };
        Ok(())
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if self.woken {
            return;
        }
        end(self.child);
        // its tracer holds dead threads until it ends itself
        self.tracer = None;
        if self.ours {
            reap(self.child);
        }
    }
}

/// All processes of a restore. Dropped before they are woken, all are killed, and all their tracers gone, before any is waited for: an init waits for what
/// another tracer still holds.
pub struct Puppets(pub Vec<Puppet>);

impl Drop for Puppets {
    fn drop(&mut self) {
        self.0.iter().filter(|p| !p.woken).for_each(|p| end(p.child));
        self.0.iter_mut().for_each(|p| p.tracer = None);
    }
}

/// Kills a child of ours.
pub fn end(child: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::SIGKILL);
}

/// Waits for a child of ours that was killed.
pub fn reap(child: i32) {
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
}
