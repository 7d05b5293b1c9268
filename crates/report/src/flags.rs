//! The plan as a command: flags for vLLM, SGLang, TensorRT-LLM, llama.cpp and Plimsoll.

use plimsoll_plan::{Answer, Engine, KvType, Question};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType, Weights};

use crate::build::ModelFacts;
use crate::wire::EngineFlags;

/// A flag of an engine and its value, where it takes one.
pub(crate) type Flag = (&'static str, Option<String>);

/// One command per engine that serves; every flag restates a figure of the plan.
#[must_use]
pub fn engine_flags(facts: &ModelFacts, q: &Question, a: &Answer) -> Vec<EngineFlags> {
    let model = &facts.name;
    let own = of_one_process(model, q, a).unwrap_or_else(|| on_gpus(facts, q, a));
    let of = |engine: &str, command: String| EngineFlags {
        engine: engine.to_owned(),
        command,
    };
    vec![
        of("vllm", command(&vllm_head(model, q), &vllm_flags(q, a))),
        of(
            "sglang",
            command(
                &format!("python -m sglang.launch_server --model-path {model}"),
                &sglang_flags(q, a),
            ),
        ),
        of(
            "trtllm",
            command(&format!("trtllm-serve {model}"), &trtllm_flags(q, a)),
        ),
        of(
            "llama.cpp",
            command("llama-server -m MODEL.gguf", &llama_cpp_flags(q)),
        ),
        of("plimsoll", own.join(" ")),
    ]
}

/// A command line: `head`, then flags with their values.
pub(crate) fn command(head: &str, flags: &[Flag]) -> String {
    let mut out = head.to_owned();
    for (flag, value) in flags {
        out.push(' ');
        out.push_str(flag);
        if let Some(v) = value {
            out.push(' ');
            out.push_str(v);
        }
    }
    out
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

/// vLLM's command, and on processors the variable that sizes its KV cache, in whole GiB.
fn vllm_head(model: &str, q: &Question) -> String {
    match q.settings.kv_memory.filter(|_| on_processors(q)) {
        Some(kv) => format!(
            "VLLM_CPU_KVCACHE_SPACE={} vllm serve {model}",
            (kv.get() >> 30).max(1)
        ),
        None => format!("vllm serve {model}"),
    }
}

/// vLLM's flags.
pub(crate) fn vllm_flags(q: &Question, a: &Answer) -> Vec<Flag> {
    let p = a.evaluation.deployment.parallel;
    let settings = &q.settings;
    let mut out = vec![("--max-model-len", Some(q.load.context.to_string()))];
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
    if settings.kv_type != KvType::Auto {
        out.push(("--kv-cache-dtype", Some(vllm_kv_name(settings.kv_type))));
    }
    given(
        &mut out,
        &[
            ("--max-num-seqs", settings.max_num_seqs),
            ("--max-num-batched-tokens", settings.max_num_batched_tokens),
            ("--block-size", settings.block_size),
        ],
    );
    let beside = shared_card(q, a).filter(|_| matches!(settings.engine, Engine::Vllm(_)));
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
    out
}

/// SGLang's flags.
pub(crate) fn sglang_flags(q: &Question, a: &Answer) -> Vec<Flag> {
    let p = a.evaluation.deployment.parallel;
    let settings = &q.settings;
    let mut out = vec![("--context-length", Some(q.load.context.to_string()))];
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
    // Its pools have the model's type, or 8 bits.
    if let KvType::Plain(d @ (DType::Bf16 | DType::F8E4m3 | DType::F8E5m2)) = settings.kv_type {
        let name = match d {
            DType::F8E4m3 => "fp8_e4m3",
            DType::F8E5m2 => "fp8_e5m2",
            _ => "bf16",
        };
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
        out.push(("--enable-lora", None));
        out.push(("--max-loras-per-batch", Some(l.slots.to_string())));
        out.push(("--max-lora-rank", Some(l.rank.to_string())));
    }
    if settings.enforce_eager {
        out.push(("--disable-cuda-graph", None));
    }
    out
}

/// TensorRT-LLM's flags.
pub(crate) fn trtllm_flags(q: &Question, a: &Answer) -> Vec<Flag> {
    let p = a.evaluation.deployment.parallel;
    let settings = &q.settings;
    let mut out = vec![("--max_seq_len", Some(q.load.context.to_string()))];
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

/// llama.cpp's flags.
pub(crate) fn llama_cpp_flags(q: &Question) -> Vec<Flag> {
    let settings = &q.settings;
    let sequences = q.load.users.saturating_mul(q.load.sequences).max(1);
    let context = q.load.context.saturating_mul(sequences);
    let mut out = vec![
        ("-c", Some(context.to_string())),
        ("-np", Some(sequences.to_string())),
        ("-ngl", Some("99".to_owned())),
    ];
    if let KvType::Plain(d) = settings.kv_type {
        let v = settings
            .kv_type_v
            .map_or_else(|| d.name().to_owned(), |v| v.to_string());
        out.push(("-ctk", Some(d.name().to_owned())));
        out.push(("-ctv", Some(v)));
    }
    given(&mut out, &[("-ub", settings.ubatch)]);
    out
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
