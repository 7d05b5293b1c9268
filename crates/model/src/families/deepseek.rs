//! DeepSeek V2 and V3 (R1, V3.1) and Kimi-K2: multi-head latent attention, dense layers first, then
//! routed and shared experts; multi-token-prediction layers after the last (V3).
//!
//! Source: transformers `models/deepseek_v2` and `models/deepseek_v3`; `moe_layer_freq` and the
//! multi-token-prediction layers, which transformers drops on loading, from vLLM
//! `models/deepseek_v2.py`, `models/deepseek_mtp.py` and DeepSeek's README_WEIGHTS.md.

use super::{Decoder, Defaults, Family, decoder_or, moe, tie};
use crate::builder::heads;
use crate::{
    Config, Ffn, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder,
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

fn latent(text: &Config<'_>, d: &Decoder) -> Result<LatentAttention, ModelError> {
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
    })
}

/// The projections of latent attention: down-projections whole on every rank, heads split.
fn projections(b: &mut SpecBuilder, hidden: u64, a: &LatentAttention, bias: bool) {
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
        let v3 = config.architecture().or(text.architecture()) == Some("DeepseekV3ForCausalLM")
            || ["deepseek_v3", "kimi_k2"]
                .map(Some)
                .contains(&text.str("model_type"));
        let corrected = match text.str("topk_method") {
            Some(method) => method == "noaux_tc",
            None => v3,
        };
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
