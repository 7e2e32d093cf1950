//! Commands with a time limit whose output is kept.
use anyhow::{bail, Context, Result};
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const TICK: Duration = Duration::from_millis(2);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command, as it can be typed.
    pub command: String,
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl Ran {
    /// Its exit code; 128+n if signal n ended it, as a shell says it.
    pub fn code(&self) -> i32 {
        code(self.status)
    }

    /// Fails unless it ended with `code`.
    pub fn expect(self, code: i32) -> Result<Ran> {
        if self.code() != code {
            bail!("{}: expected exit code {code}, got {}\n{}", self.command, self.code(), self.said());
        }
        Ok(self)
    }

    /// Fails unless it ended with `code` and a message that holds each of `words`.
    pub fn refused(self, code: i32, words: &[&str]) -> Result<Ran> {
        let ran = self.expect(code)?;
        for word in words {
            if !ran.err.contains(word) {
                bail!("{}: its message should say {word:?}, it says\n{}", ran.command, ran.said());
            }
        }
        if ran.err.to_lowercase().contains("panicked") {
            bail!("{}: panicked\n{}", ran.command, ran.said());
        }
        Ok(ran)
    }

    /// All it said.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// The JSON on its stdout.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{}: not JSON: {}", self.command, self.said()))
    }
}

/// Exit code as a shell says it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// The command as it can be typed.
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Starts a command whose output goes to files: a file does not fill, and whoever holds it open longer than the command does
/// not hold us. Its stdin is /dev/null.
pub fn start(command: &mut Command, out: File, err: File) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().with_context(|| format!("cannot start {}", typed(command)))
}

/// Waits for a command's end; kills it after `limit`.
pub fn end(child: &mut Child, what: &str, limit: Duration) -> Result<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            let state = crate::proc::status(child.id() as i32);
            let _ = child.kill();
            let _ = child.wait();
            bail!("{what}: still there after {limit:?}, {state:?}");
        }
        std::thread::sleep(TICK);
    }
}

/// Waits until `done` says so; fails after `limit`, naming what was waited for.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !done()? {
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}
