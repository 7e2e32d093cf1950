//! A trigger that comes to the program itself: its agent passes it on, and the program notices nothing. Whom it is not meant for, it does nothing to.
use anyhow::{bail, ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Job, Line, Mode, MODES};
use dormouse_tests::stage::Stage;
use dormouse_tests::{proc, programs, run, store, unharmed, Bed, Case, Who};
use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;
use std::fs;

pub fn cases(stage: &Stage) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for (mode, name) in MODES {
        let mut both = |case: &str, body: fn(&mut Bed, Mode) -> Result<()>| {
            all.extend(Case::each(&format!("own-trigger/{case}/{name}"), move |bed| body(bed, mode)));
        };
        both("signal", signal);
        both("signal-exit", signal_exit);
        both("after-restore", after_restore);
    }
    all.extend(Case::each("own-trigger/group", group));
    all.extend(Case::each("own-trigger/handler-of-its-own", own_handler));
    all.extend(Case::each("own-trigger/children", children));
    all.extend(Case::each("own-trigger/becomes-another", exec));
    for (call, more) in
        [("execl", ""), ("execlp", ""), ("execle", ", (ctypes.c_char_p * 2)(b'HERE=1', None)"), ("execveat", "")]
    {
        all.extend(Case::each(&format!("own-trigger/{call}"), move |bed| exec_listed(bed, call, more)));
    }
    all.extend(Case::each("own-trigger/dropped", dropped));
    all.extend(Case::each("own-trigger/static", not_there));
    all.extend(Case::each("own-trigger/filtered", filtered));
    all.extend(Case::each("own-trigger/strict", strict));
    for v in programs::variants(stage)?.into_iter().filter(|v| v.program == "blocked" && !v.refusable) {
        let call = v.args[1].clone();
        // it has to end while we wait
        if v.timed && !["nanosleep", "poll_timed", "futex_timed", "epoll_wait_timed"].contains(&call.as_str()) {
            continue;
        }
        for who in Who::all() {
            let (call, timed) = (call.clone(), v.timed);
            let case = Case::new(format!("own-trigger/{}", v.name), *who, move |bed| blocked(bed, &call, timed));
            all.push(if v.alike && !v.timed { case.full() } else { case });
        }
    }
    Ok(all.into_iter().map(|c| c.limit(60)).collect())
}

const USR2: Signal = Signal::SIGUSR2;
const AGENT: &[&str] = &["--door", "agent", "--signal", "USR2"];

fn to_program(job: &Job, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(job.pid), signal)?)
}

/// A checkpoint for each signal; the program is not signalled.
fn signal(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, AGENT, &["mem_anon"])?.ready(bed)?;
    for n in 1..=3 {
        to_program(&job, USR2)?;
        job.made(bed, n)?;
        unharmed::entirely(job.pid)?;
    }
    // launcher's own works as ever
    job.signal(USR2)?;
    job.made(bed, 4)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1, 2, 3, 4])
}

fn signal_exit(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, &["--door", "agent", "--signal-exit", "TSTP"], &["mem_anon"])?.ready(bed)?;
    to_program(&job, Signal::SIGTSTP)?;
    let code = job.end(bed)?;
    ensure!(code == 85, "it ended with {code}: {}", job.said());
    store::holds(bed, "job", &[1])?;
    job.restore(bed, &[])?.prove(bed)
}

/// The supervisor is another then, and in a private namespace it cannot be seen from inside.
fn after_restore(bed: &mut Bed, mode: Mode) -> Result<()> {
    let mut job = Line::program(bed, mode, AGENT, &["mem_anon"])?.ready(bed)?;
    let mut n = 0;
    for pids in ["private", "fresh", "private"] {
        bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
        n += 1;
        ensure!(job.end(bed)? == 85, "{}", job.said());
        job = match mode {
            Mode::Detached => job.restore(bed, &["--pids", pids])?,
            Mode::Foreground => job.restore_here_with(bed, &["--pids", pids])?,
        };
        for _ in 0..2 {
            to_program(&job, USR2)?;
            n += 1;
            job.made(bed, n)?;
            unharmed::entirely(job.pid)?;
        }
    }
    job.prove(bed)
}

/// One to the whole process group reaches launcher and the program: it is never lost, and may be one checkpoint or two.
fn group(bed: &mut Bed) -> Result<()> {
    let mut job = Line::program(bed, Mode::Foreground, AGENT, &["mem_anon"])?.ready(bed)?;
    for _ in 0..5 {
        let latest = |bed: &Bed| store::numbers(bed, "job").last().copied().unwrap_or(0);
        let before = latest(bed);
        killpg(Pid::from_raw(job.to), USR2)?;
        run::until("a checkpoint", LIMIT, || Ok(latest(bed) > before && job.recorders(bed).is_empty()))?;
        unharmed::entirely(job.pid)?;
    }
    ensure!(!job.said().contains("cannot checkpoint"), "{}", job.said());
    job.prove(bed)?;
    store::all_made_by(bed, "job", "agent")
}

