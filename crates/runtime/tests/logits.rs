//! Logits of every position against transformers, in float32, for every family with a fixture.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_schedule::Fan;
use plimsoll_units::{DType, WeightType};
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

/// Root of the mean squared difference over that of the logits, as quantisation may leave it. A matrix of the fixtures
/// has random elements, for which eight bits with their inputs' are off by 0.5 % and four bits by 8.5 % of a product's
/// size (`plimsoll-kernels`, linear); a few layers of a residual stream add up to some times that.
fn quantised_tolerance(weights: WeightType) -> f64 {
    match weights {
        WeightType::Bf16 => 0.0,
        WeightType::Int8 => 0.04,
        WeightType::Int4 => 0.5,
    }
}

#[test]
fn quantised_weights_stay_near_those_they_stand_for() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let model = Model::open(&folder);
        let (prompt, want) = expected(&folder);
        // A rounding may change which experts a token takes.
        if rounded(&folder).is_some() {
            continue;
        }
        let mut errors = Vec::new();
        for weights in [WeightType::Int8, WeightType::Int4] {
            let server = Server {
                weights,
                kv: DType::F32,
                ..Server::default()
            };
            let (_, seen, _) = model.serve(&server, &[(prompt.clone(), 1, Fan::ONE)]);
            let (mut off, mut size, mut dot, mut own) = (0.0, 0.0, 0.0, 0.0);
            for (i, want) in want.chunks(want.len() / prompt.len()).enumerate() {
                let got = &seen[&(0, 0, u32::try_from(i).unwrap())];
                for (g, w) in got.iter().zip(want) {
                    let (g, w) = (f64::from(f32::from_bits(*g)), f64::from(*w));
                    off += (g - w).powi(2);
                    size += w * w;
                    own += g * g;
                    dot += g * w;
                }
            }
            let (error, cosine) = ((off / size).sqrt(), dot / (own * size).sqrt());
            println!("{name}, {weights}: error {error:.4}, cosine {cosine:.6}");
            errors.push((weights, error));
        }
        for (weights, error) in &errors {
            let most = quantised_tolerance(*weights);
            assert!(*error > 0.0 && *error < most, "{name}, {weights}: {error}");
        }
        assert!(errors[0].1 < errors[1].1, "{name}: {errors:?}");
    }
}
