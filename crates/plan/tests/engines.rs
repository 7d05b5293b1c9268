//! What SGLang, TensorRT-LLM and vLLM's CPU backend make of a device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use plimsoll_device::{Device, find};
use plimsoll_model::{Assume, ModelSpec, catalogue, from_config};
use plimsoll_plan::{
    Deployment, Engine, Evaluation, Load, Lora, PlanError, Region, Settings, Verdict, evaluate,
    served,
};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType};

fn model(name: &str) -> ModelSpec {
    let entry = catalogue::find(name).unwrap();
    from_config(&entry.config, Assume::Nothing).unwrap()
}

fn engine(name: &str) -> Engine {
    name.parse().unwrap()
}

fn plan(
    name: &str,
    device: Device,
    settings: &Settings,
    load: &Load,
) -> Result<Evaluation, PlanError> {
    let deployment = Deployment {
        kinds: None,
        device,
        parallel: Parallel::default(),
        in_use: Bytes::ZERO,
    };
    evaluate(&model(name), &deployment, settings, load)
}

fn h100() -> Device {
    find("h100").unwrap().clone()
}

fn processors(gib: u64) -> Device {
    Device {
        vendor: "cpu".to_owned(),
        ..Device::of_size(Bytes::new(gib << 30))
    }
}

#[test]
fn sglang_divides_the_whole_card() {
    let e = plan(
        "qwen3-8b",
        h100(),
        &Settings::new(engine("sglang")),
        &Load::plain(4, 8192),
    )
    .unwrap();
    let s = &e.stages[0];
    // Weights and cache have their share, activations and graphs the rest.
    assert_eq!(s.total().unwrap(), h100().usable);
    assert_eq!(e.verdict, Verdict::Yes);
    let share = s.budget.formula.contains("0.830 mem_fraction_static");
    assert!(share, "{}", s.budget.formula);
}

#[test]
fn checkpoints_of_32_bits_are_served_in_16_by_vllm_and_sglang() {
    let (vllm, sglang) = (engine("vllm"), engine("sglang"));
    let of = |e: Engine, dtype: Option<DType>| {
        let settings = Settings {
            dtype,
            ..Settings::new(e)
        };
        let e = plan("olmo-2-7b", h100(), &settings, &Load::plain(4, 2048)).unwrap();
        let s = &e.stages[0];
        (s.region(Region::Weights).unwrap(), s.need.pool)
    };
    assert_eq!(model("olmo-2-7b").dtype, DType::F32);
    for served in [vllm, sglang] {
        assert_eq!(of(served, None), of(served, Some(DType::F16)));
        // One that is asked for is kept: 32 layers of keys and values of 4,096, and 4 x 2,048 tokens of them.
        let wide = of(served, Some(DType::F32)).1;
        assert!(wide.get() >= 2 * 32 * 4096 * 4 * 4 * 2048);
        assert!(of(served, None).1 < wide);
    }
    let own = of(Engine::Ideal, None);
    assert_eq!(own, of(Engine::Ideal, Some(DType::F32)));
    // The model itself, as they serve it: all of it is plain.
    let olmo = model("olmo-2-7b");
    let bytes = |e: Engine| {
        let served = served(&olmo, &Settings::new(e)).unwrap();
        (served.dtype, served.stored_bytes().unwrap().get())
    };
    let stored = olmo.stored_bytes().unwrap().get();
    assert_eq!(bytes(vllm), (DType::F16, stored / 2));
    assert_eq!(bytes(Engine::Plimsoll), (DType::F32, stored));
    // What has a type of its own keeps it: a router's correction in 32 bits, 8-bit matrices and their scales.
    let v3 = model("deepseek-v3");
    let settings = Settings {
        dtype: Some(DType::F16),
        ..Settings::new(vllm)
    };
    let f16 = served(&v3, &settings).unwrap();
    let of = |s: &ModelSpec, d: DType| s.tensors.iter().filter(|t| t.dtype == d).count();
    assert_eq!(of(&f16, DType::F16), of(&v3, DType::Bf16));
    assert!(of(&v3, DType::F32) > 0 && of(&f16, DType::F32) == of(&v3, DType::F32));
    assert_eq!(of(&f16, DType::F8E4m3), of(&v3, DType::F8E4m3));
}

