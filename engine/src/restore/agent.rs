//! The agent's page in a restored program: who its supervisor is now, so that a trigger that comes to the program is passed on to that one.
use super::puppet::Puppet;
use super::{Image, Step};
use crate::{Pids, RestoreOptions};
use std::mem::offset_of;
use sys::program::{Arg::Imm, Program};
use wire::agent::{AgentPage, AGENT_MAGIC, AGENT_PAGE, AGENT_SIGNAL, TRIGGERS};

/// `struct kernel_sigaction`: handler, flags, restorer, mask.
const ACTION: usize = 32;
const SA_RESTORER: u64 = 0x0400_0000;

/// Tells it. Signals that are triggers no longer get the program's own actions back.
pub fn tell(p: &mut Puppet, image: &Image<'_>, o: &RestoreOptions<'_>) -> Step<()> {
    let Some(page) = page(p, image).filter(|_| !image.shares_memory) else { return Ok(()) };
    let word = |at: usize| page[at..at + 4].try_into().map_or(0, i32::from_le_bytes);
    let mut prog = Program::new();
    for i in 0..TRIGGERS {
        let at = offset_of!(AgentPage, triggers) + i * 4;
        let signal = word(at);
        if signal == 0 || o.triggers.contains(&signal) {
            continue;
        }
        p.mem.write(AGENT_PAGE + at as u64, &[0; 4])?;
        if let Some(action) = own_action(image, &page, i) {
            let action = prog.bytes(&action);
            prog.call(libc::SYS_rt_sigaction, &[signal.into(), action, Imm(0), Imm(8)]);
            prog.named(format!("the handler of signal {signal}"));
        }
    }
    // in a private namespace it is the init's child
    let parent = if p.pids == Pids::Private { 1 } else { std::process::id() as i32 };
    let set = |at: usize, n: i32| p.mem.write(AGENT_PAGE + at as u64, &n.to_le_bytes());
    set(offset_of!(AgentPage, parent), parent)?;
    set(offset_of!(AgentPage, program), p.ids.of(image.process.pid))?;
    p.run(&prog).map(drop)
}

/// The page, if it is of this version and the program's own.
fn page(p: &Puppet, image: &Image<'_>) -> Option<Vec<u8>> {
    let mut page = vec![0; size_of::<AgentPage>()];
    p.mem.read(AGENT_PAGE, &mut page).ok()?;
    let word = |at: usize| page[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let ours = page.starts_with(&AGENT_MAGIC)
        && word(offset_of!(AgentPage, version)) == u32::from(wire::WIRE_VERSION)
        && word(offset_of!(AgentPage, program)) == image.process.pid as u32;
    ours.then_some(page)
}

/// What the program has set for a trigger, as the kernel takes it. It comes back from a handler as the agent does.
fn own_action(image: &Image<'_>, page: &[u8], i: usize) -> Option<Vec<u8>> {
    let at = offset_of!(AgentPage, kept) + i * 24;
    let [handler, flags, mask] = [0, 8, 16].map(|k| page[at + k..at + k + 8].try_into().map_or(0, u64::from_le_bytes));
    let agents = (AGENT_SIGNAL as usize - 1) * ACTION;
    // 0: the agent's has been taken away
    let restorer = image.process.sigactions.get(agents + 16..agents + 24).filter(|r| r.iter().any(|b| *b != 0))?;
    let mut action = handler.to_le_bytes().to_vec();
    action.extend_from_slice(&((flags & 0xffff_ffff) | SA_RESTORER).to_le_bytes());
    action.extend_from_slice(restorer);
    action.extend_from_slice(&mask.to_le_bytes());
    Some(action)
}
