//! What this machine's processors can do at most, measured: bounds that kernels are held against.
#![allow(
    unsafe_code,
    reason = "kernels of a level run where the processor has it"
)]

use std::time::{Duration, Instant};

use crate::cpu::Level;
use crate::lanes::{LANES, Lanes, at_level, for_levels};
use crate::linear::{Inputs, dot_chains};
use crate::pool::Pool;

/// Words that a thread reads before it takes more.
const TILE: usize = 1 << 16;
/// Accumulators that are worked on at once: what fits into AVX2's registers, and what hides the latency of wider ones.
const FEW: usize = 6;
const MANY: usize = 12;
/// Times that each of them is added to in a tile.
const ROUNDS: usize = 2_000;

/// The best of the runs that begin within `time`, as `work` per second.
pub fn best_per_s(time: Duration, work: u64, mut run: impl FnMut()) -> u64 {
    let (began, mut least) = (Instant::now(), Duration::MAX);
    while began.elapsed() < time || least == Duration::MAX {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed());
    }
    let per_s = u128::from(work) * 1_000_000_000 / least.as_nanos().max(1);
    u64::try_from(per_s).unwrap_or(u64::MAX)
}

/// Bytes of `words` that all threads read in a second, measured for `time`. Words that fit into the processor's caches
/// measure these.
pub fn read_bytes_per_s(pool: &mut Pool, time: Duration, words: &[u32]) -> u64 {
    let tiles = words.len().div_ceil(TILE);
    best_per_s(time, words.len() as u64 * 4, || {
        pool.run(tiles, |i| {
            let tile = &words[i * TILE..words.len().min((i + 1) * TILE)];
            let sum = tile.chunks_exact(64).fold([0_u32; 64], |mut sum, c| {
                sum.iter_mut()
                    .zip(c)
                    .for_each(|(s, c)| *s = s.wrapping_add(*c));
                sum
            });
            std::hint::black_box(sum);
        });
    })
}

/// Operations that all threads do in a second at `level`, measured for twice `time`: two for each multiply-add of f32, or
/// of bfloat16 where `inputs` are and the processor multiplies them by itself.
pub fn flops_per_s(pool: &mut Pool, time: Duration, level: Level, inputs: Inputs) -> u64 {
    let tiles = pool.threads() * 16;
    if let (Inputs::Bf16, Some((dots, each))) = (inputs, dot_chains(level)) {
        let work = (tiles * ROUNDS) as u64 * each;
        return best_per_s(2 * time, work, || pool.run(tiles, |_| dots(ROUNDS)));
    }
    let work = |chains: usize| (tiles * chains * ROUNDS * LANES * 2) as u64;
    let few = best_per_s(time, work(FEW), || {
        pool.run(tiles, |_| at_level!(level, few_chains()));
    });
    let many = best_per_s(time, work(MANY), || {
        pool.run(tiles, |_| at_level!(level, many_chains()));
    });
    few.max(many)
}

for_levels!(few_chains, few_of());
for_levels!(many_chains, many_of());

#[inline(always)]
fn few_of<V: Lanes>() {
    chains::<V, FEW>();
}

#[inline(always)]
fn many_of<V: Lanes>() {
    chains::<V, MANY>();
}

#[inline(always)]
fn chains<V: Lanes, const N: usize>() {
    use std::hint::black_box;
    // Numbers that the compiler does not see, so that it cannot tell the end from the start.
    let (a, b) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
    let mut sums: [V; N] = std::array::from_fn(|_| V::splat(black_box(0.5)));
    for _ in 0..ROUNDS {
        for s in &mut sums {
            *s = s.fma(a, b);
        }
    }
    black_box(sums.map(V::array));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_what_there_is() {
        let mut pool = Pool::new(1).expect("one thread is this one");
        let time = Duration::from_millis(20);
        // No processor does a million operations in a nanosecond: work that is not done would seem to.
        let flops = [Inputs::F32, Inputs::Bf16]
            .map(|inputs| flops_per_s(&mut pool, time, Level::detect(), inputs));
        let possible = flops.iter().all(|f| (1..1_000_000_000_000_000).contains(f));
        assert!(possible, "{flops:?}");
        assert!(read_bytes_per_s(&mut pool, time, &[1; 1 << 16]) > 0);
        // Nothing to read takes no time worth dividing by.
        assert_eq!(read_bytes_per_s(&mut pool, time, &[]), 0);
    }
}
