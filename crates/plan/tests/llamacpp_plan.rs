//! Planning for llama.cpp: what evaluation, searches and versions make of its rules.

use plimsoll_device::{Device, find};
use plimsoll_model::{Assume, ModelSpec, from_config};
use plimsoll_plan::engine::llamacpp::{Net, Placement, Run, compute_buffer_bytes, kv_buffer_bytes};
use plimsoll_plan::{
    Deployment, Engine, Evaluation, Load, PlanError, Region, Settings, StageEvaluation, Verdict,
    evaluate, max_context, max_users, of_kinds,
};
use plimsoll_program::Parallel;
use plimsoll_units::Bytes;
use proptest::prelude::*;

/// A LLaMA-like model with `layers` layers of the 8B shape.
fn llama(layers: u64) -> ModelSpec {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "tie_word_embeddings": false,
    });
    from_config(&json, Assume::Nothing).expect("it lowers")
}

fn on(device: &str, pp: u64) -> Deployment {
    let device: &Device = find(device).expect("in the catalogue");
    Deployment {
        device: device.clone(),
        kinds: None,
        parallel: Parallel {
            pp,
            ..Parallel::default()
        },
        in_use: Bytes::ZERO,
    }
}

fn settings(engine: &str) -> Settings {
    Settings::new(engine.parse().expect("an engine"))
}

fn plan(spec: &ModelSpec, s: &Settings, load: &Load, pp: u64) -> Evaluation {
    evaluate(spec, &on("h100", pp), s, load).expect("a plan")
}

#[test]
fn a_plan_holds_what_the_process_would_allocate() {
    let spec = llama(32);
    let s = Settings {
        kv_unified: true,
        ..settings("llama.cpp")
    };
    let e = plan(&spec, &s, &Load::plain(4, 1024), 1);
    let run = Run {
        n_parallel: 4,
        kv_unified: true,
        n_outputs_max: Some(4),
        f16_copies: true,
        ..Run::new(4096)
    };
    let net = Net::new(&spec);
    let one = Placement::equal(1);
    let stage = &e.stages[0];
    let kv = kv_buffer_bytes(&net, &run, one, 0).unwrap();
    assert_eq!(stage.need.pool, kv.total().unwrap());
    assert_eq!(stage.kv_term.bytes, kv.attention);
    // 4,096 cells of 32 layers × (K + V) × 1,024 × 2 bytes.
    assert_eq!(kv.attention, Bytes::from_mib(512).unwrap());
    let compute = compute_buffer_bytes(&net, &run, one).unwrap().unwrap();
    assert_eq!(
        stage.region(Region::Activations).unwrap(),
        compute.devices[0]
    );
    assert_eq!(e.verdict, Verdict::Yes);
}

#[test]
fn the_cache_and_the_buffer_beside_it_share_what_is_left() {
    let spec = llama(32);
    let s = settings("llama.cpp");
    for context in [512, 4096, 20_000] {
        let e = plan(&spec, &s, &Load::plain(1, context), 1);
        let n = max_users(&e).unwrap();
        assert!((1..=256).contains(&n), "{context}: {n}");
        let at = |users| plan(&spec, &s, &Load::plain(users, context), 1).verdict;
        assert!(at(n) > Verdict::No);
        if n < 256 {
            assert_eq!(at(n + 1), Verdict::No, "{context}: {n}");
        }
        let longest = max_context(&e).unwrap();
        let at = |context| plan(&spec, &s, &Load::plain(1, context), 1).verdict;
        assert!(at(longest) > Verdict::No);
        assert_eq!(at(longest + 1), Verdict::No);
    }
}

/// What the planned load takes must not hide that a smaller one fits.
#[test]
fn a_load_far_too_large_still_finds_the_users_that_fit() {
    let spec = llama(32);
    let s = Settings {
        flash_attention: Some(false),
        kv_unified: true,
        ..settings("llama.cpp")
    };
    let large = plan(&spec, &s, &Load::plain(256, 131_072), 1);
    let small = plan(&spec, &s, &Load::plain(1, 131_072), 1);
    assert_eq!(large.verdict, Verdict::No);
    let n = max_users(&large).unwrap();
    assert_eq!(n, max_users(&small).unwrap());
    assert!(n > 0);
}

