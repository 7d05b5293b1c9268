//! llama.cpp's flags: those of `llama-server`, as its builds know them.
//!
//! Source: `common/arg.cpp` (commit 0c1e57098), whose parser reads what is written here (`tools/oracles/emitted.py
//! --llama-server`); before August 2025 (PR 15434) `-fa` took no value.

use plimsoll_plan::engine::llamacpp::{Rules, caches};
use plimsoll_plan::{Engine, EngineVersion, KvType, Question};
use plimsoll_units::DType;

use super::{Flag, given};

/// More layers than any model has: all are offloaded, the output too. `all` is a word of newer builds only.
const ALL_LAYERS: u64 = 999;

/// All of them. The build is that of the question, where it is about llama.cpp, else the newest.
pub(super) fn llama_cpp_flags(q: &Question) -> Vec<Flag> {
    let settings = &q.settings;
    let version = match settings.engine {
        Engine::LlamaCpp(v) => v,
        _ => EngineVersion::Mainline,
    };
    let planned = matches!(settings.engine, Engine::LlamaCpp(_));
    let asked = q.load.users.saturating_mul(q.load.sequences).max(1);
    // What other engines let run at once is no number of slots.
    let slots = settings.max_num_seqs.filter(|_| planned);
    let slots = asked.max(slots.unwrap_or(0));
    let cells = q.longest().saturating_mul(slots);
    let mut out = vec![
        ("-c", Some(cells.to_string())),
        ("-np", Some(slots.to_string())),
    ];
    let on_host = q.device.as_ref().is_some_and(|d| d.vendor == "cpu");
    if on_host && planned {
        // A build that knows GPUs uses none, and finished prompts take nothing beside the plan.
        out.push(("--device", Some("none".to_owned())));
        given(&mut out, &[("-t", settings.threads)]);
        if Rules::of(version).prompt_cache {
            out.push(("--cache-ram", Some("0".to_owned())));
        }
    } else {
        out.push(("-ngl", Some(ALL_LAYERS.to_string())));
    }
    let k = name(settings.kv_type);
    if let Some(k) = k {
        out.push(("-ctk", Some(k.to_owned())));
    }
    // Values are as the keys are, unless told.
    if let Some(v) = settings.kv_type_v.map_or(k, name) {
        out.push(("-ctv", Some(v.to_owned())));
    }
    if planned {
        given(&mut out, &[("-b", settings.max_num_batched_tokens)]);
    }
    given(&mut out, &[("-ub", settings.ubatch)]);
    if let Some(flash) = settings.flash_attention {
        let takes_value = Rules::of(version).flash_by_default;
        match (takes_value, flash) {
            (true, true) => out.push(("-fa", Some("on".to_owned()))),
            (true, false) => out.push(("-fa", Some("off".to_owned()))),
            (false, true) => out.push(("-fa", None)),
            (false, false) => {}
        }
    }
    // Where the number of slots is given, each has a buffer of its own, unless told.
    if settings.kv_unified && slots > 1 && Rules::of(version).streams {
        out.push(("--kv-unified", None));
    }
    if settings.swa_full {
        out.push(("--swa-full", None));
    }
    out
}

/// The name of a type that its caches can have.
fn name(t: KvType) -> Option<&'static str> {
    match t {
        KvType::Plain(d) if caches(d) => Some(DType::name(d)),
        _ => None,
    }
}
