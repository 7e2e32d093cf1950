//! Signal frames as the kernel lays them out (arch/x86/include/uapi/asm/sigcontext.h, ucontext.h): what
//! `rt_sigreturn` reads. A complete frame brings back every register, the signal mask and the extended state.

/// General registers of a thread, as PTRACE_GETREGS gives them (sys/user.h, `user_regs_struct`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

impl Regs {
    /// The registers in the order of `user_regs_struct`.
    pub fn words(&self) -> [u64; 27] {
        [
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.rbp,
            self.rbx,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rax,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.orig_rax,
            self.rip,
            self.cs,
            self.eflags,
            self.rsp,
            self.ss,
            self.fs_base,
            self.gs_base,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        ]
    }

    /// From the order of `user_regs_struct`; None if there are not 27.
    pub fn from_words(w: &[u64]) -> Option<Regs> {
        let &[r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs] =
            w
        else {
            return None;
        };
        Some(Regs {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            rip,
            cs,
            eflags,
            rsp,
            ss,
            fs_base,
            gs_base,
            ds,
            es,
            fs,
            gs,
        })
    }
}

const UC_FLAGS: u64 = 1 | 2 | 4; // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of the software-reserved bytes in the legacy area; there ptrace keeps XCR0.
const SW_BYTES: usize = 464;
/// pretcode, ucontext (uc_flags, uc_link, uc_stack, 256 bytes of sigcontext, uc_sigmask), siginfo
const FIXED: usize = 8 + 16 + 24 + 256 + 8 + 128;
/// Feature bits that a frame does not carry unless the thread asked for them (AMX tile data).
const XFEATURE_DYNAMIC: u64 = 1 << 18;

/// Bytes that a frame with `xstate` bytes of extended state takes, alignment included.
pub fn size(xstate: usize) -> usize {
    (FIXED + 64 + xstate + 4 + 63) & !63
}

/// Builds the frame for address `at` (16-aligned), whose first word is the return address `restorer`.
///
/// `xstate` is what PTRACE_GETREGSET(NT_X86_XSTATE) gave. The alternate stack is left as it is.
pub fn build(at: u64, restorer: u64, r: &Regs, sigmask: u64, xstate: &[u8]) -> Vec<u8> {
    let mut f = vec![0u8; size(xstate.len())];
    let fp_addr = (at + FIXED as u64 + 63) & !63;
    let fp = (fp_addr - at) as usize;
    let mut put = |off: usize, v: u64| f[off..off + 8].copy_from_slice(&v.to_le_bytes());
    put(0, restorer);
    put(8, UC_FLAGS);
    // an impossible ss_flags: the kernel ignores the failure and keeps the alternate stack that the thread has
    put(32, 0x7fff_ffff);
    let sc = 48;
    let words = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp,
        r.rip, r.eflags,
    ];
    for (i, w) in words.iter().enumerate() {
        put(sc + i * 8, *w);
    }
    put(sc + 144, r.cs | r.ss << 48);
    put(sc + 184, fp_addr);
    put(sc + 256, sigmask);
    let xfeatures =
        xstate.get(SW_BYTES..SW_BYTES + 8).map_or(3, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
            & !XFEATURE_DYNAMIC;
    f[fp..fp + xstate.len()].copy_from_slice(xstate);
    let sw = fp + SW_BYTES;
    f[sw..sw + 48].fill(0);
    f[sw..sw + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    f[sw + 4..sw + 8].copy_from_slice(&(xstate.len() as u32 + 4).to_le_bytes());
    f[sw + 8..sw + 16].copy_from_slice(&xfeatures.to_le_bytes());
    f[sw + 16..sw + 20].copy_from_slice(&(xstate.len() as u32).to_le_bytes());
    f[fp + xstate.len()..fp + xstate.len() + 4].copy_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    f
}
