//! Laws that hold for every model, load and engine.

use plimsoll_device::{Device, find};
use plimsoll_model::{Assume, ModelSpec, catalogue, from_config};
use plimsoll_plan::{
    Deployment, Engine, Kind, Kinds, KvType, Load, PlanError, Region, Reserve, STAGED_WEIGHTS,
    Settings, Verdict, best_division, changes_that_fit, evaluate, grid, max_context, max_users,
    of_kinds, smallest, total,
};
use plimsoll_program::{
    Buckets, KvRules, Limits, Parallel, Program, Rank, StepInputs, lower, lower_rank,
};
use plimsoll_units::{Bytes, DType, Weights};
use proptest::prelude::*;

fn builtin(name: &str) -> ModelSpec {
    let entry = catalogue::find(name).expect("a built-in model");
    from_config(&entry.config, Assume::Nothing).expect("it lowers")
}

/// A LLaMA-like model of the given shape.
fn llama(layers: u64, kv_heads: u64, vocab: u64) -> ModelSpec {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 8192, "tie_word_embeddings": false,
    });
    from_config(&json, Assume::Nothing).expect("it lowers")
}

fn engines() -> Vec<Engine> {
    vec![
        Engine::Ideal,
        Engine::Contiguous(Reserve::Max),
        Engine::Contiguous(Reserve::Pow2),
        Engine::Contiguous(Reserve::Oracle),
        "vllm@0.19".parse().expect("an engine"),
        "vllm".parse().expect("an engine"),
        "sglang".parse().expect("an engine"),
        "sglang@0.5.2".parse().expect("an engine"),
        Engine::TrtLlm,
        Engine::Plimsoll,
    ]
}

fn on(device: &Device, parallel: Parallel) -> Deployment {
    Deployment {
        device: device.clone(),
        kinds: None,
        parallel,
        in_use: Bytes::ZERO,
    }
}

