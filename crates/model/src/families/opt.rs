//! OPT (Zhang et al., 2022): learned positions with an offset of two, biases everywhere.
//!
//! Source: transformers `models/opt/modeling_opt.py`.

use super::{Decoder, Family, decoder, tie};
use crate::arithmetic::inverse_root;
use crate::builder::{attention_layer, columns, heads};
use crate::{Activation, Arithmetic, Norm, Positions, Residual, Router, Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "opt",
    architectures: &["OPTForCausalLM"],
    model_types: &["opt"],
    towers: false,
    lower,
};

/// `OPTLearnedPositionalEmbedding` keeps two rows for padding before the first position.
const POSITION_OFFSET: u64 = 2;

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let positions = config.dim(
        &["max_position_embeddings"],
        "it sizes the position embeddings",
    )?;
    let inner = config.dim(&["ffn_dim"], "it sizes the feed-forward")?;
    let width = config.dim_or(&["word_embed_proj_dim"], d.hidden)?;
    let bias = config.flag("enable_bias", true)?;
    let affine = config.flag("layer_norm_elementwise_affine", true)?;
    let pre_norm = config.flag("do_layer_norm_before", true)?;
    let final_norm = pre_norm && !config.flag("_remove_final_layer_norm", false)?;
    tie(config, config, b, true)?;
    b.arithmetic(arithmetic(config, &d));
    let layer = attention_layer(
        d.attention(Reach::Full),
        Ffn::Dense {
            intermediate: inner,
            gated: false,
        },
    );
    let at = Role::Attention;
    let norm = |b: &mut SpecBuilder, name: &str| {
        if affine {
            b.norm_bias(name, d.hidden);
        }
    };

    b.embedding("model.decoder.embed_tokens.weight", d.vocab, width);
    let rows = positions.saturating_add(POSITION_OFFSET);
    b.tensor(
        Role::Position,
        "model.decoder.embed_positions.weight",
        &[rows, d.hidden],
        Shard::Replicated,
    );
    if width != d.hidden {
        b.whole(
            Role::Embedding,
            "model.decoder.project_out",
            [width, d.hidden],
            false,
        );
        b.whole(
            Role::Embedding,
            "model.decoder.project_in",
            [d.hidden, width],
            false,
        );
    }
    if final_norm {
        norm(b, "model.decoder.final_layer_norm");
    }
    for i in 0..d.layers {
        b.layer(&format!("model.decoder.layers.{i}."), layer, |b| {
            for name in ["k_proj", "v_proj", "q_proj"] {
                let module = format!("self_attn.{name}");
                b.out_split(at, &module, [d.hidden, d.hidden], bias, heads(d.q_heads));
            }
            b.in_split(
                at,
                "self_attn.out_proj",
                [d.hidden, d.hidden],
                bias,
                heads(d.q_heads),
            );
            norm(b, "self_attn_layer_norm");
            b.out_split(Role::Mlp, "fc1", [inner, d.hidden], bias, columns(inner));
            b.in_split(Role::Mlp, "fc2", [d.hidden, inner], bias, columns(inner));
            norm(b, "final_layer_norm");
            Ok(())
        })?;
    }
    b.head("lm_head", d.vocab, width);
    Ok(())
}

fn arithmetic(config: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    // The 350M model alone: norms after each half, and embeddings narrower than the layers.
    if !config.flag("do_layer_norm_before", true)? {
        return Err(config.reject(
            "do_layer_norm_before",
            "norms after each half of a layer are not computed",
        ));
    }
    if config.opt("word_embed_proj_dim")?.is_some_and(|w| w != d.hidden) {
        return Err(config.reject(
            "word_embed_proj_dim",
            "projected embeddings are not computed",
        ));
    }
    Ok(Arithmetic {
        norm: Norm::Layer {
            eps: 1e-5,
            affine: config.flag("layer_norm_elementwise_affine", true)?,
        },
        residual: Residual::Serial,
        positions: Positions::Learned {
            offset: POSITION_OFFSET,
        },
        activation: Activation::read(config, "activation_function", Activation::Relu)?,
        qk_norm: false,
        renormalise: true,
        router: Router::default(),
        clamped: None,
        final_norm: !config.flag("_remove_final_layer_norm", false)?,
        embedding_scale: 1.0,
        attention_scale: inverse_root(d.head_dim),
        attention_softcap: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        final_softcap: None,
        step_limits: [0.0, f64::INFINITY],
    })
}
