//! The verbs that need no running program, on a store that the image crate made: exit codes, messages, JSON.
#![allow(missing_docs)]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use common::{flip, keys, State};
use image::{Header, ManifestWriter};
use serde_json::json;

/// Verbs that open a checkpoint, with the code each has for a failure of `kind`: a foreground restore has its own.
fn openers(what: &str) -> Vec<(Vec<String>, Option<i32>)> {
    let line = |args: &[&str]| args.iter().map(|a| a.to_string()).collect::<Vec<_>>();
    vec![
        (line(&["inspect", what]), None),
        (line(&["check", what]), None),
        (line(&["verify", what]), None),
        (line(&["restore", what, "--detach"]), None),
        (line(&["restore", what]), Some(125)),
        (line(&["export", what, "/dev/null"]), None),
    ]
}

#[test]
fn no_such_session() {
    let s = State::new();
    s.ctl(&["verify", "web"])
        .failed(4, "cannot verify web: session: there is no session web; ctl list shows the sessions there are");
    for (args, code) in openers("web").into_iter().chain([
        (vec!["rm".into(), "web".into()], None),
        (vec!["rm".into(), "web@1".into()], None),
        (vec!["kill".into(), "web".into()], None),
        (vec!["checkpoint".into(), "web".into()], None),
    ]) {
        let r = s.run(s.command().arg("--json").args(&args));
        r.error("no_such", code.unwrap_or(4));
    }
    let left: Vec<_> = fs::read_dir(s.path().join("sessions")).unwrap().collect();
    assert!(left.is_empty(), "asking for a session does not make it: {left:?}");
}

#[test]
fn no_such_checkpoint() {
    let s = State::new();
    s.publish("web", 3);
    s.publish("web", 3);
    s.ctl(&["verify", "web@7"])
        .failed(4, "cannot verify web@7: checkpoint: session web has no checkpoint 7 (it has 1, 2); use web@2 or another that it has");
    for (args, code) in openers("web@7").into_iter().chain([(vec!["rm".into(), "web@7".into()], None)]) {
        s.run(s.command().arg("--json").args(&args)).error("no_such", code.unwrap_or(4));
    }
}

/// Spoils the only checkpoint of a session; each opener refuses it by what is wrong with it.
fn damaged(spoil: impl Fn(&State), why: &str) {
    let s = State::new();
    s.publish("web", 3);
    spoil(&s);
    let held = fs::read_dir(s.manifest("web", 1).parent().unwrap()).unwrap().count();
    for (args, code) in openers("web") {
        // Whether pages are as they were is for verify and export to tell; restore checks each as it reads it.
        if why.starts_with("pages") && !["verify", "export"].contains(&args[0].as_str()) {
            continue;
        }
        let r = s.run(s.command().arg("--json").args(&args));
        let e = r.error("damaged", code.unwrap_or(5));
        let said = e["reasons"][0]["why"].as_str().unwrap();
        assert!(said.contains(why), "{args:?} says {said:?}, not {why:?}");
        assert!(!e["reasons"][0]["remedy"].as_str().unwrap().is_empty());
    }
    assert_eq!(fs::read_dir(s.manifest("web", 1).parent().unwrap()).unwrap().count(), held);
    // It is listed, and can be removed.
    if !why.starts_with("pages") {
        let list = s.ctl(&["list", "--json"]).json();
        let c = &list["sessions"][0]["checkpoints"][0];
        assert!(c["identity"].is_null() && c["damaged"].as_str().unwrap().contains(why), "{c}");
        assert!(s.ctl(&["list"]).stdout.contains("damaged"));
    }
    assert_eq!(s.ctl(&["rm", "web@1"]).code, 0);
}

#[test]
fn an_empty_image() {
    damaged(|s| fs::write(s.manifest("web", 1), b"").unwrap(), "the file is empty");
}

#[test]
fn a_truncated_image() {
    let cut = |s: &State| {
        let bytes = fs::read(s.manifest("web", 1)).unwrap();
        fs::write(s.manifest("web", 1), &bytes[..bytes.len() - 9]).unwrap();
    };
    damaged(cut, "cut short");
}

#[test]
fn a_bit_flipped_manifest() {
    damaged(|s| flip(&s.manifest("web", 1), 100), "checksum");
}

