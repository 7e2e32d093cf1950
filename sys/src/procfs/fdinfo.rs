//! `/proc/PID/fdinfo/N` (proc_pid_fdinfo(5), fs/proc/fd.c `seq_show` and each file's `show_fdinfo`).

use super::bytes::{dec, dec32, find, hex, hex32, int, int32, lines, oct, split_at_byte, trim, Words};
use super::{path_of, read_with, Dev, ParseError, Pid, Result};

const FILE: &str = "fdinfo";

/// What the file says. Lists are empty and options None for files of another kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// File offset in bytes.
    pub pos: i64,
    /// Flags of open(2), with O_CLOEXEC if the descriptor has FD_CLOEXEC, and O_LARGEFILE.
    pub flags: u32,
    /// Mount id, as in mountinfo.
    pub mnt_id: u64,
    /// Inode number (5.14+).
    pub ino: Option<u64>,
    /// eventfd(2)
    pub eventfd: Option<EventFd>,
    /// epoll(7): one for each registered descriptor.
    pub epoll: Vec<EpollTarget>,
    /// signalfd(2): signal N at bit N-1.
    pub sigmask: Option<u64>,
    /// timerfd_create(2)
    pub timerfd: Option<TimerFd>,
    /// inotify(7): one for each watch.
    pub inotify: Vec<InotifyWatch>,
    /// fanotify(7)
    pub fanotify: Option<Fanotify>,
    /// pidfd_open(2)
    pub pidfd: Option<PidFd>,
    /// The file is an io_uring (SqMask, SqHead or the like was there).
    pub io_uring: bool,
    /// Number of the pty whose master this is (`tty-index`).
    pub tty_index: Option<u32>,
    /// Interface of a TUN/TAP descriptor (`iff`).
    pub tun_iff: Option<Vec<u8>>,
    /// Locks and leases on this open file or its process.
    pub locks: Vec<Lock>,
    /// unix sockets: descriptors in flight in its queue (SCM_RIGHTS).
    pub scm_fds: Option<u32>,
    /// Lines we have no field for: key, value.
    pub others: Vec<(Vec<u8>, Vec<u8>)>,
}

impl FdInfo {
    /// FD_CLOEXEC of the descriptor.
    pub fn cloexec(&self) -> bool {
        self.flags & libc::O_CLOEXEC as u32 != 0
    }
}

/// fs/eventfd.c
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventFd {
    /// The counter.
    pub count: u64,
    /// An identity: two descriptors with one id are one eventfd (5.2+).
    pub id: Option<i32>,
    /// EFD_SEMAPHORE (6.5+; None if not shown).
    pub semaphore: Option<bool>,
}

/// fs/eventpoll.c
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EpollTarget {
    /// The descriptor number at the time of EPOLL_CTL_ADD; it may be closed since, or another file.
    pub tfd: i32,
    /// EPOLL* bits, with EPOLLONESHOT, EPOLLET and the rest.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// File offset of the target.
    pub pos: i64,
    /// Inode of the target.
    pub ino: u64,
    /// Device of the target.
    pub sdev: Dev,
}

/// fs/timerfd.c. Times in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerFd {
    /// CLOCK_*
    pub clock_id: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2): TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
    pub settime_flags: u32,
    /// Time until the next expiry, always relative; zero if disarmed.
    pub value: (u64, u64),
    /// Interval.
    pub interval: (u64, u64),
}

/// fs/notify/fdinfo.c
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode watched.
    pub ino: u64,
    /// Its device.
    pub sdev: Dev,
    /// IN_* bits.
    pub mask: u32,
    /// Type of the file handle (name_to_handle_at(2)), if the file system gives any.
    pub handle_type: u32,
    /// The file handle's bytes.
    pub handle: Vec<u8>,
}

/// fs/notify/fdinfo.c
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fanotify {
    /// FAN_ bits of fanotify_init(2).
    pub flags: u32,
    /// O_ flags of the files that events bring.
    pub event_flags: u32,
    /// Its marks, the newest first.
    pub marks: Vec<FanotifyMark>,
}

/// One of its marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyMark {
    /// What is watched.
    pub on: Marked,
    /// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE, FAN_MARK_IGNORE.
    pub flags: u32,
    /// FAN_ bits: events, FAN_EVENT_ON_CHILD, FAN_ONDIR.
    pub mask: u32,
    /// The same of what is ignored.
    pub ignored: u32,
}

/// What a mark is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// An inode.
    Inode {
        /// Its number.
        ino: u64,
        /// Its device.
        sdev: Dev,
        /// Type of the file handle (name_to_handle_at(2)), if the file system gives any.
        handle_type: u32,
        /// The file handle's bytes.
        handle: Vec<u8>,
    },
    /// A mount, by its id.
    Mount(u64),
    /// A file system, by its device.
    FileSystem(Dev),
    /// Something else: the whole line.
    Other(Vec<u8>),
}

/// fs/pidfs.c
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidFd {
    /// In the reader's namespace; -1 once the process is reaped, 0 if it is outside.
    pub pid: Pid,
    /// From the reader's namespace inwards.
    pub ns_pid: Vec<Pid>,
}

