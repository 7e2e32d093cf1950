//! The agent beside what the matrix sees: no call ends with EINTR however often it is called, it goes where the program goes, stays out of the
//! way, and says why it cannot come in.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::programs::{self, Variant};
use dormouse_tests::stage::Stage;
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case, Who};
use std::fs;
use std::path::PathBuf;

/// Checkpoints during which a call must not return.
const OFTEN: usize = 20;
/// In `make test-full`.
const VERY_OFTEN: usize = 100;

pub fn cases(stage: &Stage) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for v in programs::variants(stage)?.into_iter().filter(|v| v.program == "blocked") {
        for who in Who::all() {
            for (name, times) in [("agent-often", OFTEN), ("agent-very-often", VERY_OFTEN)] {
                let call = v.clone();
                let case = Case::new(format!("{}/{name}", v.name), *who, move |bed| often(bed, &call, times));
                all.push(if times == OFTEN { case } else { case.limit(120).full() });
            }
        }
    }
    all.extend(Case::each("agent/goes-along", goes_along));
    all.extend(Case::each("agent/descriptors-none", nothing_open));
    for (name, how) in [
        ("one-by-one", "os.closerange(3, 4096)"),
        ("closefrom", "libc.closefrom(3)"),
        ("close_range", "assert libc.close_range(3, 4096, 0) == 0"),
    ] {
        all.extend(Case::each(&format!("agent/descriptors-closed-{name}"), move |bed| descriptors_closed(bed, how)));
    }
    all.extend(Case::each("agent/signal-blocked", signal_blocked));
    all.extend(Case::each("agent/exec-before-the-signal", exec_before_the_signal));
    all.extend(Case::each("agent/signal-of-the-programs-own", own_signal));
    all.extend(Case::each("agent/none", none));
    Ok(all)
}

/// One checkpoint after the other while a thread is blocked in a call.
fn often(bed: &mut Bed, v: &Variant, times: usize) -> Result<()> {
    let mut target = v.start(Door::Launched, 60_000).agent().ready(bed)?;
    if v.refusable && bed.ctl(&["check", "--pid", &target.pid.to_string()])?.code() != 0 {
        return target.end(bed);
    }
    let args = target.checkpoint_args(&[]);
    for _ in 0..times {
        bed.ctl(&args)?.expect(0)?;
        bed.log.clear();
    }
    target.by_the_door(bed)?;
    unharmed::entirely(target.pid)?;
    match v.timed {
        // its time is longer than anybody waits here
        true => target.end(bed),
        false => target.prove(bed).map(drop),
    }
}

/// Starts a Python program with the agent; waits for its file `ready`. Its PID, and its folder.
fn python(bed: &mut Bed, name: &str, script: &str, preload: Option<&str>) -> Result<(i32, PathBuf)> {
    let dir = bed.folder()?;
    let mut c = bed.launcher_command(&["--name", name, "--detach", "--json", "--door", "agent", "--", "python3", "-c"]);
    c.arg(script).current_dir(&dir);
    if let Some(theirs) = preload {
        c.env("LD_PRELOAD", theirs);
    }
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.who.assert_is("python", pid)?;
    Ok((pid, dir))
}

const WAIT: &str = "
import os, time
def wait():
    open('ready.tmp', 'w').write(said)
    os.rename('ready.tmp', 'ready')
    while not os.path.exists('gate'): time.sleep(0.001)
";

fn end(bed: &mut Bed, name: &str) -> Result<()> {
    bed.ctl(&["kill", name])?.expect(0).map(drop)
}

/// Through exec and fork, with what the user preloads behind it; not into an empty environment.
fn goes_along(bed: &mut Bed) -> Result<()> {
    let script = WAIT.to_owned()
        + "
import subprocess, sys
inside = lambda: '444f52000000-' in open('/proc/self/maps').read()
code = \"print('444f52000000-' in open('/proc/self/maps').read())\"
child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()
bare = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={}).stdout.strip()
read, write = os.pipe()
if os.fork() == 0: os.write(write, str(inside()).encode()); os._exit(0)
os.wait()
forked = os.read(read, 9).decode()
os.close(read); os.close(write)
said = f'{inside()} {child} {bare} {forked} {os.environ[\"LD_PRELOAD\"]}'
wait()
";
    let (pid, dir) = python(bed, "along", &script, Some("libm.so.6"))?;
    let said = fs::read_to_string(dir.join("ready"))?;
    let state = bed.state().canonicalize()?.display().to_string();
    let as_meant = said.starts_with(&format!("True True False True {state}/dormouse-agent-"));
    ensure!(as_meant && said.ends_with(".so:libm.so.6"), "inside, child, bare, forked, LD_PRELOAD: {said}");
    bed.ctl(&["checkpoint", "along", "--door", "agent"])?.expect(0)?;
    unharmed::entirely(pid)?;
    end(bed, "along")
}