/// What it sets for the signal, and blocks, is answered, and never happens.
fn own_handler(bed: &mut Bed) -> Result<()> {
    let script = "
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.signal.restype = ctypes.c_void_p
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
was = libc.signal(signal.SIGUSR2, None) not in (None, 1)
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('tmp', 'w').write('OK' if was and not got else 'FAIL: %s %s' % (was, got))
os.rename('tmp', 'result')
";
    let mut job = Line::python(bed, Mode::Detached, AGENT, script)?.ready(bed)?;
    for n in 1..=2 {
        to_program(&job, USR2)?;
        job.made(bed, n)?;
    }
    unharmed::entirely(job.pid)?;
    job.prove(bed)
}

/// A forked child has handlers of its own; one that is executed ignores the signal. Neither makes a checkpoint, nor is in the way of one later.
fn children(bed: &mut Bed) -> Result<()> {
    let script = "
import os, signal, subprocess, time
forked = os.fork()
if forked == 0:
    got = []
    was = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
    open('child', 'w').close()
    while not got: time.sleep(0.001)
    os._exit(40 + len(got))
quiet = os.fork()
if quiet == 0:
    while not os.path.exists('quiet-gate'): time.sleep(0.001)
    os._exit(43)
code = 'import os,time;open(\"other\",\"w\").close()\\nwhile not os.path.exists(\"other-gate\"): time.sleep(0.001)'
other = subprocess.Popen(['python3', '-c', code])
while not (os.path.exists('child') and os.path.exists('other')): time.sleep(0.001)
for pid in (forked, quiet, other.pid): os.kill(pid, signal.SIGUSR2)
open('quiet-gate', 'w').close()
open('other-gate', 'w').close()
said = (os.waitpid(forked, 0)[1] >> 8, os.waitpid(quiet, 0)[1] >> 8, other.wait())
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('tmp', 'w').write('OK' if said == (41, 43, 0) else 'FAIL: %s' % (said,))
os.rename('tmp', 'result')
";
    let mut job = Line::python(bed, Mode::Detached, AGENT, script)?.ready(bed)?;
    to_program(&job, USR2)?;
    job.made(bed, 1)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1])
}

/// A shell that becomes the program: the same process, with an agent anew.
fn exec(bed: &mut Bed) -> Result<()> {
    let script = "
import os, sys, time
if len(sys.argv) == 1: os.execvp('python3', ['python3', '-c', os.environ['SCRIPT'], 'again'])
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('tmp', 'w').write('OK')
os.rename('tmp', 'result')
";
    let first = format!("import os\nos.environ['SCRIPT'] = {script:?}\n{script}");
    let mut job = Line::python(bed, Mode::Detached, AGENT, &first)?.ready(bed)?;
    to_program(&job, USR2)?;
    job.made(bed, 1)?;
    unharmed::entirely(job.pid)?;
    job.prove(bed)
}

/// By the functions that take the arguments one by one, and by execveat, into a program without an agent, which the signal would end if it were not ignored by then.
/// One that fails changes nothing.
fn exec_listed(bed: &mut Bed, call: &str, more: &str) -> Result<()> {
    let path = bed.stage.program("static_mem");
    let file = if call == "execlp" { "static_mem".into() } else { path.display().to_string() };
    let script = format!(
        "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.environ['PATH'] = '{}'
def execveat(path, *words):
    here = (ctypes.c_char_p * 2)(b'HERE=1', None)
    return libc.execveat(-100, path, (ctypes.c_char_p * len(words))(*words), here, 0)
call = execveat if '{call}' == 'execveat' else libc.{call}
r = call(b'/nowhere', b'1', b'2', b'3', b'4', b'5', b'6', None{more})
assert r == -1 and ctypes.get_errno() == 2, (r, ctypes.get_errno())
caught = [l for l in open('/proc/self/status') if l.startswith('SigCgt')][0]
assert int(caught.split()[1], 16) >> 11 & 1, caught
call(b'{file}', b'other', b'--dir', b'/nowhere', b'--dir', b'/nowhere', b'--dir', os.getcwd().encode(), None{more})
",
        path.parent().context("no folder")?.display()
    );
    let job = Line::python(bed, Mode::Detached, AGENT, &script)?.attached().ready(bed)?;
    let words = fs::read(format!("/proc/{}/cmdline", job.pid))?;
    ensure!(
        words.starts_with(b"other\0--dir\0/nowhere\0--dir\0"),
        "its arguments: {}",
        String::from_utf8_lossy(&words)
    );
    let environment = fs::read(format!("/proc/{}/environ", job.pid))?;
    let given = ["execle", "execveat"].contains(&call);
    ensure!(!given || environment == b"HERE=1\0", "{}", String::from_utf8_lossy(&environment));
    ensure!(given || environment.starts_with(b"PATH=") || environment.windows(6).any(|w| w == b"\0PATH="));
    let status = fs::read_to_string(format!("/proc/{}/status", job.pid))?;
    let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).context("SigIgn")?;
    ensure!(
        u64::from_str_radix(ignored.trim(), 16)? >> (USR2 as i32 - 1) & 1 == 1,
        "it does not ignore USR2: {status}"
    );
    by_the_supervisor_alone(bed, job)
}