/// The budget is then all that is free; what lies outside it, such as the driver's context, is no part of the pool.
#[test]
fn a_pool_that_is_given_fits_where_all_together_does() {
    for name in ["vllm", "vllm@0.19", "sglang", "plimsoll"] {
        let of = |gib: u64| {
            let settings = Settings {
                kv_memory: Some(Bytes::new(gib << 30)),
                ..Settings::new(engine(name))
            };
            plan("qwen3-8b", h100(), &settings, &Load::plain(1, 8192)).unwrap()
        };
        assert_eq!(of(8).verdict, Verdict::Yes, "{name}");
        // 15.3 GiB of weights beside it.
        assert_eq!(of(70).verdict, Verdict::No, "{name}");
        // Up to the last GiB that is left of the card with all that is outside.
        let fits = |gib: &u64| of(*gib).verdict != Verdict::No;
        let most = (8..70).rev().find(fits).unwrap();
        let e = of(most);
        let s = &e.stages[0];
        let outside = |of: fn(&plimsoll_plan::Term) -> Bytes| {
            s.outside.iter().map(|t| of(t).get()).sum::<u64>()
        };
        let terms = s.terms.iter().map(|t| t.bytes.get()).sum::<u64>();
        let all = terms + s.kv_term.bytes.get() + outside(plimsoll_plan::Term::low);
        let usable = h100().usable.get();
        assert!(all <= usable && usable - all < 1 << 30, "{name}: {most}");
    }
}

#[test]
fn buffers_of_deepseek_v4s_class_count_as_weights() {
    let buffers = |release: &str, mtp: bool| {
        let settings = Settings {
            mtp,
            max_num_batched_tokens: Some(8192),
            ..Settings::new(engine(&format!("vllm@{release}")))
        };
        let device = Device::of_size(Bytes::new(1 << 39));
        let e = plan(
            "deepseek-v4-flash",
            device,
            &settings,
            &Load::plain(1, 4096),
        )
        .unwrap();
        let of = |name: &str| {
            let term = e.stages[0].terms.iter().find(|t| t.name == name);
            term.map(|t| t.bytes.get())
        };
        (of("indexer's choices"), of("lanes for prediction layers"))
    };
    let (choices, lanes) = (Some(8192 * 512 * 4), Some(8192 * 4 * 4096 * 2));
    assert_eq!(buffers("0.24.0", false), (choices, lanes));
    assert_eq!(buffers("0.28.0", false), (choices, None));
    assert_eq!(buffers("0.32.0", true), (choices, lanes));
    // Of stages, each chooses and the last keeps the lanes.
    let staged = Deployment {
        device: Device::of_size(Bytes::new(1 << 39)),
        kinds: None,
        parallel: Parallel {
            pp: 2,
            ..Parallel::default()
        },
        in_use: Bytes::ZERO,
    };
    let settings = Settings {
        max_num_batched_tokens: Some(8192),
        ..Settings::new(engine("vllm@0.24.0"))
    };
    let spec = model("deepseek-v4-flash");
    let e = evaluate(&spec, &staged, &settings, &Load::plain(1, 4096)).unwrap();
    let has = |name: &str| -> Vec<bool> {
        let of = |s: &plimsoll_plan::StageEvaluation| s.terms.iter().any(|t| t.name == name);
        e.stages.iter().map(of).collect()
    };
    assert_eq!(has("indexer's choices"), [true, true]);
    assert_eq!(has("lanes for prediction layers"), [false, true]);
}

#[test]
fn a_pool_carries_what_it_is_said_to_need() {
    for name in ["qwen3-8b", "gpt-oss-20b", "qwen3-next-80b-a3b"] {
        let settings = Settings::new(engine("sglang"));
        let mut device = h100();
        device.usable = Bytes::new(400 << 30);
        let e = plan(name, device, &settings, &Load::plain(1, 8192)).unwrap();
        let law = &e.stages[0].kv;
        for (users, context) in [(1, 1), (1, 8192), (7, 1000), (40, 8192), (3, 131_072)] {
            let load = Load::plain(users, context);
            let need = law.need(&load).unwrap();
            let has = law.capacity(need.pool, context).unwrap();
            let asked = users * context;
            assert!(has.tokens >= asked, "{name}: {} for {asked}", has.tokens);
            let more = law.need(&Load::plain(users + 1, context)).unwrap();
            assert!(more.pool > need.pool, "{name}");
            assert!(need.token_states <= need.pool, "{name}");
        }
    }
}

#[test]
fn sglangs_cap_on_tokens_caps_the_pool() {
    let settings = Settings {
        max_total_tokens: Some(20_480),
        ..Settings::new(engine("sglang"))
    };
    let e = plan("llama-3.1-8b", h100(), &settings, &Load::plain(2, 8192)).unwrap();
    let s = &e.stages[0];
    assert_eq!(s.capacity.tokens, 20_480);
    assert_eq!(s.kv_term.bytes, Bytes::new(20_480 * 131_072));
    let e = plan("llama-3.1-8b", h100(), &settings, &Load::plain(3, 8192)).unwrap();
    assert_eq!(e.verdict, Verdict::No);
}

