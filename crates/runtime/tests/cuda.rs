//! CUDA's backend against the processors', to the bit: every family's checkpoint, on fibers that carry out the kernels of
//! the GPU.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::path::Path;

use plimsoll_cuda::Fibers;
use plimsoll_schedule::{Beam, Fan, Preempt, Stats};
use plimsoll_units::{DType, WeightType};

use support::{Greedy, Model, Server, expected, fixtures};

const ONE: Fan = Fan::Sample { n: 1, best_of: 1 };

/// Prompts of several lengths, which begin at different tokens.
fn requests(tokens: &[u32]) -> Vec<(Vec<u32>, u32, Fan)> {
    let some = |from: usize, n: usize| tokens[from..from + n].to_vec();
    vec![
        (some(0, 16), 8, ONE),
        (some(3, 9), 8, ONE),
        (some(1, 1), 5, ONE),
    ]
}

fn small() -> Server {
    Server {
        tokens: 12,
        outputs: 12,
        sequences: 4,
        ..Server::default()
    }
}

/// What was generated, and every position's logits, are those of the processors.
fn same(model: &Model, server: &Server, requests: &[(Vec<u32>, u32, Fan)], what: &str) -> Stats {
    let (texts, seen, stats) = model.serve(server, requests);
    let engine = model.engine_of(server, Box::new(Fibers::new()), Greedy::default());
    let (there, seen_there, stats_there) = model.serve_on(engine, requests);
    assert_eq!(texts, there, "{what}");
    assert_eq!(seen.len(), seen_there.len(), "{what}");
    for (at, logits) in &seen {
        assert_eq!(Some(logits), seen_there.get(at), "{what}: {at:?}");
    }
    assert_eq!(stats, stats_there, "{what}");
    stats
}

#[test]
fn every_family_computes_the_same_to_the_bit() {
    let mut ran = 0;
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&folder);
        let prompts = requests(&expected(&folder).0);
        for (kv, weights) in [
            (DType::Bf16, WeightType::Bf16),
            (DType::F32, WeightType::Int8),
            (DType::F16, WeightType::Int4),
            (DType::I8, WeightType::Bf16),
        ] {
            let server = Server {
                kv,
                weights,
                // Blocks that are not whole tiles, too.
                block: if kv == DType::F16 { 5 } else { 16 },
                ..small()
            };
            if plimsoll_runtime::check(&model.program(&server)).is_err() {
                // Latents have no scales.
                assert_eq!(kv, DType::I8, "{name}");
                continue;
            }
            same(
                &model,
                &server,
                &prompts,
                &format!("{name}, {kv}, {weights}"),
            );
            ran += 1;
        }
    }
    assert!(ran >= 100, "{ran}");
}

#[test]
fn pages_that_went_and_came_back_and_copies_change_no_bit() {
    let n = |n, best_of| Fan::Sample { n, best_of };
    let beam = Fan::Beam(Beam {
        width: 3,
        length_penalty: 1.0,
        early_stopping: false,
    });
    for name in ["llama", "gemma3", "deepseek_v2_lite", "granite_hybrid"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let model = Model::open(&folder);
        let tokens = expected(&folder).0;
        let some = |from: usize, n: usize| tokens[from..from + n].to_vec();
        let prompts = vec![
            (some(0, 16), 24, n(3, 4)),
            (some(0, 16), 24, beam),
            (some(2, 9), 24, n(1, 1)),
            (some(1, 12), 24, n(2, 2)),
            (some(5, 10), 24, n(1, 1)),
        ];
        let mut both = [0, 0];
        for preempt in [Preempt::Swap, Preempt::Recompute] {
            let server = model.tight(Server {
                block: 4,
                swap: 200,
                tokens: 24,
                outputs: 24,
                sequences: 16,
                preempt,
                prefix_cache: true,
                ..Server::default()
            });
            let stats = same(&model, &server, &prompts, name);
            both[0] += stats.swaps;
            both[1] += stats.recomputes;
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
        }
        assert!(both.iter().all(|n| *n > 0), "{name}: {both:?}");
    }
}
