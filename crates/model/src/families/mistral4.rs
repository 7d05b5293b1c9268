//! Mistral 4: DeepSeek's latent attention with experts of which a layer has all in two tensors.
//!
//! Source: transformers `models/mistral4/{configuration,modeling}_mistral4.py`.

use super::deepseek::{latent, projections};
use super::glm4_moe::routed;
use super::{Defaults, Family, decoder_or, gated, norms, qwen3_vl, stack, tie};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mistral4",
    architectures: &["Mistral4ForCausalLM"],
    model_types: &["mistral4"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    // Head sizes come from the latent fields.
    let defaults = Defaults {
        head_dim: Some(1),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let latent = latent(&text, &d)?;
    let inner = text.dim_or(&["intermediate_size"], 12_288)?;
    let moe = routed(&text)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(0);
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let layers = (0..d.layers).map(|i| LayerSpec {
        mixer: Mixer::Latent(latent),
        parallel: None,
        cross: None,
        ffn: if i >= dense { Ffn::Moe(moe) } else { gated(inner) },
    });
    stack(b, "model.", &d, layers, |b, _, layer| {
        projections(b, d.hidden, &latent, bias);
        norms(b, d.hidden);
        match layer.ffn {
            Ffn::Moe(moe) => {
                b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", d.hidden, moe.shared, false);
                qwen3_vl::experts(b, &d, &layer.ffn)
            }
            _ => {
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
                Ok(())
            }
        }
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
