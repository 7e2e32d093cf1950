//! The blob is position-independent: it serves at two addresses that have nothing in common, and runs programs there.
use dormouse_sys::channel::Channel;
use dormouse_sys::inject::Layout;
use dormouse_sys::nest;
use dormouse_sys::program::Program;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Serves at `base`: says who it is, copies bytes through a pipe, and ends when the conversation does.
fn serves_at(base: u64) -> Result<(), Box<dyn std::error::Error>> {
    let (ours, theirs) = UnixStream::pair()?;
    let fd = theirs.as_raw_fd();
    let pid = nest::first_child(&Layout::new(0, 0).at(base), fd, (fd, fd), 0, 0)?;
    drop(theirs);
    let mut c = Channel::new(ours, pid);
    let hello = c.ask(wire::OP_HELLO, &[])?;
    let word = |i: usize| u32::from_le_bytes([hello[i], hello[i + 1], hello[i + 2], hello[i + 3]]);
    assert_eq!(word(0), wire::WIRE_VERSION as u32, "version at {base:#x}");
    assert_eq!(word(12) as i32, pid, "PID at {base:#x}");

    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    assert!(maps.contains(&format!("{base:x}-")), "no mapping at {base:#x}:\n{maps}");

    let mut p = Program::new();
    let ends = p.out(8);
    p.call(libc::SYS_pipe2, &[ends.arg(), 0.into()]);
    let r = c.run_all(&p)?;
    let (read, write) = (r.u32(ends, 0) as i32, r.u32(ends, 4) as i32);
    let mut p = Program::new();
    let text = p.bytes(b"dormouse");
    let back = p.out(8);
    p.call(libc::SYS_write, &[write.into(), text, 8.into()]);
    p.call(libc::SYS_read, &[read.into(), back.arg(), 8.into()]);
    let bad = p.may(libc::SYS_close, &[(-1).into()]);
    let r = c.run_all(&p)?;
    assert_eq!(r.bytes(back), b"dormouse", "bytes at {base:#x}");
    assert_eq!(r.raw(bad), -(libc::EBADF as i64), "a failure at {base:#x}");

    drop(c);
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 1)), "it ended with {status:?}");
    Ok(())
}

fn main() {
    let mut failed = 0;
    for base in [0x1234_5678_9000, 0x10_0000_1000] {
        match serves_at(base) {
            Ok(()) => println!("test serves_at_{base:x} ... ok"),
            Err(e) => {
                println!("test serves_at_{base:x} ... FAILED: {e}");
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out", 2 - failed);
    std::process::exit(failed);
}
