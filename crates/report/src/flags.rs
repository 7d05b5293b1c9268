//! The plan as a command: flags for vLLM, SGLang, TensorRT-LLM, llama.cpp and Plimsoll.

mod llamacpp;
mod plimsoll;
mod sglang;

use plimsoll_model::quant::QuantFormat;
use plimsoll_plan::{Answer, Engine, KvType, Question};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType};

use self::llamacpp::llama_cpp_flags;
use self::plimsoll::plimsoll;
use self::sglang::sglang_flags;
use crate::build::ModelFacts;
use crate::launch::Launch;
use crate::wire::EngineFlags;

/// A flag of an engine and its value, where it takes one.
type Flag = (&'static str, Option<String>);

/// One command per engine that serves; every flag restates a figure of the plan.
#[must_use]
pub fn engine_flags(facts: &ModelFacts, q: &Question, a: &Answer) -> Vec<EngineFlags> {
    let p = a.evaluation.deployment.parallel;
    let told = |l: Launch| EngineFlags {
        engine: l.engine().to_owned(),
        command: l.command(),
    };
    [
        vllm(facts, q, a, p),
        sglang(facts, q, a, p),
        trtllm(facts, q, p),
        llama_cpp(facts, q),
    ]
    .into_iter()
    .chain(plimsoll(facts, q, a, p))
    .map(told)
    .collect()
}

/// The start of the engine that the question is about, divided by `p`: as the plan is, or one of its replicas. `None` where
/// it is no program that serves, or not so divided.
#[must_use]
pub fn launch(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Option<Launch> {
    match q.settings.engine {
        Engine::Vllm(_) => Some(vllm(facts, q, a, p)),
        Engine::Sglang(_) => Some(sglang(facts, q, a, p)),
        Engine::TrtLlm => Some(trtllm(facts, q, p)),
        Engine::LlamaCpp(_) => Some(llama_cpp(facts, q)),
        Engine::Plimsoll => plimsoll(facts, q, a, p),
        Engine::Ideal | Engine::Contiguous(_) => None,
    }
}

/// vLLM's command. On processors a variable sizes its KV cache, in whole GiB.
fn vllm(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Launch {
    let mut l = Launch::new("vllm", &["vllm", "serve", facts.served()]);
    if let Some(kv) = q.settings.kv_memory.filter(|_| on_processors(q)) {
        l.variable(
            "VLLM_CPU_KVCACHE_SPACE",
            (kv.get() >> 30).max(1).to_string(),
        );
    }
    let kinds = a.evaluation.deployment.kinds.as_ref();
    if let Some(layers) = kinds.and_then(|k| k.layers.as_ref()) {
        let each: Vec<String> = layers.iter().map(u64::to_string).collect();
        l.variable("VLLM_PP_LAYER_PARTITION", each.join(","));
    }
    l.flags(vllm_flags(q, a, p));
    l
}

fn sglang(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Launch {
    let head = [
        "python",
        "-m",
        "sglang.launch_server",
        "--model-path",
        facts.served(),
    ];
    let mut l = Launch::new("sglang", &head);
    l.flags(sglang_flags(q, a, p));
    l
}

fn trtllm(facts: &ModelFacts, q: &Question, p: Parallel) -> Launch {
    let mut l = Launch::new("trtllm", &["trtllm-serve", facts.served()]);
    l.flags(trtllm_flags(q, p));
    l
}

fn llama_cpp(facts: &ModelFacts, q: &Question) -> Launch {
    // It reads nothing but GGUF files.
    let file = if facts.name.ends_with(".gguf") && !facts.name.contains(':') {
        &facts.name
    } else {
        "MODEL.gguf"
    };
    let mut l = Launch::new("llama.cpp", &["llama-server", "-m", file]);
    l.flags(llama_cpp_flags(q));
    l
}

/// A number that stands only where it is not one.
fn degrees(out: &mut Vec<Flag>, all: &[(&'static str, u64)]) {
    for (flag, n) in all {
        if *n > 1 {
            out.push((flag, Some(n.to_string())));
        }
    }
}

/// Numbers that stand only where they were given.
fn given(out: &mut Vec<Flag>, all: &[(&'static str, Option<u64>)]) {
    for (flag, n) in all {
        if let Some(n) = n {
            out.push((flag, Some(n.to_string())));
        }
    }
}

/// The share of the card that the plan took beside another process, where the engine is told one.
fn shared_card(q: &Question, a: &Answer) -> Option<String> {
    let (Some(s), Some(d)) = (a.evaluation.tightest(), &q.device) else {
        return None;
    };
    (q.in_use > Bytes::ZERO).then(|| format!("{:.2}", s.budget.bytes.gib() / d.usable.gib()))
}

/// Whether the plan is for vLLM on processors, where the KV cache is given in a variable.
fn on_processors(q: &Question) -> bool {
    matches!(q.settings.engine, Engine::Vllm(_))
        && q.device.as_ref().is_some_and(|d| d.vendor == "cpu")
}

/// vLLM's flags.
fn vllm_flags(q: &Question, a: &Answer, p: Parallel) -> Vec<Flag> {
    let settings = &q.settings;
    let mut out = vec![("--max-model-len", Some(q.longest().to_string()))];
    degrees(
        &mut out,
        &[
            ("--tensor-parallel-size", p.tp),
            ("--pipeline-parallel-size", p.pp),
            ("--data-parallel-size", p.dp),
        ],
    );
    if p.expert_parallel {
        out.push(("--enable-expert-parallel", None));
    }
    if let Some(d) = settings.dtype {
        out.push(("--dtype", Some(torch_name(d).to_owned())));
    }
    if let Some(name) = settings.quantization.and_then(online) {
        out.push(("--quantization", Some(name.to_owned())));
    }
    if settings.kv_type != KvType::Auto {
        out.push(("--kv-cache-dtype", Some(vllm_kv_name(settings.kv_type))));
    }
    given(
        &mut out,
        &[
            ("--max-num-seqs", settings.max_num_seqs),
            ("--max-num-batched-tokens", settings.max_num_batched_tokens),
            ("--block-size", settings.block_size),
            (
                "--decode-context-parallel-size",
                settings.decode_context_parallel,
            ),
        ],
    );
    let vllm_planned = matches!(settings.engine, Engine::Vllm(_));
    let beside = shared_card(q, a).filter(|_| vllm_planned);
    if let Some(u) = settings
        .gpu_memory_utilization
        .map(|u| u.to_string())
        .or(beside)
    {
        out.push(("--gpu-memory-utilization", Some(u)));
    }
    if let Some(l) = settings.lora {
        out.push(("--enable-lora", None));
        out.push(("--max-loras", Some(l.slots.to_string())));
        out.push(("--max-lora-rank", Some(l.rank.to_string())));
    }
    if let Some(kv) = settings.kv_memory.filter(|_| !on_processors(q)) {
        out.push(("--kv-cache-memory-bytes", Some(kv.get().to_string())));
    }
    if settings.enforce_eager {
        out.push(("--enforce-eager", None));
    }
    match settings.prefix_caching {
        Some(true) => out.push(("--enable-prefix-caching", None)),
        Some(false) => out.push(("--no-enable-prefix-caching", None)),
        None => {}
    }
    match settings.async_scheduling.filter(|_| vllm_planned) {
        Some(true) => out.push(("--async-scheduling", None)),
        Some(false) => out.push(("--no-async-scheduling", None)),
        None => {}
    }
    out
}

/// What vLLM and SGLang call a format that they quantise to while loading; `None` where they have none such.
#[must_use]
pub const fn online(format: QuantFormat) -> Option<&'static str> {
    match format {
        QuantFormat::Fp8Tensor { .. } => Some("fp8"),
        QuantFormat::Bnb4 => Some("bitsandbytes"),
        _ => None,
    }
}

/// TensorRT-LLM's flags.
fn trtllm_flags(q: &Question, p: Parallel) -> Vec<Flag> {
    let settings = &q.settings;
    let mut out = vec![("--max_seq_len", Some(q.longest().to_string()))];
    degrees(&mut out, &[("--tp_size", p.tp), ("--pp_size", p.pp)]);
    if p.expert_parallel {
        out.push(("--ep_size", Some(p.tp.to_string())));
    }
    given(
        &mut out,
        &[
            ("--max_batch_size", settings.max_num_seqs),
            ("--max_num_tokens", settings.max_num_batched_tokens),
        ],
    );
    if settings.engine == Engine::TrtLlm
        && let Some(u) = settings.gpu_memory_utilization
    {
        out.push(("--kv_cache_free_gpu_memory_fraction", Some(u.to_string())));
    }
    out
}

fn torch_name(d: DType) -> &'static str {
    match d {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        other => other.name(),
    }
}

fn vllm_kv_name(k: KvType) -> String {
    match k {
        KvType::Plain(DType::F8E4m3) => "fp8".to_owned(),
        KvType::Plain(DType::F8E5m2) => "fp8_e5m2".to_owned(),
        // Ours has a scale per token and head.
        KvType::Plain(DType::I8) => KvType::Int8PerTokenHead.to_string(),
        KvType::Plain(d) => torch_name(d).to_owned(),
        other => other.to_string(),
    }
}