fn h100() -> Device {
    find("h100").expect("in the catalogue").clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn more_tokens_or_users_never_need_less(
        layers in 1_u64..50, kv in prop::sample::select(vec![1_u64, 2, 4, 8, 16]),
        users in 1_u64..300, context in 1_u64..9000, more in 1_u64..500,
    ) {
        let spec = llama(layers, kv, 32_000);
        for engine in engines() {
            let s = Settings { max_model_len: Some(16_384), ..Settings::new(engine) };
            let need = |load: Load| -> Result<Bytes, PlanError> {
                let e = evaluate(&spec, &on(&h100(), Parallel::default()), &s, &load)?;
                Ok(e.stages[0].kv.need(&load)?.pool)
            };
            let base = need(Load::plain(users, context)).unwrap();
            prop_assert!(need(Load::plain(users, context + more)).unwrap() >= base, "{engine}: tokens");
            prop_assert!(need(Load::plain(users + more, context)).unwrap() >= base, "{engine}: users");
        }
    }

    #[test]
    fn layers_on_devices_of_several_kinds_are_dealt_out_best(
        layers in 3_u64..14, memory in prop::collection::vec(3_u64..40, 2..4), context in 500_u64..4000,
    ) {
        let spec = llama(layers, 4, 32_000);
        let devices: Vec<Device> = memory
            .iter()
            .map(|gib| Device::of_size(Bytes::new(gib << 28)))
            .collect();
        let pp = devices.len() as u64;
        let d = on(&devices[0], Parallel { pp, ..Parallel::default() });
        let load = Load::plain(1, context);
        for engine in ["vllm", "ideal"] {
            let s = Settings::new(engine.parse().unwrap());
            let found = max_users(&of_kinds(&spec, &devices, &d, &s, &load).unwrap()).unwrap();
            let mut best = 0;
            let mut divisions = vec![vec![]];
            for _ in 1..pp {
                divisions = divisions
                    .into_iter()
                    .flat_map(|v: Vec<u64>| (1..layers).map(move |n| [&v[..], &[n]].concat()))
                    .collect();
            }
            for mut division in divisions {
                let used: u64 = division.iter().sum();
                if used >= layers {
                    continue;
                }
                division.push(layers - used);
                let kinds = Kinds { devices: devices.clone(), layers: Some(division) };
                let d = Deployment { kinds: Some(kinds.into()), ..d.clone() };
                best = best.max(max_users(&evaluate(&spec, &d, &s, &load).unwrap()).unwrap());
            }
            prop_assert_eq!(found, best, "{} {:?}", engine, memory);
        }
    }

    #[test]
    fn slices_of_a_card_are_given_whole_replicas_alone(
        layers in 1_u64..90, users in 1_u64..300, tp in 1_u64..4, pp in 1_u64..4, dp in 1_u64..4,
    ) {
        let spec = llama(layers.max(pp), 4, 32_000);
        let slice = find("h100:2g.20gb").unwrap();
        let load = Load::plain(users, 4096);
        for engine in engines() {
            let s = Settings::new(engine);
            let p = Parallel { tp, pp, dp, ..Parallel::default() };
            let given = evaluate(&spec, &on(slice, p), &s, &load);
            let refused = matches!(given, Err(PlanError::Slices { .. }));
            // A degree of 3 does not divide the heads, slices or not.
            prop_assert_eq!(refused, tp * pp > 1, "{} {:?}", engine, p);
            for n in [1, dp] {
                let best = best_division(&spec, slice, Bytes::ZERO, &s, &load, n).unwrap();
                let division = best.deployment.parallel;
                prop_assert_eq!(division, Parallel { dp: n, ..Parallel::default() });
            }
            if let Some(e) = smallest(&spec, slice, Bytes::ZERO, &s, &load, 8).unwrap() {
                let p = e.deployment.parallel;
                prop_assert_eq!(p, Parallel { dp: p.devices(), ..Parallel::default() });
            }
        }
    }

    #[test]
    fn a_grid_says_what_plans_of_its_loads_say(
        layers in 1_u64..50, kv in prop::sample::select(vec![1_u64, 4, 16]),
        users in 1_u64..3000, context in 1_u64..9000, pp in 1_u64..3, dp in 1_u64..3,
    ) {
        let spec = llama(layers.max(pp), kv, 32_000);
        for engine in engines() {
            let s = Settings { max_model_len: Some(16_384), ..Settings::new(engine) };
            let d = on(&h100(), Parallel { pp, dp, ..Parallel::default() });
            let Ok(e) = evaluate(&spec, &d, &s, &Load::plain(users, context)) else { continue };
            let g = grid(&e, users).unwrap();
            prop_assert!(g.users.contains(&users) && g.contexts.contains(&context), "{engine}");
            prop_assert!(g.users.len() <= 15 && g.contexts.len() <= 15, "{engine}: {g:?}");
            for (context, row) in g.contexts.iter().zip(&g.cells) {
                for (users, cell) in g.users.iter().zip(row) {
                    let load = Load::plain(users.div_ceil(dp), *context);
                    prop_assert_eq!(cell.fits(), e.carries(&load).unwrap(), "{}: {} x {}", engine, users, context);
                }
            }
        }
    }

    #[test]
    fn a_shared_prefix_is_added_once_when_it_doubles(users in 2_u64..100, blocks in 1_u64..64) {
        let spec = llama(8, 4, 32_000);
        let s = Settings::new(Engine::Plimsoll);
        let prefix = blocks * 16;
        let need = |prefix: u64| {
            let load = Load { shared_prefix: prefix, ..Load::plain(users, prefix + 160) };
            let e = evaluate(&spec, &on(&h100(), Parallel::default()), &s, &load).unwrap();
            e.stages[0].kv.need(&load).unwrap().pool
        };
        let page = {
            let load = Load::plain(1, 16);
            let e = evaluate(&spec, &on(&h100(), Parallel::default()), &s, &load).unwrap();
            e.stages[0].capacity.bytes_per_block
        };
        let grown = need(2 * prefix).checked_sub(need(prefix)).unwrap();
        prop_assert_eq!(grown, page.times(blocks).unwrap());
    }

    #[test]
    fn the_inverse_solver_agrees_with_the_forward_plan(
        layers in 1_u64..40, users in 1_u64..100, context in 16_u64..8000,
    ) {
        let spec = llama(layers, 8, 32_000);
        for engine in engines() {
            let s = Settings { max_model_len: Some(8192), ..Settings::new(engine) };
            let load = Load::plain(users, context);
            let d = on(&h100(), Parallel::default());
            let e = evaluate(&spec, &d, &s, &load).unwrap();
            let n = max_users(&e).unwrap();
            let verdict = |users, context| {
                evaluate(&spec, &d, &s, &Load::plain(users, context)).unwrap().verdict
            };
            if n > 0 && n < 1 << 32 {
                prop_assert!(e.carries(&load.with_users(n)).unwrap(), "{}: {} users", engine, n);
                prop_assert!(!e.carries(&load.with_users(n + 1)).unwrap(), "{}: {} users + 1", engine, n);
                // The forward plan, from scratch, where the users do not change the fixed terms.
                if n <= 256 {
                    prop_assert!(verdict(n, context) > Verdict::No, "{engine}: {n} users");
                }
            }
            let longest = max_context(&e).unwrap();
            if longest > 0 && longest < 1 << 32 {
                prop_assert!(e.carries(&load.with_context(longest)).unwrap());
                prop_assert!(!e.carries(&load.with_context(longest + 1)).unwrap());
            }
        }
    }

    #[test]
    fn more_ranks_never_hold_more(layers in 2_u64..40, kv in prop::sample::select(vec![1_u64, 2, 4, 8, 16])) {
        let spec = llama(layers, kv, 32_000);
        let load = Load::plain(4, 2048);
        for engine in engines() {
            let s = Settings::new(engine);
            let mut last = Bytes::MAX;
            for tp in [1_u64, 2, 4, 8, 16] {
                let e = evaluate(&spec, &on(&h100(), Parallel { tp, ..Parallel::default() }), &s, &load).unwrap();
                let weights = e.stages[0].region(Region::Weights).unwrap();
                prop_assert!(weights <= last, "{engine} TP{tp}");
                last = weights;
            }
        }
    }
}

