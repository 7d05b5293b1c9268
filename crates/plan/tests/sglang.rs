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
