//! One core's rates, the best of some runs:
//! `cargo run --release -p plimsoll-kernels --example linear`.

use plimsoll_kernels::{Level, Linear, Pool, Start, packed_bytes};

/// Nanoseconds of the quickest of some runs.
fn best(mut f: impl FnMut()) -> f64 {
    (0..15)
        .map(|_| {
            let began = std::time::Instant::now();
            f();
            began.elapsed().as_nanos() as f64
        })
        .fold(f64::INFINITY, f64::min)
}

#[allow(clippy::print_stdout, reason = "it is what this program is for")]
fn main() {
    let mut pool = Pool::new(1).expect("one thread is this one");
    let all = vec![1_u64; 64 << 20];
    let ns = best(|| {
        let sum = all.chunks_exact(16).fold([0_u64; 16], |mut s, c| {
            s.iter_mut()
                .zip(c)
                .for_each(|(s, c)| *s = s.wrapping_add(*c));
            s
        });
        std::hint::black_box(sum);
    });
    println!("read: {:.1} GB/s", (all.len() * 8) as f64 / ns);
    drop(all);
    for level in Level::ALL.into_iter().skip(1).filter(|l| l.is_available()) {
        for (n, k) in [(4096, 4096), (11008, 4096), (2048, 512)] {
            for m in [1, 2, 4, 16, 64, 256] {
                let bytes = packed_bytes(n, k).unwrap_or_default();
                let copies = if m < 16 {
                    (256_usize << 20).div_ceil(bytes).min(48)
                } else {
                    1
                };
                let words: Vec<Vec<u32>> =
                    (0..copies).map(|_| vec![0x3f80_3f80; bytes / 4]).collect();
                let x = vec![0.5; k * m];
                let mut y = vec![0.0; n * m];
                let ns = best(|| {
                    for w in &words {
                        Linear::new(w, n, k).run(&mut pool, level, &x, m, &mut y, Start::Zero);
                    }
                }) / copies as f64;
                println!(
                    "{} {n} x {k}, {m} rows: {:.1} GFLOP/s, {:.1} GB/s",
                    level.name(),
                    (2 * n * k * m) as f64 / ns,
                    bytes as f64 / ns
                );
            }
        }
    }
}
