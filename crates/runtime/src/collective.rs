//! [`Collective`]: how a rank that holds a part of a model meets the others; [`Meeting`]: ranks that are threads of this
//! process, which may have NCCL as well.
//!
//! Promises: sums go over ranks in their order, element by element, so no bit depends on who came when; whoever waits
//! for a rank that failed is told so and waits no longer; nothing is copied on the way and nothing allocated. Every
//! rank adds up a part of the elements, reads them where the others have them, and writes the sums there.

#![allow(unsafe_code)]

use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use plimsoll_cuda::{Nccl, NcclError};

/// Turns of a spin before a rank sleeps: about what it takes to wake one, since ranks may be more than processors.
const SPINS: u32 = 2_000;
/// Elements that are added up at a time: they stay in registers and the nearest cache.
const STRIP: usize = 256;

/// Another rank failed, so what it would have brought is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another rank failed")]
pub struct Lost;

/// A rank's seat among the ranks of its model. All take part in the same calls, in the same order.
pub trait Collective: Debug + Send {
    /// `x` becomes the sum of what all ranks have there: the first and the second, then the third, and so on.
    ///
    /// # Errors
    /// [`Lost`].
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), Lost>;

    /// Each row of `out`, `width` elements, becomes the rows of `each` elements that the ranks have in `x`, one after the
    /// other, as far as there is room.
    ///
    /// # Errors
    /// [`Lost`].
    fn all_gather(&mut self, x: &[f32], out: &mut [f32], widths: [usize; 2]) -> Result<(), Lost>;

    /// Waits until all ranks are here, so that whatever they then begin together is not waited for in vain.
    ///
    /// # Errors
    /// [`Lost`].
    fn arrive(&mut self) -> Result<(), Lost>;

    /// Whether a rank was lost.
    fn is_lost(&self) -> bool;
}

/// What a rank shows the others while they meet.
#[derive(Debug, Default)]
struct Shown {
    start: AtomicPtr<f32>,
    len: AtomicUsize,
}

#[derive(Debug)]
struct Shared {
    shown: Vec<Shown>,
    /// Ranks that wait for the others.
    waiting: Mutex<usize>,
    wake: Condvar,
    /// Times that all were there.
    turns: AtomicUsize,
    /// Whether a rank failed: set under the lock.
    lost: AtomicBool,
    /// What else they wait for each other by.
    nccl: Option<Arc<Nccl>>,
}

/// The ranks of a model, as threads of this process.
#[derive(Clone, Debug)]
pub struct Meeting(Arc<Shared>);

impl Meeting {
    /// Of so many ranks.
    #[must_use]
    pub fn new(ranks: usize) -> Self {
        Self::with_nccl(ranks, None)
    }

    /// The same for ranks that pass messages by NCCL, too.
    #[must_use]
    pub fn with_nccl(ranks: usize, nccl: Option<Arc<Nccl>>) -> Self {
        let mut shown = Vec::new();
        shown.resize_with(ranks, Shown::default);
        Self(Arc::new(Shared {
            shown,
            waiting: Mutex::new(0),
            wake: Condvar::new(),
            turns: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            nccl,
        }))
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.0.shown.len()
    }

    /// A rank's seat; each is taken once.
    #[must_use]
    pub fn seat(&self, rank: usize) -> Box<dyn Collective> {
        assert!(rank < self.ranks(), "one of the ranks");
        Box::new(Seat {
            shared: Arc::clone(&self.0),
            rank,
        })
    }

    /// A rank failed: whoever waits for it goes, and whoever comes.
    pub fn fail(&self) {
        let waiting = self.0.lock();
        let known = self.0.lost.swap(true, Ordering::AcqRel);
        self.0.wake.notify_all();
        drop(waiting);
        if let Some(nccl) = self.0.nccl.as_ref().filter(|_| !known) {
            nccl.cut();
        }
    }

