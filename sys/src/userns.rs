//! User namespaces, user_namespaces(7): which one a process is in, what that is in, whose it is, and what its maps say.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// NS_GET_PARENT and NS_GET_OWNER_UID, linux/nsfs.h.
const GET_PARENT: libc::c_ulong = 0xb702;
const GET_OWNER: libc::c_ulong = 0xb704;

/// A line of a map: first ID inside, first ID outside (as this process sees that), how many.
pub type Range = (u32, u32, u32);

/// A user namespace.
#[derive(Debug)]
pub struct UserNs(File);

impl UserNs {
    /// That of a process, which this one has to be allowed to look at.
    pub fn of(pid: i32) -> io::Result<UserNs> {
        Ok(UserNs(File::open(format!("/proc/{pid}/ns/user"))?))
    }

    /// Its inode number, which [`crate::procfs::ns`] has, too.
    pub fn id(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.ino())
    }

    /// The one that it is in. EPERM: it is the machine's, or what it is in is neither this process's nor below that.
    pub fn parent(&self) -> io::Result<UserNs> {
        // SAFETY: the request takes no argument.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), GET_PARENT) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made the descriptor for us; nobody else has its number.
        Ok(UserNs(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// Effective user ID of who made it, as this process sees it.
    pub fn owner(&self) -> io::Result<u32> {
        let mut uid: libc::uid_t = 0;
        // SAFETY: the request writes one uid_t.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), GET_OWNER, &raw mut uid) } {
            r if r < 0 => Err(io::Error::last_os_error()),
            _ => Ok(uid),
        }
    }
}

/// The user namespaces around a process, its own first, up to the outermost that this process may know; by their inode numbers.
pub fn around(pid: i32) -> io::Result<Vec<u64>> {
    let mut at = UserNs::of(pid)?;
    let mut all = vec![at.id()?];
    // they nest to 32 levels (user_namespaces(7))
    while let Ok(parent) = at.parent() {
        all.push(parent.id()?);
        at = parent;
    }
    Ok(all)
}

/// What is written into a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maps {
    /// uid_map.
    pub users: Vec<Range>,
    /// gid_map.
    pub groups: Vec<Range>,
    /// setgroups(2) is permitted.
    pub setgroups: bool,
}

/// Maps of the user namespace that a process is in.
pub fn maps(pid: i32) -> io::Result<Maps> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let setgroups = read("setgroups")?.trim() == "allow";
    Ok(Maps { users: parse(&read("uid_map")?)?, groups: parse(&read("gid_map")?)?, setgroups })
}

/// Lines `INSIDE OUTSIDE COUNT`.
fn parse(text: &str) -> io::Result<Vec<Range>> {
    let line = |l: &str| {
        let mut words = l.split_whitespace().map(str::parse);
        let mut word = || words.next()?.ok();
        Some((word()?, word()?, word()?))
    };
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("expected lines of three numbers: {text:?}"));
    text.lines().map(line).collect::<Option<Vec<Range>>>().ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_lines_of_three_numbers() {
        assert_eq!(
            parse("         0       1000          1\n         1     100000      65536\n").unwrap(),
            [(0, 1000, 1), (1, 100000, 65536)]
        );
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("0 0 4294967295\n").unwrap(), [(0, 0, u32::MAX)]);
        assert!(parse("0 0\n").is_err());
        assert!(parse("0 -1 1\n").is_err());
    }

    #[test]
    fn this_process_is_in_one() {
        let own = std::process::id() as i32;
        let id = crate::procfs::ns::read_one(own, crate::procfs::ns::NsKind::User).unwrap();
        assert_eq!(around(own).unwrap()[0], id);
        assert!(!maps(own).unwrap().users.is_empty());
    }
}
