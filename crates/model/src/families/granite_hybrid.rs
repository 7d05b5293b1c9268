//! Granite 4 hybrid: layers of Mamba 2 among a few of attention, each followed by a feed-forward that every token
//! passes, with or without routed experts beside it.
//!
//! Source: transformers `models/granitemoehybrid/{configuration,modeling}_granitemoehybrid.py`.

use super::{Decoder, Defaults, Family, LayerKind, decoder_or, granite, granite_moe, layer_types, moe, tie};
use crate::builder::columns;
use crate::json::non_finite;
use crate::{
    Arithmetic, Config, Ffn, LayerSpec, Mixer, ModelError, Positions, Reach, Role, Shard,
    SpecBuilder, StateKind, StateSpace,
};

pub(super) const FAMILY: Family = Family {
    name: "granite_hybrid",
    architectures: &["GraniteMoeHybridForCausalLM"],
    model_types: &["granitemoehybrid"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        vocab: Some(32_000),
        q_heads: Some(32),
        max_context: Some(2048),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let shared = text.dim_or(&["shared_intermediate_size"], 1024)?;
    let ffn = match text.opt("num_local_experts")? {
        Some(0) => Ffn::Dense {
            intermediate: shared,
            gated: true,
        },
        _ => Ffn::Moe(moe(&text, &["num_local_experts"], &["intermediate_size"], shared)?),
    };
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, &d));
    if !rotates(&text) {
        b.rotary_share(0.0);
    }

    // Without `layer_types` all layers keep states.
    let states = || (0..d.layers).map(|_| LayerKind::Linear).collect();
    let kinds = layer_types(&text, d.layers)?.unwrap_or_else(states);
    let attention = d.attention(Reach::Full);
    let h = d.hidden;
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for (i, kind) in kinds.into_iter().enumerate() {
        // Models of attention alone say anything about states.
        let (mamba, mixer) = match kind {
            LayerKind::Linear => {
                let mamba = Mamba::read(&text, h)?;
                (Some(mamba), Mixer::State(mamba.state()))
            }
            LayerKind::Full => (None, Mixer::Attention(attention)),
            LayerKind::Window => {
                return Err(text.reject("layer_types", "expected attention without windows"));
            }
        };
        let layer = LayerSpec {
            mixer,
            parallel: None,
            cross: None,
            ffn,
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            match mamba {
                Some(mamba) => {
                    mamba.tensors(b, "mamba.", h);
                    mamba.norm(b, "mamba.");
                }
                None => b.qkvo(h, &attention, bias, bias),
            }
            let (inner, mut role) = (columns(shared), Role::Mlp);
            if let Ffn::Moe(moe) = ffn {
                role = Role::SharedExperts;
                granite_moe::experts(b, h, &moe)?;
            }
            b.out_split(role, "shared_mlp.input_linear", [2 * shared, h], false, inner);
            b.in_split(role, "shared_mlp.output_linear", [h, shared], false, inner);
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// Whether queries and keys are rotated: the published models have no positions.
fn rotates(text: &Config<'_>) -> bool {
    text.str("position_embedding_type") == Some("rope")
}

fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    let all = granite::arithmetic(text, d)?;
    let key = "position_embedding_type";
    if text.has(key) && !matches!(text.str(key), Some("rope" | "nope")) {
        return Err(text.reject(key, "expected rope, nope or null"));
    }
    Ok(Arithmetic {
        positions: if rotates(text) {
            all.positions
        } else {
            Positions::None
        },
        step_limits: step_limits(text)?,
        ..all
    })
}

/// `time_step_limit`: two numbers, of which the second may be infinite.
fn step_limits(text: &Config<'_>) -> Result<[f64; 2], ModelError> {
    let key = "time_step_limit";
    let Some(value) = text.get(key) else {
        return Ok([0.0, f64::INFINITY]);
    };
    let number = |v: &serde_json::Value| {
        let infinite = non_finite(v) == Some("Infinity");
        if infinite { Some(f64::INFINITY) } else { v.as_f64() }
    };
    let both = value.as_array().map(|a| a.iter().map(number).collect::<Vec<_>>());
    match both.as_deref() {
        Some([Some(low), Some(high)]) if low <= high => Ok([*low, *high]),
        _ => Err(text.reject(key, "expected two numbers, the smaller one first")),
    }
}

/// The shape of a Mamba 2 layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mamba {
    pub(super) heads: u64,
    pub(super) head_dim: u64,
    pub(super) groups: u64,
    pub(super) cols: u64,
    pub(super) taps: u64,
    pub(super) conv_bias: bool,
    pub(super) bias: bool,
    pub(super) out_bias: bool,
}

