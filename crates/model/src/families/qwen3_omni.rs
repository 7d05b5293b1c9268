//! Qwen3-Omni, the part that thinks: Qwen3 with experts under Qwen3-VL's tower and one for sound. What speaks is a model
//! of its own and not described.
//!
//! Source: transformers `models/qwen3_omni_moe/{configuration,modeling}_qwen3_omni_moe.py`.

use super::bart::Half;
use super::qwen2_5_omni::{audio, thinker};
use super::{Family, qwen2_vl, qwen3_moe, qwen3_vl};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_omni",
    architectures: &["Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"],
    model_types: &["qwen3_omni_moe", "qwen3_omni_moe_thinker"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let thinker = thinker(config, b, &["talker_config", "code2wav_config"])?;
    b.scope("thinker.", |b| (qwen3_moe::FAMILY.lower)(&thinker, b))?;
    let (before, layers) = (b.spec().tensors.len(), b.spec().layers.len());
    let vision = qwen2_vl::vision(&thinker)?;
    let stacked = match vision.numbers("deepstack_visual_indexes")? {
        Some(list) if list.len() > layers => {
            return Err(vision.reject("deepstack_visual_indexes", "expected no more than there are layers"));
        }
        Some(list) => u64::try_from(list.len()).unwrap_or(u64::MAX),
        None => 3,
    };
    qwen3_vl::tower(&vision, b, stacked)?;
    // Qwen3-VL's tower under older names.
    for t in b.spec().tensors.iter_mut().skip(before) {
        t.name = t.name.replace("model.visual.", "thinker.visual.").replace("deepstack_merger_list.", "merger_list.");
        if t.name.contains("merger") {
            t.name = t.name.replace(".norm.", ".ln_q.").replace("linear_fc1", "mlp.0").replace("linear_fc2", "mlp.2");
        }
    }
    let audio = audio(&thinker)?;
    let eyes = b.spec().encoder;
    b.scope("thinker.audio_tower.", |b| hears(&audio, b))?;
    // Of two towers, the spec keeps the one that images pass.
    b.spec().encoder = eyes;
    Ok(())
}

/// Whisper's layers behind three convolutions, each of which halves bands and frames.
fn hears(audio: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let half = Half::of_sounds(audio, true)?;
    let (e, one, w) = (Role::Encoder, Shard::Replicated, half.hidden);
    let seen = audio.dim_or(&["downsample_hidden_size"], 480)?;
    let bands = audio.dim_or(&["num_mel_bins"], 128)?;
    let out = audio.dim_or(&["output_dim"], 3584)?;
    for (i, inp) in [(1, 1), (2, seen), (3, seen)] {
        b.tensor(e, &format!("conv2d{i}.weight"), &[seen, inp, 3, 3], one);
        b.tensor(e, &format!("conv2d{i}.bias"), &[seen], one);
    }
    let left = (0..3).fold(bands, |n, _| n.div_ceil(2));
    b.whole(e, "conv_out", [w, seen.saturating_mul(left)], false);
    half.encode(b, "layers.", audio.dim_or(&["max_source_positions"], 1500)?, bands)?;
    half.norm(b, e, "ln_post");
    b.whole(e, "proj1", [w, w], true);
    b.whole(e, "proj2", [out, w], true);
    Ok(())
}
