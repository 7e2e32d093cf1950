//! Storage that is full, read-only or not ours; and two at once on one session.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::run::{self, Ran};
use dormouse_tests::target::{Start, Target};
use dormouse_tests::{store, unharmed, Bed, Case, Who};
use std::os::unix::fs::PermissionsExt;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("storage/full", full));
    all.extend(Case::each("storage/full-from-the-start", full_from_the_start));
    all.extend(Case::each("storage/read-only", read_only));
    all.extend(Case::each("storage/open-to-others", open_to_others));
    if Who::all().contains(&Who::Root) {
        all.push(Case::new("storage/not-ours", Who::User, not_ours));
    }
    all.extend(Case::each("busy/two-checkpoints", two_checkpoints));
    all.extend(Case::each("busy/restore-meanwhile", restore_meanwhile));
    all
}

/// Runs a shell script in a mount namespace of its own, in which `$CTL` is ctl and `$LAUNCHER` launcher. An ordinary user gets a user namespace with it,
/// and the right to mount; `$AS` takes that right away again from what it is put before.
pub fn in_namespace(bed: &mut Bed, script: &str) -> Result<Ran> {
    let root = bed.who == Who::Root;
    let mut c = bed.command("unshare");
    c.arg("--mount").args(if root { &[][..] } else { &["--user", "--map-current-user", "--keep-caps"][..] });
    let without = if root { "" } else { "setpriv --ambient-caps=-all --inh-caps=-all " };
    let of = |name| format!("{without}{}", bed.stage.bin(name).display());
    c.args(["sh", "-c", script]).env("CTL", of("ctl")).env("LAUNCHER", of("launcher")).env("AS", without);
    let (mut child, out, err) = bed.spawn(&mut c)?;
    let status = run::end(&mut child, "unshare", LIMIT)?;
    bed.let_go(&child);
    let ran =
        Ran { command: run::typed(&c), status, out: std::fs::read_to_string(out)?, err: std::fs::read_to_string(err)? };
    bed.log.push(format!("$ {}\n{}", ran.command, ran.said()));
    Ok(ran)
}

