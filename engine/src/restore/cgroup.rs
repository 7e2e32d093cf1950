//! Control groups: each process goes back into its own, of version 2, before it has any memory, which so counts where it did. They are never made, and no limit is
//! touched: where its own is not there, or may not be entered, the process stays where it is born, in that of its parent or of this command, and that is noted.
use super::Image;
use ::image::v1::cgroup::Cgroup;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use sys::procfs::cgroup::{self, Membership};

/// A process is there, and has no memory of its own yet. `own`: those of this command.
pub fn put(here: i32, image: &Image<'_>, own: &[Membership]) -> Option<String> {
    let (wanted, now) = (wanted(image, own)?, v2(&cgroup::read(here).ok()?).to_vec());
    if wanted.path == now {
        return None;
    }
    let put = entrance(&wanted, &image.meta.boot_id).and_then(|file| enter(&file, here));
    put.err().map(|why| said(&wanted.path, &why, &now))
}

/// What would become of that, and of the rest, which is not put back: for a look at what a restore would do, and at one for what is certain.
pub fn notes(image: &Image<'_>, own: &[Membership], foresee: bool) -> Vec<String> {
    let now = v2(own);
    let mut notes = Vec::from_iter(elsewhere(&image.cgroups, own));
    let Some(wanted) = wanted(image, own).filter(|w| foresee && w.path != now) else { return notes };
    let may = |file: PathBuf| match nix::unistd::access(&file, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(e) => Err(in_words(&e.into())),
    };
    let put = entrance(&wanted, &image.meta.boot_id).and_then(may);
    notes.extend(put.err().map(|why| said(&wanted.path, &why, now)));
    notes
}

/// The one of version 2 to go into. The root is nobody's own: who was in it goes where this command is, should a parent be elsewhere.
fn wanted(image: &Image<'_>, own: &[Membership]) -> Option<Cgroup> {
    let was = image.cgroups.iter().find(|c| c.hierarchy.is_empty())?;
    if &was.path[..] != b"/" {
        return Some(was.clone());
    }
    Some(Cgroup { path: v2(own).to_vec().into(), ..Cgroup::default() })
}

/// The file that takes a PID, of a group that is the one.
fn entrance(wanted: &Cgroup, boot: &str) -> Result<PathBuf, String> {
    let folder = cgroup::folder(&wanted.path).ok_or("no mount of cgroup2 here shows it")?;
    let there = std::fs::metadata(&folder).map_err(|e| in_words(&e))?;
    let same_boot = sys::procfs::boot_id().is_ok_and(|b| b == boot);
    if is_another(&wanted.path, same_boot && there.ino() == wanted.inode) {
        return Err("another one has that name now".into());
    }
    // what enters it stands still, and would not be restored
    let frozen = std::fs::read_to_string(folder.join("cgroup.freeze")).is_ok_and(|f| f.trim() == "1");
    if frozen || is_frozen(&folder) {
        return Err("it is frozen (cgroup.freeze)".into());
    }
    Ok(folder.join("cgroup.procs"))
}

/// It, or one above it, is frozen.
fn is_frozen(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("cgroup.events")).is_ok_and(|e| e.lines().any(|l| l == "frozen 1"))
}

/// Scopes are made for one login, terminal or command by systemd, and their names used again: one that is not known to be the very same is another's.
fn is_another(path: &[u8], same: bool) -> bool {
    !same && path.ends_with(b".scope")
}

fn enter(file: &Path, pid: i32) -> Result<(), String> {
    let mut f = std::fs::OpenOptions::new().write(true).open(file).map_err(|e| in_words(&e))?;
    f.write_all(format!("{pid}\n").as_bytes()).map_err(|e| in_words(&e))
}

/// Why not (cgroup-v2.rst).
fn in_words(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => "it is gone".into(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            format!("you may not put a process into it, or not out of this command's ({e})")
        }
        Some(libc::EBUSY) => format!("it gives controllers to groups below it, and takes no processes ({e})"),
        Some(libc::EOPNOTSUPP) => format!("it is threaded, or below a threaded one ({e})"),
        _ => e.to_string(),
    }
}

fn said(path: &[u8], why: &str, now: &[u8]) -> String {
    format!("control group {}: {why}; it is in {} instead", shown(path), shown(now))
}

/// The hierarchies of version 1 in which it was not where this command is.
fn elsewhere(was: &[Cgroup], own: &[Membership]) -> Option<String> {
    let differs = |c: &&Cgroup| {
        let there = own.iter().find(|m| m.hierarchy == c.hierarchy[..]);
        !c.hierarchy.is_empty() && &c.path[..] != b"/" && there.is_none_or(|m| m.path != c.path[..])
    };
    let all: Vec<String> =
        was.iter().filter(differs).map(|c| format!("{} ({})", shown(&c.path), shown(&c.hierarchy))).collect();
    let why = "those of version 1 are not put back; it is in this command's instead";
    (!all.is_empty()).then(|| format!("control groups {}: {why}", all.join(", ")))
}

/// The path in version 2.
fn v2(all: &[Membership]) -> &[u8] {
    all.iter().find(|m| m.hierarchy.is_empty()).map(|m| &m.path[..]).unwrap_or_default()
}

fn shown(bytes: &[u8]) -> std::path::Display<'_> {
    Path::new(OsStr::from_bytes(bytes)).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(hierarchy: &str, path: &str) -> Cgroup {
        Cgroup { hierarchy: hierarchy.as_bytes().to_vec().into(), path: path.as_bytes().to_vec().into(), inode: 0 }
    }

    #[test]
    fn groups_of_version_1_are_named_where_they_differ() {
        let was = [group("memory", "/job"), group("cpu", "/"), group("pids", "/x"), group("", "/y")];
        let own = |memory: &str| {
            let one = |(h, p): (&str, &str)| Membership { hierarchy: h.into(), path: p.into() };
            [("memory", memory), ("cpu", "/other"), ("pids", "/x"), ("", "/z")].map(one).to_vec()
        };
        assert_eq!(elsewhere(&was, &own("/job")), None);
        let said = elsewhere(&was, &own("/")).unwrap();
        assert!(said.starts_with("control groups /job (memory): those of version 1 are not put back"), "{said}");
        assert!(elsewhere(&was, &own("/job")[1..]).unwrap().contains("/job (memory)"));
    }

    #[test]
    fn a_scope_is_the_same_one_or_none() {
        assert!(is_another(b"/user.slice/session-3.scope", false));
        assert!(!is_another(b"/user.slice/session-3.scope", true));
        assert!(!is_another(b"/jobs/3", false));
    }

    #[test]
    fn what_stands_in_the_way_is_said_in_words() {
        let said = |e: i32| in_words(&std::io::Error::from_raw_os_error(e));
        assert_eq!(said(libc::ENOENT), "it is gone");
        assert!(said(libc::EACCES).starts_with("you may not put a process into it"));
        assert!(said(libc::EBUSY).contains("takes no processes"));
        assert!(said(libc::EOPNOTSUPP).contains("threaded"));
    }
}
