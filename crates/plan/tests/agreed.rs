//! Published reports that a cause explained: each stays within what it was then.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use plimsoll_model::catalogue;
use plimsoll_plan::measured::{Configs, Figure, judge, parse_records, predict};
use serde_json::{Value, json};

/// The error of a figure of a report, percent; `like` is the built-in model whose configuration it has.
fn error(record: &Value, like: &str, figure: Figure) -> f64 {
    let mut config = catalogue::find(like).unwrap().config.clone();
    config
        .as_object_mut()
        .unwrap()
        .remove("quantization_config");
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove("quantization_config");
    }
    if let Some(q) = record.get("stored") {
        config["quantization_config"] = q.clone();
    }
    config["model"] = record["model"].clone();
    let configs = Configs::parse(&config.to_string()).unwrap();
    let record = &parse_records(&record.to_string()).unwrap()[0];
    let p = predict(&record.setup, &configs);
    let judged = judge(&p, &record.reported);
    let one = judged.iter().find(|j| j.figure == figure).unwrap();
    one.error_pct
        .unwrap_or_else(|| panic!("{:?}: {:?}", figure, one.predicted))
}

#[test]
fn reports_stay_explained() {
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]});
    // sglang: an indexer's keys, uncounted scales, free memory after loading, a class of cards.
    let glm = json!({"engine": "sglang", "engine_version": "Feb 2026", "model": "zai-org/GLM-5-FP8", "quantization": "fp8",
        "dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3", "gpu_count": 8, "tensor_parallel": 8, "kv_tokens": 3_262_823,
        "stored": fp8, "notes": "avail mem 193.92 GB after load, 3.90 GB after pool (288 GB-class GPUs)"});
    // nvidia's list of modules in 16 bits.
    let gemma = json!({"engine": "vllm", "engine_version": "Apr 2026", "model": "nvidia/Gemma-4-31B-IT-NVFP4",
        "quantization": "nvfp4", "gpu": "NVIDIA Thor, unified memory", "gpu_count": 1, "gpu_memory_utilization": 0.8,
        "weights_gib_per_gpu": 31.04});
    // vLLM 0.8.2: 1024 sequences on every card; bitsandbytes' nested scales; AQLM.
    let l40s = json!({"engine": "vllm", "engine_version": "V1, Apr 2025", "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "L40S", "gpu_count": 1, "max_model_len": 32768, "kv_tokens": 158_656});
    let bnb = json!({"engine": "vllm", "engine_version": "v0.5.4", "model": "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "gpu_count": 1, "max_model_len": 512, "quantization": "bitsandbytes", "weights_gib_per_gpu": 5.3421});
    let aqlm = json!({"engine": "vllm", "engine_version": "v0.5.4", "gpu_count": 1, "max_model_len": 512, "quantization": "aqlm",
        "model": "ISTA-DASLab/Llama-3.1-8B-Instruct-AQLM-PV-2Bit-1x16-hf", "weights_gib_per_gpu": 3.8458});
    for (record, like, figure, most) in [
        (&glm, "glm-5", Figure::KvTokens, 0.5),
        (&gemma, "gemma-4-31b", Figure::Weights, 0.3),
        (&l40s, "llama-3.1-8b", Figure::KvTokens, 5.0),
        (&bnb, "llama-3.1-8b", Figure::Weights, 0.3),
        (&aqlm, "llama-3.1-8b", Figure::Weights, 0.4),
    ] {
        let error = error(record, like, figure);
        assert!(error.abs() <= most, "{}: {error} %", record["model"]);
    }
}

/// Why a figure, or the start, of a report is not predicted.
fn reasons(record: &Value, figure: Figure) -> (Option<String>, Option<String>) {
    let record = &parse_records(&record.to_string()).unwrap()[0];
    let p = predict(&record.setup, &Configs::default());
    let one = p.figures.iter().find(|(f, _)| *f == figure).unwrap();
    (one.1.clone().err(), p.start.err())
}

#[test]
fn what_a_report_leaves_out_is_not_guessed() {
    // 62 GB of weights on a card of 32: they were in some other format.
    let open = json!({"engine": "vllm", "engine_version": "0.21.0", "model": "google/gemma-4-31b-it",
        "gpu": "Intel Arc Pro B70 32GB", "gpu_count": 1, "max_model_len": 4096});
    let on = |record: &Value, cards: u64| {
        let mut record = record.clone();
        record["gpu_count"] = json!(cards);
        record
    };
    for figure in [Figure::Weights, Figure::KvPool, Figure::KvTokens] {
        let (why, start) = reasons(&open, figure);
        assert!(
            why.is_some_and(|w| w.contains("no weight format")),
            "{figure:?}"
        );
        assert!(start.is_some_and(|w| w.contains("no weight format")));
        assert_eq!(reasons(&on(&open, 4), figure), (None, None));
    }
    // On two they load, and nothing is left: as likely a refusal.
    let (why, start) = reasons(&on(&open, 2), Figure::KvPool);
    assert!(why.is_some_and(|w| w.contains("would not start")) && start.is_none());
    // Requests of a longest length that nobody states, where the trained one may not fit.
    let mut length = json!({"engine": "vllm", "engine_version": "0.21.0", "model": "Qwen/Qwen3-8B",
        "gpu": "sm_120 card", "gpu_count": 1});
    let (why, _) = reasons(&length, Figure::MaxConcurrency);
    assert!(why.is_some_and(|w| w.contains("max_model_len")));
    length["gpu"] = json!("H100");
    assert_eq!(reasons(&length, Figure::MaxConcurrency).0, None);
    length["gpu"] = json!("RTX 4090");
    assert!(reasons(&length, Figure::MaxConcurrency).0.is_some());
    length["max_model_len"] = json!(40960);
    assert_eq!(reasons(&length, Figure::MaxConcurrency).0, None);
}

#[test]
fn a_card_has_the_memory_that_was_free_on_it() {
    let assumed = |notes: &str| {
        let record = json!({"engine": "sglang", "engine_version": "0.5.8", "model": "Qwen/Qwen3-8B",
            "gpu": "sm_120 card", "gpu_count": 1, "notes": notes});
        let record = &parse_records(&record.to_string()).unwrap()[0];
        predict(&record.setup, &Configs::default())
            .assumed
            .join("; ")
    };
    assert!(assumed("").contains("rtx-5090-32g"));
    assert!(!assumed("avail mem 90.1 GB before load").contains("rtx-5090-32g"));
}

/// Eight ranks that share out the entries of latents hold eight times as many tokens: so this model's page prints both.
#[test]
fn a_reports_decode_context_parallel_counts() {
    let tokens = |notes: &str| {
        let record = json!({"engine": "vllm", "engine_version": "v0.11.2", "model": "moonshotai/Kimi-K2-Thinking", "gpu": "H200",
            "gpu_count": 8, "tensor_parallel": 8, "kv_tokens": 1, "notes": notes});
        let mut config = catalogue::find("kimi-k2-thinking").unwrap().config.clone();
        config["model"] = record["model"].clone();
        let configs = Configs::parse(&config.to_string()).unwrap();
        let p = predict(
            &parse_records(&record.to_string()).unwrap()[0].setup,
            &configs,
        );
        let found = p.figures.iter().find(|(f, _)| *f == Figure::KvTokens);
        found.unwrap().1.as_ref().unwrap().value
    };
    let ratio = tokens("decode context parallel 8") / tokens("");
    assert!((ratio - 8.0).abs() < 0.01, "{ratio}");
}
