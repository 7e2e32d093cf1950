use super::*;
use nix::sys::termios::{tcgetattr, tcsetattr, LocalFlags, SetArg, SpecialCharacterIndices as Key, Termios};

/// A pair whose ends do not block.
fn pair(change: impl FnOnce(&mut Termios)) -> (OwnedFd, OwnedFd) {
    let master = open_master().unwrap();
    lock(&master, false).unwrap();
    let slave = open_slave(&master).unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    let mut t = tcgetattr(&slave).unwrap();
    change(&mut t);
    tcsetattr(&slave, SetArg::TCSANOW, &t).unwrap();
    (master, slave)
}

fn type_in(master: &OwnedFd, text: &[u8]) {
    assert_eq!(nix::unistd::write(master, text).unwrap(), text.len());
    // what is on its way is there when it is polled, as long as nothing could be read; an echo, when that was
    let before = std::time::Instant::now();
    while before.elapsed() < std::time::Duration::from_millis(20) {
        std::thread::yield_now();
    }
}

/// All reads that an end gives.
fn reads(end: &OwnedFd) -> Vec<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    while let Ok(n) = nix::unistd::read(end, &mut buf) {
        all.push(buf[..n].to_vec());
        assert!(all.len() < 100, "{all:?}");
    }
    all
}

fn raw(t: &mut Termios) {
    nix::sys::termios::cfmakeraw(t);
}

fn words(v: &[&[u8]]) -> Vec<Vec<u8>> {
    v.iter().map(|w| w.to_vec()).collect()
}

/// Looked at twice, it says the same; what is read after that is what would have been; and so it is in another pair.
fn same(change: impl Fn(&mut Termios), typed: &[&[u8]], written: &[u8], expected: &[&[u8]], rest: &[u8]) {
    let (master, slave) = pair(&change);
    typed.iter().for_each(|t| type_in(&master, t));
    type_in(&slave, written);
    let before = tty::get(&slave).unwrap();
    let w = waiting(&master, Some(slave.as_fd())).unwrap();
    assert_eq!(w, waiting(&master, Some(slave.as_fd())).unwrap());
    assert_eq!(tty::get(&slave).unwrap(), before);
    assert_eq!((&w.lines[..], &w.rest[..]), (&words(expected)[..], rest));
    let (other_master, other) = pair(&change);
    put(&other_master, &other, &w).unwrap();
    for (master, slave) in [(&master, &slave), (&other_master, &other)] {
        let mut got = reads(slave);
        assert_eq!(before.termios, tty::get(slave).unwrap().termios);
        if !reads_lines(&before.termios) {
            got = vec![got.concat()];
            assert_eq!(got, words(&[rest]));
        } else {
            assert_eq!(got, words(expected));
            if !rest.is_empty() {
                type_in(master, b"!\n");
                assert_eq!(reads(slave), vec![[rest, b"!\n"].concat()]);
            }
        }
        let output = reads(master).concat();
        assert!(output.starts_with(&w.output), "{output:?} {:?}", w.output);
    }
}

#[test]
fn lines_and_a_part_of_one_stay_what_they_are() {
    same(|_| {}, &[b"one\ntwo\nthr"], b"said\n", &[b"one\n", b"two\n"], b"thr");
    same(|_| {}, &[b"part"], b"", &[], b"part");
    same(|_| {}, &[], b"x", &[], b"");
    // ended by VEOF, empty, and with quoted bytes that mean something
    same(
        |_| {},
        &[b"abc\x04\x04line\n", b"a\x16\nb\x16\x04c\x16\x16\n", b"q\x16\x04\x16\x03"],
        b"",
        &[b"abc", b"", b"line\n", b"a\nb\x04c\x16\n"],
        b"q\x04\x03",
    );
    let semicolon = |t: &mut Termios| {
        t.control_chars[Key::VEOL as usize] = b';';
        t.local_flags.remove(LocalFlags::ECHO);
    };
    same(semicolon, &[b"a;b\x16;c\nd;e\xff\0f"], b"", &[b"a;", b"b;c\n", b"d;"], b"e\xff\0f");
}

