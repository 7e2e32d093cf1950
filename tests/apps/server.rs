//! The main job: examples/server.py counts its requests and remembers every path, through checkpoints, kills and restores;
//! launched by us and not, with its stdout on a terminal, in a file and in a pipe.
use anyhow::{bail, ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::port::own_port;
use dormouse_tests::pty::Pty;
use dormouse_tests::{proc, run, store, sys, unharmed, Bed, Case};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};

/// Where the server's stdout goes.
#[derive(Clone, Copy, PartialEq)]
enum Stdout {
    Terminal,
    File,
    Pipe,
}

const STDOUTS: [(Stdout, &str); 3] = [(Stdout::Terminal, "terminal"), (Stdout::File, "file"), (Stdout::Pipe, "pipe")];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (stdout, name) in STDOUTS {
        all.extend(Case::each(&format!("server.launched.{name}"), move |bed| launched(bed, stdout)));
        all.extend(Case::each(&format!("server.by-pid.{name}"), move |bed| by_pid(bed, stdout)));
    }
    all.extend(Case::each("server.name-made", name_made));
    all.into_iter().map(|c| c.limit(60)).collect()
}

/// The text, line by line, then five cycles in a row.
fn launched(bed: &mut Bed, stdout: Stdout) -> Result<()> {
    let mut web = Server::new()?;
    let mut command = bed.launcher_command(&["--name", "web", "--"]);
    command.args(web.argv(bed));
    let mut launcher = Job::start(bed, command, stdout)?;
    web.wait(&mut launcher)?;
    web.ask("/a", 1)?;
    web.ask("/b", 2)?;
    bed.ctl(&["checkpoint", "web"])?.expect(0)?;
    web.ask("/c", 3)?;
    bed.ctl(&["checkpoint", "web", "--kill"])?.expect(0)?;
    web.refuses()?;
    let left = launcher.end(bed)?;
    ensure!(left == 85, "the launcher of what was checkpointed and killed should end with 85, it ended with {left}");
    let said = launcher.output()?;
    ensure!(
        said.contains("request 3: /c"),
        "the launcher's stdout should hold what the server wrote, it holds {said:?}"
    );
    bed.ctl(&["restore", "web", "--detach"])?.expect(0)?;
    web.ask("/d", 4)?;
    // A file is the program's own, wherever it is restored; the other ends are the session's log now.
    let file = (stdout == Stdout::File).then(|| launcher.out.clone());
    let log = file.unwrap_or_else(|| bed.state().join("sessions/web/log"));
    run::until(&format!("the line of request 4 in {}", log.display()), SOON, || {
        Ok(fs::read_to_string(&log).unwrap_or_default().contains("request 4: /d"))
    })?;
    cycles(bed, &mut web, "web", "agent")?;
    bed.ctl(&["kill", "web"])?.expect(0)?;
    web.refuses()
}

/// Five times killed and restored; at most one namespace level at the end. All checkpoints that were ever made of it are by this door.
fn cycles(bed: &mut Bed, web: &mut Server, name: &str, door: &str) -> Result<()> {
    for n in 0..5 {
        bed.ctl(&["checkpoint", name, "--kill"])?.expect(0)?;
        web.refuses()?;
        let said = bed.ctl_json(&["restore", name, "--detach"])?;
        web.ask(&format!("/cycle{n}"), web.paths.len() + 1)?;
        let pid = said["pid"].as_i64().context("no pid")? as i32;
        bed.who.assert_is("the restored server", pid)?;
        let levels = proc::status(pid).map_or(0, |s| s.ns_pids.len());
        ensure!(levels <= 2, "{levels} namespace levels after cycle {n}");
        unharmed::entirely(pid)?;
    }
    store::all_made_by(bed, name, door)
}

