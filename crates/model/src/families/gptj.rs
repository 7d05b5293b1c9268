//! GPT-J: attention and feed-forward beside each other after one norm, without biases in attention, a head with one.
//!
//! Source: transformers `models/gptj/{configuration,modeling}_gptj.py`. Causal masks in older checkpoints are what no engine loads.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gptj",
    architectures: &["GPTJForCausalLM"],
    model_types: &["gptj"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let mut d = decoder(config, b)?;
    d.kv_heads = d.q_heads;
    let inner = config.dim_or(&["n_inner"], d.hidden.saturating_mul(4))?;
    let rotated = config.dim_or(&["rotary_dim"], 64)?;
    if rotated > d.head_dim {
        return Err(config.reject("rotary_dim", format!("expected at most {}, a head's elements", d.head_dim)));
    }
    tie(config, config, b, false)?;
    #[allow(clippy::cast_precision_loss, reason = "elements of a head")]
    b.rotary_share(rotated as f64 / d.head_dim as f64);
    let ffn = Ffn::Dense { intermediate: inner, gated: false };
    let layer = attention_layer(d.attention(Reach::Full), ffn);
    let (at, h, width) = (Role::Attention, d.hidden, d.q_heads * d.head_dim);

    b.embedding("transformer.wte.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.h.{i}."), layer, |b| {
            b.norm_bias("ln_1", h);
            b.out_split(at, "attn.q_proj", [width, h], false, heads(d.q_heads));
            for module in ["attn.k_proj", "attn.v_proj"] {
                b.out_split(at, module, [width, h], false, Shard::KvHeads { heads: d.kv_heads });
            }
            b.in_split(at, "attn.out_proj", [h, width], false, heads(d.q_heads));
            b.out_split(Role::Mlp, "mlp.fc_in", [inner, h], true, columns(inner));
            b.in_split(Role::Mlp, "mlp.fc_out", [h, inner], true, columns(inner));
            Ok(())
        })?;
    }
    b.norm_bias("transformer.ln_f", h);
    b.head("lm_head", d.vocab, h);
    b.tensor(Role::Head, "lm_head.bias", &[d.vocab], Shard::Vocab { rows: d.vocab });
    Ok(())
}
