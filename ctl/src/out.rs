//! What ctl prints: results on stdout, errors and notes on stderr, everything as JSON on request. Nothing that came from
//! outside (names, paths, command lines) reaches the terminal with its control characters alive.
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use engine::{Error, Kind, Reason};
use serde::Serialize;
use serde_json::{json, Value};

/// Where and how to print.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// Results and errors as JSON.
    pub json: bool,
    /// No notes, no progress, no text results of verbs that do something; errors still.
    pub quiet: bool,
}

impl Out {
    /// The result of a verb that is asked for information: always printed.
    pub fn answer(&self, json: impl Serialize, text: impl FnOnce() -> String) -> Result<(), Error> {
        self.print(json, text, false)
    }

    /// The result of a verb that does something: as text only without --quiet.
    pub fn done(&self, json: impl Serialize, text: impl FnOnce() -> String) -> Result<(), Error> {
        self.print(json, text, self.quiet)
    }

    fn print(&self, json: impl Serialize, text: impl FnOnce() -> String, silent: bool) -> Result<(), Error> {
        let mut s = if self.json {
            let v = serde_json::to_value(json).map_err(|e| bug(format!("the result does not fit JSON: {e}")))?;
            pretty(&v)
        } else if silent {
            return Ok(());
        } else {
            lines(&text())
        };
        if !s.is_empty() && !s.ends_with('\n') {
            s.push('\n');
        }
        stdout(&s)
    }

    /// The result of a foreground restore, whose stdout is the program's: one line of JSON on stderr, or `text`.
    pub fn aside(&self, json: impl Serialize, text: &[String]) {
        if self.json {
            if let Ok(v) = serde_json::to_value(json) {
                eprint_lines(&escape_json(&v.to_string()));
            }
        } else {
            text.iter().for_each(|t| self.note(t));
        }
    }

    /// A remark on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            eprint_lines(text);
        }
    }

    /// What failed beside what the verb does: one line of JSON on stderr, or the error.
    pub fn warning(&self, e: &Error) {
        if self.json {
            eprint_lines(&escape_json(&error_json(e, e.kind.exit_code()).to_string()));
        } else {
            eprint_lines(&clean(e).to_string());
        }
    }

    /// Why it failed: on stderr, or as an object on stdout.
    pub fn error(&self, e: &Error, exit_code: u8) {
        if self.json {
            // Nobody is left to be told if stdout is gone too.
            let _ = stdout(&(pretty(&error_json(e, exit_code)) + "\n"));
        } else {
            eprint_lines(&clean(e).to_string());
        }
    }

    /// Whether a progress bar may be drawn.
    pub fn progress(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }
}

/// The error as JSON.md documents it.
pub fn error_json(e: &Error, exit_code: u8) -> Value {
    let reasons: Vec<Value> =
        e.reasons.iter().map(|r| json!({"object": r.object, "why": r.why, "remedy": r.remedy})).collect();
    json!({"error": {
        "kind": kind(e.kind), "exit_code": exit_code, "attempted": e.attempted, "reasons": reasons,
    }})
}

/// A kind's name in JSON.
fn kind(k: Kind) -> &'static str {
    match k {
        Kind::Bug => "bug",
        Kind::Usage => "usage",
        Kind::Refused => "refused",
        Kind::NoSuch => "no_such",
        Kind::Damaged => "damaged",
        Kind::Busy => "busy",
        Kind::Storage => "storage",
        Kind::TargetDied => "target_died",
        Kind::PutBack => "put_back",
    }
}

/// An error that only a mistake of ours can cause.
pub fn bug(why: impl Into<String>) -> Error {
    Error::new(Kind::Bug, "go on", "ctl", why, "this is a bug: please report it, with the command line")
}

/// Each part on its line, with no control character.
fn clean(e: &Error) -> Error {
    let reason = |r: &Reason| Reason::new(escape(&r.object), escape(&r.why), escape(&r.remedy));
    Error { kind: e.kind, attempted: escape(&e.attempted), reasons: e.reasons.iter().map(reason).collect() }
}

/// Control characters, and those that turn the writing direction, in a form that can be seen.
pub fn escape(text: &str) -> String {
    let mut s = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => s.push_str("\\n"),
            '\t' => s.push_str("\\t"),
            '\r' => s.push_str("\\r"),
            c if unsafe_to_show(c) => {
                let _ = write!(s, "\\u{{{:x}}}", c as u32);
            }
            c => s.push(c),
        }
    }
    s
}

fn unsafe_to_show(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// [`escape`] of each line: the line breaks are ours.
pub fn lines(text: &str) -> String {
    let mut s = text.split('\n').map(escape).collect::<Vec<_>>().join("\n");
    s.truncate(s.trim_end_matches('\n').len());
    s
}

/// JSON escapes the control characters below 32 by itself; these as well. They can only be inside strings.
fn escape_json(text: &str) -> String {
    let mut s = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && unsafe_to_show(c) {
            let _ = write!(s, "\\u{:04x}", c as u32);
        } else {
            s.push(c);
        }
    }
    s
}

fn pretty(v: &Value) -> String {
    escape_json(&serde_json::to_string_pretty(v).unwrap_or_else(|_| v.to_string()))
}

/// Lines on stderr.
pub fn eprint_lines(text: &str) {
    // Nothing can be said about a stderr that is gone.
    let _ = writeln!(io::stderr(), "{}", lines(text));
}

/// Writes to stdout. A reader that has left is no failure of ours; a full disk is.
pub fn stdout(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(
            Kind::Storage,
            "print the result",
            "standard output",
            e.to_string(),
            "what was asked for is done; redirect the output elsewhere",
        )),
        _ => Ok(()),
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut v = n as f64;
    let mut unit = "B";
    for u in UNITS {
        if v < 1024.0 {
            break;
        }
        v /= 1024.0;
        unit = u;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{v:.1} {unit}")
    }
}

/// A duration for people.
pub fn duration(d: std::time::Duration) -> String {
    match d.as_secs_f64() {
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(escape("a\u{1b}[31mb\n\u{9b}\u{202e}é"), "a\\u{1b}[31mb\\n\\u{9b}\\u{202e}é");
        assert_eq!(lines("a\u{7f}\n b\n"), "a\\u{7f}\n b");
        let text = escape_json(&json!({"k": "\u{1b}\u{9b}"}).to_string());
        assert_eq!(text, "{\"k\":\"\\u001b\\u009b\"}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["k"], "\u{1b}\u{9b}");
    }

    #[test]
    fn an_error_is_one_line_a_reason() {
        let e = Error::new(Kind::Refused, "restore a\nb", "o", "w", "r");
        assert_eq!(clean(&e).to_string(), "cannot restore a\\nb: o: w; r");
        let v = error_json(&e, 3);
        assert_eq!(v["error"]["kind"], "refused");
        assert_eq!(v["error"]["reasons"][0]["remedy"], "r");
    }

    #[test]
    fn figures_for_people() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!(duration(std::time::Duration::from_micros(4200)), "4.2 ms");
    }
}
