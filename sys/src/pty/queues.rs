//! What waits in a pair: taken out and put in again.
//!
//! While that is done the terminal is set so that nothing is echoed, translated or a signal. Its lines are told apart by reading them one by one; they
//! are lines again because each byte that means something is put in quoted (VLNEXT), and its end as what had ended it.
use super::{Stopped, Waiting};
use crate::tty::{Words, TERMIOS2};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
/// What a pair can hold of output: its buffers have 8 KiB (pty_common_install), which was measured to be 20,000 bytes at most.
const MOST: usize = 128 << 10;
/// What its line discipline holds (N_TTY_BUF_SIZE, without the last).
pub(super) const FULL: usize = 4095;
/// Nothing of ours takes so long. Then the kernel does otherwise than is known, and what was done is put right as far as it can be.
const PATIENCE: i32 = 2_000;

type Termios = [u8; TERMIOS2];

/// What was taken out, in memory that does not grow: a child may not allocate.
struct Taken {
    output: Vec<u8>,
    /// Lines one behind the other, then the rest.
    input: Vec<u8>,
    /// Where each line ends.
    ends: Vec<usize>,
    stopped: Stopped,
}

impl Taken {
    fn new() -> Taken {
        let (output, input) = (Vec::with_capacity(MOST), Vec::with_capacity(MOST));
        Taken { output, input, ends: Vec::with_capacity(MOST), stopped: Stopped::No }
    }

    fn of(w: &Waiting) -> Taken {
        let mut t = Taken { output: w.output.clone(), input: Vec::new(), ends: Vec::new(), stopped: w.stopped };
        for line in &w.lines {
            t.input.extend_from_slice(line);
            t.ends.push(t.input.len());
        }
        t.input.extend_from_slice(&w.rest);
        t
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(from, to)| &self.input[*from..*to])
    }

    fn rest(&self) -> &[u8] {
        &self.input[self.ends.last().copied().unwrap_or(0)..]
    }

    fn whole(&self) -> Waiting {
        let lines = self.lines().map(<[u8]>::to_vec).collect();
        Waiting { output: self.output.clone(), lines, rest: self.rest().to_vec(), stopped: self.stopped }
    }
}

/// More bytes of lines that were not read are not looked at.
const MOST_LINES: usize = 2000;

/// Both ends of a pair; neither blocks.
struct Pair<'a> {
    master: BorrowedFd<'a>,
    slave: BorrowedFd<'a>,
    termios: Termios,
    words: Words,
}

/// What waits in a pair. It is taken out and put in again by a child, which is done with it whatever becomes of us; nobody else may use the pair meanwhile.
///
/// `slave`: one of its open files, if there is any; the master must have had one at some time, for opening it would be seen. An error: nothing has changed.
pub fn waiting(master: &impl AsFd, slave: Option<BorrowedFd<'_>>) -> io::Result<Waiting> {
    let master = master.as_fd();
    let (mut from, to) = pipe()?;
    let mut taken = Taken::new();
    let pid = beside(|| {
        let done = in_the_child(master, slave, &mut taken);
        tell(&to, &done, &taken);
    })?;
    drop(to);
    let mut said = Vec::new();
    let read = io::Read::read_to_end(&mut from, &mut said);
    reap(pid);
    read?;
    understand(&said)
}

/// A child with all signals blocked and in a session of its own, which does `f` and ends.
fn beside(f: impl FnOnce()) -> io::Result<i32> {
    let all = nix::sys::signal::SigSet::all();
    let old = all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the child makes system calls only, in memory that it has already, and leaves by _exit. A raw clone rather than fork: libc's runs handlers of
    // pthread_atfork.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            libc::setsid();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            libc::_exit(done.is_err().into());
        }
    }
    let e = io::Error::last_os_error();
    let _ = old.thread_set_mask();
    if pid < 0 {
        return Err(e);
    }
    Ok(pid)
}

