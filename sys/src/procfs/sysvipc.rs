//! `/proc/sysvipc`: segments of System V shared memory, sets of semaphores, message queues (proc(5); `sysvipc_shm_proc_show` and kin in ipc/).

use super::bytes::{dec, int32, lines, oct, Words};
use super::{read_with, ParseError, Result};

const FILE: &str = "sysvipc/shm";
const SEM: &str = "sysvipc/sem";
const MSG: &str = "sysvipc/msg";
/// SHM_DEST: it goes when nobody is attached any more.
const DEST: u64 = 0o1000;

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shm {
    /// Key of shmget(2); 0: IPC_PRIVATE.
    pub key: i32,
    /// shmid; the inode of its mappings.
    pub id: i32,
    /// Permissions.
    pub mode: u32,
    /// It goes when nobody is attached any more (IPC_RMID).
    pub ends: bool,
    /// Bytes.
    pub size: u64,
    /// Mappings of it, of all processes.
    pub attached: u64,
    /// Bytes of it that are there, be they mapped or not.
    pub resident: u64,
}

/// What sets and queues have in common (`struct ipc_perm`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Perm {
    /// Key; 0: IPC_PRIVATE.
    pub key: i32,
    /// semid, msqid.
    pub id: i32,
    /// Permissions.
    pub mode: u32,
    /// User and group of the owner.
    pub owner: (u32, u32),
    /// Of who made it.
    pub creator: (u32, u32),
}

/// A set of semaphores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sem {
    /// Number, key, permissions.
    pub perm: Perm,
    /// How many.
    pub count: u32,
    /// Time of the last operation, seconds since 1970; 0: none.
    pub used: u64,
    /// When it was made, or a value was set.
    pub changed: u64,
}

/// A message queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Msg {
    /// Number, key, permissions.
    pub perm: Perm,
    /// Bytes that wait.
    pub bytes: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Who sent the last one, as this PID namespace numbers it; 0: nobody, or one outside.
    pub sender: i32,
    /// Who received the last one.
    pub receiver: i32,
    /// When the last one was sent, seconds since 1970; 0: never.
    pub sent: u64,
    /// When the last one was received.
    pub received: u64,
    /// When it was made, or its permissions were set.
    pub changed: u64,
}

fn owners<'a>(words: &mut impl Iterator<Item = &'a [u8]>) -> Option<[(u32, u32); 2]> {
    let mut id = || words.next().and_then(|w| u32::try_from(dec(w)?).ok());
    Some([(id()?, id()?), (id()?, id()?)])
}

fn sem_line(line: &[u8]) -> Option<Sem> {
    let mut words = Words::new(line);
    let (key, id) = (int32(words.next()?)?, int32(words.next()?)?);
    let mode = oct(words.next()?)? as u32;
    let count = u32::try_from(dec(words.next()?)?).ok()?;
    let [owner, creator] = owners(&mut words)?;
    let (used, changed) = (dec(words.next()?)?, dec(words.next()?)?);
    Some(Sem { perm: Perm { key, id, mode: mode & 0o777, owner, creator }, count, used, changed })
}

fn msg_line(line: &[u8]) -> Option<Msg> {
    let mut words = Words::new(line);
    let (key, id) = (int32(words.next()?)?, int32(words.next()?)?);
    let mode = oct(words.next()?)? as u32;
    let (bytes, messages) = (dec(words.next()?)?, dec(words.next()?)?);
    let (sender, receiver) = (int32(words.next()?)?, int32(words.next()?)?);
    let [owner, creator] = owners(&mut words)?;
    let (sent, received, changed) = (dec(words.next()?)?, dec(words.next()?)?, dec(words.next()?)?);
    let perm = Perm { key, id, mode: mode & 0o777, owner, creator };
    Some(Msg { perm, bytes, messages, sender, receiver, sent, received, changed })
}

/// Parses the list of sets of semaphores.
pub fn parse_sem(text: &[u8]) -> std::result::Result<Vec<Sem>, ParseError> {
    let one = |(number, line)| sem_line(line).ok_or_else(|| ParseError::new(SEM, number, "unexpected set", line));
    lines(text).skip(1).map(one).collect()
}

/// Parses the list of message queues.
pub fn parse_msg(text: &[u8]) -> std::result::Result<Vec<Msg>, ParseError> {
    let one = |(number, line)| msg_line(line).ok_or_else(|| ParseError::new(MSG, number, "unexpected queue", line));
    lines(text).skip(1).map(one).collect()
}

/// The sets of semaphores of this IPC namespace.
pub fn sem() -> Result<Vec<Sem>> {
    read_with(std::path::Path::new("/proc/sysvipc/sem"), parse_sem)
}

/// The message queues of this IPC namespace.
pub fn msg() -> Result<Vec<Msg>> {
    read_with(std::path::Path::new("/proc/sysvipc/msg"), parse_msg)
}

fn parse_line(line: &[u8]) -> Option<Shm> {
    let mut words = Words::new(line);
    let (key, id) = (int32(words.next()?)?, int32(words.next()?)?);
    let perms = oct(words.next()?)?;
    let size = dec(words.next()?)?;
    let attached = words.nth(2).and_then(dec)?;
    let resident = words.nth(7).and_then(dec)?;
    Some(Shm { key, id, mode: (perms & 0o777) as u32, ends: perms & DEST != 0, size, attached, resident })
}

/// Parses the list.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Shm>, ParseError> {
    let one =
        |(number, line)| parse_line(line).ok_or_else(|| ParseError::new(FILE, number, "unexpected segment", line));
    lines(text).skip(1).map(one).collect()
}

/// The segments of this IPC namespace.
pub fn shm() -> Result<Vec<Shm>> {
    read_with(std::path::Path::new("/proc/sysvipc/shm"), parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read() {
        let text = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n         0          3  1600                  8192   811   811      2  1000  1000  1000  1000 1700000000          0 1700000000                  4096                     0\n-559038737          4   640                   100   811     0      0     0     0     0     0          0          0 1700000000                     0                     0\n";
        let a = Shm { key: 0, id: 3, mode: 0o600, ends: true, size: 8192, attached: 2, resident: 4096 };
        let b = Shm { key: -559038737, id: 4, mode: 0o640, ends: false, size: 100, attached: 0, resident: 0 };
        assert_eq!(parse(text).unwrap(), [a, b]);
        assert!(parse(b"key\n1 2 x").is_err());
        assert!(shm().is_ok());
    }

    #[test]
    fn sets_and_queues_are_read() {
        let text = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n1234567890    2654221   600          3  1000  1001     2     3 1700000001 1700000000\n";
        let perm = Perm { key: 1234567890, id: 2654221, mode: 0o600, owner: (1000, 1001), creator: (2, 3) };
        let set = Sem { perm, count: 3, used: 1700000001, changed: 1700000000 };
        assert_eq!(parse_sem(text).unwrap(), [set]);
        let text = b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n        -1          7  1644          10          2    11    12     1     2     3     4          5          6          8\n";
        let perm = Perm { key: -1, id: 7, mode: 0o644, owner: (1, 2), creator: (3, 4) };
        let (bytes, messages, sender, receiver) = (10, 2, 11, 12);
        let queue = Msg { perm, bytes, messages, sender, receiver, sent: 5, received: 6, changed: 8 };
        assert_eq!(parse_msg(text).unwrap(), [queue]);
        assert!(parse_sem(b"key\n1 2 x").is_err() && parse_msg(b"key\n1 2 x").is_err());
        assert!(sem().is_ok() && msg().is_ok());
    }
}
