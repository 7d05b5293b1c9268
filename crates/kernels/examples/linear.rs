//! One core's rates by type of weights, shape and rows, the best of some runs:
//! `cargo run --release -p plimsoll-kernels --example linear`.
//!
//! Few rows wait for weights: their share of what the core reads is printed. Many rows wait for arithmetic.

use plimsoll_kernels::{Level, Linear, Pool, Start, read_bytes_per_s};
use plimsoll_units::WeightType;

/// Bytes of weights that are gone through, so that none are in a cache where there are few rows.
const COLD: usize = 128 << 20;

/// Nanoseconds of the quickest of some runs.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    (0..runs)
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
    let all = vec![1_u32; COLD / 4];
    let read =
        read_bytes_per_s(&mut pool, std::time::Duration::from_millis(150), &all) as f64 / 1e9;
    println!("read: {read:.1} GB/s");
    drop(all);
    let level = Level::detect();
    println!("{}", level.name());
    for form in WeightType::ALL {
        for (k, n) in [(768, 2048), (2048, 8192), (2048, 32000)] {
            for m in [1, 2, 4, 8, 16, 128, 512] {
                let bytes = form.bytes(n as u64, k as u64).map_or(0, |b| b.get()) as usize;
                let copies = if m < 16 { COLD.div_ceil(bytes) } else { 1 };
                let words: Vec<Vec<u32>> =
                    (0..copies).map(|_| vec![0x3f80_3f80; bytes / 4]).collect();
                let x = vec![0.5; k * m];
                let mut scratch = vec![0.0; m * form.input_words(k as u64) as usize];
                let mut y = vec![0.0; n * m];
                let runs = if m < 128 { 8 } else { 3 };
                let ns = best(runs, || {
                    for w in &words {
                        let matrix = Linear::new(w, form, n, k);
                        matrix.run(&mut pool, level, &x, m, &mut scratch, &mut y, Start::Zero);
                    }
                }) / copies as f64;
                let rate = bytes as f64 / ns;
                let share = if m < 16 {
                    format!(", {:.0} % of reads", 100.0 * rate / read)
                } else {
                    String::new()
                };
                println!(
                    "{form} {k} x {n}, {m} rows: {:.1} GOP/s, {rate:.1} GB/s{share}",
                    (2 * n * k * m) as f64 / ns,
                );
            }
        }
    }
}
