//! The kernel's anonymous inodes whose whole state fdinfo tells: eventfd, timerfd, signalfd, epoll.
use super::{encode, Object};
use crate::capture::{FileView, Observer};
use crate::restore::files::{self, Made, Maker, Remake};
use crate::restore::Step;
use crate::{Reason, Result};
use image::v1::anon;
use image::v1::files::OpenFile;
use image::v1::objects::Kind;
use sys::program::{Arg::Imm, Program};

/// eventfd(2).
pub struct EventFd;
/// timerfd_create(2).
pub struct TimerFd;
/// signalfd(2).
pub struct SignalFd;
/// epoll(7).
pub struct Epoll;

fn is(f: &FileView, name: &[u8]) -> bool {
    f.link.strip_prefix(b"anon_inode:[").and_then(|l| l.strip_suffix(b"]")) == Some(name)
}

impl Object for EventFd {
    fn kind(&self) -> Kind {
        Kind::EventFd
    }

    fn claims(&self, f: &FileView) -> bool {
        is(f, b"eventfd") && f.held.is_none()
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let e = f.info.eventfd.as_ref();
        let semaphore = e.and_then(|e| e.semaphore).unwrap_or(false);
        Ok(encode(&anon::EventFd { count: e.map_or(0, |e| e.count), semaphore }))
    }
}

impl Object for TimerFd {
    fn kind(&self) -> Kind {
        Kind::TimerFd
    }

    fn claims(&self, f: &FileView) -> bool {
        is(f, b"timerfd")
    }

    fn capture(&self, f: &FileView, o: &mut Observer<'_>) -> Result<Vec<u8>> {
        // asked first: it counts the ticks that have come meanwhile
        let fd = o.descriptor(f.first_fd())?;
        let (value, interval) = sys::fdstate::timerfd(&fd).map_err(|e| o.explain(e.into()))?;
        let info = sys::procfs::fdinfo::read(o.survey.pid, f.first_fd()).map_err(|e| o.explain(e.into()))?;
        let Some(t) = info.timerfd else { return Ok(encode(&anon::TimerFd::default())) };
        let dated = matches!(t.clock_id, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        let absolute = t.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Ok(encode(&anon::TimerFd {
            clock: t.clock_id,
            settime_flags: t.settime_flags,
            ticks: t.ticks,
            value_ns: value,
            interval_ns: interval,
            date_ns: if dated && absolute && value > 0 { now + value } else { 0 },
        }))
    }
}

impl Object for SignalFd {
    fn kind(&self) -> Kind {
        Kind::SignalFd
    }

    fn claims(&self, f: &FileView) -> bool {
        is(f, b"signalfd")
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        Ok(encode(&anon::SignalFd { mask: f.info.sigmask.unwrap_or(0) }))
    }
}

impl Object for Epoll {
    fn kind(&self) -> Kind {
        Kind::Epoll
    }

    fn claims(&self, f: &FileView) -> bool {
        is(f, b"eventpoll")
    }

    fn inspect(&self, f: &FileView, _all: &[FileView], _pid: i32) -> Vec<Reason> {
        let lost = f.info.epoll.iter().zip(&f.watched).filter(|(_, now)| now.is_none());
        let say = |(t, _): (&sys::procfs::fdinfo::EpollTarget, &Option<i32>)| {
            let why = format!(
                "it watches an open file, once added as descriptor {}, that only another process still holds",
                t.tfd
            );
            Reason::new(f.describe(), why, "remove it from the set (EPOLL_CTL_DEL) before closing it")
        };
        lost.map(say).collect()
    }

    fn capture(&self, f: &FileView, _o: &mut Observer<'_>) -> Result<Vec<u8>> {
        let entry = |(t, now): (&sys::procfs::fdinfo::EpollTarget, &Option<i32>)| anon::EpollTarget {
            tfd: t.tfd,
            fd: now.unwrap_or(t.tfd),
            events: t.events,
            data: t.data,
        };
        Ok(encode(&anon::Epoll { targets: f.info.epoll.iter().zip(&f.watched).map(entry).collect() }))
    }
}

const NANO: u64 = 1_000_000_000;
/// `_IOW('T', 0, __u64)`, linux/timerfd.h
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
const EFD_SEMAPHORE: u64 = 1;
/// EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: what is left of a one-shot that has fired.
const PRIVATE_BITS: u32 = 0xf << 28;

impl Remake for EventFd {
    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let e: anon::EventFd = files::decode(f)?;
        let mut p = Program::new();
        let fd = p.call(libc::SYS_eventfd2, &[Imm(0), Imm(if e.semaphore { EFD_SEMAPHORE } else { 0 })]);
        if e.count > 0 {
            let count = p.bytes(&e.count.to_le_bytes());
            p.call(libc::SYS_write, &[fd.arg(), count, Imm(8)]);
        }
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }
}

