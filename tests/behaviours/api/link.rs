//! The addresses at which a program and its recorder meet, and what strangers say there: a recorder that is played by hand says anything to the hook
//! thread; other users and other programs come to a recorder's address. Nobody is harmed, and nobody is taken for another.
use super::*;
use dormouse_tests::agent::recorder_name;
use dormouse_tests::control::frame;
use dormouse_tests::fuzz::{self, Rng};
use dormouse_tests::who::acting;
use dormouse_tests::{sys, Who};
use nix::sys::socket::{connect, socket, AddressFamily, SockFlag, SockType, UnixAddr};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Nobody's but here.
const STRANGER: u32 = 65531;
/// The signal that wakes a hook thread (wire/src/api.rs).
const WAKE: i32 = 62;
/// What came of a checkpoint whose recorder did not tell.
const UNTOLD: &str = "the recorder ended before it told how the checkpoint did";
/// And whose recorder told neither a number nor an error.
const NOT_UNDERSTOOD: &str = "the answer could not be understood";

pub(super) fn cases() -> Vec<Case> {
    let mut all = Case::each("api/hook-link-fuzz", by_chance);
    if nix::unistd::geteuid().is_root() {
        all.extend(Case::each("api/foreign-recorder", foreign_recorder));
        all.extend(Case::each("api/strangers-at-the-hooks", at_the_hooks));
        all.extend(Case::each("api/strangers-at-a-critical-section", at_a_critical_section));
        all.extend(Case::by_both_doors("api/strangers-in-the-freeze", in_the_freeze));
    }
    all
}

/// The hook thread of a program.
struct HookThread {
    pid: i32,
    tid: i32,
}

impl HookThread {
    fn of(pid: i32) -> Result<HookThread> {
        let comm = |tid: &i32| fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
        let tid =
            proc::threads(pid).into_iter().find(|tid| comm(tid) == "dormouse-hooks\n").context("no hook thread")?;
        Ok(HookThread { pid, tid })
    }

    /// Sends it to the address of this key.
    fn send_to(&self, key: u64) -> Result<()> {
        let mut info = [0u8; 128];
        info[..4].copy_from_slice(&WAKE.to_le_bytes());
        info[8..12].copy_from_slice(&libc::SI_QUEUE.to_le_bytes());
        info[24..32].copy_from_slice(&key.to_le_bytes());
        sys::queue_to_thread(self.pid, self.tid, WAKE, &info)
    }

    /// Has it come to an address of this user's; its connection.
    fn come_to(&self, uid: u32, key: u64) -> Result<UnixStream> {
        let listener = Listener::bind(uid, key)?;
        self.send_to(key)?;
        listener.accept()
    }

    /// It has done with a conversation, and waits for the next.
    fn waits(&self) -> Result<()> {
        let path = format!("/proc/{}/task/{}/syscall", self.pid, self.tid);
        let call = format!("{} ", libc::SYS_rt_sigtimedwait);
        run::until("the hook thread waits", SOON, || Ok(fs::read_to_string(&path)?.starts_with(&call)))
    }
}

/// A recorder's address, played by hand.
struct Listener(UnixListener);

impl Listener {
    fn bind(uid: u32, key: u64) -> Result<Listener> {
        let at = SocketAddr::from_abstract_name(recorder_name(key))?;
        // to who connects, it is the user's who listens
        let listener = acting(uid, || UnixListener::bind_addr(&at))??;
        listener.set_nonblocking(true)?;
        Ok(Listener(listener))
    }

    fn accept(&self) -> Result<UnixStream> {
        let mut came = None;
        run::until("somebody at the address", SOON, || {
            came = self.0.accept().ok();
            Ok(came.is_some())
        })?;
        let (stream, _) = came.context("nobody came")?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }
}

/// Keys that no recorder draws at the same time.
fn key(n: u64) -> u64 {
    u64::from(std::process::id()) << 32 | n << 1 | 1
}

/// All that it says until it hangs up, each frame a JSON text; what it never read of ours makes that a reset.
fn heard(stream: &mut UnixStream) -> Result<Vec<String>> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() != ErrorKind::ConnectionReset => return Err(e).context("it neither speaks nor hangs up"),
        _ => {}
    }
    let (mut all, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((head, more)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*head) as usize;
        ensure!(len <= more.len(), "a frame of {len} bytes of which {} came", more.len());
        all.push(serde_json::from_slice::<serde_json::Value>(&more[..len])?.to_string());
        rest = &more[len..];
    }
    ensure!(rest.is_empty(), "it said {rest:?} at the end");
    Ok(all)
}

