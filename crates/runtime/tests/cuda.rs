//! CUDA's backend against the processors', to the bit: every family's checkpoint, on fibers that carry out the kernels of
//! the GPU.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::path::Path;

use plimsoll_cuda::{Fibers, Lane};
use plimsoll_kernels::Inputs;
use plimsoll_plan::Region;
use plimsoll_program::Op;
use plimsoll_runtime::Inside;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_schedule::{Beam, Fan, Preempt, Stats};
use plimsoll_units::{DType, WeightType};

use support::both::{ONE, assert_equal, fixture};
use support::{Greedy, Model, Run, Seen, Server, expected, fixtures};

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
    same_on(Fibers::new(), model, server, requests, what)
}

fn same_on(
    fibers: Fibers,
    model: &Model,
    server: &Server,
    requests: &[(Vec<u32>, u32, Fan)],
    what: &str,
) -> Stats {
    let here = model.serve(server, requests);
    let exact = Arithmetic::Exact;
    let engine = model.engine_of(server, Box::new(fibers), Greedy::default(), exact);
    assert_equal(&here, &model.serve_on(engine, requests), what)
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
            (DType::F8E4m3, WeightType::Bf16),
            (DType::I8, WeightType::Bf16),
            (DType::Bf16, WeightType::Fp8),
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
fn weights_lie_as_on_processors() {
    for name in ["gpt2", "mixtral", "gpt_oss_mxfp4", "granite_hybrid"] {
        let (model, _) = fixture(name);
        for weights in WeightType::ALL {
            let server = Server { weights, ..small() };
            let len = model.program(&server).weight_bytes.get();
            let mut cpu = model.engine(&server);
            let device = Box::new(Fibers::new());
            let mut gpu = model.engine_of(&server, device, Greedy::default(), Arithmetic::Exact);
            let mut both = [(); 2].map(|()| vec![1; usize::try_from(len).unwrap()]);
            let [here, there] = &mut both;
            let region = Region::Weights;
            cpu.executor_mut()
                .backend_mut()
                .read(region, 0, here)
                .unwrap();
            gpu.executor_mut()
                .backend_mut()
                .read(region, 0, there)
                .unwrap();
            assert!(here == there, "{name}, {weights}");
        }
    }
}

#[test]
fn more_rows_than_a_grid_has_blocks_for_are_computed_some_at_a_time() {
    for name in ["llama", "mixtral", "gpt_oss", "deepseek_v3"] {
        let (model, tokens) = fixture(name);
        for weights in [WeightType::Bf16, WeightType::Int8] {
            let server = Server {
                weights,
                tokens: 40,
                ..small()
            };
            // Attention needs a block for each of its heads.
            let program = model.program(&server);
            let heads = program.ops.iter().map(|op| match op {
                Op::Attention(a) => a.kv_heads,
                Op::Latent(a) => a.heads,
                Op::Heads { weights, .. } => weights.len() as u64,
                _ => 1,
            });
            let most = u32::try_from(heads.max().unwrap()).unwrap();
            assert!(most <= 4, "{name}: fewer than there are rows for");
            let prompts = [(tokens[..32].to_vec(), 4, ONE)];
            same_on(Fibers::with_blocks(most), &model, &server, &prompts, name);
        }
    }
}

/// Requests that give way to each other, fork and search.
fn crowd(tokens: &[u32]) -> Vec<(Vec<u32>, u32, Fan)> {
    let some = |from: usize, n: usize| tokens[from..from + n].to_vec();
    let n = |n, best_of| Fan::Sample { n, best_of };
    vec![
        (some(0, 16), 24, n(3, 4)),
        (some(2, 9), 24, ONE),
        (some(1, 12), 24, n(2, 2)),
        (some(5, 10), 24, ONE),
    ]
}

/// A server that has not the pages for them.
fn crowded(model: &Model, preempt: Preempt) -> Server {
    model.tight(Server {
        block: 4,
        swap: 200,
        tokens: 24,
        outputs: 24,
        sequences: 16,
        preempt,
        prefix_cache: true,
        ..Server::default()
    })
}

#[test]
fn pages_that_went_and_came_back_and_copies_change_no_bit() {
    let beam = Fan::Beam(Beam {
        width: 3,
        length_penalty: 1.0,
        early_stopping: false,
    });
    for name in ["llama", "gemma3", "deepseek_v2_lite", "granite_hybrid"] {
        let (model, tokens) = fixture(name);
        let mut prompts = crowd(&tokens);
        prompts.insert(1, (tokens[..16].to_vec(), 24, beam));
        let mut both = [0, 0];
        // What moves beside steps moves as late as may be, or steps do.
        for (preempt, fibers) in [
            (Preempt::Swap, Fibers::late(Lane::Transfers)),
            (Preempt::Swap, Fibers::late(Lane::Compute)),
            (Preempt::Recompute, Fibers::new()),
        ] {
            let server = crowded(&model, preempt);
            let stats = same_on(fibers, &model, &server, &prompts, name);
            both[0] += stats.swaps;
            both[1] += stats.recomputes;
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
        }
        assert!(both.iter().all(|n| *n > 0), "{name}: {both:?}");
    }
}

/// What tensor cores generate, every position's logits, and the scheduler's counters.
fn fast(model: &Model, server: &Server, requests: &[(Vec<u32>, u32, Fan)]) -> Run {
    let fibers = Box::new(Fibers::new());
    let engine = model.engine_of(server, fibers, Greedy::default(), Arithmetic::Fast);
    model.serve_on(engine, requests)
}

fn numbers(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|b| f32::from_bits(*b)).collect()
}

