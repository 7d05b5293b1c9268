//! Jamba: states of the first selective form, attention without positions in every eighth layer, experts in every second.
//!
//! Source: transformers `models/jamba/{configuration,modeling}_jamba.py`.

use super::{Defaults, Family, decoder_or, gated, moe, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder, StateKind, StateSpace};

pub(super) const FAMILY: Family = Family {
    name: "jamba",
    architectures: &["JambaForCausalLM"],
    model_types: &["jamba"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let moe = moe(&text, &["num_experts"], &["intermediate_size"], 0)?;
    let every = |period: &'static str, offset: &str, p, o| {
        let (period, offset) = (text.dim_or(&[period], p)?, text.opt(offset)?.unwrap_or(o));
        Ok::<_, ModelError>(move |i: u64| i % period == offset)
    };
    let attends = every("attn_layer_period", "attn_layer_offset", 8, 4)?;
    let routes = every("expert_layer_period", "expert_layer_offset", 2, 1)?;
    let mamba = Mamba::read(&text, d.hidden)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.0);
    let attention = d.attention(Reach::Full);
    let h = d.hidden;
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        let sparse = moe.experts > 1 && routes(i);
        let ffn = if sparse { Ffn::Moe(moe) } else { gated(inner) };
        let layer = if attends(i) {
            attention_layer(attention, ffn)
        } else {
            LayerSpec { mixer: Mixer::State(mamba.state()), parallel: None, cross: None, ffn }
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            if attends(i) {
                b.qkvo(h, &attention, false, false);
            } else {
                mamba.tensors(b, "mamba.", h);
                b.norm("mamba.dt_layernorm", mamba.rank);
                b.norm("mamba.b_layernorm", mamba.cols);
                b.norm("mamba.c_layernorm", mamba.cols);
            }
            if sparse {
                experts(b, h, &moe)?;
            } else {
                b.gated_mlp(Role::Mlp, "feed_forward.", h, inner, false);
            }
            b.norm("input_layernorm", h);
            b.norm("pre_ff_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.final_layernorm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "feed_forward.router", [moe.experts, hidden], false);
    b.experts(moe.experts, |b| {
        let prefix = "feed_forward.experts.{e}.";
        b.gated_mlp(Role::Experts, prefix, hidden, moe.intermediate, false);
        Ok(())
    })
}

/// The shape of a layer of the first selective form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mamba {
    pub(super) inner: u64,
    pub(super) cols: u64,
    pub(super) rank: u64,
    pub(super) taps: u64,
    pub(super) conv_bias: bool,
    pub(super) bias: bool,
}

impl Mamba {
    fn read(text: &Config<'_>, hidden: u64) -> Result<Self, ModelError> {
        let rank = match text.str("mamba_dt_rank") {
            Some("auto") => hidden.div_ceil(16),
            _ => text.dim_or(&["mamba_dt_rank"], hidden.div_ceil(16))?,
        };
        Ok(Self {
            inner: text.dim_or(&["mamba_expand"], 2)?.saturating_mul(hidden),
            cols: text.dim_or(&["mamba_d_state"], 16)?,
            rank,
            taps: text.dim_or(&["mamba_d_conv"], 4)?,
            conv_bias: text.flag("mamba_conv_bias", true)?,
            bias: text.flag("mamba_proj_bias", false)?,
        })
    }

    /// Every channel is a head of one row.
    pub(super) fn state(self) -> StateSpace {
        StateSpace {
            kind: StateKind::Mamba1,
            conv_taps: self.taps,
            conv_channels: self.inner,
            heads: self.inner,
            rows: 1,
            cols: self.cols,
            groups: 1,
            state_dtype: None,
        }
    }

    pub(super) fn tensors(self, b: &mut SpecBuilder, prefix: &str, hidden: u64) {
        let (role, inner) = (Role::State, self.inner);
        let split = Shard::Split { units: inner, what: "state channels" };
        let name = |part: &str| format!("{prefix}{part}");
        b.tensor(role, &name("A_log"), &[inner, self.cols], split);
        b.tensor(role, &name("D"), &[inner], split);
        b.tensor(role, &name("conv1d.weight"), &[inner, 1, self.taps], split);
        if self.conv_bias {
            b.tensor(role, &name("conv1d.bias"), &[inner], split);
        }
        b.out_split(role, &name("in_proj"), [2 * inner, hidden], self.bias, split);
        b.in_split(role, &name("x_proj"), [self.rank + 2 * self.cols, inner], false, split);
        b.out_split(role, &name("dt_proj"), [inner, self.rank], true, split);
        b.in_split(role, &name("out_proj"), [hidden, inner], self.bias, split);
    }
}
