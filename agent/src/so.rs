//! The preloaded library around the crate: what `payload` links into the shared object. It needs no library, and
//! exports what it interposes, nothing else:
//! `syscall`.
#![no_std]

/// What the loader calls with argc, argv and the environment, before the program's own constructors.
#[used]
#[link_section = ".init_array"]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: called once by the loader, while the process has one thread.
    unsafe { agent::start() }
}

/// syscall(2) of libc, which programs find here first.
///
/// # Safety
/// As libc's.
#[no_mangle]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!("jmp {}", sym agent::arch::dormouse_syscall)
}

extern "C" {
    /// Defined nowhere: a panic path that survives the optimiser is a link error.
    fn dormouse_a_panic_path_survived() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never linked.
    unsafe { dormouse_a_panic_path_survived() }
}
