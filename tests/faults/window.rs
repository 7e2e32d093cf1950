//! The target changes between the survey and the freeze: what was looked at counts for nothing if it is not so any more.
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::{proc, run, store, sys, unharmed, Bed, Case, Who};
use std::fs;
use std::process::Stdio;

/// What it does then, and what the refusal must say.
const ACTS: [(&str, &str, &[&str]); 6] = [
    (
        "maps-secret-memory",
        "fd = libc.syscall(447, 0); os.ftruncate(fd, 4096); libc.mmap.restype = ctypes.c_void_p; assert libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, 0) != 2**64 - 1; os.close(fd)",
        &["mapping ", "secret memory (memfd_secret) lets nobody read it"],
    ),
    (
        "executes",
        "os.execv(sys.executable, [sys.executable, '-c', AGAIN])",
        &["it has executed another program while it was looked at", "try again"],
    ),
    (
        "executes-the-same",
        "os.execv(sys.executable, sys.orig_argv)",
        &["it has executed another program while it was looked at", "try again"],
    ),
    // what is not inherited by a snapshot child
    (
        "has-a-userfaultfd",
        "assert libc.syscall(323, 1) >= 0",
        &["descriptor ", "faults of the program's memory (userfaultfd), which is not kept", "close it before the checkpoint"],
    ),
    // a thread that has been there all the time: nothing may be run in it that its filter kills the program for (here
    // get_robust_list, 274)
    (
        "restricts-a-thread",
        "in_thread(lambda: libc.prctl(22, 2, ctypes.c_void_p(program(0x20,0,0,0, 0x15,0,1,274, 6,0,0,0x80000000, 6,0,0,0x7fff0000))))",
        &["thread ", "it has come under seccomp while it was looked at", "try again"],
    ),
    (
        "parts-with-a-thread",
        "in_thread(lambda: libc.unshare(0x600))",
        &["thread ", "it has descriptors, or a working directory and umask, of its own"],
    ),
];

/// Acts that only root may do.
const ROOTS_ACTS: [(&str, &str, &[&str]); 1] = [(
    "enters-a-namespace",
    "assert libc.unshare(0x4000000) == 0",
    &["uts namespace", "it has entered another one while it was looked at", "try again"],
)];

/// Waits for `act`, acts, says `acted`, and ends with 7 at the gate.
const SCRIPT: &str = "
import ctypes, os, struct, sys, threading, time
home = os.getcwd()
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0) # PR_SET_NO_NEW_PRIVS: for the filter of a thread
if os.path.exists(home + '/act'): # executed again
    open(home + '/acted', 'w').close()
    while not os.path.exists(home + '/gate'): time.sleep(0.002)
    sys.exit(7)
def program(*words):
    global kept
    kept = ctypes.create_string_buffer(struct.pack('<' + 'HBBI' * (len(words) // 4), *words))
    kept = kept, ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', len(words) // 4, ctypes.addressof(kept)))
    return ctypes.addressof(kept[1])
turn, over, task, went = threading.Event(), threading.Event(), None, None
def other():
    global went
    turn.wait()
    if task: went = task()
    over.set()
    while True: time.sleep(3600)
def in_thread(what):
    global task
    task = what
    turn.set()
    over.wait()
    assert went == 0
threading.Thread(target=other, daemon=True).start()
open('ready', 'w').close()
while not os.path.exists(home + '/act'): time.sleep(0.002)
ACT
open(home + '/acted', 'w').close()
while not os.path.exists(home + '/gate'): time.sleep(0.002)
sys.exit(7)
";

/// The same from where it has acted, for who was executed then.
const AGAIN: &str = "
import os, sys, time
open('acted', 'w').close()
while not os.path.exists('gate'): time.sleep(0.002)
sys.exit(7)
";

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, act, words) in ACTS {
        all.extend(Case::each(&format!("window/{name}"), move |bed| window(bed, act, words)));
    }
    for (name, act, words) in ROOTS_ACTS {
        let whos = Who::all().iter().filter(|w| **w == Who::Root);
        all.extend(whos.map(|w| Case::new(format!("window/{name}"), *w, move |bed| window(bed, act, words))));
    }
    all
}

fn window(bed: &mut Bed, act: &str, words: &[&str]) -> Result<()> {
    let dir = bed.folder()?;
    // without randomization, so that the same program executed again lies where it lay
    let mut c = bed.command("setarch");
    c.args(["-R", "python3", "-c", &SCRIPT.replace("ACT", act).replace("AGAIN", &format!("{AGAIN:?}"))]);
    c.current_dir(&dir).stdin(Stdio::null());
    sys::own_session(&mut c);
    let (mut child, _, err) = bed.spawn(&mut c)?;
    let child_pid = child.id() as i32;
    let there = |name: &str| {
        let path = dir.join(name);
        run::until(name, LIMIT, || {
            ensure!(proc::status(child_pid).is_some(), "it ended: {}", fs::read_to_string(&err)?);
            Ok(path.exists())
        })
    };
    there("ready")?;
    let pid = child.id().to_string();
    let act = |_| {
        fs::write(dir.join("act"), "")?;
        there("acted")
    };
    bed.ctl_stopped("freeze", &["checkpoint", "--pid", &pid, "--name", "window"], act)?.refused(3, words)?;
    unharmed::entirely(child_pid)?;
    ensure!(store::numbers(bed, "window").is_empty(), "a checkpoint was made");
    fs::write(dir.join("gate"), "")?;
    let status = run::end(&mut child, "the program", LIMIT)?;
    bed.let_go(&child);
    ensure!(run::code(status) == 7, "the program is harmed: it ended with {status}");
    Ok(())
}