impl Mamba {
    pub(super) fn read(text: &Config<'_>, hidden: u64) -> Result<Self, ModelError> {
        let inner = text.dim_or(&["mamba_expand"], 2)?.saturating_mul(hidden);
        let heads = text.dim_or(&["mamba_n_heads"], 128)?;
        let head_dim = match text.str("mamba_d_head") {
            Some("auto") => inner / heads,
            _ => text.dim_or(&["mamba_d_head"], inner / heads)?,
        };
        if heads.checked_mul(head_dim) != Some(inner) {
            return Err(text.reject(
                "mamba_n_heads",
                format!("expected heads of {head_dim} that are {inner} wide together"),
            ));
        }
        let groups = text.dim_or(&["mamba_n_groups"], 1)?;
        if !heads.is_multiple_of(groups) {
            return Err(text.reject(
                "mamba_n_groups",
                format!("expected a divisor of the {heads} heads"),
            ));
        }
        Ok(Self {
            heads,
            head_dim,
            groups,
            cols: text.dim_or(&["mamba_d_state"], 256)?,
            taps: text.dim_or(&["mamba_d_conv"], 4)?,
            conv_bias: text.flag("mamba_conv_bias", true)?,
            bias: text.flag("mamba_proj_bias", false)?,
            out_bias: text.flag("mamba_proj_bias", false)?,
        })
    }

    pub(super) fn inner(self) -> u64 {
        self.heads.saturating_mul(self.head_dim)
    }

    /// What the heads take, B and C pass the convolution together.
    fn channels(self) -> u64 {
        let shared = self.groups.saturating_mul(self.cols).saturating_mul(2);
        self.inner().saturating_add(shared)
    }

    pub(super) fn state(self) -> StateSpace {
        StateSpace {
            kind: StateKind::Mamba2,
            conv_taps: self.taps,
            conv_channels: self.channels(),
            heads: self.heads,
            rows: self.head_dim,
            cols: self.cols,
            groups: self.groups,
            state_dtype: None,
        }
    }

    /// All but the gated norm, which some leave out, with `prefix` before their names.
    pub(super) fn tensors(self, b: &mut SpecBuilder, prefix: &str, hidden: u64) {
        let heads = Shard::Split {
            units: self.heads,
            what: "state heads",
        };
        let (state, inner) = (Role::State, self.inner());
        let name = |part: &str| format!("{prefix}{part}");
        for part in ["dt_bias", "A_log", "D"] {
            b.tensor(state, &name(part), &[self.heads], heads);
        }
        // B and C of a group are on every rank that has a head of it.
        let fused = |rows| Shard::StateGroups {
            heads: self.heads,
            rows,
            groups: self.groups,
            each: self.cols.saturating_mul(2),
        };
        let conv = [self.channels(), 1, self.taps];
        b.tensor(state, &name("conv1d.weight"), &conv, fused(inner));
        if self.conv_bias {
            b.tensor(state, &name("conv1d.bias"), &[self.channels()], fused(inner));
        }
        // Gate; what the heads take, B and C; steps.
        let rows = inner.saturating_add(self.channels()).saturating_add(self.heads);
        let own = inner.saturating_mul(2).saturating_add(self.heads);
        b.out_split(state, &name("in_proj"), [rows, hidden], self.bias, fused(own));
        b.in_split(state, &name("out_proj"), [hidden, inner], self.out_bias, heads);
    }

    /// The norm in front of the output projection.
    pub(super) fn norm(self, b: &mut SpecBuilder, prefix: &str) {
        let split = Shard::Split {
            units: self.heads,
            what: "state heads",
        };
        let name = format!("{prefix}norm.weight");
        b.tensor(Role::Norm, &name, &[self.inner()], split);
    }
}
