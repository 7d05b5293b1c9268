//! Figures that people published of vLLM's pools, and per-request figures worked out by hand.

use plimsoll_model::{Assume, catalogue, from_config};
use plimsoll_plan::kv::KvLaw;
use plimsoll_plan::{Engine, Load, Settings};
use plimsoll_program::Parallel;
use plimsoll_units::Bytes;

use super::{golden_rows, laws};

const GIB: f64 = (1_u64 << 30) as f64;

/// The law of one H100 rank. The model is one of the catalogue's, or of a golden row's.
fn law(model: &str, version: &str, tp: u64, change: impl Fn(&mut Settings)) -> Box<dyn KvLaw> {
    let config = catalogue::find(model).map_or_else(
        || {
            let row = golden_rows().find(|r| r["name"] == model);
            row.expect("a golden row of this name")["config"].clone()
        },
        |e| e.config.clone(),
    );
    let mut settings = Settings::new(Engine::Vllm(version.parse().unwrap()));
    settings.max_model_len = Some(131_072);
    change(&mut settings);
    let parallel = Parallel {
        tp,
        ..Parallel::default()
    };
    let spec = from_config(&config, Assume::Nothing).expect("a model that can be read");
    laws(&spec, &settings, parallel).unwrap().remove(0)
}

/// Bytes of the blocks that one request of `tokens` holds.
fn request(law: &dyn KvLaw, tokens: u64) -> u64 {
    let two = law.need(&Load::plain(2, tokens)).unwrap().pool.get();
    two - law.need(&Load::plain(1, tokens)).unwrap().pool.get()
}

fn rounds_to(bytes: u64, gib: f64) {
    let exact = bytes as f64 / GIB;
    assert!(
        (exact - gib).abs() <= 0.005 + 1e-9,
        "{exact} GiB, expected {gib}"
    );
}

/// Asserts that a pool printed as `gib` (two decimals) can hold `tokens` as printed.
fn prints(law: &dyn KvLaw, gib: f64, tokens: u64, max_len: u64) {
    let at = |g: f64| {
        let pool = Bytes::from_f64(g * GIB).unwrap();
        law.capacity(pool, max_len).unwrap().tokens
    };
    let (low, high) = (at(gib - 0.005), at(gib + 0.005));
    assert!(
        (low..=high).contains(&tokens),
        "{gib} GiB holds {low} to {high} tokens, printed {tokens}"
    );
}

#[test]
fn published_pools_hold_the_published_tokens() {
    let plain = |_: &mut Settings| {};
    // vllm#33263, a 24 GB card.
    prints(
        law("qwen3-1.7b", "0.14", 1, plain).as_ref(),
        18.78,
        175_856,
        40_960,
    );
    // vllm#34076.
    prints(
        law("qwen3-coder-30b-a3b", "0.15", 1, plain).as_ref(),
        3.18,
        34_736,
        262_144,
    );
    // hf-mem#60: blocks over groups, which undercounts windows.
    prints(
        law("gpt-oss-120b-128k", "0.11", 1, plain).as_ref(),
        5.38,
        78_384,
        131_072,
    );
    // hf-mem#61.
    prints(
        law("gemma-4-31b-text", "0.20", 1, plain).as_ref(),
        24.54,
        26_800,
        262_144,
    );
    // The llm-d table: blocks of 128.
    let mistral = law("mistral-small-24b-2501", "0.11", 1, |s| {
        s.block_size = Some(128)
    });
    prints(mistral.as_ref(), 28.20, 184_832, 32_768);
    let block = mistral
        .capacity(Bytes::ZERO, 1)
        .unwrap()
        .bytes_per_block
        .get();
    assert_eq!(request(mistral.as_ref(), 15_049), 118 * block);
}

#[test]
fn a_start_needs_what_the_error_says() {
    // vllm#34076.
    let coder = law("qwen3-coder-30b-a3b", "0.15", 1, |s| {
        s.max_model_len = Some(262_144)
    });
    let needed = coder.start(262_144).unwrap();
    assert_eq!(needed, Some(Bytes::new(24 << 30)));
    // vllm#16118: chunked layers charged as full ones.
    let scout = law("llama-4-scout-tp8", "0.11", 8, |s| {
        s.max_model_len = Some(1 << 20)
    });
    assert_eq!(scout.start(1 << 20).unwrap(), Some(Bytes::new(24 << 30)));
}

