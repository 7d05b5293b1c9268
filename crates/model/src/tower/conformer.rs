//! The conformer that Gemma 3n and Gemma 4 hear with: attention over a few frames between two halves of a feed-forward,
//! with a convolution.
//!
//! Source: transformers `models/gemma3n/modeling_gemma3n.py` and `models/gemma4/modeling_gemma4.py`.

use crate::builder::{columns, heads};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

/// What the two models call the same things.
#[derive(Clone, Copy, Debug)]
struct Names {
    keys: [&'static str; 5],
    convolutions: [&'static str; 2],
    layers: &'static str,
    halves: [&'static str; 2],
    attention: &'static str,
    /// Of relative positions, and of the output.
    positions: &'static str,
    post: &'static str,
    /// Before and after attention, and after the layer.
    norms: [&'static str; 3],
}

const GEMMA_3N: Names = Names {
    keys: [
        "conf_num_hidden_layers",
        "conf_num_attention_heads",
        "conf_conv_kernel_size",
        "sscp_conv_channel_size",
        "input_feat_size",
    ],
    convolutions: ["conv_0", "conv_1"],
    layers: "conformer",
    halves: ["ffw_layer_start", "ffw_layer_end"],
    attention: "attention.attn.",
    positions: "attention.attn.relative_position_embedding.pos_proj",
    post: "attention.post",
    norms: ["attention.pre_attn_norm", "attention.post_norm", "norm"],
};

const GEMMA_4: Names = Names {
    keys: [
        "num_hidden_layers",
        "num_attention_heads",
        "conv_kernel_size",
        "subsampling_conv_channels",
        // The class reads 128 mel bands, whatever a config says.
        "",
    ],
    convolutions: ["layer0", "layer1"],
    layers: "layers",
    halves: ["feed_forward1", "feed_forward2"],
    attention: "self_attn.",
    positions: "self_attn.relative_k_proj",
    post: "self_attn.post",
    norms: ["norm_pre_attn", "norm_post_attn", "norm_out"],
};

/// Which model hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gemma3n,
    Gemma4,
}

/// All tensors under `audio_tower`, and the width of what comes out.
///
/// # Errors
/// [`ModelError`] where a size is unusable.
pub(crate) fn tensors(
    kind: Kind,
    audio: &Config<'_>,
    b: &mut SpecBuilder,
) -> Result<u64, ModelError> {
    let (n, width) = match kind {
        Kind::Gemma3n => (GEMMA_3N, 1536),
        Kind::Gemma4 => (GEMMA_4, 1024),
    };
    let clipped = kind == Kind::Gemma4 && audio.flag("use_clipped_linears", true)?;
    let w = audio.dim_or(&["hidden_size"], width)?;
    let [layers, count, kernel, channels, bands] = n.keys;
    let layers = if audio.has(layers) {
        audio.layers(&[layers])?
    } else {
        12
    };
    let (count, kernel) = (audio.dim_or(&[count], 8)?, audio.dim_or(&[kernel], 5)?);
    let kept = audio.numbers(channels)?.unwrap_or_else(|| vec![128, 32]);
    let [first, second] = kept[..] else {
        return Err(audio.reject(channels, "expected two convolutions"));
    };
    // Each halves the bands.
    let bands = audio.dim_or(&[bands], 128)? / 4;
    if !w.is_multiple_of(count) {
        return Err(audio.reject(
            "hidden_size",
            format!("expected a multiple of the {count} attention heads"),
        ));
    }
    let (e, one, split) = (Role::Encoder, Shard::Replicated, heads(count));
    b.scope("model.audio_tower.", |b| {
        for (name, [out, inp]) in n.convolutions.iter().zip([[first, 1], [second, first]]) {
            let at = format!("subsample_conv_projection.{name}");
            b.tensor(e, &format!("{at}.conv.weight"), &[out, inp, 3, 3], one);
            b.tensor(e, &format!("{at}.norm.weight"), &[out], one);
        }
        let seen = second.saturating_mul(bands);
        b.whole(
            e,
            "subsample_conv_projection.input_proj_linear",
            [w, seen],
            false,
        );
        for i in 0..layers {
            b.scope(&format!("{}.{i}.", n.layers), |b| {
                let gain = |b: &mut SpecBuilder, name: &str| {
                    b.tensor(e, &format!("{name}.weight"), &[w], one)
                };
                for half in n.halves {
                    let inner = 4 * w;
                    clip(
                        b,
                        &format!("{half}.ffw_layer_1"),
                        [inner, w],
                        columns(inner),
                        clipped,
                    );
                    clip(
                        b,
                        &format!("{half}.ffw_layer_2"),
                        [w, inner],
                        columns(inner),
                        clipped,
                    );
                    gain(b, &format!("{half}.pre_layer_norm"));
                    gain(b, &format!("{half}.post_layer_norm"));
                }
                for name in ["q_proj", "k_proj", "v_proj"] {
                    clip(b, &format!("{}{name}", n.attention), [w, w], split, clipped);
                }
                b.tensor(
                    e,
                    &format!("{}per_dim_scale", n.attention),
                    &[w / count],
                    one,
                );
                b.whole(e, n.positions, [w, w], false);
                clip(b, n.post, [w, w], split, clipped);
                clip(b, "lconv1d.linear_start", [2 * w, w], one, clipped);
                clip(b, "lconv1d.linear_end", [w, w], one, clipped);
                b.tensor(e, "lconv1d.depthwise_conv1d.weight", &[w, 1, kernel], one);
                gain(b, "lconv1d.pre_layer_norm");
                gain(b, "lconv1d.conv_norm");
                n.norms.iter().for_each(|name| gain(b, name));
                Ok(())
            })?;
        }
        if kind == Kind::Gemma3n {
            return Ok(w);
        }
        let out = audio.dim_or(&["output_proj_dims"], 1536)?;
        b.whole(e, "output_proj", [out, w], true);
        Ok(out)
    })
}

/// A linear layer of a tower, whose inputs and outputs may be kept within limits that are stored beside it.
pub(crate) fn clip(
    b: &mut SpecBuilder,
    module: &str,
    shape: [u64; 2],
    shard: Shard,
    clipped: bool,
) {
    let e = Role::Encoder;
    if !clipped {
        return b.out_split(e, module, shape, false, shard);
    }
    b.out_split(e, &format!("{module}.linear"), shape, false, shard);
    for limit in ["input_min", "input_max", "output_min", "output_max"] {
        b.tensor(e, &format!("{module}.{limit}"), &[], Shard::Replicated);
    }
}
