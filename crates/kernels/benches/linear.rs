//! `cargo bench -p plimsoll-kernels --bench linear`: one row and many, in GB/s of weights and GFLOP/s, beside
//! what this machine reads and multiplies.

use divan::Bencher;
use divan::counter::BytesCount;
use plimsoll_kernels::{Level, Linear, Pool, Start};
use plimsoll_units::WeightType;

fn main() {
    divan::main();
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Matrices enough that none is in a cache when its turn comes.
fn matrices(n: usize, k: usize) -> Vec<Vec<u32>> {
    let bytes = WeightType::Bf16
        .bytes(n as u64, k as u64)
        .map_or(0, |b| b.get() as usize);
    let copies = (512_usize << 20).div_ceil(bytes).clamp(1, 64);
    (0..copies).map(|_| vec![0x3f80_3f80; bytes / 4]).collect()
}

#[divan::bench(args = [(4096, 4096), (11008, 4096), (2048, 512)], sample_count = 40)]
fn one_row(bencher: Bencher, (n, k): (usize, usize)) {
    let all = matrices(n, k);
    let mut pool = Pool::new(threads()).expect("threads");
    let x = vec![0.5; k];
    let mut y = vec![0.0; n];
    let mut i = 0;
    bencher
        .counter(BytesCount::new(all[0].len() * 4))
        .bench_local(|| {
            i = (i + 1) % all.len();
            let matrix = Linear::new(&all[i], WeightType::Bf16, n, k);
            matrix.run(
                &mut pool,
                Level::detect(),
                &x,
                1,
                &mut [],
                &mut y,
                Start::Zero,
            );
        });
}

/// Streaming reads: the bound of [`one_row`].
#[divan::bench(sample_count = 40)]
fn read(bencher: Bencher) {
    let all = vec![1_u64; 64 << 20];
    let mut pool = Pool::new(threads()).expect("threads");
    bencher
        .counter(BytesCount::new(all.len() * 8))
        .bench_local(|| {
            let sums: Vec<std::sync::atomic::AtomicU64> = (0..64).map(|_| 0.into()).collect();
            pool.run(64, |i| {
                let part = &all[i << 20..(i + 1) << 20];
                let mut s = [0_u64; 16];
                for c in part.chunks_exact(16) {
                    for (s, c) in s.iter_mut().zip(c) {
                        *s = s.wrapping_add(*c);
                    }
                }
                sums[i].store(
                    s.iter().fold(0, |a, b| a ^ b),
                    std::sync::atomic::Ordering::Relaxed,
                );
            });
            sums.len()
        });
}

/// "Bytes" are floating-point operations here: two for each weight and row.
#[divan::bench(args = [2, 4, 16, 64, 256], sample_count = 20)]
fn rows(bencher: Bencher, m: usize) {
    let (n, k) = (4096, 4096);
    let all = matrices(n, k);
    let mut pool = Pool::new(threads()).expect("threads");
    let x = vec![0.5; k * m];
    let mut y = vec![0.0; n * m];
    let mut i = 0;
    bencher
        .counter(BytesCount::new(2 * n * k * m))
        .bench_local(|| {
            i = (i + 1) % all.len();
            let matrix = Linear::new(&all[i], WeightType::Bf16, n, k);
            matrix.run(
                &mut pool,
                Level::detect(),
                &x,
                m,
                &mut [],
                &mut y,
                Start::Zero,
            );
        });
}
