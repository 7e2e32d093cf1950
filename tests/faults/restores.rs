//! A restore that fails in each phase, or in which somebody dies: no process is left, the image is untouched, and the next
//! restore works.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{proc, run, store, Bed, Case, Who};

const PHASES: [&str; 8] = ["read", "check", "build", "place", "fill", "files", "threads", "wake"];

/// More points than any restore of these passes.
const TOO_MANY: u32 = 2000;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for who in Who::all() {
        for phase in PHASES {
            for action in ["fail", "kill-self", "kill-target"] {
                if action == "kill-target" && matches!(phase, "read" | "check" | "build") {
                    continue; // there is none yet
                }
                let name = format!("restore-{phase}/{action}");
                all.push(Case::new(name, *who, move |bed| {
                    Pids::Any.phase_fails(bed, &format!("restore-{phase}:1:{action}"))
                }));
            }
        }
        for action in ["fail", "kill-self", "kill-target"] {
            for phase in ["threads", "wake"] {
                let fault = format!("restore-{phase}:1:{action}");
                let name = format!("restore-{phase}/fresh-{action}");
                all.push(Case::new(name, *who, move |bed| Pids::Fresh.phase_fails(bed, &fault)));
            }
        }
        let name = "restore-wire-kill-self/fresh";
        all.push(Case::new(name, *who, |bed| Pids::Fresh.points(bed, "wire", "kill-self", 7)).limit(240));
        for (site, action) in [
            ("ptrace", "kill-self"),
            ("ptrace", "kill-parent"),
            ("ptrace", "kill-target"),
            ("wire", "kill-self"),
            ("wire", "kill-target"),
        ] {
            // Points are many; between them they do the same.
            let (quick, whole) = (site == "wire", format!("restore-{site}-{action}"));
            let sparse =
                Case::new(format!("{whole}/some"), *who, move |bed| Pids::Any.points(bed, site, action, 7)).limit(240);
            let every = Case::new(format!("{whole}/every"), *who, move |bed| Pids::Any.points(bed, site, action, 1))
                .limit(600)
                .full();
            all.push(if quick { sparse } else { sparse.limit(120) });
            all.push(every);
        }
    }
    all
}

/// Which PIDs it is to get.
#[derive(Clone, Copy, PartialEq)]
enum Pids {
    Any,
    Fresh,
}

impl Pids {
    fn asleep(self, bed: &mut Bed) -> Result<Target> {
        let start = match self {
            Pids::Any => Start::program("thr_sync"),
            Pids::Fresh => Start::program("thr_tid").env("DORMOUSE_TEST_FRESH_PIDS", "1"),
        };
        let mut target = start.ready(bed)?;
        target.kill(bed)?;
        Ok(target)
    }

    fn proves(self, bed: &mut Bed, target: &mut Target) -> Result<()> {
        match self {
            Pids::Any => target.restore(bed)?,
            Pids::Fresh => target.restore_fresh(bed)?,
        }
        target.prove(bed).map(drop)
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Pids::Any => &[],
            Pids::Fresh => &["--pids", "fresh"],
        }
    }

    fn phase_fails(self, bed: &mut Bed, fault: &str) -> Result<()> {
        let mut target = self.asleep(bed)?;
        let fired = fails(bed, fault, &target, self.options())?;
        ensure!(fired, "DORMOUSE_FAULT={fault} did not happen");
        self.proves(bed, &mut target)
    }

    fn points(self, bed: &mut Bed, site: &str, action: &str, step: usize) -> Result<()> {
        let mut target = self.asleep(bed)?;
        for n in (1..TOO_MANY).step_by(step) {
            let fault = format!("{site}:{n}:{action}");
            let fired = fails(bed, &fault, &target, self.options());
            if !fired.with_context(|| format!("with DORMOUSE_FAULT={fault}"))? {
                ensure!(n > 1, "{fault} did not happen");
                bed.ctl(&["kill", &target.session])?;
                return self.proves(bed, &mut target);
            }
            bed.log.clear();
        }
        anyhow::bail!("{site}:{TOO_MANY} still happens")
    }
}

/// False if it came too late: the program runs.
fn fails(bed: &mut Bed, fault: &str, target: &Target, options: &[&str]) -> Result<bool> {
    let session = &target.session;
    let before = store::content(bed, session);
    let ran = bed.ctl_fault(fault, &[&["restore", session, "--detach"], options].concat())?;
    if ran.code() == 0 {
        return Ok(false);
    }
    ensure!(ran.code() != 1 && !ran.err.contains("panicked"), "a fault is not a bug: {}", ran.said());
    // Whoever was killed says nothing; who is left says what to do.
    ensure!(ran.code() == 137 || ran.err.contains("; "), "no next step: {}", ran.said());
    let me = std::process::id() as i32;
    let gone = run::until("the end of all that was made", SOON, || {
        bed.reap();
        Ok(proc::children(me).is_empty())
    });
    let left: Vec<_> = proc::descendants(me).into_iter().map(|p| (p, proc::status(p).map(|s| s.comm))).collect();
    gone.with_context(|| format!("left: {left:?}"))?;
    ensure!(store::content(bed, session) == before, "the image changed");
    store::holds(bed, session, &[1])?;
    Ok(true)
}
