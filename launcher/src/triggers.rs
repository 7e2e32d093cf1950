//! The options that make checkpoints by themselves, and those that take a session up again.
use clap::{Args, ValueEnum};
use session::{Resume, TriggerSignal, Triggers};
use std::time::Duration;

/// Checkpoints nobody asks ctl for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Checkpoints")]
pub struct TriggerArgs {
    /// A checkpoint whenever launcher gets this signal (USR2, say); the program runs on, and does not get the signal. Of a detached
    /// session, it is the supervisor that takes it. It may be sent to the program as well, if that has an agent.
    #[arg(long, value_name = "SIGNAL")]
    signal: Option<TriggerSignal>,
    /// The same, but the program ends with the checkpoint, and launcher with 85.
    #[arg(long, value_name = "SIGNAL")]
    signal_exit: Option<TriggerSignal>,
    /// A checkpoint every so often (30s, 5m, 1h; ms, d); one that would overlap another is left out.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    every: Option<Duration>,
    /// Keep so many checkpoints: older ones go when one that was made so is complete.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    keep: Option<usize>,
    /// What SIGTERM does: checkpoint ends the program with a checkpoint, and launcher with 85.
    #[arg(long, value_name = "WHAT", value_enum)]
    on_term: Option<OnTerm>,
    /// How long that may take, before the program is given SIGTERM instead [default: 25s].
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "on_term")]
    grace: Option<Duration>,
    /// Refuse a checkpoint that could not keep everything, whoever asks for it, instead of reporting what is lost.
    #[arg(long)]
    strict: bool,
    /// Take the session up from its newest checkpoint if it has one, else start the command. --resume=intact takes the newest
    /// checkpoint that is whole.
    #[arg(long, value_name = "WHICH", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "newest", requires = "name")]
    resume: Option<ResumeArg>,
    /// Resumed, forget what made checkpoints of it before; only this line counts.
    #[arg(long, requires = "resume")]
    no_triggers: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnTerm {
    /// Make a checkpoint and end.
    Checkpoint,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResumeArg {
    /// The newest checkpoint; refused if it is damaged.
    Newest,
    /// The newest checkpoint that is whole.
    Intact,
}

impl TriggerArgs {
    /// As the session wants them; or what is wrong with them together.
    pub fn triggers(&self) -> Result<Triggers, String> {
        if let Some(s) = self.signal.filter(|s| Some(*s) == self.signal_exit) {
            return Err(format!("--signal and --signal-exit are both {s}: one signal has one meaning"));
        }
        let ms = |d: Duration| d.as_millis() as u64;
        Ok(Triggers {
            signal: self.signal,
            signal_exit: self.signal_exit,
            every_ms: self.every.map(ms),
            keep: self.keep,
            on_term: self.on_term.is_some(),
            grace_ms: self.grace.map(ms),
            strict: self.strict,
        })
    }

    /// Signals are to be sent to launcher, or the supervisor.
    pub fn takes_signals(&self) -> bool {
        self.signal.is_some() || self.signal_exit.is_some() || self.on_term.is_some()
    }

    /// Which checkpoint is taken up, if any is to be.
    pub fn resume(&self) -> Option<Resume> {
        self.resume.map(|r| match r {
            ResumeArg::Newest => Resume::Newest,
            ResumeArg::Intact => Resume::Intact,
        })
    }

    /// What was in force before is not any more.
    pub fn no_triggers(&self) -> bool {
        self.no_triggers
    }
}

/// 30s, 500ms, 5m, 2h, 1d; seconds without a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => return Err(format!("{other:?} is not a unit of time: write ms, s, m, h or d")),
    };
    let number = digits.parse::<u64>().map_err(|_| format!("{text:?} is not a time; write 30s or 5m, say"))?;
    match number.checked_mul(unit) {
        Some(0) => Err("it must be longer than nothing".into()),
        // Longer than any kernel's clock runs.
        Some(ms) if ms <= 100 * 365 * 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is too long")),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is not a number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in
            [("30s", 30_000), ("30", 30_000), ("250ms", 250), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "0s", "-1s", "1.5s", "5 m", "1w", "99999999999999999999s", "99999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(at_least_one("0").is_err() && at_least_one("x").is_err());
        assert_eq!(at_least_one("5"), Ok(5));
    }
}
