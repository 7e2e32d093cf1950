//! The freestanding binary around the library: what `payload` links into the flat blob.
#![no_std]
#![no_main]
extern crate parasite;

/// Pulls the library's head section into the link; the linker drops this function itself.
///
/// # Safety
/// As [`parasite::serve::serve`].
#[no_mangle]
unsafe extern "C" fn dormouse_keep(p: *mut wire::Params) -> ! {
    // SAFETY: the caller's.
    unsafe { parasite::serve::serve(p) }
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
