//! System V semaphores and message queues, as far as somebody beside their user can see, and the operations that tell what a process is to give
//! back (SEM_UNDO), for [`crate::program`]s.
//!
//! The kernel shows nobody the adjustments (semadj) of a process. But an operation with SEM_UNDO that would bring one out of its range fails
//! with ERANGE, and one that has to wait and may not with EAGAIN, and of several in one call either all happen or none (semop(2)). So a call that ends in
//! an operation that can never happen changes no value, and its error is the answer. What stays is an adjustment of 0 by the caller's process, for which the kernel
//! sets the set's time of the last operation as that process ends (ipc/sem.c, exit_sem).
use std::io;

/// linux/sem.h: values and adjustments end here (SEMVMX, SEMAEM).
const MOST: i32 = 32767;
/// linux/msg.h: look at the message of this index, and leave it (kernel with CONFIG_CHECKPOINT_RESTORE).
const MSG_COPY: i32 = 0o40000;

/// What semctl(2) tells of one semaphore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Semaphore {
    /// Its value.
    pub value: u16,
    /// Who used it last (GETPID), as this PID namespace numbers it; 0: nobody, or one outside.
    pub last: i32,
    /// How many wait, for it to become larger or 0.
    pub waiting: u32,
}

/// Asks about semaphore `n` of a set.
pub fn semaphore(id: i32, n: u32) -> io::Result<Semaphore> {
    let ask = |what: i32| {
        // SAFETY: these commands take no fourth argument and give an integer.
        let r = unsafe { libc::semctl(id, n as i32, what) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(r)
        }
    };
    let waiting = (ask(libc::GETNCNT)? + ask(libc::GETZCNT)?) as u32;
    Ok(Semaphore { value: ask(libc::GETVAL)? as u16, last: ask(libc::GETPID)?, waiting })
}

/// All semaphores of a set.
pub fn semaphores(id: i32, count: u32) -> io::Result<Vec<Semaphore>> {
    (0..count).map(|n| semaphore(id, n)).collect()
}

/// Most bytes that a message queue may hold (msg_qbytes).
pub fn most(id: i32) -> io::Result<u64> {
    // SAFETY: all zeros is a value of this struct of integers, which the call fills.
    let mut ds: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT writes one msqid_ds.
    if unsafe { libc::msgctl(id, libc::IPC_STAT, &mut ds) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ds.msg_qbytes)
}

/// The message of this index, which stays where it is: type and content. None: there are not so many. `room`: at least its bytes.
pub fn message(id: i32, index: u64, room: usize) -> io::Result<Option<(i64, Vec<u8>)>> {
    let mut buffer = vec![0u64; 1 + room.div_ceil(8)];
    let how = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: the buffer has a type's eight bytes and `room` behind them.
    let n = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), room, index as i64, how) };
    match n {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOMSG) => Ok(None),
            e => Err(e),
        },
        n => {
            let bytes = buffer[1..].iter().flat_map(|w| w.to_ne_bytes()).take(n as usize).collect();
            Ok(Some((buffer[0] as i64, bytes)))
        }
    }
}

/// Whether each of these tasks has a list of what it is to give back: only then can there be anything on it. Where the kernel does not tell (kcmp) it
/// may have one. A process has one list for all its threads, once it has threads.
pub fn have_lists(tasks: &[i32]) -> Vec<bool> {
    // a thread that leaves its list has none from then on, and is what others are compared with
    let ask = || {
        // SAFETY: with this flag unshare(2) lets go of this thread's list, on which nothing is, and touches no memory.
        let none = unsafe { libc::unshare(libc::CLONE_SYSVSEM) } == 0;
        let me = nix::unistd::gettid().as_raw();
        let same = |tid: &i32| crate::kcmp::shares(me, *tid, crate::kcmp::Resource::SysvSem);
        tasks.iter().map(|tid| !none || !same(tid).is_ok_and(|same| same)).collect()
    };
    let all = std::thread::scope(|s| std::thread::Builder::new().spawn_scoped(s, ask).ok()?.join().ok());
    all.unwrap_or_else(|| vec![true; tasks.len()])
}

