//! One error type for every verb: what was attempted, and each reason with its object and its remedy.
use std::fmt;

/// What sort of failure it is; the value is the exit code of `ctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Our own mistake.
    Bug = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Refused, nothing was changed.
    Refused = 3,
    /// No such session or checkpoint.
    NoSuch = 4,
    /// The image is damaged or not ours.
    Damaged = 5,
    /// Another checkpoint or restore of it runs.
    Busy = 6,
    /// Full, read-only, or no right.
    Storage = 7,
    /// The target died meanwhile.
    TargetDied = 8,
    /// Failed midway, everything was put back.
    PutBack = 9,
}

impl Kind {
    /// Exit code of `ctl`, 1 to 9.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// One reason: about what, why, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The object: "descriptor 5 (TCP 127.0.0.1:80 -> 127.0.0.1:4711)", "working directory /srv/web", ...
    pub object: String,
    /// Why it cannot be done.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

impl Reason {
    /// A reason from its three parts.
    pub fn new(object: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Reason {
        Reason { object: object.into(), why: why.into(), remedy: remedy.into() }
    }
}

/// Why an operation failed: all reasons at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Sort of failure, with the exit code.
    pub kind: Kind,
    /// What was attempted, on what: "checkpoint web (PID 1234)".
    pub attempted: String,
    /// Why, at least one.
    pub reasons: Vec<Reason>,
}

impl Error {
    /// An error with one reason.
    pub fn new(
        kind: Kind,
        attempted: impl Into<String>,
        object: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Error {
        Error { kind, attempted: attempted.into(), reasons: vec![Reason::new(object, why, remedy)] }
    }
}

impl fmt::Display for Error {
    /// One line a reason: `cannot ATTEMPTED: OBJECT WHY; REMEDY`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.len() == 1 {
            let r = &self.reasons[0];
            return write!(f, "cannot {}: {}: {}; {}", self.attempted, r.object, r.why, r.remedy);
        }
        write!(f, "cannot {}, for {} reasons:", self.attempted, self.reasons.len())?;
        for r in &self.reasons {
            write!(f, "\n  {}: {}; {}", r.object, r.why, r.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