/// A kind of lock (fs/locks.c `lock_get_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// flock(2): belongs to the open file.
    Flock,
    /// F_SETLK: belongs to the process.
    Posix,
    /// F_OFD_SETLK: belongs to the open file.
    Ofd,
    /// F_SETLEASE.
    Lease,
    /// A delegation of a file server.
    Deleg,
    /// Another word.
    Other,
}

/// How a lock locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// A lease being broken down to nothing.
    Unlocked,
}

/// One `lock:` line, in the form of /proc/locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Whose it is.
    pub kind: LockKind,
    /// The second word: ADVISORY, MANDATORY, ACTIVE, BREAKING, BREAKER.
    pub class: Vec<u8>,
    /// Shared or exclusive.
    pub mode: LockMode,
    /// The holder; -1 for OFD locks.
    pub pid: Pid,
    /// File system of the file.
    pub dev: Dev,
    /// Its inode.
    pub ino: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; None is to the end of the file, however long.
    pub end: Option<u64>,
}

/// Parses the file.
pub fn parse(text: &[u8]) -> std::result::Result<FdInfo, ParseError> {
    let mut info = FdInfo::default();
    let mut seen_flags = false;
    for (number, line) in lines(text) {
        let fail = |what| ParseError::new(FILE, number, what, line);
        if let Some(rest) = line.strip_prefix(b"inotify ") {
            info.inotify.push(inotify(rest).ok_or_else(|| fail("unexpected inotify watch"))?);
        } else if let Some(rest) = line.strip_prefix(b"fanotify ") {
            let group = info.fanotify.get_or_insert_default();
            fanotify(group, rest).ok_or_else(|| fail("unexpected fanotify group or mark"))?;
        } else if let Some((key, value)) = split_at_byte(line, b':') {
            seen_flags |= key == b"flags";
            field(&mut info, key, value, line).ok_or_else(|| fail("unexpected value"))?;
        }
    }
    if seen_flags {
        Ok(info)
    } else {
        Err(ParseError::missing(FILE, "flags"))
    }
}

fn field(info: &mut FdInfo, key: &[u8], value: &[u8], line: &[u8]) -> Option<()> {
    let word = trim(value);
    match key {
        b"pos" => info.pos = int(word)?,
        b"flags" => info.flags = u32::try_from(oct(word)?).ok()?,
        b"mnt_id" => info.mnt_id = dec(word)?,
        b"ino" => info.ino = Some(dec(word)?),
        b"eventfd-count" => info.eventfd.get_or_insert_default().count = hex(word)?,
        b"eventfd-id" => info.eventfd.get_or_insert_default().id = Some(int32(word)?),
        b"eventfd-semaphore" => {
            info.eventfd.get_or_insert_default().semaphore = Some(dec(word)? != 0);
        }
        b"tfd" => info.epoll.push(epoll(line)?),
        b"sigmask" => info.sigmask = Some(hex(word)?),
        b"clockid" => info.timerfd.get_or_insert_default().clock_id = int32(word)?,
        b"ticks" => info.timerfd.get_or_insert_default().ticks = dec(word)?,
        b"settime flags" => {
            info.timerfd.get_or_insert_default().settime_flags = u32::try_from(oct(word)?).ok()?;
        }
        b"it_value" => info.timerfd.get_or_insert_default().value = pair(word)?,
        b"it_interval" => info.timerfd.get_or_insert_default().interval = pair(word)?,
        b"Pid" => info.pidfd.get_or_insert_default().pid = int32(word)?,
        b"NSpid" => {
            info.pidfd.get_or_insert_default().ns_pid = Words::new(word).map(int32).collect::<Option<_>>()?;
        }
        b"tty-index" => info.tty_index = Some(dec32(word)?),
        b"iff" => info.tun_iff = Some(word.to_vec()),
        b"lock" => info.locks.push(lock(word)?),
        b"scm_fds" => info.scm_fds = Some(dec32(word)?),
        _ => {
            info.io_uring |= matches!(key, b"SqMask" | b"SqHead" | b"SqThread");
            info.others.push((key.to_vec(), word.to_vec()));
        }
    }
    Some(())
}

/// `(seconds, nanoseconds)`
fn pair(text: &[u8]) -> Option<(u64, u64)> {
    let inner = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let (seconds, nanos) = split_at_byte(inner, b',')?;
    Some((dec(trim(seconds))?, dec(trim(nanos))?))
}

/// The word after `key` in text such as `tfd:        5 events:       19 pos:0`.
fn labelled<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = find(text, key)?;
    Words::new(&text[at + key.len()..]).next()
}

