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
    ".cfi_startproc",
    // where calls may be dispatched to the program itself, that of the C library
    "mov r11, [rip + {libcs}]",
    "test r11, r11",
    "jnz 5f",
    // seccomp, and prctl(PR_SET_SECCOMP) and (PR_SET_SYSCALL_USER_DISPATCH)
    "cmp rdi, 317",
    "je 3f",
    "cmp rdi, 157",
    "jne 4f",
    "cmp esi, 22",
    "je 3f",
    "cmp esi, 59",
    "jne 4f",
    "3:",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "call {filters}",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "cmp rax, -4095",
    "jae 2f",
    "ret",
    "4:",
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
    "5:",
    "jmp r11",
    "2:",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    "mov ebx, eax",
    "neg ebx",
    "call [rip + __errno_location@GOTPCREL]",
    "mov [rax], ebx",
    "mov rax, -1",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".size dormouse_syscall, . - dormouse_syscall",
    ".popsection",
    ".weak __errno_location",
    // The way out that is not rt_sigreturn. Offsets of `struct ucontext`: 40 the first of gregs, 8 bytes each; 224 fpstate; 296 the signal mask. The
    // extended state was written by the kernel's xsave, with this very layout.
    ".pushsection .text.dormouse_resume,\"ax\",@progbits",
    ".globl dormouse_resume",
    ".hidden dormouse_resume",
    ".globl dormouse_resume_open",
    ".hidden dormouse_resume_open",
    ".globl dormouse_resume_end",
    ".hidden dormouse_resume_end",
    ".type dormouse_resume,@function",
    "dormouse_resume:",
    "mov rbx, rdi",
    "lea rsi, [rbx + 296]",
    "mov edi, 2",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "dormouse_resume_open:",
    "mov rcx, [rbx + 224]",
    "mov eax, -1",
    "mov edx, -1",
    "test qword ptr [rbx], 1",
    "jz 2f",
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
    "mov rax, [rbx + 144]",
    "mov rbx, [rbx + 128]",
    "popfq",
    "ret 128",
    "dormouse_resume_end:",
    ".size dormouse_resume, . - dormouse_resume",
    ".popsection",
    // glibc's own word on its rseq areas; where there is none the address is 0
    ".weak __rseq_offset",
    ".weak __rseq_size",
    ".weak dlsym",
    ".weak dlerror",
    ".weak environ",
    // the first code of a thread: its alternate stack, then its own function, of which ours is no caller
    ".pushsection .text.dormouse_begin,\"ax\",@progbits",
    ".globl dormouse_begin",
    ".hidden dormouse_begin",
    ".type dormouse_begin,@function",
    "dormouse_begin:",
    "sub rsp, 8",
    "call {begin}",
    "add rsp, 8",
    "mov rdi, rdx",
    "jmp rax",
    ".size dormouse_begin, . - dormouse_begin",
    ".popsection",
    // execl and kin have their arguments in registers and on the stack: pushed down to where the return address was, they are one array, as argv is
    ".macro dormouse_listed name, target",
    ".pushsection .text.\\name,\"ax\",@progbits",
    ".globl \\name",
    ".hidden \\name",
    ".type \\name,@function",
    "\\name:",
    ".cfi_startproc",
    "pop rax",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_register rip, rax",
    "push r9",
    ".cfi_adjust_cfa_offset 8",
    "push r8",
    ".cfi_adjust_cfa_offset 8",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "push rsi",
    ".cfi_adjust_cfa_offset 8",
    "mov rsi, rsp",
    "push rax",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rip, -48",
    "call \\target",
    "pop rcx",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_register rip, rcx",
    "add rsp, 40",
    ".cfi_adjust_cfa_offset -40",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rip, -8",
    "ret",
    ".cfi_endproc",
    ".size \\name, . - \\name",
    ".popsection",
    ".endm",
    "dormouse_listed dormouse_execl, {execl}",
    "dormouse_listed dormouse_execlp, {execlp}",
    "dormouse_listed dormouse_execle, {execle}",
    ".purgem dormouse_listed",
    filters = sym crate::filters::call,
    libcs = sym crate::dispatch::SYSCALL,
    begin = sym crate::stacks::begin,
    execl = sym crate::interpose::execl,
    execlp = sym crate::interpose::execlp,
    execle = sym crate::interpose::execle,
);

