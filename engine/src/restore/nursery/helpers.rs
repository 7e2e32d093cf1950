//! Processes for a while: they bear others, or found their session or group, and then end. family.rs says who needs one.
use super::{number_here, unborn, Nursery};
use crate::restore::beside::{self, How};
use crate::restore::puppet::end;
use crate::restore::{cannot, Fault, Step};
use crate::Pids;
use std::collections::BTreeSet;
use sys::channel::{Channel, Watch};
use sys::inject::Layout;
use sys::program::{Arg::Imm, Program};

/// A process for a while, that bears others or founds their session or group.
pub struct Helper {
    /// PID as seen from here.
    pub here: i32,
    sock: usize,
    /// Who has borne it; None: what bears those without parents.
    parent: Option<usize>,
    /// Where its blob lies.
    layout: Layout,
}

impl Nursery<'_, '_> {
    /// A child of `parent` for a while, which is to bear process `i`. It has the last socket: there is one at a time.
    pub fn helper(&mut self, parent: Option<usize>, i: usize) -> Step<Helper> {
        let (sock, shares) = (self.socks.len() - 1, self.births.with[i]);
        let beside = self.beside.get(&self.tree.all.len()).copied().filter(|_| shares & libc::CLONE_VM != 0);
        let layout = beside.unwrap_or(self.layout_of(parent));
        for pid in self.spare() {
            match self.spawned(parent, pid, sock, How { signal: 0, shares, beside })? {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                r => return Ok(Helper { here: r.map_err(|e| unborn(pid, &e))?.1, sock, parent, layout }),
            }
        }
        Err(no_spare())
    }

    /// A child of `parent` of this number, that stays until it is ended. `signal`: what its parent is sent then.
    pub fn founder(&mut self, parent: Option<usize>, pid: i32, signal: i32) -> Step<Helper> {
        let (sock, layout) = (self.next, self.layout_of(parent));
        self.next += 1;
        let here = self.spawn(parent, pid, sock, How { signal, shares: 0, beside: None })?.1;
        Ok(Helper { here, sock, parent, layout })
    }

    /// Numbers that nothing in the image has, of which some may be taken here.
    pub(super) fn spare(&self) -> Vec<i32> {
        const FROM: i32 = 300;
        const MANY: usize = 1000;
        let mut used: BTreeSet<i32> = self.tree.zombies.iter().flat_map(|z| [z.pid, z.pgid, z.sid]).collect();
        for i in &self.tree.all {
            used.extend(i.threads.iter().map(|t| t.tid).chain([i.process.pgid, i.process.sid]));
        }
        (FROM..).filter(|n| !used.contains(n)).take(MANY).collect()
    }

    /// The conversation with a helper.
    pub fn talk(&self, helper: &Helper) -> Step<Channel> {
        Ok(Channel::watched(self.ours(helper.sock)?, helper.here, Watch::process(helper.here)?)?)
    }

    /// Bears a process as a child of a helper, which has the memory of the one that has borne it.
    pub fn bear_by(&mut self, helper: &Helper, i: usize) -> Step<()> {
        let mut channel = self.talk(helper)?;
        let want = self.want(self.tree.all[i].process.pid);
        let (how, layout) = self.how(i, helper.layout);
        let made = beside::spawn(&mut channel, (helper.here, want), self.socks[i].number, how)?;
        let inner = made.map_err(|e| unborn(want, &e))?;
        let here = if self.pids == Pids::Private { number_here(helper.here, inner)? } else { inner };
        self.deliver(i, (inner, here), helper.parent, layout)
    }

    /// Ends a helper: its children become the reaper's.
    pub fn end_helper(&mut self, helper: Helper) -> Step<()> {
        let status = sys::procfs::status::read(helper.here)?;
        let inner = status.ns_tgid.last().copied().unwrap_or(helper.here);
        end(helper.here);
        let mut p = Program::new();
        let any = libc::__WALL as u64;
        p.call(libc::SYS_wait4, &[inner.into(), Imm(0), Imm(any), Imm(0)]);
        if helper.layout.base != self.layout_of(helper.parent).base {
            // it had its parent's memory
            p.call(libc::SYS_munmap, &[Imm(helper.layout.base), Imm(helper.layout.len)]);
        }
        match (helper.parent, self.base.as_mut()) {
            (Some(i), _) => drop(self.of(i)?.channel.run_all(&p)?),
            (None, Some(base)) => drop(base.channel.run_all(&p)?),
            (None, None) => {}
        }
        Ok(())
    }
}

pub(super) fn no_spare() -> Fault {
    cannot("PIDs", "none is free for a helper", "use --pids private")
}
