//! Model families: one file each, found by the build script.
//!
//! A family file has a `FAMILY` constant, which says for which `architectures` and `model_type`
//! values it speaks, and a lowering, which reads the config and describes the model to a
//! [`SpecBuilder`]. It states every tensor of the checkpoint; nothing is inferred from a name.

use crate::Assume;
use crate::builder::SpecBuilder;
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{Attention, Reach};

include!(concat!(env!("OUT_DIR"), "/families.rs"));

/// What a family file offers.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Short name, as in reports.
    pub name: &'static str,
    /// Values of `architectures[0]` that it reads.
    pub architectures: &'static [&'static str],
    /// Values of `model_type` that it reads, where no architecture is given.
    pub model_types: &'static [&'static str],
    /// Describes the model.
    pub lower: fn(&Config<'_>, &mut SpecBuilder) -> Result<(), ModelError>,
}

/// The family of a config, by `architectures[0]` and, failing that, `model_type`.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], or [`ModelError::Missing`] where neither field is there.
pub(crate) fn find(config: &Config<'_>, assume: Assume) -> Result<Family, ModelError> {
    let architecture = config.architecture();
    let model_type = config.str("model_type");
    let by_architecture =
        architecture.and_then(|a| FAMILIES.iter().find(|f| f.architectures.contains(&a)));
    let by_type = model_type.and_then(|t| FAMILIES.iter().find(|f| f.model_types.contains(&t)));
    if let Some(family) = by_architecture.or(by_type) {
        return Ok(*family);
    }
    if assume == Assume::Gqa {
        return Ok(llama::FAMILY);
    }
    if architecture.is_none() && model_type.is_none() {
        return Err(ModelError::Missing {
            field: config.path_of("model_type"),
            why: "neither `architectures` nor `model_type` says which architecture this is \
                  (`--assume gqa` takes it for a LLaMA-like decoder)",
        });
    }
    Err(ModelError::UnknownArchitecture {
        architecture: match (architecture, model_type) {
            (Some(a), Some(t)) => format!("{a} (model_type {t})"),
            (Some(a), None) => a.to_owned(),
            (None, t) => format!("with model_type {}", t.unwrap_or_default()),
        },
        missing:
            "which layers keep keys and values, windows or states is not in a config, only in the \
                  architecture's code"
                .to_owned(),
    })
}

/// The fields that most decoders share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    pub(crate) hidden: u64,
    pub(crate) layers: u64,
    pub(crate) vocab: u64,
    pub(crate) q_heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
}

/// Reads the shared fields under their usual names, and sets them on the spec.
///
/// Head size: `head_dim` where given, never hidden / heads first (Qwen3, Gemma and Mistral-Nemo
/// break that). KV heads: the field where given, else one per query head.
pub(crate) fn decoder(text: &Config<'_>, b: &mut SpecBuilder) -> Result<Decoder, ModelError> {
    let hidden = text.dim(
        &["hidden_size", "n_embd", "d_model"],
        "it is the width of every matrix",
    )?;
    let layers = text.layers(&["num_hidden_layers", "n_layer", "num_layers"])?;
    let vocab = text.dim(
        &["vocab_size"],
        "it sizes the embedding and the output head",
    )?;
    let q_heads = text.dim(
        &["num_attention_heads", "n_head"],
        "it decides head size and how far TP can split",
    )?;
    let kv_heads = text.dim_or(&["num_key_value_heads", "num_kv_heads"], q_heads)?;
    let head_dim = head_dim(text, hidden, q_heads)?;
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(text.reject(
            "num_key_value_heads",
            format!("expected a divisor of the {q_heads} attention heads"),
        ));
    }
    let spec = b.spec();
    spec.hidden = hidden;
    spec.vocab = vocab;
    spec.max_context = max_context(text)?;
    Ok(Decoder {
        hidden,
        layers,
        vocab,
        q_heads,
        kv_heads,
        head_dim,
    })
}

/// `head_dim` where given and not 0, else hidden / heads, which must then be whole.
pub(crate) fn head_dim(text: &Config<'_>, hidden: u64, q_heads: u64) -> Result<u64, ModelError> {
    match text.opt_any(&["head_dim", "hidden_size_per_head"])? {
        Some(n) if n > 0 => Ok(n),
        _ if hidden.is_multiple_of(q_heads) => Ok(hidden / q_heads),
        _ => Err(text.reject(
            "hidden_size",
            format!(
                "expected a multiple of the {q_heads} attention heads where `head_dim` is absent"
            ),
        )),
    }
}

/// The trained context, under the names in use.
pub(crate) fn max_context(text: &Config<'_>) -> Result<Option<u64>, ModelError> {
    text.opt_any(&[
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
    ])
}

impl Decoder {
    /// Attention of this decoder with the given reach.
    pub(crate) const fn attention(&self, reach: Reach) -> Attention {
        Attention {
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            k_dim: self.head_dim,
            v_dim: self.head_dim,
            reach,
            shared: false,
        }
    }
}

/// Sets whether the output head is tied, from the field or the family's default.
pub(crate) fn tie(
    config: &Config<'_>,
    text: &Config<'_>,
    b: &mut SpecBuilder,
    default: bool,
) -> Result<(), ModelError> {
    // A wrapper's own field wins over the nested one, as in transformers.
    let tied = if config.has("tie_word_embeddings") {
        config.flag("tie_word_embeddings", default)?
    } else {
        text.flag("tie_word_embeddings", default)?
    };
    b.spec().tied_embeddings = tied;
    Ok(())
}

/// Reach of every layer where `use_sliding_window` switches windows on from layer
/// `max_window_layers` (Qwen 2 and its kin), or where `layer_types` says it.
pub(crate) fn windows_from(text: &Config<'_>, layers: u64) -> Result<Vec<Reach>, ModelError> {
    let window = text.opt("sliding_window")?.filter(|w| *w > 0);
    let on = text.flag("use_sliding_window", false)?;
    if let (Some(types), Some(w), true) = (text.strings("layer_types")?, window, on) {
        return reaches_of(text, &types, layers, w);
    }
    let from = text.opt("max_window_layers")?.unwrap_or(layers);
    Ok((0..layers)
        .map(|i| match window {
            Some(w) if on && i >= from => Reach::Window(w),
            _ => Reach::Full,
        })
        .collect())
}

/// Reach of every layer as `layer_types` lists it.
pub(crate) fn reaches_of(
    text: &Config<'_>,
    types: &[&str],
    layers: u64,
    window: u64,
) -> Result<Vec<Reach>, ModelError> {
    if types.len() as u64 != layers {
        return Err(text.reject(
            "layer_types",
            format!("expected one entry for each of the {layers} layers"),
        ));
    }
    types
        .iter()
        .map(|t| match *t {
            "full_attention" => Ok(Reach::Full),
            "sliding_attention" => Ok(Reach::Window(window)),
            other => Err(text.reject(
                "layer_types",
                format!("`{other}` is not a kind this family has"),
            )),
        })
        .collect()
}

/// Which layers have routed experts: every `decoder_sparse_step`-th, except `mlp_only_layers`.
pub(crate) fn expert_layers(
    text: &Config<'_>,
    layers: u64,
    experts: u64,
) -> Result<Vec<bool>, ModelError> {
    let step = text.dim_or(&["decoder_sparse_step"], 1)?;
    let dense = text.numbers("mlp_only_layers")?.unwrap_or_default();
    Ok((0..layers)
        .map(|i| experts > 0 && !dense.contains(&i) && (i + 1).is_multiple_of(step))
        .collect())
}
