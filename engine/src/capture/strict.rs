//! `strict`: what would only be reported is a refusal. Looked at when the survey is done, in the freeze when all have been asked, and before the checkpoint
//! exists, so that nothing is copied in vain that could be known before.
use super::find::Survey;
use super::observe::Observer;
use super::Step;
use crate::{CaptureOptions, Error, Kind, Reason, Result};

const REMEDY: &str =
    "the program runs on as before; without --strict the checkpoint is made all the same, and this is reported";

/// What is said of a process; of `another` than the program with its PID.
pub(super) fn named(lines: &[String], pid: i32, another: bool) -> impl Iterator<Item = String> + '_ {
    lines.iter().map(move |l| if another { format!("PID {pid}: {l}") } else { l.clone() })
}

/// Of what was looked at only.
pub(super) fn surveys(all: &[Survey]) -> Vec<String> {
    all.iter().enumerate().flat_map(|(i, s)| named(&s.reported, s.pid, i > 0)).collect()
}

/// Of what was asked in the freeze.
pub(super) fn observers<'a>(all: impl Iterator<Item = &'a Observer<'a>>) -> Vec<String> {
    all.enumerate().flat_map(|(i, o)| named(&o.reported, o.survey.pid, i > 0)).collect()
}

/// Refuses for each of these.
pub(super) fn refuse(attempted: &str, reported: Vec<String>) -> Result<()> {
    let reason = |line: String| {
        let (object, lost) = line.split_once(": ").unwrap_or(("the program", &line));
        let (object, lost) = match object.strip_prefix("PID ").and(lost.split_once(": ")) {
            Some((what, lost)) => (format!("{object}: {what}"), lost),
            None => (object.to_owned(), lost),
        };
        Reason::new(object, format!("with --strict everything is to be kept, and this is not: {lost}"), REMEDY)
    };
    let reasons: Vec<Reason> = reported.into_iter().map(reason).collect();
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(Error { kind: Kind::Refused, attempted: attempted.into(), reasons }),
    }
}

/// The same if it was asked for.
pub(super) fn check(o: &CaptureOptions<'_>, attempted: &str, reported: impl FnOnce() -> Vec<String>) -> Step<()> {
    if o.strict {
        refuse(attempted, reported())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_reason_with_its_object() {
        let lines =
            ["descriptor 3: the lock held on it is not kept", "PID 7: NUMA policy of x: it is: lost", "all is lost"];
        let e = refuse("checkpoint a", lines.map(String::from).to_vec()).unwrap_err();
        let objects: Vec<&str> = e.reasons.iter().map(|r| r.object.as_str()).collect();
        assert_eq!(objects, ["descriptor 3", "PID 7: NUMA policy of x", "the program"]);
        assert!(e.reasons[1].why.ends_with("this is not: it is: lost"), "{}", e.reasons[1].why);
        assert_eq!(refuse("checkpoint a", Vec::new()), Ok(()));
    }
}