/// How far logits of two engines are apart, in parts of the largest: the farthest of each position, in order.
fn apart(exact: &Seen, seen: &Seen) -> Vec<f32> {
    assert_eq!(exact.len(), seen.len());
    let all = exact.values().flat_map(|l| numbers(l));
    let size = all.fold(0.0_f32, |a, x| a.max(x.abs()));
    let at = exact.iter().map(|(at, logits)| {
        let (a, b) = (numbers(logits), numbers(&seen[at]));
        let off = a.iter().zip(&b).map(|(x, y)| (x - y).abs() / size);
        off.fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
    });
    let mut all: Vec<f32> = at.collect();
    all.sort_by(f32::total_cmp);
    all
}

#[test]
fn tensor_cores_are_near_the_processors() {
    let (mut ran, mut same) = (0, 0);
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&folder);
        let tokens = expected(&folder).0;
        // Prompts alone: what is generated may part where two tokens are as likely.
        let prompts = vec![(tokens.clone(), 1, ONE), (tokens[3..12].to_vec(), 1, ONE)];
        // At most, where no expert is another for a rounding; and at half of the positions.
        for (kv, weights, inputs, most, half) in [
            // The same is rounded on both sides: what differs is the order of sums, and what it makes others round to.
            (DType::F32, WeightType::Bf16, Inputs::Bf16, 0.005, 0.001),
            // Queries and weights of values are rounded, too, but not by the processors.
            (DType::Bf16, WeightType::Bf16, Inputs::Bf16, 0.02, 0.02),
            (DType::F16, WeightType::Bf16, Inputs::F32, 0.025, 0.01),
            // What is rounded to the other side of a middle is off by an eighth of itself.
            (DType::F8E4m3, WeightType::Bf16, Inputs::Bf16, 0.15, 0.04),
            (DType::I8, WeightType::Bf16, Inputs::Bf16, 0.03, 0.02),
            // Elements of weights are rounded to bfloat16, of four bits though their codes are.
            (DType::F32, WeightType::Fp8, Inputs::F32, 0.05, 0.02),
            // Here the processors round inputs, to eight bits.
            (DType::F16, WeightType::Int8, Inputs::F32, 0.1, 0.04),
            (DType::F32, WeightType::Int4, Inputs::F32, 0.1, 0.04),
        ] {
            let server = Server {
                kv,
                weights,
                inputs,
                block: if kv == DType::F16 { 5 } else { 16 },
                ..Server::default()
            };
            let program = model.program(&server);
            if plimsoll_runtime::check(&program).is_err() {
                assert_eq!(kv, DType::I8, "{name}");
                continue;
            }
            let experts = program.ops.iter().any(|op| matches!(op, Op::Route { .. }));
            let (_, exact, _) = model.serve(&server, &prompts);
            let (_, seen, _) = fast(&model, &server, &prompts);
            let apart = apart(&exact, &seen);
            let (middle, last) = (apart[apart.len() / 2], apart[apart.len() - 1]);
            let what = format!("{name}, {kv}, {weights}: {middle}, {last}");
            assert!(middle <= half && (experts || last <= most), "{what}");
            // That they are tensor cores.
            assert!(last > 0.0, "{what}");
            same += u32::from(middle < 3e-7);
            ran += 1;
        }
    }
    // Of the first kind, where hardly anything rounds differently.
    assert!(ran >= 100 && same >= 20, "{ran}, {same}");
}

#[test]
fn tensor_cores_do_not_see_batches_chunks_or_preemption() {
    for name in [
        "llama",
        "gemma3",
        "gpt_oss",
        "granite_hybrid_moe",
        "deepseek_v2_lite",
    ] {
        let (model, tokens) = fixture(name);
        let prompts = crowd(&tokens);
        let (texts, seen, stats) = fast(&model, &Server::default(), &prompts);
        assert_eq!(stats.swaps + stats.recomputes, 0);
        // Alone.
        for (i, prompt) in prompts.iter().enumerate() {
            let (alone, _, _) = fast(&model, &Server::default(), std::slice::from_ref(prompt));
            assert_eq!(alone[&0], texts[&(i as u64)], "{name}, {i}");
        }
        let mut both = [0, 0];
        for preempt in [Preempt::Swap, Preempt::Recompute] {
            let server = crowded(&model, preempt);
            let (there, seen_there, stats) = fast(&model, &server, &prompts);
            assert_eq!(texts, there, "{name}");
            for (at, logits) in &seen_there {
                assert_eq!(Some(logits), seen.get(at), "{name}: {at:?}");
            }
            both[0] += stats.swaps;
            both[1] += stats.recomputes;
        }
        assert!(both.iter().all(|n| *n > 0), "{name}: {both:?}");
    }
}

#[test]
fn long_sequences_come_to_the_same_in_parts() {
    for name in ["llama", "gemma3", "gpt_oss", "deepseek_v2_lite"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let model = Model::open(&folder).longest(1200);
        let tokens = expected(&folder).0;
        let prompt: Vec<u32> = tokens.iter().copied().cycle().take(1030).collect();
        let prompts = vec![
            (prompt[..1030].to_vec(), 4, ONE),
            (prompt[..40].to_vec(), 4, ONE),
        ];
        // Chunks of so many tokens that there is no need of parts, and of so few that there is.
        let server = |tokens| Server {
            tokens,
            outputs: 8,
            ..Server::default()
        };
        let (texts, seen, _) = fast(&model, &server(256), &prompts);
        let (there, seen_there, _) = fast(&model, &server(100), &prompts);
        assert_eq!(texts, there, "{name}");
        for (at, logits) in &seen_there {
            assert_eq!(Some(logits), seen.get(at), "{name}: {at:?}");
        }
    }
}
