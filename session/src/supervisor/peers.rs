//! The peers of the control socket: whom the supervisor serves, what each asks, and what it is answered.
//!
//! Whatever a peer says is answered, also what is no request: with an error that says what is wrong with it, and then it is hung up on. None can
//! keep the others out: one connection is taken in at each turn of the loop, so that those before it have been heard; one more than are served at
//! once makes the oldest give way that waits for nothing; and each has one request under way.
use super::Supervisor;
use crate::control::{peer_is_me, peer_pid, Answer, Request};
use crate::frame::{Conn, MAX_CONTROL};
use std::os::unix::net::UnixListener;

/// Connections served at once.
const MAX_CONNS: usize = 16;

/// One of them.
pub(super) struct Peer {
    pub(super) id: u64,
    /// As seen from here.
    pid: Option<i32>,
    pub(super) conn: Conn,
    /// Told that a checkpoint with --kill is under way; with the latest checkpoint at that time.
    pub(super) leaving: Option<Option<u64>>,
    /// Wants an answer when the session has ended.
    pub(super) waits: bool,
    /// Wants one when its checkpoint is done.
    pub(super) asks: bool,
}

impl Peer {
    /// Nothing is owed to it, and nothing depends on it.
    fn may_go(&self) -> bool {
        self.leaving.is_none() && !self.waits && !self.asks
    }

    /// Answers; false if that cannot be done. Room for it is missing only if the peer never reads: not worth waiting for.
    pub(super) fn answer(&mut self, answer: &Answer) -> bool {
        self.conn.send(answer, 0).is_ok()
    }
}

impl Supervisor {
    /// Takes one connection in.
    pub(super) fn accept(&mut self) {
        let Some(Ok((stream, _))) = self.running.listener.as_ref().map(UnixListener::accept) else { return };
        let (who, pid) = (peer_is_me(&stream), peer_pid(&stream));
        let Ok(conn) = Conn::new(stream, MAX_CONTROL) else { return };
        self.next_id += 1;
        let mut peer = Peer { id: self.next_id, pid, conn, leaving: None, waits: false, asks: false };
        if let Err(why) = who {
            peer.answer(&Answer::refused(why));
            return;
        }
        if self.peers.len() >= MAX_CONNS {
            let name = &self.running.name;
            let Some(oldest) = self.peers.iter().position(Peer::may_go) else {
                let why = format!("all {MAX_CONNS} connections of session {name} wait for a checkpoint or for its end");
                peer.answer(&Answer::refused(format!("{why}; try again when one of them is done")));
                return;
            };
            let why = format!("session {name} serves {MAX_CONNS} connections at once, and this one was the oldest");
            self.peers.remove(oldest).answer(&Answer::refused(format!("{why} that waited for nothing; connect again")));
        }
        self.peers.push(peer);
    }

    fn peer(&self, id: u64) -> Option<usize> {
        self.peers.iter().position(|p| p.id == id)
    }

    pub(super) fn hear_peer(&mut self, id: u64) {
        let Some(at) = self.peer(id) else { return };
        let open = self.peers[at].conn.fill();
        // What it asks for may be answered at once, and that may be the end of it.
        while let Some(at) = self.peer(id) {
            let Some(said) = self.peers[at].conn.next::<Request>() else { break };
            let answer = match said {
                Ok(request) => self.answer(at, request),
                Err(why) => Some(Answer::refused(why)),
            };
            if let Some(answer) = answer {
                self.tell_peer(id, &answer);
            }
        }
        let Some(at) = self.peer(id).filter(|_| !open) else { return };
        if let Some(why) = self.peers[at].conn.cut_short() {
            self.peers[at].answer(&Answer::refused(why));
        }
        self.hang_up(id);
    }

    /// Gives a peer its answer. One that does not read, and one that was refused, is hung up on.
    pub(super) fn tell_peer(&mut self, id: u64, answer: &Answer) {
        let Some(at) = self.peer(id) else { return };
        if !self.peers[at].answer(answer) || !answer.ok {
            self.hang_up(id);
        }
    }

    /// A peer goes away. If it was about to leave with the program and did not come to say so, the store knows.
    fn hang_up(&mut self, id: u64) {
        let Some(at) = self.peer(id) else { return };
        if let Some(before) = self.peers.remove(at).leaving {
            self.left_unsaid(before);
        }
    }

    fn answer(&mut self, at: usize, request: Request) -> Option<Answer> {
        let mut done = Answer::done(self.running.live.program.pid);
        let peer = &self.peers[at];
        let its_own = peer.pid == Some(done.pid);
        if peer.asks || peer.waits {
            return Some(Answer::refused("what this connection asked for before is not done yet".into()));
        }
        match request {
            Request::Ping => {}
            Request::Leaving => self.peers[at].leaving = Some(self.latest()),
            Request::Stays => self.peers[at].leaving = None,
            Request::Left { n } => {
                if let Some(why) = self.cannot_have_left(peer, n) {
                    return Some(Answer::refused(why));
                }
                self.left = Some(n);
                self.peers[at].leaving = None;
                self.peers[at].waits = true;
                return None;
            }
            Request::Terminate => {
                self.signal_all(libc::SIGTERM);
                self.signal_all(libc::SIGCONT);
            }
            Request::Session | Request::Checkpoint { fd: Some(_), .. } if !its_own => {
                let name = &self.running.name;
                let why = format!("this process is not the program of session {name}: PID {} is", done.pid);
                return Some(Answer::refused(why));
            }
            Request::Session => done.name = Some(self.running.name.to_string()),
            Request::Checkpoint { end, fd } => {
                self.peers[at].asks = true;
                self.asked(self.peers[at].id, end, fd);
                return None;
            }
        }
        Some(done)
    }

    /// Why it cannot be that this peer has made checkpoint `n` and killed the program.
    fn cannot_have_left(&self, peer: &Peer, n: u64) -> Option<String> {
        let name = &self.running.name;
        let Some(before) = peer.leaving else {
            return Some(format!("\"left\" without a \"leaving\" before it; session {name} is as it was"));
        };
        // Of a store that cannot be read nothing is known.
        let is_one = self.checkpoints().is_none_or(|all| all.contains(&n) && Some(n) > before);
        (!is_one).then(|| format!("{name}@{n} is no checkpoint made since \"leaving\"; session {name} is as it was"))
    }

    /// Whoever was to kill the program after a checkpoint is gone; `before` was the latest one then.
    pub(super) fn left_unsaid(&mut self, before: Option<u64>) {
        let killed = self.ended.is_some_and(|s| libc::WIFSIGNALED(s) && libc::WTERMSIG(s) == libc::SIGKILL);
        let now = self.latest();
        if killed && now > before {
            self.left = now;
        }
    }
}
