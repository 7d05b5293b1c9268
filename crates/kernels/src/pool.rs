//! [`Pool`]: threads that share the tiles of one kernel at a time.
//!
//! Tiles are handed out one by one, so a core that other work holds delays no more than the tile that it has.
//! Nothing is pinned. Threads spin briefly for the next kernel, then sleep. Which thread computes a tile never
//! changes a result: a tile's outputs depend on its inputs alone.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of a spin before a thread leaves its processor to others: some tens of microseconds.
const SPINS: u32 = 1_000;
/// Times that it leaves it before it sleeps.
const YIELDS: u32 = 500;

/// Elements of a tile of rows, at least: fewer are done before another thread has heard of them.
const ROW_ELEMENTS: usize = 16_384;

/// A kernel under way, by address; its tiles are claimed by counting up.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointee is `Sync`, and `Pool::run` keeps it alive until every thread has let go of it.
unsafe impl Send for Job {}

struct Shared {
    job: Mutex<Option<(Job, usize)>>,
    wake: Condvar,
    /// Kernels begun so far.
    epoch: AtomicUsize,
    /// The next tile.
    next: AtomicUsize,
    /// Threads, the caller's aside, that may still touch the kernel: counted up under the lock.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Threads that share the tiles of one kernel at a time; the caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's among them.
    ///
    /// # Errors
    /// Where the system starts no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            shared,
            threads: Vec::new(),
        };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("plimsoll-{i}"))
                .spawn(move || work(&shared))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads, the caller's among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f` once for every tile in `0..tiles`, on all threads, and returns when all calls have.
    ///
    /// # Panics
    /// Where `f` does, after every thread has let go of it.
    pub fn run(&mut self, tiles: usize, f: impl Fn(usize) + Sync) {
        if self.threads.is_empty() || tiles <= 1 {
            (0..tiles).for_each(f);
            return;
        }
        let s = &*self.shared;
        let f: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes. `run` takes the job back and does not return, nor unwind, before
        // `busy` is 0 again; threads count as busy, under the lock, before they touch a job.
        let job = Job(unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync),
                *const (dyn Fn(usize) + Sync + 'static),
            >(f)
        });
        {
            let mut slot = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            s.next.store(0, Ordering::Relaxed);
            *slot = Some((job, tiles));
            // Under the lock, so that nobody falls asleep between looking and waiting.
            s.epoch.fetch_add(1, Ordering::Release);
            s.wake.notify_all();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| claim(s, f, tiles)));
        // Whoever has not woken by now is not waited for.
        *s.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut spins = 0_u32;
        while s.busy.load(Ordering::Acquire) > 0 {
            spins = spins.saturating_add(1);
            // Whoever has the last tile may be waiting for this very processor.
            turn(spins);
        }
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(
            !s.panicked.swap(false, Ordering::Relaxed),
            "a kernel panicked on another thread"
        );
    }
}

impl Pool {
    /// Calls `f` once for every row of `out`, `width` elements each, with its number.
    ///
    /// # Panics
    /// Where `out` is not whole rows.
    pub fn rows(&mut self, out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        struct Rows(*mut f32);
        // SAFETY: each tile touches rows of its own.
        unsafe impl Sync for Rows {}
        if width == 0 {
            return;
        }
        let rows = out.len() / width;
        assert_eq!(rows * width, out.len(), "whole rows of {width}");
        let tile = rows
            .div_ceil(self.threads() * 8)
            .max(ROW_ELEMENTS.div_ceil(width))
            .max(1);
        let all = Rows(out.as_mut_ptr());
        let all = &all;
        self.run(rows.div_ceil(tile), |i| {
            for row in i * tile..((i + 1) * tile).min(rows) {
                // SAFETY: inside `out`, and this row is this call's alone.
                f(row, unsafe {
                    std::slice::from_raw_parts_mut(all.0.add(row * width), width)
                });
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _slot = self
                .shared
                .job
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for t in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}

fn claim(s: &Shared, f: &(dyn Fn(usize) + Sync), tiles: usize) {
    loop {
        let i = s.next.fetch_add(1, Ordering::Relaxed);
        if i >= tiles {
            return;
        }
        f(i);
    }
}

/// A turn of a spin after so many: at first the processor is kept, then others may have it, since threads may be more
/// than processors.
fn turn(spins: u32) {
    if spins < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while s.epoch.load(Ordering::Acquire) == seen && spins < SPINS + YIELDS {
            turn(spins);
            spins += 1;
        }
        let job = {
            let mut slot = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            while s.epoch.load(Ordering::Acquire) == seen {
                slot = s.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            seen = s.epoch.load(Ordering::Acquire);
            if slot.is_some() {
                s.busy.fetch_add(1, Ordering::Relaxed);
            }
            *slot
        };
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some((job, tiles)) = job {
            // SAFETY: `busy` counts this thread, so `run` has not returned and the closure is alive.
            let f = unsafe { &*job.0 };
            if catch_unwind(AssertUnwindSafe(|| claim(s, f, tiles))).is_err() {
                s.panicked.store(true, Ordering::Relaxed);
            }
            s.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_computed_once() {
        let mut pool = Pool::new(3).unwrap();
        for tiles in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tiles, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn many_kernels_follow_one_another() {
        let mut pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(4, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 20_000 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            let all = AssertUnwindSafe(|| pool.run(64, |i| assert!(i != 63)));
            assert!(catch_unwind(all).is_err());
        }
        pool.run(8, |_| {});
    }
}