extern "C" {
    fn dormouse_restorer();
    fn dormouse_syscall_at();
    fn dormouse_resume();
    fn dormouse_resume_open();
    fn dormouse_resume_end();
    /// Where a thread begins: its block in rdi.
    pub fn dormouse_begin();
    /// What libc's `syscall` does.
    pub fn dormouse_syscall();
    /// execl(3).
    pub fn dormouse_execl();
    /// execlp(3).
    pub fn dormouse_execlp();
    /// execle(3).
    pub fn dormouse_execle();
}

/// Address of the instruction in [`dormouse_syscall`]; the number lies one word below the stack pointer there.
pub fn syscall_at() -> u64 {
    dormouse_syscall_at as *const () as u64
}

/// Address of the restorer.
pub fn restorer() -> u64 {
    dormouse_restorer as *const () as u64
}

/// The C library's function of this name (with a NUL) behind ours; 0 if there is none.
pub fn next(name: &[u8]) -> usize {
    const RTLD_NEXT: isize = -1;
    let dlsym: usize;
    // SAFETY: reads a word of our own GOT; libc's dlsym, if there is one, is called as it is declared, and knows us by the return address.
    unsafe {
        asm!("mov {}, [rip + dlsym@GOTPCREL]", out(reg) dlsym, options(nostack, preserves_flags, readonly));
        if dlsym == 0 {
            return 0;
        }
        let dlsym: unsafe extern "C" fn(isize, *const u8) -> usize = core::mem::transmute(dlsym);
        dlsym(RTLD_NEXT, name.as_ptr())
    }
}

/// What [`next`] has not found is no error of the program's: it must not hear of it from dlerror(3).
pub fn forget_error() {
    let dlerror: usize;
    // SAFETY: as `next`; the text that it gives is not looked at.
    unsafe {
        asm!("mov {}, [rip + dlerror@GOTPCREL]", out(reg) dlerror, options(nostack, preserves_flags, readonly));
        if dlerror != 0 {
            let dlerror: unsafe extern "C" fn() -> *const u8 = core::mem::transmute(dlerror);
            dlerror();
        }
    }
}

/// Sets errno, where there is one.
pub fn set_errno(e: i32) {
    let location: usize;
    // SAFETY: as `next`; the C library says where its errno is.
    unsafe {
        asm!("mov {}, [rip + __errno_location@GOTPCREL]", out(reg) location, options(nostack, preserves_flags, readonly));
        if location != 0 {
            let location: unsafe extern "C" fn() -> *mut i32 = core::mem::transmute(location);
            *location() = e;
        }
    }
}

/// The C library's `environ`, as it is now; null where there is none.
pub fn environment() -> *const *const u8 {
    let at: *const *const *const u8;
    // SAFETY: as `next`; the variable, if there is one, is of this type.
    unsafe {
        asm!("mov {}, [rip + environ@GOTPCREL]", out(reg) at, options(nostack, preserves_flags, readonly));
        if at.is_null() {
            return core::ptr::null();
        }
        *at
    }
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

/// Goes on where the context is, without `rt_sigreturn`, which would make the kernel forget what time is left of an interrupted call. Everything is as that
/// would bring it back.
///
/// The last two words go below the red zone of the thread's stack, where the kernel's own frame of a signal was or could be.
///
/// # Safety
/// `c` is what the kernel gave this thread's handler.
pub unsafe fn resume(c: *const Context) -> ! {
    // SAFETY: jumps into the code above, which uses nothing of this stack but the context.
    unsafe { asm!("jmp {}", sym dormouse_resume, in("rdi") c, options(noreturn)) }
}

/// Whether a thread with this instruction pointer is on that way, with signals let through again: then its handler must leave that way, too.
pub fn is_resuming(rip: u64) -> bool {
    (dormouse_resume_open as *const () as u64..dormouse_resume_end as *const () as u64).contains(&rip)
}
