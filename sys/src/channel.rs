//! The recorder's end of the conversation with a blob: frames of [`wire`] over a unix stream socket.
use crate::pidfd::PidFd;
use crate::program::{Program, Reply};
use crate::seccomp::Judge;
use crate::{fault, Error, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    accept4, bind, connect, getsockopt, listen, socket, sockopt::PeerCredentials, AddressFamily, Backlog, SockFlag,
    SockType, UnixAddr,
};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use wire::{FRAME_MAGIC, MAX_PAYLOAD, WIRE_VERSION};

/// Longest wait for a blob or a snapshot child to connect: both do so without waiting for anything.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Tells when there is nobody any more to wait for. When a tracer is gone a blob may stand still with its program (a stopped one stops again as its tracer
/// ends), and would be waited for until somebody continues it. When a process has ended while others hold its end of the conversation, that does not end.
#[derive(Debug)]
pub struct Watch {
    /// A stream whose other end is the tracer's.
    tracer: Option<OwnedFd>,
    /// A handle of the process itself.
    process: Option<OwnedFd>,
}

impl Watch {
    /// Over a stream whose other end is the tracer's.
    pub(crate) fn new(sock: UnixStream) -> Watch {
        Watch { tracer: Some(sock.into()), process: None }
    }

    /// Over the process itself.
    pub fn process(pid: i32) -> Result<Watch> {
        Watch { tracer: None, process: None }.and_process(pid)
    }

    /// Over the process, too: another may have its descriptors.
    pub fn and_process(self, pid: i32) -> Result<Watch> {
        Ok(Watch { process: Some(PidFd::open(pid)?.into()), ..self })
    }

    /// Waits until something can be read from `fd`, its end too; false if there is nobody any more, or nothing for `limit` (None: for ever).
    pub(crate) fn until_readable(&self, fd: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
        Watch::ready(Some(self), fd, PollFlags::POLLIN, limit).unwrap_or(false)
    }

    /// Waits until `fd` is ready for `events`, at most `limit` (None: for ever). False if it is not by then; an error if the tracer ends first.
    fn ready(
        watch: Option<&Watch>,
        fd: BorrowedFd<'_>,
        events: PollFlags,
        limit: Option<Duration>,
    ) -> io::Result<bool> {
        let end = limit.map(|l| Instant::now() + l);
        let mut all = vec![PollFd::new(fd, events)];
        // a stream tells its end in any case, a handle as something to read
        let tracer = watch.and_then(|w| w.tracer.as_ref());
        all.extend(tracer.map(|t| PollFd::new(t.as_fd(), PollFlags::empty())));
        let process = watch.and_then(|w| w.process.as_ref());
        all.extend(process.map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
        loop {
            // rounded up: less than a millisecond is not no time
            let left = end.map(|e| e.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000));
            let left = left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
            match poll(&mut all, left) {
                Err(nix::Error::EINTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(0) => return Ok(false),
                // what has come counts first
                Ok(_) if all[0].any().unwrap_or(true) => return Ok(true),
                Ok(_) if tracer.is_some() && all[1].any().unwrap_or(true) => {
                    return Err(io::Error::new(io::ErrorKind::NotConnected, "the tracer ended"))
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

/// A tracer that ended is not the blob's fault.
fn told(e: &io::Error) -> Option<Error> {
    let gone = e.kind() == io::ErrorKind::NotConnected && e.raw_os_error().is_none();
    gone.then(|| Error::Peer {
        peer: "tracer",
        what: "it ended; if the program is stopped, it takes up its work when it is continued".into(),
    })
}

/// Where blobs connect: an abstract unix socket with a random name.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    addr: Vec<u8>,
    key: u64,
}

impl Listener {
    /// Binds a fresh one.
    pub fn new() -> Result<Listener> {
        let err = |doing: &str, e: nix::Error| Error::Call {
            doing: doing.into(),
            pid: std::process::id() as i32,
            source: e.into(),
        };
        let mut random = [0u8; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut random))
            .map_err(|source| Error::File { path: "/dev/urandom".into(), source })?;
        let key = u64::from_le_bytes(random);
        let name = wire::recorder_name(key);
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| err("socket", e))?;
        let a = UnixAddr::new_abstract(&name).map_err(|e| err("socket address", e))?;
        bind(fd.as_raw_fd(), &a).map_err(|e| err("bind", e))?;
        listen(&fd, Backlog::new(16).map_err(|e| err("listen", e))?).map_err(|e| err("listen", e))?;
        // struct sockaddr_un: family 1, then a NUL and the name
        let mut addr = vec![1, 0, 0];
        addr.extend_from_slice(&name);
        Ok(Listener { fd, addr, key })
    }

    /// The `sockaddr_un` as bytes, for [`wire::Params`].
    pub fn addr(&self) -> &[u8] {
        &self.addr
    }

    /// What its name was made from ([`wire::recorder_name`]): random, and so known to those only who were told.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Accepts the next connection of process `want` (0: of any) of user `uid`; whoever else connects is turned away. Gives the peer's PID as
    /// seen from here. An error at once if the watched tracer ends.
    pub fn accept(&self, want: i32, uid: u32, watch: Option<&Watch>) -> Result<(UnixStream, i32)> {
        self.accept_within(want, uid, watch, CONNECT_LIMIT)?.ok_or_else(|| Error::Peer {
            peer: "parasite",
            what: format!("did not connect within {} s", CONNECT_LIMIT.as_secs()),
        })
    }

    /// The same with another limit; None if nobody has come by then.
    pub fn accept_within(
        &self,
        want: i32,
        uid: u32,
        watch: Option<&Watch>,
        limit: Duration,
    ) -> Result<Option<(UnixStream, i32)>> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let ready = Watch::ready(watch, self.fd.as_fd(), PollFlags::POLLIN, Some(left));
            let ready =
                ready.map_err(|e| told(&e).unwrap_or(Error::Call { doing: "poll".into(), pid: want, source: e }))?;
            if !ready {
                return Ok(None);
            }
            let fd = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(|e| Error::Call {
                doing: "accept".into(),
                pid: want,
                source: e.into(),
            })?;
            // SAFETY: accept4 just made it and nobody else owns it.
            let s = unsafe { UnixStream::from_raw_fd(fd) };
            let cred = getsockopt(&s, PeerCredentials).map_err(|e| Error::Call {
                doing: "SO_PEERCRED".into(),
                pid: want,
                source: e.into(),
            })?;
            if cred.uid() == uid && (want == 0 || cred.pid() == want) {
                return Ok(Some((s, cred.pid())));
            }
        }
    }
}

/// Connects to an abstract address (tests).
pub fn connect_abstract(name: &[u8]) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    Ok(fd)
}