#[test]
fn regions_sum_to_the_total() {
    for name in ["llama-13b", "opt-13b", "gpt2-345m"] {
        let spec = builtin(name);
        for engine in engines() {
            for pp in [1, 2, 3] {
                let p = Parallel {
                    pp,
                    ..Parallel::default()
                };
                let e = evaluate(
                    &spec,
                    &on(&h100(), p),
                    &Settings::new(engine),
                    &Load::plain(2, 512),
                )
                .unwrap();
                for s in &e.stages {
                    let terms = s.terms.iter().chain(&s.outside).chain([&s.kv_term]);
                    assert_eq!(s.total().unwrap(), total(terms).unwrap());
                    let inside = total(s.terms.iter().chain([&s.kv_term])).unwrap();
                    assert!(
                        inside <= s.budget.bytes || s.over_budget,
                        "{name} {engine} PP{pp}"
                    );
                }
            }
        }
    }
}

#[test]
fn forty_one_layers_differ_from_forty_everywhere() {
    let (a, b) = (llama(40, 8, 32_000), llama(41, 8, 32_000));
    let load = Load::plain(3, 2048);
    for engine in engines() {
        let s = Settings {
            max_model_len: Some(2048),
            ..Settings::new(engine)
        };
        let of = |spec: &ModelSpec| {
            let e = evaluate(spec, &on(&h100(), Parallel::default()), &s, &load).unwrap();
            let stage = &e.stages[0];
            (
                stage.region(Region::Weights).unwrap(),
                stage.need.pool,
                stage.capacity.tokens,
                stage.capacity.bytes_per_block,
            )
        };
        let (x, y) = (of(&a), of(&b));
        assert!(
            x.0 < y.0 && x.1 < y.1 && x.2 > y.2 && x.3 < y.3,
            "{engine}: {x:?} {y:?}"
        );
    }
}

