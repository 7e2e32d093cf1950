//! Connections to a supervisor or a recorder: short, noted in the block as long as they are open, never from a signal handler.
//!
//! A recorder leaves them out of the image, and a restored program finds /dev/null in their place: what is read from it is an end. So every
//! error and every end means: look at the generation first.
use crate::block::Block;
use crate::os;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest frame that is taken in.
const MAX_FRAME: usize = 64 << 10;
/// Longest path of a socket address, without its NUL.
const MAX_PATH: usize = 107;

/// One connection. Frames as `session::frame` has them: four bytes of length, then JSON.
pub(crate) struct Link {
    fd: Option<OwnedFd>,
    inode: u64,
    block: &'static Block,
}

impl Link {
    /// Takes a socket of ours, which is noted before it is connected.
    pub(crate) fn new(block: &'static Block, fd: OwnedFd) -> io::Result<Link> {
        let file = File::from(fd);
        let inode = file.metadata()?.ino();
        let fd = OwnedFd::from(file);
        if !block.add_conn(fd.as_raw_fd(), inode) {
            return Err(io::Error::other("too many connections to Dormouse are open at once"));
        }
        Ok(Link { fd: Some(fd), inode, block })
    }

    /// Connects to the supervisor of the session in this folder.
    pub(crate) fn supervisor(block: &'static Block, folder: &Path) -> io::Result<Link> {
        let link = Link::new(block, os::socket()?)?;
        let path = folder.join("control");
        if path.as_os_str().len() <= MAX_PATH {
            link.connect(path.as_os_str().as_bytes())?;
        } else {
            let dir = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
            link.connect(format!("/proc/self/fd/{}/control", dir.as_raw_fd()).as_bytes())?;
        }
        Ok(link)
    }

    /// Connects to a recorder that has told its key.
    pub(crate) fn recorder(block: &'static Block, key: u64) -> io::Result<Link> {
        let link = Link::new(block, os::socket()?)?;
        let mut name = vec![0];
        name.extend_from_slice(&wire::recorder_name(key));
        link.connect(&name)?;
        Ok(link)
    }

    fn connect(&self, path: &[u8]) -> io::Result<()> {
        let fd = self.fd();
        os::connect(fd, path)?;
        // Seen from a user namespace of our own, root outside is nobody.
        let (peer, me) = (os::peer_uid(fd)?, os::euid());
        if peer != me && peer != 0 && Some(peer) != overflow_uid() {
            return Err(io::Error::other(format!("the other end is user {peer}'s, and this program is user {me}'s")));
        }
        Ok(())
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        match &self.fd {
            Some(fd) => fd,
            None => unreachable!("it is taken in drop only"),
        }
    }

    pub(crate) fn say(&self, what: &Value) -> io::Result<()> {
        let body = what.to_string().into_bytes();
        let mut all = (body.len() as u32).to_le_bytes().to_vec();
        all.extend_from_slice(&body);
        os::send(self.fd(), &all)
    }

    /// The next frame; None at the end.
    pub(crate) fn hear(&self) -> io::Result<Option<Value>> {
        let mut head = [0; 4];
        if !self.whole(&mut head)? {
            return Ok(None);
        }
        let len = u32::from_le_bytes(head) as usize;
        if len > MAX_FRAME {
            return Err(io::Error::other(format!("an answer of {len} bytes is too long")));
        }
        let mut body = vec![0; len];
        if !self.whole(&mut body)? {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&body)?))
    }

    /// All until the other end closes.
    pub(crate) fn all(&self) -> io::Result<Vec<u8>> {
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match os::read(self.fd(), &mut part)? {
                0 => return Ok(all),
                _ if all.len() > MAX_FRAME => return Err(io::Error::other("its answer is too long")),
                n => all.extend_from_slice(&part[..n]),
            }
        }
    }

    fn whole(&self, into: &mut [u8]) -> io::Result<bool> {
        let mut at = 0;
        while at < into.len() {
            match os::read(self.fd(), &mut into[at..])? {
                0 => return Ok(false),
                n => at += n,
            }
        }
        Ok(true)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Closed first: until then a recorder must know it for ours; afterwards the inode tells that the number is somebody else's.
        self.fd = None;
        self.block.remove_conn(self.inode);
    }
}

fn overflow_uid() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()
}

/// Where this program's session may be: what the block says; what the launcher's environment says; the sessions of the state directory, for a
/// restored program may be another one by now.
pub(crate) fn folders(block: &Block) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    let known = block.folder();
    if !known.is_empty() {
        all.push(OsStr::from_bytes(&known).into());
    }
    let Some(sessions) = state_dir().map(|d| d.join("sessions")) else { return all };
    all.extend(std::env::var_os("DORMOUSE_SESSION").map(|n| sessions.join(n)));
    for entry in std::fs::read_dir(&sessions).into_iter().flatten().flatten() {
        if !all.contains(&entry.path()) {
            all.push(entry.path());
        }
    }
    all
}

/// As `session::StateDir::locate` finds it.
fn state_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("DORMOUSE_STATE_DIR") {
        return Some(dir);
    }
    if os::euid() == 0 {
        return Some("/var/lib/dormouse".into());
    }
    let xdg = var("XDG_STATE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("dormouse"));
    xdg.or_else(|| Some(var("HOME").filter(|p| p.is_absolute())?.join(".local/state/dormouse")))
}
