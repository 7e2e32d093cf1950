//! The snapshot child is never seen: not by wait or SIGCHLD, not by a peer that waits for an end of file, not by Ctrl-C.
use anyhow::{bail, ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::{proc, run, store, sys, unharmed, Bed, Case};
use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, subreaper) in [("wait-and-sigchld", false), ("wait-and-sigchld-subreaper", true)] {
        all.extend(Case::each(&format!("invisible/{name}"), move |bed| wait_and_sigchld(bed, subreaper)));
    }
    all.extend(Case::each("invisible/eof-at-a-peer", eof_at_a_peer));
    all.extend(Case::each("invisible/ctrl-c-to-the-group", ctrl_c));
    all
}

/// Calls wait4(-1) all the time in one thread (with __WALL in turn) and counts SIGCHLDs in another; at the gate it says what it saw.
const WAITS: &str = "
import ctypes, os, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append('SIGCHLD'))
if SUBREAPER: libc.prctl(36, 1, 0, 0, 0)
def reaper():
    n = ctypes.c_int()
    libc.prctl(37, ctypes.byref(n), 0, 0, 0)
    return n.value == 1
def wait():
    status = ctypes.c_int()
    while not done:
        r = libc.wait4(-1, ctypes.byref(status), 0, None)
        if r != -1 or ctypes.get_errno() != 10: seen.append(f'wait4 gave {r}, errno {ctypes.get_errno()}')
        time.sleep(0.0002)
done = False
t = threading.Thread(target=wait)
t.start()
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
done = True
t.join()
if reaper() != SUBREAPER: seen.append('it is a subreaper no more')
open('result.tmp', 'w').write('OK' if not seen else '\\n'.join(seen))
os.rename('result.tmp', 'result')
";

fn wait_and_sigchld(bed: &mut Bed, subreaper: bool) -> Result<()> {
    let script = WAITS.replace("SUBREAPER", if subreaper { "True" } else { "False" });
    let (mut child, dir) = python(bed, &script, |_| ())?;
    let pid = child.id().to_string();
    for _ in 0..12 {
        let ran = bed.ctl(&["checkpoint", "--pid", &pid, "--name", "waits"])?.expect(0)?;
        ensure!(!ran.said().contains("pause was as long as"), "there was no snapshot child:\n{}", ran.said());
        ensure!(proc::children(child.id() as i32).is_empty(), "it has a child or a zombie");
    }
    store::all_made_by(bed, "waits", "attach")?;
    unharmed::entirely(child.id() as i32)?;
    fs::write(dir.join("gate"), "")?;
    run::end(&mut child, "the waiting program", LIMIT)?;
    bed.let_go(&child);
    let seen = fs::read_to_string(dir.join("result"))?;
    ensure!(seen == "OK", "the target saw a child that it does not have:\n{seen}");
    Ok(())
}

/// Holds memory; SIGUSR1 closes its stdout, SIGINT is counted.
const HOLDS: &str = "
import os, signal, time
block = os.urandom(1 << 20)
memory = [bytearray(block) for _ in range(MIB)]
for i, m in enumerate(memory):
    for at in range(0, 1 << 20, 4096): m[at:at+8] = (i * 4096 + at).to_bytes(8, 'little')
ints = []
signal.signal(signal.SIGUSR1, lambda *_: os.close(1))
signal.signal(signal.SIGINT, lambda *_: ints.append(1))
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('result', 'w').write(str(len(ints)))
";
const MIB: usize = 16;

