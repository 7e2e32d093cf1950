//! What cannot be done: PIDs and names that are none, or not for this; images that are damaged.
use anyhow::{ensure, Result};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{store, unharmed, Bed, Case, Who};
use std::fs;
use std::path::PathBuf;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("pids/none", no_process));
    all.extend(Case::each("pids/not-for-us", not_for_us));
    all.extend(Case::each("names/invalid", invalid_names));
    all.extend(Case::each("names/unknown", unknown_names));
    all.extend(Case::each("names/in-use", name_in_use));
    for (name, _) in DAMAGES {
        all.extend(Case::each(&format!("image/{name}"), move |bed| damaged(bed, name)));
    }
    all.extend(Case::each("image/pack-missing", pack_missing));
    all.extend(Case::each("image/import-damaged", import_damaged));
    all
}

/// Numbers that are no process.
fn no_process(bed: &mut Bed) -> Result<()> {
    let max: i32 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    let free = (2..max).rev().find(|p| !PathBuf::from(format!("/proc/{p}")).exists()).unwrap_or(max);
    for pid in ["0".into(), "-1".into(), "-12345".into(), free.to_string(), i32::MAX.to_string()] {
        let ran = bed.ctl(&["checkpoint", "--pid", &pid, "--name", "x"])?;
        let code = ran.code();
        ensure!(matches!(code, 2..=4), "PID {pid}: exit code {code}\n{}", ran.said());
        ran.refused(code, &["cannot checkpoint", &pid, "; "])?;
        let ran = bed.ctl(&["check", "--pid", &pid])?;
        ensure!(
            ran.code() == code,
            "PID {pid}: checkpoint ends with {code}, check with {}\n{}",
            ran.code(),
            ran.said()
        );
    }
    for pid in ["99999999999", "x", "", "1x"] {
        bed.ctl(&["checkpoint", "--pid", pid, "--name", "x"])?.refused(2, &["--pid"])?;
    }
    bed.ctl(&["checkpoint", "--pid", "1"])?.refused(2, &["--name"])?;
    nothing_made(bed)
}

/// Processes that are there, but not for this.
fn not_for_us(bed: &mut Bed) -> Result<()> {
    let try_it = |bed: &mut Bed, pid: &str, words: &[&str]| -> Result<()> {
        bed.ctl(&["check", "--pid", pid])?.refused(3, words)?;
        bed.ctl(&["checkpoint", "--pid", pid, "--name", "x"])?.refused(3, words)?;
        bed.ctl(&["checkpoint", "--pid", pid, "--name", "x", "--kill"])?.refused(3, words)?;
        nothing_made(bed)
    };
    try_it(bed, "1", &["cannot checkpoint", "PID 1", "init"])?;
    if let Some(kernel) = dormouse_tests::proc::children(2).first() {
        try_it(bed, &kernel.to_string(), &["cannot checkpoint", "kernel thread", "; "])?;
    }
    if bed.who == Who::User && nix::unistd::geteuid().is_root() {
        // Ours is root's.
        let me = std::process::id().to_string();
        try_it(bed, &me, &["cannot checkpoint", "user 0", "; run as user 0 or as root"])?;
    }
    // Itself: a shell that becomes ctl keeps its PID.
    let mut c = bed.command("sh");
    c.args(["-c", "exec \"$0\" checkpoint --pid $$ --name x"]).arg(bed.stage.bin("ctl"));
    bed.run(&mut c)?.refused(3, &["cannot checkpoint", "this very process", "; "])?;
    // A thread is not a process.
    let mut target = Start::program("thr_join").ready(bed)?;
    let thread = fs::read_dir(format!("/proc/{}/task", target.pid))?
        .filter_map(|t| t.ok()?.file_name().into_string().ok())
        .find(|t| *t != target.pid.to_string());
    if let Some(thread) = thread {
        try_it(bed, &thread, &["cannot checkpoint", "thread", &format!("checkpoint PID {}", target.pid)])?;
    }
    target.prove(bed).map(|_| ())
}

fn nothing_made(bed: &mut Bed) -> Result<()> {
    store::holds(bed, "x", &[])?;
    ensure!(!store::session_dir(bed, "x").exists(), "a folder was made for a session that was refused");
    Ok(())
}

