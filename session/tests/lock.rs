//! A session's lock: names its holder, and ends with it whatever kills it.
use dormouse_session as session;
use engine::Kind;
use session::lock::Lock;
use session::StateDir;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Not a test of its own: run again by the tests below, it takes the lock, forks a child that lives on, and waits.
#[test]
fn holder() {
    let Some(dir) = std::env::var_os("LOCK_TEST_DIR") else { return };
    let state = StateDir::open(Path::new(&dir)).unwrap();
    let _lock = Lock::take(&state, &session::name::parse("web").unwrap(), "checkpoint web").unwrap();
    // A child that outlives it, until the test closes their stdin.
    let mut child = Command::new("cat").stdout(Stdio::null()).spawn().unwrap();
    println!("\nheld");
    child.wait().unwrap();
}

fn hold(dir: &Path) -> Child {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["--exact", "holder", "--nocapture"]).env("LOCK_TEST_DIR", dir);
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while line.trim() != "held" {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the holder ended early");
    }
    child
}

#[test]
fn busy_names_the_holder_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = StateDir::open(&path).unwrap();
    let web = session::name::parse("web").unwrap();
    let mut holder = hold(&path);
    let e = Lock::take(&state, &web, "checkpoint web").unwrap_err();
    assert_eq!((e.kind, e.kind.exit_code()), (Kind::Busy, 6));
    let said = format!("cannot checkpoint web: session web: another checkpoint, restore or start of it runs (PID {}); try again when it is done", holder.id());
    assert_eq!(e.to_string(), said);
    let inside = std::fs::read_to_string(state.session(&web).join("lock")).unwrap();
    assert_eq!(inside.trim(), holder.id().to_string());
    // Other sessions are free.
    Lock::take(&state, &session::name::parse("other").unwrap(), "checkpoint other").unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    Lock::take(&state, &web, "checkpoint web").unwrap();
    // Ends the child that outlived it.
    drop(holder.stdin.take());
    let mut rest = String::new();
    holder.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
}

#[test]
fn two_threads_of_one_process_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let web = session::name::parse("web").unwrap();
    let lock = Lock::take(&state, &web, "checkpoint web").unwrap();
    let e = std::thread::scope(|s| s.spawn(|| Lock::take(&state, &web, "restore web").unwrap_err()).join().unwrap());
    assert_eq!(e.kind, Kind::Busy);
    assert!(e.to_string().contains(&format!("(PID {})", std::process::id())), "{e}");
    drop(lock);
    Lock::take(&state, &web, "restore web").unwrap();
}