/// Removes a set of semaphores.
pub fn remove_set(id: i32) {
    // SAFETY: IPC_RMID takes no further argument.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
}

/// Makes a set of semaphores, or a message queue, and removes it: whoever comes next does not get the number that was chosen by `sem_next_id` or `msg_next_id`, which
/// take no number that means none.
pub fn use_up(set: bool) -> io::Result<()> {
    // SAFETY: these calls take integers.
    let id = unsafe {
        if set {
            libc::semget(libc::IPC_PRIVATE, 1, 0o600)
        } else {
            libc::msgget(libc::IPC_PRIVATE, 0o600)
        }
    };
    match id {
        ..0 => return Err(io::Error::last_os_error()),
        _ if set => remove_set(id),
        _ => remove_queue(id),
    }
    Ok(())
}

/// Removes a segment of shared memory when nobody is attached any more.
pub fn remove_segment(id: i32) {
    // SAFETY: IPC_RMID does not look at its pointer.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

/// Removes a message queue.
pub fn remove_queue(id: i32) {
    // SAFETY: IPC_RMID does not look at its pointer.
    unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

/// `struct sembuf`s: number of the semaphore, operation, flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations(Vec<u8>);

impl Operations {
    fn add(&mut self, n: u16, op: i32, flags: i32) {
        self.0.extend_from_slice(&n.to_ne_bytes());
        self.0.extend_from_slice(&(op as i16).to_ne_bytes());
        self.0.extend_from_slice(&((flags | libc::IPC_NOWAIT) as i16).to_ne_bytes());
    }

    /// As semop(2) takes them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / 6
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The value goes to 0, and only if it is `value`; else the call fails with EAGAIN.
fn from_zero(n: u16, value: u16) -> Operations {
    let mut all = Operations::default();
    if value > 0 {
        all.add(n, -i32::from(value), 0);
    }
    all.add(n, 0, 0);
    all
}

/// Changes no value. It fails with ERANGE if the value of semaphore `n` is `value` and the adjustment of the caller's process is at least `least`
/// (from 1), else with EAGAIN.
pub fn at_least(n: u16, value: u16, least: i32) -> Operations {
    let mut all = from_zero(n, value);
    all.add(n, MOST, 0);
    all.add(n, least - MOST - 1, libc::SEM_UNDO);
    all.add(n, -MOST - 1, 0);
    all
}

/// The same if it is at most `most` (up to -1).
pub fn at_most(n: u16, value: u16, most: i32) -> Operations {
    let mut all = from_zero(n, value);
    let up = (most + MOST + 2).min(MOST);
    all.add(n, up, libc::SEM_UNDO);
    if most == -1 {
        all.add(n, -MOST, 0);
        all.add(n, 1, libc::SEM_UNDO);
    }
    all.add(n, -MOST - 1, 0);
    all
}

/// Makes the caller the last who used semaphore `n`, whose value is `value` and stays that.
pub fn touch(n: u16, value: u16) -> Operations {
    let up = if i32::from(value) == MOST { -1 } else { 1 };
    let mut all = Operations::default();
    all.add(n, up, 0);
    all.add(n, -up, 0);
    all
}

/// Gives the caller's process the adjustment `adjust` of semaphore `n`, whose value is `value` and stays that. It had none.
pub fn adjust(n: u16, value: u16, adjust: i32) -> Operations {
    let mut all = Operations::default();
    let (mut left, value) = (adjust, i32::from(value));
    while left != 0 {
        // as far as the value can go and come back: more than half of the range in one of the two directions
        let (down_first, up_first) = (value, MOST - value);
        let step = left.abs().min(down_first.max(up_first));
        // the operation that is to be undone goes the other way
        let undone = -left.signum() * step;
        let first_is_undone = if undone < 0 { down_first >= step } else { up_first >= step };
        let both = [(undone, libc::SEM_UNDO), (-undone, 0)];
        let order = if first_is_undone { [both[0], both[1]] } else { [both[1], both[0]] };
        order.into_iter().for_each(|(op, flags)| all.add(n, op, flags));
        left -= left.signum() * step;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set of one semaphore, removed in the end.
    struct Set(i32);

    impl Set {
        fn new() -> Set {
            // SAFETY: semget takes three integers.
            let id = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
            assert!(id >= 0, "{}", io::Error::last_os_error());
            Set(id)
        }

        fn set(&self, value: u16) {
            // SAFETY: SETVAL takes an integer.
            assert_eq!(unsafe { libc::semctl(self.0, 0, libc::SETVAL, i32::from(value)) }, 0);
        }

        fn run(&self, all: &Operations) -> io::Result<()> {
            let mut words: Vec<u16> = all.bytes().chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect();
            // SAFETY: the words are `len` structures of three 16-bit numbers.
            match unsafe { libc::semop(self.0, words.as_mut_ptr().cast(), all.len()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }

        fn is(&self, all: Operations) -> bool {
            match self.run(&all).map_err(|e| e.raw_os_error()) {
                Err(Some(libc::ERANGE)) => true,
                Err(Some(libc::EAGAIN)) => false,
                r => panic!("{r:?}"),
            }
        }
    }

    impl Drop for Set {
        fn drop(&mut self) {
            remove_set(self.0);
        }
    }

    #[test]
    fn adjustments_are_made_and_told() {
        for value in [0, 1, 5, 16000, 16384, 32766, 32767] {
            for a in [0, 1, -1, 2, -2, 77, -77, 16384, -20000, 32766, 32767, -32767] {
                let set = Set::new();
                set.set(value);
                let made = adjust(0, value, a);
                if !made.is_empty() {
                    set.run(&made).unwrap_or_else(|e| panic!("{a} at {value}: {e}"));
                }
                assert_eq!(semaphore(set.0, 0).unwrap().value, value);
                for t in [1, 2, 77, 78, 16384, 16385, 32766, 32767] {
                    assert_eq!(set.is(at_least(0, value, t)), a >= t, "{a} at {value}, at least {t}");
                    assert_eq!(set.is(at_most(0, value, -t)), a <= -t, "{a} at {value}, at most -{t}");
                }
                // another value: no answer
                assert!(!set.is(at_least(0, value ^ 1, 1)) && !set.is(at_most(0, value ^ 1, -1)));
                assert_eq!(semaphore(set.0, 0).unwrap().value, value);
                set.run(&touch(0, value)).unwrap();
                let now = semaphore(set.0, 0).unwrap();
                assert_eq!((now.value, now.last, now.waiting), (value, std::process::id() as i32, 0));
            }
        }
    }

    #[test]
    fn who_has_no_list_owes_nothing() {
        // it has one thread and has never asked for SEM_UNDO; this process has threads
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let all = have_lists(&[child.id() as i32, std::process::id() as i32]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(all, [false, true]);
    }

    #[test]
    fn messages_are_copied() {
        // SAFETY: msgget takes two integers.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
        assert!(id >= 0);
        let sent = [(5i64, &b"first"[..]), (1, b""), (9, b"a third, longer one")];
        for (kind, text) in sent {
            let mut m = kind.to_ne_bytes().to_vec();
            m.extend_from_slice(text);
            // SAFETY: a type, and as many bytes behind it as are said.
            assert_eq!(unsafe { libc::msgsnd(id, m.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) }, 0);
        }
        for _ in 0..2 {
            let got: Vec<_> = (0..4).map(|i| message(id, i, 32).unwrap()).collect();
            let want = sent.map(|(kind, text)| Some((kind, text.to_vec())));
            assert_eq!((&got[..3], &got[3]), (&want[..], &None));
        }
        assert!(message(id, 2, 5).is_err() && most(id).unwrap() > 0);
        remove_queue(id);
        assert!(most(id).is_err());
    }
}
