//! Every phase of a checkpoint fails on demand, with and without --kill and --stop; and ctl is killed as each begins.
use anyhow::{ensure, Result};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{store, unharmed, Bed, Case, Who};

const PHASES: [&str; 7] = ["find", "freeze", "observe", "fork", "thaw", "record", "publish"];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for phase in PHASES {
        for (action, option) in
            [("fail", ""), ("fail", "--kill"), ("fail", "--stop"), ("kill-self", ""), ("kill-self", "--kill")]
        {
            // Who is to be killed or stopped stays frozen until it is recorded: no child, and the thaw comes last.
            if phase == "fork" && !option.is_empty() {
                continue;
            }
            for who in Who::all() {
                all.push(Case::new(format!("phase-{phase}/{action}{option}"), *who, move |bed| {
                    fails(bed, phase, action, option)
                }));
            }
        }
    }
    all
}

fn fails(bed: &mut Bed, phase: &str, action: &str, option: &str) -> Result<()> {
    let options: Vec<&str> = Some(option).filter(|o| !o.is_empty()).into_iter().collect();
    for door in [Door::Leader, Door::Launched] {
        let mut target = Start::program("thr_sync").door(door).ready(bed)?;
        let session = target.session.clone();
        target.checkpoint(bed)?;
        let before = store::content(bed, &session);
        let ran = bed.ctl_fault(&format!("{phase}:1:{action}"), &target.checkpoint_args(&options))?;
        let late = phase == "thaw" && !option.is_empty();
        if late {
            // The checkpoint is complete; only its kill or stop did not happen.
            ensure!(ran.code() != 0, "the thaw failed, yet ctl ended with 0");
            store::holds(bed, &session, &[1, 2])?;
        } else {
            match action {
                "fail" => drop(ran.refused(if phase == "find" { 3 } else { 9 }, &["cannot checkpoint", phase, "; "])?),
                _ => drop(ran.expect(137)?),
            }
            ensure!(store::content(bed, &session) == before, "the store's checkpoints changed");
            store::holds(bed, &session, &[1])?;
        }
        unharmed::but_for_the_documented(target.pid)?;
        if action == "fail" {
            // Nobody died: there is no emergency exit.
            unharmed::entirely(target.pid)?;
        }
        target.checkpoint(bed)?;
        unharmed::entirely(target.pid)?;
        let there = store::numbers(bed, &session);
        ensure!(there.len() == if late { 3 } else { 2 }, "the store holds {there:?}");
        target.prove(bed)?;
    }
    Ok(())
}
