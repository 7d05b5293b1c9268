//! Buffers that a model class makes beside its weights: the print of what loading took counts them.

use plimsoll_model::Mixer;
use plimsoll_units::Bytes;

use super::super::{Context, Version};
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// From here on the lanes are kept only where a draft reads them (read in 0.28 and 0.32; 0.24 always keeps them).
const LANES_FOR_DRAFTS: Version = Version::new(0, 28);

/// What an indexer writes its choices to, and the lanes that DeepSeek V4's last rank keeps for its prediction layers.
///
/// Sources: vLLM 0.24, 0.28 and 0.32 `models/deepseek_v4/{nvidia,amd}/model.py` (`topk_indices_buffer`, `_mtp_hidden_buffer`),
/// `models/deepseek_v2.py` (`topk_indices_buffer`).
pub(super) fn terms(
    context: &Context<'_>,
    version: Version,
    batched_tokens: u64,
) -> Result<Vec<Term>, PlanError> {
    let spec = context.spec;
    let best = spec.layers.iter().filter_map(|l| match &l.mixer {
        Mixer::Latent(a) => a.indexer.map(|i| i.best),
        _ => None,
    });
    let Some(best) = best.max() else {
        return Ok(Vec::new());
    };
    let width = super::super::activation_dtype(context).bytes(1)?.get();
    let choices = Bytes::product([batched_tokens, best, 4])?;
    let mut terms = vec![
        Term::exact(Region::Weights, "indexer's choices", choices)
            .kind(Kind::Derived)
            .formula("tokens of a step x entries that attention reads x 4 B")
            .input("tokens", batched_tokens)
            .input("entries", best)
            .source("vLLM models/deepseek_v2.py, deepseek_v4/nvidia/model.py: topk_indices_buffer"),
    ];
    let lanes = spec.tensors.iter().find(|t| t.name.ends_with("hc_head_fn"));
    let read = version < LANES_FOR_DRAFTS || context.settings.mtp;
    if let Some(&[_, lanes]) = lanes.map(|t| t.shape.as_slice())
        && context.stage.is_last()
        && read
    {
        terms.push(
            Term::exact(
                Region::Weights,
                "lanes for prediction layers",
                Bytes::product([batched_tokens, lanes, width])?,
            )
            .kind(Kind::Derived)
            .formula("tokens of a step x lanes x hidden size x type")
            .input("tokens", batched_tokens)
            .input("lanes x hidden size", lanes)
            .source("vLLM models/deepseek_v4/nvidia/model.py: _mtp_hidden_buffer"),
        );
    }
    Ok(terms)
}