fn reap(pid: i32) {
    let mut status = 0i32;
    // SAFETY: our own child; the status goes to a local.
    while unsafe { libc::waitpid(pid, &mut status, libc::__WALL) } < 0 {
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

fn pipe() -> io::Result<(std::io::PipeReader, OwnedFd)> {
    let (from, to) = std::io::pipe()?;
    Ok((from, to.into()))
}

/// What is set aside for the time, in the order in which it is put back.
fn in_the_child(master: BorrowedFd<'_>, holder: Option<BorrowedFd<'_>>, taken: &mut Taken) -> io::Result<()> {
    let locked = super::is_locked(&master)?;
    let exclusive = holder.map_or(Ok(false), |s| super::is_exclusive(&s))?;
    if locked {
        super::lock(&master, false)?;
    }
    if let Some(s) = holder.filter(|_| exclusive) {
        super::ioctl(s, libc::TIOCNXCL, 0)?;
    }
    let slave = super::open_slave(&master);
    if let Some(s) = holder.filter(|_| exclusive) {
        super::ioctl(s, libc::TIOCEXCL, 0)?;
    }
    if locked {
        super::lock(&master, true)?;
    }
    let slave = slave?;
    let (packets, flags) = (super::in_packets(&master)?, flags(master, None)?);
    flags_to(master, flags | libc::O_NONBLOCK)?;
    let _ = super::set_packets(&master, false);
    let done = turn(master, slave.as_fd(), taken);
    if packets {
        super::set_packets(&master, true)?;
    }
    flags_to(master, flags)?;
    done
}

fn flags(fd: BorrowedFd<'_>, to: Option<i32>) -> io::Result<i32> {
    let (what, to) = to.map_or((libc::F_GETFL, 0), |f| (libc::F_SETFL, f));
    // SAFETY: both take a number.
    match unsafe { libc::fcntl(fd.as_raw_fd(), what, to) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        r => Ok(r),
    }
}

fn flags_to(fd: BorrowedFd<'_>, to: i32) -> io::Result<()> {
    flags(fd, Some(to)).map(drop)
}

fn turn(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, taken: &mut Taken) -> io::Result<()> {
    let pair = Pair::new(master, slave)?;
    // where nothing can be put in again, nothing is taken
    if poll(master, libc::POLLOUT, 0)? & libc::POLLOUT == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    // of lines whole ones are counted only, and the line discipline holds all of them and a part of one
    if pair.lines() && super::readable(&slave)? > MOST_LINES {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    let took = pair.take(taken);
    let put = pair.put(taken);
    took.and(put)
}

/// Puts into a pair what waited in one. The slave does not block; its settings are as they are to be.
pub fn put(master: &impl AsFd, slave: &impl AsFd, w: &Waiting) -> io::Result<()> {
    let master = master.as_fd();
    if w.is_empty() && w.stopped == Stopped::No {
        return Ok(());
    }
    let before = flags(master, None)?;
    flags_to(master, before | libc::O_NONBLOCK)?;
    let done = Pair::new(master, slave.as_fd()).and_then(|p| p.put(&Taken::of(w)));
    flags_to(master, before)?;
    done
}

impl<'a> Pair<'a> {
    fn new(master: BorrowedFd<'a>, slave: BorrowedFd<'a>) -> io::Result<Pair<'a>> {
        let mut termios: Termios = [0; TERMIOS2];
        // SAFETY: TCGETS2 writes one struct termios2, which there is room for.
        if unsafe { libc::ioctl(slave.as_raw_fd(), TCGETS2, termios.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let words = Words::of(&termios).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Pair { master, slave, termios, words })
    }

    /// It reads lines.
    fn lines(&self) -> bool {
        super::reads_lines(&self.termios)
    }

    /// TCSANOW: nothing is waited for, nothing thrown away.
    fn set(&self, w: &Words) -> io::Result<()> {
        let t = w.within(&self.termios);
        // SAFETY: TCSETS2 reads one struct termios2.
        match unsafe { libc::ioctl(self.slave.as_raw_fd(), TCSETS2, t.as_ptr()) } {
            r if r < 0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Nothing means anything. Whether it reads lines stays as it is unless it has `lines` and is to have none.
    fn plain(&self, lines: bool) -> Words {
        let mut w = self.words;
        (w.input, w.output) = (0, 0);
        w.local &= libc::ICANON | libc::EXTPROC;
        if self.lines() && !lines {
            w.local &= !libc::ICANON;
        }
        if w.local & libc::ICANON == 0 {
            (w.keys[libc::VMIN], w.keys[libc::VTIME]) = (1, 0);
        }
        w
    }

    /// Lines, with bytes that end one, and one that quotes all of them; all others mean nothing.
    fn literal(&self) -> (Words, Keys) {
        let mut w = self.plain(true);
        w.local |= libc::IEXTEN;
        let (eol, eol2) = (self.words.keys[libc::VEOL], self.words.keys[libc::VEOL2]);
        w.keys.fill(0);
        let taken = |k: u8| k == 0 || k == b'\n' || k == eol || k == eol2;
        let other = |not: u8| (1..32).find(|k| !taken(*k) && *k != not).unwrap_or(4);
        // its own, so that it ends a line even if it comes to be read when all is as it was
        let own = self.words.keys[libc::VEOF];
        let eof = if taken(own) { other(0) } else { own };
        let quote = other(eof);
        for (at, key) in [(libc::VEOL, eol), (libc::VEOL2, eol2), (libc::VEOF, eof), (libc::VLNEXT, quote)] {
            w.keys[at] = key;
        }
        (w, Keys { eof, eol: [b'\n', eol, eol2], quote })
    }

    fn take(&self, taken: &mut Taken) -> io::Result<()> {
        drain(self.master, &mut taken.output)?;
        while self.lines() && poll(self.slave, libc::POLLIN, 0)? & libc::POLLIN != 0 {
            let before = taken.input.len();
            match read(self.slave, &mut taken.input) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                r => r?,
            }
            debug_assert!(taken.input.len() >= before);
            if taken.ends.len() == taken.ends.capacity() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            taken.ends.push(taken.input.len());
        }
        // with nothing in it, there is room unless it stands still
        if !self.lines() {
            // what is still on its way to be read means what the settings say: it is on its way no more when there is nothing to read
            drain(self.slave, &mut taken.input)?;
        }
        drain(self.master, &mut taken.output)?;
        let still = |p: &Self| Ok::<bool, io::Error>(poll(p.slave, libc::POLLOUT, 0)? & libc::POLLOUT == 0);
        let stopped = still(self)?;
        // without IXON it goes on, unless the program has stopped it
        self.set(&self.plain(false))?;
        if stopped {
            taken.stopped = Stopped::ByKey;
            if still(self)? {
                taken.stopped = Stopped::ByProgram;
                super::ioctl(self.slave, libc::TCXONC, libc::TCOON)?;
            }
        }
        drain(self.slave, &mut taken.input)?;
        drain(self.master, &mut taken.output)
    }

    /// Whatever happens, it is set as it was.
    fn put(&self, taken: &Taken) -> io::Result<()> {
        let input = if self.lines() { self.put_lines(taken) } else { self.put_bytes(taken.rest()) };
        let output = write(self.slave, &taken.output);
        let set = self.set(&self.words);
        let stopped = match taken.stopped {
            Stopped::No => Ok(()),
            Stopped::ByProgram => super::ioctl(self.slave, libc::TCXONC, libc::TCOOFF).map(drop),
            Stopped::ByKey => write(self.master, &self.words.keys[libc::VSTOP..=libc::VSTOP])
                .and_then(|()| until(|| Ok(poll(self.slave, libc::POLLOUT, 0)? & libc::POLLOUT == 0))),
        };
        input.and(output).and(set).and(stopped)
    }

    fn put_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.set(&self.plain(false))?;
        write(self.master, bytes)?;
        until(|| Ok(super::readable(&self.slave)? >= bytes.len().min(FULL)))
    }

    fn put_lines(&self, taken: &Taken) -> io::Result<()> {
        let (mut words, keys) = self.literal();
        self.set(&words)?;
        let mut bytes = 0;
        for line in taken.lines() {
            let ended = line.last().is_some_and(|b| keys.ends(*b));
            let (body, end) = if ended { line.split_at(line.len() - 1) } else { (line, &[keys.eof][..]) };
            self.quoted(body, &keys)?;
            write(self.master, end)?;
            bytes += line.len();
        }
        let came = until(|| Ok(super::readable(&self.slave)? >= bytes));
        let rest = taken.rest();
        if rest.is_empty() {
            return came;
        }
        // a part of a line can be seen nowhere: but for its echo
        words.local |= libc::ECHO;
        self.set(&words)?;
        self.quoted(rest, &keys)?;
        let mut left = rest.len();
        let mut echo = [0u8; 512];
        while left > 0 {
            if poll(self.master, libc::POLLIN, PATIENCE)? & libc::POLLIN == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let room = left.min(echo.len());
            left -= read_into(self.master, &mut echo[..room])?;
        }
        came
    }

    fn quoted(&self, bytes: &[u8], keys: &Keys) -> io::Result<()> {
        for piece in bytes.chunk_by(|a, b| !keys.means(*a) && !keys.means(*b)) {
            if keys.means(piece[0]) {
                write(self.master, &[keys.quote])?;
            }
            write(self.master, piece)?;
        }
        Ok(())
    }
}

/// Bytes that mean something.
struct Keys {
    eof: u8,
    /// What ends a line and is part of it; 0: not set.
    eol: [u8; 3],
    quote: u8,
}

impl Keys {
    fn ends(&self, b: u8) -> bool {
        b != 0 && self.eol.contains(&b)
    }

    fn means(&self, b: u8) -> bool {
        self.ends(b) || b == self.eof || b == self.quote
    }
}

/// Spins until something is so. What it waits for is a worker of the kernel, which nobody holds up.
fn until(is_so: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let now = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec());
    let end = now() + i64::from(PATIENCE / 1000);
    while !is_so()? {
        if now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

pub(super) fn poll(fd: BorrowedFd<'_>, events: i16, timeout: i32) -> io::Result<i16> {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one struct pollfd.
    match unsafe { libc::poll(&raw mut p, 1, timeout) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        _ => Ok(p.revents),
    }
}

/// Reads all that is there.
fn drain(fd: BorrowedFd<'_>, into: &mut Vec<u8>) -> io::Result<()> {
    while poll(fd, libc::POLLIN, 0)? & libc::POLLIN != 0 {
        let before = into.len();
        match read(fd, into) {
            Ok(()) if into.len() > before => {}
            // its other end has closed
            Ok(()) => return Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EIO)) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One read, behind what is there already; it does not grow.
fn read(fd: BorrowedFd<'_>, into: &mut Vec<u8>) -> io::Result<()> {
    let (at, room) = (into.len(), into.capacity() - into.len());
    if room <= FULL {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    into.resize(into.capacity(), 0);
    let n = read_into(fd, &mut into[at..]);
    into.truncate(at + n.as_ref().copied().unwrap_or(0));
    n.map(drop)
}

fn read_into(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: as many bytes as there is room for.
    match unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) } {
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Ok(n as usize),
    }
}

/// Writes all of it. What has been taken out of there fits, but not before a worker of the kernel has taken over what came before.
fn write(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    const AT_ONCE: usize = 1024;
    while !bytes.is_empty() {
        let some = &bytes[..bytes.len().min(AT_ONCE)];
        // SAFETY: as many bytes as there are.
        let n = unsafe { libc::write(fd.as_raw_fd(), some.as_ptr().cast(), some.len()) };
        if n < 0 {
            let e = io::Error::last_os_error();
            let full = e.kind() == io::ErrorKind::WouldBlock;
            if full && poll(fd, libc::POLLOUT, PATIENCE)? & libc::POLLOUT != 0 {
                continue;
            }
            return Err(e);
        }
        bytes = &bytes[n as usize..];
    }
    Ok(())
}

/// What the child says: an errno, how it was stopped, lengths, bytes.
fn tell(to: &OwnedFd, done: &io::Result<()>, t: &Taken) {
    let errno = done.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
    let head = [errno as u32, t.stopped as u32, t.output.len() as u32, t.input.len() as u32, t.ends.len() as u32];
    let say = |bytes: &[u8]| write(to.as_fd(), bytes).is_ok();
    let _ = head.iter().all(|n| say(&n.to_ne_bytes()))
        && say(&t.output)
        && say(&t.input)
        && t.ends.iter().all(|e| say(&(*e as u32).to_ne_bytes()));
}

fn understand(said: &[u8]) -> io::Result<Waiting> {
    let broken = || io::Error::other("the child that looked at it was killed");
    let number = |at: usize| {
        let bytes = said.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(broken)?;
        Ok::<usize, io::Error>(u32::from_ne_bytes(bytes) as usize)
    };
    let errno = number(0)? as i32;
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let stopped = match number(4)? {
        0 => Stopped::No,
        1 => Stopped::ByKey,
        _ => Stopped::ByProgram,
    };
    let (output, input, ends) = (number(8)?, number(12)?, number(16)?);
    let at = 20 + output + input;
    let mut taken = Taken { output: Vec::new(), input: Vec::new(), ends: Vec::new(), stopped };
    taken.output.extend_from_slice(said.get(20..20 + output).ok_or_else(broken)?);
    taken.input.extend_from_slice(said.get(20 + output..at).ok_or_else(broken)?);
    taken.ends = (0..ends).map(|i| number(at + 4 * i)).collect::<io::Result<_>>()?;
    Ok(taken.whole())
}
