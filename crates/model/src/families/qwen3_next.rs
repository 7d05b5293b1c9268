//! Qwen3-Next: three layers of gated delta rule for each layer of full attention with an output
//! gate, 512 routed experts beside a shared one.
//!
//! Source: transformers `models/qwen3_next/{configuration,modeling}_qwen3_next.py`; the
//! multi-token-prediction layer, which transformers drops on loading, from vLLM
//! `models/qwen3_next_mtp.py`, which also takes one layer for granted where the config is silent.

use super::{
    Decoder, Defaults, Family, LayerKind, SparseLayers, decoder_or, layer_types, qwen3_moe, tie,
};
use crate::builder::{attention_layer, columns, heads};
use crate::{
    Attention, Config, LayerSpec, Mixer, ModelError, Reach, Role, Shard, SpecBuilder, StateKind,
    StateSpace,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_next",
    architectures: &["Qwen3NextForCausalLM"],
    model_types: &["qwen3_next"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(2),
        head_dim: Some(256),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let shared = text.dim_or(&["shared_expert_intermediate_size"], 512)?;
    let sparse = SparseLayers::read(&text, shared)?;
    let inner = sparse.dense_inner(&text, d.layers, 5632)?;
    let bias = text.flag("attention_bias", false)?;
    let delta = DeltaNet::read(&text)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.25);

    let interval = text.dim_or(&["full_attention_interval"], 4)?;
    let kinds = match layer_types(&text, d.layers)? {
        Some(kinds) => kinds,
        None => (1..=d.layers)
            .map(|n| {
                if n.is_multiple_of(interval) {
                    LayerKind::Full
                } else {
                    LayerKind::Linear
                }
            })
            .collect(),
    };
    let attention = d.attention(Reach::Full);
    let feed_forward = |b: &mut SpecBuilder, i: u64| {
        if sparse.has(i) {
            qwen3_moe::experts(b, d.hidden, &sparse)?;
            qwen3_moe::shared_expert(b, d.hidden, &sparse);
        } else {
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        }
        b.norm("input_layernorm", d.hidden);
        b.norm("post_attention_layernorm", d.hidden);
        Ok(())
    };

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, kind) in (0..).zip(kinds) {
        let ffn = sparse.ffn(i, inner);
        let layer = if kind == LayerKind::Linear {
            LayerSpec {
                mixer: Mixer::State(delta.state()),
                parallel: None,
                cross: None,
                ffn,
            }
        } else {
            attention_layer(attention, ffn)
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            if kind == LayerKind::Linear {
                delta.tensors(b, d.hidden);
            } else {
                gated_attention(b, &d, &attention, bias);
            }
            feed_forward(b, i)
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);

    let mtp = text.opt("num_nextn_predict_layers")?;
    let count = mtp.unwrap_or(1);
    if count > d.layers {
        return Err(text.reject(
            "num_nextn_predict_layers",
            "expected no more than there are layers",
        ));
    }
    b.spec().mtp_layers = count;
    if mtp.is_none() {
        b.spec().notes.push(
            "the config does not count the multi-token-prediction layers: one is assumed, as published"
                .to_owned(),
        );
    }
    if count > 0 {
        b.mtp("mtp.", |b| {
            b.out_split(Role::Mtp, "fc", [d.hidden, 2 * d.hidden], false, columns(d.hidden));
            for name in ["pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"] {
                b.norm(name, d.hidden);
            }
            for i in 0..count {
                b.scope(&format!("layers.{i}."), |b| {
                    gated_attention(b, &d, &attention, bias);
                    feed_forward(b, d.layers - 1)
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Full attention whose query projection also gives a gate of the same size for the output.
pub(super) fn gated_attention(b: &mut SpecBuilder, d: &Decoder, a: &Attention, bias: bool) {
    let (at, h) = (Role::Attention, d.hidden);
    let (q, kv) = (d.q_heads * d.head_dim, d.kv_heads * d.head_dim);
    let kv_shard = Shard::KvHeads { heads: a.kv_heads };
    b.out_split(at, "self_attn.q_proj", [2 * q, h], bias, heads(d.q_heads));
    b.out_split(at, "self_attn.k_proj", [kv, h], bias, kv_shard);
    b.out_split(at, "self_attn.v_proj", [kv, h], bias, kv_shard);
    b.in_split(at, "self_attn.o_proj", [h, q], bias, heads(d.q_heads));
    b.norm("self_attn.q_norm", d.head_dim);
    b.norm("self_attn.k_norm", d.head_dim);
}

/// The shape of a gated-delta-rule layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaNet {
    pub(super) taps: u64,
    pub(super) key_heads: u64,
    pub(super) key_dim: u64,
    pub(super) value_heads: u64,
    pub(super) value_dim: u64,
}

impl DeltaNet {
    pub(super) fn read(text: &Config<'_>) -> Result<Self, ModelError> {
        let it = Self {
            taps: text.dim_or(&["linear_conv_kernel_dim"], 4)?,
            key_heads: text.dim_or(&["linear_num_key_heads"], 16)?,
            key_dim: text.dim_or(&["linear_key_head_dim"], 128)?,
            value_heads: text.dim_or(&["linear_num_value_heads"], 32)?,
            value_dim: text.dim_or(&["linear_value_head_dim"], 128)?,
        };
        if !it.value_heads.is_multiple_of(it.key_heads) {
            return Err(text.reject(
                "linear_num_value_heads",
                format!("expected a multiple of the {} key heads", it.key_heads),
            ));
        }
        Ok(it)
    }

    pub(super) fn keys(self) -> u64 {
        self.key_heads.saturating_mul(self.key_dim)
    }

    pub(super) fn values(self) -> u64 {
        self.value_heads.saturating_mul(self.value_dim)
    }

    /// Query, key and value pass the convolution together.
    pub(super) fn channels(self) -> u64 {
        self.keys().saturating_mul(2).saturating_add(self.values())
    }

    pub(super) fn state(self) -> StateSpace {
        StateSpace {
            kind: StateKind::GatedDelta,
            conv_taps: self.taps,
            conv_channels: self.channels(),
            heads: self.value_heads,
            rows: self.value_dim,
            cols: self.key_dim,
            groups: self.key_heads,
            state_dtype: None,
        }
    }

    fn tensors(self, b: &mut SpecBuilder, hidden: u64) {
        let keys = Shard::Split {
            units: self.key_heads,
            what: "linear-attention key heads",
        };
        let values = Shard::Split {
            units: self.value_heads,
            what: "linear-attention value heads",
        };
        let state = Role::State;
        b.tensor(state, "linear_attn.dt_bias", &[self.value_heads], values);
        b.tensor(state, "linear_attn.A_log", &[self.value_heads], values);
        b.tensor(
            state,
            "linear_attn.conv1d.weight",
            &[self.channels(), 1, self.taps],
            keys,
        );
        // Query, key, value and output gate, dealt out by key head; beta and decay likewise.
        let qkvz = self.channels().saturating_add(self.values());
        b.out_split(
            state,
            "linear_attn.in_proj_qkvz",
            [qkvz, hidden],
            false,
            keys,
        );
        b.out_split(
            state,
            "linear_attn.in_proj_ba",
            [2 * self.value_heads, hidden],
            false,
            keys,
        );
        b.tensor(
            Role::Norm,
            "linear_attn.norm.weight",
            &[self.value_dim],
            Shard::Replicated,
        );
        b.in_split(
            state,
            "linear_attn.out_proj",
            [hidden, self.values()],
            false,
            values,
        );
    }
}