#[test]
fn tensorrt_llm_takes_nine_tenths_of_what_is_free() {
    let settings = Settings::new(Engine::TrtLlm);
    let e = plan("qwen3-8b", h100(), &settings, &Load::plain(4, 8192)).unwrap();
    let s = &e.stages[0];
    let left = s.region(Region::Reserve).unwrap().gib();
    let ratio = s.pool.gib() / (s.pool.gib() + left);
    // Whole blocks of 32 tokens: a few MiB less.
    assert!((ratio - 0.9).abs() < 0.001, "{ratio}");
    assert_eq!(s.capacity.block_size, 32);
    let odd = Settings {
        block_size: Some(48),
        ..settings.clone()
    };
    assert!(plan("qwen3-8b", h100(), &odd, &Load::plain(1, 1)).is_err());
    let states = plan("qwen3-next-80b-a3b", h100(), &settings, &Load::plain(1, 1));
    assert!(states.is_err(), "states are not modelled");
}

/// gpt-oss-20b's experts are 2880 x 2880 with two rows for gate and up. Its kernels want 128 (CUTLASS), 128 with 256 for
/// what down writes (Triton), or 128 with 512 for what gate and up read (TensorRT-LLM's own), the latter two with f32 biases.
#[test]
fn tensorrt_llm_pads_mxfp4_experts_for_the_kernels_of_a_card() {
    let added = |name: &str| {
        let settings = Settings::new(Engine::TrtLlm);
        let device = find(name).unwrap().clone();
        let e = plan("gpt-oss-20b", device, &settings, &Load::plain(1, 1024)).unwrap();
        let mut terms = e.stages[0].terms.iter();
        terms
            .find(|t| t.name == "expert layout")
            .unwrap()
            .bytes
            .get()
    };
    let experts = 24 * 32;
    // 17 bits per 32 values, and biases beside the 16-bit ones that are stored.
    let more = |values: u64, bias: u64| {
        experts * ((values - 3 * 2880 * 2880) * 17 / 32 + bias - 2 * 3 * 2880)
    };
    assert_eq!(added("gb10"), more(3 * 2944 * 2944, 2 * 3 * 2944));
    assert_eq!(added("h100"), more((5888 + 3072) * 2944, 4 * (5888 + 3072)));
    assert_eq!(added("b200"), more(5888 * 3072 + 2944 * 2944, 4 * 3 * 2944));
}

#[test]
fn tensorrt_llm_refuses_what_would_stand_beside_the_model() {
    let plain = Settings::new(Engine::TrtLlm);
    let drafts = [
        Settings {
            mtp: true,
            ..plain.clone()
        },
        Settings {
            draft: Some(Arc::new(model("qwen3-0.6b"))),
            ..plain.clone()
        },
        Settings {
            lora: Some(Lora { slots: 4, rank: 16 }),
            ..plain
        },
    ];
    for (settings, said) in drafts.iter().zip(["a draft", "a draft", "--max-loras 4"]) {
        let e = plan("qwen3-8b", h100(), settings, &Load::plain(1, 1024))
            .err()
            .unwrap();
        assert!(
            matches!(&e, PlanError::Refused { engine, setting, .. } if engine == "trtllm" && setting == said),
            "{e}"
        );
    }
}

#[test]
fn vllm_on_processors_takes_its_share_of_the_node() {
    let load = Load::plain(2, 4096);
    let newest = Settings::new(engine("vllm@0.32"));
    let e = plan("qwen3-0.6b", processors(64), &newest, &load).unwrap();
    let node = Bytes::new(64 << 30).gib();
    assert!((e.stages[0].budget.bytes.gib() - node * 0.92).abs() < 1e-6);
    let since = Settings::new(engine("vllm@0.20"));
    let e = plan("qwen3-0.6b", processors(64), &since, &load).unwrap();
    assert!((e.stages[0].budget.bytes.gib() - node * 0.9).abs() < 1e-6);
    // In 0.17 to 0.19 the cache is half of the node, whatever the rest takes.
    let between = Settings::new(engine("vllm@0.19"));
    let e = plan("qwen3-0.6b", processors(64), &between, &load).unwrap();
    assert_eq!(e.stages[0].pool, Bytes::new(32 << 30));
    let given = Settings {
        kv_memory: Some(Bytes::new(8 << 30)),
        ..between
    };
    let e = plan("qwen3-0.6b", processors(64), &given, &load).unwrap();
    assert_eq!(e.stages[0].pool, Bytes::new(8 << 30));
    let old = Settings::new(engine("vllm@0.12"));
    let e = plan("qwen3-0.6b", processors(64), &old, &load).unwrap();
    assert_eq!(e.stages[0].pool, Bytes::new(4 << 30));
}