/// Not launched by us: by its PID, killed, restored in the foreground onto another stdout of the same kind.
fn by_pid(bed: &mut Bed, stdout: Stdout) -> Result<()> {
    let mut web = Server::new()?;
    let argv = web.argv(bed);
    let mut command = bed.command(&argv[0]);
    command.args(&argv[1..]);
    let mut job = Job::start(bed, command, stdout)?;
    web.wait(&mut job)?;
    let pid = job.child.id() as i32;
    bed.who.assert_is("the server", pid)?;
    web.ask("/a", 1)?;
    bed.ctl(&["check", "--pid", &pid.to_string()])?.expect(0)?;
    bed.ctl(&["checkpoint", "--pid", &pid.to_string(), "--name", "other"])?.expect(0)?;
    unharmed::entirely(pid)?;
    web.ask("/b", 2)?;
    bed.ctl(&["checkpoint", "--pid", &pid.to_string(), "--name", "other", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 128 + 9, "the server should have been killed");
    web.refuses()?;
    let command = bed.ctl_command(&["restore", "other"]);
    let mut front = Job::start(bed, command, stdout)?;
    web.wait(&mut front)?;
    web.ask("/c", 3)?;
    let said_in = if stdout == Stdout::File { &mut job } else { &mut front };
    said_in.shows("request 3: /c")?;
    bed.ctl(&["checkpoint", "other"])?.expect(0)?;
    web.ask("/d", 4)?;
    bed.ctl(&["checkpoint", "other", "--kill"])?.expect(0)?;
    let left = front.end(bed)?;
    ensure!(left == 85, "ctl restore of what was checkpointed and killed should end with 85, it ended with {left}");
    bed.ctl(&["restore", "other", "--detach"])?.expect(0)?;
    web.ask("/e", 5)?;
    cycles(bed, &mut web, "other", "attach")?;
    bed.ctl(&["kill", "other"])?.expect(0)?;
    web.refuses()
}

/// Without --name the launcher makes one, and says it on stderr.
fn name_made(bed: &mut Bed) -> Result<()> {
    let mut web = Server::new()?;
    let mut command = bed.launcher_command(&["--"]);
    command.args(web.argv(bed));
    let mut launcher = Job::start(bed, command, Stdout::File)?;
    web.wait(&mut launcher)?;
    web.ask("/a", 1)?;
    let said = fs::read_to_string(&launcher.err)?;
    ensure!(said.contains("python3-1"), "the launcher should name the session python3-1 on stderr, it says {said:?}");
    bed.ctl(&["checkpoint", "python3-1", "--kill"])?.expect(0)?;
    store::made_by(bed, "python3-1", "agent")?;
    launcher.end(bed)?;
    bed.ctl(&["restore", "python3-1", "--detach"])?.expect(0)?;
    web.ask("/b", 2)?;
    bed.ctl(&["kill", "python3-1"])?.expect(0)?;
    web.refuses()
}

/// The server as its clients see it.
pub struct Server {
    pub port: u16,
    paths: Vec<String>,
}

impl Server {
    /// A port that is free now.
    pub fn new() -> Result<Server> {
        Ok(Server { port: own_port()?, paths: vec![] })
    }

    pub fn argv(&self, bed: &Bed) -> Vec<String> {
        let script = bed.stage.example("server.py").to_string_lossy().into_owned();
        vec!["python3".into(), script, self.port.to_string()]
    }

    /// Waits until it listens.
    fn wait(&self, job: &mut Job) -> Result<()> {
        let listens = run::until("the server listening", SOON * 2, || {
            if let Some(status) = job.child.try_wait()? {
                bail!("it ended with {status}");
            }
            Ok(TcpStream::connect(("127.0.0.1", self.port)).is_ok())
        });
        listens.with_context(|| {
            format!("{}{}", job.output().unwrap_or_default(), fs::read_to_string(&job.err).unwrap_or_default())
        })
    }

    /// Asks for a path: it must be request `number`, and all paths must be remembered.
    pub fn ask(&mut self, path: &str, number: usize) -> Result<()> {
        self.paths.push(path.into());
        let mut s = TcpStream::connect(("127.0.0.1", self.port)).with_context(|| format!("asking for {path}"))?;
        s.set_read_timeout(Some(SOON))?;
        s.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut reply = String::new();
        s.read_to_string(&mut reply).with_context(|| format!("reading the reply to {path}"))?;
        let body = reply.split_once("\r\n\r\n").map(|(_, b)| b).unwrap_or_default();
        let expected = format!("Request No: {number}\n{}\n", self.paths.join("\n"));
        ensure!(body == expected, "asked for {path}, expected {expected:?}, got {body:?}");
        Ok(())
    }

    /// Nobody listens.
    pub fn refuses(&self) -> Result<()> {
        match TcpStream::connect(("127.0.0.1", self.port)) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            Err(e) => bail!("connecting to a dead server: {e}"),
            Ok(_) => bail!("somebody still listens on port {}", self.port),
        }
    }
}

/// A command in the foreground of something.
struct Job {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    pty: Option<Pty>,
    pipe: Option<fs::File>,
}

impl Job {
    fn start(bed: &mut Bed, mut command: Command, stdout: Stdout) -> Result<Job> {
        let ((out, to_out), (err, to_err)) = (bed.file("out")?, bed.file("err")?);
        let typed = run::typed(&command);
        bed.log.push(format!("$ {typed} &"));
        let (mut pty, mut pipe) = (None, None);
        let child = match stdout {
            Stdout::Terminal => pty.insert(Pty::new((24, 80))?).spawn(bed, &mut command)?,
            Stdout::File => {
                sys::own_session(&mut command);
                run::start(&mut command, to_out, to_err)?
            }
            Stdout::Pipe => {
                let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                pipe = Some(fs::File::from(reader));
                sys::own_session(&mut command);
                run::start(&mut command, fs::File::from(writer), to_err)?
            }
        };
        drop(command);
        bed.hold(child.id() as i32);
        Ok(Job { child, out, err, pty, pipe })
    }

    /// Waits for its end; its exit code.
    fn end(&mut self, bed: &mut Bed) -> Result<i32> {
        let status = run::end(&mut self.child, "the job in the foreground", SOON)?;
        bed.let_go(&self.child);
        bed.reap();
        Ok(run::code(status))
    }

    /// All that was written to its stdout; of a pipe, when it has ended.
    fn output(&mut self) -> Result<String> {
        match (&self.pty, self.pipe.take()) {
            (Some(pty), _) => Ok(pty.said()),
            (_, Some(mut pipe)) => {
                let mut said = String::new();
                pipe.read_to_string(&mut said)?;
                Ok(said)
            }
            _ => Ok(fs::read_to_string(&self.out)?),
        }
    }

    /// Waits until this text is on its stdout.
    fn shows(&mut self, text: &str) -> Result<()> {
        if let Some(pty) = &self.pty {
            return pty.wait_for(text);
        }
        let mut said = Vec::new();
        if let Some(pipe) = &mut self.pipe {
            while !String::from_utf8_lossy(&said).contains(text) {
                let mut bytes = [0u8; 4096];
                let n = pipe.read(&mut bytes)?;
                ensure!(n > 0, "the pipe ended before {text:?}: {:?}", String::from_utf8_lossy(&said));
                said.extend_from_slice(&bytes[..n]);
            }
            return Ok(());
        }
        let out = self.out.clone();
        run::until(&format!("{text:?} in {}", out.display()), SOON, || Ok(fs::read_to_string(&out)?.contains(text)))
    }
}
