//! What the kernel hands to a signal handler: siginfo and ucontext of x86_64 (arch/x86/include/uapi/asm/ucontext.h, sigcontext.h), and
//! what becomes of the call that the signal interrupted.
use wire::agent::{AgentInfo, UCONTEXT};
use wire::interrupted::{self, Onward, BEFORE, EINTR, RESTART_SYSCALL};

/// The beginning of `struct ucontext`, as words.
#[repr(C)]
pub struct Context {
    words: [u64; UCONTEXT / 8],
}

const STACK_FLAGS: usize = 3;
const R8: usize = 5;
const R9: usize = 6;
const R10: usize = 7;
const RDI: usize = 13;
const RSI: usize = 14;
const RDX: usize = 17;
const RAX: usize = 18;
const RSP: usize = 20;
const RIP: usize = 21;
/// cs in the lowest 16 bits.
const SEGMENTS: usize = 23;
/// Of 64-bit code (arch/x86/include/asm/segment.h, __USER_CS).
const CS_64: u64 = 0x33;
const MASK: usize = 37;
/// sigaltstack(2)
const SS_AUTODISARM: u32 = 1 << 31;
const PAGE: u64 = 4096;

impl Context {
    /// All of it.
    pub fn words(&self) -> &[u64; UCONTEXT / 8] {
        &self.words
    }

    /// The thread's signal mask.
    pub fn mask(&self) -> u64 {
        self.words[MASK]
    }

    /// The alternate stack, if the kernel has put it away for the handler.
    pub fn disarmed(&self) -> Option<*const u64> {
        (self.words[STACK_FLAGS] as u32 & SS_AUTODISARM != 0).then_some(&raw const self.words[2])
    }

    fn args(&self) -> [u64; 6] {
        let w = &self.words;
        [w[RDI], w[RSI], w[RDX], w[R10], w[R8], w[R9]]
    }

    /// The call that the signal ended with EINTR, if there is one and it can be told.
    ///
    /// # Safety
    /// The context is what the kernel gave: its instruction pointer is where the thread runs code.
    pub unsafe fn interrupted(&self, info: &AgentInfo) -> Option<i64> {
        let rip = self.words[RIP];
        if self.words[SEGMENTS] & 0xffff != CS_64 {
            return None; // no address here, perhaps
        }
        // SAFETY: the thread has just come by these two bytes, if the call is what it seems to be; only then are they looked at.
        if self.words[RAX] != EINTR || rip < PAGE || unsafe { !is_syscall(rip - 2) } {
            return None;
        }
        if rip - 2 == crate::arch::syscall_at() {
            // SAFETY: the word below the stack pointer, which `dormouse_syscall` has just written.
            return Some(unsafe { *((self.words[RSP] - 8) as *const i64) });
        }
        let seen = info.call >= 0
            && info.pc == rip as u32
            && info.print == interrupted::fingerprint(self.words[RSP], &self.args());
        if seen && info.call as i64 != RESTART_SYSCALL {
            return Some(info.call as i64);
        }
        // what lies in the same page can be read as the instruction could
        let mut code = [0u8; BEFORE];
        for (back, b) in (1..).zip(code.iter_mut().rev()) {
            let at = rip - 2 - back;
            if at & !(PAGE - 1) == (rip - 2) & !(PAGE - 1) {
                // SAFETY: see above.
                *b = unsafe { *(at as *const u8) };
            }
        }
        if let Some(nr) = interrupted::number_in(&code) {
            return Some(nr);
        }
        seen.then_some(RESTART_SYSCALL)
    }

    /// The stack pointer.
    pub fn sp(&self) -> u64 {
        self.words[RSP]
    }

    /// First to fourth argument of the call that the thread is in.
    pub fn arguments(&self) -> [u64; 4] {
        let [a, b, c, d, ..] = self.args();
        [a, b, c, d]
    }

    /// The fifth.
    pub fn fifth(&self) -> u64 {
        self.words[R8]
    }

    /// Another fourth argument.
    pub fn set_fourth(&mut self, value: u64) {
        self.words[R10] = value;
    }

    /// How the thread goes on with that call.
    pub fn onward(&self, call: Option<i64>) -> Onward {
        call.map_or(Onward::Return, |nr| interrupted::onward(nr, &self.args()))
    }

    /// The kernel is about to issue the call again in which the thread was seen to wait, as it does for our handler: for one without SA_RESTART it
    /// would not.
    ///
    /// # Safety
    /// As for [`Context::interrupted`].
    pub unsafe fn restarted(&self, info: &AgentInfo) -> bool {
        let rip = self.words[RIP];
        info.call >= 0
            && self.words[RAX] == info.call as u64
            && info.pc == (rip + 2) as u32
            && info.print == interrupted::fingerprint(self.words[RSP], &self.args())
            // SAFETY: the thread's next instruction is there.
            && unsafe { is_syscall(rip) }
    }

    /// The call that the kernel would have issued again ends with EINTR.
    pub fn end(&mut self) {
        self.words[RAX] = EINTR;
        self.words[RIP] += 2;
    }

    /// Where the call has a signal mask of its own, if it has: an address, and whether the mask's address is what is there.
    pub fn mask_of_call(&self, nr: i64) -> Option<(u64, bool)> {
        interrupted::mask_of(nr, &self.args())
    }

    /// The thread was just leaving an earlier call of a recorder's, for a call that only the kernel can take up: it must not be left by `rt_sigreturn`.
    ///
    /// # Safety
    /// As for [`Context::interrupted`].
    pub unsafe fn resuming(&self) -> bool {
        let rip = self.words[RIP];
        if self.words[SEGMENTS] & 0xffff != CS_64 {
            return false;
        }
        // SAFETY: the thread's next instruction is there.
        crate::arch::is_resuming(rip) || self.words[RAX] == RESTART_SYSCALL as u64 && unsafe { is_syscall(rip) }
    }

    /// It will be issued again, where no call of ours may be made: with its whole time, if only `restart_syscall` knows what is left.
    pub fn again_if(&mut self, call: Option<i64>) {
        match (self.onward(call), call) {
            (Onward::Return, _) | (_, None | Some(RESTART_SYSCALL)) => {}
            (_, Some(nr)) => self.again(nr),
        }
    }

    /// It will be issued again.
    pub fn again(&mut self, nr: i64) {
        self.words[RAX] = nr as u64;
        self.words[RIP] -= 2;
    }
}

/// # Safety
/// Two bytes can be read at `at`.
unsafe fn is_syscall(at: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { *(at as *const [u8; 2]) == [0x0f, 0x05] }
}
