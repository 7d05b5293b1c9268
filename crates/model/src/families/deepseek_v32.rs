//! DeepSeek V3.2 and GLM-5: V3's latent attention reading what an indexer chooses; in GLM-5's later models some layers
//! read what an earlier layer's indexer chose, and have none.
//!
//! Source: transformers `models/deepseek_v32` and `models/glm_moe_dsa` (`{configuration,modeling}_*.py`); multi-token-prediction
//! layers, which transformers drops on loading, and the router's type, which it widens, from vLLM
//! `models/deepseek_v2.py` and `models/deepseek_mtp.py`.

use plimsoll_units::DType;

use super::deepseek::{latent, projections};
use super::glm4_moe::{predictors, routed};
use super::{Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::{Config, Ffn, Indexer, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "deepseek_v32",
    architectures: &["DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"],
    model_types: &["deepseek_v32", "glm_moe_dsa"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    // Head sizes come from the latent fields.
    let defaults = Defaults {
        head_dim: Some(1),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let without = latent(&text, &d)?;
    let indexer = Indexer {
        heads: text.dim_or(&["index_n_heads"], if is_glm(config, &text) { 32 } else { 64 })?,
        dim: text.dim_or(&["index_head_dim"], 128)?,
        best: text.dim_or(&["index_topk"], 2048)?,
    };
    let with = LatentAttention { indexer: Some(indexer), ..without };
    if with.q_rank.is_none() {
        return Err(text.reject("q_lora_rank", "expected the size of the compressed query, which the indexer reads"));
    }
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let moe = routed(&text)?;
    let bias = text.flag("attention_bias", false)?;
    let sparse = sparse_layers(&text, d.layers)?;
    let indexed = indexed(&text, d.layers)?;
    tie(config, &text, b, false)?;
    let layers = sparse.iter().zip(&indexed).map(|(sparse, indexed)| LayerSpec {
        mixer: Mixer::Latent(if *indexed { with } else { without }),
        parallel: None,
        cross: None,
        ffn: if *sparse { Ffn::Moe(moe) } else { gated(inner) },
    });
    let h = d.hidden;
    let attention = |b: &mut SpecBuilder, a: &LatentAttention| {
        projections(b, h, a, bias);
        if let (Some(indexer), Some(rank)) = (a.indexer, a.q_rank) {
            chooses(b, &indexer, h, rank);
        }
        norms(b, h);
    };
    stack(b, "model.", &d, layers, |b, _, layer| {
        if let Mixer::Latent(a) = &layer.mixer {
            attention(b, a);
        }
        match layer.ffn {
            Ffn::Moe(moe) => experts(b, h, &moe)?,
            _ => b.gated_mlp(Role::Mlp, "mlp.", h, inner, false),
        }
        Ok(())
    })?;
    b.head("lm_head", d.vocab, h);
    predictors(&text, b, &d, 0, |b| {
        attention(b, &with);
        experts(b, h, &moe)
    })
}

fn is_glm(config: &Config<'_>, text: &Config<'_>) -> bool {
    config.architecture() == Some("GlmMoeDsaForCausalLM") || text.str("model_type") == Some("glm_moe_dsa")
}

/// Which layers route to experts.
fn sparse_layers(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    let key = "mlp_layer_types";
    let Some(kinds) = text.strings(key)? else {
        let dense = text.opt("first_k_dense_replace")?.unwrap_or(3);
        return Ok((0..layers).map(|i| i >= dense).collect());
    };
    if u64::try_from(kinds.len()) != Ok(layers) || kinds.iter().any(|k| !["dense", "sparse"].contains(k)) {
        return Err(text.reject(key, format!("expected dense or sparse for each of the {layers} layers")));
    }
    Ok(kinds.iter().map(|k| *k == "sparse").collect())
}

/// Which layers have an indexer of their own: listed, by a pattern of letters, or one of `index_topk_freq` after the first.
fn indexed(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    let key = ["indexer_types", "index_topk_pattern"].into_iter().find(|k| text.has(k));
    let letters = text.str("index_topk_pattern");
    let full: Vec<Option<bool>> = match (key, letters) {
        (Some("index_topk_pattern"), Some(letters)) => {
            let one = |c| match c { 'F' => Some(true), 'S' => Some(false), _ => None };
            letters.chars().map(one).collect()
        }
        (Some(key), _) => {
            let one = |k: &str| match k { "full" => Some(true), "shared" => Some(false), _ => None };
            text.strings(key)?.unwrap_or_default().into_iter().map(one).collect()
        }
        (None, _) => {
            let every = text.opt("index_topk_freq")?.unwrap_or(1).max(1);
            let first = text.opt("index_skip_topk_offset")?.unwrap_or(2);
            (0..layers).map(|i| Some((i + 1).saturating_sub(first).is_multiple_of(every))).collect()
        }
    };
    let full: Option<Vec<bool>> = full.into_iter().collect();
    match full {
        Some(full) if u64::try_from(full.len()) == Ok(layers) => Ok(full),
        _ => {
            let reason = format!("expected full or shared (F or S) for each of the {layers} layers");
            Err(text.reject(key.unwrap_or_default(), reason))
        }
    }
}

/// The router, whose bias stays in 32 bits, and the experts.
fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "mlp.gate", [moe.experts, hidden], false);
    let bias = "mlp.gate.e_score_correction_bias";
    b.tensor_typed(Role::Router, bias, &[moe.experts], Shard::Replicated, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", hidden, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", hidden, moe.shared, false);
    }
    Ok(())
}

/// The indexer's matrices, of which every rank keeps all.
fn chooses(b: &mut SpecBuilder, i: &Indexer, hidden: u64, q_rank: u64) {
    let at = Role::Attention;
    b.whole(at, "self_attn.indexer.wq_b", [i.heads.saturating_mul(i.dim), q_rank], false);
    b.whole(at, "self_attn.indexer.wk", [i.dim, hidden], false);
    b.norm_bias("self_attn.indexer.k_norm", i.dim);
    let name = "self_attn.indexer.weights_proj.weight";
    b.tensor(at, name, &[i.heads, hidden], Shard::Replicated);
}
