//! The command line, as clap reads it. What each verb does is in `verbs/`.
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use engine::{Door, DoorChoice, External, Externals, Pids};

/// Checkpoints and restores running programs.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, color = clap::ColorChoice::Never, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done                                      5  image damaged or not ours
  1  a bug of ours                             6  busy: another checkpoint or restore of it runs
  2  usage                                     7  storage: full, read-only, or no right to it
  3  refused, nothing was changed              8  the target died meanwhile
  4  no such session, checkpoint or process    9  failed midway and put back
restore in the foreground ends with the program's own status (128+n for signal n); its own failures are
125 (2 for usage), and 85 says that the program was checkpointed again and left.";

/// What every verb takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Print results and errors as JSON on stdout (ctl/JSON.md)
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but errors and what was asked for
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where sessions and checkpoints are [default: $DORMOUSE_STATE_DIR, or /var/lib/dormouse for root, or
    /// $XDG_STATE_HOME/dormouse]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Checkpoint a session, or any process; it runs on
    Checkpoint(Checkpoint),
    /// Restore a session's latest checkpoint, or checkpoint N
    Restore(Restore),
    /// List the sessions and their checkpoints
    List,
    /// Show what a checkpoint holds
    Inspect(OneCheckpoint),
    /// Tell whether a checkpoint can be restored here, or a process checkpointed; changes nothing
    Check(Check),
    /// Read all of a checkpoint and compare its checksums
    Verify(OneCheckpoint),
    /// Remove a checkpoint, or a session with all of its checkpoints
    Rm(OneCheckpoint),
    /// End a session's program: SIGTERM, then SIGKILL
    Kill(OneSession),
    /// Tell what this machine and this user permit, and what that means
    Doctor,
    /// Write a checkpoint to a single file
    Export(Export),
    /// Add a checkpoint from a file that `ctl export` wrote
    Import(Import),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["session", "pid"]))]
