//! A launcher under an interactive shell on a terminal: Ctrl-C, Ctrl-Z, fg, bg, as without it.
mod common;
use std::process::Command;

#[test]
fn job_control_is_as_without_launcher() {
    let s = common::Sandbox::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/job_control.py");
    let command = format!(
        "{} --state-dir {} --name web -- python3 {script} program",
        env!("CARGO_BIN_EXE_launcher"),
        s.path.display()
    );
    let out = Command::new("python3").arg(script).arg("drive").arg(command).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
