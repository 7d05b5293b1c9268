//! The flags of our own server.

use plimsoll_plan::{Answer, Engine, KvType, Question};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType, Weights};

use crate::build::ModelFacts;
use crate::launch::Launch;

/// One process of our own server: a replica. It has no pipeline stages.
pub(super) fn plimsoll(
    facts: &ModelFacts,
    q: &Question,
    a: &Answer,
    p: Parallel,
) -> Option<Launch> {
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
