//! The state directory: where it is, that it is ours alone, and the folders of sessions in it.
use crate::errors::storage;
use crate::{store_calls, Result};
use engine::{Error, Kind};
use image::{SessionName, Store};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names the state directory; a launched program has it, so that it and what it starts find the same.
pub(crate) const ENV_STATE_DIR: &str = "DORMOUSE_STATE_DIR";

/// An opened state directory: absolute, 0700, owned by the user.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Finds and opens it, making it if it is not there: `given` (--state-dir), else DORMOUSE_STATE_DIR, else
    /// /var/lib/dormouse for root, else $XDG_STATE_HOME/dormouse, else ~/.local/state/dormouse.
    pub fn resolve(given: Option<&Path>) -> Result<StateDir> {
        Self::open(&Self::locate(given)?)
    }

    /// Only finds it: nothing is made or checked.
    pub fn locate(given: Option<&Path>) -> Result<PathBuf> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(path) = given.map(Path::to_path_buf).or_else(|| var(ENV_STATE_DIR)) {
            if path.as_os_str().is_empty() {
                return Err(Error::new(
                    Kind::Usage,
                    "open the state directory",
                    "--state-dir",
                    "it is empty",
                    "name a folder",
                ));
            }
            return Ok(path);
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/dormouse"));
        }
        // The XDG rule: a relative path there is to be ignored.
        if let Some(xdg) = var("XDG_STATE_HOME").filter(|p| p.is_absolute()) {
            return Ok(xdg.join("dormouse"));
        }
        if let Some(home) = var("HOME").filter(|p| p.is_absolute()) {
            return Ok(home.join(".local/state/dormouse"));
        }
        Err(Error::new(
            Kind::Usage,
            "find the state directory",
            "environment",
            "neither XDG_STATE_HOME nor HOME is set",
            "pass --state-dir DIR or set DORMOUSE_STATE_DIR",
        ))
    }

    /// Opens the one at `path`, making it if it is not there.
    pub fn open(path: &Path) -> Result<StateDir> {
        const DOING: &str = "open the state directory";
        make_private(path).map_err(|e| storage(DOING, path, &e))?;
        let path = fs::canonicalize(path).map_err(|e| storage(DOING, path, &e))?;
        let meta = fs::metadata(&path).map_err(|e| storage(DOING, &path, &e))?;
        let me = nix::unistd::geteuid().as_raw();
        if meta.uid() != me {
            return Err(Error::new(
                Kind::Storage,
                DOING,
                path.display().to_string(),
                format!("it belongs to user {}, not to user {me} who runs this", meta.uid()),
                "run this as that user, or choose another folder with --state-dir",
            ));
        }
        let empty = || fs::read_dir(&path).is_ok_and(|mut d| d.next().is_none());
        if meta.mode() & 0o077 != 0 && empty() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|e| storage(DOING, &path, &e))?;
        } else if meta.mode() & 0o077 != 0 {
            // A folder that was there before us is not silently closed to others: it may be someone's home.
            return Err(Error::new(
                Kind::Storage,
                DOING,
                path.display().to_string(),
                format!("others may enter it (mode {:04o}), and images hold secrets", meta.mode() & 0o7777),
                format!("chmod 700 {}, or choose another folder with --state-dir", path.display()),
            ));
        }
        let state = StateDir { path };
        make_private(&state.sessions()).map_err(|e| storage(DOING, &state.sessions(), &e))?;
        Ok(state)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store in it.
    pub fn store(&self) -> Result<Store> {
        store_calls::open(&self.path)
    }

    /// The folder that holds a folder for each session.
    pub fn sessions(&self) -> PathBuf {
        self.path.join("sessions")
    }

    /// The session's folder; it need not exist.
    pub fn session(&self, name: &SessionName) -> PathBuf {
        self.sessions().join(name.as_str())
    }

    /// The session's folder, made if it is not there.
    pub(crate) fn make_session(&self, name: &SessionName) -> Result<PathBuf> {
        let dir = self.session(name);
        make_private(&dir).map_err(|e| storage(format!("make the folder of session {name}"), &dir, &e))?;
        Ok(dir)
    }

    /// The session's log file.
    pub fn log(&self, name: &SessionName) -> PathBuf {
        self.session(name).join("log")
    }
}

/// Makes `path` and what is missing above it; what it makes is 0700 whatever the umask says.
fn make_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Opens the log for appending, 0600.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|e| storage("open the log", path, &e))
}

/// Writes a file whole or not at all, 0600. Not synced: what it says does not outlive a reboot anyway.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(format!(".{}", std::process::id()));
    let tmp = PathBuf::from(tmp);
    let written = (|| {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        io::Write::write_all(&mut f, bytes)?;
        fs::rename(&tmp, path)
    })();
    if written.is_err() {
        // Already failing; a leftover temporary file is the lesser news.
        let _ = fs::remove_file(&tmp);
    }
    written
}