#[test]
fn without_lines_bytes_stay_and_mean_nothing() {
    same(raw, &[b"abc\r\n\x03\x04\x13\x11"], b"\x1b[0m\r\n", &[], b"abc\r\n\x03\x04\x13\x11");
    let cbreak = |t: &mut Termios| t.local_flags.remove(LocalFlags::ICANON);
    // echoed once, not twice
    same(cbreak, &[b"a\rb"], b"", &[], b"a\nb");
    let many = vec![b'm'; 4000];
    same(raw, &[&many], &many, &[], &many);
}

#[test]
fn as_much_output_as_it_holds_stays() {
    let (master, slave) = pair(raw);
    let mut n = 0;
    while let Ok(k) = nix::unistd::write(&slave, &[b'o'; 100]) {
        n += k;
    }
    for _ in 0..3 {
        assert_eq!(waiting(&master, Some(slave.as_fd())).unwrap().output.len(), n);
    }
    assert_eq!(reads(&master).concat().len(), n);
}

#[test]
fn what_stands_still_stands_still() {
    for by_key in [true, false] {
        let (master, slave) = pair(|_| {});
        type_in(&slave, b"before");
        match by_key {
            true => type_in(&master, b"\x13"),
            false => drop(ioctl(slave.as_fd(), libc::TCXONC, libc::TCOOFF).unwrap()),
        }
        let is = if by_key { Stopped::ByKey } else { Stopped::ByProgram };
        let w = waiting(&master, Some(slave.as_fd())).unwrap();
        assert_eq!((w.stopped, &w.output[..]), (is, &b"before"[..]));
        let (other_master, other) = pair(|_| {});
        put(&other_master, &other, &w).unwrap();
        for (master, slave) in [(&master, &slave), (&other_master, &other)] {
            assert!(nix::unistd::write(slave, b"x").is_err());
            match by_key {
                true => type_in(master, b"\x11"),
                false => drop(ioctl(slave.as_fd(), libc::TCXONC, libc::TCOON).unwrap()),
            }
            type_in(slave, b"after");
            assert_eq!(reads(master).concat(), b"beforeafter");
        }
    }
}

/// Killed in the middle of it at whatever instant, who looks has taken nothing away.
#[test]
fn the_death_of_who_looks_loses_nothing() {
    let (master, slave) = pair(|_| {});
    type_in(&master, b"one\ntwo\x04part");
    type_in(&slave, b"said\n");
    let (before, settings) = (waiting(&master, Some(slave.as_fd())).unwrap(), tty::get(&slave).unwrap());
    assert_eq!((before.lines.len(), before.rest.len(), before.output.len()), (2, 4, 18));
    for round in 0..200u32 {
        let (mut over, alive) = std::io::pipe().unwrap();
        let child = crate::probe::child::fork(|| loop {
            let _ = waiting(&master, Some(slave.as_fd()));
        });
        drop(alive);
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_micros(20 * u64::from(round)) {
            std::thread::yield_now();
        }
        drop(child.unwrap());
        // its own child has ended, too
        assert_eq!(std::io::Read::read(&mut over, &mut [0]).unwrap(), 0);
        assert_eq!(waiting(&master, Some(slave.as_fd())).unwrap(), before, "in round {round}");
        assert_eq!(tty::get(&slave).unwrap(), settings);
    }
}

#[test]
fn packet_mode_locks_and_exclusive_slaves_stay() {
    let (master, slave) = pair(raw);
    set_packets(&master, true).unwrap();
    lock(&master, true).unwrap();
    ioctl(slave.as_fd(), libc::TIOCEXCL, 0).unwrap();
    type_in(&slave, b"data");
    assert_eq!(waiting(&master, Some(slave.as_fd())).unwrap().output, b"data");
    assert!(in_packets(&master).unwrap() && is_locked(&master).unwrap() && is_exclusive(&slave).unwrap());
    assert_eq!(reads(&master), [b"\0data".to_vec()]);
}

#[test]
fn numbers_that_are_free_are_given() {
    let (first, second) = (open_master().unwrap(), open_master().unwrap());
    let free = number(&second).unwrap();
    drop(second);
    let got = masters(&[free, number(&first).unwrap()]).unwrap();
    assert_eq!(got.len(), 2);
    let is = |n: u32| got.iter().find(|g| g.0 == n).map(|g| number(&g.1).unwrap());
    // another test may have taken it, and then that is told by its number
    assert!(is(number(&first).unwrap()).is_some_and(|n| n != number(&first).unwrap()));
    assert!(is(free).is_some());
}
