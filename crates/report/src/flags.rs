//! The plan as a command: flags for vLLM, llama.cpp and Plimsoll.

use plimsoll_plan::{Answer, Engine, KvType, Question};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType, Weights};

use crate::build::ModelFacts;
use crate::launch::Launch;
use crate::wire::EngineFlags;

/// One command per engine that serves; every flag restates a figure of the plan.
#[must_use]
pub fn engine_flags(facts: &ModelFacts, q: &Question, a: &Answer) -> Vec<EngineFlags> {
    let p = a.evaluation.deployment.parallel;
    let told = |l: Launch| EngineFlags {
        engine: l.engine().to_owned(),
        command: l.command(),
    };
    [vllm(facts, q, a, p), llama_cpp(facts, q)]
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
        Engine::LlamaCpp(_) => Some(llama_cpp(facts, q)),
        Engine::Plimsoll => plimsoll(facts, q, a, p),
        Engine::Ideal | Engine::Contiguous(_) => None,
    }
}

fn vllm(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Launch {
    let settings = &q.settings;
    let mut l = Launch::new("vllm", &["vllm", "serve", facts.served()]);
    l.flag("--max-model-len", q.load.context);
    for (flag, n) in [
        ("--tensor-parallel-size", p.tp),
        ("--pipeline-parallel-size", p.pp),
        ("--data-parallel-size", p.dp),
    ] {
        if n > 1 {
            l.flag(flag, n);
        }
    }
    if let Some(layers) = a
        .evaluation
        .deployment
        .kinds
        .as_ref()
        .and_then(|k| k.layers.as_ref())
    {
        let each: Vec<String> = layers.iter().map(u64::to_string).collect();
        l.variable("VLLM_PP_LAYER_PARTITION", each.join(","));
    }
    if p.expert_parallel {
        l.switch("--enable-expert-parallel");
    }
    if let Some(d) = settings.dtype {
        l.flag("--dtype", torch_name(d));
    }
    if settings.kv_type != KvType::Auto {
        l.flag("--kv-cache-dtype", vllm_kv_name(settings.kv_type));
    }
    for (flag, n) in [
        ("--max-num-seqs", settings.max_num_seqs),
        ("--max-num-batched-tokens", settings.max_num_batched_tokens),
        ("--block-size", settings.block_size),
    ] {
        if let Some(n) = n {
            l.flag(flag, n);
        }
    }
    if let Some(u) = settings.gpu_memory_utilization {
        l.flag("--gpu-memory-utilization", u);
    } else if q.in_use > Bytes::ZERO
        && let Engine::Vllm(_) = settings.engine
        && let (Some(s), Some(d)) = (a.evaluation.tightest(), &q.device)
    {
        // The share that the plan took beside the other process.
        let share = s.budget.bytes.gib() / d.usable.gib();
        l.flag("--gpu-memory-utilization", format!("{share:.2}"));
    }
    if let Some(lora) = settings.lora {
        l.switch("--enable-lora");
        l.flag("--max-loras", lora.slots);
        l.flag("--max-lora-rank", lora.rank);
    }
    if let Some(kv) = settings.kv_memory {
        l.flag("--kv-cache-memory-bytes", kv.get());
    }
    if settings.enforce_eager {
        l.switch("--enforce-eager");
    }
    l
}

fn llama_cpp(facts: &ModelFacts, q: &Question) -> Launch {
    let settings = &q.settings;
    let sequences = q.load.users.saturating_mul(q.load.sequences).max(1);
    // It reads nothing but GGUF files.
    let file = if facts.name.ends_with(".gguf") && !facts.name.contains(':') {
        &facts.name
    } else {
        "MODEL.gguf"
    };
    let mut l = Launch::new("llama.cpp", &["llama-server", "-m", file]);
    l.flag("-c", q.load.context.saturating_mul(sequences));
    l.flag("-np", sequences);
    l.flag("-ngl", 99);
    if let KvType::Plain(d) = settings.kv_type {
        l.flag("-ctk", d.name());
        match settings.kv_type_v {
            Some(v) => l.flag("-ctv", v),
            None => l.flag("-ctv", d.name()),
        }
    }
    if let Some(u) = settings.ubatch {
        l.flag("-ub", u);
    }
    l
}

/// One process of our own server: a replica. It has no pipeline stages.
fn plimsoll(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Option<Launch> {
    if p.pp > 1 {
        return None;
    }
    Some(of_one_process(facts, q, a, p).unwrap_or_else(|| on_gpus(facts, q, a, p)))
}

fn own(facts: &ModelFacts) -> Launch {
    Launch::new("plimsoll", &["plimsoll", "serve", facts.served()])
}

/// The flags of our own server on GPUs.
fn on_gpus(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Launch {
    let settings = &q.settings;
    let sequences = q.load.users.saturating_mul(q.load.sequences).max(1);
    let mut l = own(facts);
    l.flag("--max-model-len", q.load.context);
    // Where the plan answers how many users, the server runs as many as it can.
    let asked = facts.users_given.then_some(sequences);
    if let Some(n) = settings.max_num_seqs.or(asked) {
        l.flag("--max-num-seqs", n);
    }
    if let KvType::Plain(d @ (DType::Bf16 | DType::F16 | DType::F32 | DType::F8E4m3 | DType::I8)) =
        settings.kv_type
    {
        l.flag("--kv-cache-dtype", cache_name(d));
    }
    if p.tp > 1 {
        l.flag("--tp", p.tp);
    }
    if settings.enforce_eager {
        l.switch("--enforce-eager");
    }
    if let Some(kv) = settings.kv_memory {
        l.flag("--kv-memory", kv.get());
    } else if q.device.is_some()
        && settings.engine == Engine::Plimsoll
        && let Some(s) = a.evaluation.tightest()
    {
        l.flag("--kv-memory", s.kv_term.bytes.get());
    }
    l
}

/// The flags of our own server, where one process is what is planned, of however many ranks: those that make it commit this
/// very map.
fn of_one_process(facts: &ModelFacts, q: &Question, a: &Answer, p: Parallel) -> Option<Launch> {
    let settings = &q.settings;
    let device = &a.evaluation.deployment.device;
    let on_cpu = device.vendor == "cpu";
    let ranks = p.tp;
    let divided = Parallel {
        tp: ranks,
        ..Parallel::default()
    };
    if settings.engine != Engine::Plimsoll || p != divided {
        return None;
    }
    let (tokens, sequences) = a.evaluation.own_sizes(settings);
    let mut l = own(facts);
    l.flag("--device", if on_cpu { "cpu" } else { "cuda" });
    l.flag("--max-model-len", a.evaluation.max_model_len);
    l.flag("--max-num-seqs", sequences);
    l.flag("--max-num-batched-tokens", tokens);
    l.flag("--threads", settings.threads.unwrap_or(1));
    l.flag("--memory", device.usable.get());
    if ranks > 1 {
        l.flag("--tp", ranks);
    }
    if settings.enforce_eager && !on_cpu {
        l.switch("--enforce-eager");
    }
    if settings.weights != Weights::default() {
        l.flag("--weights", settings.weights);
    }
    if let KvType::Plain(d) = settings.kv_type {
        l.flag("--kv-cache-dtype", cache_name(d));
    }
    if let Some(size) = settings.block_size {
        l.flag("--block-size", size);
    }
    if let Some(kv) = settings.kv_memory {
        l.flag("--kv-memory", kv.get());
    }
    if settings.swap > Bytes::ZERO {
        l.flag("--swap-space", settings.swap.get());
    }
    if settings.swap_file {
        l.flag("--swap-dir", ".");
    }
    if let Some(http) = settings.http {
        l.flag("--max-connections", http.connections);
        l.flag("--max-body", http.body.get());
    }
    if settings.prefix_caching == Some(false) {
        l.switch("--no-enable-prefix-caching");
    }
    Some(l)
}

/// Our own name of a type of cached keys and values.
const fn cache_name(d: DType) -> &'static str {
    match d {
        DType::I8 => "int8",
        DType::F8E4m3 => "fp8",
        d => d.name(),
    }
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
