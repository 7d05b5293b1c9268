//! DBRX: one projection for queries, keys and values, 16 experts of which a token takes four, in three tensors a layer.
//!
//! Source: transformers `models/dbrx/{configuration,modeling}_dbrx.py`.

use super::{Defaults, Family, MAX_EXPERTS, decoder_or, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Axis, Config, Ffn, Linear, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "dbrx",
    architectures: &["DbrxForCausalLM"],
    model_types: &["dbrx"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let kv = match text.object("attn_config")? {
        Some(set) => set.dim_or(&["kv_n_heads"], 1)?,
        None => 1,
    };
    let defaults = Defaults {
        kv_heads: Some(kv),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let moe = moe(&text)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let h = d.hidden;
    let fused = (d.q_heads + 2 * d.kv_heads).saturating_mul(d.head_dim);
    b.embedding("transformer.wte.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.blocks.{i}."), attention_layer(attention, Ffn::Moe(moe)), |b| {
            let qkv = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
            b.out_split(Role::Attention, "norm_attn_norm.attn.Wqkv", [fused, h], false, qkv);
            b.in_split(Role::Attention, "norm_attn_norm.attn.out_proj", [h, h], false, heads(d.q_heads));
            b.norm("norm_attn_norm.norm_1", h);
            b.norm("norm_attn_norm.norm_2", h);
            b.whole(Role::Router, "ffn.router.layer", [moe.experts, h], false);
            let inner = moe.intermediate;
            let up = Linear { out: inner, inp: h, axis: Axis::Out };
            let down = Linear { out: h, inp: inner, axis: Axis::In };
            for (name, linear) in [("w1", up), ("v1", up), ("w2", down)] {
                // All experts' rows, one below the other; the last is stored transposed.
                let shape = [moe.experts.saturating_mul(inner), h];
                let all = Linear { out: linear.out.saturating_mul(moe.experts), ..linear };
                b.matrix_as(Role::Experts, &format!("ffn.experts.mlp.{name}"), &shape, all, columns(inner));
            }
            Ok(())
        })?;
    }
    b.norm("transformer.norm_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn moe(text: &Config<'_>) -> Result<Moe, ModelError> {
    let set = text.object("ffn_config")?.ok_or_else(|| ModelError::Missing {
        field: text.path_of("ffn_config"),
        why: "it sizes the experts",
    })?;
    let experts = set.dim_or(&["moe_num_experts"], 4)?;
    let top_k = set.dim_or(&["moe_top_k"], 1)?;
    if top_k > experts || experts > MAX_EXPERTS {
        return Err(set.reject("moe_num_experts", format!("expected {top_k} to {MAX_EXPERTS}")));
    }
    Ok(Moe { experts, top_k, intermediate: set.dim_or(&["ffn_hidden_size"], 3584)?, shared: 0 })
}
