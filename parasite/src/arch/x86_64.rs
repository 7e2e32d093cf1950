//! x86_64: system calls, entry points, the ways out.
use core::arch::{asm, global_asm};

// The head of the blob and the entries. `syscall_ret` and `sigreturn` are what the host builds crash-safe remote
// calls from, once the blob is in; before that it looks for the same bytes in the target's own code. `leave`: to the frame in rdi.
global_asm!(
    ".pushsection .dormouse.head,\"ax\",@progbits",
    ".globl dormouse_head",
    "dormouse_head:",
    ".ascii \"DORMBLOB\"",
    ".long dormouse_serve_entry - dormouse_head",
    ".long dormouse_thread_entry - dormouse_head",
    ".long dormouse_syscall_ret - dormouse_head",
    ".long dormouse_sigreturn - dormouse_head",
    ".long {version}",
    ".long dormouse_leave - dormouse_head",
    "dormouse_serve_entry:",
    "xor ebp, ebp",
    "call {serve}",
    "ud2",
    "dormouse_thread_entry:",
    "xor ebp, ebp",
    "call {thread}",
    "ud2",
    "dormouse_syscall_ret:",
    "syscall",
    "ret",
    "dormouse_leave:",
    "lea rsp, [rdi + 8]",
    "dormouse_sigreturn:",
    "mov eax, 15",
    "syscall",
    "ud2",
    ".popsection",
    version = const wire::WIRE_VERSION as u32,
    serve = sym crate::serve::serve,
    thread = sym crate::serve::thread,
);

/// One raw system call.
///
/// # Safety
/// The caller answers for what the call does to this process.
#[inline(always)]
pub unsafe fn syscall6(nr: u64, a: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the kernel's calling convention: rcx and r11 are lost, memory may be written.
    unsafe {
        asm!("syscall", inlateout("rax") nr as i64 => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// Leaves through the `rt_sigframe` at `frame`: every register, the signal mask and the extended state come from it.
///
/// # Safety
/// `frame` is a complete frame of this thread, prepared by the host.
#[inline(always)]
pub unsafe fn leave(frame: u64) -> ! {
    // SAFETY: rt_sigreturn looks for the frame one word below rsp (the word that the handler's `ret` would pop).
    unsafe {
        asm!("lea rsp, [{f} + 8]", "mov eax, 15", "syscall", "ud2", f = in(reg) frame, options(noreturn));
    }
}

/// clone3 whose child starts at [`crate::serve::thread`] with `slot` on its own stack (set in `args`).
///
/// # Safety
/// `args` is a valid `struct clone_args` of `size` bytes with a stack of its own for the child.
#[inline(always)]
pub unsafe fn clone3_thread(args: *const u64, size: u64, slot: u64) -> i64 {
    let ret: i64;
    // SAFETY: the child never returns into this frame: it calls the thread loop on its own stack.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {thread}",
            "ud2",
            "2:",
            thread = sym crate::serve::thread,
            inlateout("rax") 435i64 => ret, in("rdi") args, in("rsi") size, in("r12") slot,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    ret
}

/// clone3 whose child, a process that shares this memory, starts at `entry`, the serving entry of a blob of its own, with `params` on its own stack (set in `args`).
///
/// # Safety
/// `args` is a valid `struct clone_args` of `size` bytes with a stack of its own for the child; `params` is the child's alone.
#[inline(always)]
pub unsafe fn clone3_process(args: *const u64, size: u64, entry: u64, params: u64) -> i64 {
    let ret: i64;
    // SAFETY: the child never returns into this frame: it serves on its own stack.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "jmp r13",
            "2:",
            inlateout("rax") 435i64 => ret, in("rdi") args, in("rsi") size, in("r12") params, in("r13") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    ret
}

/// Makes the snapshot child through a middle process that shares this memory and ends at once, so that the child
/// is reparented to the nearest subreaper. When it returns the child has no descriptor of ours, and is in another session. Returns the middle's PID or -errno; the child's goes to `*out`.
///
/// # Safety
/// `args` is `[address of CloneArgs-like request block, ...]` as [`crate::snapshot`] lays it out.
#[inline(always)]
pub unsafe fn vfork_middle(middle_flags: u64, child_flags: u64, child_main: u64, arg: u64, out: *mut i64) -> i64 {
    let ret: i64;
    // SAFETY: the middle (CLONE_VM|CLONE_VFORK) runs on our stack while we are suspended, as vfork does; it pushes
    // nothing, and ends by exit. The grandchild has a copy of the memory and calls `child_main`, which never returns.
    unsafe {
        asm!(
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "mov eax, 56",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            // the middle process: close_range and setsid for both, before there is a child that might still have to
            "xor edi, edi",
            "mov esi, 0xffffffff",
            "mov edx, 2",
            "mov eax, 436",
            "syscall",
            "mov eax, 112",
            "syscall",
            "mov rdi, r12",
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "mov eax, 56",
            "syscall",
            "test rax, rax",
            "jz 3f",
            "mov [r15], rax",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "ud2",
            // the snapshot child
            "3:",
            "mov rdi, r14",
            "and rsp, -16",
            "call r13",
            "ud2",
            "2:",
            inlateout("rdi") middle_flags => _, in("r12") child_flags, in("r13") child_main, in("r14") arg,
            in("r15") out, lateout("rax") ret, lateout("rcx") _, lateout("r11") _, lateout("rsi") _,
            lateout("rdx") _, lateout("r10") _, lateout("r8") _,
        );
    }
    ret
}

/// Makes a child that shares this memory and makes one call; its exit status is the call's negated result. Returns the child's PID or -errno.
///
/// # Safety
/// `call` is the address of a `wire::AsideCall`.
#[inline(always)]
pub unsafe fn vfork_call(flags: u64, call: u64) -> i64 {
    let ret: i64;
    // SAFETY: the child (CLONE_VM|CLONE_VFORK) runs on our stack while we are suspended; it pushes nothing, and ends by exit.
    unsafe {
        asm!(
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "mov eax, 56",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rax, [r12]",
            "mov rdi, [r12 + 8]",
            "mov rsi, [r12 + 16]",
            "mov rdx, [r12 + 24]",
            "mov r10, [r12 + 32]",
            "mov r8, [r12 + 40]",
            "xor r9d, r9d",
            "syscall",
            "mov rdi, rax",
            "neg rdi",
            "mov eax, 60",
            "syscall",
            "ud2",
            "2:",
            inlateout("rdi") flags => _, in("r12") call, lateout("rax") ret, lateout("rcx") _, lateout("r11") _,
            lateout("rsi") _, lateout("rdx") _, lateout("r10") _, lateout("r8") _, lateout("r9") _,
        );
    }
    ret
}

/// Fills `n` bytes (`rep stosb`: no call to memset, whatever the compiler makes of loops).
///
/// # Safety
/// `dst` is writable for `n` bytes.
#[inline(always)]
pub unsafe fn fill(dst: u64, byte: u8, n: u64) {
    // SAFETY: see above.
    unsafe {
        asm!("rep stosb", inout("rdi") dst => _, inout("rcx") n => _, in("al") byte, options(nostack, preserves_flags))
    }
}

/// Copies `n` bytes upwards.
///
/// # Safety
/// `src` is readable and `dst` writable for `n` bytes, and `dst` does not lie inside `src..src + n`.
#[inline(always)]
pub unsafe fn copy(dst: u64, src: u64, n: u64) {
    // SAFETY: see above.
    unsafe {
        asm!("rep movsb", inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") n => _, options(nostack, preserves_flags))
    }
}
