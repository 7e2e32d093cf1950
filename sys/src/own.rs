//! What holds for this process itself, to compare a target with.
use crate::probe;

/// How many layers of Landlock its credentials have room for, at most `most`; None: the kernel has no Landlock. Tried in a
/// child, as what is entered cannot be left, and once: this process enters none.
pub fn landlock_layers_free(most: usize) -> Option<usize> {
    static FREE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // not known today is no answer for tomorrow
    FREE.get().copied().or_else(|| try_landlock(most).map(|n| *FREE.get_or_init(|| n)))
}

fn try_landlock(most: usize) -> Option<usize> {
    let attr = 1u64; // handled_access_fs: LANDLOCK_ACCESS_FS_EXECUTE
    let count = || {
        // SAFETY: prctl and the Landlock calls take integers and a pointer to `attr`, which outlives them, with its size; they
        // change the child's credentials only.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let ruleset = libc::syscall(libc::SYS_landlock_create_ruleset, &attr, size_of_val(&attr), 0);
            if ruleset < 0 {
                return NO_LANDLOCK;
            }
            (0..most).take_while(|_| libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0).count() as i64
        }
    };
    let status = probe::fork(count).and_then(probe::Child::wait).ok()?;
    let n = libc::WEXITSTATUS(status);
    (libc::WIFEXITED(status) && i64::from(n) != NO_LANDLOCK).then_some(n as usize)
}

/// Exit status of a child without Landlock.
const NO_LANDLOCK: i64 = 255;

/// Serial number of its session keyring; None: there are no keys in this kernel.
pub fn session_keyring() -> Option<i32> {
    const KEYCTL_GET_KEYRING_ID: i32 = 0;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    // SAFETY: keyctl takes integers here. It may give this process the keyring that it would have used anyway.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) };
    (id > 0).then_some(id as i32)
}

/// Gives memory that was freed back to the system, which malloc keeps otherwise: some MiB that a restore needed (malloc_trim(3)).
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only looks for free memory, under malloc's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
