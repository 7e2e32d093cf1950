//! The supervisor's control socket: who may speak, and what becomes of nonsense.
mod common;
use common::Sandbox;
use session::control::{Answer, Client, Request};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

fn connect(s: &Sandbox) -> UnixStream {
    let dir = File::open(s.path.join("sessions/web")).unwrap();
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/control", dir.as_raw_fd())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// The answer to these bytes, and that it hangs up after it.
fn refusal(s: &Sandbox, bytes: &[u8]) -> String {
    let mut stream = connect(s);
    stream.write_all(bytes).unwrap();
    let mut said = Vec::new();
    // Data of ours that it never read makes its hang-up a reset.
    match stream.read_to_end(&mut said) {
        Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("{e}"),
        _ => {}
    }
    let answer: Answer = serde_json::from_slice(&said[4..]).unwrap();
    assert!(!answer.ok);
    answer.error.unwrap()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

#[test]
fn malformed_and_oversized_frames_are_answered_and_harm_nobody() {
    let s = Sandbox::new();
    let d = s.detached("web", &["sleep", "1000"]);
    assert_eq!(refusal(&s, &[255; 64]), "a frame of 4294967295 bytes is longer than 65536");
    for body in [&b"{"[..], b"", b"{\"op\":\"fly\"}", b"{\"op\":\"left\"}", b"\xff\xfe", b"[1,2]"] {
        assert!(refusal(&s, &frame(body)).starts_with("a frame cannot be understood"), "{body:?}");
    }
    // Silent ones, more than it serves at once, and one with half a frame.
    let _silent: Vec<UnixStream> = (0..40).map(|_| connect(&s)).collect();
    let mut half = connect(&s);
    half.write_all(&[10, 0]).unwrap();
    let mut client = Client::connect(&s.state(), &session::name::parse("web").unwrap()).unwrap();
    let pong = client.ask(&Request::Ping).unwrap();
    assert_eq!((pong.ok, pong.pid), (true, d.pid));
    assert!(client.ask(&Request::Terminate).unwrap().ok);
    d.wait();
}

#[test]
fn files_are_private() {
    let s = Sandbox::new();
    let _d = s.detached("web", &["sleep", "1000"]);
    for (file, mode) in [("", 0o700), ("live.json", 0o600), ("lock", 0o600), ("control", 0o600), ("log", 0o600)] {
        let meta = std::fs::metadata(s.path.join("sessions/web").join(file)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{file}");
    }
    assert_eq!(std::fs::metadata(&s.path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_peer_of_another_uid_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let s = Sandbox::new();
    let _d = s.detached("web", &["sleep", "1000"]);
    // The folders keep others out; opened up here, so that the socket itself has to.
    let session = s.path.join("sessions/web");
    for dir in session.ancestors().take_while(|d| d.starts_with(s.dir.path())) {
        std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(session.join("control"), Permissions::from_mode(0o666)).unwrap();
    // Staged where the other user can execute it.
    let exe = s.dir.path().join("peer");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    std::fs::set_permissions(&exe, Permissions::from_mode(0o755)).unwrap();
    let mut other = Command::new(exe);
    other.args(["--exact", "peer", "--nocapture"]).env("CONTROL_TEST_PEER", "1").current_dir(&session);
    let out = other.uid(65534).gid(65534).output();
    // Put back, for the end of the test.
    std::fs::set_permissions(&s.path, Permissions::from_mode(0o700)).unwrap();
    let said = String::from_utf8_lossy(&out.as_ref().unwrap().stdout);
    assert!(said.contains("this session is user 0's, and you are user 65534"), "{out:?}");
}

/// Not a test of its own: run again as another user by the test above.
#[test]
fn peer() {
    if std::env::var_os("CONTROL_TEST_PEER").is_none() {
        return;
    }
    let mut stream = UnixStream::connect("control").unwrap();
    // It may have hung up already.
    let _ = stream.write_all(&frame(b"{\"op\":\"ping\"}"));
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    println!("{}", String::from_utf8_lossy(&said));
}

#[test]
fn a_peer_has_checkpoints_made() {
    let s = Sandbox::new();
    let d = s.detached("web", &["sleep", "1000"]);
    let web = session::name::parse("web").unwrap();
    let mut client = Client::connect(&s.state(), &web).unwrap();
    assert_eq!(client.checkpoint(false).unwrap(), 1);
    // One that goes away before it is done has wished for it all the same, and harms nobody.
    let mut gone = connect(&s);
    gone.write_all(&frame(b"{\"op\":\"checkpoint\"}")).unwrap();
    drop(gone);
    let (mut one, mut other) = (connect(&s), connect(&s));
    for stream in [&mut one, &mut other] {
        stream.write_all(&frame(b"{\"op\":\"checkpoint\",\"end\":false}")).unwrap();
    }
    for stream in [&mut one, &mut other] {
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_le_bytes(head) as usize];
        stream.read_exact(&mut body).unwrap();
        let answer: Answer = serde_json::from_slice(&body).unwrap();
        assert!(answer.ok && answer.n.is_some_and(|n| n > 1), "{answer:?}");
    }
    let last = client.checkpoint(true).unwrap();
    d.wait();
    let l = session::status(&s.state(), &web).unwrap();
    assert_eq!(l.last, Some(format!("checkpointed as {last} and killed")));
    assert_eq!(l.checkpoints, (1..=last).collect::<Vec<u64>>());
}