#[test]
fn a_device_with_more_memory_has_more_layers_and_none_is_lost() {
    let spec = llama(32);
    let s = settings("llama.cpp");
    let load = Load::plain(2, 4096);
    let one = plan(&spec, &s, &load, 1);
    let devices: Vec<Device> = ["rtx-4090", "h100", "rtx-4090"]
        .map(|d| find(d).expect("in the catalogue").clone())
        .into();
    let e = of_kinds(&spec, &devices, &on("rtx-4090", 3), &s, &load).unwrap();
    let layers: Vec<u64> = e
        .stages
        .iter()
        .map(|s| s.stage.layers.end - s.stage.layers.start)
        .collect();
    // 33 places by 23.64, 79.19 and 23.64 GiB: 6.2, 20.7 and 6.2 of them, cut where the shares end.
    assert_eq!(layers, [7, 20, 5]);
    let sum = |f: &dyn Fn(&StageEvaluation) -> Bytes| Bytes::sum(e.stages.iter().map(f)).unwrap();
    assert_eq!(sum(&|s| s.need.pool), one.stages[0].need.pool);
    assert_eq!(
        sum(&|s| s.region(Region::Weights).unwrap()),
        one.stages[0].region(Region::Weights).unwrap()
    );
    for (stage, device) in e.stages.iter().zip(&devices) {
        assert_eq!(stage.budget.bytes, device.usable);
    }
    let many = vec![devices[0].clone(); 17];
    let refused = of_kinds(&llama(40), &many, &on("rtx-4090", 17), &s, &load);
    assert!(matches!(refused, Err(PlanError::Refused { .. })));
}

#[test]
fn layers_are_split_over_devices() {
    let spec = llama(32);
    let s = settings("llama.cpp");
    let load = Load::plain(2, 4096);
    let one = plan(&spec, &s, &load, 1);
    let three = plan(&spec, &s, &load, 3);
    let pools: Vec<u64> = three.stages.iter().map(|s| s.need.pool.get()).collect();
    assert_eq!(pools.iter().sum::<u64>(), one.stages[0].need.pool.get());
    // 33 places for 32 layers and the output: 11, 11 and 10 layers.
    let per_layer = one.stages[0].need.pool.get() / 32;
    assert_eq!(pools, [11 * per_layer, 11 * per_layer, 10 * per_layer]);
    let weights = |e: &Evaluation| {
        Bytes::sum(e.stages.iter().map(|s| s.region(Region::Weights).unwrap())).unwrap()
    };
    assert_eq!(weights(&one), weights(&three));
}

#[test]
fn refusals_name_the_reason() {
    let spec = llama(4);
    let refuse = |s: &Settings, parallel: Parallel, users| {
        let d = Deployment {
            parallel,
            ..on("h100", 1)
        };
        match evaluate(&spec, &d, s, &Load::plain(users, 512)) {
            Err(e @ PlanError::Refused { .. }) => e.to_string(),
            Err(e) => panic!("another error: {e}"),
            Ok(_) => panic!("it was accepted"),
        }
    };
    let s = settings("llama.cpp");
    let tp = Parallel {
        tp: 2,
        ..Parallel::default()
    };
    assert!(refuse(&s, tp, 1).contains("row split is not modelled"));
    assert!(refuse(&s, Parallel::default(), 257).contains("at most 256"));
    let quantised = Settings {
        kv_type_v: Some("q8_0".parse().unwrap()),
        flash_attention: Some(false),
        ..s.clone()
    };
    assert!(refuse(&quantised, Parallel::default(), 1).contains("need flash attention"));
    let fp8 = Settings {
        kv_type: "fp8".parse().unwrap(),
        ..s
    };
    assert!(refuse(&fp8, Parallel::default(), 1).contains("q8_0"));
}

#[test]
fn quantised_caches_follow_their_blocks() {
    let spec = llama(32);
    let load = Load::plain(1, 4096);
    let pool = |kv: &str| {
        let s = Settings {
            kv_type: kv.parse().unwrap(),
            ..settings("llama.cpp")
        };
        plan(&spec, &s, &load, 1).stages[0].need.pool.get()
    };
    let f16 = pool("f16");
    assert_eq!(pool("auto"), f16);
    assert_eq!(pool("f32"), 2 * f16);
    // 34 and 18 bytes per 32 elements.
    assert_eq!(pool("q8_0") * 64, f16 * 34);
    assert_eq!(pool("q4_0") * 64, f16 * 18);
}