#[test]
fn one_more_vocabulary_row_moves_activations_by_about_one_part_in_v() {
    for v in [32_000_u64, 49_155, 128_256, 151_936, 262_144] {
        let s = Settings::new("vllm@0.19".parse().unwrap());
        let of = |vocab| {
            let e = evaluate(
                &llama(8, 4, vocab),
                &on(&h100(), Parallel::default()),
                &s,
                &Load::plain(1, 2048),
            )
            .unwrap();
            e.stages[0].region(Region::Activations).unwrap().gib()
        };
        let (a, b) = (of(v), of(v + 1));
        // The head is padded to 64 rows, so one row more moves it by nothing or by one padding step.
        let step = 64.0 / v as f64 * a;
        assert!((b - a).abs() <= step * 1.5, "vocabulary {v}: {a} -> {b}");
    }
}

#[test]
fn tp3_on_forty_heads_is_refused_with_the_reason() {
    let spec = builtin("llama-13b");
    let d = on(
        &h100(),
        Parallel {
            tp: 3,
            ..Parallel::default()
        },
    );
    let Err(err) = evaluate(
        &spec,
        &d,
        &Settings::new(Engine::Plimsoll),
        &Load::plain(1, 2048),
    ) else {
        panic!("TP3 was accepted");
    };
    assert!(err.to_string().contains("40 attention heads"), "{err}");
}

#[test]
fn all_pipeline_stages_allocate_the_same_number_of_blocks() {
    // 32 layers over three stages: 11, 11 and 10, with embedding, head and sampler on the ends.
    let spec = builtin("llama-3.1-8b");
    let d = on(
        &h100(),
        Parallel {
            pp: 3,
            ..Parallel::default()
        },
    );
    let s = Settings::new("vllm".parse().unwrap());
    let e = evaluate(&spec, &d, &s, &Load::plain(4, 8192)).unwrap();
    let fewest = e
        .stages
        .iter()
        .filter_map(|s| s.capacity.blocks)
        .min()
        .unwrap();
    let own: Vec<u64> = e.stages.iter().filter_map(|s| s.capacity.blocks).collect();
    assert!(
        own.iter().any(|n| *n > fewest),
        "the case is too even to show anything: {own:?}"
    );
    for stage in &e.stages {
        let block = stage.capacity.bytes_per_block;
        assert_eq!(stage.kv_term.bytes.whole(block), fewest);
    }
}

