//! The programs of seccomp filters (classic BPF), run with what is known of a call: where a jump depends on what is not known, both ways are gone.
//!
//! Jumps lead forward only, so each instruction is looked at once, with what is known on every way to it.
use super::{Args, Verdict, INSTRUCTION};

/// linux/seccomp.h: what a filter returns, in the high half.
const ACTION: u32 = 0xffff_0000;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ERRNO: u32 = 0x0005_0000;
/// Somebody else answers.
pub const USER_NOTIF: u32 = 0x7fc0_0000;
/// linux/audit.h
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Words of struct seccomp_data: number, architecture, instruction pointer, arguments.
const WORDS: usize = 16;
const FIRST_ARG: usize = 4;
/// Words that a program may keep (BPF_MEMWORDS).
const MEM: usize = 16;

/// struct seccomp_data as far as it is known.
pub type Data = [Option<u32>; WORDS];

/// What a filter gets of a call.
pub fn data(nr: i64, args: &Args) -> Data {
    let mut d = [None; WORDS];
    d[0] = Some(nr as u32);
    d[1] = Some(AUDIT_ARCH_X86_64);
    for (i, a) in args.iter().enumerate() {
        d[FIRST_ARG + 2 * i] = a.map(|a| a as u32);
        d[FIRST_ARG + 2 * i + 1] = a.map(|a| (a >> 32) as u32);
    }
    d
}

#[derive(Clone, Copy, PartialEq)]
struct State {
    a: Option<u32>,
    x: Option<u32>,
    mem: [Option<u32>; MEM],
}

/// What holds on both ways.
fn both(p: Option<u32>, q: Option<u32>) -> Option<u32> {
    p.filter(|_| p == q)
}

impl State {
    fn join(&mut self, o: &State) {
        self.a = both(self.a, o.a);
        self.x = both(self.x, o.x);
        self.mem.iter_mut().zip(o.mem).for_each(|(m, o)| *m = both(*m, o));
    }
}

#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

fn instruction(b: &[u8]) -> Instruction {
    Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    }
}

/// Whether it has an instruction that returns this action.
pub fn returns(code: &[u8], action: u32) -> bool {
    code.chunks_exact(INSTRUCTION).map(instruction).any(|i| i.code == 0x06 && i.k & ACTION == action)
}

fn action(value: Option<u32>) -> Verdict {
    match value.map(|v| v & ACTION) {
        Some(ALLOW | LOG) => Verdict::Allowed,
        // without a tracer that asks for it a call is answered with ENOSYS
        Some(ERRNO | TRACE) => Verdict::Fails,
        _ => Verdict::Deadly,
    }
}

/// The worst that this program may answer. What is no program of a filter is taken to be deadly.
pub fn verdict(code: &[u8], data: &Data) -> Verdict {
    let program: Vec<Instruction> = code.chunks_exact(INSTRUCTION).map(instruction).collect();
    let mut ways: Vec<Option<State>> = vec![None; program.len()];
    if let Some(first) = ways.first_mut() {
        *first = Some(State { a: Some(0), x: Some(0), mem: [Some(0); MEM] });
    }
    let mut worst = if program.is_empty() { Verdict::Deadly } else { Verdict::Allowed };
    for (at, i) in program.iter().enumerate() {
        let Some(mut s) = ways[at] else { continue };
        match step(i, &mut s, data) {
            Step::Return(v) => worst = worst.max(action(v)),
            Step::Bad => return Verdict::Deadly,
            Step::On(next) => {
                for by in next.into_iter().flatten() {
                    match at.checked_add(1 + by as usize).and_then(|to| ways.get_mut(to)) {
                        Some(Some(there)) => there.join(&s),
                        Some(there) => *there = Some(s),
                        None => return Verdict::Deadly,
                    }
                }
            }
        }
        if worst == Verdict::Deadly {
            break;
        }
    }
    worst
}

enum Step {
    /// To these instructions, counted from the next.
    On([Option<u32>; 2]),
    Return(Option<u32>),
    Bad,
}

