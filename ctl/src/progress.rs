//! A progress bar on stderr, for operations that take over half a second, on a terminal.
use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::out::{self, Out};

/// Nothing is drawn before.
const AFTER: Duration = Duration::from_millis(500);

/// Draws in the callback, never from a thread of its own (processes are forked meanwhile); cleared when it goes.
pub struct Bar {
    started: Instant,
    wanted: bool,
    shown: RefCell<Option<ProgressBar>>,
    /// The phase that runs, and since when.
    phase: Cell<(&'static str, Instant)>,
}

impl Bar {
    /// One that shows nothing yet.
    pub fn new(out: &Out) -> Bar {
        let now = Instant::now();
        Bar { started: now, wanted: out.progress(), shown: RefCell::new(None), phase: Cell::new(("", now)) }
    }

    /// How far it is.
    pub fn tick(&self, p: Progress) {
        if !self.wanted {
            return;
        }
        if self.phase.get().0 != p.phase {
            self.phase.set((p.phase, Instant::now()));
        }
        if self.started.elapsed() < AFTER {
            return;
        }
        let mut shown = self.shown.borrow_mut();
        // Hidden until there is something to show.
        let new = shown.is_none();
        let bar = shown.get_or_insert_with(ProgressBar::hidden);
        if new || bar.message() != p.phase || bar.length().unwrap_or(0) != p.total {
            let template = if p.total > 0 {
                "{msg} [{bar:30}] {bytes}/{total_bytes} {prefix}"
            } else {
                "{msg} {spinner} {prefix}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_length(p.total);
            bar.set_message(p.phase);
        }
        // The bar's own idea of speed counts from when it is first drawn.
        let took = self.phase.get().1.elapsed().as_secs_f64();
        let speed = if p.done > 0 && took > 0.0 {
            format!("{}/s", out::bytes((p.done as f64 / took) as u64))
        } else {
            out::duration(self.started.elapsed())
        };
        bar.set_prefix(speed);
        bar.set_position(p.done);
        if new {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Takes it off the terminal, before something else is written there.
    pub fn clear(&self) {
        if let Some(bar) = self.shown.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

/// A stream whose bytes move the bar.
pub struct Watched<'a, S> {
    stream: S,
    bar: &'a Bar,
    phase: &'static str,
    done: u64,
    total: u64,
}

impl<'a, S> Watched<'a, S> {
    /// `total` is 0 where it is unknown.
    pub fn new(stream: S, bar: &'a Bar, phase: &'static str, total: u64) -> Watched<'a, S> {
        Watched { stream, bar, phase, done: 0, total }
    }

    fn moved(&mut self, n: usize) {
        self.done += n as u64;
        // Headers make an export a little longer than what it holds.
        self.bar.tick(Progress { phase: self.phase, done: self.done.min(self.total), total: self.total });
    }
}

impl<S: Write> Write for Watched<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes).inspect(|n| self.moved(*n))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Read> Read for Watched<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes).inspect(|n| self.moved(*n))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