/// What `lower` gives is what the plan says, to the byte, and never more than the bound of an undivided model that does
/// not lower.
#[test]
fn a_plan_of_plimsoll_sums_the_program_that_runs() {
    let (mut lowered, mut large) = (0, 0);
    for entry in catalogue::entries() {
        let spec = builtin(&entry.name);
        let settings = Settings {
            max_num_batched_tokens: Some(512),
            max_num_seqs: Some(16),
            max_model_len: Some(1024),
            ..Settings::new(Engine::Plimsoll)
        };
        let load = Load::plain(2, 512);
        let deployment = on(&h100(), Parallel::default());
        let plan = evaluate(&spec, &deployment, &settings, &load).expect("a plan");
        let terms = &plan.stages[0].terms;
        let named = |name: &str| terms.iter().find(|t| t.name == name).expect("a term");
        let limits = Limits {
            tokens: 512,
            outputs: 16,
            context: 1024,
            weights: Weights::default(),
        };
        let rules = KvRules {
            dtype: spec.dtype,
            state_dtype: spec.dtype,
            block_size: 16,
        };
        let Ok(program) = lower(&spec, &limits, &rules) else {
            assert_eq!(named("activations").kind, Kind::Bound, "{}", entry.name);
            continue;
        };
        let activations = named("activations");
        assert_eq!(activations.kind, Kind::Exact, "{}", entry.name);
        assert_eq!(
            activations.bytes, program.activation_bytes,
            "{}",
            entry.name
        );
        // On its way to the GPU the largest weight lies on the host, whole.
        let host = &plan.stages[0].host;
        let starting = host.iter().find(|t| t.name == "starting").expect("a term");
        let sizes = program.weights.iter().map(|w| w.layout.bytes());
        let largest = sizes.map(|b| b.expect("it fits")).max().expect("weights");
        assert!(starting.bytes > largest, "{}", entry.name);
        large += u32::from(largest > STAGED_WEIGHTS);
        let inputs = StepInputs::of(&program, 1024).and_then(|i| i.bytes());
        assert_eq!(Ok(named("step inputs").bytes), inputs, "{}", entry.name);
        let graphs = Buckets::of(&program, 1024, true).and_then(|b| b.bytes(&program));
        let term = named("graphs of decode steps");
        let planned = (Ok(term.bytes), term.kind);
        assert_eq!(planned, (graphs, Kind::Bound), "{}", entry.name);
        let eager = Settings {
            enforce_eager: true,
            ..settings.clone()
        };
        let eager = evaluate(&spec, &deployment, &eager, &load).expect("a plan");
        let graphs = |t: &plimsoll_plan::Term| t.region == Region::Graphs;
        assert!(!eager.stages[0].terms.iter().any(graphs), "{}", entry.name);
        let weights = terms.iter().filter(|t| t.region == Region::Weights);
        assert_eq!(
            total(weights).expect("no overflow"),
            program.weight_bytes,
            "{}",
            entry.name
        );
        assert_eq!(
            plan.stages[0].capacity.bytes_per_block, program.geometry.page,
            "{}",
            entry.name
        );
        // A dtype that does not run yet makes the same model a bound.
        let other = Settings {
            dtype: Some(DType::F32),
            ..settings.clone()
        };
        let bound = evaluate(&spec, &deployment, &other, &load).expect("a plan");
        let of = |name: &str| {
            bound.stages[0]
                .terms
                .iter()
                .find(|t| t.name == name)
                .map(|t| t.bytes)
        };
        let most = of("activations")
            .zip(of("logits"))
            .map(|(a, l)| a.add(l).expect("small"));
        assert!(
            most.is_some_and(|m| m >= program.activation_bytes),
            "{}: {most:?}",
            entry.name
        );
        lowered += 1;
    }
    assert!(lowered >= 14 && large >= 5, "{lowered}, {large}");
}

/// What each of several ranks on processors has is what `lower_rank` gives it, and what they share is counted once.
#[test]
fn a_plan_of_ranks_sums_the_program_of_each() {
    let cpu = Device {
        vendor: "cpu".to_owned(),
        ..Device::of_size(Bytes::new(8 << 40))
    };
    let mut lowered = 0;
    for entry in catalogue::entries() {
        let spec = builtin(&entry.name);
        let settings = Settings {
            max_num_batched_tokens: Some(64),
            max_num_seqs: Some(4),
            max_model_len: Some(256),
            kv_type: KvType::Plain(DType::Bf16),
            swap: Bytes::new(1 << 30),
            ..Settings::new(Engine::Plimsoll)
        };
        for tp in [2, 4] {
            let parallel = Parallel {
                tp,
                ..Parallel::default()
            };
            let load = Load::plain(1, 256);
            let Ok(plan) = evaluate(&spec, &on(&cpu, parallel), &settings, &load) else {
                continue;
            };
            let stage = &plan.stages[0];
            let limits = Limits {
                tokens: 64,
                outputs: 4,
                context: 256,
                weights: Weights::default(),
            };
            let rules = KvRules::plimsoll(DType::Bf16, 16);
            let ranks: Result<Vec<Program>, _> = Rank::all(tp)
                .map(|rank| lower_rank(&spec, rank, &limits, &rules))
                .collect();
            let Ok(ranks) = ranks else {
                continue;
            };
            let region = |r| stage.region(r).expect("no overflow");
            let shared = total(&stage.host).expect("no overflow");
            let all = shared.add(stage.total().expect("small").times(tp).expect("small"));
            assert!(all.expect("small") <= cpu.usable, "{}", entry.name);
            for p in &ranks {
                let name = &entry.name;
                assert_eq!(region(Region::Weights), p.weight_bytes, "{name}");
                assert_eq!(region(Region::Activations), p.activation_bytes, "{name}");
                assert_eq!(stage.capacity.bytes_per_block, p.geometry.page, "{name}");
                let places = settings.swap.whole(p.geometry.page);
                let swap = p.geometry.page.times(places).expect("small");
                assert_eq!(region(Region::Swap), swap, "{name}");
            }
            // What is not divided is little.
            let one = lower(&spec, &limits, &rules)
                .expect("one rank")
                .weight_bytes
                .get();
            assert!(
                ranks[0].weight_bytes.get() * tp < one + one / 4,
                "{}",
                entry.name
            );
            assert!(stage.host.iter().all(|t| t.region != Region::Swap));
            assert_eq!(region(Region::Reserve), Bytes::ZERO);
            lowered += 1;
        }
    }
    assert!(lowered >= 24, "{lowered}");
}

