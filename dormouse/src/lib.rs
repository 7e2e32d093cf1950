//! Dormouse from the program's side: a program checkpoints itself, and has a say in every checkpoint that is made of it.
//!
//! ```no_run
//! match dormouse::checkpoint() {
//!     Ok(dormouse::Outcome::Continued { number }) => println!("checkpoint {number} is complete"),
//!     Ok(dormouse::Outcome::Restored { generation, .. }) => println!("restored for the {generation}. time"),
//!     Ok(dormouse::Outcome::Alone { why }) => println!("nothing happened: {why}"),
//!     Err(e) => eprintln!("{e}"), // and the program runs on
//! }
//! ```
//!
//! What belongs here: what runs inside a program that was linked with us, for Rust, C (`c`, dormouse.h) and Python (python/dormouse.py). It is
//! small: it asks a recorder, and never captures anything itself. What may not enter: a dependency on the engine or the session crate; anything
//! that must run in a signal handler; a thread in a program that registers no hook. `unsafe` is in `os` and `c` only.
//!
//! Nothing here is to be called from a signal handler. A forked child has no hooks, regions or critical sections of its parent's worth relying
//! on: it registers its own.
#![deny(unsafe_code)]

mod block;
mod c;
mod embed;
mod hooks;
mod link;
mod os;

pub use hooks::{set_hook_timeout, Ended, Hook, HookId};