/// The way in needs the same namespaces, so the target is started in them too. It is called to its gate from outside.
fn in_full(bed: &mut Bed, prepare: &str, then: &str) -> Result<Ran> {
    let dir = bed.folder()?;
    let program = bed.stage.program("mem_anon");
    // $P and its folder are outside of what is mounted.
    let script = format!(
        "set -u; cd /; mkdir -p \"$DORMOUSE_STATE_DIR\"; mount -t tmpfs -o size=4m,mode=700 none \"$DORMOUSE_STATE_DIR\" || exit 99
         $AS {program} --dir {dir} & P=$!
         i=0; while [ ! -e {dir}/ready ] && [ $i -lt 500 ]; do sleep 0.01; i=$((i+1)); done
         {prepare}
         {then}
         grep -q 'CapEff:.0*$' /proc/$P/status || [ -z \"$AS\" ] || echo privileged
         echo \"traced $(grep -E 'TracerPid|State' /proc/$P/status | tr '\\n\\t' '  ')\"
         : > {dir}/gate; wait $P; echo \"ended $?\"; head -1 {dir}/result; ls -a \"$DORMOUSE_STATE_DIR/sessions/x\" 2>/dev/null; exit 0",
        program = program.display(),
        dir = dir.display()
    );
    let ran = in_namespace(bed, &script)?.expect(0)?;
    ensure!(ran.out.contains("ended 0\nOK\n"), "the target is harmed: {}", ran.said());
    ensure!(!ran.out.contains("privileged"), "the target has capabilities: {}", ran.said());
    ensure!(ran.out.contains("TracerPid: 0"), "the target is traced: {}", ran.said());
    Ok(ran)
}

/// Room for one checkpoint, not for two: the second fails with 7, the first stays whole; with room again it works.
fn full(bed: &mut Bed) -> Result<()> {
    let ran = in_full(
        bed,
        "$CTL checkpoint --pid $P --name x; echo first $?
         dd if=/dev/zero of=$DORMOUSE_STATE_DIR/fills bs=4k 2>/dev/null",
        "$CTL checkpoint x; echo second $?; $CTL checkpoint x --kill; echo third $?
         $CTL verify x@1; echo verify $?; rm $DORMOUSE_STATE_DIR/fills
         $CTL checkpoint x; echo fourth $?; $CTL verify x@2; echo verify $?",
    )?;
    let codes: Vec<&str> = ran
        .out
        .lines()
        .filter(|l| ["first ", "second ", "third ", "fourth ", "verify "].iter().any(|w| l.starts_with(w)))
        .collect();
    ensure!(
        codes == ["first 0", "second 7", "third 7", "verify 0", "fourth 0", "verify 0"],
        "{codes:?}\n{}",
        ran.said()
    );
    ensure!(ran.err.contains("No space left") && ran.err.contains("; "), "{}", ran.err);
    ensure!(!ran.out.lines().any(|l| l.starts_with(".incoming")), "a half-made checkpoint stays: {}", ran.out);
    Ok(())
}

/// No room for anything.
fn full_from_the_start(bed: &mut Bed) -> Result<()> {
    let ran = in_full(
        bed,
        "dd if=/dev/zero of=$DORMOUSE_STATE_DIR/fills bs=4k 2>/dev/null",
        "$CTL checkpoint --pid $P --name x; echo first $?",
    )?;
    ensure!(ran.out.contains("first 7\n") && ran.err.contains("; "), "{}", ran.said());
    Ok(())
}

fn read_only(bed: &mut Bed) -> Result<()> {
    let ran = in_full(
        bed,
        "$CTL checkpoint --pid $P --name x; echo first $?; mount -o remount,ro \"$DORMOUSE_STATE_DIR\" || exit 98",
        "$CTL checkpoint x; echo second $?; $CTL list >/dev/null; echo list $?; $CTL verify x@1; echo verify $?; $CTL rm x@1; echo rm $?",
    )?;
    for words in ["first 0\n", "second 7\n", "list 0\n", "verify 0\n", "rm 7\n"] {
        ensure!(ran.out.contains(words), "{words:?} is not in {}", ran.said());
    }
    ensure!(ran.err.contains("Read-only file system") && ran.err.contains("; "), "{}", ran.err);
    Ok(())
}

fn open_to_others(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    std::fs::write(dir.join("something"), "")?;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
    bed.ctl(&["--state-dir", &dir.to_string_lossy(), "list"])?.refused(7, &["others may enter it", "chmod 700"])?;
    Ok(())
}

/// A state directory of root's.
fn not_ours(bed: &mut Bed) -> Result<()> {
    let dir = bed.folder()?;
    nix::unistd::chown(&dir, Some(0.into()), Some(0.into()))?;
    let mut target = Start::program("counter").ready(bed)?;
    let args = ["--state-dir", &dir.to_string_lossy(), "checkpoint", "--pid", &target.pid.to_string(), "--name", "x"]
        .map(str::to_owned);
    bed.ctl(&args)?.refused(7, &["--state-dir"])?;
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

/// A target of so much memory that its checkpoint takes a while.
fn large(bed: &mut Bed) -> Result<Target> {
    Start::program("heartbeat").args(["--threads", "2", "--mib", "256", "--write"]).ready(bed)
}

/// Two at once: one is done, the other ends with 6 and names the PID of the first; never both, never neither.
fn two_checkpoints(bed: &mut Bed) -> Result<()> {
    let mut target = large(bed)?;
    let args = target.checkpoint_args(&[]);
    let mut first = bed.ctl_command(&args);
    let (mut child, _, _) = bed.spawn(&mut first)?;
    let lock = store::session_dir(bed, &target.session).join("lock");
    run::until("the first one's lock", LIMIT, || {
        Ok(std::fs::read_to_string(&lock).is_ok_and(|s| s.contains(&child.id().to_string()))
            || child.try_wait()?.is_some())
    })?;
    let second = bed.ctl(&args)?;
    ensure!(child.try_wait()?.is_none(), "the first was over before the second began: 256 MiB are too few");
    second.refused(6, &["cannot checkpoint", &format!("PID {}", child.id()), "; "])?;
    let status = run::end(&mut child, "the first checkpoint", LIMIT)?;
    bed.let_go(&child);
    ensure!(status.success(), "the first ended with {status}");
    store::holds(bed, &target.session.clone(), &[1])?;
    unharmed::entirely(target.pid)?;
    bed.ctl(&[&target.session.clone()].map(|s| ["checkpoint".to_owned(), s.clone()]).concat())?.expect(0)?;
    target.result(bed).map(|_| ())
}

/// A restore and a removal while a checkpoint of the same session is made.
fn restore_meanwhile(bed: &mut Bed) -> Result<()> {
    let mut target = large(bed)?;
    target.checkpoint(bed)?;
    let mut first = bed.ctl_command(&["checkpoint", &target.session]);
    let (mut child, _, _) = bed.spawn(&mut first)?;
    let lock = store::session_dir(bed, &target.session).join("lock");
    run::until("the first one's lock", LIMIT, || {
        Ok(std::fs::read_to_string(&lock).is_ok_and(|s| s.contains(&child.id().to_string()))
            || child.try_wait()?.is_some())
    })?;
    let restored = bed.ctl(&["restore", &target.session.clone(), "--detach"])?;
    let code = restored.code();
    ensure!(code == 6 || code == 3, "a restore during a checkpoint: exit code {code}\n{}", restored.said());
    restored.refused(code, &["cannot restore", "PID ", "; "]).context("during a checkpoint")?;
    let status = run::end(&mut child, "the checkpoint", LIMIT)?;
    bed.let_go(&child);
    ensure!(status.success(), "the checkpoint ended with {status}");
    target.result(bed).map(|_| ())
}