#[test]
fn versions_differ_where_the_engine_did() {
    let spec = llama(32);
    let load = Load::plain(3, 1000);
    let activations = |engine: &str| {
        plan(&spec, &settings(engine), &load, 1).stages[0]
            .region(Region::Activations)
            .unwrap()
    };
    let pool = |engine: &str| {
        plan(&spec, &settings(engine), &load, 1).stages[0]
            .need
            .pool
            .get()
    };
    // Since June 2026 the server keeps logits for its slots only.
    assert!(activations("llama.cpp") < activations("llama.cpp@b7079"));
    // 3 × 1,024 cells now; 3,008 of one shared buffer before streams, rounded to 32 without
    // flash attention.
    let cell = 32 * 2 * 1024 * 2;
    assert_eq!(pool("llama.cpp"), 3072 * cell);
    assert_eq!(pool("llama.cpp@b3772"), 3008 * cell);
    assert_eq!(pool("llama.cpp@ik"), 3008 * cell);
}

#[test]
fn an_unknown_graph_has_a_bound_and_says_so() {
    let json = serde_json::json!({
        "architectures": ["OPTForCausalLM"], "torch_dtype": "float16",
        "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
        "vocab_size": 50_272, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048,
    });
    let spec = from_config(&json, Assume::Nothing).unwrap();
    let e = plan(&spec, &settings("llama.cpp"), &Load::plain(1, 2048), 1);
    let stage = &e.stages[0];
    let compute = stage
        .terms
        .iter()
        .find(|t| t.name == "compute buffer")
        .unwrap();
    assert_eq!(compute.kind.name(), "bound");
    assert!(stage.notes.iter().any(|n| n.contains("OPTForCausalLM")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The cache never shrinks, and its parts add up. (The compute buffer may shrink by a little:
    /// a batch is rounded up to a multiple of the slots.)
    #[test]
    fn the_cache_is_monotone_and_its_parts_add_up(
        users in 1_u64..128, context in 1_u64..9000, more in 1_u64..128,
        unified in any::<bool>(), flash in any::<bool>(),
    ) {
        let spec = llama(3);
        let s = Settings { kv_unified: unified, flash_attention: Some(flash), ..settings("llama.cpp") };
        let e = plan(&spec, &s, &Load::plain(1, 1), 1);
        let law = &e.stages[0].kv;
        let need = |users, context| law.need(&Load::plain(users, context)).unwrap();
        let base = need(users, context);
        let parts = [base.token_states, base.reserved, base.internal, base.external];
        prop_assert_eq!(Bytes::sum(parts).unwrap(), base.pool);
        prop_assert!(need(users + more, context).pool >= base.pool);
        prop_assert!(need(users, context + more).pool >= base.pool);
    }

    /// Whatever a search answers is carried, and one more is not.
    #[test]
    fn searches_end_at_an_edge(layers in 1_u64..40, users in 1_u64..64, context in 16_u64..30_000) {
        let spec = llama(layers);
        for engine in ["llama.cpp", "llama.cpp@2025-03", "llama.cpp@ik"] {
            let load = Load::plain(users, context);
            let e = plan(&spec, &settings(engine), &load, 1);
            let n = max_users(&e).unwrap();
            if n > 0 {
                prop_assert!(e.carries(&load.with_users(n)).unwrap());
            }
            if n < 256 {
                prop_assert!(!e.carries(&load.with_users(n + 1)).unwrap());
            }
            let longest = max_context(&e).unwrap();
            if longest > 0 {
                prop_assert!(e.carries(&load.with_context(longest)).unwrap());
                prop_assert!(!e.carries(&load.with_context(longest + 1)).unwrap());
            }
        }
    }
}

/// Prints how long one evaluation and one search take: `cargo test --release -- --ignored`.
#[test]
#[ignore = "a measurement, not a check"]
fn time_of_an_evaluation() {
    for (layers, pp) in [(32, 1), (126, 1), (126, 4), (126, 8)] {
        let spec = llama(layers);
        let s = settings("llama.cpp");
        let load = Load::plain(8, 4096);
        let _ = plan(&spec, &s, &load, pp);
        let start = std::time::Instant::now();
        for _ in 0..20 {
            let _ = plan(&spec, &s, &load, pp);
        }
        let one = start.elapsed() / 20;
        let e = plan(&spec, &s, &load, pp);
        let start = std::time::Instant::now();
        let users = max_users(&e).unwrap();
        let search = start.elapsed();
        println!(
            "{layers} layers, {pp} devices: {one:?} a plan; {search:?} for max users = {users}"
        );
    }
    assert!(matches!(settings("llama.cpp").engine, Engine::LlamaCpp(_)));
}
