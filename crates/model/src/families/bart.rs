//! BART: an encoder, and a decoder each of whose layers also reads what the encoder gave.
//!
//! Source: transformers `models/bart/{configuration,modeling}_bart.py`.

use plimsoll_units::DType;

use super::{Family, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{
    Attention, Config, CrossAttention, Encoder, Ffn, LayerSpec, ModelError, Reach, Role, Shard, SpecBuilder,
};

pub(super) const FAMILY: Family = Family {
    name: "bart",
    architectures: &["BartForConditionalGeneration"],
    model_types: &["bart"],
    towers: false,
    lower,
};

/// What encoder and decoder of this kind each have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half {
    pub(super) hidden: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) inner: u64,
    /// Whether keys have a bias, as all else does.
    pub(super) key_bias: bool,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let vocab = text.dim(&["vocab_size"], "it sizes the embedding and the output head")?;
    let positions = text.dim(&["max_position_embeddings"], "it sizes the tables of positions")?;
    let (encoder, decoder) = halves(&text, true)?;
    let (h, one) = (encoder.hidden, Shard::Replicated);
    tie(config, &text, b, true)?;
    let spec = b.spec();
    (spec.hidden, spec.vocab, spec.max_context) = (h, vocab, Some(positions));
    b.embedding("model.shared.weight", vocab, h);
    // Two rows before the first position, for what is filled up.
    for half in ["encoder", "decoder"] {
        b.tensor(Role::Position, &format!("model.{half}.embed_positions.weight"), &[positions + 2, h], one);
        b.norm_bias(&format!("model.{half}.layernorm_embedding"), h);
    }
    encoder.encode(b, "model.encoder.layers.", positions, 0)?;
    decoder.decode(b, "model.decoder.layers.", positions)?;
    b.tensor_typed(Role::Head, "final_logits_bias", &[1, vocab], one, DType::F32);
    b.head("lm_head", vocab, h);
    Ok(())
}

/// The sizes of encoder and decoder.
pub(super) fn halves(text: &Config<'_>, key_bias: bool) -> Result<(Half, Half), ModelError> {
    let hidden = text.dim(&["d_model", "hidden_size"], "it is the width of every matrix")?;
    let half = |layers: &'static str, heads: &'static str, inner: &'static str| {
        let it = Half {
            hidden,
            layers: text.layers(&[layers])?,
            heads: text.dim(&[heads], "it decides head size and how far TP can split")?,
            inner: text.dim(&[inner], "it sizes the feed-forward")?,
            key_bias,
        };
        if !hidden.is_multiple_of(it.heads) {
            return Err(text.reject(heads, format!("expected a divisor of the width of {hidden}")));
        }
        Ok(it)
    };
    Ok((
        half("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")?,
        half("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")?,
    ))
}

impl Half {
    /// The encoder of sounds that Qwen's models took from Whisper, and its defaults.
    pub(super) fn of_sounds(audio: &Config<'_>, key_bias: bool) -> Result<Self, ModelError> {
        let layers = ["encoder_layers", "num_hidden_layers"];
        Ok(Self {
            hidden: audio.dim_or(&["d_model", "hidden_size"], 1280)?,
            layers: if layers.iter().any(|k| audio.has(k)) { audio.layers(&layers)? } else { 32 },
            heads: audio.dim_or(&["encoder_attention_heads", "num_attention_heads"], 20)?,
            inner: audio.dim_or(&["encoder_ffn_dim", "intermediate_size"], 5120)?,
            key_bias,
        })
    }

    /// The layers of the encoder, which gives so many positions of so many elements each.
    pub(super) fn encode(self, b: &mut SpecBuilder, at: &str, positions: u64, elements: u64) -> Result<(), ModelError> {
        for i in 0..self.layers {
            b.scope(&format!("{at}{i}."), |b| {
                self.attention(b, Role::Encoder, "self_attn");
                self.feed_forward(b, Role::Encoder);
                Ok(())
            })?;
        }
        b.encoder(Encoder {
            hidden: self.hidden,
            layers: self.layers,
            intermediate: self.inner,
            patches: Some(positions),
            patch_elements: elements,
            tokens_per_image: Some(positions),
        });
        Ok(())
    }

    /// The layers of the decoder, beside an encoder that gives at most so many positions.
    pub(super) fn decode(self, b: &mut SpecBuilder, at: &str, positions: u64) -> Result<(), ModelError> {
        // Both kinds of attention have the decoder's heads, whatever the encoder's are.
        let head_dim = self.hidden / self.heads;
        let attention = Attention {
            q_heads: self.heads,
            kv_heads: self.heads,
            k_dim: head_dim,
            v_dim: head_dim,
            reach: Reach::Full,
            shared: false,
        };
        let layer = LayerSpec {
            cross: Some(CrossAttention { q_heads: self.heads, kv_heads: self.heads, head_dim, positions }),
            ..attention_layer(attention, Ffn::Dense { intermediate: self.inner, gated: false })
        };
        for i in 0..self.layers {
            b.layer(&format!("{at}{i}."), layer, |b| {
                self.attention(b, Role::Attention, "self_attn");
                self.attention(b, Role::Attention, "encoder_attn");
                self.feed_forward(b, Role::Mlp);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn attention(self, b: &mut SpecBuilder, role: Role, name: &str) {
        let (h, split) = (self.hidden, heads(self.heads));
        for (part, bias) in [("q", true), ("k", self.key_bias), ("v", true)] {
            b.out_split(role, &format!("{name}.{part}_proj"), [h, h], bias, split);
        }
        b.in_split(role, &format!("{name}.out_proj"), [h, h], true, split);
        self.norm(b, role, &format!("{name}_layer_norm"));
    }

    fn feed_forward(self, b: &mut SpecBuilder, role: Role) {
        let (h, inner) = (self.hidden, self.inner);
        b.out_split(role, "fc1", [inner, h], true, columns(inner));
        b.in_split(role, "fc2", [h, inner], true, columns(inner));
        self.norm(b, role, "final_layer_norm");
    }

    pub(super) fn norm(self, b: &mut SpecBuilder, role: Role, name: &str) {
        let role = if role == Role::Encoder { role } else { Role::Norm };
        for part in ["weight", "bias"] {
            b.tensor(role, &format!("{name}.{part}"), &[self.hidden], Shard::Replicated);
        }
    }
}
