//! Real programs, by both doors, and images of older builds: the Python web server of the main job, tmux, the golden images.
mod agent;
mod golden;
mod preflight;
mod readme;
mod server;
mod tmux;
mod train;

use dormouse_tests::runner;

fn main() -> std::process::ExitCode {
    runner::main(|_| {
        let mut all = server::cases();
        all.extend(agent::cases());
        all.extend(preflight::cases());
        all.extend(readme::cases());
        all.extend(tmux::cases());
        all.extend(train::cases());
        all.extend(golden::cases());
        runner::no_two_alike(&all)?;
        Ok(all)
    })
}