/// A descriptor that the target closes is closed, though the snapshot child still lives.
fn eof_at_a_peer(bed: &mut Bed) -> Result<()> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut reader = File::from(reader);
    let (mut child, dir) = python(bed, &HOLDS.replace("MIB", &MIB.to_string()), |c| {
        c.stdout(writer);
    })?;
    let pid = child.id() as i32;
    let mut ctl = recording(bed, pid)?;
    kill(Pid::from_raw(pid), Signal::SIGUSR1)?;
    let began = Instant::now();
    let read = reader.read(&mut [0u8; 16])?;
    let took = began.elapsed();
    ensure!(ctl.try_wait()?.is_none(), "the recording was over before the peer was asked");
    ensure!(read == 0, "the peer should see the end, it read {read} bytes");
    ensure!(took < Duration::from_millis(500), "the peer saw the end only after {took:?}");
    finish(bed, &mut ctl, &mut child, &dir, "0")
}

/// SIGINT to the target's process group while its memory is recorded: the program gets it once, the checkpoint is whole.
fn ctrl_c(bed: &mut Bed) -> Result<()> {
    let (mut child, dir) = python(bed, &HOLDS.replace("MIB", &MIB.to_string()), |_| ())?;
    let pid = child.id() as i32;
    let mut ctl = recording(bed, pid)?;
    killpg(Pid::from_raw(pid), Signal::SIGINT)?;
    ensure!(ctl.try_wait()?.is_none(), "the recording was over before Ctrl-C");
    finish(bed, &mut ctl, &mut child, &dir, "1")
}

fn finish(bed: &mut Bed, ctl: &mut Child, child: &mut Child, dir: &Path, result: &str) -> Result<()> {
    kill(Pid::from_raw(ctl.id() as i32), Signal::SIGCONT)?;
    let status = run::end(ctl, "ctl checkpoint", LIMIT)?;
    bed.let_go(ctl);
    ensure!(status.success(), "ctl checkpoint ended with {status}");
    store::holds(bed, "holds", &[1])?;
    store::made_by(bed, "holds", "attach")?;
    unharmed::entirely(child.id() as i32)?;
    fs::write(dir.join("gate"), "")?;
    run::end(child, "the program", LIMIT)?;
    bed.let_go(child);
    let said = fs::read_to_string(dir.join("result"))?;
    ensure!(said == result, "the program should have counted {result} SIGINT, it says {said}");
    Ok(())
}

/// A checkpoint that is past the thaw: ctl has stopped itself, and its snapshot child is there, until [`finish`] lets it go on.
fn recording(bed: &mut Bed, pid: i32) -> Result<Child> {
    let mut c = bed.ctl_command(&["checkpoint", "--pid", &pid.to_string(), "--name", "holds"]);
    c.env("DORMOUSE_FAULT", "record:1:stop-self");
    let (mut ctl, out, err) = bed.spawn(&mut c)?;
    let at = ctl.id() as i32;
    run::until("ctl before it records", LIMIT, || {
        if ctl.try_wait()?.is_some() {
            bail!("ctl ended: {}{}", fs::read_to_string(&out)?, fs::read_to_string(&err)?);
        }
        Ok(proc::status(at).is_some_and(|s| s.state == 'T'))
    })?;
    ensure!(proc::status(pid).is_some_and(|s| s.tracer == 0), "the program is still traced");
    Ok(ctl)
}

/// Starts a Python program as leader of a session in a folder of its own, and waits for its file `ready`.
fn python(bed: &mut Bed, script: &str, more: impl FnOnce(&mut Command)) -> Result<(Child, PathBuf)> {
    let dir = bed.folder()?;
    let ((_, out), (err, to_err)) = (bed.file("out")?, bed.file("err")?);
    let mut c = bed.command("python3");
    c.args(["-c", script]).current_dir(&dir).stdin(std::process::Stdio::null()).stdout(out).stderr(to_err);
    sys::own_session(&mut c);
    more(&mut c);
    let mut child = c.spawn()?;
    drop(c);
    bed.hold(child.id() as i32);
    run::until("python ready", LIMIT, || {
        ensure!(child.try_wait()?.is_none(), "python ended: {}", fs::read_to_string(&err)?);
        Ok(dir.join("ready").exists())
    })?;
    bed.who.assert_is("python", child.id() as i32)?;
    Ok((child, dir))
}
