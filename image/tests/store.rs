//! The store: a checkpoint exists whole or not at all, whatever happens to its writer.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{checkpoint, fill, manifest, name, noise, read_back, snapshot, text};
use dormouse_image::store::{CHECKPOINTS_DIR, INCOMING_PREFIX, PACKS_DIR, SESSIONS_DIR};
use dormouse_image::{Compression, ImageError, PackRef, PackWriter, SessionName, Store};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("a/state")).unwrap();
    (dir, store)
}

fn packs(store: &Store, session: &str) -> usize {
    fs::read_dir(store.session_dir(&name(session)).join(PACKS_DIR)).unwrap().count()
}

fn refs(store: &Store, session: &str, n: u64) -> Vec<PackRef> {
    store.open_checkpoint(&name(session), Some(n)).unwrap().pack_refs().to_vec()
}

#[test]
fn checkpoints_are_read_as_written_and_numbered() {
    let (_dir, store) = open();
    assert_eq!(store.list_sessions().unwrap(), []);
    assert_eq!(checkpoint(&store, "web", &text(1, 3), &[]), 1);
    assert_eq!(checkpoint(&store, "web", &text(2, 4), &[]), 2);
    assert_eq!(checkpoint(&store, "db", &noise(3, 700), &[]), 1);
    assert_eq!(store.list_sessions().unwrap(), [name("db"), name("web")]);
    assert!(read_back(&store, "web", Some(1)).unwrap() == text(1, 3));
    assert!(read_back(&store, "web", None).unwrap() == text(2, 4));
    assert!(read_back(&store, "db", None).unwrap() == noise(3, 700));
    let list = store.list(&name("web")).unwrap();
    assert_eq!(list.iter().map(|c| c.n).collect::<Vec<_>>(), [1, 2]);
    let identity = store.verify(&name("web"), Some(2)).unwrap();
    assert_eq!(*list[1].identity.as_ref().unwrap(), identity);
    let opened = store.open_checkpoint(&name("web"), None).unwrap();
    assert_eq!((opened.n(), opened.bytes()), (2, list[1].bytes));
    assert!(opened.pack(&opened.pack_refs()[0].id).is_some());
    assert!(list[0].created <= list[1].created);
}

#[test]
fn what_is_absent_is_named() {
    let (_dir, store) = open();
    let web = name("web");
    let error = store.open_checkpoint(&web, None).unwrap_err();
    assert_eq!(error.to_string(), "there is no session web");
    assert!(error.is_absent());
    checkpoint(&store, "web", &text(1, 1), &[]);
    checkpoint(&store, "web", &text(2, 1), &[]);
    let error = store.open_checkpoint(&web, Some(7)).unwrap_err();
    assert_eq!(error.to_string(), "session web has no checkpoint 7 (it has 1, 2)");
    assert_eq!(error.advice(), "use web@2 or another that it has");
    store.prune(&web, 0).unwrap();
    let error = store.open_checkpoint(&web, None).unwrap_err();
    assert_eq!(error.to_string(), "session web has no checkpoint");
    assert!(store.remove(&web, 1).unwrap_err().is_absent());
}

#[test]
fn everything_is_private() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 1), &[]);
    let mut todo = vec![store.root().to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = fs::metadata(&path).unwrap();
        let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(meta.mode() & 0o777, wanted, "{}", path.display());
        if meta.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    let sessions = store.root().join(SESSIONS_DIR);
    fs::set_permissions(&sessions, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(store.root()).unwrap();
    assert_eq!(fs::metadata(&sessions).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn the_state_directory_of_another_user_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(12345), None).is_err() {
        println!("skipped: only root can make a folder of another user");
        return;
    }
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, ImageError::WrongOwner { owner: 12345, .. }));
    assert!(error.is_storage());
    assert!(error.advice().contains("--state-dir"));
}

#[test]
fn a_checkpoint_dropped_at_any_step_leaves_the_store_as_it_was() {
    let (_dir, store) = open();
    checkpoint(&store, "old", &text(1, 2), &[]);
    let before = snapshot(store.root());
    for session in ["old", "new"] {
        for step in 0..5 {
            write_until(&store, session, step);
            assert_eq!(snapshot(store.root()), before, "session {session}, step {step}");
        }
    }
}

/// Goes `step` steps towards a checkpoint, then drops it.
fn write_until(store: &Store, session: &str, step: u32) {
    let mut new = store.begin(&name(session)).unwrap();
    if step == 0 {
        return;
    }
    let mut writer = PackWriter::create(&new.pack_path(), Compression::Lz4).unwrap();
    writer.append(&noise(2, 600)).unwrap();
    if step == 1 {
        return;
    }
    let refs = [PackRef::from(&writer.finish().unwrap())];
    match step {
        2 => {}
        3 => new.write_manifest(&manifest(&refs, &[])).unwrap(),
        _ => {
            // A manifest that cannot be read back is not published.
            new.write_manifest(&manifest(&refs, &[])[1..]).unwrap();
            assert!(new.publish().unwrap_err().is_image());
        }
    }
}