/// Whole numbers take a byte for each element and an f32 for each head's key and each value; latents have no heads.
#[test]
fn plimsoll_plans_scales_and_refuses_latents_that_would_need_them() {
    let plan = |model: &str, engine, dtype| {
        let settings = Settings {
            kv_type: KvType::Plain(dtype),
            max_model_len: Some(1024),
            ..Settings::new(engine)
        };
        let deployment = on(&h100(), Parallel::default());
        evaluate(
            &builtin(model),
            &deployment,
            &settings,
            &Load::plain(1, 512),
        )
    };
    for (dtype, head) in [(DType::F32, 1024), (DType::F16, 512), (DType::I8, 256 + 8)] {
        let plan = plan("llama-3.1-8b", Engine::Plimsoll, dtype).expect("a plan");
        // 32 layers of 8 KV heads, 16 tokens to a block.
        let page = Bytes::new(32 * 8 * 16 * head);
        assert_eq!(plan.stages[0].capacity.bytes_per_block, page, "{dtype}");
    }
    let refused = plan("deepseek-v3", Engine::Plimsoll, DType::I8);
    assert!(matches!(refused, Err(PlanError::Refused { .. })));
    plan("deepseek-v3", Engine::Plimsoll, DType::F16).expect("a plan");
    plan("deepseek-v3", Engine::Ideal, DType::I8).expect("a plan");
}

#[test]
fn experts_are_not_spread_over_slices_and_a_larger_slice_or_the_card_is_a_change() {
    let spec = builtin("qwen3-30b-a3b");
    let slice = find("h200:3g.71gb").unwrap();
    let s = Settings::new("vllm".parse().unwrap());
    let load = Load::plain(4, 4096);
    let spread = |expert_parallel| Parallel {
        dp: 2,
        expert_parallel,
        ..Parallel::default()
    };
    let at = |p| evaluate(&spec, &on(slice, p), &s, &load);
    assert!(at(spread(false)).is_ok());
    assert!(matches!(at(spread(true)), Err(PlanError::Slices { .. })));
    // The solver does not try what slices cannot do: its reason is the engine's.
    let wrong = Settings {
        max_num_seqs: Some(512),
        max_num_batched_tokens: Some(256),
        ..s.clone()
    };
    let none = best_division(&spec, slice, Bytes::ZERO, &wrong, &load, 2);
    assert!(matches!(none, Err(PlanError::Refused { .. })));

    let small = find("h200:1g.18gb").unwrap();
    let e = evaluate(&spec, &on(small, Parallel::default()), &s, &load).unwrap();
    assert_eq!(e.verdict, Verdict::No);
    let flags = changes_that_fit(&spec, &e, &s, &load).unwrap();
    let flags: Vec<&str> = flags.iter().map(|c| c.flag.as_str()).collect();
    for fits in ["--gpu h200-141g-sxm:3g.71gb", "--gpu h200-141g-sxm"] {
        assert!(flags.contains(&fits), "{flags:?}");
    }
    let several = ["--tp", "--pp", "--gpu h200-141g-sxm:1g"];
    for flag in several {
        assert!(!flags.iter().any(|f| f.starts_with(flag)), "{flags:?}");
    }
}
