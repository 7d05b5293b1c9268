//! The plan as a command: flags for vLLM, llama.cpp and Plimsoll.

use plimsoll_plan::{Answer, Engine, KvType, Question};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType, Weights};

use crate::build::ModelFacts;
use crate::wire::EngineFlags;

/// One command per engine that serves; every flag restates a figure of the plan.
#[must_use]
pub fn engine_flags(facts: &ModelFacts, q: &Question, a: &Answer) -> Vec<EngineFlags> {
    let p = a.evaluation.deployment.parallel;
    let settings = &q.settings;
    let length = q.load.context;
    let sequences = q.load.users.saturating_mul(q.load.sequences).max(1);
    let model = &facts.name;

    let mut vllm = vec![format!("vllm serve {model} --max-model-len {length}")];
    for (flag, n) in [
        ("tensor-parallel-size", p.tp),
        ("pipeline-parallel-size", p.pp),
        ("data-parallel-size", p.dp),
    ] {
        if n > 1 {
            vllm.push(format!("--{flag} {n}"));
        }
    }
    if p.expert_parallel {
        vllm.push("--enable-expert-parallel".to_owned());
    }
    if let Some(d) = settings.dtype {
        vllm.push(format!("--dtype {}", torch_name(d)));
    }
    if settings.kv_type != KvType::Auto {
        vllm.push(format!(
            "--kv-cache-dtype {}",
            vllm_kv_name(settings.kv_type)
        ));
    }
    for (flag, n) in [
        ("max-num-seqs", settings.max_num_seqs),
        ("max-num-batched-tokens", settings.max_num_batched_tokens),
        ("block-size", settings.block_size),
    ] {
        if let Some(n) = n {
            vllm.push(format!("--{flag} {n}"));
        }
    }
    if let Some(u) = settings.gpu_memory_utilization {
        vllm.push(format!("--gpu-memory-utilization {u}"));
    } else if q.in_use > Bytes::ZERO
        && let Engine::Vllm(_) = settings.engine
        && let (Some(s), Some(d)) = (a.evaluation.tightest(), &q.device)
    {
        // The share that the plan took beside the other process.
        vllm.push(format!(
            "--gpu-memory-utilization {:.2}",
            s.budget.bytes.gib() / d.usable.gib()
        ));
    }
    if let Some(l) = settings.lora {
        vllm.push(format!(
            "--enable-lora --max-loras {} --max-lora-rank {}",
            l.slots, l.rank
        ));
    }
    if let Some(kv) = settings.kv_memory {
        vllm.push(format!("--kv-cache-memory-bytes {}", kv.get()));
    }
    if settings.enforce_eager {
        vllm.push("--enforce-eager".to_owned());
    }

    let context = length.saturating_mul(sequences);
    let mut llama = vec![format!(
        "llama-server -m MODEL.gguf -c {context} -np {sequences} -ngl 99"
    )];
    if let KvType::Plain(d) = settings.kv_type {
        llama.push(format!(
            "-ctk {} -ctv {}",
            d.name(),
            settings
                .kv_type_v
                .map_or_else(|| d.name().to_owned(), |v| v.to_string())
        ));
    }
    if let Some(u) = settings.ubatch {
        llama.push(format!("-ub {u}"));
    }

    let own = of_one_process(model, q, a).unwrap_or_else(|| on_gpus(facts, q, a));
    let of = |engine: &str, parts: &[String]| EngineFlags {
        engine: engine.to_owned(),
        command: parts.join(" "),
    };
    vec![
        of("vllm", &vllm),
        of("llama.cpp", &llama),
        of("plimsoll", &own),
    ]
}

/// The flags of our own server on GPUs.
fn on_gpus(facts: &ModelFacts, q: &Question, a: &Answer) -> Vec<String> {
    let (settings, model) = (&q.settings, &facts.name);
    let p = a.evaluation.deployment.parallel;
    let sequences = q.load.users.saturating_mul(q.load.sequences).max(1);
    let length = q.load.context;
    let mut own = vec![format!("plimsoll serve {model} --max-model-len {length}")];
    // Where the plan answers how many users, the server runs as many as it can.
    let asked = facts.users_given.then_some(sequences);
    if let Some(n) = settings.max_num_seqs.or(asked) {
        own.push(format!("--max-num-seqs {n}"));
    }
    if let KvType::Plain(d @ (DType::Bf16 | DType::F16 | DType::F32 | DType::F8E4m3 | DType::I8)) =
        settings.kv_type
    {
        own.push(format!("--kv-cache-dtype {}", cache_name(d)));
    }
    for (flag, n) in [("tp", p.tp), ("pp", p.pp), ("dp", p.dp)] {
        if n > 1 {
            own.push(format!("--{flag} {n}"));
        }
    }
    if settings.enforce_eager {
        own.push("--enforce-eager".to_owned());
    }
    if let Some(kv) = settings.kv_memory {
        own.push(format!("--kv-memory {}", kv.get()));
    } else if q.device.is_some()
        && settings.engine == Engine::Plimsoll
        && let Some(s) = a.evaluation.tightest()
    {
        own.push(format!("--kv-memory {}", s.kv_term.bytes.get()));
    }
    own
}

/// The flags of our own server, where one process is what is planned, of however many ranks: those that make it commit this
/// very map.
fn of_one_process(model: &str, q: &Question, a: &Answer) -> Option<Vec<String>> {
    let settings = &q.settings;
    let deployment = &a.evaluation.deployment;
    let device = &deployment.device;
    let on_cpu = device.vendor == "cpu";
    let ranks = deployment.parallel.tp;
    let divided = Parallel {
        tp: ranks,
        ..Parallel::default()
    };
    if settings.engine != Engine::Plimsoll || deployment.parallel != divided {
        return None;
    }
    let (tokens, sequences) = a.evaluation.own_sizes(settings);
    let mut own = vec![
        format!("plimsoll serve {model}"),
        format!("--device {}", if on_cpu { "cpu" } else { "cuda" }),
        format!("--max-model-len {}", a.evaluation.max_model_len),
        format!("--max-num-seqs {sequences} --max-num-batched-tokens {tokens}"),
        format!("--threads {}", settings.threads.unwrap_or(1)),
        format!("--memory {}", device.usable.get()),
    ];
    if ranks > 1 {
        own.push(format!("--tp {ranks}"));
    }
    if settings.enforce_eager && !on_cpu {
        own.push("--enforce-eager".to_owned());
    }
    if settings.weights != Weights::default() {
        own.push(format!("--weights {}", settings.weights));
    }
    if let KvType::Plain(d) = settings.kv_type {
        own.push(format!("--kv-cache-dtype {}", cache_name(d)));
    }
    if let Some(size) = settings.block_size {
        own.push(format!("--block-size {size}"));
    }
    if let Some(kv) = settings.kv_memory {
        own.push(format!("--kv-memory {}", kv.get()));
    }
    if settings.swap > Bytes::ZERO {
        own.push(format!("--swap-space {}", settings.swap.get()));
    }
    if settings.swap_file {
        own.push("--swap-dir .".to_owned());
    }
    if let Some(http) = settings.http {
        own.push(format!(
            "--max-connections {} --max-body {}",
            http.connections,
            http.body.get()
        ));
    }
    if settings.prefix_caching == Some(false) {
        own.push("--no-enable-prefix-caching".to_owned());
    }
    Some(own)
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