fn invalid_names(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("counter").ready(bed)?;
    let pid = target.pid.to_string();
    let long = "n".repeat(300);
    for name in
        ["../x", "", "a/b", "a b", "x\u{1b}[31m", "x\ny", "\u{e4}", ".", "..", "-x", "web@", "web@x", "@1", &long]
    {
        let as_option = format!("--name={name}");
        let escaped: bool = name.chars().any(char::is_control);
        let checks: [(Vec<&str>, bool); 5] = [
            (vec!["checkpoint", "--pid", &pid, &as_option], true),
            (vec!["restore", "--", name], false),
            (vec!["inspect", "--", name], false),
            (vec!["rm", "--", name], false),
            (vec!["kill", "--", name], false),
        ];
        for (args, _) in checks {
            let ran = bed.ctl(&args)?.expect(2)?;
            ensure!(ran.err.contains("name") || ran.err.contains("number"), "{args:?}: {}", ran.err);
            ensure!(
                !escaped || !ran.err.trim_end().chars().any(|c| c.is_control() && c != '\n'),
                "control characters reach the terminal: {:?}",
                ran.err
            );
            ensure!(ran.err.len() < 1000, "a long name is repeated at length");
        }
        if !name.contains('@') {
            let mut c = bed.launcher_command(&[as_option.as_str(), "--", "true"]);
            bed.run(&mut c)?.refused(125, &["name"])?;
        }
    }
    unharmed::entirely(target.pid)?;
    target.prove(bed).map(|_| ())
}

fn unknown_names(bed: &mut Bed) -> Result<()> {
    for args in [
        vec!["checkpoint", "nobody"],
        vec!["restore", "nobody", "--detach"],
        vec!["restore", "nobody@3", "--detach"],
        vec!["inspect", "nobody"],
        vec!["check", "nobody"],
        vec!["verify", "nobody@1"],
        vec!["rm", "nobody"],
        vec!["kill", "nobody"],
        vec!["export", "nobody", "file"],
    ] {
        bed.ctl(&args)?.refused(4, &["cannot ", "nobody", "ctl list"])?;
    }
    let restored = bed.ctl(&["restore", "nobody"])?;
    restored.refused(125, &["cannot restore", "nobody"])?;
    let mut target = Start::program("counter").ready(bed)?;
    target.checkpoint(bed)?;
    let name = format!("{}@7", target.session);
    for verb in ["inspect", "check", "verify", "rm"] {
        bed.ctl(&[verb, &name])?.refused(4, &["cannot ", &name])?;
    }
    // Live sessions are not removed under their program.
    target.prove(bed).map(|_| ())
}

fn name_in_use(bed: &mut Bed) -> Result<()> {
    let mut first = Start::program("counter").door(Door::Launched).ready(bed)?;
    let mut second = Start::program("counter").ready(bed)?;
    let name = first.session.clone();
    bed.ctl(&["checkpoint", "--pid", &second.pid.to_string(), "--name", &name])?
        .refused(3, &["cannot checkpoint", &format!("PID {}", first.pid), "choose another --name"])?;
    let mut c = bed.launcher_command(&["--name", &name, "--", "true"]);
    bed.run(&mut c)?.refused(125, &[&name, &format!("PID {}", first.pid)])?;
    bed.ctl(&["checkpoint", "--pid", &first.pid.to_string(), "--name", "new"])?
        .refused(3, &["live session", &format!("ctl checkpoint {name}")])?;
    first.checkpoint(bed)?;
    bed.ctl(&["restore", &name, "--detach"])?
        .refused(3, &["cannot restore", &format!("PID {}", first.pid), "--as NEW"])?;
    unharmed::entirely(second.pid)?;
    first.prove(bed)?;
    second.prove(bed).map(|_| ())
}

/// What is done to the bytes of a manifest.
type Damage = fn(&mut Vec<u8>);

const DAMAGES: [(&str, Damage); 10] = [
    ("empty", |b| b.clear()),
    ("truncated-header", |b| b.truncate(20)),
    ("truncated-half", |b| b.truncate(b.len() / 2)),
    ("truncated-by-one", |b| b.truncate(b.len() - 1)),
    ("foreign", |b| b[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00")),
    ("bit-flipped-middle", |b| {
        let middle = b.len() / 2;
        b[middle] ^= 0x10
    }),
    ("bit-flipped-end", |b| {
        let last = b.len() - 1;
        b[last] ^= 1
    }),
    ("zeroed", |b| b.fill(0)),
    ("newer-format", |b| header(b, 8, 2)),
    ("other-architecture", |b| header(b, 12, 183)),
];

/// Sets two bytes of the header that every build reads (image/FORMAT.md), and its checksum.
fn header(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    let crc = bytes[..60].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    });
    bytes[60..64].copy_from_slice(&(!crc).to_le_bytes());
}

