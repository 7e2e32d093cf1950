//! Trees of processes, beyond what the matrix does with `tree`: doors of several kinds in one checkpoint, who comes and goes while the freeze is on its way, what a
//! session's command has left behind, what relatives share and is refused by name. [`programs`]: those that people run.
mod programs;

use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{control, proc, run, store, sys, unharmed, Bed, Case};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("trees/left-behind", left_behind));
    all.extend(Case::each("trees/forks-in-the-window", forks_in_the_window));
    all.extend(Case::each("trees/executes-in-the-window", executes_in_the_window));
    all.extend(Case::each("trees/doors", doors));
    all.extend(Case::each("trees/door-agent-only", door_agent_only));
    all.extend(Case::each("trees/shares-its-memory", shares_its_memory));
    all.extend(Case::each("trees/vfork", vfork));
    all.extend(Case::each("trees/shared-ring", shared_ring));
    all.extend(Case::each("trees/dead-in-another-session", dead_in_another_session));
    all.extend(Case::each("trees/refused-once", refused_once));
    all.extend(Case::each("trees/fork-bomb", fork_bomb));
    all.extend(Case::each("trees/shared-pages", shared_pages));
    all.extend(Case::each("trees/busy", busy));
    all.extend(programs::cases());
    all
}

/// A Python program in a session of its own and in `dir`.
fn python(bed: &mut Bed, dir: &Path, script: &str) -> Result<Child> {
    let mut c = bed.command("python3");
    c.args(["-c", script]).current_dir(dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    Ok(bed.spawn(&mut c)?.0)
}

/// A Python program in `dir` as session "job".
fn launched(bed: &mut Bed, dir: &Path, script: &str) -> Result<()> {
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "python3", "-c", script]);
    c.current_dir(dir);
    bed.run(&mut c)?.expect(0)?;
    Ok(())
}

fn there(path: PathBuf) -> Result<()> {
    run::until(&format!("{}", path.display()), LIMIT, || Ok(path.exists()))
}

/// Whose process it is by the summary of the latest checkpoint: door of each PID, in order.
fn processes(bed: &mut Bed, name: &str) -> Result<Vec<(i64, String)>> {
    let said = bed.ctl_json(&["inspect", name])?;
    let all = said["summary"]["processes"].as_array().context("inspect --json tells no processes")?;
    let one = |p: &serde_json::Value| Some((p["pid"].as_i64()?, p["door"].as_str().unwrap_or("ended").to_owned()));
    all.iter().map(|p| one(p).context("a process without PID")).collect()
}

/// Ends what a restored session has left, whatever it is.
fn end_session(bed: &mut Bed, name: &str) -> Result<()> {
    bed.ctl(&["kill", name])?.expect(0)?;
    let live = store::session_dir(bed, name).join("live.json");
    run::until("the session's end", SOON, || {
        bed.reap();
        Ok(!live.exists())
    })
}

