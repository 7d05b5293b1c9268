//! Mamba: selective states of the first form and nothing else.
//!
//! Source: transformers `models/mamba/{configuration,modeling}_mamba.py`.

use super::jamba::Mamba;
use super::{Defaults, Family, decoder_or, tie};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mamba",
    architectures: &["MambaForCausalLM"],
    model_types: &["mamba"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    // There is no attention whose heads could be stated.
    let defaults = Defaults {
        q_heads: Some(1),
        head_dim: Some(1),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let h = d.hidden;
    let rank = match text.str("time_step_rank") {
        Some("auto") => h.div_ceil(16),
        _ => text.dim_or(&["time_step_rank"], h.div_ceil(16))?,
    };
    let mamba = Mamba {
        inner: text.dim_or(&["expand"], 2)?.saturating_mul(h),
        cols: text.dim_or(&["state_size"], 16)?,
        rank,
        taps: text.dim_or(&["conv_kernel"], 4)?,
        conv_bias: text.flag("use_conv_bias", true)?,
        bias: text.flag("use_bias", false)?,
    };
    tie(config, &text, b, true)?;
    let layer = LayerSpec {
        mixer: Mixer::State(mamba.state()),
        parallel: None,
        cross: None,
        ffn: Ffn::None,
    };
    b.embedding("backbone.embeddings.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("backbone.layers.{i}."), layer, |b| {
            mamba.tensors(b, "mixer.", h);
            b.norm("norm", h);
            Ok(())
        })?;
    }
    b.norm("backbone.norm_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
