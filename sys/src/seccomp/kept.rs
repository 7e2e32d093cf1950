//! What the agent has kept of a program's filters: the kernel tells them only to who has CAP_SYS_ADMIN.
use super::{Filter, INSTRUCTION};
use crate::mem::RemoteMem;
use crate::procfs::status::Status;
use std::fmt;
use std::mem::offset_of;
use wire::agent::{AgentPage, AGENT_FILTERS, AGENT_FILTERS_LEN, AGENT_FILTERS_LOST, AGENT_MAGIC, AGENT_PAGE};

/// What is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The filters, the oldest first.
    pub filters: Vec<Filter>,
    /// How often the program had begun to set one.
    pub begun: u32,
}

/// Why they are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is no agent, or one of another version.
    NoAgent,
    /// One is being set at this moment.
    Setting,
    /// Some could not be kept.
    Lost,
    /// So many are kept, and so many there are: some were set before an execve, or not by the C library's functions.
    Others(u32, u32),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::NoAgent => write!(f, "it has no agent that would have kept its filters"),
            Unknown::Setting => write!(f, "it is setting a filter at this moment"),
            Unknown::Lost => {
                write!(f, "two of its filters were set at the same time, or they were too many for its agent to keep")
            }
            Unknown::Others(kept, there) => write!(
                f,
                "it has {there} filters, and its agent has seen {kept} being set: others were set before its execve, or not by functions of its C library"
            ),
        }
    }
}

/// Reads them. `status`: of the process's first thread.
pub fn kept(pid: i32, status: &Status) -> Result<Kept, Unknown> {
    kept_in(RemoteMem::open(pid).ok().as_ref(), status)
}

/// The same of memory that is open, if it may be.
pub(crate) fn kept_in(mem: Option<&RemoteMem>, status: &Status) -> Result<Kept, Unknown> {
    let there = match (status.seccomp, status.seccomp_filters) {
        (Some(2), n) => n,
        _ => Some(0),
    };
    let page = mem.and_then(|mem| Some((mem, page(mem)?)));
    let Some((mem, page)) = page else {
        return if there == Some(0) { Ok(Kept::default()) } else { Err(Unknown::NoAgent) };
    };
    if page.begun != page.ended {
        return Err(Unknown::Setting);
    }
    if page.flags & AGENT_FILTERS_LOST != 0 {
        return Err(Unknown::Lost);
    }
    let mut bytes = vec![0; page.used.min(AGENT_FILTERS_LEN as u32) as usize];
    mem.read(AGENT_FILTERS, &mut bytes).map_err(|_| Unknown::NoAgent)?;
    let filters = parse(&bytes).ok_or(Unknown::Lost)?;
    // kernels before 5.9 do not tell how many there are
    match there {
        // those of a thread that has ended are not the process's
        Some(0) => Ok(Kept { filters: Vec::new(), begun: page.begun }),
        Some(n) if n as usize == filters.len() => Ok(Kept { filters, begun: page.begun }),
        n => Err(Unknown::Others(filters.len() as u32, n.unwrap_or(0))),
    }
}

/// How often the program has begun to set a filter, as far as its agent has seen.
pub fn begun(pid: i32) -> u32 {
    RemoteMem::open(pid).ok().and_then(|mem| page(&mem)).map_or(0, |p| p.begun)
}

struct Page {
    flags: u32,
    begun: u32,
    ended: u32,
    used: u32,
}

fn page(mem: &RemoteMem) -> Option<Page> {
    let mut b = [0; size_of::<AgentPage>()];
    mem.read(AGENT_PAGE, &mut b).ok()?;
    let word = |at: usize| b[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    if !b.starts_with(&AGENT_MAGIC) || word(offset_of!(AgentPage, version)) != wire::WIRE_VERSION as u32 {
        return None;
    }
    Some(Page {
        flags: word(offset_of!(AgentPage, flags)),
        begun: word(offset_of!(AgentPage, filters_begun)),
        ended: word(offset_of!(AgentPage, filters_ended)),
        used: word(offset_of!(AgentPage, filters_used)),
    })
}

/// Filters one behind the other: instructions and flags (u32 each), the program.
fn parse(mut b: &[u8]) -> Option<Vec<Filter>> {
    let mut all = Vec::new();
    while !b.is_empty() {
        let word = |at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
        let (n, flags) = (word(0)? as usize, word(4)?);
        let end = n.checked_mul(INSTRUCTION)?.checked_add(8)?;
        all.push(Filter { code: b.get(8..end)?.to_vec(), flags });
        b = &b[end..];
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_one_behind_the_other() {
        let mut b = [1u32, 2].map(u32::to_le_bytes).concat();
        b.extend_from_slice(b"eight   ");
        b.extend_from_slice(&[2u32, 0].map(u32::to_le_bytes).concat());
        b.extend_from_slice(b"twice eight     ");
        let all = parse(&b).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((&all[0].code[..], all[0].flags, &all[1].code[..]), (&b"eight   "[..], 2, &b"twice eight     "[..]));
        assert_eq!(parse(&b[..b.len() - 1]), None);
        assert_eq!(parse(&[0xff; 8]), None);
        assert_eq!(parse(&[]), Some(Vec::new()));
    }
}
