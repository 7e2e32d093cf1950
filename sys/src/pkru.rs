//! What a thread may do with memory by its protection keys: PKRU, a register in its extended state (Intel SDM volume 3, 4.6.2).

/// Its component of the extended state, by the number of its bit.
pub const COMPONENT: u32 = 9;
/// Offset of the bits that say which components are not in their initial state (XSAVE header).
const XSTATE_BV: usize = 512;
/// Access and write denied by key 0, which all memory has that was given none.
const KEY_0: u32 = 3;

/// Offset of PKRU in the extended state; None: this CPU has none.
fn offset() -> Option<usize> {
    if crate::nest::xcr0() & 1 << COMPONENT == 0 {
        return None;
    }
    Some(std::arch::x86_64::__cpuid_count(0xd, COMPONENT).ebx as usize)
}

/// Extended state in which every key permits everything, of a thread that may not write to memory without a key, as our code does; None: it may.
pub(crate) fn opened(xstate: &[u8]) -> Option<Vec<u8>> {
    let at = offset()?;
    let bits = u64::from_le_bytes(xstate.get(XSTATE_BV..XSTATE_BV + 8)?.try_into().ok()?);
    let pkru = u32::from_le_bytes(xstate.get(at..at + 4)?.try_into().ok()?);
    if bits & 1 << COMPONENT == 0 || pkru & KEY_0 == 0 {
        return None;
    }
    let mut open = xstate.to_vec();
    open[at..at + 4].fill(0);
    Some(open)
}

/// Extended state of a CPU that has this register, without it: where there is none, the kernel takes no state with it (EINVAL).
pub(crate) fn without(xstate: &mut [u8]) {
    if let Some(bits) = xstate.get_mut(XSTATE_BV + COMPONENT as usize / 8) {
        *bits &= !(1 << (COMPONENT % 8));
    }
}

/// A thread of which a signal's handler, which may use no memory with a key, could be the end: its stack, or what the C library keeps of it and the kernel
/// writes to (rseq), has a key. `keyed`: memory with one, ascending.
pub fn is_no_place_for_signals(pid: i32, tid: i32, keyed: &[(u64, u64)]) -> bool {
    let lies_in = |at: u64| keyed.iter().any(|k| (k.0..k.1).contains(&at));
    !keyed.is_empty() && (lies_in(crate::agent::stack(pid, tid)) || lies_in(robust_list(tid)))
}

/// The head of a thread's list of robust mutexes, which is in what the C library keeps of it; 0: it has none.
fn robust_list(tid: i32) -> u64 {
    let (mut head, mut len) = (0u64, 0usize);
    // SAFETY: get_robust_list writes a pointer and a length to the places that it is given.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if r == 0 {
        head
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_is_this_register() {
        let mut x = vec![0xff; XSTATE_BV + 16];
        without(&mut x);
        assert_eq!(x[XSTATE_BV..XSTATE_BV + 8], (!(1u64 << COMPONENT)).to_le_bytes());
        without(&mut []);
    }

    #[test]
    fn only_what_denies_key_0_is_opened() {
        let Some(at) = offset() else { return };
        let state = |pkru: u32, used: u64| {
            let mut x = vec![7; at + 8];
            x[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&used.to_le_bytes());
            x[at..at + 4].copy_from_slice(&pkru.to_le_bytes());
            x
        };
        let (used, unused) = (1 << COMPONENT | 3, 3);
        assert_eq!(opened(&state(0x5555_5554, used)), None);
        assert_eq!(opened(&state(0x5555_5556, unused)), None);
        assert_eq!(opened(&state(0x5555_5556, used)), Some(state(0, used)));
        assert_eq!(opened(&[]), None);
    }
}
