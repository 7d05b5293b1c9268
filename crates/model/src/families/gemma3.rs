//! Gemma 3: five window layers to one full layer, norms on query and key heads; the larger models
//! with a SigLIP tower.
//!
//! Source: transformers `models/gemma3/{configuration,modeling}_gemma3.py`. The published wrappers leave
//! out of `text_config` whatever equals that class's defaults, so the defaults are facts here.

use super::{Decoder, Defaults, Family, decoder_or, gemma2, reaches, tie, window};
use crate::arithmetic::RopeDefaults;
use crate::builder::attention_layer;
use crate::tower::Siglip;
use crate::{Arithmetic, Config, Ffn, ModelError, Role, Rotary, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let wrapper = config.architecture() == Some("Gemma3ForConditionalGeneration")
        || config.str("model_type") == Some("gemma3")
        || config.has("vision_config");
    if !wrapper {
        return text(config, b);
    }
    let tower = Siglip::read(config)?;
    b.scope("language_model.", |b| text(config, b))?;
    let hidden = b.spec().hidden;
    b.scope("vision_tower.vision_model.", |b| tower.tensors(b))?;
    b.scope("multi_modal_projector.", |b| {
        let one = Shard::Replicated;
        let projection = "mm_input_projection_weight";
        b.tensor(Role::Encoder, projection, &[tower.body.hidden, hidden], one);
        b.tensor(
            Role::Encoder,
            "mm_soft_emb_norm.weight",
            &[tower.body.hidden],
            one,
        );
        Ok(())
    })?;
    b.encoder(tower.encoder(Some(config.dim_or(&["mm_tokens_per_image"], 256)?)));
    Ok(())
}

fn text(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        vocab: Some(262_208),
        q_heads: Some(8),
        kv_heads: Some(4),
        head_dim: Some(256),
        max_context: Some(131_072),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim_or(&["intermediate_size"], 9216)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, true)?;
    // Window layers rotate at 10,000, full ones at 1,000,000, unless the config says otherwise.
    b.rotary_local();
    if !text.has("rope_scaling") && !text.has("rope_parameters") {
        default_rotary(&d, b);
    }
    b.spec().final_softcap = text.has("final_logit_softcapping");
    b.arithmetic(arithmetic(&text, &d));
    let pattern = text.dim_or(&["sliding_window_pattern", "_sliding_window_pattern"], 6)?;
    let mut width = window(&text, Some(4096))?;
    if text.flag("use_bidirectional_attention", false)? {
        // The field then counts both sides; transformers keeps one side and the token itself.
        width = width.map(|w| w / 2 + 1);
    }
    let reach = reaches(&text, d.layers, width, |i| !(i + 1).is_multiple_of(pattern))?;
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in reach.iter().enumerate() {
        let attention = d.attention(*reach);
        b.layer(
            &format!("model.layers.{i}."),
            attention_layer(attention, ffn),
            |b| {
                b.qkvo(d.hidden, &attention, bias, bias);
                b.norm("self_attn.q_norm", d.head_dim);
                b.norm("self_attn.k_norm", d.head_dim);
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
                gemma2::norms(b, d.hidden);
                Ok(())
            },
        )?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Context that Gemma 3 was pre-trained at, and the factor by which the global layers' positions are
/// interpolated beyond it (Gemma 3 Technical Report, 2025, section 2.2).
const PRETRAINED_CONTEXT: u64 = 32_768;
const INTERPOLATION: u64 = 8;

/// The tables of a config that leaves its rotary fields out: windows rotate at their own base, and
/// the global layers' table is stretched where the context exceeds the pre-trained one.
fn default_rotary(d: &Decoder, b: &mut SpecBuilder) {
    let spec = b.spec();
    let Some(positions) = spec.max_context else {
        return;
    };
    let factor = if positions > PRETRAINED_CONTEXT {
        INTERPOLATION
    } else {
        1
    };
    let table = |positions| Rotary {
        dim: d.head_dim,
        positions,
    };
    spec.rotary = vec![table(positions.saturating_mul(factor)), table(positions)];
}

fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    let rope = RopeDefaults {
        theta: 1_000_000.0,
        window_theta: Some(10_000.0),
        ..RopeDefaults::default()
    };
    if text.flag("use_bidirectional_attention", false)? {
        return Err(text.reject(
            "use_bidirectional_attention",
            "an encoder, which generates nothing",
        ));
    }
    Ok(Arithmetic {
        qk_norm: true,
        attention_softcap: gemma2::cap(text, "attn_logit_softcapping", None)?,
        final_softcap: gemma2::cap(text, "final_logit_softcapping", None)?,
        ..gemma2::sandwich(text, d, rope)?
    })
}