#[test]
fn a_publish_that_fails_midway_leaves_the_store_as_it_was() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 2), &[]);
    let session = store.session_dir(&name("web"));
    for folder in [CHECKPOINTS_DIR, PACKS_DIR] {
        let mut new = store.begin(&name("web")).unwrap();
        fill(&mut new, &noise(2, 3), &[]).unwrap();
        // A file where the folder should be.
        fs::rename(session.join(folder), session.join("aside")).unwrap();
        fs::write(session.join(folder), "").unwrap();
        new.publish().unwrap_err();
        fs::remove_file(session.join(folder)).unwrap();
        fs::rename(session.join("aside"), session.join(folder)).unwrap();
        assert_eq!((store.numbers(&name("web")).unwrap(), packs(&store, "web")), (vec![1], 1));
        assert_eq!(fs::read_dir(&session).unwrap().count(), 2);
    }
}

#[test]
fn what_a_dead_writer_left_is_removed_and_a_live_one_is_left_alone() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 1), &[]);
    let session = store.session_dir(&name("web"));
    let dead = session.join(format!("{INCOMING_PREFIX}dead"));
    fs::create_dir_all(dead.join(PACKS_DIR)).unwrap();
    let removed = session.join("checkpoints/.removed-1");
    fs::create_dir_all(&removed).unwrap();
    // Killed between moving its pack and the rename that counts.
    fs::write(session.join(PACKS_DIR).join("0123456789abcdef0123456789abcdef.pack"), "x").unwrap();
    let mut alive = store.begin(&name("web")).unwrap();
    fill(&mut alive, &text(2, 1), &[]).unwrap();
    assert!(!dead.exists() && !removed.exists());
    let other = store.begin(&name("web")).unwrap();
    assert_eq!(store.gc(&name("web")).unwrap(), 0, "no pack goes while one is being written");
    assert!(matches!(store.remove_session(&name("web")), Err(ImageError::Busy { .. })));
    drop(other);
    assert_eq!(alive.publish().unwrap(), 2);
    assert_eq!(packs(&store, "web"), 3);
    assert_eq!(store.gc(&name("web")).unwrap(), 1);
    assert_eq!(packs(&store, "web"), 2);
}

#[test]
fn writers_at_the_same_time_get_numbers_of_their_own() {
    let (_dir, store) = open();
    let mut numbers: Vec<u64> = std::thread::scope(|scope| {
        let write = |seed| checkpoint(&store, "web", &noise(seed, 3), &[]);
        let all: Vec<_> = (0..8).map(|seed| scope.spawn(move || write(seed))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    for n in numbers {
        store.verify(&name("web"), Some(n)).unwrap();
    }
}

#[test]
fn prune_keeps_the_packs_that_others_name() {
    let (_dir, store) = open();
    let web = name("web");
    checkpoint(&store, "web", &text(1, 1), &[]);
    let first = refs(&store, "web", 1);
    checkpoint(&store, "web", &text(2, 1), &first);
    checkpoint(&store, "web", &text(3, 1), &[]);
    assert_eq!(packs(&store, "web"), 3);
    assert_eq!(store.prune(&web, 2).unwrap(), [1]);
    assert_eq!(packs(&store, "web"), 3, "checkpoint 2 names the pack of 1");
    store.verify(&web, Some(2)).unwrap();
    assert_eq!(store.prune(&web, 1).unwrap(), [2]);
    assert_eq!(packs(&store, "web"), 1);
    assert_eq!(store.prune(&web, 1).unwrap(), []);
    store.verify(&web, None).unwrap();
}

#[test]
fn an_open_checkpoint_stays_readable_when_it_is_removed() {
    let (_dir, store) = open();
    checkpoint(&store, "web", &text(1, 2), &[]);
    let opened = store.open_checkpoint(&name("web"), None).unwrap();
    store.remove_session(&name("web")).unwrap();
    assert!(store.numbers(&name("web")).unwrap_err().is_absent());
    assert_eq!(snapshot(store.root()).len(), 1);
    let mut pages = vec![0; 2 * 4096];
    opened.packs()[0].read_pages(0, &mut pages).unwrap();
    assert!(pages == text(1, 2));
}

#[test]
fn numbers_are_never_used_again() {
    let (_dir, store) = open();
    let web = name("web");
    for n in 1..=3 {
        assert_eq!(checkpoint(&store, "web", &text(n, 1), &[]), n);
    }
    store.remove(&web, 3).unwrap();
    store.remove(&web, 2).unwrap();
    assert_eq!(checkpoint(&store, "web", &text(4, 1), &[]), 4);
    store.prune(&web, 0).unwrap();
    assert_eq!(checkpoint(&store, "web", &text(5, 1), &[]), 5);
    assert_eq!(store.numbers(&web).unwrap(), [5]);
    let folder = fs::read_dir(store.session_dir(&web).join(CHECKPOINTS_DIR)).unwrap();
    let left: Vec<_> = folder.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name == "5" || name == ".removed-4"), "{left:?}");
}

#[test]
fn a_missing_or_exchanged_pack_is_named() {
    let (_dir, store) = open();
    let web = name("web");
    checkpoint(&store, "web", &text(1, 1), &[]);
    checkpoint(&store, "web", &text(2, 1), &[]);
    let path = |n| {
        let opened = store.open_checkpoint(&web, Some(n)).unwrap();
        opened.packs()[0].path().to_path_buf()
    };
    let (one, two) = (path(1), path(2));
    fs::copy(&one, &two).unwrap();
    let error = store.open_checkpoint(&web, None).unwrap_err();
    assert!(error.to_string().contains("another pack than the one"), "{error}");
    fs::remove_file(&two).unwrap();
    let error = store.open_checkpoint(&web, None).unwrap_err();
    let id = two.file_stem().unwrap().to_str().unwrap();
    assert!(matches!(&error, ImageError::MissingPack { pack, .. } if pack == id), "{error}");
    let list = store.list(&web).unwrap();
    assert!(list[0].identity.is_ok() && list[1].identity.is_err());
    // A checkpoint that names a pack that is gone is not published.
    let gone = PackRef { id: id.into(), pages: 1, blake3: [0; 32] };
    let mut new = store.begin(&web).unwrap();
    fill(&mut new, &text(3, 1), &[gone]).unwrap();
    assert!(matches!(new.publish(), Err(ImageError::MissingPack { .. })));
    assert_eq!(store.numbers(&web).unwrap(), [1, 2]);
}

#[test]
fn a_damaged_latest_is_not_skipped_and_costs_no_pack() {
    let (_dir, store) = open();
    let web = name("web");
    checkpoint(&store, "web", &text(1, 1), &[]);
    checkpoint(&store, "web", &text(2, 1), &[]);
    let path = store.session_dir(&web).join("checkpoints/2/manifest");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(store.open_checkpoint(&web, None), Err(ImageError::Damaged { .. })));
    assert!(store.verify(&web, None).is_err() && store.verify(&web, Some(1)).is_ok());
    assert_eq!((store.gc(&web).unwrap(), packs(&store, "web")), (0, 2));
    fs::write(&path, "").unwrap();
    assert!(matches!(store.open_checkpoint(&web, None), Err(ImageError::Empty { .. })));
    // It can be removed all the same, and then what only it named goes.
    store.remove(&web, 2).unwrap();
    assert_eq!(packs(&store, "web"), 1);
}

