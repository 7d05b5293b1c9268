//! GPT-2, and GPT-3 by its published shape (Brown et al., 2020, table 2.1).
//!
//! Source: transformers `models/gpt2/modeling_gpt2.py`: learned positions, fused `c_attn`,
//! `Conv1D` weights stored transposed, tied head.

use super::{Decoder, Family, decoder, tie};
use crate::arithmetic::inverse_root;
use crate::builder::{Conv1dSplit, attention_layer, columns, heads};
use crate::{Activation, Arithmetic, Norm, Positions, Residual, Router, Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gpt2",
    architectures: &["GPT2LMHeadModel"],
    model_types: &["gpt2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let positions = config.dim(
        &["n_positions", "n_ctx"],
        "it sizes the position embeddings",
    )?;
    let inner = config.dim_or(&["n_inner"], d.hidden.saturating_mul(4))?;
    tie(config, config, b, true)?;
    b.spec().max_context = Some(positions);
    b.arithmetic(arithmetic(config, &d));
    let layer = attention_layer(
        d.attention(Reach::Full),
        Ffn::Dense {
            intermediate: inner,
            gated: false,
        },
    );
    let qkv = Shard::Qkv {
        q: d.q_heads,
        kv: d.q_heads,
    };

    b.embedding("transformer.wte.weight", d.vocab, d.hidden);
    b.tensor(
        Role::Position,
        "transformer.wpe.weight",
        &[positions, d.hidden],
        Shard::Replicated,
    );
    for i in 0..d.layers {
        b.layer(&format!("transformer.h.{i}."), layer, |b| {
            b.norm_bias("ln_1", d.hidden);
            b.conv1d(
                Role::Attention,
                "attn.c_attn",
                [d.hidden, 3 * d.hidden],
                Conv1dSplit::Out(qkv),
            );
            b.conv1d(
                Role::Attention,
                "attn.c_proj",
                [d.hidden, d.hidden],
                Conv1dSplit::In(heads(d.q_heads)),
            );
            b.norm_bias("ln_2", d.hidden);
            b.conv1d(
                Role::Mlp,
                "mlp.c_fc",
                [d.hidden, inner],
                Conv1dSplit::Out(columns(inner)),
            );
            b.conv1d(
                Role::Mlp,
                "mlp.c_proj",
                [inner, d.hidden],
                Conv1dSplit::In(columns(inner)),
            );
            Ok(())
        })?;
    }
    b.norm_bias("transformer.ln_f", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

fn arithmetic(config: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    if config.flag("scale_attn_by_inverse_layer_idx", false)? {
        return Err(config.reject(
            "scale_attn_by_inverse_layer_idx",
            "scores scaled by layer are not computed",
        ));
    }
    Ok(Arithmetic {
        norm: Norm::Layer {
            eps: config.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
            affine: true,
        },
        residual: Residual::Serial,
        positions: Positions::Learned { offset: 0 },
        activation: Activation::read(config, "activation_function", Activation::GeluTanh)?,
        qk_norm: false,
        renormalise: true,
        router: Router::default(),
        clamped: None,
        final_norm: true,
        embedding_scale: 1.0,
        attention_scale: if config.flag("scale_attn_weights", true)? {
            inverse_root(d.head_dim)
        } else {
            1.0
        },
        attention_softcap: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        final_softcap: None,
        step_limits: [0.0, f64::INFINITY],
    })
}