/// The signal does nothing to the program; to the supervisor it makes a checkpoint.
fn by_the_supervisor_alone(bed: &mut Bed, mut job: Job) -> Result<()> {
    to_program(&job, USR2)?;
    unharmed::entirely(job.pid)?;
    job.signal(USR2)?;
    job.made(bed, 1)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1])
}

/// Restored without triggers the signal is the program's again: what it had set for it happens.
fn dropped(bed: &mut Bed) -> Result<()> {
    let script = "
import os, signal, time
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('tmp', 'w').write('OK' if len(got) == 1 else 'FAIL: %s' % got)
os.rename('tmp', 'result')
";
    let mut job = Line::python(bed, Mode::Detached, AGENT, script)?.ready(bed)?;
    to_program(&job, USR2)?;
    job.made(bed, 1)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    job.end(bed)?;
    let mut job = job.restore(bed, &["--no-triggers"])?;
    to_program(&job, USR2)?;
    run::until("the signal's delivery", LIMIT, || {
        let status = fs::read_to_string(format!("/proc/{}/status", job.pid))?;
        let pending = status.lines().find_map(|l| l.strip_prefix("ShdPnd:")).context("ShdPnd")?;
        Ok(u64::from_str_radix(pending.trim(), 16)? == 0)
    })?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1, 2])
}

/// Where there is no agent it is ignored, as ever.
fn not_there(bed: &mut Bed) -> Result<()> {
    let job = Line::program(bed, Mode::Detached, AGENT, &["static_mem"])?.ready(bed)?;
    by_the_supervisor_alone(bed, job)
}

/// To the very thread that is blocked in a call, again and again: it has no EINTR. One that is timed may have its end meanwhile, if this machine is
/// slow: that it did not end before that the proof sees.
fn blocked(bed: &mut Bed, call: &str, timed: bool) -> Result<()> {
    let options = ["--door", "agent", "--signal", "PWR", "--keep", "2"];
    let words = ["blocked", "--call", call, "--timeout", "4000"];
    let mut job = Line::program(bed, Mode::Detached, &options, &words)?.ready(bed)?;
    for n in 1..=8 {
        let tasks = fs::read_dir(format!("/proc/{}/task", job.pid))?;
        let tids = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let tid = tids.filter(|t| *t != job.pid).last();
        // kill(2) with a TID: to the process, and this thread takes it if it can
        match tid.map(|tid| kill(Pid::from_raw(tid), Signal::SIGPWR)) {
            Some(Ok(())) => {}
            None | Some(Err(nix::Error::ESRCH)) if timed && n > 2 => break,
            ended => bail!("the call has ended before signal {n}: {ended:?}"),
        }
        job.made(bed, n)?;
        ensure!(proc::alive(job.pid), "it has ended: {}", job.said());
    }
    unharmed::entirely(job.pid)?;
    job.prove(bed)
}

/// One that has seccomp filters, so that its agent may make no call of its own: the signal is nothing to it, and ends none of its sleeps.
fn filtered(bed: &mut Bed) -> Result<()> {
    let mut job = Line::program(bed, Mode::Detached, AGENT, &["seccomp_flaps", "--what", "filter"])?.ready(bed)?;
    let status = |of: String| fs::read_to_string(format!("/proc/{}/{of}status", job.pid)).unwrap_or_default();
    run::until("a filter", LIMIT, || {
        let all =
            fs::read_dir(format!("/proc/{}/task", job.pid))?.filter_map(|t| t.ok()?.file_name().into_string().ok());
        Ok(all.map(|tid| status(format!("task/{tid}/"))).any(|s| s.contains("Seccomp:\t2")))
    })?;
    for _ in 0..50 {
        to_program(&job, USR2)?;
        run::until("the signal to come", LIMIT, || Ok(status(String::new()).contains("ShdPnd:\t0000000000000000")))?;
    }
    job.prove(bed)?;
    ensure!(store::numbers(bed, "job").is_empty(), "a checkpoint was made: {}", job.said());
    Ok(())
}

/// A thread in strict seccomp mode would be killed for the first call that a trigger makes in it: none comes to it.
fn strict(bed: &mut Bed) -> Result<()> {
    let line = ["seccomp_flaps", "--what", "signalled"];
    let mut job = Line::program(bed, Mode::Detached, AGENT, &line)?.ready(bed)?;
    job.prove(bed)
}