#[test]
fn files_of_others_in_a_session_are_left_alone() {
    let (_dir, store) = open();
    let web = name("web");
    let session = store.session_dir(&web);
    fs::create_dir(&session).unwrap();
    fs::write(session.join("session.json"), "theirs").unwrap();
    fs::create_dir(store.root().join("sessions/.strange")).unwrap();
    let removed = store.root().join("sessions/.removed-dead");
    fs::create_dir(&removed).unwrap();
    drop(store.begin(&web).unwrap());
    checkpoint(&store, "web", &text(1, 1), &[]);
    store.prune(&web, 0).unwrap();
    assert_eq!(fs::read(session.join("session.json")).unwrap(), b"theirs");
    assert!(!removed.exists(), "what a dead remover left goes");
    assert_eq!(store.list_sessions().unwrap(), [web]);
}

/// Set for the child of the test below: the state directory it works in.
const CHILD: &str = "DORMOUSE_IMAGE_TEST_CHILD";

#[test]
fn a_writer_killed_at_any_instant_leaves_whole_checkpoints() {
    if let Some(dir) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&dir));
    }
    let (_dir, store) = open();
    let web = name("web");
    for round in 0..24 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_writer_killed_at_any_instant_leaves_whole_checkpoints"])
            .arg("--nocapture")
            .env(CHILD, store.root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Each round lets it come one line further, and kills it where it then happens to be.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let written = lines.map(Result::unwrap).filter(|line| line.contains("STEP"));
        assert_eq!(written.take(1 + round).count(), 1 + round);
        child.kill().unwrap();
        child.wait().unwrap();
        for n in store.numbers(&web).unwrap_or_default() {
            store.verify(&web, Some(n)).unwrap();
        }
    }
    drop(store.begin(&web).unwrap());
    store.gc(&web).unwrap();
    let session = fs::read_dir(store.session_dir(&web)).unwrap();
    let left: Vec<_> = session.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(packs(&store, "web"), store.numbers(&web).unwrap().len());
}

fn write_for_ever(dir: &Path) -> ! {
    let store = Store::open(dir).unwrap();
    let web = SessionName::new("web").unwrap();
    for seed in 0.. {
        println!("\nSTEP begin");
        let mut new = store.begin(&web).unwrap();
        println!("\nSTEP write");
        fill(&mut new, &noise(seed, 300), &[]).unwrap();
        println!("\nSTEP publish");
        new.publish().unwrap();
        println!("\nSTEP prune");
        store.prune(&web, 2).unwrap();
    }
    unreachable!("killed long before")
}
