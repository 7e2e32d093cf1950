//! What the launcher's tests share: a state directory of their own (deeper than a socket address holds), the launcher
//! as a command, and an end in which no process of theirs is left.
#![allow(dead_code)]

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use session::StateDir;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

pub struct Sandbox {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
}

/// Runs a command without what this test itself was started with (a job server, an editor's pipes), of which launcher speaks.
const CLEAN: &str =
    "for fd in /proc/self/fd/*; do [ ${fd##*/} -le 2 ] || eval \"exec ${fd##*/}>&-\"; done; exec \"$@\"";

impl Sandbox {
    pub fn new() -> Sandbox {
        // Orphaned supervisors come to us and not to a PID 1 that may not reap.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep".repeat(20)).join("state".repeat(20));
        Sandbox { dir, path }
    }

    pub fn state(&self) -> StateDir {
        StateDir::open(&self.path).unwrap()
    }

    /// `launcher --state-dir ... OPTIONS -- COMMAND`, without stdin.
    pub fn launcher(&self, options: &[&str], command: &[&str]) -> Command {
        let mut c = Command::new("bash");
        c.args(["-c", CLEAN, "-", env!("CARGO_BIN_EXE_launcher"), "--state-dir"])
            .arg(&self.path)
            .args(options)
            .arg("--")
            .args(command);
        c.stdin(Stdio::null()).env_remove("DORMOUSE_STATE_DIR");
        c
    }

    /// Runs it to its end; gives status, stdout and stderr.
    pub fn run(&self, options: &[&str], command: &[&str]) -> (ExitStatus, String, String) {
        let out = self.launcher(options, command).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (out.status, text(out.stdout), text(out.stderr))
    }

    /// Starts a detached session.
    pub fn detached(&self, name: &str, command: &[&str]) -> Detached<'_> {
        let (status, stdout, stderr) = self.run(&["--name", name, "--detach", "--json"], command);
        assert!(status.success(), "{stderr}");
        let started: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let number = |key: &str| started[key].as_i64().unwrap() as i32;
        Detached { sandbox: self, name: name.into(), pid: number("pid"), supervisor: number("supervisor") }
    }

    /// Starts it in the foreground and waits for the line `ready` on its stdout.
    pub fn ready(&self, options: &[&str], command: &[&str]) -> Foreground {
        let mut c = self.launcher(options, command);
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("instead of ready: {line:?}, {said}");
        }
        Foreground { child, out }
    }
}

pub struct Foreground {
    pub child: Child,
    pub out: BufReader<std::process::ChildStdout>,
}

impl Foreground {
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_string()
    }

    /// Waits for the end: code, the rest of stdout, stderr.
    pub fn end(mut self) -> (ExitStatus, String, String) {
        drop(self.child.stdin.take());
        let (mut out, mut err) = (String::new(), String::new());
        let status = self.child.wait().unwrap();
        self.out.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status, out, err)
    }
}

pub struct Detached<'a> {
    sandbox: &'a Sandbox,
    pub name: String,
    pub pid: i32,
    pub supervisor: i32,
}

impl Detached<'_> {
    /// Waits until the session has ended.
    pub fn wait(&self) {
        waitpid(Pid::from_raw(self.supervisor), None).unwrap();
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        // Already over in most tests.
        let name = session::name::parse(&self.name).unwrap();
        let _ = session::kill_session(&self.sandbox.state(), &name);
        let _ = waitpid(Pid::from_raw(self.supervisor), None);
    }
}

/// A Python program that says each signal it gets on its stdout, and ends with 5 at the end of its stdin.
pub const SAYS_SIGNALS: &str = "
import os, select, signal, sys
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w)
for s in ('INT', 'TERM', 'HUP', 'QUIT', 'USR1', 'USR2', 'WINCH', 'CONT', 'ALRM'):
    signal.signal(getattr(signal, 'SIG' + s), lambda *_: None)
os.write(1, b'ready\\n')
while r in select.select([0, r], [], [])[0]:
    for s in os.read(r, 64): os.write(1, signal.Signals(s).name.encode() + b'\\n')
sys.exit(5)
";
