//! Programs of system calls for the blob, built in ordinary Rust.
//!
//! ```
//! use dormouse_sys::program::{Program, Arg};
//! let mut p = Program::new();
//! let path = p.bytes(b"/dev/null\0");
//! let fd = p.call(257, &[Arg::Imm(-100i64 as u64), path, Arg::Imm(0)]);
//! p.call(3, &[fd.arg()]);
//! ```
use wire::{BatchHeader, Call, Reloc, ARG_BUF, ARG_IMM, ARG_RET, CALL_MAY, CALL_MUST, NO_STORE};

/// An argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The value itself.
    Imm(u64),
    /// Address of a place in the buffer.
    Buf(u32),
    /// Result of an earlier call.
    Ret(u32),
}

impl From<u64> for Arg {
    fn from(v: u64) -> Arg {
        Arg::Imm(v)
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Arg {
        Arg::Imm(v as i64 as u64)
    }
}

/// A call of a program, to ask for its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(pub u32);

impl CallId {
    /// The result as an argument of a later call.
    pub fn arg(self) -> Arg {
        Arg::Ret(self.0)
    }
}

/// A part of the buffer whose content comes back with the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    off: u32,
    len: u32,
}

impl Out {
    /// Its address as an argument.
    pub fn arg(self) -> Arg {
        Arg::Buf(self.off)
    }

    /// The address of a byte inside it as an argument.
    pub fn at(self, off: u32) -> Arg {
        Arg::Buf(self.off + off)
    }

    /// Bytes.
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A program under construction. Offsets are 16-aligned.
#[derive(Clone, Debug, Default)]
pub struct Program {
    calls: Vec<Call>,
    relocs: Vec<Reloc>,
    data: Vec<u8>,
    ret: Option<(u32, u32)>,
    threads: Vec<wire::ThreadProgram>,
    names: Vec<String>,
    parked: bool,
}

impl Program {
    /// An empty program.
    pub fn new() -> Program {
        Program::default()
    }

    /// No call yet.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Number of calls.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Bytes of the frame's payload so far.
    pub fn size(&self) -> usize {
        32 + self.calls.len() * size_of::<Call>() + self.relocs.len() * 8 + self.data.len() + self.threads.len() * 16
    }

    /// Puts bytes into the buffer.
    pub fn bytes(&mut self, b: &[u8]) -> Arg {
        self.data.resize((self.data.len() + 15) & !15, 0);
        let off = self.data.len() as u32;
        self.data.extend_from_slice(b);
        Arg::Buf(off)
    }

    /// Puts a NUL-terminated string into the buffer.
    pub fn cstr(&mut self, s: &[u8]) -> Arg {
        let a = self.bytes(s);
        self.data.push(0);
        a
    }

    /// Puts bytes into the buffer whose value after the program comes back.
    pub fn inout(&mut self, b: &[u8]) -> Out {
        let Arg::Buf(off) = self.bytes(b) else { unreachable!("bytes gives a place in the buffer") };
        let end = off + b.len() as u32;
        self.ret = Some(match self.ret {
            None => (off, end),
            Some((a, z)) => (a.min(off), z.max(end)),
        });
        Out { off, len: b.len() as u32 }
    }

    /// Room for `n` bytes that come back.
    pub fn out(&mut self, n: usize) -> Out {
        self.inout(&vec![0; n])
    }

    /// Writes the address of `target` at `at` (both places in the buffer): a pointer inside a structure.
    pub fn pointer(&mut self, at: Arg, offset: u32, target: Arg) {
        if let (Arg::Buf(at), Arg::Buf(target)) = (at, target) {
            self.relocs.push(Reloc { at: at + offset, target });
        }
    }

    fn push(&mut self, nr: i64, args: &[Arg], on_error: u8) -> CallId {
        let mut c = Call { nr: nr as u32, store: NO_STORE, kinds: [ARG_IMM; 6], on_error, reserved: 0, args: [0; 6] };
        for (i, a) in args.iter().take(6).enumerate() {
            (c.kinds[i], c.args[i]) = match *a {
                Arg::Imm(v) => (ARG_IMM, v),
                Arg::Buf(v) => (ARG_BUF, v as u64),
                Arg::Ret(v) => (ARG_RET, v as u64),
            };
        }
        self.calls.push(c);
        self.names.push(String::new());
        CallId(self.calls.len() as u32 - 1)
    }

    /// A call whose failure ends the program.
    pub fn call(&mut self, nr: i64, args: &[Arg]) -> CallId {
        self.push(nr, args, CALL_MUST)
    }

    /// A call that may fail.
    pub fn may(&mut self, nr: i64, args: &[Arg]) -> CallId {
        self.push(nr, args, CALL_MAY)
    }

    /// Names the latest call, for error messages.
    pub fn named(&mut self, what: impl Into<String>) -> &mut Self {
        if let Some(n) = self.names.last_mut() {
            *n = what.into();
        }
        self
    }

