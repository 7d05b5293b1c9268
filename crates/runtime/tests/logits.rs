//! Logits of every position against transformers, in float32, for every family with a fixture.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_schedule::Fan;
use plimsoll_units::DType;
use support::{Model, Server, expected, fixtures, rounded};

/// Largest difference over largest logit, by the type of the cache. Weights are bfloat16 on both sides and
/// everything else is float32, so with a float32 cache only the order of sums differs: a few units of 2⁻²⁴,
/// grown by as many layers. A bfloat16 cache rounds each key and value to 2⁻⁹ of itself.
fn tolerance(kv: DType) -> f32 {
    if kv == DType::F32 { 2e-5 } else { 2e-2 }
}

#[test]
fn logits_are_those_of_transformers() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let model = Model::open(&folder);
        let (prompt, exact) = expected(&folder);
        let rounded = rounded(&folder);
        for kv in [DType::F32, DType::Bf16] {
            let same = rounded.as_ref().filter(|_| kv == DType::Bf16);
            let want = same.unwrap_or(&exact);
            let server = Server {
                kv,
                ..Server::default()
            };
            let request = (prompt.clone(), 1, Fan::ONE);
            let (_, seen, _) = model.serve(&server, &[request]);
            let vocab = want.len() / prompt.len();
            let size = want.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            let mut worst = 0.0_f32;
            for (i, want) in want.chunks(vocab).enumerate() {
                let got = &seen[&(0, 0, u32::try_from(i).unwrap())];
                for (g, w) in got.iter().zip(want) {
                    worst = worst.max((f32::from_bits(*g) - w).abs());
                }
            }
            println!("{name}, {kv} cache: largest difference {worst:.2e} of {size:.2}");
            assert!(
                worst <= tolerance(kv) * size,
                "{name}, {kv}: {worst} of {size}"
            );
        }
    }
}