/// What the command left behind as a daemon is the session's, too: captured with it, and restored below the supervisor.
fn left_behind(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = format!(
        "(setsid sleep 1001 </dev/null >/dev/null 2>&1 & echo $! >{0}/new; mv {0}/new {0}/left); exec sleep 1000",
        dir.display()
    );
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "sh", "-c", &script]);
    let started = bed.run(&mut c)?.expect(0)?.json()?;
    let number =
        |v: &serde_json::Value, key: &str| Ok::<i32, anyhow::Error>(v[key].as_i64().context("no such number")? as i32);
    let (pid, supervisor) = (number(&started, "pid")?, number(&started, "supervisor")?);
    bed.who.assert_is("the program", pid)?;
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut left = 0;
    run::until("both programs", SOON, || {
        left = fs::read_to_string(dir.join("left")).unwrap_or_default().trim().parse().unwrap_or(0);
        Ok(comm(pid) == "sleep\n" && comm(left) == "sleep\n" && proc::children(supervisor).contains(&left))
    })?;
    // by ctl, and by the session's own recorder
    let made = bed.ctl_json(&["checkpoint", "job"])?;
    ensure!(made["processes"] == 2, "a checkpoint of {made}");
    let mut stream = control::connect(bed, "job")?;
    stream.write_all(&control::frame(r#"{"op":"checkpoint"}"#))?;
    let said = control::answer(&mut stream)?.context("it hangs up")?;
    ensure!(said["ok"] == true && said["n"] == 2, "it is told {said}");
    let all = processes(bed, "job")?;
    ensure!(all == [(pid.into(), "agent".into()), (left.into(), "agent".into())], "they are {all:?}");
    unharmed::entirely(pid)?;
    unharmed::entirely(left)?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    run::until("the session's end", SOON, || {
        bed.reap();
        Ok(!proc::alive(supervisor) && !proc::alive(pid) && !proc::alive(left))
    })?;
    let said = bed.ctl_json(&["restore", "job", "--detach"])?;
    let (pid, supervisor) = (number(&said, "pid")?, number(&said, "supervisor")?);
    let below = proc::descendants(supervisor);
    let sleeps: Vec<i32> = below.into_iter().filter(|p| comm(*p) == "sleep\n").collect();
    ensure!(sleeps.len() == 2 && sleeps.contains(&pid), "restored are {sleeps:?}");
    let other = sleeps.into_iter().find(|p| *p != pid).unwrap_or(0);
    let parent = proc::status(other).context("the daemon is gone")?.ppid;
    ensure!(parent != pid, "the daemon has the program as its parent");
    end_session(bed, "job")
}

/// Stopped between survey and freeze, ctl finds what has come since.
fn in_the_window(bed: &mut Bed, pid: i32, options: &[&str], act: &dyn Fn() -> Result<()>) -> Result<()> {
    let pid = pid.to_string();
    let args = [&["checkpoint", "--pid", &pid, "--name", "window"], options].concat();
    bed.ctl_stopped("freeze", &args, |_| act())?.expect(0).map(drop)
}

const FORKS: &str = "
import os, time
def wait(what):
    while not os.path.exists(what): time.sleep(0.002)
def tell(what, text=''):
    open(what + '.new', 'w').write(text); os.rename(what + '.new', what)
tell('ready')
wait('act')
r, w = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os.write(w, b'!')
        wait('gate')
        os.write(w, b'grandchild %d' % os.getpid())
        os._exit(4)
    _, status = os.wait()
    os._exit(status >> 8)
assert os.read(r, 1) == b'!'
tell('acted', str(child))
wait('gate')
_, status = os.waitpid(child, 0)
tell('proof', '%d %d %s' % (child, status >> 8, os.read(r, 100).decode()))
";

/// A child and a grandchild that are younger than the survey.
fn forks_in_the_window(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut child = python(bed, &dir, FORKS)?;
    let pid = child.id() as i32;
    there(dir.join("ready"))?;
    in_the_window(bed, pid, &["--kill"], &|| {
        fs::write(dir.join("act"), "")?;
        there(dir.join("acted"))
    })?;
    run::end(&mut child, "python", SOON)?;
    bed.let_go(&child);
    bed.reap();
    let all = processes(bed, "window")?;
    ensure!(all.len() == 3 && all.iter().all(|p| p.1 == "attach"), "captured are {all:?}");
    let said = bed.ctl_json(&["restore", "window", "--detach"])?;
    bed.who.assert_is("the restored python", said["pid"].as_i64().context("no pid")? as i32)?;
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    let expected = format!("{} 4 grandchild {}", fs::read_to_string(dir.join("acted"))?, all[2].0);
    ensure!(proof == expected, "it says {proof:?} instead of {expected:?}");
    Ok(())
}

const EXECUTES: &str = "
import os, sys, time
def wait(what):
    while not os.path.exists(what): time.sleep(0.002)
child = os.fork()
if child == 0:
    wait('act')
    os.execvp('sh', ['sh', '-c', 'echo >acted; until test -e gate; do sleep 0.01; done; exit 5'])
open('ready', 'w').close()
_, status = os.waitpid(child, 0)
open('proof.new', 'w').write(str(status >> 8)); os.rename('proof.new', 'proof')
";

/// A child that is another program when it is stopped than it was when it was looked at.
fn executes_in_the_window(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let mut child = python(bed, &dir, EXECUTES)?;
    let pid = child.id() as i32;
    there(dir.join("ready"))?;
    in_the_window(bed, pid, &["--kill"], &|| {
        fs::write(dir.join("act"), "")?;
        there(dir.join("acted"))
    })?;
    run::end(&mut child, "python", SOON)?;
    bed.let_go(&child);
    bed.reap();
    bed.ctl(&["restore", "window", "--detach"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == "5", "it says {proof:?}");
    Ok(())
}

/// One child with the agent, one without (env -i), and a static one: each by its door, in one checkpoint.
fn doors(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let fixed = bed.stage.program("static_mem");
    let folder = bed.folder()?;
    let script = format!(
        "import os, subprocess, time
bare = subprocess.Popen(['env', '-i', '/bin/sleep', '1000'])
fixed = subprocess.Popen([{fixed:?}, '--dir', {folder:?}])
same = subprocess.Popen(['/bin/sleep', '1001'])
while not os.path.exists({ready:?}): time.sleep(0.002)
def comm(pid): return open('/proc/%d/comm' % pid).read()
while comm(bare.pid) != 'sleep\\n' or comm(same.pid) != 'sleep\\n': time.sleep(0.002)
open('pids.new', 'w').write('%d %d %d' % (bare.pid, fixed.pid, same.pid)); os.rename('pids.new', 'pids')
while not os.path.exists('gate'): time.sleep(0.002)
bare.kill(); same.kill()
open('proof.new', 'w').write('%d %d %d' % (bare.wait(), fixed.wait(), same.wait())); os.rename('proof.new', 'proof')
",
        ready = folder.join("ready"),
    );
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "python3", "-c", &script]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    there(dir.join("pids"))?;
    let pids: Vec<i64> = fs::read_to_string(dir.join("pids"))?.split(' ').filter_map(|w| w.parse().ok()).collect();
    for kill in [&[][..], &["--kill"]] {
        let made = bed.ctl_json(&[&["checkpoint", "job"], kill].concat())?;
        ensure!(made["door"] == "agent" && made["processes"] == 4, "made by {made}");
        let all = processes(bed, "job")?;
        let door = |pid: i64| all.iter().find(|p| p.0 == pid).map(|p| p.1.as_str());
        let doors: Vec<Option<&str>> = pids.iter().map(|p| door(*p)).collect();
        ensure!(doors == [Some("attach"), Some("attach"), Some("agent")], "the doors are {all:?}");
    }
    let said = bed.ctl_json(&["restore", "job", "--detach"])?;
    bed.who.assert_is("the restored python", said["pid"].as_i64().context("no pid")? as i32)?;
    fs::write(folder.join("gate"), "")?;
    there(folder.join("result"))?;
    let result = fs::read_to_string(folder.join("result"))?;
    ensure!(result.starts_with("OK"), "the static child: {result}");
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == "-9 0 -9", "the children ended with {proof}");
    Ok(())
}

