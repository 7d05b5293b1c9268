//! Mamba 2: selective states of the second form and nothing else.
//!
//! Source: transformers `models/mamba2/{configuration,modeling}_mamba2.py`.

use super::granite_hybrid::Mamba;
use super::{Defaults, Family, decoder_or, tie};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mamba2",
    architectures: &["Mamba2ForCausalLM"],
    model_types: &["mamba2"],
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
    let inner = text.dim_or(&["expand"], 2)?.saturating_mul(d.hidden);
    let mamba = mamba(&text, "num_heads", "head_dim")?;
    if mamba.inner() != inner {
        let reason = format!("expected heads that are {inner} wide together");
        return Err(text.reject("num_heads", reason));
    }
    tie(config, &text, b, false)?;
    let layer = LayerSpec {
        mixer: Mixer::State(mamba.state()),
        parallel: None,
        cross: None,
        ffn: Ffn::None,
    };
    b.embedding("backbone.embeddings.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("backbone.layers.{i}."), layer, |b| {
            mamba.tensors(b, "mixer.", d.hidden);
            mamba.norm(b, "mixer.");
            b.norm("norm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("backbone.norm_f", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// The state's shape under Mamba 2's names, which Nemotron-H shares but for those of the heads.
pub(super) fn mamba(text: &Config<'_>, heads: &'static str, dim: &'static str) -> Result<Mamba, ModelError> {
    let count = text.dim_or(&[heads], 128)?;
    let groups = text.dim_or(&["n_groups"], 8)?;
    if !count.is_multiple_of(groups) {
        return Err(text.reject("n_groups", format!("expected a divisor of the {count} heads")));
    }
    let bias = text.flag("use_bias", false)?;
    Ok(Mamba {
        heads: count,
        head_dim: text.dim_or(&[dim], 64)?,
        groups,
        cols: text.dim_or(&["state_size", "ssm_state_size"], 128)?,
        taps: text.dim_or(&["conv_kernel"], 4)?,
        conv_bias: text.flag("use_conv_bias", true)?,
        bias,
        out_bias: bias,
    })
}
