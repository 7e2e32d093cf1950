//! NAME and NAME@N as they are typed: the verb is in the message, the rule too, and no control character.
use engine::{Error, Kind};
use image::SessionName;
use session::Spec;

/// NAME, or an error of kind usage that says the rule. `doing` is the verb: "checkpoint".
pub fn session(doing: &str, text: &str) -> Result<SessionName, Error> {
    SessionName::new(text).map_err(|_| invalid(doing, text, text))
}

/// NAME or NAME@N, or an error of kind usage that says the rule.
pub fn spec(doing: &str, text: &str) -> Result<Spec, Error> {
    let Some((name, n)) = text.split_once('@') else {
        return Ok(Spec { name: session(doing, text)?, n: None });
    };
    let name = SessionName::new(name).map_err(|_| invalid(doing, text, name))?;
    match n.parse::<u64>() {
        Ok(number) if number > 0 && number.to_string() == n => Ok(Spec { name, n: Some(number) }),
        _ => Err(Error::new(
            Kind::Usage,
            format!("{doing} {}", short(text)),
            format!("checkpoint {:?}", short(n)),
            "is not the number of a checkpoint",
            format!("write {name}@1, or {name} for the latest; ctl list shows which there are"),
        )),
    }
}

fn invalid(doing: &str, text: &str, name: &str) -> Error {
    let bad = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c)));
    let why = if name.is_empty() {
        "is empty".into()
    } else if name.len() > image::name::MAX_LEN {
        format!("has {} bytes", name.len())
    } else if let Some(bad) = bad {
        format!("has the character {bad:?}")
    } else {
        format!("starts with {:?}", &name[..1])
    };
    let attempted = format!("{doing} {}", short(text));
    let remedy = format!("a name is {}", image::name::RULE);
    Error::new(Kind::Usage, attempted.trim_end(), format!("name {:?}", short(name)), why, remedy)
}

/// The beginning of a text that may be absurdly long.
fn short(text: &str) -> String {
    let mut s: String = text.chars().take(64).collect();
    if s.len() < text.len() {
        s.push_str("...");
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_number() {
        let t = spec("restore", "web@3").unwrap();
        assert_eq!((t.name.as_str(), t.n, t.to_string().as_str()), ("web", Some(3), "web@3"));
        let t = spec("restore", "web").unwrap();
        assert_eq!((t.name.as_str(), t.n, t.to_string().as_str()), ("web", None, "web"));
    }

    #[test]
    fn what_is_neither_is_a_usage_error() {
        let bad = ["", "@", "@3", "../x", "web@", "web@x", "web@-1", "web@+1", "web@0", "web@01", "web@1@2", "\u{9b}m"];
        for bad in bad.into_iter().chain(["web@99999999999999999999"]) {
            let e = spec("restore", bad).unwrap_err();
            assert_eq!(e.kind, Kind::Usage, "{bad:?}");
        }
        let long = "x".repeat(300);
        assert!(spec("restore", &long).unwrap_err().to_string().len() < 350);
        assert_eq!(
            session("kill", "a/b").unwrap_err().to_string(),
            "cannot kill a/b: name \"a/b\": has the character '/'; a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -, \
             not starting with . or -"
        );
    }
}
