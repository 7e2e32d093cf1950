//! The preloaded library around the crate: what `payload` links into the shared object. It needs no library, and
//! exports what it interposes, nothing else.
#![no_std]

use agent::interpose;

/// What the loader calls with argc, argv and the environment, before the program's own constructors.
#[used]
#[link_section = ".init_array"]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: called once by the loader, while the process has one thread.
    unsafe { agent::start() }
}

/// Functions of libc that programs find here first.
macro_rules! export {
    ($($name:ident = $target:path),* $(,)?) => {
        $(
            /// As libc's.
            ///
            /// # Safety
            /// As libc's.
            #[no_mangle]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!("jmp {}", sym $target)
            }
        )*
    };
}

export! {
    syscall = agent::arch::dormouse_syscall,
    prctl = interpose::prctl,
    pthread_create = interpose::pthread_create,
    sigaltstack = interpose::sigaltstack,
    sigaction = interpose::sigaction,
    signal = interpose::signal,
    sigprocmask = interpose::sigprocmask,
    pthread_sigmask = interpose::pthread_sigmask,
    sigsuspend = interpose::sigsuspend,
    sigwait = interpose::sigwait,
    sigwaitinfo = interpose::sigwaitinfo,
    sigtimedwait = interpose::sigtimedwait,
    signalfd = interpose::signalfd,
    ppoll = interpose::ppoll,
    __ppoll_chk = interpose::__ppoll_chk,
    pselect = interpose::pselect,
    epoll_wait = interpose::epoll_wait,
    semtimedop = interpose::semtimedop,
    epoll_pwait = interpose::epoll_pwait,
    epoll_pwait2 = interpose::epoll_pwait2,
    execve = interpose::execve,
    execv = interpose::execv,
    execvp = interpose::execvp,
    execvpe = interpose::execvpe,
    fexecve = interpose::fexecve,
    execveat = interpose::execveat,
    execl = agent::arch::dormouse_execl,
    execlp = agent::arch::dormouse_execlp,
    execle = agent::arch::dormouse_execle,
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
