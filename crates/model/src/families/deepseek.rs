//! DeepSeek V2 and V3 (R1, V3.1) and Kimi-K2: multi-head latent attention, dense layers first, then
//! routed and shared experts; multi-token-prediction layers after the last (V3).
//!
//! Source: transformers `models/deepseek_v2` and `models/deepseek_v3`; `moe_layer_freq` and the
//! multi-token-prediction layers, which transformers drops on loading, from vLLM
//! `models/deepseek_v2.py`, `models/deepseek_mtp.py` and DeepSeek's README_WEIGHTS.md.

use super::{Decoder, Defaults, Family, decoder_or, moe, tie};
use crate::arithmetic::{RopeDefaults, inverse_root};
use crate::builder::heads;
use crate::{
    Arithmetic, Config, ExpertGroups, Ffn, LatentAttention, LayerSpec, Mixer, ModelError, Moe,
    Positions, Role, Router, RouterScore, Shard, SpecBuilder,
};
use plimsoll_units::DType;

pub(super) const FAMILY: Family = Family {
    name: "deepseek",
    architectures: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"],
    model_types: &["deepseek_v2", "deepseek_v3", "kimi_k2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    // Head sizes come from the latent fields: `head_dim` is not used, and hidden / heads need not
    // be whole.
    let d = decoder_or(
        &text,
        b,
        Defaults {
            head_dim: Some(1),
            ..Defaults::default()
        },
    )?;
    let latent = latent(&text, &d)?;
    let bias = text.flag("attention_bias", false)?;
    let experts = Experts::read(config, &text, b.spec().dtype)?;
    let all_sparse = experts.is_some_and(|e| (0..d.layers).all(|i| e.has(i)));
    let inner = if all_sparse {
        text.opt("intermediate_size")?.unwrap_or(0)
    } else {
        text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?
    };
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(config, &text, &latent, experts.map(|e| e.moe)));

    let attention = |b: &mut SpecBuilder| {
        projections(b, d.hidden, &latent, bias);
        b.norm("input_layernorm", d.hidden);
        b.norm("post_attention_layernorm", d.hidden);
    };
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        let sparse = experts.as_ref().filter(|e| e.has(i));
        let ffn = match sparse {
            Some(e) => Ffn::Moe(e.moe),
            None => Ffn::Dense {
                intermediate: inner,
                gated: true,
            },
        };
        let layer = LayerSpec {
            mixer: Mixer::Latent(latent),
            parallel: None,
            cross: None,
            ffn,
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            attention(b);
            match sparse {
                Some(e) => e.tensors(b, d.hidden)?,
                None => b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false),
            }
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);

    let count = text.opt("num_nextn_predict_layers")?.unwrap_or(0);
    if count > d.layers {
        return Err(text.reject(
            "num_nextn_predict_layers",
            "expected no more than there are layers",
        ));
    }
    b.spec().mtp_layers = count;
    for i in d.layers..d.layers + count {
        b.mtp(&format!("model.layers.{i}."), |b| {
            let table = Shard::Vocab { rows: d.vocab };
            // Copies of the main model's embedding and head; no format quantises them.
            b.tensor(
                Role::Mtp,
                "embed_tokens.weight",
                &[d.vocab, d.hidden],
                table,
            );
            b.tensor(
                Role::Mtp,
                "shared_head.head.weight",
                &[d.vocab, d.hidden],
                table,
            );
            b.norm("enorm", d.hidden);
            b.norm("hnorm", d.hidden);
            b.tensor(
                Role::Mtp,
                "eh_proj.weight",
                &[d.hidden, 2 * d.hidden],
                Shard::Replicated,
            );
            b.norm("shared_head.norm", d.hidden);
            attention(b);
            match &experts {
                Some(e) => e.tensors(b, d.hidden)?,
                None => b.gated_mlp(Role::Mtp, "mlp.", d.hidden, inner, false),
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn latent(text: &Config<'_>, d: &Decoder) -> Result<LatentAttention, ModelError> {
    Ok(LatentAttention {
        q_heads: d.q_heads,
        rank: text.dim(&["kv_lora_rank"], "it is the size of the latent vector")?,
        rope_dim: text.dim(
            &["qk_rope_head_dim"],
            "it is the size of the shared rotary key",
        )?,
        nope_dim: text.dim(
            &["qk_nope_head_dim"],
            "it sizes the keys without rotary part",
        )?,
        v_dim: text.dim(&["v_head_dim"], "it sizes the value heads")?,
        q_rank: text.opt("q_lora_rank")?.filter(|r| *r > 0),
        indexer: None,
        compressed: None,
    })
}

/// The projections of latent attention: down-projections whole on every rank, heads split.
pub(super) fn projections(b: &mut SpecBuilder, hidden: u64, a: &LatentAttention, bias: bool) {
    let (at, split) = (Role::Attention, heads(a.q_heads));
    let q_out = a.q_heads * (a.nope_dim + a.rope_dim);
    if let Some(rank) = a.q_rank {
        b.whole(at, "self_attn.q_a_proj", [rank, hidden], bias);
        b.norm("self_attn.q_a_layernorm", rank);
        b.out_split(at, "self_attn.q_b_proj", [q_out, rank], false, split);
    } else {
        b.out_split(at, "self_attn.q_proj", [q_out, hidden], false, split);
    }
    b.whole(
        at,
        "self_attn.kv_a_proj_with_mqa",
        [a.rank + a.rope_dim, hidden],
        bias,
    );
    b.norm("self_attn.kv_a_layernorm", a.rank);
    let kv_out = a.q_heads * (a.nope_dim + a.v_dim);
    b.out_split(at, "self_attn.kv_b_proj", [kv_out, a.rank], false, split);
    b.in_split(
        at,
        "self_attn.o_proj",
        [hidden, a.q_heads * a.v_dim],
        bias,
        split,
    );
}

fn is_v3(config: &Config<'_>, text: &Config<'_>) -> bool {
    config.architecture().or(text.architecture()) == Some("DeepseekV3ForCausalLM")
        || ["deepseek_v3", "kimi_k2"]
            .map(Some)
            .contains(&text.str("model_type"))
}

/// How experts are chosen; V3's class knows one way only.
fn topk_method<'a>(config: &Config<'_>, text: &Config<'a>) -> &'a str {
    let default = if is_v3(config, text) {
        "noaux_tc"
    } else {
        "greedy"
    };
    text.str("topk_method").unwrap_or(default)
}

fn arithmetic(
    config: &Config<'_>,
    text: &Config<'_>,
    a: &LatentAttention,
    moe: Option<Moe>,
) -> Result<Arithmetic, ModelError> {
    let mut positions = Positions::rotary(text, a.rope_dim, RopeDefaults::default())?;
    if let Positions::Rotary { interleaved, .. } = &mut positions {
        *interleaved = !is_v3(config, text) || text.flag("rope_interleave", true)?;
    }
    let magnitude = score_magnitude(text)?;
    let (renormalise, router) = match moe {
        Some(moe) => router(config, text, &moe)?,
        None => (false, Router::default()),
    };
    Ok(Arithmetic {
        positions,
        attention_scale: inverse_root(a.nope_dim + a.rope_dim) * magnitude * magnitude,
        renormalise,
        router,
        ..Arithmetic::llama(text, a.rope_dim)?
    })
}

/// What a stretched context multiplies queries and keys by, beside what their rotation does: `yarn_apply_mscale`.
fn score_magnitude(text: &Config<'_>) -> Result<f64, ModelError> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(set) = text.object(key)? else {
            continue;
        };
        let kind = set.str("rope_type").or(set.str("type"));
        if kind.is_none_or(|k| k == "default") {
            return Ok(1.0);
        }
        let (Some(m), Some(factor)) = (set.positive("mscale_all_dim")?, set.positive("factor")?)
        else {
            return Ok(1.0);
        };
        return Ok(if factor <= 1.0 {
            1.0
        } else {
            0.1 * m * libm::log(factor) + 1.0
        });
    }
    Ok(1.0)
}

/// Whether weights are shares of those that are taken, and how these are chosen.
fn router(config: &Config<'_>, text: &Config<'_>, moe: &Moe) -> Result<(bool, Router), ModelError> {
    let v3 = is_v3(config, text);
    let (score, best, known) = match topk_method(config, text) {
        "greedy" => (RouterScore::Softmax, None, "softmax"),
        "group_limited_greedy" => (RouterScore::Softmax, Some(1), "softmax"),
        "noaux_tc" => (RouterScore::Sigmoid, Some(2), "sigmoid"),
        _ => {
            return Err(text.reject(
                "topk_method",
                "expected greedy, group_limited_greedy or noaux_tc",
            ));
        }
    };
    if text.has("scoring_func") && text.str("scoring_func") != Some(known) {
        return Err(text.reject(
            "scoring_func",
            format!("expected {known} beside this method"),
        ));
    }
    let renormalise = text.flag("norm_topk_prob", v3)?;
    if renormalise && score == RouterScore::Softmax {
        // transformers ignores it, and DeepSeek's own code then leaves the scaling factor out.
        return Err(text.reject("norm_topk_prob", "expected false beside softmax scores"));
    }
    let groups = match best {
        Some(best) => groups(text, moe, best, v3)?,
        None => None,
    };
    let scale = text.positive("routed_scaling_factor")?;
    let router = Router {
        score,
        groups,
        scale: scale.unwrap_or(if v3 { 2.5 } else { 1.0 }),
    };
    Ok((renormalise, router))
}

/// `None` where all experts are of one group.
fn groups(
    text: &Config<'_>,
    moe: &Moe,
    best: u64,
    v3: bool,
) -> Result<Option<ExpertGroups>, ModelError> {
    let (count, taken) = if v3 {
        (
            text.dim_or(&["n_group"], 8)?,
            text.dim_or(&["topk_group"], 4)?,
        )
    } else {
        let why = "experts are chosen by group";
        (
            text.dim(&["n_group"], why)?,
            text.dim(&["topk_group"], why)?,
        )
    };
    if count == 1 {
        return Ok(None);
    }
    let each = moe.experts / count;
    if each * count != moe.experts || each < best {
        return Err(text.reject(
            "n_group",
            format!("expected a divisor of the {} experts", moe.experts),
        ));
    }
    if taken > count || taken.saturating_mul(each) < moe.top_k {
        return Err(text.reject(
            "topk_group",
            format!(
                "expected at most the {count} groups, with the {} experts that a token takes",
                moe.top_k
            ),
        ));
    }
    Ok(Some(ExpertGroups { count, taken, best }))
}

/// The experts, and which layers have them.
#[derive(Clone, Copy, Debug)]
struct Experts {
    moe: Moe,
    dense_first: u64,
    every: u64,
    /// Type of the load-balancing bias, where there is one.
    correction: Option<DType>,
}

impl Experts {
    /// `None` for a model without routed experts.
    fn read(
        config: &Config<'_>,
        text: &Config<'_>,
        dtype: DType,
    ) -> Result<Option<Self>, ModelError> {
        if !text.has("n_routed_experts") {
            return Ok(None);
        }
        let inner = text.dim(&["moe_intermediate_size"], "it sizes a routed expert")?;
        let shared = text
            .opt("n_shared_experts")?
            .unwrap_or(0)
            .saturating_mul(inner);
        let corrected = topk_method(config, text) == "noaux_tc";
        // DeepSeek's own checkpoints, all quantised, keep the bias in 32 bits; transformers creates
        // it in the model's type.
        let kept = if config.has("quantization_config") || text.has("quantization_config") {
            DType::F32
        } else {
            dtype
        };
        Ok(Some(Self {
            moe: moe(
                text,
                &["n_routed_experts"],
                &["moe_intermediate_size"],
                shared,
            )?,
            dense_first: text.opt("first_k_dense_replace")?.unwrap_or(0),
            every: text.dim_or(&["moe_layer_freq"], 1)?,
            correction: corrected.then_some(kept),
        }))
    }

    fn has(&self, i: u64) -> bool {
        i >= self.dense_first && i.is_multiple_of(self.every)
    }

    fn tensors(&self, b: &mut SpecBuilder, hidden: u64) -> Result<(), ModelError> {
        let moe = self.moe;
        b.whole(Role::Router, "mlp.gate", [moe.experts, hidden], false);
        if let Some(dtype) = self.correction {
            let name = "mlp.gate.e_score_correction_bias";
            b.tensor_typed(Role::Router, name, &[moe.experts], Shard::Replicated, dtype);
        }
        b.experts(moe.experts, |b| {
            b.gated_mlp(
                Role::Experts,
                "mlp.experts.{e}.",
                hidden,
                moe.intermediate,
                false,
            );
            Ok(())
        })?;
        if moe.shared > 0 {
            b.gated_mlp(
                Role::SharedExperts,
                "mlp.shared_experts.",
                hidden,
                moe.shared,
                false,
            );
        }
        Ok(())
    }
}
