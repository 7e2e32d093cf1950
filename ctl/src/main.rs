//! `ctl`: checkpoints and restores sessions from the command line.
//!
//! What belongs here: reading the command line ([`cli`], [`name`]), calling `session`, `engine` and `image`, and printing
//! what comes of it ([`out`], [`progress`]): one verb, one file in [`verbs`]. What may not enter: how any of it is done.
//! JSON.md documents what `--json` prints; scripts rely on it and on the exit codes.
#![forbid(unsafe_code)]

mod cli;
mod name;
mod out;
mod progress;
mod verbs;

use std::ffi::OsString;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::Parser;
use engine::{Error, Kind, Reason};
use session::StateDir;

use cli::{Cli, Verb};
use out::Out;

/// How a verb ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// With this exit code.
    Code(u8),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Known before the command line is: also its errors are asked for as JSON.
    let json = args.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json");
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return ExitCode::from(usage(json, &e)),
    };
    let out = Out { json: cli.common.json, quiet: cli.common.quiet };
    let foreground = matches!(&cli.verb, Verb::Restore(r) if !r.detach);
    let code = move |kind: Kind| match kind {
        Kind::Usage => kind.exit_code(),
        _ if foreground => session::EXIT_FAILED,
        _ => kind.exit_code(),
    };
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.payload();
        let what = what.downcast_ref::<&str>().copied().or(what.downcast_ref::<String>().map(String::as_str));
        let at = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        out.error(&out::bug(format!("{}{at}", what.unwrap_or("panicked"))), code(Kind::Bug));
    }));
    // Unwinding, not exiting in the hook: guards that cure a target do so when they are dropped.
    ExitCode::from(match catch_unwind(AssertUnwindSafe(|| run(&out, &cli))) {
        Ok(Ok(Done::Code(code))) => code,
        Ok(Err(e)) => {
            let code = code(e.kind);
            out.error(&e, code);
            code
        }
        Err(_) => code(Kind::Bug),
    })
}

fn run(out: &Out, cli: &Cli) -> Result<Done, Error> {
    if sys::fault::point("ctl").is_err() {
        panic!("failed on demand");
    }
    let given = cli.common.state_dir.as_deref();
    if let Verb::Doctor = cli.verb {
        // Tells what is wrong with the state directory, rather than failing on it.
        return verbs::doctor::run(out, &StateDir::locate(given)?);
    }
    if let Verb::Check(args @ cli::Check { pid: Some(pid), .. }) = &cli.verb {
        return verbs::check::process(out, *pid, args);
    }
    // Names are judged before anything is made on the disk.
    verbs::names(&cli.verb)?;
    let state = &StateDir::resolve(given)?;
    match &cli.verb {
        Verb::Checkpoint(args) => verbs::checkpoint::run(out, state, args),
        Verb::Restore(args) => verbs::restore::run(out, state, args),
        Verb::List => verbs::list::run(out, state),
        Verb::Inspect(args) => verbs::inspect::run(out, state, args),
        Verb::Check(args) => verbs::check::run(out, state, args),
        Verb::Verify(args) => verbs::verify::run(out, state, args),
        Verb::Rm(args) => verbs::rm::run(out, state, args),
        Verb::Kill(args) => verbs::kill::run(out, state, args),
        Verb::Doctor => verbs::doctor::run(out, state.path()),
        Verb::Export(args) => verbs::export::run(out, state, args),
        Verb::Import(args) => verbs::import::run(out, state, args),
    }
}

/// Says what clap has to say: help and version on stdout (0), errors as ours are said (2).
fn usage(json: bool, e: &clap::Error) -> u8 {
    let text = e.render().to_string();
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A stdout that is gone is nothing to tell anyone about.
            let _ = out::stdout(&text);
            0
        }
        _ if json => {
            let why = session::usage_in_one_line(&text);
            let error = Error {
                kind: Kind::Usage,
                attempted: "understand the command line".into(),
                reasons: vec![Reason::new("command line", why, "ctl help VERB shows how a verb is used")],
            };
            Out { json, quiet: false }.error(&error, Kind::Usage.exit_code());
            Kind::Usage.exit_code()
        }
        _ => {
            out::eprint_lines(text.trim_end());
            Kind::Usage.exit_code()
        }
    }
}
