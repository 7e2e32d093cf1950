//! What doctor says, and that it is not taken in by what is merely said.
#![allow(missing_docs)]
mod common;

use common::{keys, State};
use serde_json::Value;

fn line<'a>(report: &'a Value, id: &str) -> &'a Value {
    let lines = report["lines"].as_array().unwrap();
    lines.iter().find(|l| l["id"] == id).unwrap_or_else(|| panic!("no line {id} in {report}"))
}

#[test]
fn the_report_is_complete() {
    let s = State::new();
    let r = s.ctl(&["doctor", "--json"]);
    let report = r.json();
    keys(&report, &["lines", "ok", "root", "state_dir", "uid"]);
    let lines = report["lines"].as_array().unwrap();
    for l in lines {
        keys(l, &["essential", "found", "id", "means", "remedy", "status"]);
        let status = l["status"].as_str().unwrap();
        assert!(["ok", "limited", "missing"].contains(&status), "{l}");
        assert_eq!(l["remedy"].is_null(), status == "ok", "{l}");
        assert!(!l["found"].as_str().unwrap().is_empty() && !l["means"].as_str().unwrap().is_empty(), "{l}");
    }
    let bad = lines.iter().any(|l| l["essential"] == true && l["status"] == "missing");
    assert_eq!((report["ok"].as_bool(), r.code), (Some(!bad), if bad { 3 } else { 0 }));
    for id in
        ["kernel", "ptrace", "pids-keep", "user-namespaces", "capabilities", "seccomp", "cpu", "processes", "memory"]
    {
        line(&report, id);
    }
    assert!(!s.path().exists(), "nothing is made");
    let text = s.ctl(&["doctor"]);
    assert_eq!(text.code, r.code);
    assert!(text.stdout.contains("Programs can"), "{text:?}");
}

#[test]
fn a_state_directory_that_cannot_be_used_is_a_refusal() {
    let s = State::new();
    // Nobody can make a folder there, root neither.
    let r = s.ctl(&["doctor", "--json", "--state-dir", "/proc/dormouse"]);
    let report = r.json();
    assert_eq!((r.code, &report["ok"]), (3, &Value::Bool(false)));
    assert_eq!(line(&report, "state-dir")["status"], "missing");
    let text = s.ctl(&["doctor", "--state-dir", "/proc/dormouse"]);
    assert!(text.stdout.contains("missing state-dir"), "{text:?}");
}
