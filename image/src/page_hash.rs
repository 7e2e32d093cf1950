//! A fast hash that finds equal pages, and that the program under checkpoint cannot fool.
//!
//! It is NH, the universal hash of UMAC and VMAC, on 64-bit words, computed twice with a shifted
//! key (Toeplitz). For any two different pages, chosen by anyone who does not know the key, the
//! chance of equal hashes is at most 2^-128. The key is drawn for each sink and leaves it in no
//! form, so no page can be made to pass for another. BLAKE3 would do too, but hashes single
//! pages at 2 GB/s, which made it the slowest part of the recorder; this is ten times as fast.

use std::hash::{BuildHasher, RandomState};

use crate::PAGE_SIZE;

/// 64-bit words of a page.
const WORDS: usize = PAGE_SIZE / 8;

/// Words of the key: those of a page, and the shift of the second hash.
const KEY_WORDS: usize = WORDS + 2;

/// The hash of a page: both results of NH.
pub(crate) type PageHash = [u128; 2];

/// The secret key.
pub(crate) struct PageHasher {
    key: Vec<u64>,
}

impl PageHasher {
    /// A hasher with a key of its own: the standard library's keyed SipHash, whose key the
    /// system's random numbers give, makes as many words of it as are needed.
    pub fn new() -> PageHasher {
        let random = RandomState::new();
        PageHasher { key: (0..KEY_WORDS).map(|i| random.hash_one(i)).collect() }
    }

    /// The hash of a page.
    pub fn hash(&self, page: &[u8]) -> PageHash {
        let (first, second) = (&self.key[..WORDS], &self.key[2..]);
        let (mut one, mut two) = (0u128, 0u128);
        let keys = first.chunks_exact(2).zip(second.chunks_exact(2));
        for (pair, (k, l)) in page.chunks_exact(16).zip(keys) {
            let pair = u128::from_le_bytes(std::array::from_fn(|i| pair[i]));
            let (a, b) = (pair as u64, (pair >> 64) as u64);
            one = one.wrapping_add(product(a.wrapping_add(k[0]), b.wrapping_add(k[1])));
            two = two.wrapping_add(product(a.wrapping_add(l[0]), b.wrapping_add(l[1])));
        }
        [one, two]
    }
}

impl std::fmt::Debug for PageHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageHasher(secret)")
    }
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn pages_that_differ_anywhere_have_different_hashes() {
        let hasher = PageHasher::new();
        let mut page = vec![0u8; PAGE_SIZE];
        let mut seen = HashSet::from([hasher.hash(&page)]);
        for bit in 0..PAGE_SIZE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(hasher.hash(&page)), "bit {bit}");
            page[bit / 8] = 0;
        }
        assert!(!seen.insert(hasher.hash(&page)));
    }

    #[test]
    fn order_counts_and_keys_differ() {
        let hasher = PageHasher::new();
        let page: Vec<u8> = (0..WORDS as u64).flat_map(u64::to_le_bytes).collect();
        let mut other = page.clone();
        // Words exchanged within a pair, and pairs exchanged.
        other[..16].rotate_left(8);
        assert_ne!(hasher.hash(&page), hasher.hash(&other));
        let mut other = page.clone();
        other[..32].rotate_left(16);
        assert_ne!(hasher.hash(&page), hasher.hash(&other));
        assert_ne!(hasher.hash(&page), PageHasher::new().hash(&page));
    }

    #[test]
    fn it_is_nh_as_its_papers_define_it() {
        let hasher = PageHasher { key: (1..=KEY_WORDS as u64).collect() };
        let page: Vec<u8> = (0..WORDS as u64).flat_map(u64::to_le_bytes).collect();
        let nh = |shift: u64| -> u128 {
            let term = |i: u64| u128::from(i + i + 1 + shift) * u128::from(i + 1 + i + 2 + shift);
            (0..WORDS as u64).step_by(2).map(term).sum()
        };
        assert_eq!(hasher.hash(&page), [nh(0), nh(2)]);
    }
}