/// A conversation, and what the program's two hooks must have done by its end.
struct Talk {
    bytes: Vec<u8>,
    /// A checkpoint was announced: the `before`s run, and then the `after`s, with this; None: no hook runs.
    ended: Option<String>,
}

impl Talk {
    /// How it begins, for a report: the seed has it whole.
    fn begin(&self) -> String {
        self.bytes[..self.bytes.len().min(120)].escape_ascii().to_string()
    }
}

/// What is no frame that is expected, or is none.
fn nonsense(rng: &mut Rng) -> Vec<u8> {
    let body = frame(r#"{"op":"unheard of"}"#);
    match rng.below(8) {
        0 => vec![],
        1 => body[..1 + rng.below(body.len() - 1)].to_vec(),
        2 => [&(65_537 + rng.below(1 << 31) as u32).to_le_bytes()[..], &rng.bytes(5000)].concat(),
        3 => frame(vec![b'['; 65_536]),
        4 => {
            let n = 1 + rng.below(5000);
            frame(rng.bytes(n))
        }
        5 => {
            frame(rng.pick(&["", "null", "7", "[]", "{}", "\"before\"", r#"{"op":["before"]}"#, r#"{"op":"before"}x"#]))
        }
        6 => [&1u32.to_le_bytes()[..], b"\0"].concat(),
        _ => b"GET / HTTP/1.0\r\n\r\n".to_vec(),
    }
}

fn talk(rng: &mut Rng) -> Talk {
    let before = frame(rng.pick(&[
        r#"{"op":"before"}"#,
        r#"{"op":"before","after":"run"}"#,
        r#"{"op":"before","after":7,"more":[{}]}"#,
    ]));
    let (more, ended) = match rng.below(6) {
        0 => return Talk { bytes: nonsense(rng), ended: None },
        1 => {
            let n = rng.below(1 << 30);
            (frame(format!(r#"{{"op":"after","n":{n},"error":null}}"#)), format!("made {n}"))
        }
        2 => {
            let why = rng.pick(&["it failed", "%s%n%s", "\u{1f42d}"]).repeat(1 + rng.below(200));
            (frame(format!(r#"{{"op":"after","n":null,"error":"{why}"}}"#)), why)
        }
        3 => {
            // a C program is told it all the same
            (frame(r#"{"op":"after","n":-1,"error":"a\u0000b"}"#), "a b".into())
        }
        _ => (nonsense(rng), String::new()),
    };
    Talk { bytes: [before, more].concat(), ended: Some(ended) }
}

/// What the hooks write in a conversation that was heard to its end.
fn lines(ended: &str) -> Vec<String> {
    ["before b", "before a"]
        .map(String::from)
        .into_iter()
        .chain(["a", "b"].map(|h| format!("after {h}: {ended}")))
        .collect()
}

/// Whatever a recorder says, and whenever it goes: each `before` has its `after`, and nothing of it is left; then the program is checkpointed, and
/// restored, with its hooks.
fn by_chance(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    let thread = HookThread::of(api.pid)?;
    let (before, who) = (api.descriptors(), bed.who);
    let (mut n, mut rounds_with_hooks) = (0, 0);
    fuzz::rounds(200, |rng| {
        n += 1;
        if rng.one_in(5) {
            // there is nobody
            thread.send_to(rng.number() | 1)?;
        }
        let root = nix::unistd::geteuid().is_root() && rng.one_in(4);
        let mut stream = thread.come_to(if root { 0 } else { who.uid() }, key(n))?;
        let said_before = api.log().lines().count();
        let t = talk(rng);
        let gone_early = rng.one_in(4);
        // it may have hung up by then
        let _ = stream.write_all(&t.bytes);
        if gone_early {
            drop(stream);
        } else {
            let _ = stream.shutdown(Shutdown::Write);
            heard(&mut stream).with_context(|| format!("after {:?}", t.begin()))?;
        }
        thread.waits()?;
        let log = api.log();
        let new: Vec<&str> = log.lines().skip(said_before).collect();
        let count = |word: &str| new.iter().filter(|l| l.starts_with(word)).count();
        let right = match &t.ended {
            None => new.is_empty(),
            // how far it came is chance
            Some(_) if gone_early => count("before ") == count("after "),
            Some(ended) if ended.is_empty() => new == lines(UNTOLD) || new == lines(NOT_UNDERSTOOD),
            Some(ended) => new == lines(ended),
        };
        rounds_with_hooks += usize::from(count("after ") == 2);
        ensure!(right, "of {:?} came {new:?}", t.begin());
        ensure!(proc::alive(api.pid), "it died");
        Ok(())
    })?;
    ensure!(
        std::env::var_os("FUZZ_SEED").is_some() || rounds_with_hooks > 20,
        "hooks ran in {rounds_with_hooks} rounds"
    );
    ensure!(api.descriptors() == before, "a descriptor is left: {:?}", api.descriptors());
    api.says(bed, "threads", "2")?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    order(&api, &["before b", "before a", "after a: made 1", "after b: made 1"])?;
    bed.ctl(&["checkpoint", &name, "--kill"])?.expect(0)?;
    api.gone(bed)?;
    api.restore(bed, &[])?;
    api.line("restored b: 1")?;
    order(&api, &["restored a: 1", "restored b: 1"])?;
    api.end(bed)
}

/// Where the address is another user's, nothing is said and no hook runs: not by the hook thread, nor by who leaves a critical section. Root's is as
/// good as the program's own.
fn foreign_recorder(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    api.says(bed, "hooks", "1 2")?;
    let (thread, before) = (HookThread::of(api.pid)?, api.descriptors());
    for n in 0..20 {
        let mut stream = thread.come_to(STRANGER, key(n))?;
        let _ = stream.write_all(&frame(r#"{"op":"before"}"#));
        let said = heard(&mut stream)?;
        ensure!(said.is_empty(), "a stranger is told {said:?}");
        thread.waits()?;
    }
    ensure!(!api.log().contains("before "), "hooks were run for a stranger:\n{}", api.log());
    let memory = fs::File::options().write(true).open(format!("/proc/{}/mem", api.pid))?;
    for (uid, n) in [(Some(STRANGER), 100), (None, 101)] {
        api.says(bed, "disable", "")?;
        let listener = uid.map(|uid| Listener::bind(uid, key(n))).transpose()?;
        memory.write_all_at(&key(n).to_le_bytes(), critical::WAITER)?;
        api.says(bed, "enable", "0")?;
        if let Some(listener) = listener {
            let said = heard(&mut listener.accept()?)?;
            ensure!(said.is_empty(), "a stranger that waits is told {said:?}");
        }
        ensure!(proc::word(api.pid, critical::WAITER)? == 0, "the block still names a waiter");
    }
    ensure!(api.descriptors() == before, "a descriptor is left: {:?}", api.descriptors());
    let mut stream = thread.come_to(0, key(102))?;
    stream.write_all(&[frame(r#"{"op":"before"}"#), frame(r#"{"op":"after","n":9}"#)].concat())?;
    let said = heard(&mut stream)?;
    ensure!(said.last().is_some_and(|s| s == "\"done\""), "root is told {said:?}");
    order(&api, &["before b", "before a", "after a: made 9", "after b: made 9"])?;
    api.says(bed, "checkpoint", "continued (checkpoint 1 is complete), generation 0")?;
    api.end(bed)
}

/// The addresses of a process that are ours, as anybody can read them; once there is one.
fn addresses(pid: i32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    run::until("the recorder's address", SOON, || {
        let own: Vec<String> = proc::descriptors(pid).into_iter().map(|d| d.1).collect();
        let all = fs::read_to_string("/proc/net/unix")?;
        let words = all.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        // Num RefCount Protocol Flags Type St Inode Path; a listener has the flag __SO_ACCEPTCON
        let at = words.filter(|w| w.len() == 8 && w[3] == "00010000" && own.contains(&format!("socket:[{}]", w[6])));
        found = at
            .filter_map(|w| Some(w[7].strip_prefix('@')?.to_owned()))
            .filter(|n| n.starts_with("dormouse-"))
            .collect();
        Ok(!found.is_empty())
    })?;
    Ok(found)
}

/// Connections to an address by a user, until no more are let in or there are enough, each of which says something.
fn crowd(name: &str, uid: u32, most: usize) -> Result<Vec<UnixStream>> {
    let mut all = Vec::new();
    for i in 0..most {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        let at = UnixAddr::new_abstract(name.as_bytes())?;
        match acting(uid, || connect(fd.as_raw_fd(), &at))? {
            Err(nix::Error::EAGAIN) => break,
            done => done.context("connecting to the recorder's address")?,
        }
        let mut stream = UnixStream::from(fd);
        let words = [
            frame("\"ready\""),
            frame(r#"{"veto":{"hook":"a","reason":"because"}}"#),
            frame("\"done\""),
            vec![0; 400],
            vec![255; 400],
            vec![],
        ];
        // it may have been turned away by then
        let _ = stream.write_all(&words[i % words.len()]);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SOON))?;
        all.push(stream);
    }
    Ok(all)
}

/// They were hung up on, and told nothing.
fn turned_away(all: Vec<UnixStream>) -> Result<()> {
    for mut stream in all {
        let said = heard(&mut stream)?;
        ensure!(said.is_empty(), "a stranger is told {said:?}");
    }
    Ok(())
}

/// Who can come where a recorder waits for somebody of the program: any user, and the same user's other programs.
fn others(bed: &Bed) -> Vec<u32> {
    let mut all = vec![STRANGER, bed.who.uid()];
    all.extend((bed.who == Who::User).then_some(0));
    all
}

/// While a recorder waits for the hook thread, which is busy, others come instead: they are hung up on, and decide nothing.
fn at_the_hooks(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "hooks", "1 2")?;
    let busy = HookThread::of(api.pid)?.come_to(bed.who.uid(), key(1))?;
    let (mut ctl, _, err) = bed.spawn(&mut bed.ctl_command(&["checkpoint", &name]))?;
    for address in addresses(ctl.id() as i32)? {
        for uid in others(bed) {
            turned_away(crowd(&address, uid, 40)?)?;
        }
    }
    ensure!(ctl.try_wait()?.is_none(), "ctl did not wait: {}", fs::read_to_string(&err)?);
    ensure!(!api.log().contains("before "), "hooks have run:\n{}", api.log());
    drop(busy);
    let status = run::end(&mut ctl, "ctl checkpoint", LIMIT)?;
    bed.let_go(&ctl);
    ensure!(status.success(), "ctl checkpoint: {}", fs::read_to_string(&err)?);
    order(&api, &["before b", "before a", "after a: made 1", "after b: made 1"])?;
    api.end(bed)
}

/// While a recorder waits for the end of a critical section, others come: nobody but the program ends it.
fn at_a_critical_section(bed: &mut Bed) -> Result<()> {
    let mut api = Api::launched(bed, None)?;
    let name = api.session.clone();
    api.says(bed, "disable", "")?;
    let (mut ctl, _, err) = bed.spawn(&mut bed.ctl_command(&["checkpoint", &name]))?;
    run::until("ctl waits for the critical section", SOON, || Ok(proc::word(api.pid, critical::WAITER)? != 0))?;
    for address in addresses(ctl.id() as i32)? {
        for uid in others(bed) {
            turned_away(crowd(&address, uid, 40)?)?;
        }
    }
    ensure!(ctl.try_wait()?.is_none(), "ctl did not wait: {}", fs::read_to_string(&err)?);
    store::holds(bed, &name, &[])?;
    api.says(bed, "enable", "0")?;
    let status = run::end(&mut ctl, "ctl checkpoint", LIMIT)?;
    bed.let_go(&ctl);
    ensure!(status.success(), "ctl checkpoint: {}", fs::read_to_string(&err)?);
    api.end(bed)
}

/// A recorder is stopped before it calls the program in, and before the snapshot child is made; its queue is filled with strangers until no more go
/// in. Then it goes on: it turns them all away, and the checkpoint is made by the door that was meant.
fn in_the_freeze(bed: &mut Bed, agent: bool) -> Result<()> {
    let door = if agent { "agent" } else { "attach" };
    let mut api = Api::launched_with(bed, &["--door", door], None)?;
    let name = api.session.clone();
    for (n, phase) in ["freeze", "fork"].into_iter().enumerate() {
        let mut strangers = Vec::new();
        let come = |pid| {
            for address in addresses(pid)? {
                let crowd = crowd(&address, STRANGER, 1000)?;
                ensure!((16..1000).contains(&crowd.len()), "{} went into the queue", crowd.len());
                strangers.extend(crowd);
            }
            Ok(())
        };
        bed.ctl_stopped(phase, &["checkpoint", &name, "--door", door], come)?.expect(0)?;
        turned_away(strangers)?;
        store::holds(bed, &name, &(1..=n as u64 + 1).collect::<Vec<u64>>())?;
        api.door(bed)?;
        unharmed::entirely(api.pid)?;
    }
    api.says(bed, "threads", "1")?;
    api.kill(bed)?;
    api.restore(bed, &[])?;
    api.says(bed, "name", &name)?;
    api.end(bed)
}
