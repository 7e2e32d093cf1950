//! The init of a private namespace, between the birth of its processes and its wait for them.
use super::build::retire_init;
use super::Step;
use sys::channel::Channel;
use sys::inject::Layout;
use sys::program::{Arg::Imm, Program};

/// The init of a private namespace, which can still be asked.
pub struct Waiting {
    channel: Channel,
    kept: Vec<i32>,
    layout: Layout,
    reap: wire::Reap,
}

impl Waiting {
    /// `kept`: its descriptors that are ours; `layout`: of its blob.
    pub fn new(channel: Channel, kept: Vec<i32>, layout: Layout, reap: wire::Reap) -> Waiting {
        Waiting { channel, kept, layout, reap }
    }

    /// The next process or thread that is made in its namespace gets this number (pid_namespaces(7)): nobody else makes any.
    pub fn number(&mut self, tid: i32) -> Step<()> {
        let (mut p, text) = (Program::new(), (tid - 1).to_string());
        let path = p.cstr(b"/proc/sys/kernel/ns_last_pid");
        let fd = p.call(libc::SYS_open, &[path, Imm((libc::O_WRONLY | libc::O_CLOEXEC) as u64)]);
        p.named("opening /proc/sys/kernel/ns_last_pid");
        let bytes = p.bytes(text.as_bytes());
        p.call(libc::SYS_write, &[fd.arg(), bytes, Imm(text.len() as u64)]);
        p.named("writing /proc/sys/kernel/ns_last_pid");
        p.call(libc::SYS_close, &[fd.arg()]);
        Ok(self.channel.run_all(&p).map(drop)?)
    }

    /// It lets go of everything, and waits for the program.
    pub fn retire(mut self) -> Step<()> {
        retire_init(&mut self.channel, &self.kept, &self.layout, self.reap)
    }
}
