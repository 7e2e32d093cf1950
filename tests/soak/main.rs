//! Many checkpoints and restores in a row, by the agent and under load: nothing may pile up ([`census`]), and no request may be lost,
//! failed or done twice ([`load`]). [`rounds`] is the order of things, [`work`] what the programs are.
mod census;
mod load;
mod rounds;
mod work;

use dormouse_tests::{runner, Case, Who};
use rounds::Plan;

/// 20 checkpoints and 4 restores: in every `make test`.
const SHORT: Plan = Plan { in_a_row: 8, rounds: 4, each: 3 };
/// 500 checkpoints and 100 restores: `make test-soak`.
const LONG: Plan = Plan { in_a_row: 200, rounds: 100, each: 3 };

fn main() -> std::process::ExitCode {
    runner::main(|_| {
        let mut all = Vec::new();
        for who in Who::all() {
            for (name, plan, limit) in [("short", SHORT, 240), ("long", LONG, 3600)] {
                let server = Case::new(format!("soak.{name}/server"), *who, move |bed| {
                    rounds::run(bed, &plan, Box::new(work::Web::new()?))
                });
                let alloc = Case::new(format!("soak.{name}/alloc16"), *who, move |bed| {
                    rounds::run(bed, &plan, Box::new(work::Alloc::default()))
                });
                for case in [server, alloc] {
                    let case = case.limit(limit);
                    all.push(if name == "long" { case.full() } else { case });
                }
            }
        }
        runner::no_two_alike(&all)?;
        Ok(all)
    })
}
