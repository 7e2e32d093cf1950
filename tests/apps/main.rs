//! Real programs: the Python web server of the main job.
mod preflight;
mod server;

use dormouse_tests::runner;

fn main() -> std::process::ExitCode {
    runner::main(|_| {
        let mut all = server::cases();
        all.extend(preflight::cases());
        runner::no_two_alike(&all)?;
        Ok(all)
    })
}
