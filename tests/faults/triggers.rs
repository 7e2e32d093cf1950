//! A recorder that fails, in each phase, is killed in each, or finds no room: it is said, the program runs on, what is there stays.
use super::storage::in_namespace;
use anyhow::{ensure, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::job::{Line, Mode};
use dormouse_tests::{run, store, unharmed, Bed, Case};
use nix::sys::signal::Signal;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for phase in ["find", "freeze", "observe", "fork", "thaw", "record", "publish"] {
        all.extend(Case::each(&format!("trigger/recorder-killed/{phase}"), move |bed| killed(bed, phase)));
        all.extend(Case::each(&format!("trigger/recorder-fails/{phase}"), move |bed| fails(bed, phase)));
    }
    all.extend(Case::each("trigger/keeps-until-complete", keeps));
    all.extend(Case::each("trigger/disk-full/foreground", |bed| full(bed, Mode::Foreground)));
    all.extend(Case::each("trigger/disk-full/detached", |bed| full(bed, Mode::Detached)));
    all
}

/// By a signal that would have kept it, and by one that would have ended it.
fn killed(bed: &mut Bed, phase: &str) -> Result<()> {
    let options = ["--signal", "USR2", "--signal-exit", "USR1"];
    let line = Line::program(bed, Mode::Foreground, &options, &["mem_anon"])?;
    let mut job = line.fault(&format!("{phase}:1:kill-self")).ready(bed)?;
    for signal in [Signal::SIGUSR2, Signal::SIGUSR1] {
        let before = job.events("not_checkpointed").len();
        // Then there is no fork, and no thaw but after the program's end.
        if signal == Signal::SIGUSR1 && ["fork", "thaw"].contains(&phase) {
            break;
        }
        job.signal(signal)?;
        run::until("the report", LIMIT, || Ok(job.events("not_checkpointed").len() > before))?;
        ensure!(job.said().contains("it was killed before it was done"), "{}", job.said());
        unharmed::but_for_the_documented(job.pid)?;
        ensure!(store::numbers(bed, "job").is_empty(), "there is a checkpoint");
    }
    checkpoint_now(bed)?;
    unharmed::entirely(job.pid)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1])
}

fn fails(bed: &mut Bed, phase: &str) -> Result<()> {
    let line = Line::program(bed, Mode::Foreground, &["--signal", "USR2"], &["mem_anon"])?;
    let mut job = line.fault(&format!("{phase}:1:fail")).ready(bed)?;
    for n in 1..=2 {
        job.signal(Signal::SIGUSR2)?;
        run::until("the report", LIMIT, || Ok(job.events("not_checkpointed").len() >= n))?;
        let said = job.events("not_checkpointed")[n - 1].to_string();
        ensure!(said.contains("Input/output error") && said.contains("remedy"), "{said}");
        unharmed::entirely(job.pid)?;
    }
    checkpoint_now(bed)?;
    job.prove(bed)?;
    store::holds(bed, "job", &[1])
}

/// By ctl, which meets no fault. A thread may still be on its way out of what was broken off: that is refused, and asked again.
fn checkpoint_now(bed: &mut Bed) -> Result<()> {
    run::until("everyone out of a broken-off checkpoint", LIMIT, || {
        let ran = bed.ctl(&["checkpoint", "job"])?;
        if ran.code() == 3 && ran.said().contains("just leaving an earlier checkpoint") {
            return Ok(false);
        }
        ran.expect(0).map(|_| true)
    })?;
    store::made_by(bed, "job", "agent")
}

