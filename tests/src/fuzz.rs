//! Chance that can be had again: numbers from a seed, which a failure names and the environment can set (`FUZZ_SEED=N make test ONE=...`).
use anyhow::{Context, Result};
use std::time::{SystemTime, UNIX_EPOCH};

/// A sequence of numbers (splitmix64).
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// So many bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.number() as u8).collect()
    }

    /// Turns one to four bits over.
    pub fn turn(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            if let Some(b) = bytes.get_mut(at) {
                *b ^= 1 << self.below(8);
            }
        }
    }
}

/// Has `rounds` rounds (thirty times as many in `make test-full`), each from a seed of its own, which a failure names. With `FUZZ_SEED` in the
/// environment, the one round of that seed.
pub fn rounds(rounds: usize, mut round: impl FnMut(&mut Rng) -> Result<()>) -> Result<()> {
    let given = std::env::var("FUZZ_SEED").ok().and_then(|s| s.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let first = given.unwrap_or(now << 16);
    let full = if std::env::var_os("FULL").is_some() { 30 } else { 1 };
    let rounds = if given.is_some() { 1 } else { rounds * full };
    for seed in (0..rounds as u64).map(|n| first.wrapping_add(n)) {
        round(&mut Rng::new(seed)).with_context(|| format!("FUZZ_SEED={seed}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again() {
        let numbers = |seed| (0..100).map(|_| Rng::new(seed).number()).collect::<Vec<u64>>();
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(Rng::new(7).number(), Rng::new(8).number());
        let mut rng = Rng::new(1);
        let (mut few, before) = ([false; 5], rng.bytes(40));
        (0..200).for_each(|_| few[rng.below(5)] = true);
        assert_eq!(few, [true; 5]);
        let mut after = before.clone();
        rng.turn(&mut after);
        assert_eq!(before.len(), after.len());
    }

    #[test]
    fn a_failure_names_its_seed() {
        let mut n = 0;
        let failed = rounds(10, |_| {
            n += 1;
            anyhow::ensure!(n < 4, "the fourth");
            Ok(())
        });
        assert!(format!("{:#}", failed.unwrap_err()).starts_with("FUZZ_SEED="));
        assert_eq!(n, 4);
    }
}