/// A program executes another one, which has no agent, between the recorder's look and its signal: that ends nobody, and the other door is taken.
fn exec_before_the_signal(bed: &mut Bed) -> Result<()> {
    let script = "
import os, sys, time
open('ready', 'w').close()
while not os.path.exists('act'): time.sleep(0.001)
code = '''
import os, time
open('acted', 'w').close()
while not os.path.exists('gate'): time.sleep(0.001)
open('over', 'w').close()
while True: time.sleep(1)
'''
os.execve(sys.executable, [sys.executable, '-c', code], {})
";
    let (pid, dir) = python(bed, "execs", script, None)?;
    let there = |name: &str| run::until(name, LIMIT, || Ok(dir.join(name).exists()));
    let act = |_| {
        fs::write(dir.join("act"), "")?;
        there("acted")
    };
    let said = bed.ctl_stopped("agent", &["checkpoint", "execs", "--json"], act)?.expect(0)?.json()?;
    ensure!(said["door"] == "attach", "it should be made by attach: {said}");
    unharmed::entirely(pid)?;
    fs::write(dir.join("gate"), "")?;
    there("over")?;
    end(bed, "execs")
}

/// What is open in a program that launcher has started: numbers and what they are.
fn opened(bed: &mut Bed, name: &str, door: &str) -> Result<Vec<(i32, String)>> {
    let dir = bed.folder()?;
    let script = WAIT.to_owned() + "said = ''\nwait()\n";
    let log = dir.join("log");
    let words = ["--name", name, "--detach", "--json", "--door", door, "--", "sh", "-c"];
    let mut c = bed.launcher_command(&words);
    // the session's log is another one for each name
    c.arg("exec python3 -c \"$0\" >log 2>&1").arg(script).current_dir(&dir);
    let pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("python ready", LIMIT, || Ok(dir.join("ready").exists()))?;
    bed.who.assert_is("python", pid)?;
    let inside = proc::maps(pid).iter().any(|m| m.name.contains("/dormouse-agent-"));
    ensure!(inside == (door == "agent"), "whether the agent is in it, of {door}: {inside}");
    let all = proc::descriptors(pid);
    ensure!(all.len() == 3 && all[1].1 == log.display().to_string(), "stdin, stdout and stderr: {all:?}");
    bed.ctl(&["checkpoint", name])?.expect(0)?;
    store::made_by(bed, name, door)?;
    ensure!(proc::descriptors(pid) == all, "after a checkpoint: {:?}, before: {all:?}", proc::descriptors(pid));
    end(bed, name)?;
    let folder = dir.display().to_string();
    Ok(all.into_iter().map(|(n, what)| (n, what.replace(&folder, ""))).collect())
}

/// The agent has nothing open: with it there is what there is without it, before a checkpoint and after.
fn nothing_open(bed: &mut Bed) -> Result<()> {
    let (with, without) = (opened(bed, "with", "agent")?, opened(bed, "without", "attach")?);
    ensure!(with == without, "with the agent it has {with:?} open, without {without:?}");
    Ok(())
}

