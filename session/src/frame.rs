//! Frames on a stream socket: four bytes of length (little endian), then that many bytes of JSON. Bounded both ways;
//! nobody waits for a peer that says half a frame.
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Longest frame on a control socket.
pub(crate) const MAX_CONTROL: usize = 64 << 10;
/// Longest frame between front and supervisor: an error with very many reasons.
pub(crate) const MAX_FRONT: usize = 16 << 20;

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: UnixStream,
    max: usize,
    buffer: Vec<u8>,
    ended: bool,
}

impl Conn {
    /// Speaks over `stream`. Reading never waits.
    pub(crate) fn new(stream: UnixStream, max: usize) -> io::Result<Conn> {
        stream.set_nonblocking(true)?;
        Ok(Conn { stream, max, buffer: Vec::new(), ended: false })
    }

    /// Takes in what has come; false once the peer has closed (whole frames read before can still be taken).
    pub(crate) fn fill(&mut self) -> bool {
        let mut chunk = [0u8; 4096];
        // One frame more than the longest is never buffered: what is not taken stays in the socket.
        while !self.ended && self.buffer.len() <= self.max + 4 {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.ended = true,
            }
        }
        !self.ended
    }

    /// The next whole frame, if it has come. An error says what is wrong with it; nothing after it can be understood.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T, String>> {
        let head: [u8; 4] = self.buffer.get(..4)?.try_into().ok()?;
        let length = u32::from_le_bytes(head) as usize;
        if length > self.max {
            return Some(Err(format!("a frame of {length} bytes is longer than {}", self.max)));
        }
        let body = self.buffer.get(4..4 + length)?;
        let said = serde_json::from_slice(body).map_err(|e| not_understood(&e));
        self.buffer.drain(..4 + length);
        Some(said)
    }

    /// What is wrong if the peer says nothing more: it has begun a frame that it did not end.
    pub(crate) fn cut_short(&self) -> Option<String> {
        let head = self.buffer.get(..4).and_then(|h| h.try_into().ok()).map(u32::from_le_bytes);
        match (self.buffer.len(), head) {
            (0, _) => None,
            (n, None) => Some(format!("a frame is cut short: {n} bytes of its length, which has 4")),
            (n, Some(length)) => Some(format!("a frame is cut short: {} bytes of {length}", n - 4)),
        }
    }

    /// Sends a frame, waiting up to `ms` milliseconds (-1: without limit) for room.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T, ms: i32) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > self.max {
            return Err(io::Error::other(format!("a frame of {} bytes is longer than {}", body.len(), self.max)));
        }
        let mut all = (body.len() as u32).to_le_bytes().to_vec();
        all.extend_from_slice(&body);
        let mut rest = &all[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.as_fd(), nix::poll::PollFlags::POLLOUT, ms)?
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits up to `ms` milliseconds for the next frame: what a client does. None: the peer closed.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self, ms: i32) -> io::Result<Option<T>> {
        loop {
            if let Some(said) = self.next() {
                return said.map(Some).map_err(io::Error::other);
            }
            if self.ended {
                return Ok(None);
            }
            wait(self.as_fd(), nix::poll::PollFlags::POLLIN, ms)?;
            self.fill();
        }
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What is wrong with a frame, in one line: the words of whoever sent it may be many, and control characters among them.
fn not_understood(e: &serde_json::Error) -> String {
    let e = e.to_string();
    let shown: String =
        e.chars().take(200).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    let more = if e.chars().nth(200).is_some() { "..." } else { "" };
    format!("a frame cannot be understood: {shown}{more}")
}

/// Waits for one descriptor.
fn wait(fd: BorrowedFd, what: nix::poll::PollFlags, ms: i32) -> io::Result<()> {
    let timeout = nix::poll::PollTimeout::try_from(ms).unwrap_or(nix::poll::PollTimeout::NONE);
    match nix::poll::poll(&mut [nix::poll::PollFd::new(fd, what)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(max: usize) -> (UnixStream, Conn) {
        let (a, b) = UnixStream::pair().unwrap();
        (a, Conn::new(b, max).unwrap())
    }

    #[test]
    fn frames_arrive_whole_and_in_order_however_they_are_cut() {
        let (mut peer, mut conn) = pair(100);
        peer.write_all(&[3, 0, 0]).unwrap();
        assert!(conn.fill());
        assert!(conn.next::<u32>().is_none());
        peer.write_all(b"\x00123\x01\x00\x00\x007").unwrap();
        drop(peer);
        assert!(!conn.fill());
        assert_eq!(conn.next::<u32>(), Some(Ok(123)));
        assert_eq!(conn.next::<u32>(), Some(Ok(7)));
        assert_eq!(conn.next::<u32>(), None);
    }

    #[test]
    fn what_is_too_long_or_no_json_is_an_error() {
        let (mut peer, mut conn) = pair(100);
        peer.write_all(&[101, 0, 0, 0]).unwrap();
        conn.fill();
        assert_eq!(conn.next::<u32>(), Some(Err("a frame of 101 bytes is longer than 100".into())));
        let (mut peer, mut conn) = pair(100);
        peer.write_all(b"\x02\x00\x00\x00{x").unwrap();
        conn.fill();
        assert!(conn.next::<u32>().unwrap().unwrap_err().starts_with("a frame cannot be understood"));
    }

    /// Whatever comes, however it is cut: no panic, one answer to each frame until one is none, never more kept than one frame and a chunk.
    #[test]
    fn nothing_that_comes_is_a_panic_and_little_of_it_is_kept() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for round in 0..3000 {
            let (mut peer, mut conn) = pair(100);
            let good = next(5);
            let mut all = b"\x02\x00\x00\x0042".repeat(good);
            all.extend((0..next(3000)).map(|_| if next(3) == 0 { 0 } else { next(256) as u8 }));
            let (mut heard, mut rest) = (0, &all[..]);
            'all: while !rest.is_empty() {
                let (now, later) = rest.split_at(1 + next(rest.len()));
                peer.write_all(now).unwrap();
                rest = later;
                conn.fill();
                assert!(conn.buffer.len() <= 104 + 4096, "round {round}");
                while let Some(said) = conn.next::<u32>() {
                    match said {
                        Ok(n) => heard += usize::from(n == 42),
                        Err(why) => {
                            assert!(why.chars().count() < 300, "round {round}: {why}");
                            break 'all;
                        }
                    }
                }
            }
            assert!(heard >= good, "round {round}: {heard} of {good}");
        }
    }

    #[test]
    fn a_frame_survives_the_way_and_says_where_it_was_cut() {
        let text = "\u{1f42d}\u{1}../\n".repeat(5);
        let (peer, mut conn) = pair(1000);
        let mut sender = Conn::new(peer, 1000).unwrap();
        sender.send(&text, 0).unwrap();
        assert!(sender.send(&"x".repeat(1000), 0).is_err());
        assert!(conn.fill());
        assert_eq!(conn.next::<String>(), Some(Ok(text)));
        assert_eq!(conn.cut_short(), None);
        for (bytes, why) in [
            (&[5, 0][..], "a frame is cut short: 2 bytes of its length, which has 4"),
            (&[5, 0, 0, 0, b'1'], "a frame is cut short: 1 bytes of 5"),
        ] {
            let (mut peer, mut conn) = pair(100);
            peer.write_all(bytes).unwrap();
            conn.fill();
            assert!(conn.next::<u32>().is_none());
            assert_eq!(conn.cut_short().as_deref(), Some(why));
        }
    }
}
