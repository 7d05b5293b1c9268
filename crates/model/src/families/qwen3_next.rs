//! Qwen3-Next: three gated delta-net layers to one gated full-attention layer, many small experts.
//!
//! Source: transformers `models/qwen3_next/modeling_qwen3_next.py`.

use super::{Family, decoder, expert_layers, tie};
use crate::builder::heads;
use crate::{
    Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder, StateKind, StateSpace,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_next",
    architectures: &["Qwen3NextForCausalLM"],
    model_types: &["qwen3_next"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let state = "it sizes the recurrent state";
    let (kh, vh) = (
        config.dim(&["linear_num_key_heads"], state)?,
        config.dim(&["linear_num_value_heads"], state)?,
    );
    let (kd, vd) =
        (config.dim(&["linear_key_head_dim"], state)?, config.dim(&["linear_value_head_dim"], state)?);
    let taps = config.dim(&["linear_conv_kernel_dim"], "it sizes the kept inputs of the convolution")?;
    let (keys, values) = (kh.saturating_mul(kd), vh.saturating_mul(vd));
    let net = StateSpace {
        kind: StateKind::GatedDelta,
        conv_taps: taps,
        conv_channels: keys.saturating_mul(2).saturating_add(values),
        heads: vh,
        rows: vd,
        cols: kd,
        groups: kh,
        state_dtype: None,
    };
    let moe = Moe {
        experts: config.dim(&["num_experts"], "it is the number of routed experts")?,
        top_k: config.dim(&["num_experts_per_tok"], "it is the experts per token")?,
        intermediate: config.dim(&["moe_intermediate_size"], "it sizes an expert")?,
        shared: config.dim(&["shared_expert_intermediate_size"], "it sizes the shared expert")?,
    };
    let dense = config.opt("intermediate_size")?.unwrap_or(0);
    tie(config, config, b, false)?;
    let full: Vec<bool> = match config.strings("layer_types")? {
        Some(types) if types.len() as u64 == d.layers => {
            types.iter().map(|t| *t == "full_attention").collect()
        }
        Some(_) => return Err(config.reject("layer_types", "expected one entry per layer")),
        None => {
            let every = config.dim_or(&["full_attention_interval"], 4)?;
            (1..=d.layers).map(|i| i.is_multiple_of(every)).collect()
        }
    };
    let is_moe = expert_layers(config, d.layers, moe.experts)?;
    let a = d.attention(Reach::Full);

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, full) in full.into_iter().enumerate() {
        let mixer = if full { Mixer::Attention(a) } else { Mixer::State(net) };
        let ffn = if is_moe[i] { Ffn::Moe(moe) } else { Ffn::Dense { intermediate: dense, gated: true } };
        b.layer(&format!("model.layers.{i}."), LayerSpec { mixer, parallel: None, ffn }, |b| {
            if full {
                // Twice the query width: the second half gates the output.
                let at = Role::Attention;
                let kv = Shard::KvHeads { heads: d.kv_heads };
                let q = d.q_heads * d.head_dim;
                b.out_split(at, "self_attn.q_proj", [2 * q, d.hidden], false, heads(d.q_heads));
                b.out_split(at, "self_attn.k_proj", [d.kv_heads * d.head_dim, d.hidden], false, kv);
                b.out_split(at, "self_attn.v_proj", [d.kv_heads * d.head_dim, d.hidden], false, kv);
                b.in_split(at, "self_attn.o_proj", [d.hidden, q], false, heads(d.q_heads));
                b.norm("self_attn.q_norm", d.head_dim);
                b.norm("self_attn.k_norm", d.head_dim);
            } else {
                let st = Role::State;
                let vs = Shard::Split { units: vh, what: "value heads" };
                let ks = Shard::Split { units: kh, what: "key heads" };
                b.tensor(st, "linear_attn.dt_bias", &[vh], vs);
                b.tensor(st, "linear_attn.A_log", &[vh], vs);
                b.tensor(st, "linear_attn.conv1d.weight", &[net.conv_channels, 1, taps], ks);
                b.out_split(st, "linear_attn.in_proj_qkvz", [2 * keys + 2 * values, d.hidden], false, ks);
                b.out_split(st, "linear_attn.in_proj_ba", [2 * vh, d.hidden], false, ks);
                b.norm("linear_attn.norm", vd);
                b.in_split(st, "linear_attn.out_proj", [d.hidden, values], false, vs);
            }
            if is_moe[i] {
                b.whole(Role::Router, "mlp.gate", [moe.experts, d.hidden], false);
                b.experts(moe.experts, |b| {
                    b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
                    Ok(())
                })?;
                b.gated_mlp(Role::SharedExperts, "mlp.shared_expert.", d.hidden, moe.shared, false);
                b.whole(Role::Router, "mlp.shared_expert_gate", [1, d.hidden], false);
            } else {
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, dense, false);
            }
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