    /// All ranks begin anew; none of them is waiting.
    ///
    /// # Errors
    /// Where NCCL was cut and does not connect again: they stay lost.
    pub fn renew(&self) -> Result<(), NcclError> {
        if let Some(nccl) = self.0.nccl.as_ref().filter(|_| self.0.is_lost()) {
            nccl.connect()?;
        }
        let waiting = self.0.lock();
        debug_assert_eq!(*waiting, 0);
        self.0.lost.store(false, Ordering::Release);
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Waits until all ranks are here. Where `all` must come, nobody goes before that.
    fn wait(&self, all: bool) -> Result<(), Lost> {
        let gone = || !all && self.is_lost();
        let turn = {
            let mut waiting = self.lock();
            if gone() {
                return Err(Lost);
            }
            *waiting += 1;
            if *waiting == self.shown.len() {
                *waiting = 0;
                self.turns.fetch_add(1, Ordering::Release);
                self.wake.notify_all();
                return Ok(());
            }
            // It ends only under the lock.
            self.turns.load(Ordering::Relaxed)
        };
        let over = || self.turns.load(Ordering::Acquire) != turn;
        let mut spins = 0;
        while spins < SPINS && !over() && !gone() {
            std::hint::spin_loop();
            spins += 1;
        }
        let mut waiting = self.lock();
        loop {
            // All were here before one was lost.
            if over() {
                return Ok(());
            }
            if gone() {
                *waiting -= 1;
                return Err(Lost);
            }
            waiting = self
                .wake
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A rank between the others' coming and going: what it shows stays until all have gone.
struct Here<'a>(&'a Shared);

impl Drop for Here<'_> {
    fn drop(&mut self) {
        // Whoever came is on the way here, and nothing there waits for anybody.
        let _ = self.0.wait(true);
    }
}

#[derive(Debug)]
struct Seat {
    shared: Arc<Shared>,
    rank: usize,
}

impl Seat {
    /// Shows `len` elements from `start` on until all ranks have gone.
    fn meet(&self, start: *mut f32, len: usize) -> Result<Here<'_>, Lost> {
        let shown = &self.shared.shown[self.rank];
        shown.start.store(start, Ordering::Relaxed);
        shown.len.store(len, Ordering::Relaxed);
        // Its lock makes what all have shown, and what they computed, seen by all.
        self.shared.wait(false)?;
        let here = Here(&self.shared);
        let lens = self
            .shared
            .shown
            .iter()
            .map(|s| s.len.load(Ordering::Relaxed));
        assert!(
            lens.into_iter().all(|l| l == len),
            "ranks show as much as each other"
        );
        Ok(here)
    }

    fn start(&self, rank: usize) -> *mut f32 {
        self.shared.shown[rank].start.load(Ordering::Relaxed)
    }
}

/// A rank's part of `len` elements, of `ranks` about equal ones.
fn part(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    let each = len.div_ceil(ranks).next_multiple_of(16);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

impl Collective for Seat {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), Lost> {
        let (start, len) = (x.as_mut_ptr(), x.len());
        let here = self.meet(start, len)?;
        let ranks = self.shared.shown.len();
        let mine = part(len, self.rank, ranks);
        for from in mine.clone().step_by(STRIP) {
            let n = STRIP.min(mine.end - from);
            let mut sums = [0.0_f32; STRIP];
            let sums = &mut sums[..n];
            for rank in 0..ranks {
                // SAFETY: each rank shows `len` elements that it has borrowed mutably and touches only here, by these
                // pointers, until `here` and those of all others are dropped. Ranks' parts are apart, so no other
                // thread touches these elements.
                let x = unsafe { std::slice::from_raw_parts(self.start(rank).add(from), n) };
                if rank == 0 {
                    sums.copy_from_slice(x);
                } else {
                    sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
                }
            }
            for rank in 0..ranks {
                // SAFETY: as above; the slices that were read are gone.
                let x = unsafe { std::slice::from_raw_parts_mut(self.start(rank).add(from), n) };
                x.copy_from_slice(sums);
            }
        }
        drop(here);
        Ok(())
    }

    fn all_gather(
        &mut self,
        x: &[f32],
        out: &mut [f32],
        [each, width]: [usize; 2],
    ) -> Result<(), Lost> {
        let here = self.meet(x.as_ptr().cast_mut(), x.len())?;
        let ranks = self.shared.shown.len();
        for rank in 0..ranks {
            // SAFETY: each rank shows `x.len()` elements that are borrowed, and read only, until `here` and those of all
            // others are dropped.
            let x = unsafe { std::slice::from_raw_parts(self.start(rank).cast_const(), x.len()) };
            let at = (rank * each).min(width)..((rank + 1) * each).min(width);
            for (x, out) in x
                .chunks_exact(each.max(1))
                .zip(out.chunks_exact_mut(width.max(1)))
            {
                out[at.clone()].copy_from_slice(&x[..at.len()]);
            }
        }
        drop(here);
        Ok(())
    }

    fn arrive(&mut self) -> Result<(), Lost> {
        self.shared.wait(false)
    }

    fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of `n` ranks returns.
    fn each<T: Send>(
        n: usize,
        f: impl Fn(usize, &Meeting, Box<dyn Collective>) -> T + Sync,
    ) -> Vec<T> {
        let meeting = Meeting::new(n);
        std::thread::scope(|scope| {
            let one = |rank| {
                let (meeting, f) = (&meeting, &f);
                scope.spawn(move || f(rank, meeting, meeting.seat(rank)))
            };
            let all: Vec<_> = (0..n).map(one).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_go_over_ranks_in_their_order() {
        // The order shows: these are rounded.
        let value = |rank: usize, i: usize| ((i * 37 + 11) as f32).sqrt() * [1.0, 1e-3, 1e3][rank];
        for len in [0, 1, 15, 16, 17, 100, 1000] {
            let got = each(3, |rank, _, mut seat| {
                let mut x: Vec<f32> = (0..len).map(|i| value(rank, i)).collect();
                // Many meetings follow one another.
                for _ in 0..50 {
                    x = (0..len).map(|i| value(rank, i)).collect();
                    seat.all_reduce(&mut x).unwrap();
                }
                x
            });
            let want: Vec<f32> = (0..len)
                .map(|i| value(0, i) + value(1, i) + value(2, i))
                .collect();
            for x in got {
                assert_eq!(x, want);
            }
        }
    }

    #[test]
    fn rows_are_put_together_and_cut() {
        let got = each(3, |rank, _, mut seat| {
            let x: Vec<f32> = (0..4).map(|i| (10 * rank + i) as f32).collect();
            let mut out = vec![-1.0; 10];
            seat.all_gather(&x, &mut out, [2, 5]).unwrap();
            out
        });
        let want = [0.0, 1.0, 10.0, 11.0, 20.0, 2.0, 3.0, 12.0, 13.0, 22.0];
        assert_eq!(got, [want; 3]);
    }

    #[test]
    fn whoever_waits_for_a_lost_rank_is_released_and_all_begin_anew() {
        for lost in 0..3 {
            let meeting = Meeting::new(3);
            for _ in 0..20 {
                let seats: Vec<_> = (0..3).map(|r| meeting.seat(r)).collect();
                let got: Vec<_> = std::thread::scope(|scope| {
                    let one = |(rank, mut seat): (usize, Box<dyn Collective>)| {
                        let meeting = meeting.clone();
                        scope.spawn(move || {
                            let mut x = [rank as f32; 100];
                            seat.all_reduce(&mut x).unwrap();
                            assert_eq!(x, [3.0; 100]);
                            if rank == lost {
                                meeting.fail();
                                return Err(Lost);
                            }
                            seat.all_reduce(&mut x)
                        })
                    };
                    let all: Vec<_> = seats.into_iter().enumerate().map(one).collect();
                    all.into_iter().map(|t| t.join().unwrap()).collect()
                });
                assert_eq!(got, [Err(Lost); 3]);
                meeting.renew().unwrap();
            }
        }
    }
}
