//! SGLang's flags, as its releases know them.
//!
//! Source: `srt/server_args.py` of 0.4.6 to 0.5.23 (`add_cli_args`), whose parser reads what is written here
//! (`tools/oracles/emitted.py --sglang`).

use plimsoll_plan::{Answer, Engine, KvType, Question, Version};
use plimsoll_program::Parallel;
use plimsoll_units::DType;

use super::{Flag, degrees, given, online, torch_name};

/// From here on adapters are switched on by a flag and have a largest rank; before, both follow from `--lora-paths`. The
/// parser knows these flags in 0.4.9.post6 and not in 0.4.9.
const ADAPTERS_SWITCHED_ON: Version = Version {
    major: 0,
    minor: 4,
    patch: 10,
};

/// All of them. The release is that of the question, where it is about SGLang, else the newest.
pub(super) fn sglang_flags(q: &Question, a: &Answer, p: Parallel) -> Vec<Flag> {
    let settings = &q.settings;
    let version = match settings.engine {
        Engine::Sglang(v) => v,
        _ => plimsoll_plan::engine::sglang::NEWEST,
    };
    let mut out = vec![("--context-length", Some(q.longest().to_string()))];
    degrees(
        &mut out,
        &[
            ("--tp-size", p.tp),
            ("--pp-size", p.pp),
            ("--dp-size", p.dp),
        ],
    );
    if p.expert_parallel {
        out.push(("--ep-size", Some(p.tp.to_string())));
    }
    if let Some(d) = settings.dtype {
        out.push(("--dtype", Some(torch_name(d).to_owned())));
    }
    if let Some(name) = settings.quantization.and_then(online) {
        out.push(("--quantization", Some(name.to_owned())));
    }
    if let Some(name) = cache_name(settings.kv_type, version) {
        out.push(("--kv-cache-dtype", Some(name.to_owned())));
    }
    given(
        &mut out,
        &[
            ("--max-running-requests", settings.max_num_seqs),
            ("--chunked-prefill-size", settings.max_num_batched_tokens),
            ("--page-size", settings.block_size),
            ("--max-total-tokens", settings.max_total_tokens),
        ],
    );
    if let Engine::Sglang(_) = settings.engine {
        if let Some(u) = settings.gpu_memory_utilization {
            out.push(("--mem-fraction-static", Some(u.to_string())));
        } else if let (Some(kv), Some(s)) = (settings.kv_memory, a.evaluation.tightest()) {
            // It is told tokens, not bytes.
            let tokens = s.kv.capacity(kv, a.evaluation.max_model_len);
            if let Some(t) = tokens.ok().map(|c| c.tokens) {
                out.push(("--max-total-tokens", Some(t.to_string())));
            }
        }
    }
    if let Some(l) = settings.lora {
        out.push(("--max-loras-per-batch", Some(l.slots.to_string())));
        if version >= ADAPTERS_SWITCHED_ON {
            out.push(("--enable-lora", None));
            out.push(("--max-lora-rank", Some(l.rank.to_string())));
        }
    }
    if settings.enforce_eager {
        out.push(("--disable-cuda-graph", None));
    }
    if settings.prefix_caching == Some(false) {
        out.push(("--disable-radix-cache", None));
    }
    out
}

/// The type of the pool, where it has a name: else it is the model's, which it has without a flag.
fn cache_name(t: KvType, version: Version) -> Option<&'static str> {
    let KvType::Plain(d) = t else { return None };
    match d {
        DType::F8E4m3 => Some("fp8_e4m3"),
        DType::F8E5m2 => Some("fp8_e5m2"),
        DType::Bf16 if version >= plimsoll_plan::engine::sglang::BF16_BY_NAME => Some("bf16"),
        _ => None,
    }
}
