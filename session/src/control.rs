//! The supervisor's control socket: what ctl tells a live session. `sessions/NAME/control`, 0600, this user's only.
//!
//! A peer sends [`Request`]s, one at a time, and gets an [`Answer`] to each. A peer of another uid (root, too), a frame that cannot be understood, that is
//! too long or cut short, and a request out of order are answered with an error and hung up on.
use crate::errors::storage;
use crate::frame::{Conn, MAX_CONTROL};
use crate::{Result, StateDir};
use image::SessionName;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// What can be asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Is it there?
    Ping,
    /// A checkpoint with --kill begins: the program's death is not yet news. Holds as long as this connection does, or
    /// until `Left` or `Stays`.
    Leaving,
    /// The checkpoint is complete and the program is killed. Answered when the session has ended.
    Left {
        /// The checkpoint.
        n: u64,
    },
    /// The checkpoint failed.
    Stays,
    /// SIGTERM to everything in the session.
    Terminate,
    /// From the program (libdormouse): which session is it? Refused to every other process.
    Session,
    /// A checkpoint, made by the supervisor; one more if one is under way. Answered when it is complete, with its number, or has
    /// failed, with the reason.
    Checkpoint {
        /// It ends the program.
        #[serde(default)]
        end: bool,
        /// If the program itself asks (refused to every other process): the number of this connection in it. The checkpoint leaves it out, and in the
        /// restored program it has ended.
        #[serde(default)]
        fd: Option<i32>,
    },
}

/// What a supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It was done.
    pub ok: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The program's PID.
    #[serde(default)]
    pub pid: i32,
    /// The checkpoint that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Of `error`: what sort of failure it is, as ctl's exit code says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The session's name (`Session`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Answer {
    /// It was done.
    pub(crate) fn done(pid: i32) -> Answer {
        Answer { ok: true, error: None, pid, n: None, code: None, name: None }
    }

    /// It was not, and why; of what would be longer than a frame the beginning.
    pub(crate) fn refused(why: String) -> Answer {
        let error = match why.char_indices().nth(LONGEST) {
            None => why,
            Some((end, _)) => format!("{}... ({} bytes more)", &why[..end], why.len() - end),
        };
        Answer { ok: false, error: Some(error), ..Answer::done(0) }
    }
}

/// Characters of an error that is told: whatever they are, six bytes each in JSON at most, it fits into a frame.
const LONGEST: usize = 10_000;

/// How long a client waits for an answer, and a supervisor for room to answer: milliseconds.
pub const PATIENCE: i32 = 5000;

/// A socket that was bound. Removed again when this is dropped, unless it is kept.
pub(crate) struct Bound {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Bound {
    /// The session runs: from now on the socket goes when the session ends.
    pub(crate) fn keep(mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // One that stays is removed by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket. Through /proc/self/fd, as the path may be longer than the 107 bytes that an address holds.
pub(crate) fn bind(state: &StateDir, name: &SessionName) -> Result<Bound> {
    let path = state.session(name).join("control");
    let bound = (|| {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let (_dir, short) = short_path(state, name)?;
        let listener = UnixListener::bind(short)?;
        // Until here the folder's 0700 keeps others away.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })();
    match bound {
        Ok(listener) => Ok(Bound { listener: Some(listener), path }),
        Err(e) => Err(storage(format!("make the control socket of session {name}"), &path, &e)),
    }
}

/// The socket's path by way of the folder's descriptor, which must live as long as the path is used.
fn short_path(state: &StateDir, name: &SessionName) -> io::Result<(File, PathBuf)> {
    let dir = File::open(state.session(name))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/control", dir.as_raw_fd()));
    Ok((dir, short))
}

/// True if the peer runs as this user.
pub(crate) fn peer_is_me(stream: &UnixStream) -> std::result::Result<(), String> {
    let me = nix::unistd::geteuid().as_raw();
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) if peer.uid() == me => Ok(()),
        Ok(peer) => Err(format!("this session is user {me}'s, and you are user {}", peer.uid())),
        Err(e) => Err(format!("who you are cannot be told: {e}")),
    }
}

/// PID of the peer, as seen from here.
pub(crate) fn peer_pid(stream: &UnixStream) -> Option<i32> {
    getsockopt(stream, PeerCredentials).ok().map(|p| p.pid())
}

/// A client's connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    conn: Conn,
}

impl Client {
    /// Connects to the supervisor of a session.
    pub fn connect(state: &StateDir, name: &SessionName) -> io::Result<Client> {
        let (_dir, short) = short_path(state, name)?;
        Ok(Client { conn: Conn::new(UnixStream::connect(short)?, MAX_CONTROL)? })
    }

    /// Asks, and waits (bounded) for the answer; a refusal is an error. For all but `Checkpoint`.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        self.ask_within(request, PATIENCE)
    }

    /// Says that the program was killed, complete in this checkpoint, and waits for the answer, which comes when it has ended, for `ms` milliseconds.
    pub fn left(&mut self, n: u64, ms: i32) -> io::Result<Answer> {
        self.ask_within(&Request::Left { n }, ms)
    }

    /// Has the supervisor make a checkpoint and waits for it, however long it takes; gives its number.
    pub fn checkpoint(&mut self, end: bool) -> io::Result<u64> {
        let answer = self.ask_within(&Request::Checkpoint { end, fd: None }, -1)?;
        answer.n.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn ask_within(&mut self, request: &Request, ms: i32) -> io::Result<Answer> {
        // A supervisor that refuses us may have hung up before our frame: its reason is what counts.
        let sent = self.conn.send(request, PATIENCE);
        match self.conn.receive::<Answer>(ms)? {
            Some(Answer { ok: false, error, .. }) => Err(io::Error::other(error.unwrap_or_else(|| "refused".into()))),
            Some(answer) => Ok(answer),
            None => Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_fits_into_a_frame_whatever_is_said_of_it() {
        for c in ["x", "\u{1}", "\"", "\u{1f42d}", "\n"] {
            let answer = Answer::refused(c.repeat(1 << 20));
            let frame = serde_json::to_vec(&answer).unwrap();
            assert!(frame.len() < MAX_CONTROL, "{c:?}: {}", frame.len());
            assert!(answer.error.unwrap().ends_with(" bytes more)"));
        }
        assert_eq!(Answer::refused("why".into()).error.as_deref(), Some("why"));
    }
}
