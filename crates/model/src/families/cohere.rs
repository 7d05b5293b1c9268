//! Command-R and Command-R7B: attention and feed-forward beside each other behind one norm; the second generation has
//! three layers with a window to one without positions.
//!
//! Source: transformers `models/cohere/{configuration,modeling}_cohere.py` and `models/cohere2`.

use super::{Family, decoder, gated, reaches, stack, tie, window};
use crate::builder::{attention_layer, heads};
use crate::{Config, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "cohere",
    architectures: &["CohereForCausalLM", "Cohere2ForCausalLM"],
    model_types: &["cohere", "cohere2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", false)?;
    let second = config.architecture() == Some("Cohere2ForCausalLM") || text.str("model_type") == Some("cohere2");
    let qk_norm = !second && text.flag("use_qk_norm", false)?;
    tie(config, &text, b, true)?;
    let reach = if second {
        let pattern = text.dim_or(&["sliding_window_pattern"], 4)?;
        let windowed = |i: u64| !(i + 1).is_multiple_of(pattern);
        reaches(&text, d.layers, window(&text, Some(4096))?, windowed)?
    } else {
        (0..d.layers).map(|_| Reach::Full).collect()
    };
    let layers = reach.into_iter().map(|r| attention_layer(d.attention(r), gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), bias, bias);
        if qk_norm {
            // A row of gains for each head.
            let (q, kv) = (heads(d.q_heads), Shard::KvHeads { heads: d.kv_heads });
            b.tensor(Role::Norm, "self_attn.q_norm.weight", &[d.q_heads, d.head_dim], q);
            b.tensor(Role::Norm, "self_attn.k_norm.weight", &[d.kv_heads, d.head_dim], kv);
        }
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        b.norm("input_layernorm", d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
