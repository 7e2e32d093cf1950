//! What a launched program sees and what its launcher returns.
mod common;
use common::{Sandbox, SAYS_SIGNALS};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use session::State;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

#[test]
fn the_exit_status_is_the_programs() {
    let s = Sandbox::new();
    let code = |command: &[&str]| s.run(&["--name", "web"], command).0.code();
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&["sh", "-c", "exit 255"]), Some(255));
    assert_eq!(code(&["sh", "-c", "kill -TERM $$"]), Some(128 + 15));
    assert_eq!(code(&["sh", "-c", "kill -KILL $$"]), Some(128 + 9));
    // A real-time signal, which nix cannot name.
    assert_eq!(code(&["sh", "-c", "kill -40 $$"]), Some(128 + 40));
    assert!(!s.state().session(&session::name::parse("web").unwrap()).exists(), "nothing is left of it");
}

#[test]
fn what_cannot_be_started_is_126_or_127_with_a_reason() {
    let s = Sandbox::new();
    let (status, out, err) = s.run(&["--name", "web"], &["/no/such/program"]);
    assert_eq!((status.code(), out.as_str()), (Some(127), ""));
    assert!(
        err.starts_with("launcher: cannot launch web: the command: no such file or directory; check its spelling"),
        "{err}"
    );
    assert_eq!(s.run(&[], &["no-such-program-in-path"]).0.code(), Some(127));
    let script = s.dir.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (status, _, err) = s.run(&["--detach", "--name", "web"], &[script.to_str().unwrap()]);
    assert_eq!(status.code(), Some(126));
    assert!(err.contains("permission denied; make it executable (chmod +x)"), "{err}");
    let (status, _, err) = s.run(&["--name", "web"], &[s.dir.path().to_str().unwrap()]);
    assert_eq!(status.code(), Some(126));
    assert_eq!(
        err,
        "launcher: cannot launch web: the command: it is a directory; name a program, in it or elsewhere\n"
    );
    assert!(session::list(&s.state()).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(s.state().sessions()).unwrap().count(), 0, "no folder is left");
}

#[test]
fn a_command_without_dashes_is_shown_with_them() {
    let run = |args: &[&str]| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_launcher")).args(args).output().unwrap();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        assert_eq!(out.status.code(), Some(125), "{args:?}");
        (text(&out.stdout), text(&out.stderr))
    };
    let (_, err) = run(&["sleep", "1"]);
    assert!(err.starts_with("error: unexpected argument 'sleep' found\n"), "{err}");
    assert!(err.ends_with("\nWrite the command after --: launcher -- sleep 1\n"), "{err}");
    let (_, err) = run(&["--name", "web", "sh", "-c", "echo it's", "--", "x"]);
    assert!(err.ends_with("after --: launcher --name web -- sh -c 'echo it'\\''s' x\n"), "{err}");
    assert!(run(&["--name", "sh", "sh"]).1.ends_with("after --: launcher --name sh -- sh\n"));
    assert!(!run(&["--no-such-option"]).1.contains("after --:"));
    let (out, err) = run(&["--json", "sleep", "1"]);
    let said: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!((out.as_str(), &said["event"], &said["exit"]), ("", &"failed".into(), &125.into()));
    assert_eq!(said["reasons"][0]["why"], "unexpected argument 'sleep' found");
    assert_eq!(said["reasons"][0]["remedy"], "Write the command after --: launcher --json -- sleep 1");
    let (out, err) = run(&["--json", "--detach"]);
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    let why = "the following required arguments were not provided: <COMMAND>...";
    assert_eq!((err.as_str(), &said["reasons"][0]["why"]), ("", &why.into()));
}

#[test]
fn its_own_failures_are_125() {
    let s = Sandbox::new();
    for name in ["../x", "", "x\ny", &"x".repeat(300)] {
        let (status, _, err) = s.run(&["--name", name], &["true"]);
        assert_eq!(status.code(), Some(125), "{err}");
    }
    let (status, _, err) = s.run(&["--no-such-option"], &["true"]);
    assert_eq!(status.code(), Some(125));
    assert!(err.contains("--no-such-option"), "{err}");
    let file = s.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (status, _, err) = s.run(&["--state-dir", file.to_str().unwrap()], &["true"]);
    assert_eq!(status.code(), Some(125), "{err}");
    let open = s.dir.path().join("open");
    std::fs::create_dir_all(open.join("something")).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut launcher = std::process::Command::new(env!("CARGO_BIN_EXE_launcher"));
    let out = launcher.args(["--state-dir", open.to_str().unwrap(), "--", "true"]).output().unwrap();
    assert_eq!(out.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&out.stderr).contains("others may enter it (mode 0755)"));
}

