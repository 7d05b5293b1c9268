//! [`Names`]: what each family calls the tensors of a decoder, and how it lays them out.
//!
//! Names are the last parts: which layer a tensor belongs to is in the inventory, and what stands before differs
//! between exporters. Sources: the family files of `plimsoll-model`; for GGUF, `LLM_TENSOR_NAMES` in llama.cpp's
//! `src/llama-arch.cpp`.

use plimsoll_model::ModelSpec;

use super::Inventory;

/// Modules of a decoder; a module has a `weight` and may have a `bias`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) embedding: &'static str,
    /// The table of learned positions.
    pub(super) positions: &'static str,
    pub(super) attention_norm: &'static str,
    /// Query, key and value, or one module with all three.
    pub(super) qkv: &'static [&'static str],
    /// Whether one module has query, key and value of the first head, then of the second.
    pub(super) by_head: bool,
    /// Norms of query and key heads.
    pub(super) qk_norms: [&'static str; 2],
    pub(super) output: &'static str,
    /// A logit per query head beside those of the keys, where there is such.
    pub(super) sinks: &'static str,
    /// Latent attention; `None` where we know no names for it.
    pub(super) latent: Option<LatentNames>,
    /// The feed-forward's norm; `None` where it shares that of attention.
    pub(super) mlp_norm: Option<&'static str>,
    /// Gate and up, or one module with both, or the only one of a feed-forward without gate.
    pub(super) mlp_in: &'static [&'static str],
    pub(super) mlp_out: &'static str,
    /// A mixer that keeps a state.
    pub(super) state: StateNames,
    /// A feed-forward of experts; `None` where we know no names for it.
    pub(super) experts: Option<ExpertNames>,
    /// Norms of what attention and feed-forward give, where there are such.
    pub(super) after: [&'static str; 2],
    pub(super) final_norm: &'static str,
    pub(super) head: &'static str,
    /// Whether the matrices of layers are stored with inputs first.
    pub(super) transposed: bool,
}

/// Modules of a feed-forward of experts: `{e}` stands for an expert's number, a module without it has all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertNames {
    pub(super) router: &'static str,
    /// Gate and up, or one module with both.
    pub(super) input: &'static [&'static str],
    pub(super) output: &'static str,
    /// The same of the expert that every token passes.
    pub(super) shared_input: &'static [&'static str],
    pub(super) shared_output: &'static str,
    /// What says how much of it a token takes; `None` where that is all of it.
    pub(super) shared_gate: Option<&'static str>,
    /// What is added to scores for the choice, where there is such.
    pub(super) bias: &'static str,
}

/// Modules of latent attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatentNames {
    /// To the queries' latent, its norm, and on to the queries.
    pub(super) q_down: &'static str,
    pub(super) q_norm: &'static str,
    pub(super) q_up: &'static str,
    /// Queries at once, where they have no latent.
    pub(super) q: &'static str,
    /// To the latent and the shared key, the latent's norm, and on to keys and values.
    pub(super) kv_down: &'static str,
    pub(super) kv_norm: &'static str,
    pub(super) kv_up: &'static str,
}

const DEEPSEEK_LATENT: LatentNames = LatentNames {
    q_down: "self_attn.q_a_proj",
    q_norm: "self_attn.q_a_layernorm",
    q_up: "self_attn.q_b_proj",
    q: "self_attn.q_proj",
    kv_down: "self_attn.kv_a_proj_with_mqa",
    kv_norm: "self_attn.kv_a_layernorm",
    kv_up: "self_attn.kv_b_proj",
};

/// Modules and tensors of a selective state space.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateNames {
    /// Gates, what is convolved, steps.
    pub(super) input: &'static str,
    pub(super) convolution: &'static str,
    pub(super) step_bias: &'static str,
    pub(super) decay: &'static str,
    pub(super) skip: &'static str,
    pub(super) norm: &'static str,
    pub(super) output: &'static str,
}

const MAMBA: StateNames = StateNames {
    input: "mamba.in_proj",
    convolution: "mamba.conv1d",
    step_bias: "mamba.dt_bias",
    decay: "mamba.A_log",
    skip: "mamba.D",
    norm: "mamba.norm",
    output: "mamba.out_proj",
};

const QWEN_EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    input: &["mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"],
    output: "mlp.experts.{e}.down_proj",
    shared_input: &["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"],
    shared_output: "mlp.shared_expert.down_proj",
    shared_gate: Some("mlp.shared_expert_gate"),
    bias: "mlp.gate.e_score_correction_bias",
};

const DEEPSEEK_EXPERTS: ExpertNames = ExpertNames {
    shared_input: &["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"],
    shared_output: "mlp.shared_experts.down_proj",
    shared_gate: None,
    ..QWEN_EXPERTS
};

const MIXTRAL_EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    input: &[
        "block_sparse_moe.experts.{e}.w1",
        "block_sparse_moe.experts.{e}.w3",
    ],
    output: "block_sparse_moe.experts.{e}.w2",
    ..QWEN_EXPERTS
};

const GRANITE_EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.router.layer",
    input: &["block_sparse_moe.input_linear"],
    output: "block_sparse_moe.output_linear",
    shared_input: &["shared_mlp.input_linear"],
    shared_output: "shared_mlp.output_linear",
    shared_gate: None,
    ..QWEN_EXPERTS
};

