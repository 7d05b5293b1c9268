//! Baichuan 1 and 2: LLaMA with one projection for queries, keys and values; the larger ones have ALiBi in place of
//! rotation.
//!
//! Source: vLLM `models/baichuan.py`; transformers does not know the class, and what ranks hold of it is compared with
//! vLLM's (`crates/plan/tests/vllm_shards.rs`).

use super::{Family, decoder, gated, norms, stack, tie};
use crate::builder::{attention_layer, heads};
use crate::{Config, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "baichuan",
    architectures: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
    model_types: &["baichuan"],
    towers: false,
    lower,
};

/// The width of the models that rotate: vLLM's class, too, tells them by it.
const ROTATES: u64 = 4096;

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    if d.kv_heads != d.q_heads {
        return Err(text.reject("num_key_value_heads", format!("expected {}, one for each query head", d.q_heads)));
    }
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, &text, b, false)?;
    b.rotary_share(if d.hidden == ROTATES { 1.0 } else { 0.0 });
    if b.spec().max_context.is_none() {
        b.spec().max_context = text.opt("model_max_length")?;
    }
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        let fused = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
        b.out_split(Role::Attention, "self_attn.W_pack", [3 * d.hidden, d.hidden], false, fused);
        b.in_split(Role::Attention, "self_attn.o_proj", [d.hidden, d.hidden], false, heads(d.q_heads));
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