/// With `--door agent` a child that the agent cannot reach is named, and all run on.
fn door_agent_only(bed: &mut Bed) -> Result<()> {
    let args = ["--json", "--name", "job", "--detach", "--", "sh", "-c", "env -i /bin/sleep 1000 & wait"];
    let mut c = bed.launcher_command(&args);
    let said = bed.run(&mut c)?.expect(0)?.json()?;
    let pid = said["pid"].as_i64().context("no pid")? as i32;
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    run::until("the child", SOON, || Ok(proc::children(pid).first().is_some_and(|c| comm(*c) == "sleep\n")))?;
    let child = proc::children(pid)[0];
    let words = ["cannot checkpoint", &format!("PID {child}"), "leave out --door agent"];
    bed.ctl(&["checkpoint", "job", "--door", "agent"])?.refused(3, &words)?;
    unharmed::family(pid)?;
    end_session(bed, "job")
}

/// A child that shares its parent's memory, from a program that was not made for that: both are kept by ptrace, and run on.
fn shares_its_memory(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
stack = ctypes.create_string_buffer(1 << 20)
# CLONE_VM, SIGCHLD
child = libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64), 0x100 | 17, None)
assert child > 0
open('pid.new', 'w').write(str(child)); os.rename('pid.new', 'pid')
while not os.path.exists('gate'): time.sleep(0.002)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
";
    let mut parent = python(bed, &dir, script)?;
    there(dir.join("pid"))?;
    let child = fs::read_to_string(dir.join("pid"))?;
    let pid = parent.id().to_string();
    for door in ["attach", "auto"] {
        let made = bed.ctl_json(&["checkpoint", "--pid", &pid, "--name", "x", "--door", door])?;
        ensure!(made["processes"] == 2 && made["door"] == "attach", "a checkpoint of {made}");
        unharmed::family(parent.id() as i32)?;
    }
    let said = bed.ctl_json(&["inspect", "x"])?;
    ensure!(said["processes"][1]["shares_memory"] == said["pid"], "{said}");
    let words = ["cannot checkpoint", "it shares its memory (CLONE_VM) with PID ", "which is not captured with it"];
    bed.ctl(&["checkpoint", "--pid", &child, "--name", "y"])?.refused(3, &words)?;
    fs::write(dir.join("gate"), "")?;
    let status = run::end(&mut parent, "python", LIMIT)?;
    bed.let_go(&parent);
    ensure!(run::code(status) == 0, "the program is harmed: {status}");
    Ok(())
}