pub struct Checkpoint {
    /// The session
    #[arg(value_name = "NAME")]
    pub session: Option<String>,
    /// Checkpoint this process
    #[arg(long, requires = "name", allow_negative_numbers = true)]
    pub pid: Option<i32>,
    /// Name of the session that the process becomes
    #[arg(long, requires = "pid", conflicts_with = "session", allow_hyphen_values = true)]
    pub name: Option<String>,
    /// Kill the program once the checkpoint is complete
    #[arg(long, conflicts_with = "stop")]
    pub kill: bool,
    /// Leave the program stopped once the checkpoint is complete (SIGCONT lets it go on)
    #[arg(long)]
    pub stop: bool,
    /// The way in
    #[arg(long, value_enum, default_value_t = DoorArg::Auto)]
    pub door: DoorArg,
    /// Give up what has its other end outside and is not descriptor 0, 1 or 2 (connections, pipes): after a
    /// restore all of it has ended (`close`) or one (FD=close), or FD=PATH opens PATH in place of one (repeatable)
    #[arg(long, value_name = "close|FD=PATH", value_parser = external)]
    pub external: Vec<ExternalArg>,
    /// Refuse what would be reported as not kept, but for what --external gives up
    #[arg(long)]
    pub strict: bool,
    /// Enter threads in strict seccomp mode, too (root): should ctl's tracer be killed (SIGKILL) in one of the few
    /// instants in which such a thread makes a call for us, the kernel kills that thread
    #[arg(long)]
    pub risk_seccomp_strict: bool,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The session, or one checkpoint of it
    #[arg(value_name = "NAME[@N]")]
    pub what: String,
    /// Return when the program runs; its output goes to the session's log
    #[arg(long)]
    pub detach: bool,
    /// Restore under another name
    #[arg(long = "as", value_name = "NEW", allow_hyphen_values = true)]
    pub as_name: Option<String>,
    /// Which PIDs it gets [default: keep where permitted and free, else private]
    #[arg(long, value_enum)]
    pub pids: Option<PidsArg>,
    /// What becomes of external descriptors, if not what the checkpoint was told: `close` ends all but 0, 1 and 2, FD=PATH
    /// opens PATH in place of one, FD=close ends one (repeatable)
    #[arg(long, value_name = "close|FD=PATH", value_parser = external)]
    pub external: Vec<ExternalArg>,
    /// Drop what made checkpoints of it by itself (launcher --signal, --every, --on-term and the rest)
    #[arg(long)]
    pub no_triggers: bool,
    /// Look for files below OLD below NEW instead (repeatable)
    #[arg(long, value_name = "OLD=NEW", value_parser = map_path)]
    pub map_path: Vec<(PathBuf, PathBuf)>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DoorArg {
    /// The agent where it can be called, else ptrace
    Auto,
    /// ptrace: any process
    Attach,
    /// The agent that launcher has preloaded, without ptrace
    Agent,
}

impl From<DoorArg> for DoorChoice {
    fn from(d: DoorArg) -> DoorChoice {
        match d {
            DoorArg::Auto => DoorChoice::Auto,
            DoorArg::Attach => DoorChoice::Only(Door::Attach),
            DoorArg::Agent => DoorChoice::Only(Door::Agent),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PidsArg {
    /// The same PIDs, here
    Keep,
    /// The same PIDs, in a PID namespace of its own
    Private,
    /// New PIDs, here: also for an ordinary user, without a namespace
    Fresh,
}

impl From<PidsArg> for Pids {
    fn from(p: PidsArg) -> Pids {
        match p {
            PidsArg::Keep => Pids::Keep,
            PidsArg::Private => Pids::Private,
            PidsArg::Fresh => Pids::Fresh,
        }
    }
}

/// A value of --external.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalArg {
    /// All that nothing else is said of.
    Close,
    /// One descriptor.
    One(i32, External),
}

/// All values of --external.
pub fn externals(given: &[ExternalArg]) -> Externals {
    let mut all = Externals::default();
    for e in given {
        match e {
            ExternalArg::Close => all.close = true,
            ExternalArg::One(fd, what) => drop(all.named.insert(*fd, what.clone())),
        }
    }
    all
}

fn external(text: &str) -> Result<ExternalArg, String> {
    if text == "close" {
        return Ok(ExternalArg::Close);
    }
    let (fd, to) = text.split_once('=').ok_or("write close, FD=PATH or FD=close")?;
    let fd = fd.parse().ok().filter(|fd| *fd >= 0).ok_or_else(|| format!("{fd:?} is not a descriptor number"))?;
    match to {
        "" => Err(format!("no path for descriptor {fd}")),
        "close" => Ok(ExternalArg::One(fd, External::Close)),
        path => Ok(ExternalArg::One(fd, External::Path(absolute(path)?))),
    }
}

fn map_path(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (old, new) = text.split_once('=').ok_or("write OLD=NEW")?;
    if !old.starts_with('/') {
        return Err(format!("{old:?} is not an absolute path: it is one of the checkpoint, which knows no other"));
    }
    if new.is_empty() {
        return Err(format!("nothing to put in the place of {old}"));
    }
    Ok((old.into(), absolute(new)?))
}

/// The restored program's working directory is not ours.
fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{path:?} cannot be made absolute: {e}"))
}

#[derive(Debug, Args)]
pub struct OneCheckpoint {
    /// The session, or one checkpoint of it
    #[arg(value_name = "NAME[@N]")]
    pub what: String,
}

#[derive(Debug, Args)]
pub struct OneSession {
    /// The session
    #[arg(value_name = "NAME")]
    pub session: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["what", "pid"]))]
pub struct Check {
    /// The session, or one checkpoint of it: can it be restored here?
    #[arg(value_name = "NAME[@N]")]
    pub what: Option<String>,
    /// A process: can it be checkpointed?
    #[arg(long, allow_negative_numbers = true)]
    pub pid: Option<i32>,
    /// As for checkpoint or restore (repeatable)
    #[arg(long, value_name = "close|FD=PATH", value_parser = external)]
    pub external: Vec<ExternalArg>,
    /// As for checkpoint
    #[arg(long, conflicts_with = "what")]
    pub strict: bool,
    /// As for checkpoint
    #[arg(long, conflicts_with = "what")]
    pub risk_seccomp_strict: bool,
}

#[derive(Debug, Args)]
pub struct Export {
    /// The session, or one checkpoint of it
    #[arg(value_name = "NAME[@N]")]
    pub what: String,
    /// The file to make; - is stdout
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Import {
    /// A file that `ctl export` wrote; - is stdin
    pub file: PathBuf,
    /// The session to add it to [default: the one it came from]
    #[arg(long, allow_hyphen_values = true)]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn external_ends() {
        assert_eq!(external("close"), Ok(ExternalArg::Close));
        assert_eq!(external("5=/a=b"), Ok(ExternalArg::One(5, External::Path("/a=b".into()))));
        assert_eq!(external("5=close"), Ok(ExternalArg::One(5, External::Close)));
        for bad in ["", "5", "5=", "=x", "-1=x", "x=y"] {
            assert!(external(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn path_prefixes() {
        assert_eq!(map_path("/old=/new"), Ok(("/old".into(), "/new".into())));
        assert!(map_path("/old=new").unwrap().1.is_absolute());
        for bad in ["", "/old", "/old=", "old=/new", "=/new"] {
            assert!(map_path(bad).is_err(), "{bad}");
        }
    }
}