/// A conversation with one blob.
#[derive(Debug)]
pub struct Channel {
    sock: UnixStream,
    watch: Option<Watch>,
    judge: Judge,
    pid: i32,
    seq: u32,
}

impl Channel {
    /// Over a connected socket, with process `pid` (for messages).
    pub fn new(sock: UnixStream, pid: i32) -> Channel {
        fault::target(pid);
        Channel::beside(sock, pid)
    }

    /// The same with a blob that is not waited for longer than its tracer, or its process, lives.
    pub fn watched(sock: UnixStream, pid: i32, watch: Watch) -> Result<Channel> {
        let mut c = Channel::new(sock, pid);
        c.sock.set_nonblocking(true).map_err(|e| c.io("setting up its socket", e))?;
        c.watch = Some(watch);
        Ok(c)
    }

    /// What tells that its tracer is gone.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// With a process that is none of the target's: its snapshot child.
    pub fn beside(sock: UnixStream, pid: i32) -> Channel {
        Channel { sock, watch: None, judge: Judge::default(), pid, seq: 0 }
    }

    /// The same with a process that has seccomp filters: no program is sent that they do not let through.
    pub fn judged(mut self, judge: Judge) -> Channel {
        self.judge = judge;
        self
    }

    /// Whether the process's filters let a program through.
    pub fn permits(&self, p: &Program) -> bool {
        self.judge.refused(p.for_judge()).is_empty()
    }