/// A ring of io_uring that a child has, too, is refused by name.
fn shared_ring(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import ctypes, os, time
SETUP = 425
assert ctypes.CDLL(None).syscall(SETUP, 4, ctypes.create_string_buffer(120)) >= 0
os.fork()
open('ready', 'w').close()
while True: time.sleep(1000)
";
    launched(bed, &dir, script)?;
    there(dir.join("ready"))?;
    bed.ctl(&["checkpoint", "job"])?.refused(3, &["(anon_inode:[io_uring])", "another process has it too, PID "])?;
    bed.reap();
    end_session(bed, "job")
}

/// A grandchild in vfork, whose parent could not be stopped: it is refused by name before anybody is stopped. When it has ended the others are kept.
fn vfork(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import ctypes, os, threading, time
if os.fork(): # the program waits for the one that vforks
    os.wait(); open('end', 'w').close()
    while True: time.sleep(1000)
libc = ctypes.CDLL(None)
stack = ctypes.create_string_buffer(1 << 20)
reader, writer = os.pipe()
def watch():
    last, longest = time.monotonic(), 0
    while not os.path.exists('gate'):
        time.sleep(0.002)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    open('longest', 'w').write(str(longest))
    os.write(writer, b'.')
threading.Thread(target=watch).start()
# it reads a byte and ends
byte = ctypes.create_string_buffer(1)
code = bytes([0x0f, 0x05, 0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05])
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
head = b'\\xbf' + reader.to_bytes(4, 'little') + b'\\x48\\xbe' + ctypes.addressof(byte).to_bytes(8, 'little') + b'\\xba' + (1).to_bytes(4, 'little') + b'\\x31\\xc0'
page.write(head + code)
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid')
# CLONE_VFORK, CLONE_VM, SIGCHLD
assert libc.clone(ctypes.c_void_p(at), ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64), 0x4000 | 0x100 | 17, None) > 0
open('on', 'w').close()
assert os.wait()[1] == 0
while not os.path.exists('last'): time.sleep(0.002)
";
    launched(bed, &dir, script)?;
    there(dir.join("pid"))?;
    let pid = fs::read_to_string(dir.join("pid"))?;
    let children = format!("/proc/{pid}/task/{pid}/children");
    run::until("the one in vfork", LIMIT, || Ok(!fs::read_to_string(&children)?.is_empty()))?;
    let child = fs::read_to_string(&children)?.trim().to_owned();
    let words = ["cannot checkpoint", &format!("process {child}"), "it is in vfork(2) (CLONE_VFORK)"];
    for door in ["attach", "agent", "auto"] {
        bed.ctl(&["checkpoint", "job", "--door", door])?.refused(3, &words)?;
    }
    ensure!(!dir.join("on").exists(), "the one in vfork has gone on");
    fs::write(dir.join("gate"), "")?;
    there(dir.join("on"))?;
    // who is stopped with it stands for the 5 s that it is waited for
    let longest: f64 = fs::read_to_string(dir.join("longest"))?.parse()?;
    ensure!(longest < 3.0, "its parent stood still for {longest} s");
    let made = bed.ctl_json(&["checkpoint", "job"])?;
    ensure!(made["processes"] == 2, "a checkpoint of {made}");
    fs::write(dir.join("last"), "")?;
    there(dir.join("end"))?;
    bed.reap();
    end_session(bed, "job")
}