/// V0 took a whole prompt of the longest length in a step, on every card alike.
#[test]
fn v0_steps_as_long_as_the_longest_prompt() {
    let activation = |len: u64| {
        let settings = Settings {
            max_model_len: Some(len),
            ..Settings::new(engine("vllm@0.7.3"))
        };
        let e = plan("qwen3-4b", h100(), &settings, &Load::plain(1, 1)).unwrap();
        e.stages[0].region(Region::Activations).unwrap()
    };
    assert!(activation(30_000) > activation(4096));
    // Longer ones are divided.
    assert!(activation(40_000) < activation(30_000));
}

/// Bytes of weights of a model that is stored, or quantised while it is loaded, so.
fn weights(config: &serde_json::Value, settings: &Settings, card: &str) -> u64 {
    let mut json = catalogue::find("qwen3-0.6b").unwrap().config.clone();
    if !config.is_null() {
        json["quantization_config"] = config.clone();
    }
    let spec = from_config(&json, Assume::Nothing).unwrap();
    let deployment = Deployment {
        kinds: None,
        device: find(card).unwrap().clone(),
        parallel: Parallel::default(),
        in_use: Bytes::ZERO,
    };
    let e = evaluate(&spec, &deployment, settings, &Load::plain(1, 128)).unwrap();
    let terms = e.stages[0].terms.iter();
    terms
        .filter(|t| t.region == Region::Weights && t.name != "allocator rounding")
        .map(|t| t.bytes.get())
        .sum()
}

/// Weights in linear layers of Qwen3 0.6B: 28 layers of (1024 x 4096 + 2048 x 1024 + 3 x 1024 x 3072).
const LINEAR: u64 = 28 * (1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072);

#[test]
fn bitsandbytes_scales_have_8_bits_until_releases_widen_them() {
    let online = |version: &str| {
        let settings = Settings {
            quantization: Some(plimsoll_model::quant::QuantFormat::Bnb4),
            ..Settings::new(engine(version))
        };
        weights(&serde_json::Value::Null, &settings, "l40s")
    };
    // One scale for 64 weights: 1 byte, and 4 in each 256 of them, or 4 bytes.
    let (nested, wide) = (LINEAR / 64 + LINEAR / 64 / 256 * 4, LINEAR / 64 * 4);
    let saved = online("vllm@0.9.2") - online("vllm@0.9.1");
    // 196 matrices have a table of 256 numbers for their scales, and a few bytes of text more.
    assert!(saved.abs_diff(wide - nested) < 196 * 2048, "{saved}");
    let stored = serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true,
        "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true});
    let of = |version: &str| weights(&stored, &Settings::new(engine(version)), "l40s");
    assert_eq!(of("vllm@0.9.2") - of("vllm@0.9.1"), LINEAR / 64 * 3);
}

#[test]
fn marlin_needs_no_zero_points_of_symmetric_weights() {
    let gptq = |sym: bool, desc_act: bool, version: &str, card: &str| {
        let config = serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 128,
            "sym": sym, "desc_act": desc_act});
        weights(&config, &Settings::new(engine(version)), card)
    };
    let all = gptq(false, false, "vllm@0.19", "a100");
    let (zeros, index) = (
        LINEAR / 128 / 2,
        28 * (3 * 1024 + 2048 + 2 * 1024 + 3072) * 4,
    );
    assert_eq!(all - gptq(true, false, "vllm@0.19", "a100"), zeros + index);
    assert_eq!(all - gptq(true, true, "vllm@0.19", "a100"), zeros);
    // Machete leaves them on Hopper; Turing has neither.
    assert_eq!(gptq(true, false, "vllm@0.19", "h100"), all);
    assert_eq!(gptq(true, false, "vllm@0.5.4", "h100"), all - zeros - index);
    assert_eq!(gptq(true, false, "vllm@0.19", "t4"), all);
}

#[test]
fn aqlm_is_codes_books_and_scales() {
    let of = |books: u64, bits: u64| {
        let config = serde_json::json!({"quant_method": "aqlm", "num_codebooks": books,
            "nbits_per_codebook": bits, "in_group_size": 8, "out_group_size": 1,
            "linear_weights_not_to_quantize": ["lm_head.weight"]});
        weights(&config, &Settings::new(engine("vllm@0.5.4")), "l40s")
    };
    let plain = weights(
        &serde_json::Value::Null,
        &Settings::new(engine("vllm@0.5.4")),
        "l40s",
    );
    let rest = plain - 2 * LINEAR;
    let scales = 28 * (4096 + 1024 + 2 * 3072 + 1024) * 2;
    let books = |n: u64, bits: u32| 28 * 7 * n * 2_u64.pow(bits) * 8 * 2;
    assert_eq!(of(1, 16), rest + LINEAR / 4 + scales + books(1, 16));
    assert_eq!(of(2, 8), rest + LINEAR / 4 + scales + books(2, 8));
}
