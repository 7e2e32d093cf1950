//! Seccomp, seccomp(2): the filters of a process, and of threads that have others, and strict mode. Each section is there only where there are any.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// One filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Its program: `struct sock_filter`, 8 bytes an instruction.
    pub code: ByteBuf,
    /// SECCOMP_FILTER_FLAG_LOG, as far as it is known.
    pub flags: u32,
}

/// Threads whose filters are not those of their process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Apart {
    /// Every filter that one of them has, once.
    pub filters: Vec<Filter>,
    /// The threads.
    pub threads: Vec<Chain>,
}

/// The filters of such a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Chain {
    /// TID in the innermost PID namespace.
    pub tid: i32,
    /// All that it has, the oldest first: places in [`Apart::filters`].
    pub filters: Vec<u32>,
}

/// Threads in strict mode (SECCOMP_MODE_STRICT), of all processes. They have no filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Strict {
    /// TIDs in the innermost PID namespace.
    pub threads: Vec<i32>,
}

impl Apart {
    /// Adds a thread with these filters.
    pub fn add(&mut self, tid: i32, chain: &[Filter]) {
        let mut place = |f: &Filter| {
            let known = self.filters.iter().position(|g| g == f);
            known.unwrap_or_else(|| {
                self.filters.push(f.clone());
                self.filters.len() - 1
            }) as u32
        };
        let filters = chain.iter().map(&mut place).collect();
        self.threads.push(Chain { tid, filters });
    }

    /// The filters of a thread; None if it names one that is not there.
    pub fn of(&self, chain: &Chain) -> Option<Vec<Filter>> {
        chain.filters.iter().map(|n| self.filters.get(*n as usize).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_what_they_have_in_common() {
        let [a, b] = [1, 2].map(|n| Filter { code: vec![n; 8].into(), flags: 0 });
        let mut apart = Apart::default();
        apart.add(7, std::slice::from_ref(&a));
        apart.add(8, &[a.clone(), b.clone()]);
        apart.add(9, &[]);
        assert_eq!(apart.filters, [a.clone(), b.clone()]);
        assert_eq!(apart.threads.iter().map(|t| apart.of(t).unwrap().len()).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(apart.of(&apart.threads[1]), Some(vec![a, b]));
        assert_eq!(apart.of(&Chain { tid: 7, filters: vec![2] }), None);
    }
}
