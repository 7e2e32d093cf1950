//! The harness of the tests that see Dormouse from outside: real `launcher` and `ctl`, real programs, /proc as the oracle.
//!
//! What belongs here: starting, watching and ending what a test needs ([`bed`], [`target`], [`pty`]), looking at processes
//! and at the store without any code of the product ([`proc`], [`store`]), and running cases ([`runner`]). What may not
//! enter: a dependency on another crate of the workspace (what is tested is not its own judge), and what a case checks
//! (that is in `behaviours/`, `apps/`, `faults/` and `soak/`).
//!
//! Each case runs in a process of its own, which is a subreaper: whatever it starts ends up below it, and when the case is
//! over nothing may be left there. It kills only what is below it. A run that is killed itself has a watcher ([`mod@watch`]).

pub mod agent;
pub mod bed;
pub mod case;
pub mod cgroups;
pub mod control;
pub mod fuzz;
pub mod hugepages;
pub mod job;
pub mod port;
pub mod proc;
pub mod programs;
pub mod pty;
pub mod run;
pub mod runner;
pub mod stage;
pub mod store;
pub mod sys;
pub mod target;
pub mod unharmed;
pub mod watch;
pub mod who;

pub use bed::Bed;
pub use case::Case;
pub use target::Target;
pub use who::Who;