#[test]
fn a_foreign_image() {
    damaged(
        |s| fs::write(s.manifest("web", 1), b"\x7fELF, or something like it, but not ours").unwrap(),
        "not a Dormouse manifest",
    );
}

#[test]
fn an_image_of_a_newer_format() {
    let newer = |s: &State| {
        let header = Header { major: 99, writer: "dormouse 9.1".into(), ..Header::new(image::header::MANIFEST) };
        let (bytes, _) = ManifestWriter::with_header(&header).finish();
        fs::write(s.manifest("web", 1), bytes).unwrap();
    };
    damaged(newer, "format 99.0 (written by dormouse 9.1)");
}

#[test]
fn a_missing_pack() {
    damaged(|s| fs::remove_file(s.pack("web")).unwrap(), "is missing");
}

#[test]
fn a_bit_flipped_page() {
    damaged(|s| flip(&s.pack("web"), 5000), "pages 0 to 2 do not match");
}

#[test]
fn verify_tells_what_it_read() {
    let s = State::new();
    s.publish("web", 3);
    let v = s.ctl(&["verify", "web", "--json"]).json();
    keys(&v, &["bytes", "identity", "n", "name", "ok", "packs", "pages"]);
    assert_eq!(
        (&v["name"], &v["n"], &v["ok"], &v["pages"], &v["packs"]),
        (&json!("web"), &json!(1), &json!(true), &json!(3), &json!(1))
    );
    assert_eq!(v["identity"].as_str().unwrap().len(), 64);
    let r = s.ctl(&["verify", "web@1"]);
    assert!(r.stdout.starts_with("web@1 is whole: 3 pages, "), "{r:?}");
    let r = s.ctl(&["verify", "web@1", "--quiet"]);
    assert_eq!((r.code, r.stdout.as_str(), r.stderr.as_str()), (0, "", ""));
}

#[test]
fn list_shows_sessions_and_checkpoints() {
    let s = State::new();
    assert_eq!(s.ctl(&["list"]).stdout, "NAME  STATE  PID  CHECKPOINTS  LATEST  SIZE  COMMAND\n");
    s.publish("web", 3);
    s.publish("web", 1);
    s.publish("other", 1);
    let v = s.ctl(&["list", "--json"]).json();
    let sessions = v["sessions"].as_array().unwrap();
    assert_eq!(sessions.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["other", "web"]);
    keys(
        &sessions[1],
        &["checkpoints", "command", "from", "last", "log", "mode", "name", "pid", "state", "supervisor", "triggers"],
    );
    assert_eq!((&sessions[1]["state"], &sessions[1]["pid"]), (&json!("dead"), &json!(null)));
    let c = &sessions[1]["checkpoints"];
    assert_eq!((&c[0]["n"], &c[1]["n"]), (&json!(1), &json!(2)));
    keys(&c[0], &["bytes", "created", "damaged", "identity", "n"]);
    let text = s.ctl(&["list", "--quiet"]).stdout;
    let web = text.lines().find(|l| l.starts_with("web ")).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(web[..4], ["web", "dead", "-", "1-2"]);
}

#[test]
fn rm_removes_one_or_all() {
    let s = State::new();
    for _ in 0..3 {
        s.publish("web", 2);
    }
    let v = s.ctl(&["rm", "web@2", "--json"]).json();
    keys(&v, &["freed_bytes", "name", "removed", "session"]);
    assert_eq!((&v["removed"], &v["session"]), (&json!([2]), &json!(false)));
    assert!(v["freed_bytes"].as_u64().unwrap() >= 2 * 4096);
    assert_eq!(s.ctl(&["verify", "web@2"]).code, 4);
    assert_eq!(s.ctl(&["verify", "web@3"]).code, 0);
    let r = s.ctl(&["rm", "web"]);
    assert!(r.stdout.starts_with("removed web and its 2 checkpoints, "), "{r:?}");
    assert!(!s.path().join("sessions/web").exists());
    assert_eq!(s.ctl(&["rm", "web"]).code, 4);
    // The number of a removed checkpoint is not given again to another.
    s.publish("new", 1);
    s.ctl(&["rm", "new@1"]);
    assert_eq!(s.publish("new", 1), 2);
}

