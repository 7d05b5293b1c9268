//! Falcon-H1: attention and a Mamba 2 state side by side in every layer.
//!
//! Source: transformers `models/falcon_h1/{configuration,modeling}_falcon_h1.py`.

use super::granite_hybrid::Mamba;
use super::{Defaults, Family, decoder_or, gated, tie};
use crate::{Config, LayerSpec, Mixer, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "falcon_h1",
    architectures: &["FalconH1ForCausalLM"],
    model_types: &["falcon_h1"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let (h, inner) = (d.hidden, text.dim(&["intermediate_size"], "it sizes the feed-forward")?);
    let bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    let normed = text.flag("mamba_rms_norm", false)?;
    let mamba = mamba(&text, h)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layer = LayerSpec {
        mixer: Mixer::Attention(attention),
        parallel: Some(mamba.state()),
        cross: None,
        ffn: gated(inner),
    };
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            mamba.tensors(b, "mamba.", h);
            if normed {
                mamba.norm(b, "mamba.");
            }
            b.qkvo(h, &attention, bias, bias);
            b.gated_mlp(Role::Mlp, "feed_forward.", h, inner, mlp_bias);
            b.norm("input_layernorm", h);
            b.norm("pre_ff_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.final_layernorm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// The state's width is a field of its own, not a multiple of the hidden size.
fn mamba(text: &Config<'_>, hidden: u64) -> Result<Mamba, ModelError> {
    let inner = if text.is_null("mamba_d_ssm") {
        text.dim_or(&["mamba_expand"], 2)?.saturating_mul(hidden)
    } else {
        text.dim_or(&["mamba_d_ssm"], 1024)?
    };
    let heads = text.dim_or(&["mamba_n_heads"], 128)?;
    let head_dim = match text.str("mamba_d_head") {
        Some("auto") => inner / heads,
        _ => text.dim_or(&["mamba_d_head"], inner / heads)?,
    };
    if heads.checked_mul(head_dim) != Some(inner) {
        let reason = format!("expected heads of {head_dim} that are {inner} wide together");
        return Err(text.reject("mamba_n_heads", reason));
    }
    let groups = text.dim_or(&["mamba_n_groups"], 1)?;
    if !heads.is_multiple_of(groups) {
        return Err(text.reject("mamba_n_groups", format!("expected a divisor of the {heads} heads")));
    }
    Ok(Mamba {
        heads,
        head_dim,
        groups,
        cols: text.dim_or(&["mamba_d_state"], 256)?,
        taps: text.dim_or(&["mamba_d_conv"], 4)?,
        conv_bias: text.flag("mamba_conv_bias", true)?,
        bias: text.flag("mamba_proj_bias", false)?,
        out_bias: text.flag("projectors_bias", false)?,
    })
}
