//! What a ring tells of itself in fdinfo (io_uring/fdinfo.c).
use crate::procfs::{read_with, ParseError, Pid};

/// What its fdinfo says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Entries of the submission and the completion queue.
    pub entries: (u32, u32),
    /// The kernel's head of the submission queue, and the program's tail.
    pub sq: (u32, u32),
    /// The program's head of the completion queue, and the kernel's tail.
    pub cq: (u32, u32),
    /// TID of the kernel's thread that submits (IORING_SETUP_SQPOLL).
    pub thread: Option<i32>,
    /// The CPU on which it is, or was.
    pub cpu: Option<u32>,
    /// Places for registered files.
    pub places: u32,
    /// What is in those that are not empty: the place, and the file's path as /proc has it ("socket:[12]").
    pub files: Vec<(u32, Vec<u8>)>,
    /// Registered buffers: address and bytes; zeros: an empty place.
    pub buffers: Vec<(u64, u64)>,
    /// Requests that wait for a descriptor to become ready.
    pub polls: usize,
    /// Completions that had no room.
    pub overflow: usize,
    /// Registered credentials.
    pub personalities: usize,
    /// It polls network devices.
    pub napi: bool,
    /// Indices of entries between head and tail of the submission queue, as far as they are shown.
    pub submitted: Vec<u32>,
    /// Those entries have 128 bytes (IORING_SETUP_SQE128).
    pub wide_sqes: bool,
    /// Entries of the completion queue have 32 bytes (IORING_SETUP_CQE32); only told where some wait to be read.
    pub wide_cqes: bool,
}

/// Parses fdinfo; None: nothing of a ring is there (another thread was at it).
fn parse(text: &str) -> Option<Told> {
    let (mut told, mut section) = (Told::default(), "");
    let mut seen = 0;
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        // from 10,000 on their numbers leave no room for a space
        let number = line.trim().split(':').next().and_then(|n| n.parse::<u32>().ok());
        if line.starts_with(' ') || number.is_some() {
            match section {
                "SQEs" => {
                    told.submitted.extend(number);
                    told.wide_sqes |= line.contains(" e0:");
                }
                "CQEs" => told.wide_cqes |= line.contains("extra1:"),
                "UserFiles" => told.files.extend(file(line)?),
                "UserBufs" => told.buffers.push(buffer(line)?),
                "PollList" => told.polls += 1,
                "CqOverflowList" => told.overflow += 1,
                "Personalities" => told.personalities += 1,
                _ => {}
            }
            continue;
        }
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        let number = || value.parse::<u32>();
        section = key;
        seen += 1;
        match key {
            "SqMask" => told.entries.0 = u32::from_str_radix(value.trim_start_matches("0x"), 16).ok()?.wrapping_add(1),
            "CqMask" => told.entries.1 = u32::from_str_radix(value.trim_start_matches("0x"), 16).ok()?.wrapping_add(1),
            "CachedSqHead" => told.sq.0 = number().ok()?,
            "SqTail" => told.sq.1 = number().ok()?,
            "CqHead" => told.cq.0 = number().ok()?,
            "CachedCqTail" => told.cq.1 = number().ok()?,
            "SqThread" => told.thread = value.parse().ok().filter(|n| *n >= 0),
            "SqThreadCpu" => told.cpu = value.parse().ok(),
            "UserFiles" => told.places = number().ok()?,
            "NAPI" => told.napi = value != "disabled",
            _ => seen -= 1,
        }
    }
    (seen >= 8 && told.entries.0 > 0 && told.entries.1 > 0).then_some(told)
}

/// "    0: socket:[12]", or (kernels before 6.13) "    1: <none>"
fn file(line: &str) -> Option<Option<(u32, Vec<u8>)>> {
    let (place, path) = line.trim_start().split_once(": ")?;
    let place = place.parse().ok()?;
    Some((path != "<none>").then(|| (place, path.into())))
}

/// "    0: 0x7f31172e2000/8192" or "    1: <none>"
fn buffer(line: &str) -> Option<(u64, u64)> {
    let (_, what) = line.split_once(':')?;
    match what.trim() {
        "<none>" => Some((0, 0)),
        what => {
            let (at, len) = what.strip_prefix("0x")?.split_once('/')?;
            Some((u64::from_str_radix(at, 16).ok()?, len.parse().ok()?))
        }
    }
}

/// What descriptor `fd` of a process says; None: the kernel does not tell just now.
pub fn told(pid: Pid, fd: i32) -> crate::procfs::Result<Option<Told>> {
    let path = crate::procfs::path_of(pid, &format!("fdinfo/{fd}"));
    read_with(std::path::Path::new(&path), |text| Ok::<_, ParseError>(parse(&String::from_utf8_lossy(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t94544379\nSqMask:\t0x7\nSqHead:\t3\nSqTail:\t5\nCachedSqHead:\t4\nCqMask:\t0xf\nCqHead:\t1\nCqTail:\t2\n\
CachedCqTail:\t3\nSQEs:\t2\n    0: opcode:NOP, fd:0, flags:0, off:0, user_data:0, e0:0x0\n    7: opcode:NOP, fd:0\nCQEs:\t1\n    0: user_data:77, res:0, flag:0\n\
SqThread:\t-1\nSqThreadCpu:\t-1\nUserFiles:\t10001\n    0: /dev/null\n    1: <none>\n10000: socket:[7]\nUserBufs:\t2\n    0: 0x7f31172e2000/8192\n10000: <none>\nPollList:\n  op=6, task_works=0\n\
CqOverflowList:\n  user_data=0, res=1, flags=0\nNAPI:\tdisabled\n";

    #[test]
    fn what_fdinfo_tells() {
        let t = parse(TEXT).unwrap();
        assert_eq!((t.entries, t.sq, t.cq), ((8, 16), (4, 5), (1, 3)));
        assert_eq!((t.thread, t.places, t.polls, t.overflow, t.personalities, t.napi), (None, 10001, 1, 1, 0, false));
        assert_eq!((t.buffers, t.submitted), (vec![(0x7f31172e2000, 8192), (0, 0)], vec![0, 7]));
        assert_eq!(t.files, [(0, b"/dev/null".to_vec()), (10000, b"socket:[7]".to_vec())]);
        assert!(t.wide_sqes && !t.wide_cqes);
        assert_eq!(parse("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(parse(&TEXT.replace("SqThread:\t-1", "SqThread:\t12")).unwrap().thread, Some(12));
    }
}
