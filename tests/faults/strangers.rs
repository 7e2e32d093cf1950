//! Targets that others have a hand in: a tracer, a seccomp filter, a parent in vfork; and targets that cannot be looked into.
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::target::Start;
use dormouse_tests::{proc, run, store, sys, unharmed, Bed, Case, Who};
use std::path::PathBuf;
use std::process::{Child, Stdio};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("strangers/traced", traced));
    for mode in ["kill", "errno", "strict"] {
        all.extend(Case::each(&format!("strangers/seccomp-{mode}"), move |bed| seccomp(bed, mode)));
    }
    all.push(Case::new("strangers/not-dumpable", Who::User, not_dumpable));
    all
}

/// Starts a Python program in a folder of its own; waits for its file `ready`.
fn python(bed: &mut Bed, script: &str, args: &[String]) -> Result<(Child, PathBuf)> {
    let dir = bed.folder()?;
    let mut c = bed.command("python3");
    c.args(["-c", script]).args(args).current_dir(&dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    let (mut child, _, err) = bed.spawn(&mut c)?;
    run::until("python ready", LIMIT, || {
        ensure!(child.try_wait()?.is_none(), "python ended: {}", std::fs::read_to_string(&err)?);
        Ok(dir.join("ready").exists())
    })?;
    Ok((child, dir))
}

fn end(bed: &mut Bed, child: &mut Child, dir: &std::path::Path, code: i32) -> Result<()> {
    std::fs::write(dir.join("gate"), "")?;
    let status = run::end(child, "the program", LIMIT)?;
    bed.let_go(child);
    ensure!(run::code(status) == code, "the program is harmed: it ended with {status}, not with {code}");
    Ok(())
}

/// Seizes its argument and holds on until the gate.
const TRACES: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
assert libc.ptrace(0x4207, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
";

fn traced(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("counter").ready(bed)?;
    let script = TRACES
        .replace("0x4207", "17")
        .replace("assert libc.ptrace(17, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()", "");
    let (mut tracer, dir) = python(bed, &script, &[target.pid.to_string()])?;
    let words = ["cannot checkpoint", &format!("traced by PID {}", tracer.id()), "; "];
    bed.ctl(&["check", "--pid", &target.pid.to_string()])?.refused(3, &words)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &words)?;
    ensure!(proc::status(target.pid).is_some_and(|s| s.tracer == tracer.id() as i32), "its tracer has lost it");
    end(bed, &mut tracer, &dir, 0)?;
    target.checkpoint(bed)?;
    target.prove(bed).map(|_| ())
}

/// A filter that kills at (or refuses) every call but a few; `strict` is the mode without a filter.
const SECCOMP: &str = "
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
open('ready.tmp', 'w').close()
mode = sys.argv[1]
libc.prctl(38, 1, 0, 0, 0)
pipe = os.pipe()
if mode == 'strict':
    os.rename('ready.tmp', 'ready')
    syscall = libc.syscall
    buffer = ctypes.create_string_buffer(1)
    fd = os.open('fifo', os.O_RDONLY)
    libc.prctl(22, 1, 0, 0, 0)
    syscall(0, fd, buffer, 1)
    syscall(60, 0)
deny = {'kill': 0x80000000, 'errno': 0x00050001}[mode]
# mmap of anything executable, socket, clone with CLONE_PARENT and kin: 41 socket, 42 connect, 435 clone3, 56 clone
numbers = [41, 42, 56, 435, 293]
program = [struct.pack('HBBI', 0x20, 0, 0, 0)]
for i, n in enumerate(numbers):
    program.append(struct.pack('HBBI', 0x15, len(numbers) - i, 0, n))
program.append(struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000))
program.append(struct.pack('HBBI', 0x06, 0, 0, deny))
code = ctypes.create_string_buffer(b''.join(program))
fprog = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(program), ctypes.addressof(code)))
assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()
os.rename('ready.tmp', 'ready')
while not os.path.exists('gate'): time.sleep(0.002)
sys.exit(0)
";

/// What could kill the target at a call of ours is refused before it is touched, saying so.
fn seccomp(bed: &mut Bed, mode: &str) -> Result<()> {
    if mode == "strict" {
        return strict(bed);
    }
    let (mut child, dir) = python(bed, SECCOMP, &[mode.to_owned()])?;
    let pid = child.id().to_string();
    let words = ["cannot checkpoint", "seccomp", "; "];
    let tried = bed.ctl(&["checkpoint", "--pid", &pid, "--name", "x"])?;
    match (bed.who, mode) {
        // what is answered with an error only, root suspends
        (Who::Root, "errno") => {
            tried.expect(0)?;
        }
        // the kernel tells root the filters in the freeze, and nothing is to be seen before
        (Who::Root, _) => {
            tried.refused(3, &words)?;
        }
        _ => {
            let tried = tried.refused(3, &words)?;
            let checked = bed.ctl(&["check", "--pid", &pid])?.refused(3, &words)?;
            ensure!(checked.err.lines().count() == tried.err.lines().count(), "check and checkpoint disagree");
        }
    }
    unharmed::entirely(child.id() as i32)?;
    if (bed.who, mode) != (Who::Root, "errno") {
        store::holds(bed, "x", &[])?;
    }
    end(bed, &mut child, &dir, 0)
}

fn strict(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    bed.give(&dir.join("fifo"))?;
    let mut c = bed.command("python3");
    c.args(["-c", SECCOMP, "strict"]).current_dir(&dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    let (mut child, _, _) = bed.spawn(&mut c)?;
    let pid = child.id() as i32;
    let mut fifo = std::fs::OpenOptions::new().write(true).open(dir.join("fifo"))?;
    run::until("strict mode", LIMIT, || {
        Ok(std::fs::read_to_string(format!("/proc/{pid}/status"))?.contains("Seccomp:\t1"))
    })?;
    bed.ctl(&["checkpoint", "--pid", &pid.to_string(), "--name", "x"])?.refused(3, &["strict seccomp", "; "])?;
    unharmed::entirely(pid)?;
    std::io::Write::write_all(&mut fifo, b"x")?;
    let status = run::end(&mut child, "the strict program", LIMIT)?;
    bed.let_go(&child);
    // exit(2) of one thread is all that strict mode permits.
    ensure!(run::code(status) == 0, "the strict program is harmed: {status}");
    Ok(())
}

/// What this user may not look into is refused, saying who may.
fn not_dumpable(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("proc_dumpable").args(["--zero"]).ready(bed)?;
    bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint", "dumpable", "root"])?;
    target.prove(bed).map(|_| ())
}
