//! Zamba2: a Mamba 2 state in every layer, and before some of them attention over stream and embedding together, whose
//! few blocks of weights take turns; adapters tell the turns apart, each of which has its own keys and values.
//!
//! Source: transformers `models/zamba2/{configuration,modeling}_zamba2.py`.

use super::granite_hybrid::Mamba;
use super::{Decoder, Defaults, Family, decoder_or, tie};
use crate::builder::{columns, heads};
use crate::{Attention, Config, Ffn, LayerSpec, Mixer, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "zamba2",
    architectures: &["Zamba2ForCausalLM"],
    model_types: &["zamba2"],
    towers: false,
    lower,
};

#[derive(Clone, Copy, Debug)]
struct Shared {
    attention: Attention,
    inner: u64,
    blocks: u64,
    /// Layers that use a block.
    turns: u64,
    rank: u64,
    attention_adapters: bool,
    bias: bool,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let q_heads = text.dim_or(&["num_attention_heads"], 32)?;
    let joined = text.dim(&["hidden_size"], "it is the width of every matrix")?.saturating_mul(2);
    let defaults = Defaults {
        layers: Some(54),
        vocab: Some(32_000),
        q_heads: Some(q_heads),
        head_dim: Some(joined / q_heads),
        max_context: Some(4096),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    b.spec().max_context = if text.flag("use_long_context", false)? { Some(16_384) } else { b.spec().max_context };
    let dim = text.dim_or(&["attention_head_dim"], joined / q_heads)?;
    if d.q_heads.checked_mul(dim) != Some(joined) {
        return Err(text.reject("num_attention_heads", format!("expected heads that are {joined} wide together")));
    }
    let (hybrid, mamba) = (hybrid(&text, d.layers)?, mamba(&text, d.hidden)?);
    let shared = Shared {
        attention: Attention { k_dim: dim, v_dim: dim, ..d.attention(Reach::Full) },
        inner: text.dim_or(&["intermediate_size"], d.hidden.saturating_mul(4))?,
        blocks: text.dim_or(&["num_mem_blocks"], 1)?,
        turns: u64::try_from(hybrid.iter().filter(|h| **h).count()).unwrap_or(u64::MAX),
        rank: text.dim_or(&["adapter_rank"], 128)?,
        attention_adapters: text.flag("use_shared_attention_adapter", false)?,
        bias: text.flag("add_bias_linear", false)?,
    };
    tie(config, &text, b, true)?;
    b.rotary_share(if text.flag("use_mem_rope", false)? { 1.0 } else { 0.0 });
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    let (mut turn, state) = (0, mamba.state());
    for (i, hybrid) in hybrid.into_iter().enumerate() {
        let layer = if hybrid {
            let ffn = Ffn::Dense { intermediate: shared.inner, gated: true };
            LayerSpec { mixer: Mixer::Attention(shared.attention), parallel: Some(state), cross: None, ffn }
        } else {
            LayerSpec { mixer: Mixer::State(state), parallel: None, cross: None, ffn: Ffn::None }
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            let at = if hybrid { "mamba_decoder." } else { "" };
            mamba.tensors(b, &format!("{at}mamba."), d.hidden);
            mamba.norm(b, &format!("{at}mamba."));
            b.norm(&format!("{at}input_layernorm"), d.hidden);
            if hybrid {
                b.whole(Role::Attention, "linear", [d.hidden, d.hidden], false);
                shared.tensors(b, &d, turn);
            }
            Ok(())
        })?;
        turn += u64::from(hybrid);
    }
    b.norm("model.final_layernorm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Which layers have attention.
fn hybrid(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    let key = if text.has("layers_block_type") { "layers_block_type" } else { "layer_types" };
    let Some(kinds) = text.strings(key)? else {
        return Ok((0..layers).map(|i| [6, 12, 18, 24, 30, 36, 42, 47, 51].contains(&i)).collect());
    };
    let known = |k: &&str| ["hybrid", "mamba", "linear_attention"].contains(k);
    if u64::try_from(kinds.len()) == Ok(layers) && kinds.iter().all(known) {
        return Ok(kinds.iter().map(|k| *k == "hybrid").collect());
    }
    Err(text.reject(key, format!("expected hybrid or mamba for each of the {layers} layers")))
}

fn mamba(text: &Config<'_>, hidden: u64) -> Result<Mamba, ModelError> {
    let inner = text.dim_or(&["mamba_expand"], 2)?.saturating_mul(hidden);
    let (heads, groups) = (text.dim_or(&["n_mamba_heads"], 8)?, text.dim_or(&["mamba_ngroups"], 1)?);
    if !inner.is_multiple_of(heads) || !heads.is_multiple_of(groups) {
        let reason = format!("expected a divisor of the width of {inner}, and a multiple of the {groups} groups");
        return Err(text.reject("n_mamba_heads", reason));
    }
    let (head_dim, bias) = (inner / heads, text.flag("add_bias_linear", false)?);
    Ok(Mamba {
        heads,
        head_dim,
        groups,
        cols: text.dim_or(&["mamba_d_state"], 64)?,
        taps: text.dim_or(&["mamba_d_conv"], 4)?,
        conv_bias: true, // Whatever `use_conv_bias` says.
        bias,
        out_bias: bias,
    })
}

impl Shared {
    /// The weights of a block, which its first turn has, with an adapter for each of its turns.
    fn tensors(&self, b: &mut SpecBuilder, d: &Decoder, block: u64) {
        if block >= self.blocks {
            return;
        }
        let (h, a, inner) = (d.hidden, &self.attention, self.inner);
        let wide = a.q_heads * a.k_dim;
        let turns: Vec<u64> = (0..self.turns).filter(|t| t % self.blocks == block).collect();
        let at = "shared_transformer.";
        for name in ["q", "k", "v"] {
            b.out_split(Role::Attention, &format!("{at}self_attn.{name}_proj"), [wide, wide], false, heads(a.q_heads));
            for turn in turns.iter().filter(|_| self.attention_adapters) {
                let list = format!("{at}self_attn.linear_{name}_adapter_list.{turn}.");
                b.out_split(Role::Attention, &format!("{list}0"), [self.rank, wide], false, columns(self.rank));
                b.out_split(Role::Attention, &format!("{list}1"), [wide, self.rank], false, heads(a.q_heads));
            }
        }
        b.in_split(Role::Attention, &format!("{at}self_attn.o_proj"), [h, wide], false, heads(a.q_heads));
        b.out_split(Role::Mlp, &format!("{at}feed_forward.gate_up_proj"), [2 * inner, h], self.bias, columns(inner));
        b.in_split(Role::Mlp, &format!("{at}feed_forward.down_proj"), [h, inner], self.bias, columns(inner));
        for turn in turns {
            let list = format!("{at}feed_forward.gate_up_proj_adapter_list.{turn}.");
            b.out_split(Role::Mlp, &format!("{list}0"), [self.rank, h], false, columns(self.rank));
            b.out_split(Role::Mlp, &format!("{list}1"), [2 * inner, self.rank], false, columns(inner));
        }
        b.norm(&format!("{at}input_layernorm"), wide);
        b.norm(&format!("{at}pre_ff_layernorm"), h);
    }
}
