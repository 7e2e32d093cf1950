//! A behaviour program under test: started, checkpointed, restored, called to its gate, and judged by its own result.
use crate::bed::{Bed, LIMIT, SOON};
use crate::case::Skip;
use crate::pty::Pty;
use crate::{proc, run, store};
use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Child;

/// How Dormouse comes to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `launcher --name N --detach -- PROGRAM`.
    Launched,
    /// Started by us, leader of a session of its own; `ctl checkpoint --pid PID --name N`.
    Leader,
    /// Started by us, in our session and group; by its PID too.
    Member,
    /// `launcher --name N -- PROGRAM` in the foreground of a terminal.
    Terminal,
    /// Started by us on a terminal; by its PID.
    OnTerminal,
}

/// Option of ctl by which threads in strict seccomp mode are entered.
pub const RISK: &str = "--risk-seccomp-strict";

/// What to start.
#[derive(Clone, Debug)]
pub struct Start {
    program: String,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    door: Door,
    agent: bool,
    under: Vec<String>,
}

impl Start {
    /// A behaviour program, as a leader of a session.
    pub fn program(name: &str) -> Start {
        Start { program: name.into(), args: vec![], envs: vec![], door: Door::Leader, agent: false, under: vec![] }
    }

    /// With arguments of its own.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Start {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Start {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// launcher is started by this command.
    pub fn under(self, command: &[&str]) -> Start {
        Start { under: command.iter().map(|w| (*w).to_owned()).collect(), ..self }
    }

    /// By this door.
    pub fn door(self, door: Door) -> Start {
        Start { door, ..self }
    }

    /// Launched with the agent, by which all its checkpoints are made.
    pub fn agent(self) -> Start {
        Start { agent: true, ..self }
    }

    /// As what is captured by ptrace: started by us; or by the agent: launched with it.
    pub fn by_agent(self, agent: bool) -> Start {
        if agent {
            self.door(Door::Launched).agent()
        } else {
            self
        }
    }

    /// Started by us, but with the agent, by which all its checkpoints are made: for one with a second process, which launcher would count to the session.
    pub fn preloaded(self, bed: &mut Bed) -> Result<Start> {
        let state = bed.dir.join("for-the-agent");
        let mut c = bed.launcher_command(&["--state-dir"]);
        c.arg(&state).args(["--name", "s", "--door", "agent", "--", "true"]);
        bed.run(&mut c)?.expect(0)?;
        let names = fs::read_dir(&state)?.filter_map(|e| Some(e.ok()?.path().to_str()?.to_owned()));
        let agent = names.into_iter().find(|n| n.ends_with(".so")).context("launcher wrote no agent")?;
        Ok(self.env("LD_PRELOAD", &agent).agent())
    }

    /// Starts it, and waits until it is ready.
    pub fn ready(self, bed: &mut Bed) -> Result<Target> {
        let dir = bed.folder()?;
        let session = format!("s{}", dir.file_name().unwrap_or_default().to_string_lossy());
        let mut words = vec![bed.stage.program(&self.program).into_os_string(), "--dir".into(), dir.clone().into()];
        words.extend(self.args.iter().map(Into::into));
        let mut target = Target {
            pid: 0,
            dir,
            session,
            child: None,
            pty: None,
            known: false,
            program: self.program.clone(),
            agent: self.agent,
        };
        let launch = |options: &[&str]| {
            let mut c = match self.under.first() {
                None => bed.launcher_command(&[""; 0]),
                Some(first) => {
                    let mut c = bed.command(first);
                    c.args(&self.under[1..]).arg(bed.stage.bin("launcher"));
                    c
                }
            };
            c.args(["--name", &target.session]);
            c.args(["--door", if self.agent { "agent" } else { "attach" }]);
            c.args(options).arg("--").args(&words).envs(self.envs.iter().cloned());
            c
        };
        match self.door {
            Door::Launched => {
                let mut c = launch(&["--detach", "--json"]);
                let said = bed.run(&mut c)?.expect(0)?.json()?;
                target.pid = said["pid"].as_i64().context("launcher --json tells no pid")? as i32;
                target.known = true;
            }
            Door::Terminal => {
                let pty = Pty::new((24, 80))?;
                target.child = Some(pty.spawn(bed, &mut launch(&["--json"]))?);
                // Only then is it a session: the program itself may be ready before.
                pty.wait_for("\"started\"")?;
                target.pty = Some(pty);
                target.known = true;
            }
            Door::Leader | Door::Member | Door::OnTerminal => {
                let mut c = bed.command(&words[0]);
                c.args(&words[1..]).envs(self.envs.iter().cloned());
                if self.door == Door::OnTerminal {
                    let pty = Pty::new((24, 80))?;
                    let child = pty.spawn(bed, &mut c)?;
                    (target.pid, target.child, target.pty) = (child.id() as i32, Some(child), Some(pty));
                    return target.into_ready(bed);
                }
                if self.door == Door::Leader {
                    crate::sys::own_session(&mut c);
                }
                let (child, _, _) = bed.spawn(&mut c)?;
                target.pid = child.id() as i32;
                target.child = Some(child);
            }
        }
        target.into_ready(bed)
    }
}

