//! GLM-4.7-Flash: GLM-4.5's experts behind DeepSeek's latent attention.
//!
//! Source: transformers `models/glm4_moe_lite/{configuration,modeling}_glm4_moe_lite.py`.

use super::deepseek::{latent, projections};
use super::glm4_moe::{experts, predictors, routed};
use super::{Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "glm4_moe_lite",
    architectures: &["Glm4MoeLiteForCausalLM"],
    model_types: &["glm4_moe_lite"],
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
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let moe = routed(&text)?;
    let bias = text.flag("attention_bias", false)?;
    let kinds = text.strings("mlp_layer_types")?;
    if kinds.as_ref().is_some_and(|k| u64::try_from(k.len()) != Ok(d.layers)) {
        let reason = format!("expected one entry for each of the {} layers", d.layers);
        return Err(text.reject("mlp_layer_types", reason));
    }
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(1);
    let routes = |i: u64| match &kinds {
        Some(kinds) => usize::try_from(i).ok().and_then(|i| kinds.get(i)) == Some(&"sparse"),
        None => i >= dense,
    };
    tie(config, &text, b, false)?;
    let layers = (0..d.layers).map(|i| LayerSpec {
        mixer: Mixer::Latent(latent),
        parallel: None,
        cross: None,
        ffn: if routes(i) { Ffn::Moe(moe) } else { gated(inner) },
    });
    let sparse = |b: &mut SpecBuilder| {
        projections(b, d.hidden, &latent, bias);
        norms(b, d.hidden);
        experts(b, d.hidden, &moe)
    };
    stack(b, "model.", &d, layers, |b, i, _| {
        if routes(i) {
            return sparse(b);
        }
        projections(b, d.hidden, &latent, bias);
        norms(b, d.hidden);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    predictors(&text, b, &d, 0, sparse)
}
