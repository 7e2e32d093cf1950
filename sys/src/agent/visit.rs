//! What each thread is asked as it comes in: calls that it makes at once, so that it need not be woken for them.
use super::quiesce::Quiesced;
use crate::channel::Channel;
use crate::mem::RemoteMem;
use crate::program::Program;
use crate::tracer::VISIT_BUF;
use crate::{Error, Result};
use std::collections::BTreeMap;
use wire::agent::{VisitAnswer, ARRIVED_VISITED, OP_VISIT};

/// What the threads' calls gave, by TID: their results, and their buffer.
pub type Visited = BTreeMap<i32, (Vec<i64>, Vec<u8>)>;

/// Is told of each thread as it has come in: from then on it does nothing but what it is told to.
pub type Heed<'a> = dyn FnMut(i32) + 'a;

/// What is asked of each thread as it comes in.
pub struct Visit<'a> {
    /// The calls that it makes, if any, at once.
    pub calls: Option<&'a Program>,
    /// Is told of it then.
    pub heed: &'a mut Heed<'a>,
}

/// How many calls each makes, and where their answers will be.
#[derive(Debug)]
pub(super) struct Answers {
    ncalls: usize,
    at: VisitAnswer,
}

impl Answers {
    /// Hands the calls to the serving thread; None if there are more threads than it has room for. An error if there is no such thread any more.
    pub fn prepare(channel: &mut Channel, calls: &Program) -> Result<Option<Answers>> {
        let mut payload = (calls.len() as u32).to_le_bytes().to_vec();
        payload.extend_from_slice(&(VISIT_BUF as u32).to_le_bytes());
        payload.extend_from_slice(&calls.encode_calls());
        let a = match channel.ask(OP_VISIT, &payload) {
            Err(e @ Error::Died { .. }) => return Err(e),
            a => a.unwrap_or_default(),
        };
        let word = |i: usize| a.get(i..i + 8)?.try_into().ok().map(u64::from_le_bytes);
        let at = word(0).zip(word(8)).map(|(results, buf)| VisitAnswer { results, buf });
        Ok(at.map(|at| Answers { ncalls: calls.len(), at }))
    }
}

impl Quiesced {
    /// What those that were visited said. To be read before anything else is asked of the program.
    pub fn visited(&self) -> Result<Visited> {
        let Some(v) = &self.answers else { return Ok(Visited::new()) };
        let slots = self.arrived.values().map(|a| a.slot + 1).max().unwrap_or(0).max(0) as usize;
        let mem = RemoteMem::open(self.pid)?;
        let (mut results, mut bufs) = (vec![0; slots * v.ncalls * 8], vec![0; slots * VISIT_BUF as usize]);
        mem.read(v.at.results, &mut results)?;
        mem.read(v.at.buf, &mut bufs)?;
        let of = |all: &[u8], len: usize, slot: usize| all[slot * len..(slot + 1) * len].to_vec();
        let word = |b: &[u8]| b.try_into().map_or(0, i64::from_le_bytes);
        let answered = self.arrived.iter().filter(|(_, a)| a.slot >= 0 && a.flags & ARRIVED_VISITED != 0);
        Ok(answered
            .map(|(tid, a)| {
                let slot = a.slot as usize;
                let r = of(&results, v.ncalls * 8, slot).chunks_exact(8).map(word).collect();
                (*tid, (r, of(&bufs, VISIT_BUF as usize, slot)))
            })
            .collect())
    }
}
