//! A session's control socket: whatever is said to it, by whomever, is answered with an error or hung up on; program and supervisor go on, and the
//! supervisor does not grow. What is not said by chance here has cases of its own.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::{LIMIT, SOON};
use dormouse_tests::control::{self, frame, say};
use dormouse_tests::fuzz::{self, Rng};
use dormouse_tests::target::{Door, Start, Target};
use dormouse_tests::{proc, run, store, unharmed, Bed, Case, Who};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use nix::unistd::Pid;
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Nobody here but in `strangers`.
const STRANGER: u32 = 65532;
/// Connections that a supervisor serves at once.
const SERVED: usize = 16;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("control/fuzz", by_chance).into_iter().map(|c| c.limit(if full() { 600 } else { 60 })));
    all.extend(Case::each("control/burst", burst));
    all.extend(Case::each("control/silent", silent));
    all.extend(Case::each("control/all-wait", all_wait));
    all.extend(Case::each("control/one-request-at-a-time", one_at_a_time));
    all.extend(Case::each("control/descriptors-passed", descriptors_passed));
    all.extend(Case::each("control/gone-in-the-middle", gone_in_the_middle));
    all.extend(Case::each("control/asked-after-the-command", after_the_command));
    if nix::unistd::geteuid().is_root() {
        all.extend(Case::each("control/strangers", strangers));
    }
    all
}

fn full() -> bool {
    std::env::var_os("FULL").is_some()
}

/// A session with the agent, and what its supervisor was like before anything was said to it.
struct Session {
    target: Target,
    supervisor: i32,
    descriptors: Vec<(i32, String)>,
    memory: u64,
}

impl Session {
    fn start(bed: &mut Bed) -> Result<Session> {
        let target = Start::program("thr_sync").door(Door::Launched).agent().ready(bed)?;
        let supervisor = control::supervisor(bed, &target.session)?;
        bed.who.assert_is("the supervisor", supervisor)?;
        let descriptors = proc::descriptors(supervisor);
        ensure!(!descriptors.is_empty(), "its descriptors are not to be seen");
        let mut s = Session { target, supervisor, descriptors, memory: 0 };
        s.serves(bed)?;
        s.memory = memory(supervisor)?;
        Ok(s)
    }

    fn connect(&self, bed: &Bed) -> Result<UnixStream> {
        control::connect(bed, &self.target.session)
    }

    /// It answers who asks, and is the program's.
    fn serves(&self, bed: &Bed) -> Result<()> {
        let mut stream = self.connect(bed)?;
        stream.write_all(&frame(PING))?;
        let said = control::answer(&mut stream)?.context("it hung up on a ping")?;
        ensure!(said["ok"] == true && said["pid"] == self.target.pid, "a ping is answered with {said}");
        Ok(())
    }

    /// All connections are closed: nothing is left of them, and nobody is harmed. Then it is checkpointed by the agent, ends, is restored, and
    /// proves itself.
    fn goes_on(mut self, bed: &mut Bed) -> Result<()> {
        let supervisor = self.supervisor;
        self.serves(bed)?;
        run::until("nothing left of the connections", SOON, || {
            ensure!(proc::alive(supervisor), "the supervisor has ended");
            Ok(proc::descriptors(supervisor).len() <= self.descriptors.len())
        })
        .with_context(|| format!("{:?}; before {:?}", proc::descriptors(supervisor), self.descriptors))?;
        let now = memory(supervisor)?;
        // the frames that are taken in at once: one for each connection
        ensure!(now < self.memory + 4096, "the supervisor had {} KiB of memory and has {now}", self.memory);
        unharmed::entirely(self.target.pid)?;
        self.target.checkpoint(bed)?;
        self.target.kill(bed)?;
        self.target.restore(bed)?;
        self.target.prove(bed).map(drop)
    }
}