/// What several processes have in common and cannot be kept is one reason, said once, however often it was looked at.
fn refused_once(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import os, time
handle = os.pidfd_open(1)
for _ in range(3):
    if os.fork() == 0: break
else:
    other = os.pidfd_open(1)
    open('ready', 'w').close()
while True: time.sleep(1000)
";
    launched(bed, &dir, script)?;
    there(dir.join("ready"))?;
    let said = bed.ctl(&["--json", "checkpoint", "job"])?.expect(3)?;
    let said: serde_json::Value = serde_json::from_str(&said.out)?;
    let objects: Vec<&str> =
        said["error"]["reasons"].as_array().into_iter().flatten().filter_map(|r| r["object"].as_str()).collect();
    let expected = ["descriptor 3 (anon_inode:[pidfd]), and in 3 other processes", "descriptor 4 (anon_inode:[pidfd])"];
    ensure!(objects == expected, "it should be refused for {expected:?}, it says {said}");
    bed.reap();
    end_session(bed, "job")
}

/// A dead process that is in the session that its parent has left: it cannot be born into that, and the restore says so.
fn dead_in_another_session(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import os, signal, time
if os.fork() == 0:
    dead = os.fork()
    if dead == 0: os._exit(3)
    os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
    os.setsid()
    open('dead.new', 'w').write(str(dead)); os.rename('dead.new', 'dead')
    while not os.path.exists('gate'): time.sleep(0.002)
    open('proof.new', 'w').write(str(os.waitpid(dead, 0) == (dead, 3 << 8))); os.rename('proof.new', 'proof')
    os._exit(0)
os.wait()
";
    launched(bed, &dir, script)?;
    there(dir.join("dead"))?;
    let dead = fs::read_to_string(dir.join("dead"))?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    bed.reap();
    let said = bed.ctl_json(&["restore", "job", "--detach"])?;
    let lost = format!("ended process {dead} (python3): it is not in its session");
    let notes = said["notes"].as_array().context("a restore has notes")?;
    let told = notes.iter().filter_map(|n| n.as_str()).any(|n| n.starts_with(&lost));
    ensure!(told, "what is lost of {dead} is not said: {said}");
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == "True", "its status is another one");
    Ok(())
}

