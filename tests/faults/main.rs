//! How it must fail: each with its documented exit code and a message that says what to do next, the target unharmed, and the
//! store as it was.
mod control;
mod frames;
mod harness;
mod input;
mod kills;
mod phases;
mod restores;
mod storage;
mod strangers;
mod triggers;
mod window;

use dormouse_tests::runner;

fn main() -> std::process::ExitCode {
    runner::main(|_| {
        let mut all = harness::cases();
        all.extend(control::cases());
        all.extend(frames::cases());
        all.extend(input::cases());
        all.extend(kills::cases());
        all.extend(phases::cases());
        all.extend(restores::cases());
        all.extend(storage::cases());
        all.extend(strangers::cases());
        all.extend(triggers::cases());
        all.extend(window::cases());
        all.sort_by(|a, b| a.name.cmp(&b.name));
        runner::no_two_alike(&all)?;
        Ok(all)
    })
}
