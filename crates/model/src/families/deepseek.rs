//! DeepSeek V2 and V3 (R1, Kimi-K2): multi-head latent attention, shared and routed experts.
//!
//! Source: transformers `models/deepseek_v2/modeling_deepseek_v2.py`, `models/deepseek_v3/...`. The V3
//! checkpoint carries its multi-token-prediction layers behind the last decoder layer.

use super::{Family, tie};
use crate::builder::heads;
use crate::{
    Config, Ffn, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder,
};
use plimsoll_units::DType;

pub(super) const FAMILY: Family = Family {
    name: "deepseek",
    architectures: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"],
    model_types: &["deepseek_v2", "deepseek_v3", "kimi_k2"],
    lower,
};

struct Shape {
    hidden: u64,
    vocab: u64,
    attention: LatentAttention,
    bias: bool,
    dense: u64,
    moe: Moe,
    correction: bool,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let latent = "it sizes the latent cache";
    let hidden = text.dim(&["hidden_size"], "it is the width of every matrix")?;
    let layers = text.layers(&["num_hidden_layers"])?;
    let q_heads = text.dim(&["num_attention_heads"], "it decides how far TP can split")?;
    let attention = LatentAttention {
        q_heads,
        rank: text.dim(&["kv_lora_rank"], latent)?,
        rope_dim: text.dim(&["qk_rope_head_dim"], latent)?,
        nope_dim: text.dim(&["qk_nope_head_dim"], "it sizes the query heads")?,
        v_dim: text.dim(&["v_head_dim"], "it sizes the value heads")?,
        q_rank: text.opt("q_lora_rank")?.filter(|n| *n > 0),
    };
    let experts = text.opt("n_routed_experts")?.unwrap_or(0);
    let shared = text.opt("n_shared_experts")?.unwrap_or(0);
    let inner = text.dim_or(&["moe_intermediate_size"], 1)?;
    let v3 = config.architecture().or(config.str("model_type")).is_some_and(|a| {
        let a = a.to_ascii_lowercase();
        a.contains("v3") || a.contains("kimi")
    });
    let shape = Shape {
        hidden,
        vocab: text.dim(&["vocab_size"], "it sizes the embedding and the output head")?,
        attention,
        bias: text.flag("attention_bias", false)?,
        dense: text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?,
        moe: Moe {
            experts,
            top_k: if experts > 0 {
                text.dim(&["num_experts_per_tok"], "it is the experts per token")?
            } else {
                0
            },
            intermediate: inner,
            shared: shared.saturating_mul(inner),
        },
        correction: v3 || text.str("topk_method") == Some("noaux_tc"),
    };
    tie(config, &text, b, false)?;
    let spec = b.spec();
    spec.hidden = hidden;
    spec.vocab = shape.vocab;
    spec.max_context = super::max_context(&text)?;
    let first = text.opt("first_k_dense_replace")?.unwrap_or(0);
    let every = text.dim_or(&["moe_layer_freq"], 1)?;

    b.embedding("model.embed_tokens.weight", shape.vocab, hidden);
    for i in 0..layers {
        let is_moe = experts > 0 && i >= first && i.is_multiple_of(every);
        let ffn = if is_moe {
            Ffn::Moe(shape.moe)
        } else {
            Ffn::Dense { intermediate: shape.dense, gated: true }
        };
        let layer = LayerSpec { mixer: Mixer::Latent(attention), parallel: None, ffn };
        b.layer(&format!("model.layers.{i}."), layer, |b| block(b, &shape, is_moe))?;
    }
    b.norm("model.norm", hidden);
    b.head("lm_head", shape.vocab, hidden);

    let mtp = if v3 { text.opt("num_nextn_predict_layers")?.unwrap_or(0).min(64) } else { 0 };
    for i in 0..mtp {
        let from = b.spec().tensors.len();
        b.scope(&format!("model.layers.{}.", layers + i), |b| {
            block(b, &shape, experts > 0)?;
            b.embedding("embed_tokens.weight", shape.vocab, hidden);
            b.norm("enorm", hidden);
            b.norm("hnorm", hidden);
            b.whole(Role::Mtp, "eh_proj", [hidden, 2 * hidden], false);
            b.norm("shared_head.norm", hidden);
            b.tensor(
                Role::Mtp,
                "shared_head.head.weight",
                &[shape.vocab, hidden],
                Shard::Vocab { rows: shape.vocab },
            );
            Ok(())
        })?;
        for t in &mut b.spec().tensors[from..] {
            t.role = Role::Mtp;
        }
    }
    b.spec().mtp_layers = mtp;
    Ok(())
}

fn block(b: &mut SpecBuilder, s: &Shape, is_moe: bool) -> Result<(), ModelError> {
    let a = &s.attention;
    let at = Role::Attention;
    let split = heads(a.q_heads);
    let q_out = a.q_heads * (a.nope_dim + a.rope_dim);
    match a.q_rank {
        Some(rank) => {
            b.whole(at, "self_attn.q_a_proj", [rank, s.hidden], s.bias);
            b.norm("self_attn.q_a_layernorm", rank);
            b.out_split(at, "self_attn.q_b_proj", [q_out, rank], false, split);
        }
        None => b.out_split(at, "self_attn.q_proj", [q_out, s.hidden], false, split),
    }
    b.whole(at, "self_attn.kv_a_proj_with_mqa", [a.rank + a.rope_dim, s.hidden], s.bias);
    b.norm("self_attn.kv_a_layernorm", a.rank);
    b.out_split(at, "self_attn.kv_b_proj", [a.q_heads * (a.nope_dim + a.v_dim), a.rank], false, split);
    b.in_split(at, "self_attn.o_proj", [s.hidden, a.q_heads * a.v_dim], s.bias, split);
    if is_moe {
        b.whole(Role::Router, "mlp.gate", [s.moe.experts, s.hidden], false);
        if s.correction {
            let name = "mlp.gate.e_score_correction_bias";
            b.tensor_typed(Role::Router, name, &[s.moe.experts], Shard::Replicated, DType::F32);
        }
        b.experts(s.moe.experts, |b| {
            b.gated_mlp(Role::Experts, "mlp.experts.{e}.", s.hidden, s.moe.intermediate, false);
            Ok(())
        })?;
        if s.moe.shared > 0 {
            b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", s.hidden, s.moe.shared, false);
        }
    } else {
        b.gated_mlp(Role::Mlp, "mlp.", s.hidden, s.dense, false);
    }
    b.norm("input_layernorm", s.hidden);
    b.norm("post_attention_layernorm", s.hidden);
    Ok(())
}
