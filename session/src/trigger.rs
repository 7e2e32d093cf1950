//! Checkpoints that nobody asks ctl for: by a signal, by the clock, on the way out. What a session is started with, kept in its
//! registration and in its images, so that it holds after a restore too. Who acts on it is the supervisor (`supervisor::triggered`).
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Label under which an image has the triggers of its session, as JSON.
pub(crate) const TRIGGERS_LABEL: &str = "triggers";

/// How long SIGTERM waits for its checkpoint, if nothing else is said.
pub const GRACE: Duration = Duration::from_secs(25);

/// What makes checkpoints of a session by itself. In JSON what is not set is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Triggers {
    /// This signal makes a checkpoint; the program runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<TriggerSignal>,
    /// This signal makes a checkpoint and ends the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal_exit: Option<TriggerSignal>,
    /// A checkpoint every so many milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// So many checkpoints are kept: older ones go when a newer one is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// SIGTERM makes a checkpoint and ends the program.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub on_term: bool,
    /// The milliseconds that SIGTERM has for it; [`GRACE`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// A checkpoint that could not keep everything is refused, whoever asks for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
}

/// What a signal is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// A checkpoint; the program runs on.
    Keep,
    /// A checkpoint that ends the program.
    End,
    /// The same within the grace, and after that SIGTERM.
    Term,
}

impl Triggers {
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        *self == Triggers::default()
    }

    /// These, and for what they leave open those.
    pub fn over(&self, those: &Triggers) -> Triggers {
        let mut all = Triggers {
            signal: self.signal.or(those.signal),
            signal_exit: self.signal_exit.or(those.signal_exit),
            every_ms: self.every_ms.or(those.every_ms),
            keep: self.keep.or(those.keep),
            on_term: self.on_term || those.on_term,
            grace_ms: self.grace_ms.or(those.grace_ms),
            strict: self.strict || those.strict,
        };
        // A signal that these give another meaning loses the old one.
        if all.signal.is_some() && all.signal == all.signal_exit {
            match self.signal {
                Some(_) => all.signal_exit = None,
                None => all.signal = None,
            }
        }
        all
    }

    pub(crate) fn means(&self, sig: i32) -> Option<Means> {
        let is = |s: &Option<TriggerSignal>| s.is_some_and(|s| s.0 as i32 == sig);
        match sig {
            _ if is(&self.signal) => Some(Means::Keep),
            _ if is(&self.signal_exit) => Some(Means::End),
            libc::SIGTERM if self.on_term => Some(Means::Term),
            _ => None,
        }
    }

    /// Signals that are meant for us and not for the program.
    pub(crate) fn signals(&self) -> Vec<i32> {
        [self.signal, self.signal_exit].into_iter().flatten().map(|s| s.0 as i32).collect()
    }

    pub(crate) fn every(&self) -> Option<Duration> {
        self.every_ms.map(Duration::from_millis)
    }

    pub(crate) fn grace(&self) -> Duration {
        self.grace_ms.map_or(GRACE, Duration::from_millis)
    }

    /// As a label; None if there is none.
    pub(crate) fn label(&self) -> Option<String> {
        serde_json::to_string(self).ok().filter(|_| !self.is_empty())
    }
}

/// A signal that can be a trigger: one that can be taken from the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TriggerSignal(Signal);

impl FromStr for TriggerSignal {
    type Err = String;

    /// `USR2`, `SIGUSR2` or its number.
    fn from_str(text: &str) -> Result<TriggerSignal, String> {
        let upper = text.to_ascii_uppercase();
        let name = format!("SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
        let number = text.parse().ok().and_then(|n: i32| Signal::try_from(n).ok());
        let Some(signal) = number.or_else(|| name.parse().ok()) else {
            return Err(format!("{text:?} is not a signal; write USR2 or TSTP, say"));
        };
        let why = match signal {
            Signal::SIGCONT => "it continues what is stopped",
            Signal::SIGTERM => "that is what --on-term checkpoint is for",
            s if !crate::front::signals().contains(s) || crate::front::not_passed(s as i32) => {
                "the kernel or the terminal needs it"
            }
            s => return Ok(TriggerSignal(s)),
        };
        Err(format!("{} cannot ask for a checkpoint: {why}", signal.as_str()))
    }
}

impl fmt::Display for TriggerSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_start_matches("SIG"))
    }
}

impl From<TriggerSignal> for String {
    fn from(s: TriggerSignal) -> String {
        s.to_string()
    }
}

impl TryFrom<String> for TriggerSignal {
    type Error = String;

    fn try_from(text: String) -> Result<TriggerSignal, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_people_name_them() {
        for text in ["USR2", "usr2", "SIGUSR2", "12"] {
            assert_eq!(text.parse::<TriggerSignal>().unwrap().to_string(), "USR2");
        }
        for (bad, why) in [
            ("", "is not a signal"),
            ("USR9", "is not a signal"),
            ("0", "is not a signal"),
            ("KILL", "SIGKILL cannot ask for a checkpoint"),
            ("SEGV", "SIGSEGV cannot"),
            ("CHLD", "SIGCHLD cannot"),
            ("CONT", "SIGCONT cannot"),
            ("TERM", "--on-term"),
        ] {
            let e = bad.parse::<TriggerSignal>().unwrap_err();
            assert!(e.contains(why), "{bad}: {e}");
        }
    }

    #[test]
    fn a_label_says_only_what_is_set_and_reads_back() {
        let t = Triggers { signal: "USR2".parse().ok(), every_ms: Some(30_000), on_term: true, ..Triggers::default() };
        let text = t.label().unwrap();
        assert_eq!(text, r#"{"signal":"USR2","every_ms":30000,"on_term":true}"#);
        assert_eq!(serde_json::from_str::<Triggers>(&text).unwrap(), t);
        assert_eq!(Triggers::default().label(), None);
        assert!(serde_json::from_str::<Triggers>(r#"{"signal":"KILL"}"#).is_err());
    }

    #[test]
    fn what_is_given_now_goes_before_what_was() {
        let signal = |s: &str| s.parse::<TriggerSignal>().ok();
        let was = Triggers { signal: signal("USR2"), every_ms: Some(1000), keep: Some(3), ..Triggers::default() };
        let now = Triggers { every_ms: Some(5000), ..Triggers::default() };
        let all = now.over(&was);
        assert_eq!((all.signal, all.every_ms, all.keep), (signal("USR2"), Some(5000), Some(3)));
        // The same signal, for something else.
        let now = Triggers { signal_exit: signal("USR2"), ..Triggers::default() };
        let all = now.over(&was);
        assert_eq!((all.signal, all.signal_exit), (None, signal("USR2")));
        let was = Triggers { signal_exit: signal("USR2"), ..Triggers::default() };
        let now = Triggers { signal: signal("USR2"), ..Triggers::default() };
        let all = now.over(&was);
        assert_eq!((all.signal, all.signal_exit), (signal("USR2"), None));
        assert_eq!(Triggers::default().over(&was), was);
        assert_eq!(was.over(&Triggers::default()), was);
    }

    #[test]
    fn meanings() {
        let t = Triggers {
            signal: "USR2".parse().ok(),
            signal_exit: "TSTP".parse().ok(),
            on_term: true,
            ..Triggers::default()
        };
        assert_eq!(t.means(libc::SIGUSR2), Some(Means::Keep));
        assert_eq!(t.means(libc::SIGTSTP), Some(Means::End));
        assert_eq!(t.means(libc::SIGTERM), Some(Means::Term));
        assert_eq!(t.means(libc::SIGINT), None);
        assert_eq!(Triggers::default().means(libc::SIGTERM), None);
    }
}
