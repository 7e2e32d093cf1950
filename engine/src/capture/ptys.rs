//! What pseudo terminals are, as far as a copy of the descriptor must be asked.
use super::files::{FileView, Look};
use super::Step;
use sys::channel::Channel;
use sys::program::Program;

/// An end of a pseudo terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PtyView {
    /// N of /dev/pts/N.
    pub number: u32,
    /// It is the master.
    pub master: bool,
    /// Of a slave: it was hung up.
    pub hung_up: bool,
    /// Line discipline.
    pub discipline: i32,
    /// Of a master in packet mode: a status waits to be read.
    pub status_waits: bool,
    /// Of a master: its slave is open, or was.
    pub opened: bool,
    /// Bytes that can be read.
    pub readable: usize,
}

const PTMX: (u32, u32) = (5, 2);
const TTY: (u32, u32) = (5, 0);
/// Where `struct termios2` has c_line.
const LINE: usize = 16;

/// Notes which open files are ends of pseudo terminals.
pub(super) fn look_at(look: &mut dyn Look, frozen: bool, views: &mut Vec<FileView>) -> Step<()> {
    if look.is_blind() {
        return Ok(());
    }
    let mut closed = Vec::new();
    for v in views.iter_mut().filter(|v| is_end(v)) {
        let fd = match look.copy(v.first_fd()) {
            Err(e) if !frozen && e.errno() == Some(libc::EBADF) => {
                closed.push(v.first_fd());
                continue;
            }
            fd => fd?,
        };
        let (device, polled) = (sys::pty::device(&fd), sys::pty::polled(&fd).unwrap_or(0));
        let Some(number) = number(v, device.as_ref().ok().copied()) else { continue };
        v.pty = Some(PtyView {
            number,
            master: v.info.tty_index.is_some(),
            hung_up: device.is_err(),
            discipline: sys::tty::get(&fd).map_or(0, |t| t.termios[LINE].into()),
            status_waits: polled & libc::POLLPRI != 0,
            opened: polled & libc::POLLHUP != 0,
            readable: sys::pty::readable(&fd).unwrap_or(0),
        });
    }
    views.retain(|v| !closed.contains(&v.first_fd()));
    Ok(())
}

/// Close-on-exec as it is. An open file that TIOCGPTPEER has made with O_CLOEXEC has that among its flags, and fdinfo says it of each descriptor.
pub(super) fn ask_close_on_exec(inside: &mut Channel, views: &mut [FileView]) -> Step<()> {
    let slave = |v: &FileView| rdev(v).is_some_and(|d| d.0 == sys::pty::SLAVE_MAJOR);
    let mut said: Vec<&mut (i32, bool)> =
        views.iter_mut().filter(|v| slave(v)).flat_map(|v| &mut v.fds).filter(|fd| fd.1).collect();
    let mut p = Program::new();
    let asked: Vec<_> = said.iter().map(|fd| p.call(libc::SYS_fcntl, &[fd.0.into(), libc::F_GETFD.into()])).collect();
    if !p.is_empty() {
        let r = inside.run(&p)?;
        said.iter_mut().zip(asked).for_each(|(fd, c)| fd.1 = r.raw(c) & i64::from(libc::FD_CLOEXEC) != 0);
    }
    Ok(())
}

fn rdev(v: &FileView) -> Option<(u32, u32)> {
    let s = v.stat.as_ref().filter(|s| s.file_type() == libc::S_IFCHR)?;
    Some((s.rdev.major, s.rdev.minor))
}

/// By its device; what was opened with O_PATH is none.
fn is_end(v: &FileView) -> bool {
    let end = rdev(v).is_some_and(|d| d == PTMX || d == TTY || d.0 == sys::pty::SLAVE_MAJOR);
    end && v.info.flags & libc::O_PATH as u32 == 0
}

fn number(v: &FileView, terminal: Option<(u32, u32)>) -> Option<u32> {
    let slave = |d: (u32, u32)| (d.0 == sys::pty::SLAVE_MAJOR).then_some(d.1);
    match rdev(v)? {
        PTMX => v.info.tty_index,
        TTY => slave(terminal?),
        own => slave(own),
    }
}