#[test]
fn export_and_import() {
    let s = State::new();
    s.publish("web", 5);
    let file = s.file("web.dormouse");
    let v = s.ctl(&["export", "web", &file, "--json"]).json();
    keys(&v, &["bytes", "file", "n", "name"]);
    assert_eq!(v["bytes"].as_u64().unwrap(), fs::metadata(&file).unwrap().len());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "it holds secrets");
    s.ctl(&["export", "web", &file])
        .failed(3, &format!("cannot export web to {file}: {file}: exists already; remove it, or choose another name"));

    let v = s.ctl(&["import", &file, "--json"]).json();
    keys(&v, &["file", "n", "name"]);
    assert_eq!((&v["name"], &v["n"]), (&json!("web"), &json!(2)));
    let r = s.ctl(&["import", &file, "--name", "copy"]);
    assert_eq!((r.code, r.stdout), (0, format!("imported {file} as copy@1\n")));
    let identity = |what: &str| s.ctl(&["verify", what, "--json"]).json()["identity"].clone();
    assert_eq!(identity("web@1"), identity("copy@1"));
    // Only what was asked for is left beside it.
    let mut names: Vec<_> = fs::read_dir(s.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["state", "web.dormouse"]);
}

#[test]
fn export_and_import_through_a_pipe() {
    let s = State::new();
    s.publish("web", 300);
    let mut export =
        s.command().args(["export", "web", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pipe = export.stdout.take().unwrap();
    let r = s.run(s.command().args(["import", "-", "--name", "copy"]).stdin(pipe));
    assert_eq!((r.code, r.stdout.as_str()), (0, "imported - as copy@1\n"), "{r:?}");
    let o = export.wait_with_output().unwrap();
    assert!(o.status.success());
    assert!(String::from_utf8(o.stderr).unwrap().starts_with("exported web@1 to -, "));
}

#[test]
fn export_where_it_cannot_be_written() {
    let s = State::new();
    s.publish("web", 300);
    s.ctl(&["export", "web", "/dev/full"]).failed(
        7,
        "cannot export web to /dev/full: /dev/full: No space left on device (os error 28); free space there, or choose another place",
    );
    let nowhere = s.file("no/folder");
    s.ctl(&["export", "web", &nowhere]).failed(
        7,
        &format!(
            "cannot export web to {nowhere}: {nowhere}: No such file or directory (os error 2); make the folder first, or \
             choose another place"
        ),
    );
    let dir = s.file("");
    assert_eq!(s.ctl(&["export", "web", &dir]).code, 3);
}

#[test]
fn import_of_what_is_no_export() {
    let s = State::new();
    s.publish("web", 40);
    let file = s.file("e");
    s.ctl(&["export", "web", &file]);
    let whole = fs::read(&file).unwrap();
    let try_with = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let e = s.ctl(&["import", &file, "--name", "copy", "--json"]).error("damaged", 5);
        assert!(!s.path().join("sessions/copy").exists(), "the store holds what it held");
        e["reasons"][0]["why"].as_str().unwrap().to_owned()
    };
    assert!(try_with(b"").contains("empty"));
    assert!(try_with(b"not an export at all").contains("not a Dormouse export"));
    assert!(try_with(&whole[..whole.len() / 2]).contains("cut short"));
    assert!(try_with(&whole[..whole.len() - 1]).contains("cut short"));
    let mut more = whole.clone();
    more.push(0);
    assert!(try_with(&more).contains("after its END"));
    for at in [20, 200, whole.len() / 2, whole.len() - 40] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        try_with(&bytes);
    }
    assert_eq!(s.ctl(&["import", &s.file("none")]).code, 4);
    assert_eq!(s.ctl(&["import", s.dir.path().to_str().unwrap()]).code, 5);
}

#[test]
fn a_state_directory_that_others_may_enter_is_refused() {
    let s = State::new();
    s.publish("web", 1);
    fs::set_permissions(s.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let r = s.ctl(&["list"]);
    assert_eq!(r.code, 7);
    assert!(r.stderr.contains("chmod 700"), "{r:?}");
}

#[test]
fn a_full_stdout_is_told_and_a_closed_one_is_not() {
    let s = State::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let r = s.run(s.command().arg("list").stdout(full));
    assert_eq!(
        (r.code, r.stderr.as_str()),
        (
            7,
            "cannot print the result: standard output: No space left on device (os error 28); what was asked for is done; \
             redirect the output elsewhere\n"
        )
    );
    // The reader has left before anything is written.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let r = s.run(s.command().arg("list").stdout(writer));
    assert_eq!((r.code, r.stderr.as_str()), (0, ""));
}
