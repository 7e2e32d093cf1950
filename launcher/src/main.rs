//! launcher: starts a command as a session, so that `ctl` can checkpoint and restore it. The command line over `session`.
#![forbid(unsafe_code)]

mod triggers;

use clap::Parser;
use engine::{Error, Kind};
use session::{Event, LaunchError, LaunchRequest, Outcome, StateDir};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use triggers::TriggerArgs;

const ABOUT: &str = "Start a program as a Dormouse session, which ctl can put to sleep and wake where it was";

const LONG_ABOUT: &str = "\
Start a program as a Dormouse session, which ctl can put to sleep and wake where it was.

By default the program runs in the foreground, as if it had been started without launcher: it has the terminal, stdin,
stdout and stderr, its process group (so pipelines and job control work), its environment and its signal state.
Signals that launcher gets are passed on, launcher stops when the program stops, and its exit status is the program's.
If the program ends while processes that descend from it still run, launcher returns the program's status, and a
supervisor stays in the background until the last of them has ended.

With --detach it runs in the background in a session of its own, with stdin from /dev/null and stdout and stderr in the
session's log file, and launcher returns as soon as it runs.

Checkpoints are made by ctl, or by launcher itself: by a signal, by the clock, on SIGTERM. What is asked for stays in force
after a restore. One that fails is reported on stderr (of a detached session: in its log), and the program runs on.";

const AFTER_HELP: &str = "\
Exit status:
  the program's; 128+n if signal n killed it
  85   it was checkpointed and left (--signal-exit, --on-term, ctl checkpoint NAME --kill): run me again with --resume, or
       ctl restore NAME
  125  launcher itself failed
  126  the command cannot be executed
  127  the command was not found
  With --detach: 0 as soon as it runs.

Examples:
  launcher -- python3 server.py 8181            prints the session's name, say python3-1
  launcher --name web -- python3 server.py 8181
  launcher --name web --detach -- python3 server.py 8181
  ctl checkpoint web --kill && ctl restore web --detach
  launcher --every 30s --keep 5 --on-term checkpoint --resume --name job -- python3 train.py
                                                starts job, or takes it up: the same line for ever

Files:
  The state directory is that of --state-dir, else of DORMOUSE_STATE_DIR, else /var/lib/dormouse for root, else
  $XDG_STATE_HOME/dormouse, else ~/.local/state/dormouse. It is yours alone (0700), as checkpoints hold secrets.
  A detached session's log is sessions/NAME/log in it.";

#[derive(Parser)]
#[command(name = "launcher", version, about = ABOUT, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
#[command(override_usage = "launcher [OPTIONS] -- COMMAND [ARGUMENT]...")]
struct Args {
    /// Name of the session: 1 to 64 of A-Z a-z 0-9 . _ -, not starting with . or -. Without it, one is made from the
    /// command and printed on stderr. The name of a session that has ended adds to its checkpoints.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Run in the background, with output to the session's log; return as soon as it runs.
    #[arg(long)]
    detach: bool,
    /// How its checkpoints get in: by the agent, a small library that is preloaded (LD_PRELOAD) and needs no ptrace, or by ptrace.
    #[arg(long, value_name = "DOOR", value_enum, default_value_t = DoorArg::Auto)]
    door: DoorArg,
    /// Where sessions are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Say nothing on stderr but errors.
    #[arg(long, short)]
    quiet: bool,
    /// Say what happens as JSON, one object a line: on stdout with --detach, else on stderr (stdout is the program's).
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    triggers: TriggerArgs,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DoorArg {
    /// With the agent, if its file can be preloaded; where it cannot be called later, ptrace does it.
    Auto,
    /// Without the agent: the program is left as it is.
    Attach,
    /// With the agent, or not at all.
    Agent,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) if e.use_stderr() => {
            usage(&e);
            return ExitCode::from(session::EXIT_FAILED);
        }
        Err(e) => {
            // Help or version. Where even that cannot be printed, there is nobody to tell.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
    };
    match run(&args) {
        Ok(Outcome::Running(_)) => ExitCode::SUCCESS,
        Ok(Outcome::Ended { code }) => ExitCode::from(code),
        Err(e) => {
            if args.json {
                let said = serde_json::json!({
                    "event": "failed", "attempted": e.error.attempted, "reasons": reasons(&e.error), "exit": e.code,
                });
                say(args.detach, &said.to_string());
            } else {
                eprintln!("launcher: {}", e.error);
            }
            ExitCode::from(e.code)
        }
    }
}