#[test]
fn a_name_is_made_from_the_command_and_printed() {
    let s = Sandbox::new();
    let (_, _, err) = s.run(&[], &["/bin/true"]);
    assert_eq!(err, "session true-1\n");
    assert_eq!(s.run(&["--quiet"], &["true"]).2, "");
    let first = s.detached("sleep-1", &["sleep", "1000"]);
    let mut second = s.launcher(&[], &["sleep", "0"]);
    assert_eq!(String::from_utf8(second.output().unwrap().stderr).unwrap(), "session sleep-2\n");
    let (status, _, err) = s.run(&["--name", "sleep-1"], &["true"]);
    assert_eq!(status.code(), Some(125));
    let said =
        format!("cannot launch sleep-1: session sleep-1: it is live as PID {}; choose another --name", first.pid);
    assert!(err.contains(&said), "{err}");
}

#[test]
fn no_descriptor_of_ours_reaches_the_program() {
    let s = Sandbox::new();
    let list = ["python3", "-c", "import os; print(sorted(os.readlink('/proc/self/fd/' + f) for f in os.listdir('/proc/self/fd') if int(f) > 2 and os.path.exists('/proc/self/fd/' + f)))"];
    let (_, with, _) = s.run(&["--quiet"], &list);
    assert_eq!(with, "[]\n");
    let detached = s.detached("fds", &list);
    detached.wait();
    let log = std::fs::read_to_string(s.state().log(&session::name::parse("fds").unwrap())).unwrap();
    assert_eq!(log, with);
}

#[test]
fn signal_mask_and_dispositions_are_the_callers() {
    let s = Sandbox::new();
    let show = ["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"];
    for ignored in [&[][..], &["PIPE"], &["CHLD"], &["INT", "QUIT", "PIPE"]] {
        let traps: String = ignored.iter().map(|sig| format!("trap '' {sig}; ")).collect();
        let wanted =
            std::process::Command::new("sh").args(["-c", &format!("{traps} exec \"$@\""), "-"]).args(show).output();
        let mut through = std::process::Command::new("sh");
        through.args(["-c", &format!("{traps} exec \"$@\""), "-", env!("CARGO_BIN_EXE_launcher"), "--state-dir"]);
        let through = through.arg(&s.path).arg("--").args(show).output().unwrap();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        assert_eq!(through.status.code(), Some(0), "{ignored:?}");
        assert_eq!(text(&through.stdout), text(&wanted.unwrap().stdout), "{ignored:?}");
    }
}

#[test]
fn signals_are_passed_on_once_whoever_gets_them() {
    let s = Sandbox::new();
    let mut c = s.launcher(&["--quiet", "--name", "web"], &["python3", "-c", SAYS_SIGNALS]);
    // A process group of its own, as a shell gives it, so that the group can be signalled without this test.
    c.process_group(0)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = c.spawn().unwrap();
    let out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut f = common::Foreground { child, out };
    assert_eq!(f.line(), "ready");
    let front = Pid::from_raw(f.child.id() as i32);
    let live = session::registry::live(&s.state(), &session::name::parse("web").unwrap()).unwrap().unwrap();
    let supervisor = Pid::from_raw(live.supervisor.unwrap().pid);
    for sig in ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT"] {
        let signal: Signal = sig.parse().unwrap();
        for (to, which) in [(front, "front"), (Pid::from_raw(-front.as_raw()), "group"), (supervisor, "supervisor")] {
            if signal == Signal::SIGCONT && which == "supervisor" {
                // Not passed on: its absence at the front proves nothing (see `session::front`).
                continue;
            }
            kill(to, signal).unwrap();
            assert_eq!(f.line(), sig, "to the {which}");
            // Passed on in order, and after lower numbers: a second one of `sig` would come before it.
            kill(front, Signal::SIGWINCH).unwrap();
            assert_eq!(f.line(), "SIGWINCH", "after {sig} to the {which}");
        }
    }
    let (status, rest, err) = f.end();
    assert_eq!((status.code(), rest.as_str(), err.as_str()), (Some(5), "", ""));
}

