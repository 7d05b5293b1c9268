//! Phi 3, 3.5 and 4: LLaMA with query, key and value in one matrix, gate and up in another.
//!
//! Source: transformers `models/phi3/{configuration,modeling}_phi3.py`. A stated window counts in every
//! layer.

use super::{Decoder, Family, decoder, reaches, tie, window};
use crate::builder::{attention_layer, columns, heads};
use crate::{Arithmetic, Norm, Config, Ffn, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM"],
    model_types: &["phi3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, &d));
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };
    let (at, h) = (Role::Attention, d.hidden);
    let q = d.q_heads * d.head_dim;
    let qkv_rows = (d.q_heads + 2 * d.kv_heads) * d.head_dim;
    let qkv = Shard::Qkv {
        q: d.q_heads,
        kv: d.kv_heads,
    };

    b.embedding("model.embed_tokens.weight", d.vocab, h);
    let reach = reaches(&text, d.layers, window(&text, None)?, |_| true)?;
    for (i, reach) in reach.iter().enumerate() {
        let layer = attention_layer(d.attention(*reach), ffn);
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.in_split(at, "self_attn.o_proj", [h, q], false, heads(d.q_heads));
            b.out_split(at, "self_attn.qkv_proj", [qkv_rows, h], false, qkv);
            b.out_split(
                Role::Mlp,
                "mlp.gate_up_proj",
                [2 * inner, h],
                false,
                columns(inner),
            );
            b.in_split(
                Role::Mlp,
                "mlp.down_proj",
                [h, inner],
                false,
                columns(inner),
            );
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    Ok(Arithmetic {
        norm: Norm::Rms {
            eps: text.positive("rms_norm_eps")?.unwrap_or(1e-5),
            plus_one: false,
        },
        ..Arithmetic::llama(text, d.head_dim)?
    })
}
