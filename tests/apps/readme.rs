//! README's quick start, command by command as it stands there, and `make demo`: run with the binaries of this build, in a folder that is laid out
//! as the checkout is after `make`.
use anyhow::{ensure, Context, Result};
use dormouse_tests::{run, stage, Bed, Case};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest that one of these may take.
const LONG: Duration = Duration::from_secs(150);

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("readme/quick-start", quick_start);
    all.extend(Case::each("readme/demo", demo));
    all.into_iter().map(|c| c.limit(180)).collect()
}

/// What a user has after `make`, as far as the quick start goes.
fn after_make(bed: &mut Bed) -> Result<PathBuf> {
    let dir = bed.folder()?;
    fs::create_dir(dir.join("target"))?;
    symlink(bed.stage.path.join("bin"), dir.join("target/release"))?;
    symlink(bed.stage.path.join("ex"), dir.join("examples"))?;
    fs::copy(stage::checkout().join("Makefile"), dir.join("Makefile"))?;
    // `make` says what it would build, and does not: that is done. A target that is not there fails.
    fs::create_dir(dir.join("shims"))?;
    fs::write(dir.join("shims/make"), "#!/bin/sh\nexec /usr/bin/make -n \"$@\"\n")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.join("shims/make"), mode)?;
    Ok(dir)
}

/// Runs it to its end; what it wrote to stdout, and to stderr.
fn run_long(bed: &mut Bed, c: &mut Command) -> Result<(String, String)> {
    let (mut child, out, err) = bed.spawn(c)?;
    bed.who.assert_is("the shell", child.id() as i32)?;
    let status = run::end(&mut child, &run::typed(c), LONG);
    bed.let_go(&child);
    let (out, err) = (fs::read_to_string(out)?, fs::read_to_string(err)?);
    bed.log.push(format!("{out}\n--- stderr:\n{err}"));
    ensure!(status?.success(), "it failed");
    Ok((out, err))
}

/// The commands of the quick start, each a line.
fn commands(readme: &str) -> Result<Vec<String>> {
    let section = readme.split("\n## ").find(|s| s.starts_with("Quick start\n")).context("no quick start in README")?;
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    ensure!(!blocks.is_empty(), "no command block in the quick start");
    let lines = blocks.iter().flat_map(|b| b.lines()).filter(|l| !l.trim().is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// What a line's comment promises of the reply.
fn promised(line: &str) -> Option<usize> {
    let comment = line.split_once("# Request No: ")?.1;
    comment.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Each command of it succeeds, and each reply is the one that is promised behind it; then nothing is left.
fn quick_start(bed: &mut Bed) -> Result<()> {
    let lines = commands(&fs::read_to_string(stage::checkout().join("README.md"))?)?;
    ensure!(lines.len() > 12 && lines.iter().filter(|l| promised(l).is_some()).count() > 4, "only {lines:?}");
    for words in ["make", "launcher ", "ctl checkpoint web", "ctl restore web", "--pid $!", "ctl rm"] {
        ensure!(lines.iter().any(|l| l.starts_with(words) || l.contains(words)), "no {words:?} in {lines:?}");
    }
    let dir = after_make(bed)?;
    // After each line a mark with its number and exit status; `$!` outlives that. A restored server has a place in the file of its own: appended.
    let mut script = "exec >>said\n".to_owned();
    for (i, line) in lines.iter().enumerate() {
        script += &format!("{line}\necho \"@@ {i} $?\"\n");
    }
    for port in ["8181", "8182"] {
        ensure!(script.contains(port), "no port {port} in the quick start");
        script = script.replace(port, &free_port()?.to_string());
    }
    let mut c = bed.command("bash");
    c.args(["-u", "-c", &script]).current_dir(&dir);
    c.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", dir.join("shims").display()));
    let (_, err) = run_long(bed, &mut c)?;
    let out = fs::read_to_string(dir.join("said"))?;
    bed.log.push(out.clone());
    let mut rest = out.as_str();
    for (i, line) in lines.iter().enumerate() {
        let (said, after) =
            rest.split_once(&format!("@@ {i} ")).with_context(|| format!("it did not get to {line}"))?;
        let (status, after) = after.split_once('\n').context("a mark that is cut short")?;
        ensure!(status == "0", "{line}: exit status {status}: {said}{err}");
        if let Some(n) = promised(line) {
            let head = format!("Request No: {n}");
            let paths = said.lines().skip_while(|l| *l != head).skip(1).filter(|l| l.starts_with('/')).count();
            ensure!(paths == n, "{line}: {head} and {n} paths are promised, it says {said:?}");
        }
        rest = after;
    }
    let list = bed.ctl_json(&["list"])?;
    ensure!(list["sessions"].as_array().is_some_and(Vec::is_empty), "sessions are left: {list}");
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// It runs to its last line, and leaves no file.
fn demo(bed: &mut Bed) -> Result<()> {
    let dir = after_make(bed)?;
    let tmp = bed.folder()?;
    let mut c = bed.command("bash");
    c.arg(dir.join("examples/demo.sh")).env("DORMOUSE_DEMO_BIN", dir.join("target/release")).env("TMPDIR", &tmp);
    let (out, _) = run_long(bed, &mut c)?;
    let last = out.lines().last().unwrap_or_default();
    ensure!(last.starts_with("Done. Nothing is left running, and ") && last.ends_with("is removed."), "{last:?}");
    for words in [
        "Request No: 4, paths remembered: /a /b /c /d",
        "Request No: 6, paths remembered: /a /b /cycle3 /cycle4 /cycle5 /cycle6",
        "connection refused: it is gone",
    ] {
        ensure!(out.contains(words), "it does not say {words:?}");
    }
    let left: Vec<_> = entries(&tmp)?;
    ensure!(left.is_empty(), "it has left {left:?}");
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect()
}
