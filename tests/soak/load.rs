//! Clients of examples/server.py that ask all the time, each request under a name of its own. Every reply tells all requests that were
//! ever answered, in their order, so each is held against all that was known before.
use anyhow::{bail, ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::run;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// At a time.
const CLIENTS: usize = 3;
/// What a client does between two requests: the server has some for itself, and its memory, which keeps every request, grows slowly.
const PACE: Duration = Duration::from_millis(10);

/// What the clients may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Ask; every request is answered.
    Open,
    /// Begin no request.
    Shut,
    /// Ask; the server is about to be killed, or away. Whose connection ends by that waits until the gate is open, and asks again.
    Away,
    /// End.
    Over,
}

struct State {
    gate: Gate,
    /// How often the server has been away.
    away: u64,
    /// Clients in a request.
    asking: usize,
    /// The requests that the server is known to have answered, one a line, and how many.
    known: String,
    count: usize,
    /// Requests that were answered.
    answered: Vec<String>,
    /// Requests whose connection was ended by a kill.
    cut: Vec<String>,
    worst: Duration,
    /// What went wrong first.
    wrong: Option<String>,
}

struct Shared {
    port: u16,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The clients.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to ask.
    pub fn start(port: u16) -> Load {
        let state = State {
            gate: Gate::Open,
            away: 0,
            asking: 0,
            known: String::new(),
            count: 0,
            answered: vec![],
            cut: vec![],
            worst: Duration::ZERO,
            wrong: None,
        };
        let shared = Arc::new(Shared { port, state: Mutex::new(state), changed: Condvar::new() });
        let client = |n| {
            let shared = shared.clone();
            std::thread::spawn(move || client(&shared, n))
        };
        Load { clients: (0..CLIENTS).map(client).collect(), shared }
    }

    /// Requests answered until now; fails if one was not, or not as it must be.
    pub fn answered(&self) -> Result<usize> {
        let s = self.shared.lock();
        match &s.wrong {
            Some(why) => bail!("{why}"),
            None => Ok(s.answered.len()),
        }
    }

    /// Requests whose connection was ended by a kill, until now.
    pub fn cut(&self) -> usize {
        self.shared.lock().cut.len()
    }

    /// Longest that a request took.
    pub fn worst(&self) -> Duration {
        self.shared.lock().worst
    }

    fn set(&self, gate: Gate) {
        let mut s = self.shared.lock();
        s.away += u64::from(gate == Gate::Away && s.gate != Gate::Away);
        s.gate = gate;
        self.shared.changed.notify_all();
    }

    /// They ask.
    pub fn open(&self) {
        self.set(Gate::Open);
    }

    /// From now on connections may end: the server is about to be killed. They ask on.
    pub fn away(&self) {
        self.set(Gate::Away);
    }

    /// Every request that was begun is over, and none begins.
    pub fn shut(&self) -> Result<()> {
        self.set(Gate::Shut);
        run::until("the end of all requests", LIMIT, || Ok(self.shared.lock().asking == 0))
    }

    /// Asks once more, and holds all answers against all requests.
    pub fn end(self) -> Result<()> {
        self.shut()?;
        let last = "/last";
        let reply = ask(self.shared.port, last)?;
        self.set(Gate::Over);
        for client in self.clients {
            ensure!(client.join().is_ok(), "a client panicked");
        }
        let mut s = self.shared.lock();
        s.note(last, &reply)?;
        if let Some(why) = &s.wrong {
            bail!("{why}");
        }
        s.balance()
    }
}