/// A running program.
pub struct Target {
    /// Its PID as we see it.
    pub pid: i32,
    /// Its DIR.
    pub dir: PathBuf,
    /// Its session's name.
    pub session: String,
    /// The process that we started, if it is our child.
    pub child: Option<Child>,
    /// Its terminal, if we gave it one.
    pub pty: Option<Pty>,
    known: bool,
    program: String,
    /// Its checkpoints are made by the agent.
    pub agent: bool,
}

impl Target {
    fn into_ready(mut self, bed: &mut Bed) -> Result<Target> {
        self.wait_ready(bed)?;
        bed.who.assert_is(&self.program, self.pid)?;
        Ok(self)
    }

    fn wait_ready(&mut self, bed: &mut Bed) -> Result<()> {
        let (ready, result) = (self.dir.join("ready"), self.dir.join("result"));
        run::until(&format!("{} ready", self.program), LIMIT, || {
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?.is_some(),
                None => !proc::alive(self.pid),
            };
            Ok(ready.exists() || result.exists() || ended)
        })?;
        if !ready.exists() {
            let said = fs::read_to_string(&result).unwrap_or_else(|_| "it ended without a result".into());
            if let Some(why) = said.strip_prefix("SKIP: ") {
                return Err(Skip(why.trim().into()).into());
            }
            bail!("{} did not get ready: {said}", self.program);
        }
        if self.pid == 0 {
            // Launched in the foreground: nothing has told its PID, and it was never restored, so its own is ours.
            self.pid = fs::read_to_string(&ready)?.trim().parse()?;
        }
        bed.log.push(format!("{} is ready as PID {}", self.program, self.pid));
        Ok(())
    }

    /// What names it on ctl's command line.
    pub fn named(&self) -> Vec<String> {
        match self.known {
            true => vec![self.session.clone()],
            false => vec!["--pid".into(), self.pid.to_string(), "--name".into(), self.session.clone()],
        }
    }

    /// `ctl checkpoint ... OPTIONS`, as it can be run.
    pub fn checkpoint_args(&self, options: &[&str]) -> Vec<String> {
        let mut args = vec!["checkpoint".to_owned()];
        args.extend(self.named());
        args.extend(["--door", if self.agent { "agent" } else { "attach" }].map(String::from));
        // without which it is always refused
        args.extend((self.program == "seccomp_strict").then(|| RISK.to_owned()));
        args.extend(options.iter().map(|o| o.to_string()));
        args
    }

    /// A checkpoint after which it runs on.
    ///
    /// After one that was broken off, a busy thread may still be on its way out: that is refused with the advice to try again,
    /// which is followed here.
    pub fn checkpoint(&mut self, bed: &mut Bed) -> Result<()> {
        let args = self.checkpoint_args(&[]);
        run::until("everyone out of a broken-off checkpoint", SOON, || {
            let ran = bed.ctl(&args)?;
            if ran.code() == 3 && ran.said().contains("just leaving an earlier checkpoint") {
                return Ok(false);
            }
            ran.expect(0).map(|_| true)
        })?;
        self.known = true;
        self.by_the_door(bed)?;
        if self.is_tree() {
            return crate::unharmed::family(self.pid);
        }
        crate::unharmed::entirely(self.pid)
    }

    /// It, and all below it if it is a tree, runs on; after an emergency exit the one documented mapping may be left.
    pub fn unharmed_but_for_the_documented(&self) -> Result<()> {
        match self.is_tree() {
            true => crate::unharmed::family_but_for_the_documented(self.pid),
            false => crate::unharmed::but_for_the_documented(self.pid),
        }
    }

    /// Whether its memory is copied in the freeze, for a process of it can have no snapshot child.
    pub fn is_copied(&self) -> bool {
        self.program == "seccomp_strict"
    }

    /// Whether it has processes below it, or may have.
    fn is_tree(&self) -> bool {
        self.program.starts_with("tree") || ["userns", "seccomp_strict"].contains(&self.program.as_str())
    }

    /// A checkpoint that kills it.
    pub fn kill(&mut self, bed: &mut Bed) -> Result<()> {
        bed.ctl(&self.checkpoint_args(&["--kill"]))?.expect(0)?;
        self.known = true;
        self.by_the_door(bed)?;
        self.gone(bed)
    }

    /// The latest checkpoint was made by the door that was meant.
    pub fn by_the_door(&self, bed: &mut Bed) -> Result<()> {
        store::made_by(bed, &self.session, if self.agent { "agent" } else { "attach" })
    }

    /// After it was killed: reaped, and away.
    pub fn gone(&mut self, bed: &mut Bed) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            run::end(&mut child, &self.program, SOON)?;
            bed.let_go(&child);
        }
        let pid = self.pid;
        run::until(&format!("the end of PID {pid}"), SOON, || {
            bed.reap();
            Ok(!proc::alive(pid))
        })
    }

    /// `ctl restore --detach`.
    pub fn restore(&mut self, bed: &mut Bed) -> Result<()> {
        self.restore_with(bed, &[]).map(drop)
    }

    /// `ctl restore --detach --pids fresh`: it has another PID, and no namespace.
    pub fn restore_fresh(&mut self, bed: &mut Bed) -> Result<()> {
        let before = self.pid;
        let said = self.restore_with(bed, &["--pids", "fresh"])?;
        ensure!(said["pids"] == "fresh" && self.pid != before, "PID {before} is {} now: {said}", self.pid);
        if let Some(status) = proc::status(self.pid) {
            let own = proc::status(std::process::id() as i32).context("our own status")?;
            ensure!(status.ns_pids.len() == own.ns_pids.len(), "it has the PIDs {:?}", status.ns_pids);
        }
        Ok(())
    }

    /// `ctl restore --detach OPTIONS`; what it says.
    pub fn restore_with(&mut self, bed: &mut Bed, options: &[&str]) -> Result<serde_json::Value> {
        let said = bed.ctl_json(&[&["restore", &self.session, "--detach"], options].concat())?;
        self.pid = said["pid"].as_i64().context("ctl restore --json tells no pid")? as i32;
        self.known = true;
        if !self.dir.join("result").exists() {
            bed.who.assert_is(&format!("the restored {}", self.program), self.pid)?;
        }
        Ok(said)
    }

    /// Ends a session's program, without a proof, and the session with it.
    pub fn end(&mut self, bed: &mut Bed) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::SIGKILL)?;
        self.gone(bed)?;
        let live = store::session_dir(bed, &self.session).join("live.json");
        run::until("the end of the session", SOON, || {
            bed.reap();
            Ok(!live.exists())
        })
    }

    /// Opens the gate and gives the result, whole.
    pub fn result(&mut self, bed: &mut Bed) -> Result<String> {
        fs::write(self.dir.join("gate"), "")?;
        let path = self.dir.join("result");
        let (pid, child) = (self.pid, &mut self.child);
        run::until(&format!("a result of {}", self.program), LIMIT, || {
            let ended = match child {
                Some(child) => child.try_wait()?.is_some(),
                None => !proc::alive(pid),
            };
            Ok(path.exists() || ended)
        })?;
        let how = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
        let how = how.map(|s| format!(", {s}")).unwrap_or_default();
        let result = fs::read_to_string(&path)
            .with_context(|| format!("{} (PID {pid}) ended without a result{how}", self.program))?;
        bed.log.push(format!("{} says {}", self.program, result.trim()));
        if let Some(mut child) = self.child.take() {
            let status = run::end(&mut child, &self.program, SOON)?;
            bed.let_go(&child);
            let expected = if result.starts_with("OK") { 0 } else { 1 };
            ensure!(run::code(status) == expected, "{} ended with {status}, expected {expected}", self.program);
        }
        Ok(result)
    }

    /// Opens the gate: it must prove itself.
    pub fn prove(&mut self, bed: &mut Bed) -> Result<String> {
        let result = self.result(bed)?;
        ensure!(result.lines().next() == Some("OK"), "{}: its proof failed:\n{}", self.program, result.trim());
        Ok(result)
    }

    /// Opens the gate: started with --sabotage, its proof must fail.
    pub fn fail(&mut self, bed: &mut Bed) -> Result<()> {
        let result = self.result(bed)?;
        let red = result.starts_with("FAIL: ") && !result.contains("not a proof");
        ensure!(red, "{}: sabotaged, yet its proof says:\n{}", self.program, result.trim());
        Ok(())
    }
}
