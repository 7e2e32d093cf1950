//! Hooks, and the thread that runs them: an ordinary one, started when the first hook is registered. It waits for one signal, which it alone
//! has blocked for that; so it keeps no descriptor while nothing is going on.
//!
//! The order is that of pthread_atfork(3): before a checkpoint the hooks run in the reverse order of their registration, after it in the order of
//! registration. If one vetoes, those that had run get their `after`, with the failure.
use crate::block::{block, Block};
use crate::link::Link;
use crate::{hook_patience, os, Error};
use serde_json::{json, Value};
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What came of a checkpoint, for `after` hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is complete: its number.
    Made(u64),
    /// It failed, or was vetoed: why.
    Failed(String),
}

type Before = dyn Fn() -> Result<(), String> + Send + Sync;
type After = dyn Fn(&Ended) + Send + Sync;
type Restored = dyn Fn(u64) + Send + Sync;

/// A hook: what runs around checkpoints, in the hook thread, with everything else running.
pub struct Hook {
    name: String,
    before: Box<Before>,
    after: Box<After>,
    restored: Box<Restored>,
}

/// A registered hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookId(pub(crate) u32);

impl Hook {
    /// One that does nothing yet. Its name is in messages.
    pub fn new(name: &str) -> Hook {
        Hook { name: name.to_owned(), before: Box::new(|| Ok(())), after: Box::new(|_| ()), restored: Box::new(|_| ()) }
    }

    /// Runs before each checkpoint; an error is a veto, with its reason.
    pub fn before(mut self, f: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Hook {
        self.before = Box::new(f);
        self
    }

    /// Runs after each checkpoint in the program that goes on, if `before` ran: also when the checkpoint failed.
    pub fn after(mut self, f: impl Fn(&Ended) + Send + Sync + 'static) -> Hook {
        self.after = Box::new(f);
        self
    }

    /// Runs in a restored program, with its generation.
    pub fn restored(mut self, f: impl Fn(u64) + Send + Sync + 'static) -> Hook {
        self.restored = Box::new(f);
        self
    }

    /// Registers it. The first starts the hook thread.
    pub fn register(self) -> Result<HookId, Error> {
        let fail = |why: &str| Error::new(9, format!("cannot register the hook {}: {why}", self.name));
        let block = block().ok_or_else(|| fail(crate::NO_BLOCK))?;
        let mut all = registry();
        if block.helper.load(SeqCst) == 0 {
            // Hooks of before a fork are the parent's.
            all.hooks.clear();
            start(block).map_err(|e| fail(&e.to_string()))?;
        }
        all.last += 1;
        let id = all.last;
        all.hooks.push((id, Arc::new(self)));
        Ok(HookId(id))
    }
}

impl HookId {
    /// Takes the hook back. One that is running meanwhile runs to its end.
    pub fn unregister(self) -> Result<(), Error> {
        let mut all = registry();
        let before = all.hooks.len();
        all.hooks.retain(|h| h.0 != self.0);
        match all.hooks.len() == before {
            true => Err(Error::new(2, "cannot take this hook back: it is not registered")),
            false => Ok(()),
        }
    }
}

/// How long each hook may take; 10 s unless this is called. A checkpoint whose hook takes longer is refused, naming the hook.
pub fn set_hook_timeout(limit: Duration) {
    if let Some(block) = block() {
        block.hook_timeout.store(u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1), SeqCst);
    }
}

struct Registry {
    last: u32,
    hooks: Vec<(u32, Arc<Hook>)>,
}

fn registry() -> MutexGuard<'static, Registry> {
    static ALL: Mutex<Registry> = Mutex::new(Registry { last: 0, hooks: Vec::new() });
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the hook thread is between a `before` and the end of what comes after it.
static ROUND: Mutex<bool> = Mutex::new(false);
static OVER: Condvar = Condvar::new();

thread_local!(static IN_HOOK: Cell<bool> = const { Cell::new(false) });

/// True in the hook thread.
pub(crate) fn in_hook() -> bool {
    IN_HOOK.get()
}

fn set_round(on: bool) {
    *ROUND.lock().unwrap_or_else(PoisonError::into_inner) = on;
    OVER.notify_all();
}

/// Waits, within bounds, until the hooks that a checkpoint or restore set going have run.
pub(crate) fn settle(failed: bool) {
    let Some(block) = block() else { return };
    if block.helper.load(SeqCst) == 0 {
        return;
    }
    let hooks = if failed { 0 } else { registry().hooks.len() as u32 };
    let until = Instant::now() + hook_patience(block) * (1 + hooks);
    let mut on = ROUND.lock().unwrap_or_else(PoisonError::into_inner);
    while *on {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        on = OVER.wait_timeout(on, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Starts the hook thread, and waits until recorders can find it.
fn start(block: &'static Block) -> std::io::Result<()> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let run = move || {
        IN_HOOK.set(true);
        block.helper.store(os::tid(), SeqCst);
        let _ = ready.send(());
        drop(ready);
        loop {
            if let Some(key) = os::wait_for_wake() {
                // A recorder that is gone again is not there.
                if let Ok(link) = Link::recorder(block, key) {
                    serve(block, &link);
                }
            }
        }
    };
    os::all_blocked(|| std::thread::Builder::new().name(wire::api::HELPER_NAME.into()).spawn(run))?;
    is_ready.recv().map_err(std::io::Error::other)
}

/// One checkpoint.
fn serve(block: &Block, link: &Link) {
    let generation = block.generation();
    match link.hear() {
        Ok(Some(said)) if said["op"] == "before" => {}
        _ => return,
    }
    set_round(true);
    let hooks: Vec<Arc<Hook>> = registry().hooks.iter().map(|h| h.1.clone()).collect();
    let mut ran = Vec::new();
    let ended = match before(link, &hooks, &mut ran) {
        Err(why) => Ended::Failed(why),
        Ok(()) => match link.hear() {
            Ok(Some(said)) => match said["n"].as_u64() {
                Some(n) => Ended::Made(n),
                None => Ended::Failed(crate::text(&said["error"])),
            },
            _ => Ended::Failed("the recorder ended before it told how the checkpoint did".into()),
        },
    };
    let restored = block.generation() != generation;
    for hook in ran.into_iter().rev() {
        // Who is told may be gone: the hooks run all the same.
        let _ = link.say(&json!({"running": hook.name}));
        let _ = catch_unwind(AssertUnwindSafe(|| match restored {
            true => (hook.restored)(block.generation()),
            false => (hook.after)(&ended),
        }));
    }
    set_round(false);
    let _ = link.say(&Value::from("done"));
}

/// Runs the `before`s, the last registered first; `ran` gets those that let it be made.
fn before(link: &Link, hooks: &[Arc<Hook>], ran: &mut Vec<Arc<Hook>>) -> Result<(), String> {
    let gone = |e: std::io::Error| format!("the recorder did not wait for the hooks: {e}");
    for hook in hooks.iter().rev() {
        link.say(&json!({"running": hook.name})).map_err(gone)?;
        let said = catch_unwind(AssertUnwindSafe(|| (hook.before)()));
        let veto = match said {
            Ok(Ok(())) => {
                ran.push(hook.clone());
                continue;
            }
            Ok(Err(reason)) => reason,
            Err(_) => "it panicked".into(),
        };
        // A recorder that is gone has failed anyway.
        let _ = link.say(&json!({"veto": {"hook": hook.name, "reason": veto}}));
        return Err(format!("hook {} vetoed the checkpoint: {veto}", hook.name));
    }
    link.say(&Value::from("ready")).map_err(gone)
}
