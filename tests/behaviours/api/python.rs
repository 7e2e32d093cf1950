//! libdormouse as Python programs use it.
use super::*;

pub(super) fn cases() -> Vec<Case> {
    let mut all = Case::each("api/python", python);
    all.extend(Case::each("api/python-hook-timeout", hook_timeout));
    all.extend(Case::each("api/python-session", session));
    all
}

/// Python with a script that finds dormouse.py.
fn script(bed: &Bed, mut c: Command, script: &str) -> Command {
    c.args(["-c", script]).env("PYTHONPATH", bed.stage.path.join("p")).env("PYTHONDONTWRITEBYTECODE", "1");
    c
}

/// As a Python program, which finds the library beside dormouse.py.
const PYTHON: &str = "
import sys, dormouse
buffer = bytearray(b'x' * (1 << 20))
print('dropped', dormouse.drop(buffer) >= (1 << 20) - 8192)
said = []
dormouse.hook('a', before=lambda: said.append('before a'), after=lambda n, why: said.append(f'after a {n} {why}'), restored=lambda g: said.append(f'restored a {g}'))
def veto(): raise RuntimeError('not while I am looking')
number = dormouse.hook('b', before=veto)
try:
    print('vetoed?', dormouse.checkpoint())
except dormouse.Error as e:
    print('vetoed', e.code, e)
dormouse.unhook(number)
with dormouse.critical():
    pass
print('outcome', dormouse.checkpoint(), dormouse.generation(), dormouse.name(), said, flush=True)
print('outcome', dormouse.checkpoint(), dormouse.generation(), dormouse.name(), said, flush=True)
dormouse.keep(buffer)
";

fn python(bed: &mut Bed) -> Result<()> {
    let path = bed.stage.path.join("p");
    let mut c = bed.command("python3");
    c.args(["-c", PYTHON]).env("PYTHONPATH", &path).env("PYTHONDONTWRITEBYTECODE", "1");
    let alone = bed.run(&mut c)?.expect(0)?;
    ensure!(alone.out.contains("dropped True") && alone.out.contains("outcome alone 0 None []"), "{}", alone.said());
    let mut c = bed.command("python3");
    c.args([
        "-c",
        &PYTHON
            .replace("import sys", "import os; os.environ['DORMOUSE_LIB'] = '/nowhere'\nimport sys")
            .replace("dormouse.drop(buffer)", "9e9"),
    ]);
    c.env("PYTHONPATH", bed.dir.join("py")).env("PYTHONDONTWRITEBYTECODE", "1");
    fs::create_dir(bed.dir.join("py"))?;
    fs::copy(path.join("dormouse.py"), bed.dir.join("py/dormouse.py"))?;
    bed.run(&mut c)?.expect(0).map(|ran| ensure_has(&ran.out, "outcome alone 0 None []"))??;
    let mut c = bed.launcher_command(&["--name", "py", "--detach", "--", "python3", "-c", PYTHON]);
    c.env("PYTHONPATH", &path).env("PYTHONDONTWRITEBYTECODE", "1");
    let said = detached(bed, "py", &mut c)?;
    ensure_has(&said, "vetoed 3 cannot checkpoint py: PID ")?;
    ensure_has(&said, "its hook b vetoed the checkpoint: not while I am looking")?;
    ensure_has(&said, "outcome continued 0 py ['before a', 'after a 1 None']")?;
    let said = detached(bed, "py", &mut bed.ctl_command(&["restore", "py@1", "--detach"]))?;
    ensure_has(&said, "outcome restored 1 py ['before a', 'restored a 1']")?;
    ensure_has(&said, "outcome continued 1 py")?;
    store::all_made_by(bed, "py", "agent")
}

/// A hook that waits for what comes later, and a limit that it exceeds; then one that is enough.
const SLOW: &str = "
import dormouse, threading
go = threading.Event()
dormouse.hook('slow', before=go.wait)
dormouse.hook_timeout(1.5)
try:
    print('made', dormouse.checkpoint())
except dormouse.Error as e:
    print('late', e.code, e)
go.set()
dormouse.hook_timeout(10)
print('outcome', dormouse.checkpoint(), flush=True)
";

fn hook_timeout(bed: &mut Bed) -> Result<()> {
    let alone = bed.run(&mut script(bed, bed.command("python3"), SLOW))?.expect(0)?;
    ensure!(alone.out == "made alone\noutcome alone\n", "{}", alone.said());
    let mut c = script(bed, bed.launcher_command(&["--name", "slow", "--detach", "--", "python3"]), SLOW);
    let said = detached(bed, "slow", &mut c)?;
    ensure_has(&said, "late 3 cannot checkpoint slow: PID ")?;
    ensure_has(&said, "its hook slow has not returned within 1.5 s; look at what it waits for, or allow it more time")?;
    ensure!(said.ends_with("outcome continued\n"), "{said}");
    store::holds(bed, "slow", &[1])?;
    store::all_made_by(bed, "slow", "agent")
}

/// Without launcher: it becomes a session by itself.
const SESSION: &str = "
import dormouse
print('first', dormouse.name(), dormouse.checkpoint(), flush=True)
try:
    dormouse.session('')
except dormouse.Error as e:
    print('refused', e.code, e, flush=True)
dormouse.session('itself')
print('then', dormouse.name(), flush=True)
print('outcome', dormouse.checkpoint(), dormouse.generation(), dormouse.name(), flush=True)
";

fn session(bed: &mut Bed) -> Result<()> {
    let mut c = script(bed, bed.command("python3"), SESSION);
    c.env("DORMOUSE_CTL", bed.stage.bin("ctl"));
    dormouse_tests::sys::own_session(&mut c);
    let (mut child, out, err) = bed.spawn(&mut c)?;
    bed.who.assert_is("python3", child.id() as i32)?;
    let status = run::end(&mut child, "python3", LIMIT)?;
    bed.let_go(&child);
    let said = || -> Result<String> { Ok(fs::read_to_string(&out)? + &fs::read_to_string(&err)?) };
    let begin = "first None alone\nrefused 2 cannot be a session: \"\" is no name for one\nthen itself\n";
    ensure!(said()? == format!("{begin}outcome continued 0 itself\n") && status.success(), "{status}: {}", said()?);
    store::holds(bed, "itself", &[1])?;
    store::all_made_by(bed, "itself", "attach")?;
    // its output is that file still, at the place of then
    let told = detached(bed, "itself", &mut bed.ctl_command(&["restore", "itself", "--detach"]))?;
    ensure!(said()?.starts_with(&format!("{begin}outcome restored 1 itself\n")), "{}; its log: {told}", said()?);
    Ok(())
}
