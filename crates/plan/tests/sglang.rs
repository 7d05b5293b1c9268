//! SGLang's rules against SGLang's own functions: every golden row must agree.
//!
//! `golden/sglang.jsonl` is the output of `tools/oracles/sglang_memory.py`, which runs the functions of many releases.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking"
)]

use plimsoll_device::Device;
use plimsoll_model::{Assume, Encoder, ModelSpec, catalogue, from_config};
use plimsoll_plan::engine::sglang::Defaults;
use plimsoll_plan::engine::{self, Context};
use plimsoll_plan::{Deployment, Engine, KvType, Settings, Version};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType};
use serde_json::Value;

const GOLDEN: &str = include_str!("golden/sglang.jsonl");

fn rows(kind: &'static str) -> impl Iterator<Item = Value> {
    GOLDEN
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .filter(move |r| r["kind"] == kind)
}

fn model(name: &str) -> ModelSpec {
    let entry = catalogue::find(name).unwrap_or_else(|| panic!("{name} is not built in"));
    from_config(&entry.config, Assume::Nothing).unwrap()
}

/// A context for the first stage of `spec`, handed to `f`.
fn with_context<T>(
    spec: &ModelSpec,
    settings: &Settings,
    device: Device,
    parallel: Parallel,
    f: impl FnOnce(&Context<'_>) -> T,
) -> T {
    let deployment = Deployment {
        kinds: None,
        device,
        parallel,
        in_use: Bytes::ZERO,
    };
    let stages = parallel.stages(spec.layers.len() as u64);
    f(&Context {
        spec,
        deployment: &deployment,
        settings,
        stage: &stages[0],
        max_model_len: 131_072,
        users: 1,
    })
}

fn version(row: &Value) -> Version {
    row["version"].as_str().unwrap().parse().unwrap()
}

#[test]
fn shares_and_sizes_are_those_of_its_own_functions() {
    let (plain, latent) = (
        model("meta-llama/Llama-3.1-8B-Instruct"),
        model("deepseek-ai/DeepSeek-V3"),
    );
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in rows("fraction") {
        let case = &row["case"];
        let number = |key: &str| case[key].as_u64();
        let mut spec = if case["mla"] == true {
            latent.clone()
        } else {
            plain.clone()
        };
        if let Some([layers, hidden]) = case["vision"].as_array().map(Vec::as_slice) {
            spec.encoder = Some(Encoder {
                hidden: hidden.as_u64().unwrap(),
                layers: layers.as_u64().unwrap(),
                intermediate: 0,
                patches: None,
                patch_elements: 0,
                tokens_per_image: None,
            });
        }
        let settings = Settings {
            max_num_batched_tokens: number("chunked_prefill_size"),
            graph_batch: number("cuda_graph_max_bs"),
            enforce_eager: case["disable_cuda_graph"] == true,
            max_num_seqs: number("max_running_requests"),
            ..Settings::new(Engine::Sglang(version(&row)))
        };
        let parallel = Parallel {
            tp: number("tp").unwrap(),
            pp: number("pp").unwrap_or(1),
            ..Parallel::default()
        };
        let device = Device::of_size(Bytes::new(number("card").unwrap() << 20));
        let got = with_context(&spec, &settings, device, parallel, |c| {
            Defaults::new(c, version(&row))
        });
        let want = &row["result"];
        let share = want["mem_fraction_static"].as_f64().unwrap();
        let same = (got.fraction - share).abs() < 1e-9
            && Some(got.chunk) == want["chunked_prefill_size"].as_u64()
            && got.graph_batch == want["cuda_graph_max_bs"].as_u64();
        compared += 1;
        if !same {
            wrong.push(format!("{} {case}: {got:?}, not {want}", row["version"]));
        }
    }
    assert!(compared > 1000, "{compared} rows");
    assert!(
        wrong.is_empty(),
        "{} of {compared} rows:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

#[test]
fn pools_are_those_of_its_own_functions() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in rows("pool") {
        let (case, want) = (&row["case"], &row["result"]);
        let spec = model(case["model"].as_str().unwrap());
        let v = version(&row);
        // Releases that keep no states for cached prefixes: not modelled.
        if spec
            .layers
            .iter()
            .any(|l| matches!(l.mixer, plimsoll_model::Mixer::State(_)))
            && want["state_slots"].is_null()
        {
            continue;
        }
        // The runner decides whether windows have a pool of their own; the oracle says yes, always.
        if !want["window_tokens"].is_null() && v < "0.5.3".parse().unwrap() {
            continue;
        }
        let gib = |key: &str| case[key].as_f64().unwrap();
        let settings = Settings {
            block_size: case["page_size"].as_u64(),
            max_total_tokens: case["max_total_tokens"].as_u64(),
            kv_type: if case["kv"] == "float8_e4m3fn" {
                KvType::Plain(DType::F8E4m3)
            } else {
                KvType::Auto
            },
            ..Settings::new(Engine::Sglang(v))
        };
        let parallel = Parallel {
            tp: case["tp"].as_u64().unwrap(),
            ..Parallel::default()
        };
        let rest = gib("free_gib") - gib("pre_gib") * (1.0 - gib("fraction"));
        let pool = Bytes::from_gib(rest).unwrap();
        let device = Device::of_size(Bytes::from_gib(gib("pre_gib")).unwrap());
        let law = with_context(&spec, &settings, device, parallel, |c| {
            engine::stage(c).unwrap().kv
        });
        let got = law.capacity(pool, 131_072).unwrap();
        let tokens = want["tokens"].as_u64().unwrap();
        compared += 1;
        // Older releases round the windows' share twice, and a page more or less is the order of their divisions.
        let page = case["page_size"].as_u64().unwrap();
        if got.tokens.abs_diff(tokens) > page {
            wrong.push(format!(
                "{} {case}: {} tokens, not {want}",
                row["version"], got.tokens
            ));
        }
    }
    assert!(compared > 350, "{compared} rows");
    assert!(
        wrong.is_empty(),
        "{} of {compared} rows:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

/// Bytes that a token takes of the pool, as divided and as stored, over the layers of a model; and its page.
fn cells(name: &str, version: &str, card: &str, kv: KvType) -> (f64, u64, u64) {
    let spec = model(name);
    let settings = Settings {
        kv_type: kv,
        ..Settings::new(Engine::Sglang(version.parse().unwrap()))
    };
    let device = plimsoll_device::find(card).unwrap().clone();
    let law = with_context(&spec, &settings, device, Parallel::default(), |c| {
        engine::stage(c).unwrap().kv
    });
    let pool = Bytes::from_gib(40.0).unwrap();
    let got = law.capacity(pool, 4096).unwrap();
    let layers = spec.layers.len() as u64;
    let stored = got.bytes_per_block.get() / got.block_size / layers;
    let divided = pool.get() as f64 / (got.tokens as f64 * layers as f64);
    (divided, stored, got.block_size)
}

#[test]
fn an_indexers_keys_and_8_bit_rows_are_as_each_release_has_them() {
    let fp8 = KvType::Plain(DType::F8E4m3);
    // A row: 512 + 64 elements. In 8 bits 512 + 4 x 4 + 64 x 2 = 656; the indexer's key 128 + 4 in all types.
    for (version, card, kv, divided, stored, page) in [
        ("0.5.8", "mi355x", fp8, 576 + 132, 656 + 132, 1),
        ("0.5.6", "mi300x", fp8, 576 + 132, 656 + 132, 64),
        ("0.5.9", "h200", fp8, 576 + 132, 656 + 132, 64),
        ("0.5.16", "h200", fp8, 576 + 132, 656 + 132, 64),
        ("0.5.17", "h200", fp8, 656 + 132, 656 + 132, 64),
        ("0.5.9", "b200", fp8, 576 + 132, 656 + 132, 64),
        ("0.5.10", "b200", fp8, 576 + 132, 576 + 132, 64),
        ("0.5.10", "mi355x", fp8, 576 + 132, 576 + 132, 1),
        ("0.5.9", "h200", KvType::Auto, 1152 + 132, 1152 + 132, 64),
        ("0.5.12", "b200", KvType::Auto, 576 + 132, 576 + 132, 64),
        (
            "0.5.9",
            "rtx-pro-6000",
            KvType::Plain(DType::Bf16),
            1284,
            1284,
            64,
        ),
    ] {
        let got = cells("glm-5", version, card, kv);
        let case = format!("{version} {card} {kv:?}: {got:?}");
        assert!((got.0 / f64::from(divided) - 1.0).abs() < 1e-3, "{case}");
        assert_eq!((got.1, got.2), (stored, page), "{case}");
    }
    // Without an indexer a latent row is its elements, on any page.
    let plain = cells("deepseek-v3", "0.5.9", "h200", fp8);
    assert_eq!((plain.1, plain.2), (576, 1));
}

#[test]
fn layers_without_an_indexer_have_no_keys_for_one_from_0_5_18_on() {
    let mut config = catalogue::find("glm-5").unwrap().config.clone();
    config["index_topk_freq"] = 4.into();
    let spec = from_config(&config, Assume::Nothing).unwrap();
    let own = spec
        .layers
        .iter()
        .filter(|l| matches!(l.mixer, plimsoll_model::Mixer::Latent(a) if a.indexer.is_some()))
        .count() as u64;
    let all = spec.layers.len() as u64;
    assert!(own < all);
    let stored = |version: &str| {
        let settings = Settings::new(Engine::Sglang(version.parse().unwrap()));
        let device = plimsoll_device::find("h200").unwrap().clone();
        let law = with_context(&spec, &settings, device, Parallel::default(), |c| {
            engine::stage(c).unwrap().kv
        });
        let c = law.capacity(Bytes::from_gib(40.0).unwrap(), 4096).unwrap();
        c.bytes_per_block.get() / c.block_size
    };
    assert_eq!(stored("0.5.17"), all * (1152 + 132));
    assert_eq!(stored("0.5.18"), all * 1152 + own * 132);
}

#[test]
fn latents_projections_are_kept_again() {
    let spec = model("deepseek-v3");
    let weights = |engine: Engine, card: &str| {
        let settings = Settings::new(engine);
        let device = plimsoll_device::find(card).unwrap().clone();
        let parallel = Parallel {
            tp: 8,
            ..Parallel::default()
        };
        with_context(&spec, &settings, device, parallel, |c| {
            let stage = engine::stage(c).unwrap();
            let mut again = stage.terms.iter().filter(|t| t.name.ends_with("again"));
            again.next().map_or(0, |t| t.bytes.get())
        })
    };
    // 61 layers x rank 512 x 16 of 128 heads x (128 + 128).
    let elements = 61 * 512 * 16 * 256;
    let sglang = Engine::Sglang("0.5.9".parse().unwrap());
    let vllm = Engine::Vllm("0.19".parse().unwrap());
    assert_eq!(weights(vllm, "h200"), 2 * elements);
    assert_eq!(weights(sglang, "h200"), 2 * elements);
    assert_eq!(weights(sglang, "mi300x"), elements, "8 bits stay 8");
    let mut plain = spec.clone();
    plain.quant = None;
    for t in &mut plain.tensors {
        t.dtype = DType::Bf16;
    }
    let settings = |engine| Settings::new(engine);
    for (engine, expected) in [(vllm, 0), (sglang, 2 * 8 * elements)] {
        let device = plimsoll_device::find("h200").unwrap().clone();
        let got = with_context(
            &plain,
            &settings(engine),
            device,
            Parallel::default(),
            |c| {
                let stage = engine::stage(c).unwrap();
                let mut again = stage.terms.iter().filter(|t| t.name.ends_with("again"));
                again.next().map_or(0, |t| t.bytes.get())
            },
        );
        assert_eq!(got, expected, "vLLM's are views of 16-bit weights");
    }
}
