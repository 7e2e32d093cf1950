//! The same for each of many processes, several at a time: what takes time is mostly to wait until one of them has answered.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// How many are dealt with at the same time. More than there are CPUs, as each waits most of the time.
const AT_ONCE: usize = 8;
/// Fewer are dealt with one after the other: to start threads takes time, too.
const FEW: usize = 3;

/// Does something with each. None are begun when one has failed; what was not begun is None. In the order of `all`.
pub(crate) fn over<T: Send, R: Send, E: Send>(
    all: impl ExactSizeIterator<Item = T>,
    f: impl Fn(usize, T) -> Result<R, E> + Sync,
) -> Vec<Option<Result<R, E>>> {
    let n = all.len();
    let items: Vec<Mutex<Option<T>>> = all.map(|item| Mutex::new(Some(item))).collect();
    let done: Vec<Mutex<Option<Result<R, E>>>> = (0..n).map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || loop {
        let i = next.fetch_add(1, Relaxed);
        let (Some(item), Some(done)) = (items.get(i), done.get(i)) else { return };
        if failed.load(Relaxed) {
            return;
        }
        let Some(item) = item.lock().unwrap_or_else(PoisonError::into_inner).take() else { continue };
        let r = f(i, item);
        failed.fetch_or(r.is_err(), Relaxed);
        *done.lock().unwrap_or_else(PoisonError::into_inner) = Some(r);
    };
    if n <= FEW {
        work();
    } else {
        // a panic in one of them goes on when all have ended
        std::thread::scope(|s| {
            let began = |_| std::thread::Builder::new().spawn_scoped(s, work).is_ok();
            // where no thread is to be had, this one does it all
            if (0..AT_ONCE.min(n)).filter(|i| began(*i)).count() == 0 {
                work();
            }
        });
    }
    done.into_iter().map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_in_order() {
        for n in [0, 1, 3, 50] {
            let r = over((0..n).map(|i| i * 2), |i, item| if item == i * 2 { Ok(i) } else { Err(()) });
            assert_eq!(r, (0..n).map(|i| Some(Ok(i))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_failure_ends_it() {
        let r = over(0..FEW, |i, _| if i == 1 { Err(i) } else { Ok(()) });
        assert_eq!((&r[1], &r[FEW - 1]), (&Some(Err(1)), &None));
        // several at a time: what is done beside it waits for it
        let (n, failed) = (100_000, AtomicBool::new(false));
        let r = over(0..n, |i, _| {
            failed.fetch_or(i == 1, Relaxed);
            while !failed.load(Relaxed) {
                std::thread::yield_now();
            }
            std::thread::yield_now();
            if i == 1 {
                Err(i)
            } else {
                Ok(())
            }
        });
        assert_eq!((&r[1], &r[n - 1]), (&Some(Err(1)), &None));
    }
}
