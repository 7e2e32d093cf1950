//! A case: a name, who runs it, and what it does.
use crate::{Bed, Who};
use anyhow::Result;
use std::time::Duration;

/// Permitted skips: how the case's name begins, and why it may be skipped. A case that ends with [`Skip`] and is not named
/// here has failed. None is about what this user is permitted to do.
pub const PERMITTED_SKIPS: &[(&str, &str)] = &[
    ("mem_names/", "a kernel without CONFIG_ANON_VMA_NAME has no names to keep"),
    ("mem_seal/", "a kernel before 6.10 has no mseal"),
    ("mem_seal.all/", "a kernel before 6.10 has no mseal"),
    ("tree_seal/", "a kernel before 6.10 has no mseal"),
    ("tree_seal.all/", "a kernel before 6.10 has no mseal"),
    ("mem_droppable/", "a kernel before 6.11 has no droppable memory"),
    ("mem_guards", "a kernel before 6.15 has no guards in shared memory"),
    ("mem_pkeys/", "a CPU without protection keys has none"),
    ("thr_pkru", "a CPU without protection keys has none"),
    ("tree_pkeys/", "a CPU without protection keys has none"),
];

/// What a case does.
pub type Body = Box<dyn Fn(&mut Bed) -> Result<()>>;

/// One case.
pub struct Case {
    /// Its name; with who runs it: "mem_anon/restore/user".
    pub name: String,
    /// Who runs it.
    pub who: Who,
    /// How long it may take.
    pub limit: Duration,
    /// Only in `make test-full`.
    pub full: bool,
    /// What it does.
    pub body: Body,
}

impl Case {
    /// A case of half a minute at most.
    pub fn new(name: impl Into<String>, who: Who, body: impl Fn(&mut Bed) -> Result<()> + 'static) -> Case {
        let name = format!("{}/{}", name.into(), who.name());
        Case { name, who, limit: Duration::from_secs(30), full: false, body: Box::new(body) }
    }

    /// The same for everyone that can be tested here.
    pub fn each(name: &str, body: impl Fn(&mut Bed) -> Result<()> + Copy + 'static) -> Vec<Case> {
        Who::all().iter().map(|who| Case::new(name, *who, body)).collect()
    }

    /// The same for everyone, by ptrace and, with `-by-agent` behind its name, by the agent.
    pub fn by_both_doors(name: &str, body: impl Fn(&mut Bed, bool) -> Result<()> + Copy + 'static) -> Vec<Case> {
        let mut all = Case::each(name, move |bed| body(bed, false));
        all.extend(Case::each(&format!("{name}-by-agent"), move |bed| body(bed, true)));
        all
    }

    /// With another time limit, in seconds.
    pub fn limit(self, seconds: u64) -> Case {
        Case { limit: Duration::from_secs(seconds), ..self }
    }

    /// Only in `make test-full`.
    pub fn full(self) -> Case {
        Case { full: true, ..self }
    }
}

/// The case cannot be done here: why.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}