/// Every verb that reads it says so by name and number, and changes nothing; the checkpoint before it still restores.
fn damaged(bed: &mut Bed, name: &str) -> Result<()> {
    let damage = DAMAGES.iter().find(|(n, _)| *n == name).map(|(_, d)| *d).unwrap_or(|_| ());
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    target.checkpoint(bed)?;
    target.kill(bed)?;
    let session = target.session.clone();
    let manifest = store::session_dir(bed, &session).join("checkpoints/2/manifest");
    let mut bytes = fs::read(&manifest)?;
    damage(&mut bytes);
    fs::write(&manifest, &bytes)?;
    refused_by_all(bed, &session)?;
    // It says what it is, and who wrote it.
    let words: &[&str] = match name {
        "newer-format" => &["2.0", "dormouse 0."],
        "empty" => &["empty"],
        _ => &[],
    };
    bed.ctl(&["verify", &format!("{session}@2")])?.refused(5, words)?;
    bed.ctl(&["restore", &format!("{session}@1"), "--detach"])?.expect(0)?;
    bed.ctl(&["kill", &session])?.expect(0)?;
    Ok(())
}

fn refused_by_all(bed: &mut Bed, session: &str) -> Result<()> {
    let before = store::content(bed, session);
    let second = format!("{session}@2");
    for args in [vec!["verify", &second], vec!["restore", &second, "--detach"]] {
        bed.ctl(&args)?.refused(5, &["cannot ", &second, "; "])?;
    }
    bed.ctl(&["restore", session, "--detach"])?
        .refused(5, &["cannot restore", session, &store::session_dir(bed, session).to_string_lossy(), "; "])?;
    bed.ctl(&["restore", session])?.refused(125, &["cannot restore", session])?;
    ensure!(store::content(bed, session) == before, "a damaged checkpoint was changed by reading it");
    bed.ctl(&["verify", &format!("{session}@1")])?.expect(0)?;
    Ok(())
}

fn pack_missing(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    target.checkpoint(bed)?;
    let packs = store::session_dir(bed, &target.session).join("packs");
    let list = |dir: &PathBuf| -> Result<Vec<PathBuf>> { fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect() };
    let before = list(&packs)?;
    target.kill(bed)?;
    let session = target.session.clone();
    let of_second: Vec<PathBuf> = list(&packs)?.into_iter().filter(|p| !before.contains(p)).collect();
    ensure!(!of_second.is_empty(), "the second checkpoint has no pack of its own");
    let saved: Vec<(PathBuf, Vec<u8>)> =
        of_second.iter().map(|p| Ok((p.clone(), fs::read(p)?))).collect::<Result<_>>()?;
    of_second.iter().try_for_each(fs::remove_file)?;
    refused_by_all(bed, &session)?;
    // A pack with one bit turned over is found too, by verify and by restore.
    for (path, bytes) in &saved {
        let mut bytes = bytes.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(path, bytes)?;
        bed.give(path)?;
    }
    refused_by_all(bed, &session)?;
    for (path, bytes) in &saved {
        fs::write(path, bytes)?;
    }
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}

fn import_damaged(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_anon").door(Door::Launched).ready(bed)?;
    target.kill(bed)?;
    let session = target.session.clone();
    bed.ctl(&["export", &session, "file"])?.expect(0)?;
    let file = bed.dir.join("file");
    let whole = fs::read(&file)?;
    let flip = |at: usize| {
        let mut b = whole.clone();
        b[at] ^= 2;
        b
    };
    let half = whole[..whole.len() / 2].to_vec();
    let bad = [
        vec![],
        half,
        whole[..whole.len() - 1].to_vec(),
        b"not an export at all".to_vec(),
        flip(0),
        flip(whole.len() / 2),
        flip(whole.len() - 1),
    ];
    for (i, bytes) in bad.iter().enumerate() {
        fs::write(&file, bytes)?;
        bed.ctl(&["import", "file", "--name", "copy"])?
            .refused(5, &["cannot import", "; "])
            .map_err(|e| e.context(format!("damage {i}")))?;
        store::holds(bed, "copy", &[])?;
    }
    fs::write(&file, &whole)?;
    bed.ctl(&["import", "file", "--name", "copy"])?.expect(0)?;
    store::holds(bed, "copy", &[1])?;
    target.restore(bed)?;
    target.prove(bed).map(|_| ())
}