impl Remake for SignalFd {
    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let s: anon::SignalFd = files::decode(f)?;
        let mut p = Program::new();
        let mask = p.bytes(&s.mask.to_le_bytes());
        let fd = p.call(libc::SYS_signalfd4, &[(-1).into(), mask, Imm(8), Imm(0)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }
}

impl Remake for TimerFd {
    fn make(&self, m: &mut Maker<'_>, _id: u32, f: &OpenFile) -> Step<Made> {
        let t: anon::TimerFd = files::decode(f)?;
        let mut p = Program::new();
        let fd = p.call(libc::SYS_timerfd_create, &[t.clock.into(), Imm(0)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    /// Armed late, so that little of its time passes before the program runs.
    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let t: anon::TimerFd = files::decode(f)?;
        let Some(fd) = m.fds(id).first().copied() else { return Ok(()) };
        let mut p = Program::new();
        if t.value_ns > 0 || t.interval_ns > 0 {
            let absolute = t.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
            let at = match (absolute, t.date_ns) {
                (true, 0) => clock_ns(m, t.clock)? + t.value_ns,
                (true, date) => date,
                (false, _) => t.value_ns,
            };
            let spec = [t.interval_ns / NANO, t.interval_ns % NANO, at / NANO, at % NANO];
            let spec = p.bytes(&spec.map(u64::to_le_bytes).concat());
            p.call(libc::SYS_timerfd_settime, &[fd.into(), Imm(t.settime_flags as u64), spec, Imm(0)]);
        }
        if t.ticks > 0 {
            let ticks = p.bytes(&t.ticks.to_le_bytes());
            p.call(libc::SYS_ioctl, &[fd.into(), Imm(TFD_IOC_SET_TICKS), ticks]);
        }
        m.run(&p).map(drop)
    }
}

/// A clock of the program's, which may have a time namespace of its own.
fn clock_ns(m: &mut Maker<'_>, clock: i32) -> Step<u64> {
    // the same time, which those cannot be asked for where there is no RTC
    let clock = match clock {
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        c => c,
    };
    let mut p = Program::new();
    let t = p.out(16);
    p.call(libc::SYS_clock_gettime, &[clock.into(), t.arg()]);
    let r = m.run(&p)?;
    Ok(r.u64(t, 0) * NANO + r.u64(t, 8))
}

impl Remake for Epoll {
    fn make(&self, m: &mut Maker<'_>, _id: u32, _f: &OpenFile) -> Step<Made> {
        let mut p = Program::new();
        let fd = p.call(libc::SYS_epoll_create1, &[Imm(0)]);
        let r = m.run(&p)?;
        m.take(r.get(fd))
    }

    fn finish(&self, m: &mut Maker<'_>, id: u32, f: &OpenFile) -> Step<()> {
        let e: anon::Epoll = files::decode(f)?;
        let Some(efd) = m.fds(id).first().copied() else { return Ok(()) };
        // one-shots that have fired come first: they fire once more here, where nothing else is in the set yet
        let fired = |t: &&anon::EpollTarget| t.events & !PRIVATE_BITS == 0 && t.events & libc::EPOLLONESHOT as u32 != 0;
        let ordered = e.targets.iter().filter(fired).chain(e.targets.iter().filter(|t| !fired(t)));
        for t in ordered {
            if m.is_closed(t.fd) {
                m.notes.push(format!("{} no longer watches descriptor {}, which is closed", m.describe(id, f), t.fd));
                continue;
            }
            let mut p = Program::new();
            let again =
                if fired(&t) { (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32 } else { 0 };
            let mut event = (t.events | again).to_le_bytes().to_vec();
            event.extend_from_slice(&t.data.to_le_bytes());
            let event = p.bytes(&event);
            let add = [efd.into(), Imm(libc::EPOLL_CTL_ADD as u64), t.tfd.into(), event];
            if t.tfd == t.fd {
                p.call(libc::SYS_epoll_ctl, &add);
            } else {
                // added under a number that it has no more: it gets that number for a moment
                let occupant = m.image.files.fds.iter().find(|d| d.fd == t.tfd);
                let dup = Imm(libc::F_DUPFD_CLOEXEC as u64);
                let saved = occupant.map(|_| p.call(libc::SYS_fcntl, &[t.tfd.into(), dup, m.temp_base().into()]));
                p.call(libc::SYS_dup3, &[t.fd.into(), t.tfd.into(), Imm(0)]);
                p.call(libc::SYS_epoll_ctl, &add);
                match (saved, occupant) {
                    (Some(saved), Some(d)) => {
                        let flag = if d.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
                        p.call(libc::SYS_dup3, &[saved.arg(), t.tfd.into(), Imm(flag)]);
                        p.call(libc::SYS_close, &[saved.arg()]);
                    }
                    _ => {
                        p.call(libc::SYS_close, &[t.tfd.into()]);
                    }
                }
            }
            if again != 0 {
                let out = p.out(16);
                p.may(libc::SYS_epoll_wait, &[efd.into(), out.arg(), Imm(1), Imm(0)]);
            }
            match m.run(&p) {
                // a regular file in its place cannot be watched
                Err(_) if t.tfd == t.fd && m.is_external(t.fd) => {
                    m.notes.push(format!(
                        "{} no longer watches descriptor {}: what is there now cannot be watched",
                        m.describe(id, f),
                        t.fd
                    ));
                }
                r => drop(r?),
            }
        }
        Ok(())
    }
}