fn reasons(e: &Error) -> Vec<serde_json::Value> {
    let each = |r: &engine::Reason| serde_json::json!({ "object": r.object, "why": r.why, "remedy": r.remedy });
    e.reasons.iter().map(each).collect()
}

/// Says what is wrong with the command line; in JSON if that is asked for, which is not known by clap yet.
fn usage(e: &clap::Error) {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let given = |option: &str| words.iter().take_while(|w| *w != "--").any(|w| w == option);
    let text = e.render().to_string();
    let why = session::usage_in_one_line(&text);
    let tip = behind_dashes(e, &words);
    if given("--json") {
        let remedy = tip.unwrap_or_else(|| "launcher --help shows how it is used".into());
        let reasons = [serde_json::json!({ "object": "command line", "why": why, "remedy": remedy })];
        let said = serde_json::json!({
            "event": "failed", "attempted": "understand the command line", "reasons": reasons, "exit": session::EXIT_FAILED,
        });
        say(given("--detach"), &said.to_string());
    } else {
        eprint!("{text}");
        if let Some(tip) = tip {
            eprintln!("\n{tip}");
        }
    }
}

/// Options that are followed by a value.
const VALUED: &[&str] =
    &["--name", "--state-dir", "--signal", "--signal-exit", "--every", "--keep", "--on-term", "--grace"];

/// The command was not written after `--`: how it is.
fn behind_dashes(e: &clap::Error, words: &[OsString]) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let ContextValue::String(first) = e.get(ContextKind::InvalidArg)? else { return None };
    // Not the value of an option that happens to be the same.
    let value = |i: usize| i > 0 && words[i - 1].to_str().is_some_and(|w| VALUED.contains(&w));
    let at = (0..words.len()).find(|i| words[*i].to_str() == Some(first) && !value(*i))?;
    if e.kind() != ErrorKind::UnknownArgument || first.starts_with('-') {
        return None;
    }
    let quoted = |w: &OsString| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_./=:@%+,-".contains(c);
        let w = w.to_string_lossy();
        if !w.is_empty() && w.chars().all(plain) {
            w.into_owned()
        } else {
            format!("'{}'", w.replace('\'', "'\\''"))
        }
    };
    let (options, command) = words.split_at(at);
    let mut typed = vec!["launcher".to_owned()];
    typed.extend(options.iter().map(quoted));
    typed.push("--".into());
    typed.extend(command.iter().filter(|w| *w != "--").map(quoted));
    Some(format!("Write the command after --: {}", typed.join(" ")))
}

/// What the program inherits and cannot be checkpointed with; it runs all the same.
fn warn_of_inherited(args: &Args) {
    if args.quiet {
        return;
    }
    // Where it cannot be told, the checkpoint will.
    let found = engine::inherited().unwrap_or_default();
    if found.is_empty() {
        return;
    }
    if args.json {
        let each =
            |(fds, r): &(Vec<i32>, engine::Reason)| serde_json::json!({ "fds": fds, "object": r.object, "why": r.why });
        let said = serde_json::json!({ "event": "inherited", "refused": found.iter().map(each).collect::<Vec<_>>() });
        return say(args.detach, &said.to_string());
    }
    let what: Vec<String> = found.iter().map(|(_, r)| format!("{}: {}", r.object, r.why)).collect();
    let close: Vec<String> = found.iter().flat_map(|(fds, _)| fds).map(|fd| format!("{fd}>&-")).collect();
    eprintln!(
        "launcher: a checkpoint will be refused for what the program inherits, unless it closes it: {}; start it with {}",
        what.join("; "),
        close.join(" ")
    );
}