/// One instruction (linux/bpf_common.h: class in the low three bits).
fn step(i: &Instruction, s: &mut State, data: &Data) -> Step {
    let memory = s.mem.get(i.k as usize).copied();
    match (i.code, memory) {
        // ld, ldx: of the call, immediate, memory, length
        (0x20, _) => match data.get(i.k as usize / 4).filter(|_| i.k.is_multiple_of(4)) {
            Some(v) => s.a = *v,
            None => return Step::Bad,
        },
        (0x00, _) => s.a = Some(i.k),
        (0x01, _) => s.x = Some(i.k),
        (0x60, Some(m)) => s.a = m,
        (0x61, Some(m)) => s.x = m,
        (0x80, _) => s.a = Some(4 * WORDS as u32),
        (0x81, _) => s.x = Some(4 * WORDS as u32),
        // st, stx
        (0x02, Some(_)) => s.mem[i.k as usize] = s.a,
        (0x03, Some(_)) => s.mem[i.k as usize] = s.x,
        // tax, txa
        (0x07, _) => s.x = s.a,
        (0x87, _) => s.a = s.x,
        (0x06, _) => return Step::Return(Some(i.k)),
        (0x16, _) => return Step::Return(s.a),
        (0x05, _) => return Step::On([Some(i.k), None]),
        (code, _) if code & 7 == 5 => return jump(i, s),
        (code, _) if code & 7 == 4 => {
            // by 0 it is divided nowhere: the kernel ends the program there, with 0
            let by = if code & 8 != 0 { s.x } else { Some(i.k) };
            if code & 0xf7 == 0x34 && by.is_none_or(|by| by == 0) {
                return Step::Bad;
            }
            match calculated(code & 0xf0, s.a, by) {
                Some(a) => s.a = a,
                None => return Step::Bad,
            }
        }
        _ => return Step::Bad,
    }
    Step::On([Some(0), None])
}

/// jeq, jgt, jge, jset, with a constant or with x.
fn jump(i: &Instruction, s: &State) -> Step {
    let with = if i.code & 8 != 0 { s.x } else { Some(i.k) };
    let is = |f: fn(u32, u32) -> bool| s.a.zip(with).map(|(a, w)| f(a, w));
    let taken = match i.code & 0xf0 {
        0x10 => is(|a, w| a == w),
        0x20 => is(|a, w| a > w),
        0x30 => is(|a, w| a >= w),
        0x40 => is(|a, w| a & w != 0),
        _ => return Step::Bad,
    };
    let (yes, no) = (i.jt as u32, i.jf as u32);
    match taken {
        Some(true) => Step::On([Some(yes), None]),
        Some(false) => Step::On([Some(no), None]),
        None => Step::On([Some(yes), Some(no)]),
    }
}

