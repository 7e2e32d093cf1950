//! What the agent has kept of a program's filters: the kernel tells them only to who has CAP_SYS_ADMIN.
use super::{Chains, Filter, INSTRUCTION};
use crate::mem::RemoteMem;
use crate::procfs;
use std::fmt;
use std::mem::offset_of;
use wire::agent::{AgentPage, AGENT_FILTERS, AGENT_FILTERS_LEN, AGENT_FILTERS_LOST, AGENT_MAGIC, AGENT_PAGE};

/// What is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The filters of each thread.
    pub chains: Chains,
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
    /// So many are kept, and so many has the thread that has the most: some were set before an execve, or not by the C library's functions.
    Others(u32, u32),
    /// So many are kept, and so many has the thread that has the most, but not all threads have them: whose are whose cannot be told.
    Beside(u32, u32),
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
            Unknown::Beside(kept, most) => write!(
                f,
                "its agent has seen {kept} filters being set, and not all of its threads have them ({most} at most): which has which only the kernel could tell"
            ),
        }
    }
}

/// Reads them.
pub fn kept(pid: i32) -> Result<Kept, Unknown> {
    kept_in(RemoteMem::open(pid).ok().as_ref(), pid, false)
}

/// The same of memory that is open, if it may be. `quick`: its first thread has none, and if its agent has seen none either, others are not asked.
pub(crate) fn kept_in(mem: Option<&RemoteMem>, pid: i32, quick: bool) -> Result<Kept, Unknown> {
    let page = mem.and_then(|mem| Some((mem, page(mem)?)));
    let none = quick && page.as_ref().is_some_and(|(_, p)| p.used == 0);
    let counts = if none { Vec::new() } else { counts(pid) };
    let Some((mem, page)) = page else {
        return if counts.iter().all(|c| c.1 == Some(0)) { Ok(Kept::default()) } else { Err(Unknown::NoAgent) };
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
    Ok(Kept { chains: whose(&filters, &counts)?, begun: page.begun })
}

/// How many filters each thread has; None: that is not told (kernels before 5.9). A thread in strict mode has none.
fn counts(pid: i32) -> Vec<(i32, Option<u32>)> {
    let of = |tid: i32| {
        // one that has ended has let go of them
        let s = procfs::status::read_task(pid, tid).ok().filter(|s| !s.state.is_ended())?;
        Some((tid, if s.seccomp == Some(2) { s.seccomp_filters } else { Some(0) }))
    };
    procfs::tasks(pid).unwrap_or_default().into_iter().filter_map(of).collect()
}

/// Which of the filters that were set each thread has: all of them, if each has so many. Which of them a thread has that has others than another only the kernel can tell:
/// one may have been set before an execve, or by a thread that has ended.
fn whose(kept: &[Filter], counts: &[(i32, Option<u32>)]) -> Result<Chains, Unknown> {
    let most = counts.iter().map(|c| c.1.unwrap_or(u32::MAX)).max().unwrap_or(0);
    let mut chains = Chains::default();
    let have = kept.len() as u32;
    match most {
        // those of a thread that has ended are nobody's
        0 => return Ok(chains),
        u32::MAX => return Err(Unknown::Others(have, 0)),
        n if n > have => return Err(Unknown::Others(have, n)),
        n if n < have || counts.iter().any(|c| c.1 != Some(n)) => return Err(Unknown::Beside(have, n)),
        _ => {}
    }
    for (tid, n) in counts {
        chains.add(*tid, kept[..n.unwrap_or(0) as usize].to_vec());
    }
    Ok(chains)
}

/// How often the program has begun to set a filter, as far as its agent has seen. None: it has no agent, or has ended.
pub fn begun(pid: i32) -> Option<u32> {
    RemoteMem::open(pid).ok().and_then(|mem| page(&mem)).map(|p| p.begun)
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

    #[test]
    fn threads_have_all_or_it_is_not_known() {
        let kept = [1, 2].map(|n| Filter { code: vec![n; 8], flags: 0 });
        let chains = whose(&kept, &[(7, Some(2)), (8, Some(2))]).unwrap();
        assert_eq!((chains.of(7), chains.of(8)), (&kept[..], &kept[..]));
        // as if the second had set both, the first none: but it may be another's, of before an execve
        assert_eq!(whose(&kept, &[(7, Some(1)), (8, Some(2)), (9, Some(2))]), Err(Unknown::Beside(2, 2)));
        assert_eq!(whose(&kept, &[(7, Some(0)), (8, Some(0))]), Ok(Chains::default()));
        assert_eq!(whose(&kept, &[(7, Some(1)), (8, Some(1))]), Err(Unknown::Beside(2, 1)));
        assert_eq!(whose(&kept, &[(7, Some(3))]), Err(Unknown::Others(2, 3)));
        assert_eq!(whose(&kept, &[(7, None)]), Err(Unknown::Others(2, 0)));
    }
}
