//! Trees that people run: a shell's pipeline, Python's pool of workers, its asyncio with children, a program that watches its daemon.
use super::{launched, there};
use anyhow::{ensure, Result};
use dormouse_tests::{Bed, Case};
use std::fs;
use std::path::Path;

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("trees/pipeline", pipeline);
    all.extend(Case::each("trees/multiprocessing", multiprocessing));
    all.extend(Case::each("trees/asyncio", asyncio));
    all.extend(Case::each("trees/handles", handles));
    all
}

/// Checkpointed twice and restored, it says this at its gate.
fn proves(bed: &mut Bed, dir: &Path, expected: &str) -> Result<()> {
    for options in [&[][..], &["--kill"]] {
        bed.ctl(&[&["checkpoint", "job"], options].concat())?.expect(0)?;
    }
    bed.reap();
    bed.ctl(&["restore", "job", "--detach"])?.expect(0)?;
    fs::write(dir.join("gate"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == expected, "it says {proof}");
    Ok(())
}

/// A shell and its pipeline, which goes on to the last byte.
fn pipeline(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); [ $i = 500 ] && echo >half && until test -e go; do :; done; done | sed s/^/x/ | cat >out; echo $? >done.new; mv done.new done";
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "sh", "-c", script]);
    c.current_dir(&dir);
    bed.run(&mut c)?.expect(0)?;
    there(dir.join("half"))?;
    for _ in 0..3 {
        let made = bed.ctl_json(&["checkpoint", "job", "--kill"])?;
        ensure!(made["processes"] == 4 && made["door"] == "agent", "a checkpoint of {made}");
        bed.reap();
        bed.ctl(&["restore", "job", "--detach"])?.expect(0)?;
    }
    fs::write(dir.join("go"), "")?;
    there(dir.join("done"))?;
    let expected: String = (0..3000).map(|i| format!("x{i}\n")).collect();
    ensure!(fs::read_to_string(dir.join("out"))? == expected, "lines are lost, or come twice");
    Ok(())
}

/// Python's pool of workers, with its pipes, semaphores in shared memory and threads.
fn multiprocessing(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import multiprocessing, os, time
def square(n):
    time.sleep(0.002)
    return n * n, os.getpid()
if __name__ == '__main__':
    done, pids = [], set()
    with multiprocessing.get_context('fork').Pool(3) as pool:
        while len(done) < 600 or not os.path.exists('go'):
            for n, pid in pool.map(square, range(len(done), len(done) + 6)):
                done.append(n); pids.add(pid)
            if len(done) == 60: open('some', 'w').close()
    open('proof.new', 'w').write('%d %s' % (len(pids), done == [n * n for n in range(len(done))])); os.rename('proof.new', 'proof')
";
    launched(bed, &dir, script)?;
    there(dir.join("some"))?;
    for options in [&[][..], &["--kill"]] {
        let made = bed.ctl_json(&[&["checkpoint", "job"], options].concat())?;
        ensure!(made["processes"] == 4 && made["door"] == "agent", "a checkpoint of {made}");
    }
    bed.reap();
    bed.ctl(&["restore", "job", "--detach"])?.expect(0)?;
    fs::write(dir.join("go"), "")?;
    there(dir.join("proof"))?;
    let proof = fs::read_to_string(dir.join("proof"))?;
    ensure!(proof == "3 True", "it says {proof}");
    Ok(())
}

/// Python's asyncio with the watcher that has a pidfd of each child: one that ends after the restore is noticed, with its status, and so is one to which a
/// signal is sent.
fn asyncio(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import asyncio, os, warnings
warnings.simplefilter('ignore')
if hasattr(asyncio, 'PidfdChildWatcher'): asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
def handles(): return sum('pidfd' in os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n))
async def main():
    sh = asyncio.create_subprocess_exec
    waits = await sh('sh', '-c', 'while [ ! -e gate ]; do sleep 0.01; done; exit 9')
    sleeps = await sh('sleep', '1000')
    said = await sh('cat', stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    before = handles()
    open('ready', 'w').close()
    one = await waits.wait()
    sleeps.terminate()
    two = await sleeps.wait()
    out, _ = await said.communicate(b'hello')
    proof = '%d %d %d %s %d' % (before, one, two, out.decode(), said.returncode)
    open('proof.new', 'w').write(proof); os.rename('proof.new', 'proof')
asyncio.run(main())
";
    launched(bed, &dir, script)?;
    there(dir.join("ready"))?;
    proves(bed, &dir, "3 9 -15 hello 0")
}

/// A handle of a daemon, which is the supervisor's child: it lives when it is restored, and its end is seen.
fn handles(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = "
import os, select, time
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(w, b'%d ' % os.getpid())
        while not os.path.exists('end'): time.sleep(0.001)
    os._exit(0)
os.wait()
daemon = int(os.read(r, 20))
handle = os.pidfd_open(daemon)
open('ready', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
lives = not select.select([handle], [], [], 0)[0]
open('end', 'w').close()
ends = bool(select.select([handle], [], [], 10)[0])
open('proof.new', 'w').write('%s %s' % (lives, ends)); os.rename('proof.new', 'proof')
";
    launched(bed, &dir, script)?;
    there(dir.join("ready"))?;
    proves(bed, &dir, "True True")
}
