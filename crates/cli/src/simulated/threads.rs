//! [`in_order`]: work on several threads whose results do not depend on how many there are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use crate::error::{Exit, Failure};

/// Does every job on at most `threads` threads, and gives the results in the order of the jobs. `done` is told
/// how many have ended.
///
/// # Errors
/// That of the first job in order that fails. Jobs are begun in order and none is begun after a failure, so it
/// is the same failure on any number of threads.
pub(crate) fn in_order<J: Sync, R: Send>(
    jobs: &[J],
    threads: usize,
    work: impl Fn(&J) -> Result<R, Failure> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Vec<R>, Failure> {
    let next = AtomicUsize::new(0);
    let ended = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results: Vec<Mutex<Option<Result<R, Failure>>>> =
        jobs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        let worker = || {
            while !failed.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(i) else { break };
                let result = work(job);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                if let Ok(mut slot) = results[i].lock() {
                    *slot = Some(result);
                }
                done(ended.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        // Fewer than asked for where the system has no more.
        let handles: Vec<_> = (0..threads.min(jobs.len()))
            .map_while(|_| Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        if handles.is_empty() {
            worker();
        }
        // A panic is seen by the result that is missing.
        handles.into_iter().for_each(|h| drop(h.join()));
    });
    let results = results
        .into_iter()
        .map(|slot| slot.into_inner().ok().flatten());
    let mut out = Vec::with_capacity(jobs.len());
    for result in results {
        out.push(result.unwrap_or_else(|| Err(stopped()))?);
    }
    Ok(out)
}

fn stopped() -> Failure {
    Failure::new(
        Exit::Failure,
        "E-SIM-001",
        "a simulation stopped in the middle",
    )
    .hint("this is a fault of ours: please report it with the command line")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(n: &u64) -> Result<u64, Failure> {
        // The later, the faster.
        std::hint::black_box((0..(100 - n) * 1000).sum::<u64>());
        if n % 10 == 9 {
            return Err(Failure::new(Exit::Failure, "E-TEST", n.to_string()));
        }
        Ok(n * n)
    }

    #[test]
    fn results_are_in_order_on_any_number_of_threads() {
        let jobs: Vec<u64> = (0..9).chain(10..19).chain(20..29).collect();
        let squares: Vec<u64> = jobs.iter().map(|n| n * n).collect();
        for threads in [0, 1, 2, 7, 100] {
            let all = AtomicUsize::new(0);
            let done = |_| {
                all.fetch_add(1, Ordering::Relaxed);
            };
            assert_eq!(in_order(&jobs, threads, odd, done).unwrap(), squares);
            assert_eq!(all.into_inner(), jobs.len());
        }
        assert!(in_order(&[], 3, odd, |_| ()).unwrap().is_empty());
    }

    #[test]
    fn the_first_failure_is_told() {
        let jobs: Vec<u64> = (0..100).collect();
        for threads in [1, 2, 16] {
            assert_eq!(in_order(&jobs, threads, odd, |_| ()).unwrap_err().what, "9");
        }
    }

    #[test]
    fn a_panic_is_a_failure() {
        let broken = |_: &u64| -> Result<u64, Failure> { panic!("broken on purpose") };
        assert_eq!(
            in_order(&[1, 2], 2, broken, |_| ()).unwrap_err().code,
            "E-SIM-001"
        );
    }
}
