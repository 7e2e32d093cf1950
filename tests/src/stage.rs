//! Where tests live: a folder that every user may enter (the checkout may be below /root, which none may), with copies of
//! the binaries and of the behaviour programs. Made once by the runner, found by its cases by an environment variable.
use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "DORMOUSE_TEST_STAGE";

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Folder of the sources of the behaviour programs.
pub fn sources() -> PathBuf {
    checkout().join("tests/programs")
}

/// The staged folder.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its path; short, as a unix socket's path holds 107 bytes.
    pub path: PathBuf,
}

impl Stage {
    /// The one that the runner made; in a case.
    pub fn given() -> Result<Stage> {
        let path = std::env::var_os(VARIABLE).context("a case is run by the runner")?.into();
        Ok(Stage { path })
    }

    /// The one of a runner, by its PID.
    pub fn of(runner: u32) -> Stage {
        let root = std::env::var_os("DORMOUSE_TEST_DIR").map_or("/var/tmp".into(), PathBuf::from);
        Stage { path: root.join(format!("dmt-{runner}")) }
    }

    /// Makes one: builds the behaviour programs and copies them with launcher, ctl and the examples.
    pub fn make() -> Result<Stage> {
        let profile = profile()?;
        let programs = profile.join("../programs");
        // Another build may be tested: DORMOUSE_TEST_BIN=target/release.
        let bin = std::env::var_os("DORMOUSE_TEST_BIN").map_or(profile, PathBuf::from);
        build_programs(&programs, &bin)?;
        let stage = Stage::of(std::process::id());
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&stage.path)
            .with_context(|| format!("cannot make {}", stage.path.display()))?;
        std::env::set_var(VARIABLE, &stage.path);
        for dir in ["bin", "p", "ex"] {
            fs::create_dir(stage.path.join(dir))?;
        }
        for name in ["launcher", "ctl"] {
            let from = bin.join(name);
            ensure!(
                from.exists(),
                "{} is not there: cargo build -p dormouse-launcher -p dormouse-ctl, or make test",
                from.display()
            );
            fs::copy(&from, stage.bin(name))?;
        }
        copy_all(&programs, &stage.path.join("p"))?;
        for (from, to) in [("libdormouse.so", "libdormouse.so"), ("examples/counter", "counter_rs")] {
            let from = bin.join(from);
            ensure!(from.exists(), "{} is not there: cargo build -p dormouse --lib --examples", from.display());
            fs::copy(&from, stage.program(to))?;
        }
        fs::copy(checkout().join("dormouse/python/dormouse.py"), stage.program("dormouse.py"))?;
        copy_all(&checkout().join("examples"), &stage.path.join("ex"))?;
        open_up(&stage.path)?;
        Ok(stage)
    }

    /// launcher or ctl.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.path.join("bin").join(name)
    }

    /// A behaviour program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join("p").join(name)
    }

    /// A file of examples/.
    pub fn example(&self, name: &str) -> PathBuf {
        self.path.join("ex").join(name)
    }

    /// Takes it away, with all that the cases left.
    pub fn remove(self) {
        crate::hugepages::put_back(&self.path);
        if std::env::var_os("KEEP").is_none() {
            // A folder that stays is a nuisance, not a failure.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Where cargo put the binaries: target/debug, as this test is in target/debug/deps.
fn profile() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    match me.ancestors().nth(2) {
        Some(dir) => Ok(dir.into()),
        None => bail!("{} is not in a target folder", me.display()),
    }
}

fn build_programs(out: &Path, lib: &Path) -> Result<()> {
    let mut make = Command::new("make");
    make.args(["-s", "-j2", "-C"])
        .arg(sources())
        .arg(format!("OUT={}", out.display()))
        .arg(format!("LIB={}", lib.display()));
    // Ours is not make's child in the sense of its job server.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    let done = make.output().context("make is needed to build tests/programs: apt-get install make gcc")?;
    ensure!(done.status.success(), "{make:?} failed:\n{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Everyone may read and run all of it, whatever the umask is.
fn open_up(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => open_up(&path)?,
            false => fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?,
        }
    }
    Ok(())
}