/// Anonymous memory of a process, in KiB.
fn memory(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

const PING: &str = r#"{"op":"ping"}"#;

/// What is said, and what must come of it.
#[derive(Default)]
struct Talk {
    bytes: Vec<u8>,
    /// Requests that are answered.
    good: usize,
    /// Words of the error that comes then; "": none is due.
    error: &'static str,
    /// Nobody knows how many are good; but there is an answer.
    any: bool,
}

/// Bodies that are no request.
fn nonsense(rng: &mut Rng) -> Vec<u8> {
    let long = 1 + rng.below(60_000);
    let odd = *rng.pick(&["x", "\\u0001", "\\n", "../", "\u{1f42d}", "\\\"", "%s%n"]);
    let text = odd.repeat(long / odd.len());
    match rng.below(14) {
        0 => vec![],
        1 => rng.bytes(long),
        2 => format!(r#"{{"op":"{text}"}}"#).into_bytes(),
        3 => format!(r#"{{"{text}":1}}"#).into_bytes(),
        4 => format!(r#"{{"op":"checkpoint","name":"{text}"}}"#).into_bytes(),
        5 => [b"{\"op\":\"".to_vec(), vec![0xff, 0xfe, 0x80], b"\"}".to_vec()].concat(),
        6 => vec![*rng.pick(b"[{\"\0 "); long],
        7 => b"{\"op\":".repeat(long / 6),
        8 => format!(
            r#"{{"op":"left","n":{}}}"#,
            rng.pick(&["-1", "1e400", "18446744073709551616", "null", "\"1\"", "[]"])
        )
        .into_bytes(),
        9 => {
            format!(r#"{{"op":"checkpoint","end":{}}}"#, rng.pick(&["0", "\"true\"", "null", "{}", "1e9"])).into_bytes()
        }
        10 => {
            format!(r#"{{"op":"checkpoint","fd":{}}}"#, rng.pick(&["2147483648", "0.5", "\"3\"", "[3]"])).into_bytes()
        }
        11 => rng
            .pick(&["null", "true", "[]", "{}", "7", "\"ping\"", "{\"OP\":\"ping\"}", "{\"op\":null}", "{\"op\":[]}"])
            .as_bytes()
            .to_vec(),
        12 => format!("{PING}{PING}").into_bytes(),
        _ => format!("{PING}\0").into_bytes(),
    }
}

fn talk(rng: &mut Rng) -> Talk {
    let good = rng.below(4);
    let mut t = Talk { bytes: frame(PING).repeat(good), good, ..Talk::default() };
    let body = *rng.pick(&[
        PING,
        r#"{"op":"stays"}"#,
        r#"{"op":"session"}"#,
        r#"{"op":"left","n":7}"#,
        r#"{"op":"checkpoint","end":false,"fd":3}"#,
    ]);
    let mut whole = frame(body);
    let (more, error): (Vec<u8>, _) = match rng.below(11) {
        0 => (vec![], ""),
        1 => (whole[..1 + rng.below(whole.len() - 1)].to_vec(), "cut short"),
        2 => {
            let longer = body.len() + 1 + rng.below(60_000);
            whole[..4].copy_from_slice(&(longer as u32).to_le_bytes());
            (whole, "cut short")
        }
        3 => {
            let shorter = rng.below(body.len());
            whole[..4].copy_from_slice(&(shorter as u32).to_le_bytes());
            (whole, "cannot be understood")
        }
        4 => {
            let length = *rng.pick(&[65_537, 1 << 17, 1 << 24, i32::MAX as u32, 1 << 31, u32::MAX]);
            whole[..4].copy_from_slice(&length.to_le_bytes());
            let rest = rng.bytes(4096);
            whole.extend(rest);
            (whole, "is longer than 65536")
        }
        5 => (frame(vec![b'['; 65_536]), "cannot be understood"),
        6 => (frame(nonsense(rng)), "cannot be understood"),
        7 => {
            // in the wrong order, or none of its business
            let (bodies, error) = *rng.pick(&[
                (&[r#"{"op":"left","n":1}"#][..], "without a \"leaving\""),
                (&[r#"{"op":"leaving"}"#, r#"{"op":"stays"}"#, r#"{"op":"left","n":1}"#], "without a \"leaving\""),
                (&[r#"{"op":"leaving"}"#, r#"{"op":"left","n":18446744073709551615}"#], "no checkpoint made since"),
                (&[r#"{"op":"leaving"}"#, r#"{"op":"left","n":0}"#], "no checkpoint made since"),
                (&[r#"{"op":"session"}"#], "not the program"),
                (&[r#"{"op":"checkpoint","fd":0}"#], "not the program"),
                (&[r#"{"op":"checkpoint","fd":-1,"end":true}"#], "not the program"),
            ]);
            t.good += bodies.len() - 1;
            (bodies.iter().flat_map(frame).collect(), error)
        }
        8 => (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "is longer than"),
        9 => {
            t.any = true;
            rng.turn(&mut whole);
            (whole, "")
        }
        _ => {
            t.any = true;
            let n = 1 + rng.below(100);
            (rng.bytes(n), "")
        }
    };
    t.bytes.extend(more);
    t.error = error;
    t
}

/// Says it, and sees to the answers.
fn converse(s: &Session, bed: &Bed, rng: &mut Rng) -> Result<()> {
    let t = talk(rng);
    let mut stream = s.connect(bed)?;
    let piece = if rng.one_in(3) { 1 + rng.below(40) } else { usize::MAX };
    // in pieces of which each is a call of its own the long ones take long
    let piece = if t.bytes.len() > 4000 { piece.max(3000) } else { piece };
    say(&mut stream, &t.bytes, piece)?;
    let said = control::answers(&mut stream)?;
    let good = said.iter().filter(|a| a["ok"] == true).count();
    let error = said.last().and_then(|a| a["error"].as_str()).unwrap_or_default();
    let right = match t.any {
        true => good >= t.good && !said.is_empty(),
        false => good == t.good && error.contains(t.error) && t.error.is_empty() == error.is_empty(),
    };
    let begin = String::from_utf8_lossy(&t.bytes[..t.bytes.len().min(200)]).into_owned();
    ensure!(
        right,
        "of {} bytes, {begin:?}, {} good ones and the error {:?} were due: {said:?}",
        t.bytes.len(),
        t.good,
        t.error
    );
    Ok(())
}

fn by_chance(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    // some say nothing, or half of something, and stay
    let mut half_open = std::collections::VecDeque::new();
    fuzz::rounds(1500, |rng| {
        if rng.one_in(20) {
            let mut silent = s.connect(bed)?;
            let n = rng.below(6);
            silent.write_all(&rng.bytes(n)[..n.min(3)])?;
            half_open.push_back(silent);
            half_open.truncate(40);
        }
        if rng.one_in(30) {
            half_open.pop_front();
        }
        converse(&s, bed, rng)?;
        ensure!(proc::alive(s.target.pid) && proc::alive(s.supervisor), "somebody has ended");
        Ok(())
    })?;
    drop(half_open);
    s.goes_on(bed)
}

/// Many at the same instant: each that asks is answered, though they are more than are served at once.
fn burst(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    kill(Pid::from_raw(s.supervisor), Signal::SIGSTOP)?;
    let ask = || -> Result<UnixStream> {
        let mut stream = s.connect(bed)?;
        stream.write_all(&frame(PING))?;
        Ok(stream)
    };
    let asked: Result<Vec<UnixStream>> = (0..100).map(|_| ask()).collect();
    kill(Pid::from_raw(s.supervisor), Signal::SIGCONT)?;
    for (i, mut stream) in asked?.into_iter().enumerate() {
        let said = control::answer(&mut stream)?.with_context(|| format!("number {i} was hung up on"))?;
        ensure!(said["ok"] == true, "number {i} of 100: {said}");
    }
    s.goes_on(bed)
}

/// Silent ones keep nobody out: they give way, the oldest first, and are told so.
fn silent(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    let mut all = Vec::new();
    for i in 0..3 * SERVED {
        let mut stream = s.connect(bed)?;
        stream.write_all(&[1, 2, 3][..i % 4])?;
        all.push(stream);
        s.serves(bed)?;
    }
    for (i, stream) in all[..2 * SERVED].iter_mut().enumerate() {
        let said = control::answer(stream)?.with_context(|| format!("silent one {i} was hung up on"))?;
        ensure!(said["error"].as_str().is_some_and(|e| e.contains("16 connections at once")), "{said}");
    }
    // while they are there, it is checkpointed and ends, and the supervisor hears of it
    let mut target = s.target;
    target.kill(bed)?;
    let list = bed.ctl_json(&["list"])?.to_string();
    ensure!(list.contains("checkpointed as 1 and killed"), "{list}");
    drop(all);
    target.restore(bed)?;
    target.prove(bed).map(drop)
}

/// If all that are served wait for something, one more is told so, and none of them loses what it waits for.
fn all_wait(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    let mut waiting = Vec::new();
    for _ in 0..SERVED {
        let mut stream = s.connect(bed)?;
        stream.write_all(&frame(r#"{"op":"leaving"}"#))?;
        ensure!(control::answer(&mut stream)?.is_some_and(|a| a["ok"] == true), "leaving is refused");
        waiting.push(stream);
    }
    let said = control::answers(&mut s.connect(bed)?)?;
    let told = said.len() == 1 && said[0]["error"].as_str().is_some_and(|e| e.contains("try again"));
    ensure!(told, "one more is told {said:?}");
    for stream in &mut waiting {
        stream.write_all(&frame(r#"{"op":"stays"}"#))?;
        ensure!(control::answer(stream)?.is_some_and(|a| a["ok"] == true), "one that waited was hung up on");
    }
    drop(waiting);
    s.goes_on(bed)
}

/// A connection has one request under way: nobody can heap them up.
fn one_at_a_time(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    let mut stream = s.connect(bed)?;
    say(&mut stream, &frame(r#"{"op":"checkpoint"}"#).repeat(2000), usize::MAX)?;
    let said = control::answers(&mut stream)?;
    let told = said.len() == 1 && said[0]["error"].as_str().is_some_and(|e| e.contains("not done yet"));
    ensure!(told, "2000 requests at once are answered with {said:?}");
    made(bed, &s, 1)?;
    s.goes_on(bed)
}

/// Checkpoints `1..=n` are there, and no more are being made.
fn made(bed: &Bed, s: &Session, n: u64) -> Result<()> {
    run::until(&format!("checkpoint {n}"), LIMIT, || {
        let recorded = proc::children(s.supervisor) == [s.target.pid];
        Ok(store::numbers(bed, &s.target.session) == (1..=n).collect::<Vec<u64>>() && recorded)
    })
    .with_context(|| format!("there are {:?}", store::numbers(bed, &s.target.session)))
}

/// Descriptors that come with a request are not taken: what they lead to ends when its owner closes it.
fn descriptors_passed(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    for (i, count) in [1, 2, 50, 253].into_iter().enumerate() {
        let (mut read, write) = UnixStream::pair()?;
        let mut stream = s.connect(bed)?;
        let fds = vec![write.as_raw_fd(); count];
        let bytes = frame(if i % 2 == 0 { PING } else { r#"{"op":"fly"}"# });
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
        let said = control::answer(&mut stream)?.context("it hung up")?;
        ensure!(said["ok"] == (i % 2 == 0), "with {count} descriptors: {said}");
        drop(write);
        read.set_read_timeout(Some(SOON))?;
        let end = read.read(&mut [0]).with_context(|| format!("{count} descriptors are kept open by somebody"))?;
        ensure!(end == 0, "somebody wrote to what was passed");
    }
    s.goes_on(bed)
}

/// Whoever asks for a checkpoint and goes has asked for it all the same; whoever says half a request and goes has said nothing.
fn gone_in_the_middle(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    for n in 1..=3 {
        let mut stream = s.connect(bed)?;
        stream.write_all(&frame(r#"{"op":"checkpoint"}"#))?;
        drop(stream);
        let mut half = s.connect(bed)?;
        half.write_all(&frame(r#"{"op":"checkpoint","end":true}"#)[..20])?;
        drop(half);
        made(bed, &s, n)?;
        unharmed::entirely(s.target.pid)?;
    }
    // one that was about to leave with the program, and says what is no request
    let mut stream = s.connect(bed)?;
    say(&mut stream, &[frame(r#"{"op":"leaving"}"#), frame("?")].concat(), usize::MAX)?;
    ensure!(control::answers(&mut stream)?.len() == 2, "not two answers");
    s.goes_on(bed)
}

/// The command has ended, what it started runs on: who asks for a checkpoint then is told so, and the supervisor stays with the rest.
fn after_the_command(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    let script = format!("while ! [ -e {0}/gate ]; do sleep 0.01; done & : >{0}/ready", dir.display());
    let mut c = bed.launcher_command(&["--json", "--name", "job", "--detach", "--", "sh", "-c", &script]);
    let started = bed.run(&mut c)?.expect(0)?.json()?;
    let number = |key: &str| Ok::<i32, anyhow::Error>(started[key].as_i64().context("no such number")? as i32);
    let (pid, supervisor) = (number("pid")?, number("supervisor")?);
    bed.who.assert_is("the supervisor", supervisor)?;
    run::until("the command's end", SOON, || Ok(dir.join("ready").exists() && proc::status(pid).is_none()))?;
    for _ in 0..3 {
        let mut stream = control::connect(bed, "job")?;
        say(&mut stream, &frame(r#"{"op":"checkpoint"}"#), usize::MAX)?;
        let said = control::answers(&mut stream)?;
        let told = said.len() == 1 && said[0]["error"].as_str().is_some_and(|e| e.contains("it has ended"));
        ensure!(told && said[0]["code"] == 8, "it is told {said:?}");
        ensure!(proc::alive(supervisor), "the supervisor has ended");
    }
    ensure!(proc::children(supervisor).len() == 1, "the rest has another parent");
    std::fs::write(dir.join("gate"), "")?;
    run::until("the session's end", SOON, || {
        bed.reap();
        Ok(!proc::alive(supervisor))
    })?;
    let list = bed.ctl_json(&["list"])?.to_string();
    ensure!(list.contains("exited with 0"), "{list}");
    Ok(())
}

/// Another user cannot connect; where somebody has opened the folders up, it is told whose the session is, and heard no further. Root, too.
fn strangers(bed: &mut Bed) -> Result<()> {
    let s = Session::start(bed)?;
    let session = s.target.session.clone();
    let refused = control::connect_as(bed, &session, STRANGER)?.err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EACCES), "a stranger's connection gives {refused:?}");
    let socket = control::path(bed, &session);
    let folders: Vec<PathBuf> = socket.ancestors().skip(1).take_while(|d| **d != *bed.dir).map(PathBuf::from).collect();
    let open = |dir_mode, mode| -> Result<()> {
        let set = |path: &PathBuf, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        folders.iter().try_for_each(|d| set(d, dir_mode))?;
        Ok(set(&socket, mode)?)
    };
    // The socket by itself keeps them out.
    open(0o755, 0o600)?;
    let refused = control::connect_as(bed, &session, STRANGER)?.err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EACCES), "the socket's mode lets a stranger in: {refused:?}");
    open(0o755, 0o666)?;
    let mut who = vec![STRANGER];
    who.extend((bed.who == Who::User).then_some(0));
    for uid in who {
        for bytes in [
            vec![],
            frame(PING),
            frame(r#"{"op":"terminate"}"#),
            frame(r#"{"op":"checkpoint","end":true}"#),
            vec![255; 64],
        ] {
            let mut stream = control::connect_as(bed, &session, uid)?.context("connecting")?;
            say(&mut stream, &bytes, usize::MAX)?;
            let said = control::answers(&mut stream)?;
            let words = format!("this session is user {}'s, and you are user {uid}", bed.who.uid());
            ensure!(said.len() == 1 && said[0]["error"] == *words, "user {uid} is told {said:?}");
        }
    }
    open(0o700, 0o600)?;
    store::is_private(bed)?;
    ensure!(store::numbers(bed, &session).is_empty(), "a stranger had a checkpoint made");
    s.goes_on(bed)
}