    /// Stores the latest call's result (32 bits) in the buffer.
    pub fn store(&mut self, at: Arg, offset: u32) {
        if let (Some(c), Arg::Buf(at)) = (self.calls.last_mut(), at) {
            c.store = at + offset;
        }
    }

    /// The calls from index `first` on are for the thread parked in `slot`.
    pub fn for_thread(&mut self, slot: u32, first: usize) {
        let ncalls = (self.calls.len() - first) as u32;
        self.threads.push(wire::ThreadProgram { slot, first: first as u32, ncalls, reserved: 0 });
    }

    /// A program for no thread: it only waits until all parked threads have run what they have.
    pub fn for_no_thread(&mut self) {
        self.parked = true;
    }

    /// Whether it is for parked threads.
    pub fn for_threads(&self) -> bool {
        self.parked || !self.threads.is_empty()
    }

    /// Whether the failure of call `i` ends the program.
    pub fn must(&self, i: usize) -> bool {
        self.calls.get(i).is_some_and(|c| c.on_error == CALL_MUST)
    }

    /// What call `i` is called in messages.
    pub fn name(&self, i: usize) -> String {
        match self.names.get(i) {
            Some(n) if !n.is_empty() => n.clone(),
            _ => crate::syscalls::name(self.calls.get(i).map_or(0, |c| c.nr as i64)),
        }
    }

    /// The calls for a judge of filters: arguments that are not plain values are not known.
    pub fn for_judge(&self) -> impl Iterator<Item = (i64, crate::seccomp::Args)> + '_ {
        let known = |c: &Call, i: usize| (c.kinds[i] == ARG_IMM).then_some(c.args[i]);
        self.calls.iter().map(move |c| (c.nr as i64, std::array::from_fn(|i| known(c, i))))
    }

    /// Payload of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let (a, z) = self.ret.unwrap_or((0, 0));
        let h = BatchHeader {
            ncalls: self.calls.len() as u32,
            nrelocs: self.relocs.len() as u32,
            data_len: self.data.len() as u32,
            buf_len: self.data.len() as u32,
            ret_off: a,
            ret_len: z - a,
            nthreads: self.threads.len() as u32,
            reserved: 0,
        };
        let mut v = Vec::with_capacity(self.size());
        for x in [h.ncalls, h.nrelocs, h.data_len, h.buf_len, h.ret_off, h.ret_len, h.nthreads, h.reserved] {
            v.extend_from_slice(&x.to_le_bytes());
        }
        for t in &self.threads {
            for x in [t.slot, t.first, t.ncalls, t.reserved] {
                v.extend_from_slice(&x.to_le_bytes());
            }
        }
        for c in &self.calls {
            v.extend_from_slice(&encode_call(c));
        }
        for r in &self.relocs {
            v.extend_from_slice(&r.at.to_le_bytes());
            v.extend_from_slice(&r.target.to_le_bytes());
        }
        v.extend_from_slice(&self.data);
        v
    }

    /// The calls as bytes, for slots filled in directly; buffer places are not allowed in them.
    pub fn encode_calls(&self) -> Vec<u8> {
        self.calls.iter().flat_map(encode_call).collect()
    }

    /// Offset of the returned part.
    pub(crate) fn ret_off(&self) -> u32 {
        self.ret.unwrap_or((0, 0)).0
    }
}

fn encode_call(c: &Call) -> [u8; size_of::<Call>()] {
    let mut b = [0; size_of::<Call>()];
    b[0..4].copy_from_slice(&c.nr.to_le_bytes());
    b[4..8].copy_from_slice(&c.store.to_le_bytes());
    b[8..14].copy_from_slice(&c.kinds);
    b[14] = c.on_error;
    for (i, a) in c.args.iter().enumerate() {
        b[16 + i * 8..24 + i * 8].copy_from_slice(&a.to_le_bytes());
    }
    b
}

/// What a program gave.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Raw results of the calls that were run.
    pub results: Vec<i64>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ret_off: u32,
}

impl Reply {
    /// A call's raw result; `i64::MIN` if it was not reached.
    pub fn raw(&self, c: CallId) -> i64 {
        self.results.get(c.0 as usize).copied().unwrap_or(i64::MIN)
    }

    /// A call's result.
    pub fn get(&self, c: CallId) -> std::io::Result<i64> {
        match self.raw(c) {
            i64::MIN => Err(std::io::Error::other("an earlier call of the program failed")),
            e @ -4095..=-1 => Err(std::io::Error::from_raw_os_error(-e as i32)),
            v => Ok(v),
        }
    }

    /// Content of a part of the buffer after the program.
    pub fn bytes(&self, o: Out) -> &[u8] {
        let a = (o.off - self.ret_off) as usize;
        &self.bytes[a..a + o.len as usize]
    }

    /// A u32 in a part of the buffer.
    pub fn u32(&self, o: Out, off: usize) -> u32 {
        let b = &self.bytes(o)[off..off + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }

    /// A u64 in a part of the buffer.
    pub fn u64(&self, o: Out, off: usize) -> u64 {
        self.u32(o, off) as u64 | (self.u32(o, off + 4) as u64) << 32
    }
}