    /// The process on the other end.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.sock
    }

    /// Sends a frame whose answer is not waited for.
    pub fn send(&mut self, op: u16, payload: &[u8]) -> Result<()> {
        fault::point("wire").map_err(|e| self.io("sending a frame", e))?;
        if payload.len() > MAX_PAYLOAD as usize {
            return Err(Error::Peer {
                peer: "parasite",
                what: format!("a request of {} bytes is too large", payload.len()),
            });
        }
        self.seq += 1;
        let mut v = Vec::with_capacity(16 + payload.len());
        v.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        v.extend_from_slice(&WIRE_VERSION.to_le_bytes());
        v.extend_from_slice(&op.to_le_bytes());
        v.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        v.extend_from_slice(&self.seq.to_le_bytes());
        v.extend_from_slice(payload);
        self.write_all(&v).map_err(|e| self.io("sending a frame", e))
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, op: u16, payload: &[u8]) -> Result<Vec<u8>> {
        self.send(op, payload)?;
        self.answer(op)
    }

    /// Reads the answer to the latest request.
    pub fn answer(&mut self, op: u16) -> Result<Vec<u8>> {
        let mut h = [0u8; 16];
        self.read_exact(&mut h, true).map_err(|e| self.io("reading an answer", e))?;
        let word = |i: usize| u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
        let (got_op, len) = (u16::from_le_bytes([h[6], h[7]]), word(8));
        if word(0) != FRAME_MAGIC || word(12) != self.seq || len > 2 * MAX_PAYLOAD {
            return Err(Error::Peer { peer: "parasite", what: "its answer is not a frame of ours".into() });
        }
        let mut v = vec![0; len as usize];
        self.read_exact(&mut v, false).map_err(|e| self.io("reading an answer", e))?;
        if got_op != op {
            let errno =
                if v.len() == 8 { i64::from_le_bytes([v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]]) } else { 0 };
            return Err(Error::Peer {
                peer: "parasite",
                what: format!("did not understand request {op} (error {errno})"),
            });
        }
        Ok(v)
    }

    /// Runs a program; its calls' failures are in the reply.
    pub fn run(&mut self, p: &Program) -> Result<Reply> {
        let refused = self.judge.refused(p.for_judge());
        if !refused.is_empty() {
            let (calls, suspended) = (refused.join(", "), self.judge.is_suspended());
            return Err(Error::Filtered { pid: self.pid, calls, suspended });
        }
        let op = if p.for_threads() { wire::OP_THREADS } else { wire::OP_BATCH };
        let v = self.ask(op, &p.encode())?;
        let bad = || Error::Peer { peer: "parasite", what: "its answer is too short".into() };
        let word = |i: usize| v.get(i..i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).ok_or_else(bad);
        let (done, ret) = (word(0)? as usize, word(4)? as usize);
        if v.len() != 8 + done * 8 + ret {
            return Err(bad());
        }
        let results =
            v[8..8 + done * 8].chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap_or_default())).collect();
        Ok(Reply { results, bytes: v[8 + done * 8..].to_vec(), ret_off: p.ret_off() })
    }

    /// Runs a program all of whose must-calls have to succeed; the first failure is the error, with the call's name.
    pub fn run_all(&mut self, p: &Program) -> Result<Reply> {
        let r = self.run(p)?;
        if r.results.len() < p.len()
            || r.results.last().is_some_and(|x| (-4095..0).contains(x) && p.must(r.results.len() - 1))
        {
            let i = r.results.len().saturating_sub(1);
            let e = r.results.last().copied().unwrap_or(0);
            return Err(Error::Inside {
                call: p.name(i),
                pid: self.pid,
                source: std::io::Error::from_raw_os_error(-e as i32),
            });
        }
        Ok(r)
    }

    fn io(&self, what: &str, e: io::Error) -> Error {
        if let Some(e) = told(&e) {
            return e;
        }
        match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Error::Died { doing: what.into(), pid: self.pid }
            }
            _ => Error::Peer { peer: "parasite", what: format!("{what}: {e}") },
        }
    }
}

/// Whole reads and writes that do not outlast a watched tracer; the socket does not block where there is one.
impl Channel {
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        match &self.watch {
            Some(_) => Watch::ready(self.watch.as_ref(), self.sock.as_fd(), events, None).map(drop),
            None => Ok(()),
        }
    }

    /// `wait`: it is not expected to be there yet.
    fn read_exact(&self, mut into: &mut [u8], mut wait: bool) -> io::Result<()> {
        while !into.is_empty() {
            if wait {
                self.wait(PollFlags::POLLIN)?;
            }
            match (&self.sock).read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => into = &mut into[n..],
                Err(e) if again(&e) => wait = true,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_all(&self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            match (&self.sock).write(from) {
                Ok(n) => from = &from[n..],
                Err(e) if again(&e) => self.wait(PollFlags::POLLOUT)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn again(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