impl State {
    /// A reply to `path`: its number is that of the requests in it, its own is the last, and no earlier one is missing or changed.
    fn note(&mut self, path: &str, body: &str) -> Result<()> {
        let (first, list) = body.split_once('\n').with_context(|| format!("the reply to {path} is {body:?}"))?;
        let count = list.matches('\n').count();
        ensure!(
            first == format!("Request No: {count}"),
            "the reply to {path} has {count} requests, and says {first:?}"
        );
        ensure!(
            list.ends_with(&format!("\n{path}\n")) || list == format!("{path}\n"),
            "the reply to {path} ends with {:?}",
            list.lines().last()
        );
        let (short, long) =
            if list.len() < self.known.len() { (list, &self.known[..]) } else { (&self.known[..], list) };
        ensure!(
            long.starts_with(short),
            "the reply to {path}, request {count} of {} known ones, has another history",
            self.count
        );
        if count > self.count {
            (self.known, self.count) = (list.into(), count);
        }
        self.answered.push(path.into());
        Ok(())
    }

    /// Each request is there once; none is there that nobody sent; those that are missing were cut off.
    fn balance(&self) -> Result<()> {
        let known: HashSet<&str> = self.known.lines().collect();
        ensure!(known.len() == self.count, "{} requests, and {} different ones", self.count, known.len());
        let lost: Vec<&String> = self.answered.iter().filter(|p| !known.contains(&p[..])).collect();
        ensure!(lost.is_empty(), "answered, and not known any more: {lost:?}");
        let twice = self.answered.len() - self.answered.iter().collect::<HashSet<_>>().len();
        ensure!(twice == 0, "{twice} requests were answered twice");
        let done = self.cut.iter().filter(|p| known.contains(&p[..])).count();
        let (all, answered) = (self.count, self.answered.len());
        ensure!(all == answered + done, "{all} requests: {answered} were answered, and {done} done and cut off");
        for n in 0..CLIENTS {
            let of = |p: &&str| p.starts_with(&format!("/{n}/"));
            let numbers: Vec<u64> = self.known.lines().filter(of).filter_map(|p| p[3..].parse().ok()).collect();
            ensure!(numbers.is_sorted(), "the requests of client {n} are not in the order in which it sent them");
        }
        Ok(())
    }
}

fn client(shared: &Shared, me: usize) {
    let mut cut = false;
    for n in 0u64.. {
        let (path, mut s) = (format!("/{me}/{n}"), shared.lock());
        while s.gate == Gate::Shut || cut && s.gate == Gate::Away {
            s = shared.changed.wait(s).unwrap_or_else(|e| e.into_inner());
        }
        if s.gate == Gate::Over || s.wrong.is_some() {
            return;
        }
        let (at, away) = (s.gate, s.away);
        s.asking += 1;
        drop(s);
        let began = Instant::now();
        let reply = ask(shared.port, &path);
        let mut s = shared.lock();
        s.asking -= 1;
        let may_end = [at, s.gate].contains(&Gate::Away) || s.away != away;
        cut = reply.is_err();
        let fine = match reply {
            Ok(body) => {
                s.worst = s.worst.max(if may_end { Duration::ZERO } else { began.elapsed() });
                s.note(&path, &body)
            }
            Err(_) if may_end => {
                s.cut.push(path);
                Ok(())
            }
            Err(e) => Err(e),
        };
        if let Err(e) = fine {
            s.wrong.get_or_insert(format!("{e:#}"));
        }
        drop(s);
        std::thread::sleep(PACE);
    }
}

/// One request, whole: the server's reply ends with the connection.
fn ask(port: u16, path: &str) -> Result<String> {
    let mut s = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connecting to ask for {path}"))?;
    s.set_read_timeout(Some(LIMIT))?;
    s.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).with_context(|| format!("asking for {path}"))?;
    let mut reply = String::new();
    s.read_to_string(&mut reply).with_context(|| format!("reading the reply to {path}"))?;
    let (head, body) = reply.split_once("\r\n\r\n").with_context(|| format!("the reply to {path} is {reply:?}"))?;
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).context("Content-Length")?;
    ensure!(length.parse() == Ok(body.len()), "the reply to {path} has {} of {length} bytes", body.len());
    Ok(body.into())
}