const GPT_OSS_EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.router",
    input: &["mlp.experts.gate_up_proj"],
    output: "mlp.experts.down_proj",
    ..QWEN_EXPERTS
};

const LLAMA: Names = Names {
    embedding: "embed_tokens",
    positions: "embed_positions",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    by_head: false,
    qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    sinks: "self_attn.sinks",
    latent: None,
    mlp_norm: Some("post_attention_layernorm"),
    mlp_in: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_out: "mlp.down_proj",
    state: MAMBA,
    experts: None,
    after: ["post_attention_layernorm", "post_feedforward_layernorm"],
    final_norm: "norm",
    head: "lm_head",
    transposed: false,
};

const GRANITE_HYBRID: Names = Names {
    mlp_in: &["shared_mlp.input_linear"],
    mlp_out: "shared_mlp.output_linear",
    experts: Some(GRANITE_EXPERTS),
    ..LLAMA
};

const GEMMA2: Names = Names {
    mlp_norm: Some("pre_feedforward_layernorm"),
    ..LLAMA
};

const PHI3: Names = Names {
    qkv: &["self_attn.qkv_proj"],
    mlp_in: &["mlp.gate_up_proj"],
    ..LLAMA
};

const PHI: Names = Names {
    qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
    output: "self_attn.dense",
    mlp_norm: None,
    mlp_in: &["mlp.fc1"],
    mlp_out: "mlp.fc2",
    final_norm: "final_layernorm",
    ..LLAMA
};

const OPT: Names = Names {
    attention_norm: "self_attn_layer_norm",
    output: "self_attn.out_proj",
    mlp_norm: Some("final_layer_norm"),
    mlp_in: &["fc1"],
    mlp_out: "fc2",
    final_norm: "final_layer_norm",
    ..LLAMA
};

const GPT2: Names = Names {
    embedding: "wte",
    positions: "wpe",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    output: "attn.c_proj",
    mlp_norm: Some("ln_2"),
    mlp_in: &["mlp.c_fc"],
    mlp_out: "mlp.c_proj",
    final_norm: "ln_f",
    transposed: true,
    ..LLAMA
};

const GPT_NEOX: Names = Names {
    embedding: "embed_in",
    qkv: &["attention.query_key_value"],
    by_head: true,
    output: "attention.dense",
    mlp_in: &["mlp.dense_h_to_4h"],
    mlp_out: "mlp.dense_4h_to_h",
    final_norm: "final_layer_norm",
    head: "embed_out",
    ..LLAMA
};

/// One set for all architectures; which modules are fused is seen from the file.
const GGUF: Names = Names {
    embedding: "token_embd",
    positions: "position_embd",
    attention_norm: "attn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    by_head: false,
    qk_norms: ["attn_q_norm", "attn_k_norm"],
    output: "attn_output",
    sinks: "attn_sinks.weight",
    latent: None,
    mlp_norm: Some("ffn_norm"),
    mlp_in: &["ffn_gate", "ffn_up"],
    mlp_out: "ffn_down",
    state: MAMBA,
    experts: None,
    after: ["post_attention_norm", "post_ffw_norm"],
    final_norm: "output_norm",
    head: "output",
    transposed: false,
};

/// Tensors of GGUF files that divide rotary frequencies.
pub(super) const LLAMA3_DIVISORS: &str = "rope_freqs.weight";
pub(super) const LONGROPE_DIVISORS: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

impl Names {
    /// Those of the model's family, or of its file's format.
    pub(super) fn of(spec: &ModelSpec, tensors: &Inventory<'_>) -> Option<Self> {
        let with = |experts| Self {
            experts: Some(experts),
            ..LLAMA
        };
        let family = match spec.family {
            "llama" | "mistral" | "qwen2" | "qwen3" | "gemma" | "granite" => LLAMA,
            "mixtral" => with(MIXTRAL_EXPERTS),
            "qwen2_moe" | "qwen3_moe" => with(QWEN_EXPERTS),
            "deepseek" => Self {
                latent: Some(DEEPSEEK_LATENT),
                ..with(DEEPSEEK_EXPERTS)
            },
            "gpt_oss" => with(GPT_OSS_EXPERTS),
            "granite_moe" => with(GRANITE_EXPERTS),
            "granite_hybrid" => GRANITE_HYBRID,
            "gemma2" | "gemma3" => GEMMA2,
            "phi3" => PHI3,
            "phi" => PHI,
            "opt" => OPT,
            "gpt2" => GPT2,
            "gpt_neox" => GPT_NEOX,
            _ => return None,
        };
        if tensors.find(None, "token_embd.weight").is_none() {
            return Some(family);
        }
        let has = |name: &str| tensors.find(Some(0), name).is_some();
        Some(Self {
            qkv: if has("attn_qkv.weight") {
                &["attn_qkv"]
            } else {
                GGUF.qkv
            },
            mlp_in: if has("ffn_gate.weight") {
                GGUF.mlp_in
            } else {
                &["ffn_up"]
            },
            mlp_norm: family.mlp_norm.and(GGUF.mlp_norm),
            ..GGUF
        })
    }
}