/// Processes that fork as fast as they can, up to a bound: all of them are frozen, and every one comes back.
fn fork_bomb(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import os, time
r, w = os.pipe()
def grow(depth):
    os.write(w, b'.')
    kids = []
    if depth:
        for _ in range(2):
            time.sleep(0.003)
            pid = os.fork()
            if pid == 0:
                grow(depth - 1)
                while not os.path.exists('gate'): time.sleep(0.01)
                os._exit(0)
            kids.append(pid)
        while not os.path.exists('gate'): time.sleep(0.01)
        for pid in kids: assert os.waitpid(pid, 0)[1] == 0
open('ready', 'w').close()
grow(5)
os.close(w)
n = 0
while True:
    b = os.read(r, 4096)
    if not b: break
    n += len(b)
open('proof.new', 'w').write(str(n)); os.rename('proof.new', 'proof')
";
    launched(bed, &dir, script)?;
    there(dir.join("ready"))?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    bed.reap();
    bed.ctl(&["restore", "job", "--detach"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == "63", "there were {proof} processes instead of 63");
    Ok(())
}

/// 48 MiB that five processes have from a fork: once in the image, and once in memory after the restore, with what each has changed.
fn shared_pages(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import hashlib, mmap, os, random, time
size, page = 48 << 20, 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = random.Random(1).randbytes(size)
def own(n): # one page in a hundred is another one, and some are gone
    for at in range(n * page, size, 100 * page): memory[at:at + page] = bytes([n]) * page
    memory.madvise(mmap.MADV_DONTNEED, (40 + n) * page * 16, page * 8)
def prove(n):
    with open('proof%d.new' % n, 'w') as f: f.write(hashlib.sha256(memory).hexdigest())
    os.rename('proof%d.new' % n, 'proof%d' % n)
kids = []
for n in range(1, 5):
    pid = os.fork()
    if pid == 0:
        own(n)
        with open('before%d.new' % n, 'w') as f: f.write(hashlib.sha256(memory).hexdigest())
        os.rename('before%d.new' % n, 'before%d' % n)
        while not os.path.exists('gate'): time.sleep(0.01)
        prove(n)
        os._exit(0)
    kids.append(pid)
for n in range(1, 5):
    while not os.path.exists('before%d' % n): time.sleep(0.01)
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.01)
for pid in kids: os.waitpid(pid, 0)
prove(0)
";
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "python3", "-c", script]);
    c.current_dir(&dir);
    let said = bed.run(&mut c)?.expect(0)?.json()?;
    there(dir.join("ready"))?;
    let before = proportional(said["pid"].as_i64().context("no pid")? as i32)?;
    // the second time what is restored is captured
    for _ in 0..2 {
        let made = bed.ctl_json(&["checkpoint", "job", "--kill"])?;
        ensure!(made["processes"] == 5 && made["door"] == "agent", "a checkpoint of {made}");
        let bytes = made["bytes"].as_u64().context("no bytes")?;
        ensure!(bytes < 60 << 20, "the image has {bytes} bytes");
        bed.reap();
        let said = bed.ctl_json(&["restore", "job", "--detach"])?;
        let after = proportional(said["pid"].as_i64().context("no pid")? as i32)?;
        ensure!(after < before + before / 20, "{before} KiB have become {after}");
    }
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof0"))?;
    for n in 1..5 {
        let (was, is) = (dir.join(format!("before{n}")), dir.join(format!("proof{n}")));
        ensure!(fs::read(&was)? == fs::read(&is)?, "the memory of child {n} is another");
    }
    ensure!(fs::read(dir.join("proof0"))? != fs::read(dir.join("proof1"))?, "a child's memory is its parent's");
    Ok(())
}

/// Memory of a tree, each page counted once: KiB.
fn proportional(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for pid in std::iter::once(pid).chain(proc::descendants(pid)) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss in smaps_rollup")?;
        sum += line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).context("Pss is no number")?;
    }
    Ok(sum)
}

/// A program that starts others all the time, by whichever door each can be reached.
fn busy(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("tree").args(["--what", "busy"]).door(Door::Launched).by_agent(true).ready(bed)?;
    for _ in 0..10 {
        let made = bed.ctl_json(&["checkpoint", &target.session.clone()])?;
        ensure!(made["door"] == "agent", "made by {made}");
        unharmed::family(target.pid)?;
    }
    bed.ctl(&["checkpoint", &target.session.clone(), "--kill"])?.expect(0)?;
    target.gone(bed)?;
    target.restore(bed)?;
    target.prove(bed).map(drop)
}
