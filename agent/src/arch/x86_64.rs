//! x86_64: the handler's ways out, and what only an instruction tells.
use crate::context::Context;
use core::arch::{asm, global_asm};

// The handler's return: rt_sigreturn, as libc's restorer does it.
global_asm!(
    ".pushsection .text.dormouse_restorer,\"ax\",@progbits",
    ".globl dormouse_restorer",
    ".hidden dormouse_restorer",
    ".type dormouse_restorer,@function",
    "dormouse_restorer:",
    "mov rax, 15",
    "syscall",
    "ud2",
    ".size dormouse_restorer, . - dormouse_restorer",
    ".popsection",
    // libc's syscall(), so that the handler can tell which call it was in: the number is kept in the red zone, which the kernel leaves alone
    ".pushsection .text.dormouse_syscall,\"ax\",@progbits",
    ".globl dormouse_syscall",
    ".hidden dormouse_syscall",
    ".globl dormouse_syscall_at",
    ".hidden dormouse_syscall_at",
    ".type dormouse_syscall,@function",
    "dormouse_syscall:",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "mov [rsp - 8], rax",
    "dormouse_syscall_at:",
    "syscall",
    "cmp rax, -4095",
    "jae 2f",
    "ret",
    "2:",
    "push rbx",
    "mov ebx, eax",
    "neg ebx",
    "call [rip + __errno_location@GOTPCREL]",
    "mov [rax], ebx",
    "mov rax, -1",
    "pop rbx",
    "ret",
    ".size dormouse_syscall, . - dormouse_syscall",
    ".popsection",
    ".weak __errno_location",
    // glibc's own word on its rseq areas; where there is none the address is 0
    ".weak __rseq_offset",
    ".weak __rseq_size",
);

extern "C" {
    fn dormouse_restorer();
    fn dormouse_syscall_at();
    /// What libc's `syscall` does.
    pub fn dormouse_syscall();
}

/// Address of the instruction in [`dormouse_syscall`]; the number lies one word below the stack pointer there.
pub fn syscall_at() -> u64 {
    dormouse_syscall_at as *const () as u64
}

/// Address of the restorer.
pub fn restorer() -> u64 {
    dormouse_restorer as *const () as u64
}

/// glibc's `__rseq_offset` and `__rseq_size`, if the C library has them.
pub fn rseq_symbols() -> Option<(i64, u32)> {
    let (offset, size): (*const i64, *const u32);
    // SAFETY: reads two words of our own GOT, which the loader has filled in.
    unsafe {
        asm!("mov {}, [rip + __rseq_offset@GOTPCREL]", out(reg) offset, options(nostack, preserves_flags, readonly));
        asm!("mov {}, [rip + __rseq_size@GOTPCREL]", out(reg) size, options(nostack, preserves_flags, readonly));
    }
    if offset.is_null() || size.is_null() {
        return None;
    }
    // SAFETY: they are variables of the C library, of these types (sys/rseq.h), which it sets before anything of ours runs.
    unsafe { Some((*offset, *size)) }
}

/// The segment selectors ds, es, fs, gs, 16 bits each, ascending.
pub fn segments() -> u64 {
    let (ds, es, fs, gs): (u64, u64, u64, u64);
    // SAFETY: reads selectors.
    unsafe {
        asm!("mov {0:e}, ds", "mov {1:e}, es", "mov {2:e}, fs", "mov {3:e}, gs", out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nostack, preserves_flags, nomem));
    }
    (ds & 0xffff) | (es & 0xffff) << 16 | (fs & 0xffff) << 32 | (gs & 0xffff) << 48
}

/// Goes on where the context was, with `restart_syscall` in the place of the interrupted call: it knows what time is left, which `rt_sigreturn` makes
/// the kernel forget. Everything else is as `rt_sigreturn` would bring it back; the signal mask is the caller's business.
///
/// The last two words go below the red zone of the thread's stack, where the kernel's own frame of a signal was or could be.
///
/// # Safety
/// `c` is what the kernel gave this thread's handler, whose interrupted call was behind a `syscall` instruction.
pub unsafe fn resume(c: *const Context) -> ! {
    // SAFETY: the offsets are those of `struct ucontext` (40: the first of gregs, 8 bytes each; 224: fpstate); the extended state was
    // written by the kernel's xsave, with this very layout. Behind it nothing of the handler is used any more.
    unsafe {
        asm!(
            "mov rbx, rax",
            "mov rcx, [rbx + 224]",
            "test qword ptr [rbx], 1",
            "jz 2f",
            "mov eax, -1",
            "mov edx, -1",
            "xrstor64 [rcx]",
            "jmp 3f",
            "2:",
            "fxrstor64 [rcx]",
            "3:",
            "mov rax, [rbx + 160]",
            "sub rax, 144",
            "mov rcx, [rbx + 176]",
            "mov [rax], rcx",
            "mov rcx, [rbx + 168]",
            "sub rcx, 2",
            "mov [rax + 8], rcx",
            "mov r8, [rbx + 40]",
            "mov r9, [rbx + 48]",
            "mov r10, [rbx + 56]",
            "mov r11, [rbx + 64]",
            "mov r12, [rbx + 72]",
            "mov r13, [rbx + 80]",
            "mov r14, [rbx + 88]",
            "mov r15, [rbx + 96]",
            "mov rdi, [rbx + 104]",
            "mov rsi, [rbx + 112]",
            "mov rbp, [rbx + 120]",
            "mov rdx, [rbx + 136]",
            "mov rcx, [rbx + 152]",
            "mov rsp, rax",
            "mov eax, 219",
            "mov rbx, [rbx + 128]",
            "popfq",
            "ret 128",
            in("rax") c,
            options(noreturn)
        );
    }
}
