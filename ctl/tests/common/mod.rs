//! What the tests of ctl share: a state directory of their own, checkpoints made by the image crate, and ctl itself.
#![allow(dead_code, missing_docs)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image::pack::Compression;
use image::{ManifestWriter, PackRef, PackWriter, SessionName, Store, PAGE_SIZE};
use serde_json::Value;

/// A state directory, removed in the end.
pub struct State {
    pub dir: tempfile::TempDir,
}

/// What ctl did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Exit code and message of a failure, with nothing on stdout.
    pub fn failed(&self, code: i32, stderr: &str) {
        assert_eq!((self.code, self.stderr.as_str(), self.stdout.as_str()), (code, &*format!("{stderr}\n"), ""));
    }

    /// The JSON on stdout, with nothing on stderr.
    pub fn json(&self) -> Value {
        assert_eq!(self.stderr, "");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The error object, whose exit code is the real one.
    pub fn error(&self, kind: &str, code: i32) -> Value {
        let v = self.json();
        assert_eq!(v.as_object().unwrap().keys().collect::<Vec<_>>(), ["error"], "{v}");
        let e = &v["error"];
        assert_eq!((e["kind"].as_str(), e["exit_code"].as_i64()), (Some(kind), Some(code.into())), "{v}");
        assert_eq!(self.code, code);
        keys(e, &["attempted", "exit_code", "kind", "reasons"]);
        for r in e["reasons"].as_array().unwrap() {
            keys(r, &["object", "remedy", "why"]);
        }
        e.clone()
    }
}

/// The documented keys, all of them and no other.
pub fn keys(v: &Value, expected: &[&str]) {
    let have: Vec<&str> = v.as_object().unwrap_or_else(|| panic!("{v}")).keys().map(String::as_str).collect();
    assert_eq!(have, expected);
}

impl State {
    pub fn new() -> State {
        State { dir: tempfile::tempdir().unwrap() }
    }

    /// The state directory; the temporary folder holds other files as well.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn store(&self) -> Store {
        Store::open(&self.path()).unwrap()
    }

    /// Runs ctl with this state directory.
    pub fn ctl<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        self.run(self.command().args(args))
    }

    pub fn command(&self) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ctl"));
        c.env("DORMOUSE_STATE_DIR", self.path()).env_remove("DORMOUSE_FAULT").stdin(Stdio::null());
        c
    }

    pub fn run(&self, c: &mut Command) -> Ran {
        let o = c.output().unwrap();
        Ran {
            code: o.status.code().unwrap_or_else(|| panic!("{c:?} ended by {}", o.status)),
            stdout: String::from_utf8(o.stdout).unwrap(),
            stderr: String::from_utf8(o.stderr).unwrap(),
        }
    }

    /// Publishes a checkpoint of `pages` pages that is right for the store, and means nothing to the engine.
    pub fn publish(&self, name: &str, pages: usize) -> u64 {
        let store = self.store();
        let mut new = store.begin(&SessionName::new(name).unwrap()).unwrap();
        let mut pack = PackWriter::create(&new.pack_path(), Compression::None).unwrap();
        let bytes: Vec<u8> = (0..pages * PAGE_SIZE).map(|i| (i * 7 + i / PAGE_SIZE) as u8).collect();
        pack.append(&bytes).unwrap();
        let info = pack.finish().unwrap();
        let mut manifest = ManifestWriter::new();
        manifest.write_packs(&[PackRef::from(&info)]).unwrap();
        let (bytes, _) = manifest.finish();
        new.write_manifest(&bytes).unwrap();
        new.publish().unwrap()
    }

    pub fn manifest(&self, name: &str, n: u64) -> PathBuf {
        self.path().join("sessions").join(name).join("checkpoints").join(n.to_string()).join("manifest")
    }

    /// The only pack of a session.
    pub fn pack(&self, name: &str) -> PathBuf {
        let packs = self.path().join("sessions").join(name).join("packs");
        let mut all: Vec<PathBuf> = std::fs::read_dir(packs).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

/// Turns one bit of a file over.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}
