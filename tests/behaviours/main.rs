//! What must be kept: every behaviour program through every mode ([`matrix`]), and what takes more than a program.
mod agent;
mod api;
mod calls;
mod cgroup;
mod clock;
mod clones;
mod daemon;
mod doors;
mod external;
mod few_rights;
mod fresh;
mod hugetlb;
mod invisible;
mod kinds;
mod leader;
mod matrix;
mod musl;
mod newcomer;
mod own_trigger;
mod ptys;
mod refusal;
mod resume;
mod rights;
mod seccomp;
mod seccomp_strict;
mod sessions;
mod strict;
mod sysv;
mod terminal;
mod trees;
mod triggers;
mod triggers_restored;
mod userns;
mod vdso;

use dormouse_tests::stage::Stage;
use dormouse_tests::{runner, Case};

fn main() -> std::process::ExitCode {
    runner::main(cases)
}

fn cases(stage: &Stage) -> anyhow::Result<Vec<Case>> {
    let mut all = matrix::cases(stage)?;
    all.extend(api::cases());
    all.extend(agent::cases(stage)?);
    all.extend(calls::cases());
    all.extend(cgroup::cases());
    all.extend(clock::cases());
    all.extend(daemon::cases());
    all.extend(doors::cases());
    all.extend(external::cases());
    all.extend(few_rights::cases());
    all.extend(fresh::cases());
    all.extend(hugetlb::cases());
    all.extend(invisible::cases());
    all.extend(kinds::cases());
    all.extend(leader::cases());
    all.extend(clones::cases());
    all.extend(musl::cases());
    all.extend(newcomer::cases());
    all.extend(own_trigger::cases(stage)?);
    all.extend(ptys::cases());
    all.extend(refusal::cases());
    all.extend(resume::cases());
    all.extend(rights::cases());
    all.extend(seccomp::cases());
    all.extend(seccomp_strict::cases());
    all.extend(sessions::cases());
    all.extend(strict::cases());
    all.extend(sysv::cases());
    all.extend(terminal::cases());
    all.extend(trees::cases());
    all.extend(triggers::cases());
    all.extend(triggers_restored::cases());
    all.extend(userns::cases());
    all.extend(vdso::cases());
    all.sort_by(|a, b| a.name.cmp(&b.name));
    runner::no_two_alike(&all)?;
    Ok(all)
}
