//! The filters of all threads of a process. A thread has those of the thread that made it and what it has set itself, one chain: so threads mostly have the
//! same one, or one that begins like another's.
use super::Filter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The filters of each thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    /// Different chains, the oldest filter first in each.
    chains: Vec<Vec<Filter>>,
    /// By TID, which of them. Who is not in it has none.
    of: BTreeMap<i32, usize>,
}

impl Chains {
    /// A thread has this one.
    pub fn add(&mut self, tid: i32, chain: Vec<Filter>) {
        let known = self.chains.iter().position(|c| *c == chain);
        let n = known.unwrap_or_else(|| {
            self.chains.push(chain);
            self.chains.len() - 1
        });
        self.of.insert(tid, n);
    }

    /// A thread's filters, the oldest first.
    pub fn of(&self, tid: i32) -> &[Filter] {
        self.of.get(&tid).and_then(|n| self.chains.get(*n)).map_or(&[], Vec::as_slice)
    }

    /// Whether the kernel, or the agent, has told of this thread.
    pub fn knows(&self, tid: i32) -> bool {
        self.of.contains_key(&tid)
    }

    /// Every filter that any thread has, each once: what they all let through, each does.
    pub fn all(&self) -> Vec<Filter> {
        let mut all: Vec<Filter> = Vec::new();
        for f in self.chains.iter().flatten() {
            if !all.contains(f) {
                all.push(f.clone());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_of_any_thread_counts_once() {
        let [a, b, c] = [1, 2, 3].map(|n| Filter { code: vec![n; 8], flags: 0 });
        let mut chains = Chains::default();
        chains.add(7, vec![a.clone(), b.clone()]);
        chains.add(8, vec![a.clone(), c.clone()]);
        chains.add(9, vec![a.clone(), b.clone()]);
        chains.add(10, Vec::new());
        assert_eq!(chains.all(), [a.clone(), b, c]);
        assert_eq!((chains.of(9), chains.of(10), chains.of(11)), (chains.of(7), &[][..], &[][..]));
        assert_eq!((chains.knows(10), chains.knows(11), chains.chains.len()), (true, false, 3));
        assert_eq!(chains.of(8)[0], a);
    }
}
