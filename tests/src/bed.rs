//! What one case has: a folder of its own, a state directory in it, launcher and ctl, and the duty to leave nothing.
use crate::run::{self, Ran};
use crate::stage::Stage;
use crate::{proc, Who};
use anyhow::{bail, ensure, Context, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{chown, DirBuilderExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Longest that any one command of ours may take.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Longest that something may take to be seen that should be there already.
pub const SOON: Duration = Duration::from_secs(5);

/// One case's surroundings.
pub struct Bed {
    /// Where the binaries are.
    pub stage: Stage,
    /// Who does it all.
    pub who: Who,
    /// The case's folder, the user's.
    pub dir: PathBuf,
    /// What was done, for the report of a failure.
    pub log: Vec<String>,
    /// Our own long-lived children: reaped by whoever holds them.
    held: Vec<i32>,
    number: u32,
}

/// A folder that nobody had: in a long run PIDs come round.
fn fresh(below: &Path) -> Result<PathBuf> {
    let me = std::process::id();
    for n in 0.. {
        let dir = below.join(format!("{me}.{n}"));
        match fs::DirBuilder::new().mode(0o755).create(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            r => return r.map(|()| dir).with_context(|| format!("mkdir in {}", below.display())),
        }
    }
    bail!("no name is free in {}", below.display())
}

impl Bed {
    /// A fresh one; this process becomes the one that all orphans come to.
    pub fn make(who: Who) -> Result<Bed> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let stage = Stage::given()?;
        let dir = fresh(&stage.path)?;
        let bed = Bed { stage, who, dir, log: Vec::new(), held: Vec::new(), number: 0 };
        bed.give(&bed.dir)?;
        Ok(bed)
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A new folder of the user's.
    pub fn folder(&mut self) -> Result<PathBuf> {
        self.number += 1;
        let dir = self.dir.join(self.number.to_string());
        fs::create_dir(&dir)?;
        self.give(&dir)?;
        Ok(dir)
    }

    /// A new, empty file of the user's, open for writing.
    pub fn file(&mut self, what: &str) -> Result<(PathBuf, File)> {
        self.number += 1;
        let path = self.dir.join(format!("{}.{what}", self.number));
        let file = File::create(&path)?;
        self.give(&path)?;
        Ok((path, file))
    }

    /// Makes a file the user's.
    pub fn give(&self, path: &Path) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(()); // it is already
        }
        chown(path, Some(self.who.uid()), Some(self.who.uid())).with_context(|| format!("chown {}", path.display()))
    }

    /// A command that the user runs in the case's folder, with little in its environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut c = Command::new(program);
        c.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").env("LANG", "C.UTF-8");
        c.env("HOME", &self.dir).env("DORMOUSE_STATE_DIR", self.state()).current_dir(&self.dir);
        self.who.apply(&mut c);
        c
    }

    /// `ctl ARGS`.
    pub fn ctl_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut c = self.command(self.stage.bin("ctl"));
        c.args(args);
        c
    }

    /// `launcher ARGS`.
    pub fn launcher_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut c = self.command(self.stage.bin("launcher"));
        c.args(args);
        c
    }

    /// Runs ctl to its end, as the user (which is checked).
    pub fn ctl<S: AsRef<OsStr>>(&mut self, args: &[S]) -> Result<Ran> {
        let mut c = self.ctl_command(args);
        self.run(&mut c)
    }

    /// Runs ctl with a fault on demand.
    pub fn ctl_fault<S: AsRef<OsStr>>(&mut self, fault: &str, args: &[S]) -> Result<Ran> {
        let mut c = self.ctl_command(args);
        c.env("DORMOUSE_FAULT", fault);
        self.run(&mut c)
    }

    /// Runs ctl, which stops itself at a place (`freeze`: before that phase; `agent`: before it calls a thread in), until something is done; that is told ctl's PID.
    pub fn ctl_stopped<S: AsRef<OsStr>>(
        &mut self,
        at: &str,
        args: &[S],
        act: impl FnOnce(i32) -> Result<()>,
    ) -> Result<Ran> {
        let mut c = self.ctl_command(args);
        c.env("DORMOUSE_FAULT", format!("{at}:1:stop-self"));
        let (mut ctl, out, err) = self.spawn(&mut c)?;
        let pid = ctl.id() as i32;
        run::until(&format!("ctl before {at}"), LIMIT, || {
            ensure!(ctl.try_wait()?.is_none(), "ctl ended: {}", fs::read_to_string(&err)?);
            Ok(proc::status(pid).is_some_and(|s| s.state == 'T'))
        })?;
        act(pid)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGCONT)?;
        let typed = run::typed(&c);
        let status = run::end(&mut ctl, &typed, LIMIT)?;
        self.let_go(&ctl);
        let (out, err) = (fs::read_to_string(out)?, fs::read_to_string(err)?);
        self.log
            .push(format!("$ DORMOUSE_FAULT={at}:1:stop-self {typed}\n{out}{err}[exit code {}]", run::code(status)));
        Ok(Ran { command: typed, status, out, err })
    }

    /// Runs ctl, which must succeed and say JSON.
    pub fn ctl_json<S: AsRef<OsStr>>(&mut self, args: &[S]) -> Result<serde_json::Value> {
        let mut c = self.ctl_command(&["--json"]);
        c.args(args);
        self.run(&mut c)?.expect(0)?.json()
    }

    /// Runs a command to its end.
    pub fn run(&mut self, command: &mut Command) -> Result<Ran> {
        let (mut child, out, err) = self.spawn(command)?;
        // Even if it has ended by now: it is our zombie, which keeps its credentials.
        self.who.assert_is("a command of the user's", child.id() as i32)?;
        let typed = run::typed(command);
        let status = run::end(&mut child, &typed, LIMIT);
        self.let_go(&child);
        self.reap();
        let read = |path: &Path| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
        let (out, err) = (read(&out)?, read(&err)?);
        let fault = command.get_envs().find(|(k, _)| *k == "DORMOUSE_FAULT").and_then(|(_, v)| v);
        let fault = fault.map(|f| format!("DORMOUSE_FAULT={} ", f.to_string_lossy())).unwrap_or_default();
        let how = status.as_ref().map_or_else(|e| e.to_string(), |s| format!("exit code {}", run::code(*s)));
        self.log.push(format!("$ {fault}{typed}\n{out}{err}[{how}]"));
        Ok(Ran { command: typed, status: status?, out, err })
    }

    /// Starts a command; gives where its output goes.
    pub fn spawn(&mut self, command: &mut Command) -> Result<(Child, PathBuf, PathBuf)> {
        let ((out, to_out), (err, to_err)) = (self.file("out")?, self.file("err")?);
        let child = run::start(command, to_out, to_err)?;
        self.hold(child.id() as i32);
        Ok((child, out, err))
    }

    /// A child that somebody will wait for.
    pub fn hold(&mut self, pid: i32) {
        self.held.push(pid);
    }

    /// A child that was waited for.
    pub fn let_go(&mut self, child: &Child) {
        self.held.retain(|p| *p != child.id() as i32);
    }

    /// Reaps orphans that have ended; their PIDs are then free again.
    pub fn reap(&self) {
        for pid in proc::children(std::process::id() as i32) {
            if !self.held.contains(&pid) {
                crate::sys::reap(pid);
            }
        }
    }

    /// Everything that was started must end by itself now; what does not is killed, and named.
    pub fn leave_nothing(&mut self, limit: Duration) -> Result<()> {
        let me = std::process::id() as i32;
        self.held.clear();
        let gone = run::until("the end of all", limit, || {
            self.reap();
            Ok(proc::children(me).is_empty())
        });
        let left: Vec<String> = proc::descendants(me).into_iter().map(describe).collect();
        crate::watch::end_all_below();
        match gone {
            Err(_) if !left.is_empty() => bail!("processes were left behind:\n  {}", left.join("\n  ")),
            _ => Ok(()),
        }
    }
}

/// A process as a report names it.
fn describe(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    match proc::status(pid) {
        Some(s) => {
            format!("PID {pid} ({}, state {}, parent {}, tracer {}) {command}", s.comm, s.state, s.ppid, s.tracer)
        }
        None => format!("PID {pid}"),
    }
}
