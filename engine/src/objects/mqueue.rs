//! POSIX message queues (mq_overview(7)). A queue outlives its users, as a named file does, and nobody can look at its messages without taking them:
//! it stays the kernel's, and a restore opens it again. One that is gone by then (a reboot) is made anew if it was empty.
use super::{encode, Object};
use crate::capture::{Fault, FileView, Observer};
use crate::restore::files::{self, Checker, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::files::OpenFile;
use image::v1::mqueue as v1;
use image::v1::objects::Kind;
use std::os::unix::fs::FileExt;
use sys::program::{Arg::Imm, Program};

/// An open message queue.
pub struct Mqueue;

impl Object for Mqueue {
    fn kind(&self) -> Kind {
        Kind::Mqueue
    }

    /// Its name is of one part, in a file system that is nowhere mounted, but for queues.
    fn claims(&self, f: &FileView) -> bool {
        let regular = f.stat.as_ref().is_some_and(|s| s.mode & libc::S_IFMT == libc::S_IFREG);
        let one = f.link.strip_prefix(b"/").is_some_and(|n| !n.is_empty() && !n.contains(&b'/'));
        let mounts = || sys::procfs::mountinfo::read(std::process::id() as i32);
        let dev = f.stat.as_ref().map(|s| s.dev);
        let hidden = || mounts().is_ok_and(|all| all.iter().all(|m| Some(m.dev) != dev || m.fs_type == b"mqueue"));
        regular && one && !f.is_memfd() && hidden()
    }

    fn inspect(&self, f: &FileView, all: &[FileView], pid: i32) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut say = |why: &str, remedy: &str| reasons.push(Reason::new(f.describe(), why, remedy));
        let file = std::fs::File::open(sys::procfs::path(pid, &format!("fd/{}", f.first_fd())));
        let Some(file) = file.ok().filter(|q| sys::mqueue::queue(q).is_ok()) else {
            say("this kind of file is not kept yet", "close it before the checkpoint");
            return reasons;
        };
        if f.deleted {
            say(
                "it is a message queue that was unlinked, and its messages nobody can see",
                "unlink it later (mq_unlink)",
            );
        }
        // ipc/mqueue.c, mqueue_read_file
        let mut text = [0; 256];
        let n = file.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        let notified = text.split_ascii_whitespace().find_map(|w| w.strip_prefix("NOTIFY_PID:")?.parse::<i32>().ok());
        if notified.is_some_and(|n| n == pid || all.iter().any(|v| v.pid == n)) {
            let why =
                "the program is to be notified of a message (mq_notify), with a value that the kernel does not tell";
            say(why, "let it take that back first (mq_notify with NULL)");
        }
        reasons
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let q = sys::mqueue::queue(&o.descriptor(f.first_fd())?).map_err(|e| o.explain(Fault::from(e)))?;
        let name = f.link.strip_prefix(b"/").unwrap_or_default().to_vec().into();
        let mode = f.stat.as_ref().map_or(0, |s| s.mode);
        Ok(encode(&v1::Mqueue { name, most: q.most, size: q.size, waiting: q.waiting, mode }))
    }
}

impl Remake for Mqueue {
    fn check(&self, c: &Checker<'_>, f: &OpenFile) -> Vec<Reason> {
        let Ok(q) = files::decode::<v1::Mqueue>(f) else { return Vec::new() };
        let reason = |why: String, remedy: &str| vec![Reason::new(c.describe(f), why, remedy)];
        match sys::mqueue::open(&q.name, f.flags as i32).and_then(|fd| sys::mqueue::queue(&fd)) {
            Ok(now) if (now.most, now.size) == (q.most, q.size) => Vec::new(),
            Ok(now) => {
                let why = format!(
                    "the queue is for {} messages of {} bytes here, and was for {} of {}",
                    now.most, now.size, q.most, q.size
                );
                reason(why, "remove it (rm in /dev/mqueue, mq_unlink), or make it as it was")
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && q.waiting == 0 => Vec::new(),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let why = format!("the queue is not there any more, and {} messages were in it", q.waiting);
                reason(why, "make the queue and its messages again")
            }
            Err(e) => reason(format!("the queue cannot be opened: {e}"), "restore as its owner or as root"),
        }
    }

    fn make(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<Made> {
        let q: v1::Mqueue = files::decode(f)?;
        let how = Imm(f.flags as u64 & (libc::O_ACCMODE | libc::O_NONBLOCK) as u64 | libc::O_CLOEXEC as u64);
        let mut p = Program::new();
        let name = p.cstr(&q.name);
        let there = p.may(libc::SYS_mq_open, &[name, how, Imm(0), Imm(0)]);
        let r = m.run(&p)?;
        if r.raw(there) != -i64::from(libc::ENOENT) {
            return m.take(r.get(there));
        }
        m.notes.push(format!("{}: the queue was gone, and is made again, empty as it was", m.describe(id, f)));
        let mut p = Program::new();
        let name = p.cstr(&q.name);
        let attr: Vec<u8> = [0, q.most, q.size, 0, 0, 0, 0, 0].into_iter().flat_map(i64::to_le_bytes).collect();
        let attr = p.bytes(&attr);
        let Imm(how) = how else { unreachable!("it is a value") };
        let mode = Imm((q.mode & 0o7777) as u64);
        let made = p.call(libc::SYS_mq_open, &[name, Imm(how | libc::O_CREAT as u64), mode, attr]);
        p.call(libc::SYS_fchmod, &[made.arg(), mode]);
        let r = m.run(&p)?;
        m.take(r.get(made))
    }
}
