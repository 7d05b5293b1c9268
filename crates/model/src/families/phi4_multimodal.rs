//! Phi-4-multimodal: Phi 3's decoder behind `SigLIP` with its pooling head, and a conformer that hears.
//!
//! Source: transformers `models/phi4_multimodal/{configuration,modeling}_phi4_multimodal.py`. The published class has the
//! same tensors under other names: those from `convert_phi4_multimodal_weights_to_hf.py` there and vLLM 0.28
//! `models/phi4mm{,_audio,_utils}.py`, which reads past the decoder's adapters; they are left out here too.

use super::{Family, phi3};
use crate::tower::{Body, Siglip, phi4};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phi4_multimodal",
    architectures: &["Phi4MultimodalForCausalLM", "Phi4MMForCausalLM"],
    model_types: &["phi4_multimodal", "phi4mm"],
    towers: true,
    lower,
};

/// What the two classes call the same tensors.
#[derive(Clone, Copy, Debug)]
struct Names {
    separators: [&'static str; 2],
    image: [&'static str; 2],
    /// Of sound alone, and of sound beside images.
    sound: [[&'static str; 2]; 2],
    layers: phi4::Names,
}

const CONVERTED: Names = Names {
    separators: ["global_img_feature_extensor", "sub_img_feature_extensor"],
    image: ["img_projection_up", "img_projection_down"],
    sound: [
        ["up_proj_for_speech", "down_proj_for_speech"],
        ["up_proj_for_vision_speech", "down_proj_for_vision_speech"],
    ],
    layers: phi4::Names {
        feed_forward: ["gate_up_proj", "down_proj"],
        attention: ["q_proj", "k_proj", "v_proj", "o_proj"],
    },
};

const PUBLISHED: Names = Names {
    separators: ["glb_GN", "sub_GN"],
    image: ["img_projection.0", "img_projection.2"],
    sound: [
        ["audio_projection.speech.0", "audio_projection.speech.2"],
        ["audio_projection.vision.0", "audio_projection.vision.2"],
    ],
    layers: phi4::Names {
        feed_forward: ["net.0.linear", "net.2"],
        attention: ["linear_q", "linear_k", "linear_v", "linear_out"],
    },
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let published = config.str("model_type") == Some("phi4mm") || config.architecture() == Some("Phi4MMForCausalLM");
    (phi3::FAMILY.lower)(config, b)?;
    if published {
        b.spec().notes.push("the decoder's adapters (`speech_lora`, `vision_lora`) are left out".to_owned());
        for t in b.spec().tensors.iter_mut().filter(|t| t.layer.is_some()) {
            t.name = t.name.replace("_proj.weight", "_proj.base_layer.weight");
        }
    }
    let inside = |outer: &str, key: &str| match config.object(outer)? {
        Some(o) => o.object(key),
        None => Ok(None),
    };
    let audio = if published { inside("audio_processor", "config")? } else { config.object("audio_config")? };
    let audio = audio.ok_or_else(|| ModelError::Missing {
        field: config.path_of(if published { "audio_processor" } else { "audio_config" }),
        why: "it describes the audio tower",
    })?;
    // How many positions of sound are joined: the published class keeps it apart.
    let layer = inside("embd_layer", "audio_embd_layer")?;
    let joined = layer.as_ref().unwrap_or(&audio).dim_or(&["downsample_rate"], 1)?;
    let (hidden, body) = (b.spec().hidden, eyes(config.object("vision_config")?.as_ref())?);
    let names = if published { PUBLISHED } else { CONVERTED };
    let (e, one, w) = (Role::Encoder, Shard::Replicated, body.hidden);
    b.scope("model.embed_tokens_extend.image_embed.", |b| {
        b.tensor(e, names.separators[0], &[1, 1, w], one);
        b.tensor(e, names.separators[1], &[1, 1, 1, w], one);
        b.scope("img_processor.", |b| Siglip::pooled(body).tensors(b))?;
        b.whole(e, names.image[0], [hidden, w], true);
        b.whole(e, names.image[1], [hidden, hidden], true);
        Ok(())
    })?;
    b.scope("model.embed_tokens_extend.audio_embed.", |b| {
        let heard = b.scope("encoder.", |b| phi4::tensors(&audio, b, &names.layers))?;
        for [up, down] in names.sound {
            b.whole(e, up, [hidden, heard.saturating_mul(joined)], true);
            b.whole(e, down, [hidden, hidden], true);
        }
        Ok(())
    })?;
    // Images are cut into crops; how many tokens one becomes follows from its size.
    b.encoder(body.encoder(None));
    Ok(())
}

/// The sizes of `SigLIP` so400m at 448 pixels, which the published class does not state.
fn eyes(vision: Option<&Config<'_>>) -> Result<Body, ModelError> {
    let size = |key: &'static str, or: u64| vision.map_or(Ok(or), |v| v.dim_or(&[key], or));
    let layers = "num_hidden_layers";
    let body = Body {
        hidden: size("hidden_size", 1152)?,
        layers: vision.filter(|v| v.has(layers)).map_or(Ok(27), |v| v.layers(&[layers]))?,
        inner: size("intermediate_size", 4304)?,
        heads: size("num_attention_heads", 16)?,
        image: size("image_size", 448)?,
        patch: size("patch_size", 14)?,
        channels: size("num_channels", 3)?,
    };
    match vision {
        Some(v) if body.image < body.patch => Err(v.reject("image_size", "expected at least one patch")),
        _ => Ok(body),
    }
}
