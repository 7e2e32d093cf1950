//! A program that cannot be captured is refused with all the reasons at once, and is none the worse for it.
use anyhow::{ensure, Context, Result};
use dormouse_tests::target::Start;
use dormouse_tests::{store, unharmed, Bed, Case};

pub fn cases() -> Vec<Case> {
    Case::each("six/refused", six)
}

/// Six objects, six lines; `check` and `checkpoint` say the same, in text and in JSON.
fn six(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("six").ready(bed)?;
    let pid = target.pid.to_string();
    let objects = std::fs::read_to_string(target.dir.join("objects"))?;
    let checked = bed.ctl(&["check", "--pid", &pid])?.refused(3, &["cannot checkpoint"])?;
    let tried = bed.ctl(&target.checkpoint_args(&[]))?.refused(3, &["cannot checkpoint"])?;
    let killed = bed.ctl(&target.checkpoint_args(&["--kill"]))?.refused(3, &["cannot checkpoint"])?;
    let lines = |said: &str| {
        said.lines().filter(|l| l.contains("descriptor ") || l.contains("mapping")).map(reason).collect::<Vec<_>>()
    };
    let said = lines(&checked.err);
    ensure!(said.len() == 6, "six objects should be refused in six lines, not {}:\n{}", said.len(), checked.err);
    ensure!(
        said == lines(&tried.err) && said == lines(&killed.err),
        "check and checkpoint disagree:\n{}\n{}",
        checked.err,
        tried.err
    );
    for object in objects.lines() {
        let (kind, which) = object.rsplit_once(' ').context("DIR/objects")?;
        let which = which.trim_start_matches("0x");
        let named = said.iter().filter(|line| {
            line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word.trim_start_matches("0x") == which)
        });
        ensure!(named.count() == 1, "one line should name {kind} {which}:\n{}", checked.err);
    }
    ensure!(said.iter().all(|line| line.contains("; ")), "each line should say what can be done:\n{}", checked.err);
    let json = bed.ctl(&["--json", "check", "--pid", &pid])?.expect(3)?.json()?;
    let reasons = json["error"]["reasons"].as_array().map_or(0, Vec::len);
    ensure!(reasons == 6, "--json should give six reasons, it gives {reasons}: {json}");
    unharmed::entirely(target.pid)?;
    store::holds(bed, &target.session, &[])?;
    target.prove(bed).map(|_| ())
}

/// The reason without what was attempted, which may be said before it on the same line.
fn reason(line: &str) -> String {
    let from = line.find("descriptor ").or(line.find("mapping")).unwrap_or(0);
    line[from..].trim().to_owned()
}
