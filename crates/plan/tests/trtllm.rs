//! TensorRT-LLM's start-up figures, as published logs print them.

use plimsoll_plan::log::read;
use plimsoll_plan::measured::{
    EngineName, Figure, Model, Prediction, Setup, judge, parse_records, predict_on,
    tokens_given_pool,
};
use serde_json::{Value, json};

/// A dense decoder's configuration.
fn config(
    architecture: &str,
    layers: u64,
    hidden: u64,
    ff: u64,
    heads: (u64, u64),
    vocab: u64,
    tied: bool,
) -> Value {
    json!({
        "architectures": [architecture], "torch_dtype": "bfloat16", "hidden_size": hidden,
        "num_hidden_layers": layers, "intermediate_size": ff, "num_attention_heads": heads.0,
        "num_key_value_heads": heads.1, "vocab_size": vocab, "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    })
}

fn predicted(setup: &Setup, config: Value) -> Prediction {
    predict_on(
        setup,
        Ok(Model::Config(config)),
        plimsoll_plan::measured::device(setup),
    )
}

/// Tokens that a printed pool has, as printed: of public documents and notes with the lines quoted (SmolLM2-135M on a card of
/// 12 GiB; an engine of Llama 3.1 8B with an fp8 cache on an RTX 5090; Qwen2.5 1.5B and 0.5B in Triton; Llama 2 7B with an
/// fp8 cache in TensorRT-LLM's own document on memory usage).
#[test]
fn a_pool_has_as_many_tokens_as_are_printed() {
    let smol = config("LlamaForCausalLM", 30, 576, 1536, (9, 3), 49_152, true);
    let llama3 = config(
        "LlamaForCausalLM",
        32,
        4096,
        14_336,
        (32, 8),
        128_256,
        false,
    );
    let llama2 = config(
        "LlamaForCausalLM",
        32,
        4096,
        11_008,
        (32, 32),
        32_000,
        false,
    );
    let qwen = config("Qwen2ForCausalLM", 28, 1536, 8960, (12, 2), 151_936, true);
    let qwen_small = config("Qwen2ForCausalLM", 24, 896, 4864, (14, 2), 151_936, true);
    for (model, kv, block, gib, tokens) in [
        (smol, "auto", 32, 9.06, 422_048),
        (llama3, "fp8", 32, 16.05, 263_008),
        (llama2, "fp8", 64, 63.44, 259_840),
        (qwen, "auto", 32, 7.31, 273_792),
        (qwen_small, "auto", 32, 2.18, 190_656),
    ] {
        let line = json!({
            "engine": "tensorrt-llm", "model": "m", "gpu_count": 1, "kv_cache_dtype": kv, "block_size": block,
            "total_gpu_memory_gib": 79.1, "kv_available_gib": gib, "kv_tokens": tokens,
        });
        let record = &parse_records(&line.to_string()).unwrap()[0];
        let p = predicted(&record.setup, model);
        assert_eq!(p.engine, EngineName::TensorRtLlm);
        let judged = tokens_given_pool(&p, &record.reported).expect("both are there");
        assert_eq!(judged.inside, Some(true), "{line}: {judged:?}");
    }
}

/// The log of TensorRT-LLM's own document on memory usage: an engine of 7B parameters in 8 bits
/// whose cache has 256 KiB per token, as Llama 2 7B's in 8 bits has. The pool and its tokens are under their bounds.
#[test]
fn a_log_is_within_its_bounds() {
    let text = "[TensorRT-LLM][INFO] Loaded engine size: 6695 MiB\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 1134.01 MiB for execution context memory.\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 43.29 MB GPU memory for runtime buffers.\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 180.30 MB GPU memory for decoder.\n\
        [TensorRT-LLM][INFO] Memory usage when calculating max tokens in paged kv cache: total: 79.10 GiB, available: 70.48 GiB\n\
        [TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 4060\n\
        [TensorRT-LLM][INFO] Number of blocks in KV cache secondary pool: 0, onboard blocks to primary memory before reuse: true\n\
        [TensorRT-LLM][INFO] Max KV cache pages per sequence: 32\n\
        [TensorRT-LLM][INFO] Number of tokens per block: 64.\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 63.44 GiB for max tokens in paged KV cache (259840).";
    let mut log = read(text).expect("TensorRT-LLM's lines");
    log.setup.kv_cache_dtype = Some("fp8".to_owned());
    log.setup.quantization = Some("fp8".to_owned());
    let llama2 = config(
        "LlamaForCausalLM",
        32,
        4096,
        11_008,
        (32, 32),
        32_000,
        false,
    );
    let p = predicted(&log.setup, llama2);
    let figures = judge(&p, &log.reported);
    let of = |f: Figure| figures.iter().find(|j| j.figure == f).expect("a figure");
    for f in [Figure::KvPool, Figure::KvTokens] {
        let j = of(f);
        assert_eq!(j.inside, Some(true), "{j:?}");
        let e = j.predicted.as_ref().unwrap();
        // No wide bound: what it leaves out is what a start takes beside weights.
        assert!(
            e.kind == "bound" && e.high < 1.05 * j.reported.unwrap(),
            "{e:?}"
        );
    }
    let weights = of(Figure::Weights);
    assert!(weights.error_pct.unwrap().abs() < 3.0, "{weights:?}");
}

/// gpt-oss-120b on a DGX Spark (1.1.0rc3, a public log of 20 December 2025): its parameters are experts padded to 128 both
/// ways, and its first run has the experts' workspace in it.
#[test]
fn experts_in_mxfp4_are_padded_and_have_a_workspace() {
    let text = "[TensorRT-LLM] TensorRT-LLM version: 1.1.0rc3\n\
        [12/20/2025-04:20:21] [TRT-LLM] [I] Use 63.32 GB for model weights.\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Memory dynamically allocated during inference (inside torch) in memory usage profiling: 0.85 GiB\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Peak memory during memory usage profiling (torch + non-torch): 113.65 GiB, available KV cache memory when calculating max tokens: 5.95 GiB, fraction is set 0.8999999761581421, kv size is 73728. device total memory 119.70 GiB, , tmp kv_mem 0.56 GiB\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 5.95 GiB for max tokens in paged KV cache (86720).\n\
        [12/20/2025-04:21:52] [TRT-LLM] [I] max_seq_len=86720, max_num_requests=64, max_num_tokens=8192, max_batch_size=64";
    let log = read(text).expect("TensorRT-LLM's lines");
    let entry = plimsoll_model::catalogue::find("gpt-oss-120b").unwrap();
    let p = predicted(&log.setup, entry.config.clone());
    let figures = judge(&p, &log.reported);
    let of = |f: Figure| figures.iter().find(|j| j.figure == f).expect("a figure");
    let weights = of(Figure::Weights);
    assert!(weights.error_pct.unwrap().abs() < 0.1, "{weights:?}");
    let run = of(Figure::Activation);
    assert_eq!(run.inside, Some(true), "{run:?}");
    // Not wide: what is left out is under a quarter of it.
    assert!(
        run.predicted.as_ref().unwrap().high < 1.25 * 0.85,
        "{run:?}"
    );
}

/// A cap on tokens is filled up to whole blocks, and a first run is as long as the batch that was said.
#[test]
fn caps_and_batches_are_those_of_the_log() {
    let of = |setup: &Setup, f: Figure| {
        let p = predicted(
            setup,
            config("LlamaForCausalLM", 2, 512, 1024, (8, 8), 32_000, false),
        );
        let found = p.figures.into_iter().find(|(x, _)| *x == f);
        found.and_then(|(_, e)| e.ok()).expect("an estimate").high
    };
    let plain = Setup {
        engine: "TensorRT-LLM".to_owned(),
        model: "m".to_owned(),
        gpu_count: Some(1),
        total_gpu_memory_gib: Some(79.1),
        ..Setup::default()
    };
    let capped = Setup {
        max_total_tokens: Some(1000),
        ..plain.clone()
    };
    assert!((of(&capped, Figure::KvTokens) - 1024.0).abs() < 1e-9);
    assert!(of(&plain, Figure::KvTokens) > 1e6);
    let short = Setup {
        max_num_batched_tokens: Some(1024),
        max_num_seqs: Some(8),
        ..plain.clone()
    };
    assert!(of(&short, Figure::Activation) < 0.8 * of(&plain, Figure::Activation));
    let long = Setup {
        max_num_batched_tokens: Some(65_536),
        ..short.clone()
    };
    assert!(of(&long, Figure::Activation) > 8.0 * of(&short, Figure::Activation));
}

/// A prediction does not look at what was printed, and says what it cannot know.
#[test]
fn without_a_card_there_is_no_pool() {
    let setup = Setup {
        engine: "TensorRT-LLM".to_owned(),
        model: "m".to_owned(),
        gpu_count: Some(1),
        ..Setup::default()
    };
    let p = predicted(
        &setup,
        config("LlamaForCausalLM", 2, 512, 1024, (8, 8), 32_000, false),
    );
    let pool = p.figures.iter().find(|(f, _)| *f == Figure::KvPool);
    assert!(matches!(pool, Some((_, Err(_)))), "{:?}", p.figures);
    assert!(p.figures[0].1.is_ok());
}