/// --keep 1 removes the last but one only when the last is there.
fn keeps(bed: &mut Bed) -> Result<()> {
    let line = Line::program(bed, Mode::Foreground, &["--signal", "USR2", "--keep", "1"], &["mem_anon"])?;
    let mut job = line.fault("publish:1:fail").ready(bed)?;
    bed.ctl(&["checkpoint", "job"])?.expect(0)?;
    bed.ctl(&["checkpoint", "job"])?.expect(0)?;
    job.signal(Signal::SIGUSR2)?;
    run::until("the report", LIMIT, || Ok(!job.events("not_checkpointed").is_empty()))?;
    store::holds(bed, "job", &[1, 2])?;
    store::all_made_by(bed, "job", "agent")?;
    bed.ctl(&["checkpoint", "job", "--kill"])?.expect(0)?;
    ensure!(job.end(bed)? == 85, "{}", job.said());
    let mut again = job.restore(bed, &[])?;
    again.signal(Signal::SIGUSR2)?;
    again.made(bed, 4)?;
    store::holds(bed, "job", &[4])?;
    again.prove(bed)
}

/// No room: it is said on launcher's stderr, the program runs on, and with room again the next one is made. The log of a detached
/// session has no room either, and says it then.
fn full(bed: &mut Bed, mode: Mode) -> Result<()> {
    let dir = bed.folder()?;
    let program = bed.stage.program("mem_anon");
    let (launch, err, end) = match mode {
        Mode::Foreground => (
            "$LAUNCHER $OPTIONS 2>$D/err & L=$!; wait_for '[ -e $D/ready ]'; S=$(children $L)",
            "$D/err",
            "wait $L; echo \"ended $?\"",
        ),
        Mode::Detached => (
            "$LAUNCHER --detach $OPTIONS; S=$($CTL --json list | sed -n 's/.*\"supervisor\": \\([0-9]*\\).*/\\1/p'); L=$S",
            "$JOB/log",
            "wait_for '! [ -e $JOB/live.json ]'; echo 'ended 0'",
        ),
    };
    // Each recorder stops before it does anything, so that it is seen to come and go.
    let script = format!(
        "set -u; cd /; D={dir}; JOB=$DORMOUSE_STATE_DIR/sessions/job
         mkdir -p \"$DORMOUSE_STATE_DIR\"; mount -t tmpfs -o size=4m,mode=700 none \"$DORMOUSE_STATE_DIR\" || exit 99
         OPTIONS=\"--quiet --signal USR2 --name job -- {program} --dir $D\"
         wait_for() {{ i=0; until eval \"$1\"; do i=$((i+1)); [ $i -lt 1500 ] || {{ echo \"no $1\"; exit 97; }}; sleep 0.01; done; }}
         children() {{ cat /proc/$1/task/*/children; }}
         stopped() {{ for R in $(children $S); do grep -q 'State:.T ' /proc/$R/status && return; done; return 1; }}
         shot() {{ kill -USR2 $L; wait_for stopped; kill -CONT $R; wait_for '[ $(children $S | wc -w) = 1 ]'; }}
         export DORMOUSE_FAULT=find:1:stop-self
         {launch}
         unset DORMOUSE_FAULT
         wait_for '[ -e $D/ready ]'
         shot; [ -e $JOB/checkpoints/1 ] && echo first
         dd if=/dev/zero of=$DORMOUSE_STATE_DIR/fills bs=4k 2>/dev/null
         shot; shot; $CTL verify job@1 && echo stands
         rm $DORMOUSE_STATE_DIR/fills
         shot; [ -e $JOB/checkpoints/2 ] && $CTL verify job@2 && echo whole
         $CTL --json inspect job@2 | grep -q '\"door\": \"agent\"' && echo by the agent
         wait_for '[ $(grep -c \"No space left\" {err}) = 2 ]'; cat {err} >&2
         : > $D/gate; {end}; head -1 $D/result",
        program = program.display(),
        dir = dir.display(),
    );
    let ran = in_namespace(bed, &script)?.expect(0)?;
    for words in ["first\n", "stands\n", "ended 0\nOK\n", "whole\n", "by the agent\n"] {
        ensure!(ran.out.contains(words), "{words:?} is not in {}", ran.said());
    }
    ensure!(ran.err.contains("cannot checkpoint job") && ran.err.contains("free space"), "{}", ran.err);
    Ok(())
}