/// Outer None: there is no such operation.
fn calculated(op: u16, a: Option<u32>, by: Option<u32>) -> Option<Option<u32>> {
    let both = |f: fn(u32, u32) -> u32| a.zip(by).map(|(a, by)| f(a, by));
    Some(match op {
        0x00 => both(u32::wrapping_add),
        0x10 => both(u32::wrapping_sub),
        0x20 => both(u32::wrapping_mul),
        0x30 => both(|a, by| a.checked_div(by).unwrap_or(0)),
        0x40 => both(|a, by| a | by),
        0x50 => both(|a, by| a & by),
        0x60 => both(|a, by| a.checked_shl(by).unwrap_or(0)),
        0x70 => both(|a, by| a.checked_shr(by).unwrap_or(0)),
        0x80 => a.map(u32::wrapping_neg),
        0xa0 => both(|a, by| a ^ by),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(all: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes = |(code, jt, jf, k): &(u16, u8, u8, u32)| {
            [&code.to_le_bytes()[..], &[*jt, *jf], &k.to_le_bytes()[..]].concat()
        };
        all.iter().flat_map(bytes).collect()
    }

    fn of(all: &[(u16, u8, u8, u32)], nr: i64, args: Args) -> Verdict {
        verdict(&program(all), &data(nr, &args))
    }

    const UNKNOWN: Args = [None; 6];

    /// socket(2) of AF_UNIX is allowed, of any other family it is deadly; all else fails.
    const BY_ARGUMENT: [(u16, u8, u8, u32); 6] = [
        (0x20, 0, 0, 0),
        (0x15, 0, 2, 41),
        (0x20, 0, 0, 16),
        (0x15, 1, 2, 1),
        (0x06, 0, 0, 0x0005_0001),
        (0x06, 0, 0, 0x7fff_0000),
    ];

    #[test]
    fn what_is_known_decides_and_what_is_not_goes_both_ways() {
        let mut p = BY_ARGUMENT.to_vec();
        p.push((0x06, 0, 0, 0x8000_0000));
        assert_eq!(of(&p, 41, [Some(1), None, None, None, None, None]), Verdict::Allowed);
        assert_eq!(of(&p, 41, [Some(2), None, None, None, None, None]), Verdict::Deadly);
        assert_eq!(of(&p, 41, UNKNOWN), Verdict::Deadly);
        assert_eq!(of(&p, 42, UNKNOWN), Verdict::Fails);
    }

    #[test]
    fn ways_that_meet_know_what_both_knew() {
        // by an unknown argument A becomes 7 either way, or 7 and 8
        let meet = |other: u32| {
            [
                (0x20, 0, 0, 16),
                (0x15, 0, 2, 1),
                (0x00, 0, 0, 7),
                (0x05, 0, 0, 1),
                (0x00, 0, 0, other),
                (0x15, 0, 1, 7),
                (0x06, 0, 0, 0x7ffc_0000),
                (0x06, 0, 0, 0),
            ]
        };
        assert_eq!(of(&meet(7), 1, UNKNOWN), Verdict::Allowed);
        assert_eq!(of(&meet(8), 1, UNKNOWN), Verdict::Deadly);
    }

    #[test]
    fn it_calculates_as_the_kernel_does() {
        let mut p = vec![(0x20, 0, 0, 0), (0x02, 0, 0, 3), (0x04, 0, 0, 5), (0x24, 0, 0, 2), (0x54, 0, 0, 0xff)];
        p.extend([(0x07, 0, 0, 0), (0x60, 0, 0, 3), (0x0c, 0, 0, 0), (0x74, 0, 0, 1), (0x34, 0, 0, 4)]);
        // ((n + 5) * 2 + n) >> 1) / 4 of 11 is 5
        p.extend([(0x15, 0, 1, 5), (0x06, 0, 0, 0x7fff_0000), (0x06, 0, 0, 0)]);
        assert_eq!(of(&p, 11, UNKNOWN), Verdict::Allowed);
        assert_eq!(of(&p, 31, UNKNOWN), Verdict::Deadly);
    }

    #[test]
    fn what_is_no_filter_is_deadly() {
        for p in [
            &[][..],
            &[(0x20, 0, 0, 64)],
            &[(0x20, 0, 0, 2)],
            &[(0x15, 9, 9, 0)],
            &[(0x00, 0, 0, 0)],
            &[(0xff, 0, 0, 0)],
            &[(0x05, 0, 0, u32::MAX)],
            &[(0x34, 0, 0, 0), (0x06, 0, 0, 0x7fff_0000)],
            &[(0x02, 0, 0, 16), (0x06, 0, 0, 0x7fff_0000)],
        ] {
            assert_eq!(of(p, 1, UNKNOWN), Verdict::Deadly, "{p:?}");
        }
    }

    proptest::proptest! {
        /// Whatever the bytes are, it comes to an end, and what nothing is known of is never judged better than what is known.
        #[test]
        fn less_known_is_never_better(code in proptest::collection::vec((proptest::sample::select(vec![0x20u16, 0x15, 0x25, 0x45, 0x05, 0x54, 0x07, 0x02, 0x61, 0x06, 0x16]), 0u8..3, 0u8..3, proptest::sample::select(vec![0u32, 1, 4, 16, 20, 0x7fff_0000, 0x0005_0001])), 1..12), a in 0u64..3) {
            let p = program(&code);
            let known = verdict(&p, &data(1, &[Some(a); 6]));
            proptest::prop_assert!(verdict(&p, &data(1, &UNKNOWN)) >= known);
        }
    }
}
