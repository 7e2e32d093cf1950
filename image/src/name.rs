//! Session names: what may be the name of a folder of the store.

use std::fmt;

use crate::error::{ImageError, Result};

/// The rule, as it is said in messages.
pub const RULE: &str = "1 to 64 of the characters A-Z a-z 0-9 . _ -, not starting with . or -";

/// Longest name in bytes.
pub const MAX_LEN: usize = 64;

/// A checked session name: safe as a file name, an argument and in a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName(String);

impl SessionName {
    /// Checks `text` against [`RULE`]; [`ImageError::InvalidName`] says which part it breaks.
    pub fn new(text: &str) -> Result<SessionName> {
        let bad = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c)));
        let why = if text.is_empty() {
            "it is empty".to_string()
        } else if text.len() > MAX_LEN {
            format!("it has {} bytes", text.len())
        } else if let Some(bad) = bad {
            format!("it has the character {bad:?}")
        } else if text.starts_with(['.', '-']) {
            format!("it starts with {:?}", &text[..1])
        } else {
            return Ok(SessionName(text.to_string()));
        };
        let mut name: String = text.chars().take(MAX_LEN).collect();
        if name.len() < text.len() {
            name.push_str("...");
        }
        Err(ImageError::InvalidName { name, why: format!("{why}; a name is {RULE}") })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for SessionName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_safe_are_taken() {
        for good in ["a", "web", "web-1.2_x", "A".repeat(64).as_str(), "0", "a..b", "_"] {
            assert_eq!(SessionName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused_with_the_rule() {
        let long = "x".repeat(300);
        for bad in ["", ".", "..", "../x", "a/b", ".hid", "-x", "a\nb", "\u{1b}[1m", "é", "a b", "x@1", &long] {
            let error = SessionName::new(bad).unwrap_err();
            assert!(error.to_string().contains(RULE), "{error}");
            assert!(error.to_string().len() < 300 && !error.to_string().contains('\n'));
            assert!(error.advice().contains(RULE));
        }
    }
}
