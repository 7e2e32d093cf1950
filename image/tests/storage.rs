//! Storage that refuses: full, read-only, no right. The store then holds what it held.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{checkpoint, fill, name, noise, read_back, snapshot, text};
use dormouse_image::{ImageError, Store};

/// Set for the child of a test: a mount point in a mount namespace of its own.
const MOUNTED: &str = "DORMOUSE_IMAGE_TEST_MOUNT";

/// Runs `test` again in a mount namespace with a tmpfs of 4 MiB, or says why it cannot.
fn on_tmpfs(test: &str, body: fn(&Path)) {
    if let Some(dir) = std::env::var_os(MOUNTED) {
        return body(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command.arg("sh").arg(dir.path()).arg(std::env::current_exe().unwrap()).arg(test);
        command
    };
    const MOUNT: &str = "mount -t tmpfs -o size=4m,mode=700 none \"$1\"";
    if !unshare(MOUNT).output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no mount namespace with a tmpfs can be made here");
        return;
    }
    let run = format!("{MOUNT} && exec \"$2\" --exact \"$3\" --nocapture");
    let output = unshare(&run).env(MOUNTED, dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{err}");
}

#[test]
fn a_full_disk_is_storage_and_changes_nothing() {
    on_tmpfs("a_full_disk_is_storage_and_changes_nothing", |dir| {
        let store = Store::open(dir).unwrap();
        checkpoint(&store, "web", &text(1, 2), &[]);
        let before = snapshot(dir);
        // Within the pipeline, in finish, and of a new session.
        for (session, pages) in [("web", 3000), ("web", 1030), ("new", 3000)] {
            let mut new = store.begin(&name(session)).unwrap();
            let error = fill(&mut new, &noise(2, pages), &[]).unwrap_err();
            assert!(error.is_storage(), "{error}");
            assert!(error.to_string().contains("cannot write the page pack"), "{error}");
            assert!(error.advice().starts_with("free space"), "{}", error.advice());
            drop(new);
            assert_eq!(snapshot(dir), before);
        }
        // Full to the last byte: no folder, no manifest.
        let ballast = dir.join("ballast");
        let mut new = store.begin(&name("web")).unwrap();
        drop(std::fs::write(&ballast, vec![1; 8 << 20]));
        let error = new.write_manifest(&common::manifest(&[], &[])).unwrap_err();
        assert!(error.is_storage(), "{error}");
        drop(new);
        assert!(read_back(&store, "web", None).unwrap() == text(1, 2));
        // What helps must work on a full disk.
        store.remove(&name("web"), 1).unwrap();
        assert!(std::fs::read_dir(dir.join("sessions/web/packs")).unwrap().next().is_none());
        std::fs::remove_file(&ballast).unwrap();
        assert_eq!(checkpoint(&store, "web", &text(2, 2), &[]), 2);
    });
}

#[test]
fn a_read_only_store_can_be_read() {
    on_tmpfs("a_read_only_store_can_be_read", |dir| {
        let store = Store::open(dir).unwrap();
        checkpoint(&store, "web", &text(1, 2), &[]);
        let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(dir).status();
        assert!(remount.unwrap().success());
        let store = Store::open(dir).unwrap();
        assert!(read_back(&store, "web", None).unwrap() == text(1, 2));
        store.verify(&name("web"), None).unwrap();
        assert_eq!(store.list(&name("web")).unwrap().len(), 1);
        for error in [
            store.begin(&name("web")).unwrap_err(),
            store.begin(&name("new")).unwrap_err(),
            store.prune(&name("web"), 0).unwrap_err(),
            store.remove_session(&name("web")).unwrap_err(),
            Store::open(&dir.join("below")).unwrap_err(),
        ] {
            assert!(error.is_storage(), "{error}");
            assert!(error.advice().contains("read-only"), "{error}: {}", error.advice());
        }
    });
}

#[test]
fn no_right_is_storage() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    match Store::open(&closed.join("state")) {
        Ok(_) => println!("skipped: root may write everywhere"),
        Err(error) => {
            assert!(error.is_storage(), "{error}");
            assert!(error.to_string().contains("cannot create the folder"), "{error}");
        }
    }
    // A file where the folder should be.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::open(&dir.path().join("file")).unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
}
