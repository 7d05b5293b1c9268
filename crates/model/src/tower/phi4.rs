//! The conformer that Phi-4-multimodal hears with: convolutions that each halve bands and frames, then layers of
//! attention and a gated convolution between two gated feed-forwards.
//!
//! Source: transformers `models/phi4_multimodal/modeling_phi4_multimodal.py`; fields of the published class's
//! `audio_processor` from `convert_phi4_multimodal_weights_to_hf.py` there.

use crate::{Config, ModelError, Role, Shard, SpecBuilder};

/// What the two classes call the matrices of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// Gate with up, and down.
    pub(crate) feed_forward: [&'static str; 2],
    /// Query, key, value and output.
    pub(crate) attention: [&'static str; 4],
}

const E: Role = Role::Encoder;
/// vLLM keeps all of it on every rank (0.28 `models/phi4mm_audio.py`).
const ONE: Shard = Shard::Replicated;

/// All tensors under the encoder, and the width of what comes out.
///
/// # Errors
/// [`ModelError`] where a size is unusable.
pub(crate) fn tensors(
    audio: &Config<'_>,
    b: &mut SpecBuilder,
    names: &Names,
) -> Result<u64, ModelError> {
    let w = audio.dim_or(&["hidden_size", "attention_dim"], 1024)?;
    let heads = audio.dim_or(&["num_attention_heads", "attention_heads"], 16)?;
    if !w.is_multiple_of(heads) {
        let why = format!("expected a divisor of the width of {w}");
        return Err(audio.reject("num_attention_heads", why));
    }
    let bands = audio.dim_or(&["input_size"], 80)?;
    for part in ["mean", "invstd"] {
        b.tensor(
            E,
            &format!("encoder_embedding.global_{part}"),
            &[bands],
            ONE,
        );
    }
    subsampling(audio, b, [bands, w])?;
    let distance = match audio.object("relative_attention_bias_args")? {
        Some(bias) => bias.dim_or(&["t5_bias_max_distance"], 1000)?,
        None => audio.dim_or(&["bias_max_distance"], 1000)?,
    };
    // Before and behind have biases of their own.
    let sides = 2 - u64::from(audio.flag("bias_symmetric", false)?);
    let rows = distance.saturating_mul(sides);
    let bias = "relative_attention_bias_layer.bias_values.weight";
    b.tensor(E, bias, &[rows, heads], ONE);
    let layer = Layer {
        width: w,
        inner: audio.dim_or(&["intermediate_size", "linear_units"], 1536)?,
        gated: audio.dim_or(&["ext_pw_out_channel"], 1024)?,
        separable: audio.dim_or(
            &[
                "depthwise_separable_out_channel",
                "depthwise_seperable_out_channel",
            ],
            1024,
        )?,
        times: audio.dim_or(&["depthwise_multiplier"], 1)?,
        taps: audio.dim_or(&["kernel_size"], 3)?,
    };
    let layers = if audio.has("num_blocks") {
        audio.layers(&["num_blocks"])?
    } else {
        24
    };
    for i in 0..layers {
        b.scope(&format!("encoders.{i}."), |b| {
            layer.tensors(b, names);
            Ok(())
        })?;
    }
    Ok(w)
}

/// One convolution over bands and frames, then pairs of one for each channel and one across channels.
fn subsampling(
    audio: &Config<'_>,
    b: &mut SpecBuilder,
    [bands, width]: [u64; 2],
) -> Result<(), ModelError> {
    let channels = match audio.object("nemo_conv_settings")? {
        Some(nemo) => nemo.dim_or(&["conv_channels"], 1024)?,
        None => audio.dim_or(&["nemo_conv_channels"], 1024)?,
    };
    let halvings = audio.dim_or(&["time_reduction"], 8)?.ilog2();
    conv(b, "embed.conv.0", &[channels, 1, 3, 3]);
    // An activation after each stage takes a number too.
    for stage in 1..halvings {
        let at = 3 * stage - 1;
        conv(b, &format!("embed.conv.{at}"), &[channels, 1, 3, 3]);
        let across = format!("embed.conv.{}", at + 1);
        conv(b, &across, &[channels, channels, 1, 1]);
    }
    let left = (0..halvings).fold(bands, |n, _| n.div_ceil(2));
    let seen = channels.saturating_mul(left);
    b.whole(E, "embed.out", [width, seen], true);
    Ok(())
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    width: u64,
    inner: u64,
    /// Channels that the gated convolution gives, and that of the end.
    gated: u64,
    /// Channels that the separable convolution gives.
    separable: u64,
    /// Channels of its first half for each that comes in.
    times: u64,
    taps: u64,
}

impl Layer {
    fn tensors(self, b: &mut SpecBuilder, names: &Names) {
        let (w, gated) = (self.width, self.gated);
        for half in ["feed_forward_in", "feed_forward_out"] {
            let [up, down] = names.feed_forward;
            let twice = self.inner.saturating_mul(2);
            norm(b, &format!("{half}.layer_norm"), w);
            b.whole(E, &format!("{half}.{up}"), [twice, w], true);
            b.whole(E, &format!("{half}.{down}"), [w, self.inner], true);
        }
        for name in names.attention {
            b.whole(E, &format!("self_attn.{name}"), [w, w], true);
        }
        norm(b, "conv.layer_norm", w);
        b.tensor(E, "conv.glu.b1", &[1, gated, 1], ONE);
        b.tensor(E, "conv.glu.b2", &[1, gated, 1], ONE);
        let twice = gated.saturating_mul(2);
        conv(b, "conv.glu.ext_pw_conv_1d", &[twice, w, 1]);
        let many = w.saturating_mul(self.times);
        let at = "conv.dw_sep_conv_1d";
        conv(b, &format!("{at}.dw_conv"), &[many, 1, self.taps]);
        conv(b, &format!("{at}.pw_conv"), &[self.separable, many, 1]);
        conv(b, "conv.ext_pw_conv_1d", &[gated, w, 1]);
        norm(b, "layer_norm_att", w);
        norm(b, "layer_norm", w);
    }
}

/// A convolution with its bias, one for each output channel.
fn conv<const N: usize>(b: &mut SpecBuilder, name: &str, shape: &[u64; N]) {
    b.tensor(E, &format!("{name}.weight"), shape, ONE);
    b.tensor(
        E,
        &format!("{name}.bias"),
        shape.get(..1).unwrap_or_default(),
        ONE,
    );
}

fn norm(b: &mut SpecBuilder, name: &str, width: u64) {
    for part in ["weight", "bias"] {
        b.tensor(E, &format!("{name}.{part}"), &[width], ONE);
    }
}