fn epoll(line: &[u8]) -> Option<EpollTarget> {
    let optional = |key: &[u8], radix: fn(&[u8]) -> Option<u64>| match labelled(line, key) {
        Some(word) => radix(word),
        None => Some(0), // pos, ino and sdev came with 4.13
    };
    Some(EpollTarget {
        tfd: int32(labelled(line, b"tfd:")?)?,
        events: hex32(labelled(line, b" events:")?)?,
        data: hex(labelled(line, b" data:")?)?,
        pos: labelled(line, b" pos:").map_or(Some(0), int)?,
        ino: optional(b" ino:", hex)?,
        sdev: Dev::from_kernel(u32::try_from(optional(b" sdev:", hex)?).ok()?),
    })
}

fn inotify(text: &[u8]) -> Option<InotifyWatch> {
    let mut watch = InotifyWatch {
        wd: hex32(labelled(text, b"wd:")?)? as i32,
        ino: hex(labelled(text, b" ino:")?)?,
        sdev: Dev::from_kernel(hex32(labelled(text, b" sdev:")?)?),
        mask: hex32(labelled(text, b" mask:")?)?,
        ..InotifyWatch::default()
    };
    (watch.handle_type, watch.handle) = handle(text)?;
    Some(watch)
}

/// Type and bytes of a file handle; of none 0 and nothing.
fn handle(text: &[u8]) -> Option<(u32, Vec<u8>)> {
    let Some(word) = labelled(text, b" fhandle-type:") else { return Some((0, Vec::new())) };
    let digits = labelled(text, b" f_handle:").unwrap_or_default();
    Some((hex32(word)?, digits.chunks(2).map(|c| u8::try_from(hex(c)?).ok()).collect::<Option<_>>()?))
}

/// `flags:10 event-flags:8000`, or a mark; one of a kind that is not known is kept as it is.
fn fanotify(group: &mut Fanotify, text: &[u8]) -> Option<()> {
    if let Some(word) = labelled(text, b"flags:").filter(|_| text.starts_with(b"flags:")) {
        (group.flags, group.event_flags) = (hex32(word)?, hex32(labelled(text, b" event-flags:")?)?);
        return Some(());
    }
    let on = if text.starts_with(b"ino:") {
        let (handle_type, handle) = handle(text)?;
        let sdev = Dev::from_kernel(hex32(labelled(text, b" sdev:")?)?);
        Marked::Inode { ino: hex(labelled(text, b"ino:")?)?, sdev, handle_type, handle }
    } else if text.starts_with(b"mnt_id:") {
        Marked::Mount(hex(labelled(text, b"mnt_id:")?)?)
    } else if text.starts_with(b"sdev:") {
        Marked::FileSystem(Dev::from_kernel(hex32(labelled(text, b"sdev:")?)?))
    } else {
        Marked::Other(text.to_vec())
    };
    let bits = |key: &[u8]| labelled(text, key).map_or(Some(0), hex32);
    let (flags, mask) = (bits(b" mflags:")?, bits(b" mask:")?);
    group.marks.push(FanotifyMark { on, flags, mask, ignored: bits(b" ignored_mask:")? });
    Some(())
}

/// `1: POSIX  ADVISORY  WRITE 123 00:2a:45 0 EOF`
fn lock(text: &[u8]) -> Option<Lock> {
    let mut words = Words::new(text);
    words.next()?; // the number, which means nothing
    let kind = match words.next()? {
        b"FLOCK" => LockKind::Flock,
        b"POSIX" | b"ACCESS" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"LEASE" => LockKind::Lease,
        b"DELEG" => LockKind::Deleg,
        _ => LockKind::Other,
    };
    let class = words.next()?.to_vec();
    let mode = match words.next()? {
        b"READ" => LockMode::Read,
        b"WRITE" => LockMode::Write,
        b"UNLCK" => LockMode::Unlocked,
        _ => return None,
    };
    let pid = int32(words.next()?)?;
    let place = words.next()?;
    let (dev, ino) = match place {
        b"<none>:0" => (Dev::default(), 0),
        _ => {
            let mut parts = place.split(|b| *b == b':');
            let dev = Dev { major: hex32(parts.next()?)?, minor: hex32(parts.next()?)? };
            (dev, dec(parts.next()?)?)
        }
    };
    let start = dec(words.next()?)?;
    let end = match words.next()? {
        b"EOF" => None,
        last => Some(dec(last)?),
    };
    Some(Lock { kind, class, mode, pid, dev, ino, start, end })
}

/// Locks that are held, of a text in the form of /proc/locks; waiters, marked by an arrow, are left out.
pub fn parse_locks(text: &[u8]) -> std::result::Result<Vec<Lock>, ParseError> {
    let held = |(_, line): &(usize, &[u8])| find(line, b"->").is_none();
    let one = |(number, line)| lock(line).ok_or_else(|| ParseError::new("locks", number, "unexpected lock", line));
    lines(text).filter(held).map(one).collect()
}

/// Reads /proc/locks: the locks of everyone whom this PID namespace shows.
pub fn all_locks() -> Result<Vec<Lock>> {
    read_with(std::path::Path::new("/proc/locks"), parse_locks)
}

/// Reads `/proc/PID/fdinfo/FD`.
pub fn read(pid: Pid, fd: i32) -> Result<FdInfo> {
    read_with(&path_of(pid, &format!("fdinfo/{fd}")), parse)
}