use block::{block, Block};
use link::Link;
use serde_json::{json, Value};
use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What became of [`checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The checkpoint is complete, and this is the program that it was made of.
    Continued {
        /// Its number in the session.
        number: u64,
    },
    /// This is the restored program.
    Restored {
        /// How often it was restored: 1 the first time.
        generation: u64,
        /// The checkpoint that it comes from.
        number: u64,
    },
    /// There is no Dormouse underneath: nothing was done.
    Alone {
        /// How that was found out.
        why: String,
    },
}

/// Why something was not done. The program runs on as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What sort of failure it is: the exit code of `ctl` (README.md), 3 refused, 6 busy, 7 storage, 9 failed and put back, ...
    pub code: u8,
    /// What was attempted, on what, why it failed, what to do.
    pub message: String,
}

impl Error {
    fn new(code: u8, message: impl Into<String>) -> Error {
        Error { code, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Makes a checkpoint of this program, and returns when it is complete or has failed; and again, in the restored program, whenever it is restored
/// from it. Calls from several threads make one checkpoint after the other.
///
/// Its critical sections must be left and its hooks run as for every other checkpoint; a hook must not call this.
pub fn checkpoint() -> Result<Outcome, Error> {
    let Some(block) = block() else { return Ok(Outcome::Alone { why: NO_BLOCK.into() }) };
    if hooks::in_hook() {
        return Err(Error::new(3, "cannot checkpoint this program: a hook runs; call checkpoint() outside of hooks"));
    }
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = block.generation();
    let asked = ask(block);
    // Hooks that let it fail by taking too long are not waited for once more, one by one.
    hooks::settle(asked.is_err());
    // In a restored program whatever was under way has ended somehow: that it is one is what counts.
    if block.generation() != before {
        return Ok(Outcome::Restored { generation: block.generation(), number: block.from() });
    }
    asked
}

const NO_BLOCK: &str = "something else is in this program at the address that Dormouse's library uses (444f524c0000)";

fn ask(block: &'static Block) -> Result<Outcome, Error> {
    let broken =
        |e: std::io::Error| Error::new(9, format!("cannot checkpoint this program: {e}; it runs on as before"));
    let link = match supervisor(block) {
        Ok(link) => link,
        Err(why) => {
            return match embed::name() {
                Some(name) => embed::checkpoint(block, &name),
                None => Ok(Outcome::Alone { why }),
            }
        }
    };
    link.say(&json!({"op": "checkpoint"})).map_err(broken)?;
    let answer = link.hear().map_err(broken)?.ok_or_else(|| {
        Error::new(9, "cannot checkpoint this program: the recorder ended before it answered; it runs on as before, ctl list shows its checkpoints")
    })?;
    match (answer["ok"].as_bool(), answer["n"].as_u64()) {
        (Some(true), Some(number)) => Ok(Outcome::Continued { number }),
        _ => Err(Error::new(answer["code"].as_u64().unwrap_or(9) as u8, text(&answer["error"]))),
    }
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or("the answer could not be understood").to_owned()
}

/// A connection to the supervisor of the session that this program is; or how it was found out that there is none.
fn supervisor(block: &'static Block) -> Result<Link, String> {
    let mut why = "it is not the program of a session (start it with launcher)".to_owned();
    for folder in link::folders(block) {
        let Ok(link) = Link::supervisor(block, &folder) else { continue };
        let Ok(Some(answer)) = link.say(&json!({"op": "session"})).and_then(|()| link.hear()) else { continue };
        if answer["ok"] == true {
            use std::os::unix::ffi::OsStrExt;
            block.set_session(answer["name"].as_str().unwrap_or_default().as_bytes(), folder.as_os_str().as_bytes());
            return Ok(link);
        }
        why = text(&answer["error"]);
    }
    Err(why)
}

/// Name of the session that this program is; None if it is none.
pub fn name() -> Option<String> {
    let known = |b: &Block| Some(String::from_utf8_lossy(&b.name()).into_owned()).filter(|n| !n.is_empty());
    let block = block()?;
    if known(block).is_none() && supervisor(block).is_err() {
        return embed::name();
    }
    known(block)
}

/// How often this program was restored: 0 until it is for the first time.
pub fn generation() -> u64 {
    block().map_or(0, Block::generation)
}

/// Enters a critical section: no checkpoint is made until it is left. They nest, and count for all threads together.
///
/// A checkpoint that is asked for meanwhile waits up to 10 s, and is then refused as busy. One that is being made is not waited for: if it
/// is past its freeze, it shows the program before this call.
pub fn disable() {
    if let Some(block) = block() {
        block.disabled.fetch_add(1, SeqCst);
    }
}

/// Leaves a critical section; an error if none is entered.
pub fn enable() -> Result<(), Error> {
    let Some(block) = block() else { return Ok(()) };
    let left = block.disabled.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
    match left {
        Err(_) => Err(Error::new(2, "cannot leave a critical section: none is entered; call disable() first")),
        Ok(1) => {
            let key = block.waiter.swap(0, SeqCst);
            if key != 0 {
                // A recorder that is gone waits no more.
                let _ = Link::recorder(block, key);
            }
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// A critical section for as long as the result lives.
pub fn critical() -> Critical {
    disable();
    Critical(())
}

/// See [`critical`].
#[must_use = "the critical section is left when this is dropped"]
pub struct Critical(());

impl Drop for Critical {
    fn drop(&mut self) {
        // It was entered when this was made.
        let _ = enable();
    }
}

/// Says that memory is not worth keeping: it is left out of checkpoints, and is zeros after a restore. Whole pages only: what lies in a page that
/// is not wholly in it is kept. Gives the bytes left out. Private memory of no file (a heap, mmap(MAP_PRIVATE|MAP_ANONYMOUS)) only: other memory
/// is kept, and the checkpoint says so. Take it back ([`keep_memory`]) before the memory is unmapped.
///
/// # Safety
/// At any moment until [`keep_memory`] all of it may turn to zeros: nothing may lie in it that must not.
#[allow(unsafe_code)]
pub unsafe fn drop_memory(begin: *const u8, len: usize) -> Result<usize, Error> {
    let Some((from, to)) = pages(begin, len) else { return Ok(0) };
    match block() {
        Some(b) if !b.add_region(from, to) => {
            Err(Error::new(3, format!("cannot leave out more memory: {} regions are the most", wire::api::REGIONS)))
        }
        Some(_) => Ok((to - from) as usize),
        None => Ok(0),
    }
}

/// Takes [`drop_memory`] back, for the same memory.
pub fn keep_memory(begin: *const u8, len: usize) -> Result<(), Error> {
    let Some((from, to)) = pages(begin, len) else { return Ok(()) };
    match block() {
        Some(b) if !b.remove_region(from, to) => {
            Err(Error::new(2, "cannot keep this memory: it was not dropped with this begin and length"))
        }
        _ => Ok(()),
    }
}

/// The whole pages within.
fn pages(begin: *const u8, len: usize) -> Option<(u64, u64)> {
    const PAGE: u64 = 4096;
    let begin = begin as usize as u64;
    let (from, to) = (begin.checked_next_multiple_of(PAGE)?, begin.checked_add(len as u64)? & !(PAGE - 1));
    (from < to).then_some((from, to))
}

/// Makes this program, which was not started by launcher, the session `name`: [`checkpoint`] then starts a recorder itself (`ctl`: DORMOUSE_CTL, else beside
/// the program, else in PATH). Without that call such a program is alone.
pub fn session(name: &str) -> Result<(), Error> {
    embed::set_name(name)
}

/// How long one hook and a call of ours may wait for the hook thread.
fn hook_patience(block: &Block) -> Duration {
    Duration::from_millis(u64::from(block.hook_timeout.load(SeqCst)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_within_are_dropped() {
        let at = |a: usize| a as *const u8;
        assert_eq!(pages(at(0x1000), 0x1000), Some((0x1000, 0x2000)));
        assert_eq!(pages(at(0x1001), 0x2000), Some((0x2000, 0x3000)));
        assert_eq!(pages(at(0x1001), 0x1ffe), None);
        assert_eq!(pages(at(usize::MAX), 5), None);
    }

    #[test]
    fn critical_sections_nest_and_end() {
        let inside = critical();
        disable();
        assert!(enable().is_ok());
        drop(inside);
        assert_eq!(enable().unwrap_err().code, 2);
    }
}
