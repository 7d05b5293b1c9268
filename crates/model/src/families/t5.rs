//! T5, T5 1.1 and Flan-T5: an encoder, and a decoder each of whose layers also reads what the encoder gave; distances
//! are told by one table of each half, in its first layer.
//!
//! Source: transformers `models/t5/{configuration,modeling}_t5.py`; that 1.1's files have a head of their own, which
//! newer versions no longer write, from their headers (`tests/families.rs`).

use super::{Family, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{
    Attention, Config, CrossAttention, Encoder, Ffn, LayerSpec, ModelError, Reach, Role, Shard, SpecBuilder,
};

pub(super) const FAMILY: Family = Family {
    name: "t5",
    architectures: &["T5ForConditionalGeneration"],
    model_types: &["t5"],
    towers: false,
    lower,
};

#[derive(Clone, Copy, Debug)]
struct Sizes {
    hidden: u64,
    heads: u64,
    head_dim: u64,
    inner: u64,
    gated: bool,
    buckets: u64,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let vocab = text.dim(&["vocab_size"], "it sizes the embedding and the output head")?;
    let gated = match text.str("feed_forward_proj").unwrap_or("relu").split_once('-') {
        None => false,
        Some(("gated", _)) => true,
        Some(_) => return Err(text.reject("feed_forward_proj", "expected a function, or gated- and a function")),
    };
    let s = Sizes {
        hidden: text.dim(&["d_model"], "it is the width of every matrix")?,
        heads: text.dim(&["num_heads"], "it decides how far TP can split")?,
        head_dim: text.dim_or(&["d_kv"], 64)?,
        inner: text.dim(&["d_ff"], "it sizes the feed-forward")?,
        gated,
        buckets: text.dim_or(&["relative_attention_num_buckets"], 32)?,
    };
    let encoder = text.layers(&["num_layers"])?;
    let decoder = if text.has("num_decoder_layers") { text.layers(&["num_decoder_layers"])? } else { encoder };
    // Distances have no end; this is the length that it was trained at, where published.
    let positions = text.dim_or(&["n_positions"], 512)?;
    tie(config, &text, b, true)?;
    b.rotary_share(0.0);
    let spec = b.spec();
    (spec.hidden, spec.vocab, spec.max_context) = (s.hidden, vocab, Some(positions));
    b.embedding("shared.weight", vocab, s.hidden);
    for i in 0..encoder {
        b.scope(&format!("encoder.block.{i}."), |b| {
            s.attention(b, Role::Encoder, "layer.0.", "SelfAttention", i == 0);
            s.feed_forward(b, Role::Encoder, "layer.1.");
            Ok(())
        })?;
    }
    b.tensor(Role::Encoder, "encoder.final_layer_norm.weight", &[s.hidden], Shard::Replicated);
    b.encoder(Encoder {
        hidden: s.hidden,
        layers: encoder,
        intermediate: s.inner,
        patches: Some(positions),
        patch_elements: 0,
        tokens_per_image: Some(positions),
    });
    let layer = s.layer(positions);
    for i in 0..decoder {
        b.layer(&format!("decoder.block.{i}."), layer, |b| {
            s.attention(b, Role::Attention, "layer.0.", "SelfAttention", i == 0);
            s.attention(b, Role::Attention, "layer.1.", "EncDecAttention", false);
            s.feed_forward(b, Role::Mlp, "layer.2.");
            Ok(())
        })?;
    }
    b.norm("decoder.final_layer_norm", s.hidden);
    b.head("lm_head", vocab, s.hidden);
    Ok(())
}

impl Sizes {
    fn layer(self, positions: u64) -> LayerSpec {
        let attention = Attention {
            q_heads: self.heads,
            kv_heads: self.heads,
            k_dim: self.head_dim,
            v_dim: self.head_dim,
            reach: Reach::Full,
            shared: false,
        };
        LayerSpec {
            cross: Some(CrossAttention {
                q_heads: self.heads,
                kv_heads: self.heads,
                head_dim: self.head_dim,
                positions,
            }),
            ..attention_layer(attention, Ffn::Dense { intermediate: self.inner, gated: self.gated })
        }
    }

    fn attention(self, b: &mut SpecBuilder, role: Role, at: &str, name: &str, distances: bool) {
        let (h, wide, split) = (self.hidden, self.heads.saturating_mul(self.head_dim), heads(self.heads));
        for part in ["q", "k", "v"] {
            b.out_split(role, &format!("{at}{name}.{part}"), [wide, h], false, split);
        }
        b.in_split(role, &format!("{at}{name}.o"), [h, wide], false, split);
        if distances {
            let table = format!("{at}{name}.relative_attention_bias.weight");
            b.tensor(role, &table, &[self.buckets, self.heads], split);
        }
        self.norm(b, role, at);
    }

    fn feed_forward(self, b: &mut SpecBuilder, role: Role, at: &str) {
        let (h, inner) = (self.hidden, self.inner);
        let names: &[&str] = if self.gated { &["wi_0", "wi_1"] } else { &["wi"] };
        for name in names {
            b.out_split(role, &format!("{at}DenseReluDense.{name}"), [inner, h], false, columns(inner));
        }
        b.in_split(role, &format!("{at}DenseReluDense.wo"), [h, inner], false, columns(inner));
        self.norm(b, role, at);
    }

    fn norm(self, b: &mut SpecBuilder, role: Role, at: &str) {
        let role = if role == Role::Encoder { role } else { Role::Norm };
        b.tensor(role, &format!("{at}layer_norm.weight"), &[self.hidden], Shard::Replicated);
    }
}
