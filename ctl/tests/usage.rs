//! What is typed wrong: exit code 2, the rule in the message, nothing made on the disk, no control character on the terminal.
#![allow(missing_docs)]
mod common;

use common::State;

const RULE: &str = "a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -, not starting with . or -";

#[test]
fn help_and_version_are_answers() {
    let s = State::new();
    let help = s.ctl(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    let verbs = "checkpoint restore list inspect check verify rm kill doctor export import";
    for verb in verbs.split(' ') {
        assert!(help.stdout.contains(&format!("\n  {verb} ")), "{verb}: {}", help.stdout);
        assert_eq!(s.ctl(&[verb, "--help"]).code, 0, "{verb}");
    }
    assert!(help.stdout.contains("Exit codes:"));
    let version = s.ctl(&["--version"]);
    assert_eq!((version.code, version.stdout.as_str()), (0, concat!("ctl ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn what_clap_refuses_is_usage() {
    let s = State::new();
    let bad: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["checkpoint"],
        &["checkpoint", "web", "--pid", "12", "--name", "web"],
        &["checkpoint", "--pid", "12"],
        &["checkpoint", "--name", "web"],
        &["checkpoint", "web", "--name", "x"],
        &["checkpoint", "web", "--kill", "--stop"],
        &["checkpoint", "--pid", "twelve", "--name", "web"],
        &["checkpoint", "--pid", "99999999999", "--name", "web"],
        &["restore"],
        &["restore", "web", "--pids", "old"],
        &["restore", "web", "--external", "5"],
        &["restore", "web", "--external", "x=/dev/null"],
        &["restore", "web", "--map-path", "srv=/srv"],
        &["restore", "web", "--map-path", "/srv"],
        &["check"],
        &["check", "web", "--pid", "12"],
        &["list", "web"],
        &["list", "--frob"],
        &["export", "web"],
        &["import"],
        &["kill"],
        &["rm"],
    ];
    for args in bad {
        let r = s.ctl(args);
        assert_eq!((r.code, r.stdout.as_str()), (2, ""), "{args:?}: {r:?}");
        assert!(r.stderr.contains("Usage:") || r.stderr.contains("For more information"), "{args:?}: {r:?}");
    }
    assert!(!s.path().exists());
}

#[test]
fn usage_errors_as_json() {
    let s = State::new();
    let e = s.ctl(&["--json", "restore", "web", "--pids", "old"]).error("usage", 2);
    assert_eq!(e["attempted"], "understand the command line");
    assert!(e["reasons"][0]["why"].as_str().unwrap().contains("invalid value 'old' for '--pids <PIDS>'"), "{e}");
    let e = s.ctl(&["inspect", "../x", "--json"]).error("usage", 2);
    assert_eq!(e["reasons"][0]["object"], "name \"../x\"");
    let e = s.ctl(&["--json", "export", "web"]).error("usage", 2);
    assert_eq!(e["reasons"][0]["why"], "the following required arguments were not provided: <FILE>");
    // After -- it is an argument.
    assert_eq!(s.ctl(&["restore", "--", "--json", "x"]).stdout, "");
}

#[test]
fn invalid_names_say_the_rule() {
    let s = State::new();
    s.ctl(&["checkpoint", "../x"])
        .failed(2, &format!("cannot checkpoint ../x: name \"../x\": has the character '/'; {RULE}"));
    s.ctl(&["checkpoint", ""]).failed(2, &format!("cannot checkpoint: name \"\": is empty; {RULE}"));
    s.ctl(&["kill", ".."]).failed(2, &format!("cannot kill ..: name \"..\": starts with \".\"; {RULE}"));
    s.ctl(&["rm", "--", "-x@2"]).failed(2, &format!("cannot remove -x@2: name \"-x\": starts with \"-\"; {RULE}"));
    let (long, short) = ("x".repeat(300), "x".repeat(64) + "...");
    s.ctl(&["restore", &long]).failed(2, &format!("cannot restore {short}: name \"{short}\": has 300 bytes; {RULE}"));
    s.ctl(&["restore", "web@new"]).failed(
        2,
        "cannot restore web@new: checkpoint \"new\": is not the number of a checkpoint; write web@1, or web for the latest; \
         ctl list shows which there are",
    );
    assert_eq!(s.ctl(&["restore", "web@0"]).code, 2);
    assert_eq!(s.ctl(&["restore", "web", "--as", "a/b"]).code, 2);
    assert_eq!(s.ctl(&["checkpoint", "--pid", "1", "--name", "a b"]).code, 2);
    assert_eq!(s.ctl(&["import", "f", "--name", "é"]).code, 2);
    assert!(!s.path().exists(), "nothing is made for a name that is none");
}

#[test]
fn every_verb_refuses_control_characters_and_prints_none() {
    let s = State::new();
    let evil = "a\u{1b}[31mb\u{9b}0m\n\u{7}\u{202e}";
    let pid = format!("1{evil}");
    let lines: &[&[&str]] = &[
        &["checkpoint", evil],
        &["checkpoint", "--pid", "1", "--name", evil],
        &["checkpoint", "--pid", &pid, "--name", "x"],
        &["restore", evil],
        &["restore", "web", "--as", evil],
        &["restore", "web", "--pids", evil],
        &["restore", "web", "--map-path", evil],
        &["inspect", evil],
        &["check", evil],
        &["verify", evil],
        &["rm", evil],
        &["kill", evil],
        &["export", evil, "f"],
        &["import", "f", "--name", evil],
        &[evil],
    ];
    for args in lines {
        for json in [false, true] {
            let r = s.run(s.command().args(json.then_some("--json")).args(*args));
            assert_eq!(r.code, 2, "{args:?}: {r:?}");
            let shown = r.stdout.clone() + &r.stderr;
            let raw = shown.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(raw, None, "{args:?}: {r:?}");
            if json {
                r.error("usage", 2);
            }
        }
    }
    // Also where the text is no name but a path.
    let r = s.ctl(&["import", &s.file(evil)]);
    assert_eq!(r.code, 4);
    assert!(r.stderr.contains("a\\u{1b}[31mb\\u{9b}0m\\n\\u{7}\\u{202e}"), "{r:?}");
    assert_eq!(r.stderr.matches('\n').count(), 1);
}

#[test]
fn arguments_that_are_no_text_are_usage() {
    use std::os::unix::ffi::OsStrExt;
    let s = State::new();
    let r = s.ctl(&[std::ffi::OsStr::new("restore"), std::ffi::OsStr::from_bytes(b"a\xff")]);
    assert_eq!((r.code, r.stdout.as_str()), (2, ""));
}

#[test]
fn a_panic_says_that_it_is_a_bug() {
    let s = State::new();
    let fault = |args: &[&str]| s.run(s.command().env("DORMOUSE_FAULT", "ctl:1:fail").args(args));
    let r = fault(&["list"]);
    assert_eq!((r.code, r.stdout.as_str()), (1, ""));
    assert!(r.stderr.starts_with("cannot go on: ctl: failed on demand at ctl/src/main.rs:"), "{r:?}");
    assert!(r.stderr.ends_with("; this is a bug: please report it, with the command line\n"), "{r:?}");
    fault(&["list", "--json"]).error("bug", 1);
    fault(&["restore", "web", "--json"]).error("bug", 125);
    fault(&["restore", "web", "--detach", "--json"]).error("bug", 1);
}

#[test]
fn the_state_directory_is_named_or_found() {
    let s = State::new();
    let run = |dir: &str| s.run(s.command().args(["list", "--json", "--state-dir", dir]));
    let other = s.file("other");
    assert_eq!(run(&other).json(), serde_json::json!({"sessions": []}));
    assert!(s.dir.path().join("other/sessions").is_dir());
    assert!(!s.path().exists(), "--state-dir goes before DORMOUSE_STATE_DIR");
    run("/proc/nowhere").error("storage", 7);
    run(&"x".repeat(300)).error("storage", 7);
    assert_eq!(run("").code, 2);
}