/// A daemon closes all that it does not know, in one way or another: the agent does not need any of it.
fn descriptors_closed(bed: &mut Bed, how: &str) -> Result<()> {
    let closes = format!(
        "import ctypes\nlibc = ctypes.CDLL(None)\n{how}\nsaid = str(sorted(os.listdir('/proc/self/fd')))\nwait()\n"
    );
    let (pid, dir) = python(bed, "closed", &(WAIT.to_owned() + &closes), None)?;
    let said = fs::read_to_string(dir.join("ready"))?;
    ensure!(said == "['0', '1', '2', '3']", "with the folder itself it should see four, it sees {said}");
    let all = proc::descriptors(pid);
    for option in [&[][..], &["--kill"]] {
        bed.ctl(&[&["checkpoint", "closed", "--door", "agent"], option].concat())?.expect(0)?;
        let now = proc::descriptors(pid);
        ensure!(now == all || !option.is_empty(), "after a checkpoint it has {now:?} open, before {all:?}");
    }
    let said = bed.ctl_json(&["restore", "closed", "--detach"])?;
    let pid = said["pid"].as_i64().context("no pid")? as i32;
    bed.who.assert_is("the restored one", pid)?;
    for _ in 0..2 {
        let now: Vec<i32> = proc::descriptors(pid).into_iter().map(|d| d.0).collect();
        ensure!(now == [0, 1, 2], "restored it has {now:?} open");
        bed.ctl(&["checkpoint", "closed", "--door", "agent"])?.expect(0)?;
        unharmed::entirely(pid)?;
    }
    store::all_made_by(bed, "closed", "agent")?;
    end(bed, "closed")
}

/// What the C library is asked to block, wait for or handle is not the agent's signal; what a raw call blocks is blocked, and said.
fn signal_blocked(bed: &mut Bed) -> Result<()> {
    let script = WAIT.to_owned()
        + "
import ctypes, signal, threading
every = set(range(1, 65)) - {9, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
threading.Thread(target=lambda: signal.sigwait(every), daemon=True).start()
said = ''
wait()
os.unlink('ready')
os.unlink('gate')
full = (ctypes.c_uint64 * 1)(2**64 - 1)
threads = []
def block():
    # rt_sigprocmask by an instruction of our own: mov eax, 14; mov r10d, 8; xor edx, edx; mov rsi, rdi; mov edi, 2; syscall; ret
    import mmap
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex('b80e000000 41ba08000000 31d2 4889fe bf02000000 0f05 c3'.replace(' ', '')))
    at = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(at)(ctypes.addressof(full))
    threads.append(code)
    while not os.path.exists('gate'): time.sleep(0.001)
t = threading.Thread(target=block)
t.start()
while not threads: time.sleep(0.001)
wait()
";
    let (pid, dir) = python(bed, "blocks", &script, None)?;
    bed.ctl(&["checkpoint", "blocks", "--door", "agent"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    run::until("the second part", SOON, || Ok(dir.join("ready").exists() && !dir.join("gate").exists()))?;
    let args = ["checkpoint", "blocks", "--door", "agent"];
    bed.ctl(&args)?
        .refused(3, &["cannot checkpoint blocks", "blocks its agent's signal (63)", "leave out --door agent"])?;
    unharmed::entirely(pid)?;
    bed.ctl(&["checkpoint", "blocks"])?.expect(0)?;
    store::made_by(bed, "blocks", "attach")?;
    end(bed, "blocks")
}

/// The program may use the signal too.
fn own_signal(bed: &mut Bed) -> Result<()> {
    let script = WAIT.to_owned()
        + "
import signal
got = []
signal.signal(63, lambda *_: got.append(1))
assert signal.getsignal(63) is not signal.SIG_DFL
said = ''
wait()
for _ in range(3): os.kill(os.getpid(), 63)
open('result.tmp', 'w').write(str(len(got)))
os.rename('result.tmp', 'result')
";
    let (pid, dir) = python(bed, "own", &script, None)?;
    bed.ctl(&["checkpoint", "own", "--door", "agent"])?.expect(0)?;
    unharmed::entirely(pid)?;
    fs::write(dir.join("gate"), "")?;
    run::until("a result", SOON, || Ok(dir.join("result").exists()))?;
    let got = fs::read_to_string(dir.join("result"))?;
    ensure!(got == "3", "its handler should have run 3 times, it ran {got} times");
    Ok(())
}

/// Without an agent that door is shut, and says so; nothing is touched.
fn none(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    let args = ["checkpoint", &target.session.clone(), "--door", "agent"];
    bed.ctl(&args)?.refused(3, &["cannot checkpoint", "it has no agent", "leave out --door agent"])?;
    let mut target_static = Start::program("static_mem").door(Door::Launched).agent().ready(bed)?;
    let args = ["checkpoint", &target_static.session.clone(), "--door", "agent"];
    bed.ctl(&args)?.refused(3, &["it has no agent"])?;
    unharmed::entirely(target.pid)?;
    target_static.prove(bed)?;
    target.prove(bed).map(drop)
}
