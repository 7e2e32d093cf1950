//! User namespaces, user_namespaces(7).
use serde::{Deserialize, Serialize};

/// A line of a map: first ID inside, first ID outside, how many.
pub type Range = (u32, u32, u32);

/// A user namespace that is in the program's own, and who is in it. IDs of processes, here as everywhere in an image, are those outside; capabilities are those inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Users {
    /// Processes in it: PIDs in the innermost namespace.
    pub members: Vec<i32>,
    /// User, as seen outside, who made it.
    pub owner: u32,
    /// uid_map; empty: none was written.
    pub uid_map: Vec<Range>,
    /// gid_map.
    pub gid_map: Vec<Range>,
    /// /proc/PID/setgroups says `allow`.
    pub setgroups: bool,
}

impl Users {
    /// The ID inside of one outside.
    pub fn inside(map: &[Range], outside: u32) -> Option<u32> {
        let found = map.iter().find(|(_, first, n)| outside >= *first && outside - first < *n);
        found.map(|(inside, first, _)| inside + (outside - first))
    }

    /// Whether each line is a range of IDs, of which none is mapped twice.
    pub fn makes_sense(map: &[Range]) -> bool {
        let ends = |r: &Range| r.2 > 0 && r.0.checked_add(r.2).is_some() && r.1.checked_add(r.2).is_some();
        let apart = |a: u32, b: u32, a_n: u32, b_n: u32| a + a_n <= b || b + b_n <= a;
        map.iter().all(ends)
            && map
                .iter()
                .enumerate()
                .all(|(i, a)| map[..i].iter().all(|b| apart(a.0, b.0, a.2, b.2) && apart(a.1, b.1, a.2, b.2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_looked_up_and_maps_make_sense() {
        let map = [(0, 1000, 1), (1, 100_000, 65536)];
        assert_eq!(Users::inside(&map, 1000), Some(0));
        assert_eq!(Users::inside(&map, 100_004), Some(5));
        assert_eq!(Users::inside(&map, 1001), None);
        assert_eq!(Users::inside(&[(0, 0, u32::MAX)], u32::MAX - 1), Some(u32::MAX - 1));
        assert!(Users::makes_sense(&map) && Users::makes_sense(&[]) && Users::makes_sense(&[(0, 0, u32::MAX)]));
        assert!(!Users::makes_sense(&[(0, 5, 2), (1, 9, 1)]));
        assert!(!Users::makes_sense(&[(0, 5, 2), (7, 6, 1)]));
        assert!(!Users::makes_sense(&[(0, 5, 0)]) && !Users::makes_sense(&[(7, 5, u32::MAX)]));
    }
}