#[test]
fn a_program_killed_by_a_passed_signal_is_128_plus_n() {
    let s = Sandbox::new();
    let mut f = s.ready(&["--quiet"], &["sh", "-c", "echo ready; exec cat"]);
    // Kept: wait() would close it, and cat would end of that.
    let _stdin = f.child.stdin.take();
    kill(Pid::from_raw(f.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(f.child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_reader_sees_the_end_when_the_program_closes_its_stdout() {
    let s = Sandbox::new();
    let mut f = s.ready(&["--quiet"], &["sh", "-c", "echo ready; exec >&-; read x; exit 4"]);
    // Neither launcher nor supervisor holds the pipe: this read ends while the program still runs.
    assert_eq!(f.line(), "");
    assert!(f.child.try_wait().unwrap().is_none());
    assert_eq!(f.end().0.code(), Some(4));
}

#[test]
fn a_reader_sees_the_end_when_the_program_closes_what_it_inherited() {
    let s = Sandbox::new();
    let mut through = Command::new("python3");
    // becomes the launcher with the writing end of its stdout at 9 too
    through.args([
        "-c",
        "import os, sys; os.dup2(1, 9); os.execv(sys.argv[1], sys.argv[1:])",
        env!("CARGO_BIN_EXE_launcher"),
    ]);
    through.args(["--quiet", "--state-dir"]).arg(&s.path).args(["--", "sh", "-c", "echo ready; exec >&- 9>&-; read x"]);
    let mut child = through.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    // the program still waits for this
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    assert!(child.wait().is_ok());
}

#[test]
fn descendants_that_run_on_stay_with_the_supervisor() {
    let s = Sandbox::new();
    // The background process waits for the end of our stdin, which it has as descriptor 3.
    let command = ["sh", "-c", "exec 3<&0; (cat <&3 >/dev/null 2>&1) & echo ready; exit 6"];
    let mut f = s.ready(&["--json", "--name", "forest"], &command);
    let stdin = f.child.stdin.take();
    assert_eq!(f.child.wait().unwrap().code(), Some(6));
    let mut err = String::new();
    std::io::Read::read_to_string(f.child.stderr.as_mut().unwrap(), &mut err).unwrap_or_default();
    let said: Vec<serde_json::Value> = err.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(said[1]["event"], "background", "{err}");
    let supervisor = said[1]["supervisor"].as_i64().unwrap() as i32;
    let name = session::name::parse("forest").unwrap();
    let listed = session::status(&s.state(), &name).unwrap();
    assert_eq!(listed.state, State::Live);
    let e = session::checkpoint(&s.state(), &session::Target::Session(name.clone()), &Default::default()).unwrap_err();
    assert!(e.to_string().contains("its command (PID "), "{e}");
    drop(stdin);
    nix::sys::wait::waitpid(Pid::from_raw(supervisor), None).unwrap();
    assert!(session::status(&s.state(), &name).is_err(), "it has ended with the last of them");
}

#[test]
fn a_detached_session_writes_its_log_and_ends() {
    let s = Sandbox::new();
    let d = s.detached("web", &["sh", "-c", "echo out; echo err >&2; cat; tty; exit 3"]);
    d.wait();
    let name = session::name::parse("web").unwrap();
    let log = s.state().log(&name);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "out\nerr\nnot a tty\n");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let listed = session::status(&s.state(), &name).unwrap();
    assert_eq!((listed.state, listed.last.as_deref()), (State::Ended, Some("exited with 3")));
    // Started again under its name: the log goes on.
    s.detached("web", &["echo", "again"]).wait();
    assert!(std::fs::read_to_string(&log).unwrap().ends_with("not a tty\nagain\n"));
}

#[test]
fn killing_a_session_ends_everything_in_it() {
    let s = Sandbox::new();
    let d = s.detached("web", &["sh", "-c", "setsid sleep 1000 & sleep 1000"]);
    let killed = session::kill_session(&s.state(), &session::name::parse("web").unwrap()).unwrap();
    assert!(killed.processes >= 1 && killed.forced == 0, "{killed:?}");
    d.wait();
    let e = session::kill_session(&s.state(), &session::name::parse("web").unwrap()).unwrap_err();
    assert_eq!(e.to_string(), "cannot kill web: session web: nothing of it runs; ctl rm web removes its checkpoints");
    let e = session::kill_session(&s.state(), &session::name::parse("nosuch").unwrap()).unwrap_err();
    assert_eq!(e.kind, engine::Kind::NoSuch);
}

#[test]
fn a_stopped_program_ends_too_and_is_listed_as_stopped() {
    let s = Sandbox::new();
    let d = s.detached("web", &["sleep", "1000"]);
    kill(Pid::from_raw(d.pid), Signal::SIGSTOP).unwrap();
    let name = session::name::parse("web").unwrap();
    // A stop takes effect when the process next runs; its state tells.
    while session::status(&s.state(), &name).unwrap().state != State::Stopped {
        std::thread::yield_now();
    }
    assert_eq!(session::kill_session(&s.state(), &name).unwrap().forced, 0);
    d.wait();
}

#[test]
fn the_supervisors_death_is_told_and_leaves_the_program() {
    let s = Sandbox::new();
    let mut f = s.ready(&["--json", "--name", "web"], &["sh", "-c", "echo ready; read x; echo still here"]);
    // That it was started is news of the supervisor, which may come later than the program's.
    let mut stderr = std::io::BufReader::new(f.child.stderr.take().unwrap());
    let mut started = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut started).unwrap();
    let name = session::name::parse("web").unwrap();
    let live = session::registry::live(&s.state(), &name).unwrap().unwrap();
    let supervisor = Pid::from_raw(live.supervisor.unwrap().pid);
    kill(supervisor, Signal::SIGKILL).unwrap();
    let stdin = f.child.stdin.take();
    assert_eq!(f.child.wait().unwrap().code(), Some(125));
    // A process that ends closes its files, which launcher sees, before it gives its children away. It is ours now, or reaped.
    let _ = nix::sys::wait::waitpid(supervisor, None);
    assert_eq!(session::status(&s.state(), &name).unwrap().state, State::Live);
    drop(stdin);
    assert_eq!(f.line(), "still here");
    // It is ours to reap now.
    nix::sys::wait::waitpid(Pid::from_raw(live.program.pid), None).unwrap();
    let mut err = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut err).unwrap();
    assert!(
        err.contains(&format!("it was killed; the program runs on as PID {} without it", live.program.pid)),
        "{err}"
    );
}

#[test]
fn help_and_version() {
    let s = Sandbox::new();
    let run = |arg: &str| std::process::Command::new(env!("CARGO_BIN_EXE_launcher")).arg(arg).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    assert!(text(run("--version").stdout).starts_with("launcher "));
    let help = text(run("--help").stdout);
    for word in ["--name", "--detach", "--state-dir", "--json", "--quiet", "125", "126", "127", "85"] {
        assert!(help.contains(word), "{word} in {help}");
    }
    drop(s);
}

#[test]
fn triggers_that_make_no_sense_are_125() {
    let s = Sandbox::new();
    for (options, words) in [
        (&["--signal", "KILL"][..], "SIGKILL cannot ask for a checkpoint"),
        (&["--signal", "TERM"], "--on-term checkpoint"),
        (&["--signal-exit", "USR9"], "is not a signal"),
        (&["--signal", "USR2", "--signal-exit", "SIGUSR2"], "one signal has one meaning"),
        (&["--every", "0s"], "longer than nothing"),
        (&["--every", "soon"], "is not a unit of time"),
        (&["--keep", "0"], "is not a number above 0"),
        (&["--grace", "5s"], "--on-term"),
        (&["--on-term", "sleep"], "checkpoint"),
        (&["--resume"], "--name"),
        (&["--no-triggers"], "--resume"),
        (&["--resume=oldest", "--name", "web"], "intact"),
    ] {
        let (status, out, err) = s.run(options, &["true"]);
        assert_eq!((status.code(), out.as_str()), (Some(125), ""), "{options:?}: {err}");
        assert!(err.contains(words), "{options:?}: {err}");
    }
    // A value of theirs is not taken for the command.
    let mut launcher = Command::new(env!("CARGO_BIN_EXE_launcher"));
    let out = launcher.args(["--every", "sleep", "sleep", "1"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&out.stderr).contains("launcher -- "), "{out:?}");
}

#[test]
fn a_signal_that_is_a_trigger_is_ignored_in_the_program_and_no_other() {
    let s = Sandbox::new();
    let ask = "grep -E 'Sig(Ign|Blk)' /proc/self/status";
    let (_, without, _) = s.run(&["--quiet"], &["sh", "-c", ask]);
    let options = ["--quiet", "--signal", "USR2", "--signal-exit", "TSTP", "--on-term", "checkpoint", "--every", "1h"];
    let (_, with, err) = s.run(&options, &["sh", "-c", ask]);
    let bits = |text: &str, key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let both = 1u64 << (libc::SIGUSR2 - 1) | 1 << (libc::SIGTSTP - 1);
    assert_eq!(bits(&with, "SigIgn:"), bits(&without, "SigIgn:") | both, "{err}");
    assert_eq!(bits(&with, "SigBlk:"), bits(&without, "SigBlk:"));
}