#[test]
fn window_layers_are_charged_for_tokens_in_flight() {
    // On an H100: T 8192, and two batches in flight.
    let gemma = law("gemma-3-27b-tp2", "0.32", 1, |_| {});
    rounds_to(request(gemma.as_ref(), 8192), 4.38);
    rounds_to(request(gemma.as_ref(), 131_072), 17.98);
    let groups = gemma.capacity(Bytes::ZERO, 131_072).unwrap().groups;
    let padding: u64 = groups.iter().map(|g| g.padding_layers).sum();
    assert_eq!((groups.len(), padding), (7, 8));

    let oss = |t| {
        law("gpt-oss-120b-128k", "0.32", 1, move |s| {
            s.max_num_batched_tokens = t
        })
    };
    let block = 589_824;
    assert_eq!(request(oss(None).as_ref(), 131_072), (8192 + 1033) * block);
    rounds_to(request(oss(None).as_ref(), 131_072), 5.07);
    rounds_to(request(oss(Some(2048)).as_ref(), 131_072), 4.65);
    let sync = law("gpt-oss-120b-128k", "0.32", 1, |s| {
        s.async_scheduling = Some(false)
    });
    assert_eq!(request(sync.as_ref(), 131_072), (8192 + 521) * block);
}

#[test]
fn attention_blocks_grow_until_a_page_holds_a_state() {
    let next = |change: fn(&mut Settings)| law("qwen3-next-80b", "0.32", 1, change);
    let block = |l: &dyn KvLaw| {
        let groups = l.capacity(Bytes::ZERO, 32_768).unwrap().groups;
        groups.iter().map(|g| g.block_size).min().unwrap()
    };
    let cached = next(|_| {});
    assert_eq!(block(cached.as_ref()), 544);
    let one = cached
        .capacity(Bytes::ZERO, 1)
        .unwrap()
        .bytes_per_block
        .get();
    assert_eq!(request(cached.as_ref(), 32_768), 67 * one);
    rounds_to(67 * one, 0.834);
    let wide = next(|s| s.mamba_ssm_cache_dtype = Some(plimsoll_units::DType::F32));
    assert_eq!(block(wide.as_ref()), 1056);
    // Before 0.28 hybrids cache no prefixes unless told to: one state, not two.
    let older = law("qwen3-next-80b", "0.21", 1, |_| {});
    assert_eq!(request(older.as_ref(), 32_768), 64 * one);
}

#[test]
fn a_cached_prefix_is_shared_by_whole_blocks() {
    let pool = |caching: Option<bool>| {
        let llama = law("llama-3.1-8b", "0.32", 1, |s| s.prefix_caching = caching);
        let shared = Load {
            shared_prefix: 1000,
            ..Load::plain(10, 4096)
        };
        llama.need(&shared).unwrap().pool.get() / (16 * 131_072)
    };
    // And the null block.
    assert_eq!(pool(Some(false)), 10 * 256 + 1);
    assert_eq!(pool(None), 10 * 256 + 1 - 9 * 62);
}

#[test]
fn what_a_version_refuses_names_the_flag() {
    let refuse = |model: &str, version: &str, change: &dyn Fn(&mut Settings)| {
        let config = &catalogue::find(model).unwrap().config;
        let mut settings = Settings::new(Engine::Vllm(version.parse().unwrap()));
        settings.max_model_len = Some(4096);
        change(&mut settings);
        let spec = from_config(config, Assume::Nothing).unwrap();
        match laws(&spec, &settings, Parallel::default()) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        }
    };
    let kv = |t: &'static str| move |s: &mut Settings| s.kv_type = t.parse().unwrap();
    let message = refuse("llama-3.1-8b", "0.19", &kv("int8_per_token_head"));
    assert!(
        message.contains("--kv-cache-dtype int8_per_token_head"),
        "{message}"
    );
    assert!(refuse("llama-3.1-8b", "0.21", &kv("int4")).contains("0.32"));
    assert!(refuse("llama-3.1-8b", "0.32", &kv("fp8_ds_mla")).contains("latent"));
    assert!(refuse("llama-3.1-8b", "0.32", &kv("q8_0")).contains("q8_0"));
    assert_eq!(refuse("llama-3.1-8b", "0.32", &kv("nvfp4")), "");
    assert!(!refuse("llama-3.1-8b", "0.32", &|s| s.block_size = Some(0)).is_empty());
}
