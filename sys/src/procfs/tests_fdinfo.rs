//! fdinfo of every kind of file that this kernel has.

use super::fdinfo::{EpollTarget, EventFd, LockKind, LockMode, Marked};
use super::*;

#[test]
fn fdinfo_of_every_kind() {
    let event = fdinfo::parse(fixture!("fdinfo_eventfd")).unwrap();
    assert_eq!(event.eventfd, Some(EventFd { count: 5, id: Some(1), semaphore: Some(true) }));
    assert!(event.cloexec());
    assert_eq!((event.mnt_id, event.ino), (17, Some(1038)));

    let epoll = fdinfo::parse(fixture!("fdinfo_epoll")).unwrap().epoll;
    let first =
        EpollTarget { tfd: 6, events: 0x4000_001d, data: 6, pos: 0, ino: 0x40e, sdev: Dev { major: 0, minor: 16 } };
    assert_eq!((epoll.len(), epoll[0]), (2, first));

    let timer = fdinfo::parse(fixture!("fdinfo_timerfd")).unwrap().timerfd.unwrap();
    assert_eq!((timer.clock_id, timer.ticks, timer.interval), (1, 1, (0, 1_000_000)));

    let signals = fdinfo::parse(fixture!("fdinfo_signalfd")).unwrap();
    assert_eq!(signals.sigmask, Some(1 << 63 | 1 << 9));
    assert!(!signals.cloexec());

    let watches = fdinfo::parse(fixture!("fdinfo_inotify")).unwrap().inotify;
    assert_eq!((watches[1].wd, watches[1].ino, watches[1].mask), (1, 0x99_8020, 3));
    assert_eq!(watches[1].sdev, Dev { major: 254, minor: 0 });
    assert_eq!((watches[0].handle_type, watches[0].handle.len()), (0x81, 12));
    assert_eq!(watches[1].handle, [0x20, 0x80, 0x99, 0, 0xfc, 0x3d, 0x61, 0x0a]);

    let group = fdinfo::parse(fixture!("fdinfo_fanotify")).unwrap().fanotify.unwrap();
    assert_eq!((group.flags, group.event_flags, group.marks.len()), (0x10, 0x8000, 1));
    assert_eq!((group.marks[0].flags, group.marks[0].mask, group.marks[0].ignored), (0, 0x20, 0));
    let lines = b"flags:\t02\nfanotify flags:5e02 event-flags:88002\nfanotify sdev:1b mflags:0 mask:0 ignored_mask:20\n\
        fanotify mnt_id:1b mflags:440 mask:8000028 ignored_mask:1\nfanotify mnt_ns:4026531832 mflags:0 mask:3000000 ignored_mask:0\n";
    let group = fdinfo::parse(lines).unwrap().fanotify.unwrap();
    let on: Vec<_> = group.marks.iter().map(|m| &m.on).collect();
    assert_eq!(on[..2], [&Marked::FileSystem(Dev { major: 0, minor: 27 }), &Marked::Mount(27)]);
    assert!(matches!(on[2], Marked::Other(line) if line.starts_with(b"mnt_ns:4026531832")), "{on:?}");
    assert_eq!((group.flags, group.marks[1].flags, group.marks[1].mask), (0x5e02, 0x440, 0x800_0028));
    let pidfd = fdinfo::parse(fixture!("fdinfo_pidfd")).unwrap().pidfd.unwrap();
    assert_eq!((pidfd.pid, pidfd.ns_pid), (15235, vec![15235]));
    assert!(fdinfo::parse(fixture!("fdinfo_io_uring")).unwrap().io_uring);
    assert_eq!(fdinfo::parse(fixture!("fdinfo_ptmx")).unwrap().tty_index, Some(0));
    assert_eq!(fdinfo::parse(fixture!("fdinfo_pts")).unwrap().tty_index, None);
    assert_eq!(fdinfo::parse(fixture!("fdinfo_unix")).unwrap().scm_fds, Some(2));
    assert_eq!(fdinfo::parse(fixture!("fdinfo_tun")).unwrap().tun_iff.unwrap(), b"dmtun0");
    let uffd = fdinfo::parse(fixture!("fdinfo_userfaultfd")).unwrap();
    assert!(uffd.others.contains(&(b"pending".to_vec(), b"0".to_vec())));
}

#[test]
fn fdinfo_locks() {
    let info = fdinfo::parse(fixture!("fdinfo_locks")).unwrap();
    assert_eq!((info.pos, info.flags), (5, 0o2_102_002));
    let kinds: Vec<_> = info.locks.iter().map(|l| (l.kind, l.mode, l.pid)).collect();
    assert_eq!(
        kinds,
        [
            (LockKind::Flock, LockMode::Write, 15235),
            (LockKind::Posix, LockMode::Write, 15235),
            (LockKind::Ofd, LockMode::Read, -1),
        ]
    );
    let posix = &info.locks[1];
    assert_eq!((posix.start, posix.end, posix.ino), (100, Some(109), 10_059_846));
    assert_eq!((posix.dev, info.locks[2].end), (Dev { major: 254, minor: 0 }, None));
    let lease = &fdinfo::parse(fixture!("fdinfo_lease")).unwrap().locks[0];
    assert_eq!((lease.kind, lease.class.as_slice()), (LockKind::Lease, b"ACTIVE".as_slice()));
    let error = fdinfo::parse(b"pos:\t0\nflags:\t09\n").unwrap_err();
    assert_eq!((error.line, error.what.as_str()), (2, "unexpected value: \"flags:\\t09\""));
    assert!(fdinfo::parse(b"pos:\t0\n").is_err());
}
