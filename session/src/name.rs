//! Names: made from a command, and read from a command line.
use crate::{registry, Result, Spec, StateDir};
use engine::{Error, Kind};
use image::SessionName;
use std::ffi::OsStr;
use std::path::Path;
use std::str::FromStr;

/// Checks a name that the user gave.
pub fn parse(text: &str) -> Result<SessionName> {
    SessionName::new(text).map_err(|e| crate::image_error("use that name", e))
}

impl FromStr for Spec {
    type Err = Error;

    /// `NAME` or `NAME@N`.
    fn from_str(text: &str) -> Result<Spec> {
        let Some((name, n)) = text.split_once('@') else {
            return Ok(Spec { name: parse(text)?, n: None });
        };
        let name = parse(name)?;
        // Written as it would be shown: no sign, no leading zero.
        let number = n.parse::<u64>().ok().filter(|number| *number > 0 && number.to_string() == n);
        match number {
            Some(n) => Ok(Spec { name, n: Some(n) }),
            None => Err(Error::new(
                Kind::Usage,
                format!("use {name}@..."),
                "checkpoint",
                format!("{n:?} is not a checkpoint number"),
                format!("write {name}@1, or {name} for the latest"),
            )),
        }
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.n {
            Some(n) => write!(f, "{}@{n}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// What of a command can be in a name: the last part of its path, odd characters as `-`.
pub fn stem(command: &OsStr) -> String {
    let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
    let safe: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    // 48: leaves room for the number in the 64 that a name may have.
    let stem: String = safe.trim_start_matches(['.', '-']).chars().take(48).collect();
    if stem.is_empty() {
        "session".into()
    } else {
        stem
    }
}

/// A name for the command that is not in use and never was here: `python3-1`, `python3-2`, ... Its folder is made, so
/// that two launchers never choose the same.
pub(crate) fn make(state: &StateDir, command: &OsStr) -> Result<SessionName> {
    let stem = stem(command);
    let store = state.store()?;
    for n in 1u64.. {
        let name = parse(&format!("{stem}-{n}"))?;
        if registry::unused(state, &store, &name)? && registry::claim(state, &name)? {
            return Ok(name);
        }
    }
    unreachable!("there are more numbers than folders")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_of_commands_are_names() {
        for (command, stem_) in [
            ("python3", "python3"),
            ("/usr/bin/python3.13", "python3.13"),
            ("./a b\tc", "a-b-c"),
            ("/opt/.hidden", "hidden"),
            ("--", "session"),
            ("", "session"),
            ("/", "-"),
            ("é", "session"),
        ] {
            let expected = if command == "/" { "session" } else { stem_ };
            assert_eq!(stem(OsStr::new(command)), expected, "{command:?}");
            assert!(SessionName::new(&stem(OsStr::new(command))).is_ok());
        }
        let long = stem(OsStr::new(&"x".repeat(300)));
        assert!(SessionName::new(&format!("{long}-{}", 99_999_999)).is_ok());
    }

    #[test]
    fn specs_are_read_strictly() {
        assert_eq!("web".parse::<Spec>().unwrap().n, None);
        assert_eq!("web@3".parse::<Spec>().unwrap().n, Some(3));
        assert_eq!("web@3".parse::<Spec>().unwrap().to_string(), "web@3");
        for bad in
            ["web@", "web@0", "web@+3", "web@03", "web@x", "@3", "../x", "", "web@3@4", "web@99999999999999999999999"]
        {
            let e = bad.parse::<Spec>().unwrap_err();
            assert_eq!(e.kind, Kind::Usage, "{bad}");
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }
}