fn run(args: &Args) -> Result<Outcome, LaunchError> {
    let name = args.name.as_deref().map(session::name::parse).transpose()?;
    let triggers = args.triggers.triggers().map_err(|why| {
        Error::new(Kind::Usage, "understand the command line", "options", why, "launcher --help shows how it is used")
    })?;
    let state = StateDir::resolve(args.state_dir.as_deref())?;
    let door = match args.door {
        DoorArg::Auto => engine::DoorChoice::Auto,
        DoorArg::Attach => engine::DoorChoice::Only(engine::Door::Attach),
        DoorArg::Agent => engine::DoorChoice::Only(engine::Door::Agent),
    };
    let request = LaunchRequest { name, argv: args.command.clone(), detach: args.detach, triggers, door };
    let on_event = |event| tell(args, &event);
    let Some(which) = args.triggers.resume() else {
        warn_of_inherited(args);
        return session::launch(&state, &request, &on_event);
    };
    let has_checkpoint = |name| session::status(&state, name).is_ok_and(|s| !s.checkpoints.is_empty());
    // A restored program inherits nothing from us.
    if !request.name.as_ref().is_some_and(has_checkpoint) {
        warn_of_inherited(args);
    }
    session::resume(&state, &request, which, args.triggers.no_triggers(), &on_event)
}

fn tell(args: &Args, event: &Event) {
    if args.json {
        return tell_json(args, event);
    }
    if let Event::NotCheckpointed { error } = event {
        return eprintln!("launcher: {error}");
    }
    if args.quiet {
        return;
    }
    match event {
        Event::Started(s) => {
            let from = s.from.map(|n| format!(" resumed from {}@{n}", s.name)).unwrap_or_default();
            if args.detach {
                let log = s.log.as_ref().map(|l| format!(", output in {}", l.display())).unwrap_or_default();
                let to = match args.triggers.takes_signals() {
                    true => format!(", signals for launcher to PID {} (its supervisor)", s.supervisor),
                    false => String::new(),
                };
                eprintln!("session {}{from}: PID {}{log}{to}", s.name, s.pid);
            } else if s.name_made || s.from.is_some() {
                eprintln!("session {}{from}", s.name);
            }
            s.notes.iter().for_each(|note| eprintln!("launcher: {note}"));
        }
        Event::Checkpointed { name, n, notes, .. } => {
            notes.iter().for_each(|note| eprintln!("launcher: checkpoint {name}@{n}: {note}"));
        }
        Event::Background { name, processes, supervisor } => {
            let some = if *processes == 1 {
                "1 process that descends".into()
            } else {
                format!("{processes} processes that descend")
            };
            eprintln!("launcher: the command of session {name} has ended; {some} from it still run in the background (supervisor: PID {supervisor})");
        }
        Event::Left { name, n } => {
            eprintln!("launcher: session {name} was checkpointed as {name}@{n} and left; ctl restore {name} wakes it")
        }
        Event::Progress(_) | Event::NotCheckpointed { .. } => {}
    }
}

fn tell_json(args: &Args, event: &Event) {
    let said = match event {
        Event::Started(s) => serde_json::json!({
            "event": "started", "name": s.name, "pid": s.pid, "supervisor": s.supervisor, "log": s.log, "from": s.from,
            "notes": s.notes,
        }),
        Event::Checkpointed { name, n, pause, took, notes } => serde_json::json!({
            "event": "checkpointed", "name": name, "checkpoint": n, "pause_ms": pause.as_micros() as f64 / 1e3,
            "took_ms": took.as_micros() as f64 / 1e3, "notes": notes,
        }),
        Event::NotCheckpointed { error } => serde_json::json!({
            "event": "not_checkpointed", "attempted": error.attempted, "reasons": reasons(error), "kind": error.kind.exit_code(),
        }),
        Event::Background { name, processes, supervisor } => serde_json::json!({
            "event": "background", "name": name, "processes": processes, "supervisor": supervisor,
        }),
        Event::Left { name, n } => serde_json::json!({ "event": "left", "name": name, "checkpoint": n }),
        Event::Progress(_) => return,
    };
    say(args.detach, &said.to_string());
}

/// In the foreground stdout is the program's.
fn say(stdout: bool, line: &str) {
    if stdout {
        println!("{line}");
    } else {
        eprintln!("{line}");
    }
}
